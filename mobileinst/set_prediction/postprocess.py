"""Outputs → scored, labelled masks at the pictures' original size."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Ranking = tuple[Tensor, Tensor, Tensor]

CHUNK_PIXELS = 4_000_000  # mask pixels resized at a time: 16 MB of float32


def upsample_masks(
    mask_logits: Tensor, padded: tuple[int, int], size: tuple[int, int], orig_size: tuple[int, int]
) -> Tensor:
    """Mask logits at the original size: up to the padded input, crop the padding, resize.

    Logits are resized, never binary masks: thresholding afterwards gives smooth edges. Bilinear
    resizing treats rows and columns apart, so both resizings and the crop are one matrix for each
    (the same numbers as `interpolate` twice, on a CPU in about a tenth of the time).

    Args:
        mask_logits: [M,h,w]; padded, size, orig_size: (height, width) in pixels.
    Returns:
        [M,h0,w0] logits.
    """
    rows, columns = (
        resize_matrix(*sides).to(mask_logits)
        for sides in zip(mask_logits.shape[-2:], padded, size, orig_size)
    )
    return rows.T @ (mask_logits @ columns)  # [M,h0,w0]


def resize_matrix(cells: int, padded: int, size: int, orig_size: int) -> Tensor:
    """What resizing one side to `padded`, cropping to `size` and resizing again multiplies by.

    [cells, orig_size]; linear, align_corners False.
    """
    to_padded = F.interpolate(torch.eye(cells)[None], padded, mode="linear", align_corners=False)
    cropped = to_padded[..., :size]
    return F.interpolate(cropped, orig_size, mode="linear", align_corners=False)[0]


def rank_by_objectness(outputs: dict) -> Ranking:
    """Every pair of a query and a class, scored sqrt(class · objectness) (the score: SparseInst).

    SparseInst lets a query answer with its best class only. Our choice is all of them, because AP
    asks for each class how well its answers are ordered: for a network trained from scratch on a
    small set, unsure of its classes, AP came out three times as high (0.010 for 0.003), and the
    same for a pretrained one.

    Args:
        outputs: of one picture: `class_logits` [Q,K], `objectness` [Q,1].
    Returns:
        scores [Q·K], labels [Q·K], query_idx [Q·K].
    """
    class_prob = outputs["class_logits"].sigmoid()  # [Q,K]
    scores = (class_prob * outputs["objectness"].sigmoid()).sqrt()
    pairs = torch.arange(scores.numel(), device=scores.device)
    classes = scores.shape[1]
    return scores.flatten(), pairs % classes, pairs // classes


def is_first(query_idx: Tensor, queries: int) -> Tensor:
    """Whether an entry is the first with its value. int64 [M], each below `queries` → bool [M]."""
    places = torch.arange(len(query_idx), device=query_idx.device)
    first = torch.full((queries,), len(query_idx), device=query_idx.device)
    first.scatter_reduce_(0, query_idx, places, "amin")
    return first[query_idx] == places


def boxes_from_masks(masks: Tensor) -> Tensor:
    """Tight boxes (x0, y0, x1, y1), the far edges exclusive; bool [M,H,W] → [M,4].

    An empty mask has the box 0, 0, 0, 0.
    """
    bytes_ = masks.view(torch.uint8)  # a maximum of bytes is much faster than any() of bools
    sides = []
    for hit in (bytes_.amax(1), bytes_.amax(2)):  # [M,W], [M,H]
        first = hit.argmax(1)
        last = hit.shape[1] - hit.flip(1).argmax(1)
        sides.append(torch.stack([first, last * hit.amax(1)]))  # [2,M]
    return torch.stack(sides, 1).flatten(0, 1).T.float()  # [M,4]


class Postprocess:
    """Ranks the answers of the queries, keeps the best, brings their masks to the original size.

    Args:
        rank: outputs of one picture → (scores, labels, query_idx); a query may occur with several
            classes.
        mask_threshold: a pixel belongs to the mask above this probability.
        max_detections: how many answers are kept per picture.
    """

    def __init__(
        self,
        rank: Callable[[dict], Ranking],
        mask_threshold: float = 0.45,
        max_detections: int = 100,
    ):
        self.rank = rank
        self.mask_threshold_logit = float(torch.logit(torch.tensor(mask_threshold)))
        self.max_detections = max_detections

    @torch.no_grad()
    def __call__(
        self,
        outputs: dict,
        sizes: list[Sizes],
        threshold: float | None = None,
        encode: Callable[[Tensor], list] | None = None,
    ) -> list[dict]:
        """Results of a batch.

        Args:
            outputs: the dict of the contract.
            sizes: per picture (padded, size before padding, original size), each (height, width).
            threshold: drop scores at or below it, and all but the best answer of a query, which
                shows one object; None keeps all, as evaluation must.
            encode: bool [m,h0,w0] → m encoded masks; called in chunks, so that memory stays small.
                Without it dense masks come back.
        Returns:
            B dicts, best score first: `scores` [M], `labels` [M], `masks` (a list of M encoded
            masks, or bool [M,h0,w0]), `boxes` [M,4] of the masks, `best` bool [M]: whether no
            other answer of the same query scores higher. Empty masks are dropped.
        """
        results = []
        for index, (padded, size, orig_size) in enumerate(sizes):
            one = {
                key: value[index].float()
                for key, value in outputs.items()
                if torch.is_tensor(value) and key in ("class_logits", "mask_logits", "objectness")
            }
            scores, labels, query_idx = self.rank(one)
            scores = scores * self.mask_quality(one["mask_logits"], padded, size)[query_idx]
            order = scores.argsort(descending=True, stable=True)
            best = is_first(query_idx[order], len(one["mask_logits"]))
            if threshold is not None:
                shown = best & (scores[order] > threshold)
                order, best = order[shown], best[shown]
            order, best = order[: self.max_detections], best[: self.max_detections]
            seen, place = query_idx[order].unique(return_inverse=True)  # each mask resized once
            masks, boxes, kept = self.full_masks(
                one["mask_logits"][seen], padded, size, orig_size, encode
            )
            order, best, place = order[kept[place]], best[kept[place]], place[kept[place]]
            place = (kept.cumsum(0) - 1)[place]  # among those kept
            results.append(
                {
                    "scores": scores[order],
                    "labels": labels[order],
                    "masks": [masks[i] for i in place.tolist()] if encode else masks[place],
                    "boxes": boxes[place],
                    "best": best,
                }
            )
        return results

    def mask_quality(
        self, mask_logits: Tensor, padded: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        """Mean probability inside each mask (SparseInst's rescoring), at twice the logits' grid.

        [Q,h,w] → [Q] in 0..1; 0 for an empty mask.
        """
        logits = F.interpolate(
            mask_logits[None], scale_factor=2, mode="bilinear", align_corners=False
        )[0]
        rows = -(-logits.shape[1] * size[0] // padded[0])
        columns = -(-logits.shape[2] * size[1] // padded[1])
        logits = logits[:, :rows, :columns]
        inside = logits > self.mask_threshold_logit
        return (logits.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)

    def full_masks(
        self,
        mask_logits: Tensor,
        padded: tuple[int, int],
        size: tuple[int, int],
        orig_size: tuple[int, int],
        encode: Callable[[Tensor], list] | None,
    ) -> tuple[list | Tensor, Tensor, Tensor]:
        """Resize, threshold and encode in chunks; empty masks are left out.

        [M,h,w] → masks, boxes [M',4], and which of the M were kept (bool [M]).
        """
        pixels = max(padded[0] * padded[1], orig_size[0] * orig_size[1])
        chunks, boxes = [], [mask_logits.new_zeros(0, 4)]
        kept = [mask_logits.new_zeros(0, dtype=torch.bool)]
        chunk = max(1, CHUNK_PIXELS // pixels)
        for start in range(0, len(mask_logits), chunk):
            logits = mask_logits[start : start + chunk]
            masks = upsample_masks(logits, padded, size, orig_size) > self.mask_threshold_logit
            found = boxes_from_masks(masks)
            kept.append(found[:, 2] > 0)
            boxes.append(found[kept[-1]])
            masks = masks[kept[-1]]
            chunks.append(encode(masks) if encode else masks)
        if encode:
            masks = [mask for chunk in chunks for mask in chunk]
        else:
            masks = torch.cat([*chunks, mask_logits.new_zeros(0, *orig_size, dtype=torch.bool)])
        return masks, torch.cat(boxes), torch.cat(kept)
