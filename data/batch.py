"""The contract between data and networks, and the packed form in which workers return a batch.

What a model and its criterion receive (`Batch`):

images   float32 [B,3,H,W], RGB, 0..1, padded right and bottom with zeros. The model normalises;
         padded pixels are zero again afterwards.
padding  bool [B,H,W], True = padded. For losses and post-processing only.
targets  list of B dicts:
         labels     int64 [N]        class indices, N may be 0
         masks      bool [N,H,W]     at canvas size, False in the padding; never crowds
         ignore     bool [H,W]       void, crowds and broken objects, False in the padding
         has_ignore bool             whether any pixel of `ignore` is True
         image_id   int              the id in the annotation file
         size       (h, w)           of the image inside the canvas
         orig_size  (h, w)           of the image in its file

What a network returns:

outputs  class_logits [B,Q,K or K+1], mask_logits [B,Q,h,w], objectness [B,Q,1] (MobileInst only),
         queries [B,Q,C], kernels [B,Q,D], pixel_features [B,D,h,w], aux: list of dicts (empty in
         eval mode).

What post-processing returns:

results  list of B dicts: scores [M], labels [M], masks (M RLEs, or bool [M,h0,w0]), boxes [M,4]
         xyxy, best bool [M] (what use shows: the best detection of its query, and no duplicate of a
         better one that is shown), query_idx [M].

Loaders yield a `PackedBatch`; its `.to(device)` is the `Batch` above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import rle


@dataclass
class Annotation:
    """The annotation of one image, in the terms of its file."""

    labels: np.ndarray  # int64 [N], class indices
    rles: list[rle.Rle]  # N masks at the original size
    ignore: rle.Rle | None  # void, crowds and broken objects
    image_id: int
    orig_size: tuple[int, int]  # (h, w)


@dataclass
class Sample:
    """One image after its transform, before padding."""

    image: Tensor  # uint8 [3,h,w] RGB
    masks: np.ndarray  # bool [N,h,w]
    ignore: np.ndarray  # bool [h,w]
    labels: np.ndarray  # int64 [N]
    image_id: int
    orig_size: tuple[int, int]
    canvas: tuple[int, int]  # (H, W) at least (h, w): size after padding

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]


@dataclass
class Batch:
    """Tensors for models and criteria, see the head of this file."""

    images: Tensor
    padding: Tensor
    targets: list[dict[str, Any]]

    def sizes(self) -> list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
        """(padded, size, orig_size) of each image, for post-processing."""
        padded = (self.images.shape[-2], self.images.shape[-1])
        return [(padded, target["size"], target["orig_size"]) for target in self.targets]


@dataclass
class PackedBatch:
    """A batch as workers return it: uint8 pixels, masks as bits (np.packbits).

    S objects of all images; `counts` of each image.
    """

    images: Tensor  # uint8 [B,3,H,W]
    labels: Tensor  # int64 [S]
    masks: Tensor  # uint8 [S,H,ceil(W/8)]
    ignore: Tensor  # uint8 [B,H,ceil(W/8)]
    counts: list[int]
    image_ids: list[int]
    sizes: list[tuple[int, int]]
    orig_sizes: list[tuple[int, int]]

    def to(self, device: torch.device | str) -> Batch:
        """Unpacks to the contract and moves everything to `device`, on CUDA without waiting."""
        device, width = torch.device(device), self.images.shape[-1]
        masks, ignore = unpack_masks(self.masks, width), unpack_masks(self.ignore, width)
        images, labels, masks, ignore = (  # [B,3,H,W], [S], [S,H,W], [B,H,W]
            x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
            for x in (self.images, self.labels, masks, ignore)
        )
        padding = torch.ones_like(ignore)  # [B,H,W]
        for one, (height, width) in zip(padding, self.sizes, strict=True):
            one[:height, :width] = False
        fields = {
            "labels": labels.split(self.counts),
            "masks": masks.split(self.counts),
            "ignore": ignore,
            "has_ignore": self.ignore.flatten(1).any(1).tolist(),
            "image_id": self.image_ids,
            "size": self.sizes,
            "orig_size": self.orig_sizes,
        }
        targets = [dict(zip(fields, values)) for values in zip(*fields.values(), strict=True)]
        return Batch(images / 255, padding, targets)


def collate(samples: Sequence[Sample]) -> PackedBatch:
    """Pads samples of one canvas right and bottom and packs them."""
    canvas = samples[0].canvas
    if any(sample.canvas != canvas for sample in samples):
        raise ValueError(f"one batch, one canvas: {[sample.canvas for sample in samples]}")
    images = torch.zeros(len(samples), 3, *canvas, dtype=torch.uint8)
    for image, sample in zip(images, samples, strict=True):
        image[:, : sample.size[0], : sample.size[1]] = sample.image
    return PackedBatch(
        images=images,
        labels=torch.from_numpy(np.concatenate([sample.labels for sample in samples])),
        masks=pack_masks([sample.masks for sample in samples], canvas),
        ignore=pack_masks([sample.ignore[None] for sample in samples], canvas),
        counts=[len(sample.labels) for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        sizes=[sample.size for sample in samples],
        orig_sizes=[sample.orig_size for sample in samples],
    )


def pack_masks(masks: Sequence[np.ndarray], canvas: tuple[int, int]) -> Tensor:
    """Boolean masks [N,h,w] of each image -> uint8 [S,H,ceil(W/8)], padded to the canvas."""
    height, width = canvas
    packed = np.zeros((sum(map(len, masks)), height, (width + 7) // 8), dtype=np.uint8)
    start = 0
    for dense in masks:  # [N,h,w]
        bits = np.packbits(dense, axis=2)  # [N,h,ceil(w/8)]
        packed[start : start + len(dense), : bits.shape[1], : bits.shape[2]] = bits
        start += len(dense)
    return torch.from_numpy(packed)


def unpack_masks(packed: Tensor, width: int) -> Tensor:
    """uint8 [...,ceil(W/8)] -> bool [...,W]."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=width).view(bool))
