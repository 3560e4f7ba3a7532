"""The contract between data and networks, and how a batch travels between processes.

What a model and its criterion receive (`Batch`):

images   float32 [B,3,H,W], RGB, 0..1, padded right and bottom with zeros. The model owns mean and
         deviation; padded pixels are zero again after its normalising.
padding  bool [B,H,W], True = padded. For losses and post-processing only.
targets  list of B dicts:
         labels     int64 [N]        index of the class, N may be 0
         masks      bool [N,H,W]     at canvas size, False in the padding; crowds are never here
         ignore     bool [H,W]       void and crowd regions, False in the padding
         image_id   int              the id in the annotation file
         size       (h, w)           of the picture inside the canvas
         orig_size  (h, w)           of the picture in its file

What a network gives back:

outputs  class_logits [B,Q,K], mask_logits [B,Q,h,w], objectness [B,Q,1], queries [B,Q,C],
         kernels [B,Q,D], pixel_features [B,D,h,w], aux: list of dicts (empty in eval mode).
results  list of B dicts: scores [M], labels [M], masks (RLE or bool [M,h0,w0]), boxes [M,4] xyxy,
         best bool [M]: no other answer of the same query scores higher.

Loaders yield a `PackedBatch`; its `.to(device)` is the `Batch` above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data import rle


@dataclass
class Annotation:
    """What is known about one picture, in the terms of its file.

    labels     int64 [N], class indices
    rles       N masks at the original size
    ignore     RLE of void and crowd regions, or None when there are none
    orig_size  (h, w)
    """

    labels: np.ndarray
    rles: list[rle.Rle]
    ignore: rle.Rle | None
    image_id: int
    orig_size: tuple[int, int]


@dataclass
class Sample:
    """One picture after its transform, before padding.

    image   uint8 [3,h,w] RGB
    masks   bool [N,h,w]
    ignore  bool [h,w]
    labels  int64 [N]
    canvas  (H, W) at least (h, w): what it is to be padded to
    """

    image: torch.Tensor
    masks: np.ndarray
    ignore: np.ndarray
    labels: np.ndarray
    image_id: int
    orig_size: tuple[int, int]
    canvas: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]


@dataclass
class Batch:
    """Tensors as models and criteria take them; see the head of this file."""

    images: torch.Tensor
    padding: torch.Tensor
    targets: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.images)

    def sizes(self) -> list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
        """Per picture (padded, size, orig_size): what post-processing undoes."""
        padded = (self.images.shape[-2], self.images.shape[-1])
        return [(padded, target["size"], target["orig_size"]) for target in self.targets]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        targets = [
            {k: v.to(device) if torch.is_tensor(v) else v for k, v in target.items()}
            for target in self.targets
        ]
        return Batch(self.images.to(device), self.padding.to(device), targets)


@dataclass
class PackedBatch:
    """A batch as workers hand it over: few tensors, bytes for pixels, bits for masks.

    images  uint8 [B,3,H,W]
    labels  int64 [S], S = objects of all pictures one after another
    masks   uint8 [S,H,ceil(W/8)], eight pixels of a row per byte, the leftmost the highest bit
    ignore  uint8 [B,H,ceil(W/8)]
    counts, image_ids, sizes, orig_sizes: one entry per picture
    """

    images: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor
    ignore: torch.Tensor
    counts: list[int]
    image_ids: list[int]
    sizes: list[tuple[int, int]]
    orig_sizes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """Unpacks to the contract and moves everything to `device`."""
        width = self.images.shape[-1]
        images = self.images.to(device)  # [B,3,H,W]
        labels = self.labels.to(device).split(self.counts)
        masks = _unpack(self.masks, width).to(device).split(self.counts)
        ignore = _unpack(self.ignore, width).to(device)  # [B,H,W]
        targets = [
            {
                "labels": labels[i],
                "masks": masks[i],
                "ignore": ignore[i],
                "image_id": self.image_ids[i],
                "size": self.sizes[i],
                "orig_size": self.orig_sizes[i],
            }
            for i in range(len(self))
        ]
        return Batch(images / 255, self._padding(images.device), targets)

    def _padding(self, device: torch.device) -> torch.Tensor:
        padding = torch.ones(len(self), *self.images.shape[-2:], dtype=torch.bool)
        for one, (height, width) in zip(padding, self.sizes, strict=True):
            one[:height, :width] = False
        return padding.to(device)


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
        masks=_pack([sample.masks for sample in samples], canvas),
        ignore=_pack([sample.ignore[None] for sample in samples], canvas),
        counts=[len(sample.labels) for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        sizes=[sample.size for sample in samples],
        orig_sizes=[sample.orig_size for sample in samples],
    )


def _pack(masks: Sequence[np.ndarray], canvas: tuple[int, int]) -> torch.Tensor:
    """Boolean masks of different pictures -> uint8 [sum N, H, ceil(W/8)], padded to the canvas."""
    height, width = canvas
    packed = np.zeros((sum(map(len, masks)), height, (width + 7) // 8), dtype=np.uint8)
    start = 0
    for dense in masks:  # [N,h,w]
        bits = np.packbits(dense, axis=2)  # [N,h,ceil(w/8)]
        packed[start : start + len(dense), : bits.shape[1], : bits.shape[2]] = bits
        start += len(dense)
    return torch.from_numpy(packed)


def _unpack(packed: torch.Tensor, width: int) -> torch.Tensor:
    """uint8 [...,ceil(W/8)] -> bool [...,W]."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=width).view(bool))
