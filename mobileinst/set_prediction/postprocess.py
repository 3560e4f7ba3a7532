"""Outputs -> scored, labelled masks at the original size of the images."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height, width
Sizes = tuple[Size, Size, Size]  # padded, before padding, original

Encode = Callable[[Tensor], list]  # bool [m,h0,w0] -> m encoded masks

CHUNK_PIXELS = 4_000_000  # mask pixels encoded at a time
STRIP_PIXELS = 500_000  # mask pixels resized at a time, for the CPU cache
SAMPLES = 500_000  # pixels of a mask, at least, whose mean probability is its quality
# Our choice, as several placed queries may find one object. AP / AP50 without and with it: VOC
# .392 / .583, .394 / .591; demo set .482 / .801, .496 / .835; nuclei .217 / .437, .245 / .521.
DUPLICATE_IOU = 0.7
MARGIN = 1e-3  # of logits: the weights of a mean sum to 1 but for rounding
STEP = 2.0  # of logits, by which `grid_stability` moves the threshold


class Resize(NamedTuple):
    """How one side of a mask is resized.

    Mask logits are resized to the padded input, cropped and resized to the original size, never
    binary masks: thresholding afterwards gives smooth edges. Bilinear resizing is separable, so all
    of it is one matrix for the rows and one for the columns: `interpolate` twice, on a CPU in about
    a tenth of the time.

    Args:
        matrix: [cells,pixels].
        pixels: first and end of the pixels [cells,2] that each cell touches. A cell without any, as
            those of the padding and of images that were enlarged, has the first of the cells after
            it and the end of those before it.
        cells: spans [pixels,2] of the cells that each pixel is a mean of, as lists.
    """

    matrix: Tensor
    pixels: Tensor
    cells: list[list[int]]

    @staticmethod
    @lru_cache(64)  # the images of a batch often have the same sizes
    def of(cells: int, padded: int, size: int, orig_size: int) -> "Resize":
        wide = F.interpolate(torch.eye(cells)[None], padded, mode="linear", align_corners=False)
        wide = F.interpolate(wide[..., :size], orig_size, mode="linear", align_corners=False)
        [matrix] = wide
        pixels = spans(matrix != 0)
        first, end = pixels.unbind(1)
        first = first.masked_fill(end == 0, orig_size).flip(0).cummin(0).values.flip(0)
        pixels = torch.stack([first, end.cummax(0).values], 1)
        return Resize(matrix, pixels, spans(matrix.T != 0).tolist())

    def reach(self, cells: Tensor) -> Tensor:
        """Spans of cells -> spans of the pixels that they touch: [M,2] -> [M,2]."""
        pixels = self.pixels.to(cells.device)
        first, last = pixels[cells[:, 0], 0], pixels[(cells[:, 1] - 1).clamp(min=0), 1]
        return torch.stack([first, last], 1) * (cells[:, 1:] > 0)


def spans(hit: Tensor) -> Tensor:
    """First and one past the last True of each row, else 0, 0: bool [M,n] -> [M,2]."""
    n = hit.shape[1]
    up = torch.arange(1, n + 1, device=hit.device, dtype=torch.int32)
    last, first = (hit * up).amax(1), n - (hit * up.flip(0)).amax(1)
    return torch.stack([first * (last > 0), last], 1)


def rank_by_objectness(outputs: dict) -> tuple[Tensor, Tensor]:
    """Scores sqrt(class · objectness) of each query and class [Q,K] (SparseInst), True [Q].

    SparseInst keeps only the best class of a query. Our choice is all of them, because AP measures
    the order of the detections of each class: for a network trained from scratch on a small set,
    unsure of its classes, AP was three times as high (0.010 for 0.003), and for a pretrained one
    the same.

    Args:
        outputs: `class_logits` [Q,K] and `objectness` [Q,1] of one image.
    """
    scores = (outputs["class_logits"].sigmoid() * outputs["objectness"].sigmoid()).sqrt()
    return scores, torch.ones_like(scores[:, 0], dtype=torch.bool)


def rank_by_class(outputs: dict) -> tuple[Tensor, Tensor]:
    """Softmax scores [Q,K] without "no object" (Mask2Former), and where it is an object [Q]."""
    probs = outputs["class_logits"].softmax(-1)  # [Q,K+1]
    return probs[:, :-1], probs.argmax(-1) < probs.shape[1] - 1


def rank_by_class_root(outputs: dict) -> tuple[Tensor, Tensor]:
    """The same with the roots of the scores, so that a mask quality counts twice as much. Our
    choice for `grid_stability`: AP of halves of Penn-Fudan was .643 and .544 where it counted as
    much as the class, .646 and .547 with twice as much, and no better with three times.
    """
    scores, found = rank_by_class(outputs)
    return scores.sqrt(), found


def grid_quality(mask_logits: Tensor, padded: Size, size: Size, cut: float) -> Tensor:
    """Mean probability inside masks at twice the size of the logits (SparseInst): [Q]."""
    logits = on_fine_grid(mask_logits, padded, size)
    return mean_inside(logits, logits > cut)


def grid_stability(mask_logits: Tensor, padded: Size, size: Size, cut: float) -> Tensor:
    """The IoU of each mask with threshold raised and lowered by `STEP`, on that grid: [Q].

    The stability score of Segment Anything (Kirillov et al. 2023), which drops masks by it, with a
    step of 1. One cell is added to both areas, so that only empty masks have zero.
    """
    logits = on_fine_grid(mask_logits, padded, size)
    inside, smaller, larger = ((logits > cut + step).sum((1, 2)) for step in (0, STEP, -STEP))
    return (inside > 0) * (1 + smaller) / (1 + larger)


def on_fine_grid(mask_logits: Tensor, padded: Size, size: Size) -> Tensor:
    """Logits at twice their size, without padding: [Q,h,w] -> [Q,rows,columns]."""
    logits = F.interpolate(mask_logits[None], scale_factor=2, mode="bilinear", align_corners=False)
    rows = -(-logits.shape[2] * size[0] // padded[0])
    columns = -(-logits.shape[3] * size[1] // padded[1])
    return logits[0, :, :rows, :columns]


def mean_inside(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean probability inside bool masks, 0 for empty ones: 2 × [m,h,w] -> [m]."""
    return (logits.sigmoid() * masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)


