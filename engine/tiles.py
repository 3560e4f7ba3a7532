"""The network on images, or also on overlapping windows of them, whose detections are merged.

A large image is shrunk for the network, and its small objects with it. With `tiles`, the network
also sees windows of the image, each as large as the whole image would be.
"""

import math
from collections import defaultdict

import numpy as np
import torch
from PIL import Image
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from data import rle
from data.batch import Annotation, collate
from data.presets import WholeImage
from mobileinst.set_prediction.postprocess import Postprocess

Box = tuple[int, int, int, int]  # left, top, right, bottom

OVERLAP = 0.25  # of neighbouring windows, as a part of their side
SMALLEST = 64  # pixels of the side of a window
NEAR = 1 / 64  # of the side of a window: an object that ends as near to its edge is taken as cut
SAME = 0.5  # IoU of the masks of one object, and the part of a cut object that a whole one covers
# The mask of a small object is coarse in the whole image, and often contains that of a window: they
# are of one object if so much of the smaller one lies in the other, of at most four times its size.
NESTED, LARGER = 0.7, 4
LOWEST = 0.25  # of the score of a cut object: whole ones with less do not replace it


@torch.inference_mode()
def find(
    images: list[Image.Image],
    model: nn.Module,
    postprocess: Postprocess,
    preset: WholeImage,
    device: torch.device,
    threshold: float | None,
    batch_size: int | None = None,
) -> list[dict]:
    """RGB images -> results of the contract in data/batch.py, masks as RLE.

    Views of one padded size go through the network together.

    Args:
        preset: its `tiles` are the windows along the long side of an image, see `views_of`.
        threshold: None, for evaluation, keeps all detections but duplicates.
        batch_size: views in the network at a time; as many as there are images if not given.
    """
    at_once, tiles = batch_size or len(images), preset.tiles
    views = [
        (place, box)
        for place, image in enumerate(images)
        for box in views_of(image.height, image.width, tiles)
    ]
    by_size = defaultdict(list)
    for view, (_, (left, top, right, bottom)) in enumerate(views):
        by_size[preset.padded_size(bottom - top, right - left)].append(view)
    found: list[dict] = [{}] * len(views)
    for alike in by_size.values():
        for some in (alike[i : i + at_once] for i in range(0, len(alike), at_once)):
            samples = []
            for place, box in (views[view] for view in some):
                seen = images[place].crop(box) if tiles > 1 else images[place]
                samples.append(preset(*unannotated(seen)))
            batch = collate(samples).to(device)
            outputs = model(batch.images, batch.padding)
            results = postprocess(outputs, batch.sizes(), threshold, encode=rle.encode)
            for view, result in zip(some, results, strict=True):
                found[view] = result
    if tiles == 1:
        return found
    merged = []
    for place, image in enumerate(images):
        own = [view for view, (of, _) in enumerate(views) if of == place]
        boxes = [views[view][1] for view in own]
        size, most = (image.height, image.width), postprocess.max_detections
        merged.append(merge([found[view] for view in own], boxes, size, most))
    return merged


def unannotated(image: Image.Image) -> tuple[Image.Image, Annotation]:
    """An image with an annotation without objects, for a preset."""
    size = image.height, image.width
    return image, Annotation(np.zeros(0, np.int64), [], None, 0, size)


def views_of(height: int, width: int, tiles: int) -> list[Box]:
    """The whole image, and its windows.

    `tiles` windows lie along the long side, and along the short side as few as give windows that
    are not longer than the image. Neighbours share `OVERLAP` of their side, so an object of at most
    that size lies whole in one of them. Larger ones are for the whole image.
    """
    whole = (0, 0, width, height)
    short, long = sorted((height, width))
    number = {long: tiles, short: math.ceil(tiles * short / long)}
    rows, columns = (spans(side, number[side]) for side in (height, width))
    windows = [(left, top, right, bottom) for top, bottom in rows for left, right in columns]
    return [whole, *windows] if len(windows) > 1 else [whole]


def zoom(tiles: int) -> float:
    """How much larger objects are in a window than in the whole image."""
    return tiles - (tiles - 1) * OVERLAP


