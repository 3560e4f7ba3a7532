"""Normalising of images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # as mean and std: 0..1 becomes -1..1


class Normalise(nn.Module):
    """(pixels - mean) / std per channel, as non-persistent buffers; padded pixels become zero."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """images [B,3,H,W] in 0..1, padding bool [B,H,W] -> [B,3,H,W]."""
        images = (images - self.mean) / self.std
        return images if padding is None else images.masked_fill(padding[:, None], 0.0)
