"""Scores of the ground truth after its way through the mask grid and back.

They show what the grid alone costs, but are no upper bound: a network can score higher, above all
on objects of a few cells, because learned logits may place an edge anywhere inside a cell.
"""

import torch
from torch import Tensor

from data import rle, transforms
from data.batch import Annotation
from data.dataset import CocoDataset
from data.presets import EvalPreset
from engine.coco_ap import Scores, score
from mobileinst.set_prediction.postprocess import Postprocess
from mobileinst.set_prediction.targets import Target, stride_grid

MARGIN = 1e-3  # cell values are kept this far from 0 and 1, whose logits are infinite


def mask_grid_scores(
    dataset: CocoDataset,
    preset: EvalPreset,
    postprocess: Postprocess,
    stride: int = 8,
    max_dets: int = 100,
) -> Scores:
    """Scores the ground truth after it went the way of a network's masks.

    Every object is resized to the input of the network, averaged over the cells of the grid as in
    the losses, and brought back to the original size by the post-processing. Classes are right and
    all scores are equal, so only the grid can keep AP below 1.
    """
    detections = []
    for index in range(len(dataset)):
        annotation = dataset.annotation(index)
        if not annotation.rles or annotation.image_id in dataset.bad.image_ids:
            continue
        masks, kept = through_the_grid(annotation, preset, stride, postprocess)
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
def through_the_grid(
    annotation: Annotation, preset: EvalPreset, stride: int, postprocess: Postprocess
) -> tuple[list[rle.Rle], Tensor]:
    """The masks of an image as a perfect network gives them, and which of the N are not empty."""
    size, padded = preset.size(*annotation.orig_size), preset.padded_size(*annotation.orig_size)
    shares, _ = target_of(annotation, size, padded).soft_masks(stride_grid(padded, stride))
    logits = torch.logit(shares, eps=MARGIN)  # [N,h,w]
    sizes = (padded, size, annotation.orig_size)
    masks, boxes, _ = postprocess.full_masks(logits, sizes, rle.encode)
    kept = boxes[:, 2] > 0
    return [mask for mask, is_kept in zip(masks, kept.tolist()) if is_kept], kept


def target_of(annotation: Annotation, size: tuple[int, int], padded: tuple[int, int]) -> Target:
    """The target with all objects, however small."""
    view = transforms.View(0, 0, *annotation.orig_size[::-1], size)

    def padded_masks(rles: list[rle.Rle]) -> Tensor:
        masks = torch.zeros(len(rles), *padded, dtype=torch.bool)
        seen = transforms.view_masks(rles, annotation.orig_size, view)
        masks[:, : size[0], : size[1]] = torch.from_numpy(seen.copy())
        return masks

    ignored = [] if annotation.ignore is None else [annotation.ignore]
    masks, ignore = padded_masks(annotation.rles), padded_masks(ignored).any(0)
    return Target(torch.from_numpy(annotation.labels), masks, ignore, annotation.image_id, size)