def spans(side: int, number: int) -> list[tuple[int, int]]:
    """Start and end of `number` windows along a side, fewer where they would be too small."""
    number = max(1, min(number, side // SMALLEST))
    length = math.ceil(side / zoom(number))
    starts = np.linspace(0, side - length, number).round().astype(int).tolist()
    return [(start, start + length) for start in starts]


def merge(results: list[dict], boxes: list[Box], size: tuple[int, int], most: int) -> dict:
    """Results of views of an image of this size (height, width) -> one result, the best `most`
    detections first. Joined ones have the best of their scores.
    """
    labels, scores, best = (
        torch.cat([result[key].cpu() for result in results]).numpy()
        for key in ("labels", "scores", "best")
    )
    views = np.repeat(np.arange(len(results)), [len(result["masks"]) for result in results])
    masks = [
        placed(mask, box, size) for result, box in zip(results, boxes) for mask in result["masks"]
    ]
    groups = grouped(masks, labels, scores, best, views, boxes)
    first = np.array([max(group, key=lambda place: scores[place]) for group in groups], int)
    order = np.argsort(-scores[first], kind="stable")[:most]
    first, groups = first[order], [[masks[place] for place in groups[group]] for group in order]
    merged = [rle.union(group) if len(group) > 1 else group[0] for group in groups]
    return {
        "scores": torch.from_numpy(scores[first]),
        "labels": torch.from_numpy(labels[first]),
        "masks": merged,
        "boxes": torch.from_numpy(rle.boxes(merged)).float(),
        "best": torch.from_numpy(best[first]),
    }


def grouped(
    masks: list[rle.Rle],
    labels: np.ndarray,
    scores: np.ndarray,
    best: np.ndarray,
    views: np.ndarray,
    boxes: list[Box],
) -> list[list[int]]:
    """The detections that stay, those that are to be joined together.

    Of two of one object the better one stays. One that an edge inside the image cuts goes where a
    whole one covers most of it; else it is joined to the cut ones that agree with it where both
    views look. A cut one longer than the overlap that nothing completes goes too: it is a part of
    what the whole image shows. Those that are shown (`best`) depend on one another alone.

    Args:
        masks: M masks of the image. labels, scores, best, views: [M].
        boxes: of the views, that of the whole image among them or not.
    """
    number, area = len(masks), rle.area(masks)
    around, edges = rle.boxes(masks), np.array(boxes)[views].reshape(-1, 4)  # [M,4]
    one, other, shared = overlapping(masks, area, around, labels, views)  # [P] each
    smaller, larger = np.minimum(area[one], area[other]), np.maximum(area[one], area[other])
    same = shared > SAME * (smaller + larger - shared)
    same |= (shared > NESTED * smaller) & (larger < LARGER * smaller)
    cut = touches(around, edges, np.max(boxes, 0)[2:])
    long = (sides(around) > OVERLAP * sides(edges)).any(1)
    twins = split(other[same], one[same], number)
    alone = np.zeros(number, bool)
    for place in np.lexsort((-scores, ~best)):  # shown ones first
        alone[place] = not cut[place] and not alone[twins[place]].any()
    covers = alone[other] & (shared >= SAME * area[one])
    covers &= (scores[other] >= LOWEST * scores[one]) & (best[other] >= best[one])
    left = cut.copy()
    left[one[covers]] = False
    pairs = left[one] & left[other] & (best[one] == best[other])
    one, other, shared = one[pairs], other[pairs], shared[pairs]
    seen = [
        within(mask, [boxes[views[place]] for place in others]) if len(others) else []
        for mask, others in zip(masks, split(other, one, number))
    ]
    seen = np.concatenate([[], *seen])  # [P] pixels of one where the view of the other looks
    seen += seen[np.lexsort((one, other))]  # the same pairs the other way round
    agree = shared >= SAME * (seen - shared)
    links = csr_matrix((agree[agree], (one[agree], other[agree])), (number, number))
    _, parts = connected_components(links, directed=False)
    left = np.flatnonzero(left)
    joined = [left[parts[left] == part].tolist() for part in np.unique(parts[left])]
    joined = [group for group in joined if len(group) > 1 or not long[group[0]]]
    return [[place] for place in np.flatnonzero(alone).tolist()] + joined


def overlapping(
    masks: list[rle.Rle],
    area: np.ndarray,
    around: np.ndarray,
    labels: np.ndarray,
    views: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of masks of one class and of different views that share pixels, in both orders, and
    how many they share: [P] each, sorted. Many windows have few such pairs of all M * M.
    """
    found = [np.zeros((3, 0))]
    for one, (left, top, right, bottom) in enumerate(around):
        near = (labels == labels[one]) & (views != views[one])
        near &= (around[:, 0] < right) & (around[:, 2] > left)
        near &= (around[:, 1] < bottom) & (around[:, 3] > top)
        near = np.flatnonzero(near)
        if len(near):
            [iou] = rle.iou([masks[one]], [masks[other] for other in near])
            pixels = iou * (area[one] + area[near]) / (1 + iou)
            found.append(np.stack([np.full(len(near), one), near, pixels]))
    one, other, shared = np.concatenate(found, 1)
    sharing = shared > 0
    return one[sharing].astype(int), other[sharing].astype(int), shared[sharing]


def split(values: np.ndarray, of: np.ndarray, number: int) -> list[np.ndarray]:
    """The values that belong to each of `number` places; `of` [P], sorted, says to which."""
    return np.split(values, np.searchsorted(of, np.arange(1, number)))


def placed(mask: rle.Rle, box: Box, size: tuple[int, int]) -> rle.Rle:
    """The mask of a view as one of the image."""
    if tuple(mask["size"]) == size:
        return mask
    inside, (x, y) = rle.decode_inside(mask)
    return rle.encode_at(inside, x + box[0], y + box[1], *size)


def sides(boxes: np.ndarray) -> np.ndarray:
    """Width and height of boxes: [M,4] -> [M,2]."""
    return boxes[:, 2:] - boxes[:, :2]


def touches(boxes: np.ndarray, views: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Which masks, by their boxes [M,4], end at an edge of their view [M,4] that is not one of the
    image, whose right and bottom are `end`: bool [M].
    """
    near = NEAR * sides(views)
    first = (views[:, :2] > 0) & (boxes[:, :2] <= views[:, :2] + near)
    last = (views[:, 2:] < end) & (boxes[:, 2:] >= views[:, 2:] - near)
    return (first | last).any(1)


def within(mask: rle.Rle, boxes: list[Box]) -> list[int]:
    """Pixels of a mask inside each box."""
    inside, (x, y) = rle.decode_inside(mask)
    moved = np.maximum(np.array(boxes) - (x, y, x, y), 0).tolist()
    return [int(inside[top:bottom, left:right].sum()) for left, top, right, bottom in moved]
