"""Mask2Former (CVPR 2022): backbone, pixel decoder, query decoder."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from mobileinst.layers.pixels import Normalise
from mobileinst.mask2former.pixel_decoder import PixelDecoder
from mobileinst.mask2former.query_decoder import QueryDecoder

STRIDES = (4, 8, 16, 32)  # of the backbone maps that are used

# Keywords of a config -> the smallest and largest value, of each number where there are several.
RANGES = {
    "num_classes depths backbone_heads width mask_dim num_heads": (1, math.inf),
    "num_encoder_layers encoder_ffn_width points_per_level": (1, math.inf),
    "num_queries num_layers ffn_width train_points max_detections": (1, math.inf),
    "embed_dim window_size frozen_stride": (0, math.inf),
    "class_weight pixel_weight dice_weight no_object_weight": (0, 1e6),
    "drop_path": (0, 0.99),
    "oversample": (1, 100),
    "importance": (0, 1),
    "mask_threshold": (1e-6, 1 - 1e-6),  # the logits of 0 and 1 are infinite
}


@dataclass(frozen=True)
class Mask2FormerConfig:
    """Everything between a name and a built model; plain values, stored in checkpoints as they are.

    embed_dim, depths, backbone_heads, window_size: of a Swin backbone, where they are not those
    that go by its name; 0 or empty takes the named ones. drop_path: of the backbone.
    frozen_norms, frozen_stride: of a pretrained backbone: its BatchNorms, and its layers up to this
    stride (0: none), stay as they were loaded.
    width, num_heads: of both decoders. mask_dim: channels of kernels and mask features.
    num_encoder_layers, encoder_ffn_width, points_per_level: of the pixel decoder.
    num_queries, num_layers, ffn_width: of the query decoder. The start values are supervised as
    well, so published configs, which count them, say 10 layers for 9.
    *_weight: of the matching cost and the loss terms; no_object_weight: of a query that should find
    nothing. train_points, oversample, importance: of the points masks are compared at.
    mask_threshold, max_detections: of post-processing.

    Raises ValueError at a number that no model has (`RANGES`).
    """

    backbone: str = "swin_tiny"
    num_classes: int = 80
    embed_dim: int = 0
    depths: tuple[int, ...] = ()
    backbone_heads: tuple[int, ...] = ()
    window_size: int = 0
    drop_path: float = 0.3
    frozen_norms: bool = False
    frozen_stride: int = 0
    width: int = 256
    mask_dim: int = 256
    num_heads: int = 8
    num_encoder_layers: int = 6
    encoder_ffn_width: int = 1024
    points_per_level: int = 4
    num_queries: int = 100
    num_layers: int = 9
    ffn_width: int = 2048
    class_weight: float = 2.0
    pixel_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    train_points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    mask_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        for names, (least, most) in RANGES.items():
            for name in names.split():
                value = getattr(self, name)
                numbers = value if isinstance(value, tuple) else (value,)
                if not all(least <= number <= most for number in numbers):
                    wanted = f"at least {least}" if most == math.inf else f"{least} to {most}"
                    raise ValueError(f"{name} is {value}, and can be {wanted}")


class Mask2Former(nn.Module):
    """RGB images in 0..1 and their padding -> the outputs of the contract in `data/batch.py`.

    Raises ValueError if the parts do not fit each other.
    """

    mask_stride = 4
    class_layers = ("query_decoder.class_embed",)  # one row per class
    more_rows = ("(no object)",)  # behind those

    def __init__(self, backbone: nn.Module, pixel_decoder: nn.Module, query_decoder: nn.Module):
        super().__init__()
        check_parts(backbone, pixel_decoder, query_decoder)
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.query_decoder = query_decoder
        self.levels = [tuple(backbone.strides).index(stride) for stride in STRIDES]
        self.normalise = Normalise(backbone.mean, backbone.std)

    def forward(self, images: torch.Tensor, padding: torch.Tensor | None = None) -> dict:
        """images [B,3,H,W], padding bool [B,H,W] (None: nothing is padded) -> dict of outputs."""
        return self.decode(self.encode(images, padding))

    def encode(
        self, images: torch.Tensor, padding: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """What depends on the picture alone: maps [B,C,·,·] at 1/32, 1/16, 1/8, and pixel_features
        [B,D,h,w] at 1/4.
        """
        maps = self.backbone(self.normalise(images, padding))
        maps, pixel_features = self.pixel_decoder([maps[i] for i in self.levels])
        return {"maps": maps, "pixel_features": pixel_features}

    def decode(
        self,
        features: dict[str, torch.Tensor | list[torch.Tensor]],
        queries: torch.Tensor | None = None,
    ) -> dict:
        """Features of `encode` -> outputs. `queries` [B,Q,C], such as those in the outputs of
        another frame, stand in the place of the learned ones.
        """
        return self.query_decoder(features["maps"], features["pixel_features"], queries)


def build_mask2former(
    config: Mask2FormerConfig,
    backbone: nn.Module,
    pixel_decoder: nn.Module | None = None,
    query_decoder: nn.Module | None = None,
) -> Mask2Former:
    """The model that `config` describes around a built backbone; parts handed in are used as is.

    Raises ValueError if the backbone lacks a stride, or a part does not fit the others or the
    number of classes.
    """
    if pixel_decoder is None:
        pixel_decoder = PixelDecoder(
            used_channels(backbone),
            width=config.width,
            mask_dim=config.mask_dim,
            num_layers=config.num_encoder_layers,
            num_heads=config.num_heads,
            points=config.points_per_level,
            ffn_width=config.encoder_ffn_width,
        )
    if query_decoder is None:
        query_decoder = QueryDecoder(
            pixel_decoder.width,
            pixel_decoder.mask_dim,
            config.num_classes,
            num_queries=config.num_queries,
            width=config.width,
            num_heads=config.num_heads,
            ffn_width=config.ffn_width,
            num_layers=config.num_layers,
        )
    if query_decoder.num_classes != config.num_classes:
        raise ValueError(
            f"the query decoder is for {query_decoder.num_classes} classes, and there are"
            f" {config.num_classes}"
        )
    return Mask2Former(backbone, pixel_decoder, query_decoder)


def used_channels(backbone: nn.Module) -> tuple[int, ...]:
    """Channels of the backbone's maps at strides 4, 8, 16 and 32; ValueError if one is missing."""
    by_stride = dict(zip(backbone.strides, backbone.channels, strict=True))
    if missing := [stride for stride in STRIDES if stride not in by_stride]:
        raise ValueError(
            f"{type(backbone).__name__} has maps at strides {tuple(backbone.strides)};"
            f" Mask2Former also needs {missing}"
        )
    return tuple(by_stride[stride] for stride in STRIDES)


def check_parts(backbone: nn.Module, pixel_decoder: nn.Module, query_decoder: nn.Module) -> None:
    """ValueError, with both numbers, at the first place where two parts do not fit."""
    pairs = {
        "channels of the backbone at strides 4, 8, 16, 32": (
            used_channels(backbone),
            tuple(pixel_decoder.in_channels),
        ),
        "width of the maps": (pixel_decoder.width, query_decoder.in_channels),
        "channels of the mask features": (pixel_decoder.mask_dim, query_decoder.mask_dim),
    }
    for what, (given, expected) in pairs.items():
        if given != expected:
            raise ValueError(f"{what}: one part gives {given}, the next expects {expected}")
