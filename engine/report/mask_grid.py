"""Scores of the ground truth after its way through the mask grid and back.

They show what the grid alone costs, but are no upper bound: a network can score higher, above all
on objects of a few cells, because learned logits may place an edge anywhere inside a cell.
"""

import torch
import torch.nn.functional as F
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
    the losses, and resized back by the post-processing. Classes are right and all scores are equal,
    so only the grid can keep AP below 1.
    """
    detections = []
    for index in range(len(dataset)):
        annotation = dataset.annotation(index)
        if annotation.image_id in dataset.bad.image_ids:
            continue
        masks = through_the_grid(annotation, preset, stride, postprocess)
        detections += [
            {
                "image_id": annotation.image_id,
                "category_id": dataset.categories[label].id,
                "segmentation": mask,
                "score": 1.0,
            }
            for mask, label in zip(masks, annotation.labels, strict=True)
            if mask is not None
        ]
    return score(dataset.ground_truth(), detections, max_dets=max_dets)


@torch.no_grad()
def through_the_grid(
    annotation: Annotation, preset: EvalPreset, stride: int, postprocess: Postprocess
) -> list[rle.Rle | None]:
    """The N masks of an image as a perfect network gives them, None for empty ones."""
    original = annotation.orig_size
    size, padded = preset.size(*original), preset.padded_size(*original)
    view = transforms.View(0, 0, *original[::-1], size)

    def resized(rles: list[rle.Rle]) -> Tensor:
        masks = torch.from_numpy(transforms.view_masks(rles, original, view).copy())
        return F.pad(masks, (0, padded[1] - size[1], 0, padded[0] - size[0]))

    if not annotation.rles:
        return []
    ignore = resized([annotation.ignore] if annotation.ignore else []).any(0)
    masks = resized(annotation.rles)  # all objects, however small
    target = Target(torch.from_numpy(annotation.labels), masks, ignore, annotation.image_id, size)
    shares, _ = target.soft_masks(stride_grid(padded, stride))
    logits = torch.logit(shares, eps=MARGIN)  # [N,h,w]
    found, boxes, _ = postprocess.full_masks(logits, (padded, size, original), rle.encode)
    return [mask if box[2] > 0 else None for mask, box in zip(found, boxes, strict=True)]