def boxes_from_spans(rows: Tensor, columns: Tensor) -> Tensor:
    """Boxes (x0, y0, x1, y1), the far edges exclusive, 0 for empty masks: [M,2] twice -> [M,4]."""
    return torch.stack([columns, rows], 2).flatten(1).float()


class Postprocess:
    """Ranks the detections of the queries, resizes the best masks to the original size.

    Args:
        rank: outputs of one image -> scores [Q,K] of each query with each class, and bool [Q],
            False for a query that predicts no object.
        mask_threshold: a pixel belongs to the mask above this probability.
        max_detections: detections per image, the best before masks are resized.
        quality: (mask logits of an image, padded, size, logit of the threshold) -> factor of the
            scores [Q]; None: the mean probability inside the masks at the original size.
        duplicate_iou: a detection is dropped if its mask has a larger IoU, on the grid of the
            logits, with that of a better one of its class; 1 is off. The papers drop none.
    """

    def __init__(
        self,
        rank: Callable[[dict], tuple[Tensor, Tensor]],
        mask_threshold: float = 0.45,
        max_detections: int = 100,
        quality: Callable[[Tensor, Size, Size, float], Tensor] | None = grid_quality,
        duplicate_iou: float = DUPLICATE_IOU,
    ):
        self.rank = rank
        self.cut = float(torch.logit(torch.tensor(mask_threshold, device="cpu")))
        self.max_detections = max_detections
        self.quality = quality
        self.duplicate_iou = duplicate_iou

    @torch.no_grad()
    def __call__(
        self,
        outputs: dict,
        sizes: list[Sizes],
        threshold: float | None = None,
        encode: Encode | None = None,
    ) -> list[dict]:
        """Results of a batch.

        Args:
            outputs: the dict of the contract, or scores [B,Q,K] and mask_logits for a rank that
                reads these.
            sizes: (padded, size before padding, original size) of each image.
            threshold: drops scores at or below it, queries that predict no object, all but the
                best detection of a query, and duplicates. None, for evaluation, drops duplicates
                alone; `best` marks the detections that would be shown.
            encode: called in chunks to bound memory.
        Returns:
            B `results` of the contract, highest score first; masks are dense without `encode`.
            Empty masks are dropped.
        """
        names = {"class_logits", "mask_logits", "objectness", "scores"} & outputs.keys()
        return [
            self.of_image({k: outputs[k][index].float() for k in names}, each, threshold, encode)
            for index, each in enumerate(sizes)
        ]

    def of_image(
        self, outputs: dict, sizes: Sizes, threshold: float | None, encode: Encode | None
    ) -> dict:
        """The result of one image, from its outputs without the batch axis."""
        padded, size, _ = sizes
        scores, found = self.rank(outputs)  # [Q,K], [Q]
        mask_logits, classes = outputs["mask_logits"], scores.shape[1]  # [Q,h,w]
        if self.quality:
            scores = scores * self.quality(mask_logits, padded, size, self.cut)[:, None]
        order = scores.flatten().argsort(descending=True, stable=True)  # [Q·K]
        best = torch.zeros_like(order, dtype=torch.bool)
        best[order.argsort().view_as(scores).amin(1)] = found  # the first place of each query
        if threshold is not None:  # the factor of `full_masks` is at most 1
            shown = best & (scores.flatten()[order] > threshold)
            order, best = order[shown], best[shown]
        order, best = order[: self.max_detections], best[: self.max_detections]
        seen, place = (order // classes).unique(return_inverse=True)  # each mask resized once
        mask_logits = mask_logits[seen]
        masks, boxes, sure = self.full_masks(mask_logits, sizes, encode)
        scores, labels = scores.flatten()[order] * sure[place], order % classes
        kept = boxes[place, 2] > 0
        if threshold is not None:
            kept &= scores > threshold
        kept = kept.nonzero()[:, 0]
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
        scores, labels, best, place = scores[kept], labels[kept], best[kept], place[kept]
        near = self.near(mask_logits)[place][:, place]  # [M,M]
        near = near & (labels[:, None] == labels).tril(-1)
        best = best & ~(near & best).any(1)
        kept = best if threshold is not None else best | ~near.any(1)
        scores, labels, place, best = scores[kept], labels[kept], place[kept], best[kept]
        return {
            "scores": scores,
            "labels": labels,
            "masks": [masks[i] for i in place.tolist()] if encode else masks[place],
            "boxes": boxes[place],
            "best": best,
            "query_idx": seen[place],
        }

    def near(self, mask_logits: Tensor) -> Tensor:
        """Which masks are nearly equal, on the grid of the logits: [S,h,w] -> bool [S,S]."""
        masks = (mask_logits > self.cut).flatten(1).float()
        shared, area = masks @ masks.T, masks.sum(1)
        iou = shared / (area[:, None] + area - shared).clamp(min=1)
        return iou > self.duplicate_iou

    def full_masks(
        self, mask_logits: Tensor, sizes: Sizes, encode: Encode | None
    ) -> tuple[list | Tensor, Tensor, Tensor]:
        """Resized, thresholded and encoded masks, boxes [M,4], factors of the scores [M]."""
        (height, width), cut = sizes[2], self.cut
        down, along = (Resize.of(*side) for side in zip(mask_logits.shape[1:], *sizes))
        rows, columns = down.matrix.to(mask_logits), along.matrix.to(mask_logits)
        # A resized logit is a mean of cells, so it is above the cut only where one of them is.
        hot = mask_logits > cut - MARGIN
        limits = [down.reach(spans(hot.any(2))), along.reach(spans(hot.any(1)))]
        limits = torch.cat(limits, 1).tolist()  # M times top, bottom, left, right
        strip = max(1, STRIP_PIXELS // width)
        masks, boxes, sure = [], [mask_logits.new_zeros(0, 4)], [mask_logits.new_zeros(0)]
        chunk = max(1, CHUNK_PIXELS // (height * width))
        for begin in range(0, len(mask_logits), chunk):
            logits = mask_logits[begin : begin + chunk]
            dense = logits.new_zeros(len(logits), height, width, dtype=torch.bool)
            in_row = logits.new_full((len(logits), height), cut)
            in_column = logits.new_full((len(logits), width), cut)
            factors = logits.new_ones(len(logits))
            for index, (top, bottom, left, right) in enumerate(limits[begin : begin + chunk]):
                if top >= bottom or left >= right:
                    continue
                first, last = along.cells[left][0], along.cells[right - 1][1]
                wide = logits[index, :, first:last] @ columns[first:last, left:right]
                step = max(1, math.isqrt((bottom - top) * (right - left) // SAMPLES))
                samples = []
                for start in range(top, bottom, strip):
                    stop = min(start + strip, bottom)
                    first, last = down.cells[start][0], down.cells[stop - 1][1]
                    fine = rows[first:last, start:stop].T @ wide[first:last]
                    dense[index, start:stop, left:right] = fine > cut
                    in_row[index, start:stop] = fine.amax(1)
                    highest = in_column[index, left:right]
                    torch.maximum(highest, fine.amax(0), out=highest)
                    if not self.quality:
                        samples.append(fine[::step, ::step])
                if samples:
                    seen = torch.cat(samples)[None]
                    factors[index] = mean_inside(seen, seen > cut)[0]
            boxes.append(boxes_from_spans(spans(in_row > cut), spans(in_column > cut)))
            sure.append(factors)
            masks += encode(dense) if encode else dense
        if not encode:
            masks = torch.stack(masks) if masks else mask_logits.new_zeros(0, height, width).bool()
        return masks, torch.cat(boxes), torch.cat(sure)
