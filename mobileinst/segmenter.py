"""The base of the systems' models: images to outputs by way of a backbone, kernels and masks."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mobileinst.layers.conv import apply_kernels
from mobileinst.layers.pixels import Normalise


class Segmenter(nn.Module):
    """RGB images in 0..1 and their padding -> the outputs of the contract in `data/batch.py`.

    A subclass sets the attributes below and implements `encode` and `predict`.

    strides: of the backbone maps that are used, finest first. Masks are at the finest.
    """

    class_layers: tuple[str, ...]  # have one row per class
    more_rows: tuple[str, ...] = ()  # names of rows that follow those of the classes
    training_layers: tuple[str, ...] = ()  # not part of a trained model

    def __init__(self, backbone: nn.Module, strides: tuple[int, ...]):
        super().__init__()
        channels_at(backbone, strides)
        self.backbone = backbone
        self.mask_stride = strides[0]
        self.levels = [tuple(backbone.strides).index(stride) for stride in strides]
        # A parameter without a gradient would be waited for by DistributedDataParallel.
        if len(backbone.strides) - 1 not in self.levels:
            for layer in getattr(backbone, "last_map_layers", ()):
                layer.requires_grad_(False)
        self.normalise = Normalise(backbone.mean, backbone.std)

    def forward(self, images: Tensor, padding: Tensor | None = None) -> dict[str, Any]:
        """images [B,3,H,W], padding bool [B,H,W] -> dict of outputs."""
        return self.decode(self.encode(images, padding))

    def encode(self, images: Tensor, padding: Tensor | None = None) -> dict[str, Any]:
        """What depends on the image alone, with pixel_features [B,D,h,w] at `mask_stride`."""
        raise NotImplementedError

    def predict(self, features: Mapping[str, Any], queries: Tensor | None) -> dict[str, Any]:
        """Features of `encode` -> outputs without masks; `queries` [B,Q,C] of another frame."""
        raise NotImplementedError

    def decode(self, features: Mapping[str, Any], queries: Tensor | None = None) -> dict[str, Any]:
        """Features of `encode` -> outputs; `queries` [B,Q,C] as for `predict`."""
        outputs = self.predict(features, queries)
        pixel_features = features["pixel_features"]
        for output in (*outputs["aux"], outputs):
            output["mask_logits"] = self.masks(output["kernels"], pixel_features)
        return outputs | {"pixel_features": pixel_features}

    def masks(self, kernels: Tensor, pixel_features: Tensor) -> Tensor:
        """Kernels [B,Q,D], pixel features [B,D,h,w] -> mask logits [B,Q,h,w]."""
        return apply_kernels(kernels, pixel_features)

    def backbone_maps(self, images: Tensor, padding: Tensor | None) -> list[Tensor]:
        """The maps at `strides`: [B,C_i,ceil(H/s_i),ceil(W/s_i)] each."""
        maps = self.backbone(self.normalise(images, padding))
        return [maps[level] for level in self.levels]


def channels_at(backbone: nn.Module, strides: tuple[int, ...]) -> tuple[int, ...]:
    """Channels of the backbone maps at these strides; raises ValueError if one is missing."""
    by_stride = dict(zip(backbone.strides, backbone.channels, strict=True))
    if missing := [stride for stride in strides if stride not in by_stride]:
        raise ValueError(
            f"{type(backbone).__name__} has maps at strides {tuple(backbone.strides)}; "
            f"the model also needs {missing}"
        )
    return tuple(by_stride[stride] for stride in strides)


def require_fit(pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Checks pairs (given by one part, expected by the next) by name, raises ValueError."""
    for what, (given, expected) in pairs.items():
        if given != expected:
            raise ValueError(f"{what}: one part gives {given}, the next expects {expected}")
