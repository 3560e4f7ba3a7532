"""What the ground truth itself scores after its way through the mask grid and back.

No bound: a network can do better, above all on objects of a few cells, because logits that are
learned may place an edge anywhere inside a cell.
"""

import torch

from data import rle, transforms
from data.batch import Annotation
from data.dataset import CocoDataset
from data.presets import EvalPreset
from engine.coco_ap import Scores, score
from mobileinst.set_prediction.postprocess import Postprocess
from mobileinst.set_prediction.targets import Target, stride_grid

SUREST = 1e-3  # cell values are kept this far from 0 and 1, whose logits are infinite


def ceiling(
    dataset: CocoDataset,
    preset: EvalPreset,
    postprocess: Postprocess,
    stride: int = 8,
    max_dets: int = 100,
) -> Scores:
    """Scores of the ground truth after the way that masks of a network go.

    Every object is resized to the input of the network, averaged over the cells of the grid as the
    losses do, and brought back to the original size by the network's own post-processing. Classes
    are right and all scores equal, so what is missing to 1 is the fault of the grid alone.
    """
    detections = []
    for index in range(len(dataset)):
        annotation = dataset.annotation(index)
        if not annotation.rles or annotation.image_id in dataset.bad.image_ids:
            continue
        masks, kept = _through_the_grid(annotation, preset, stride, postprocess)
        detections += [
            {
                "image_id": annotation.image_id,
                "category_id": dataset.categories[label].id,
                "segmentation": mask,
                "score": 1.0,
            }
            for mask, label in zip(masks, annotation.labels[kept.numpy()], strict=True)
        ]
    return score(dataset.ground_truth(), detections, max_dets=max_dets)


@torch.no_grad()
def _through_the_grid(
    annotation: Annotation, preset: EvalPreset, stride: int, postprocess: Postprocess
) -> tuple[list[rle.Rle], torch.Tensor]:
    """The objects of a picture as a perfect network gives them, and which of the N are not lost."""
    size, padded = preset.size(*annotation.orig_size), preset.padded_size(*annotation.orig_size)
    target = _target(annotation, size, padded)
    shares, _ = target.soft_masks(stride_grid(padded, stride))  # [N,h,w]
    logits = torch.logit(shares, eps=SUREST)
    picture = (padded, size, annotation.orig_size)
    masks, boxes, _ = postprocess.full_masks(logits, picture, rle.encode)
    kept = boxes[:, 2] > 0
    return [mask for mask, full in zip(masks, kept.tolist()) if full], kept


def _target(annotation: Annotation, size: tuple[int, int], padded: tuple[int, int]) -> Target:
    """The target with all objects, however small."""
    view = transforms.fit_view(*annotation.orig_size, size)
    ignored = [] if annotation.ignore is None else [annotation.ignore]
    masks = torch.zeros(len(annotation.rles), *padded, dtype=torch.bool)
    ignore = torch.zeros(padded, dtype=torch.bool)
    seen = transforms.view_masks(annotation.rles, annotation.orig_size, view)
    masks[:, : size[0], : size[1]] = torch.from_numpy(seen.copy())
    unseen = transforms.view_masks(ignored, annotation.orig_size, view).any(0)
    ignore[: size[0], : size[1]] = torch.from_numpy(unseen)
    labels = torch.from_numpy(annotation.labels)
    return Target(labels, masks, ignore, annotation.image_id, size)
