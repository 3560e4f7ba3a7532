"""MobileInst (AAAI 2024): backbone, mask decoder, instance decoder, kernels · pixel features."""

from dataclasses import dataclass

import torch
from torch import nn

from mobileinst.layers.conv import apply_kernels
from mobileinst.layers.init import init_conv
from mobileinst.layers.pixels import Normalise
from mobileinst.mobile.instance_decoder import InstanceDecoder
from mobileinst.mobile.mask_decoder import MaskDecoder

STRIDES = (8, 16, 32, 64)  # of the backbone maps that are used: X3, X4, X5 (local), X6 (global)
SEMANTIC_PLACES = ("mask", "x3", "x4", "x5", "x6")  # maps with a semantic head, if there are any


@dataclass(frozen=True)
class MobileInstConfig:
    """Everything between a name and a built model; plain values, stored in checkpoints as they are.

    width: D of the mask decoder. kernel_dim: channels of kernels and pixel features.
    query_width, num_heads, ffn_ratio, kv_stride, self_attention, guided: of the instance decoder.
    semantic_weight: of a class loss for every cell, of each of five maps (`SEMANTIC_PLACES`); 0 as
    in the paper; above 0 heads for it are built, which only training uses.
    drop_path, frozen_norms: of the backbone. frozen_stride: its layers up to this stride keep the
    values they were given (0: none); both only make sense with pretrained weights.
    dice_power, class_power: of the matching cost. *_weight: of the loss terms, 2/2/2/1 as in the
    paper (SparseInst's code has 2/5/2/1). mask_threshold, max_detections: of post-processing.
    """

    backbone: str = "topformer_tiny"
    num_classes: int = 80
    width: int = 128
    kernel_dim: int = 128
    coordinates: bool = True
    num_queries: int = 100
    query_width: int = 128
    num_heads: int = 8
    ffn_ratio: int = 4
    kv_stride: int = 64
    self_attention: bool = True
    guided: bool = False
    semantic_weight: float = 0.0
    drop_path: float = 0.1
    frozen_norms: bool = False
    frozen_stride: int = 0
    dice_power: float = 0.8
    class_power: float = 0.2
    class_weight: float = 2.0
    pixel_weight: float = 2.0
    dice_weight: float = 2.0
    objectness_weight: float = 1.0
    mask_threshold: float = 0.45
    max_detections: int = 100


class MobileInst(nn.Module):
    """RGB images in 0..1 and their padding -> the outputs of the contract in `data/batch.py`.

    Raises ValueError if the parts do not fit each other.
    """

    mask_stride = 8
    class_layers = ("instance_decoder.heads.classes", "semantic_heads")  # one row per class
    training_layers = ("semantic_heads",)  # a trained model is whole without them

    def __init__(
        self,
        backbone: nn.Module,
        mask_decoder: MaskDecoder,
        instance_decoder: InstanceDecoder,
        semantic_heads: nn.ModuleDict | None = None,
    ):
        super().__init__()
        check_parts(backbone, mask_decoder, instance_decoder)
        self.backbone = backbone
        self.mask_decoder = mask_decoder
        self.instance_decoder = instance_decoder
        self.semantic_heads = semantic_heads or nn.ModuleDict()
        self.levels = [tuple(backbone.strides).index(stride) for stride in STRIDES]
        self.normalise = Normalise(backbone.mean, backbone.std)

    def forward(self, images: torch.Tensor, padding: torch.Tensor | None = None) -> dict:
        """images [B,3,H,W], padding bool [B,H,W] (None: nothing is padded) -> dict of outputs."""
        return self.decode(self.encode(images, padding))

    def encode(
        self, images: torch.Tensor, padding: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """What depends on the picture alone: global_map [B,C6,·,·] at 1/64, mask_features [B,D,h,w]
        and pixel_features [B,kernel_dim,h,w] at 1/8. A frame that borrows kernels needs no more.
        While training with semantic heads, also semantic_logits_* [B,K,·,·] of each.
        """
        maps = self.backbone(self.normalise(images, padding))
        *local_maps, global_map = (maps[i] for i in self.levels)
        mask_features, pixel_features = self.mask_decoder(local_maps, global_map)
        features = {
            "global_map": global_map,
            "mask_features": mask_features,
            "pixel_features": pixel_features,
        }
        if self.training:
            seen = dict(zip(SEMANTIC_PLACES, (mask_features, *local_maps, global_map)))
            for place, head in self.semantic_heads.items():
                features[f"semantic_logits_{place}"] = head(seen[place])
        return features

    def decode(
        self, features: dict[str, torch.Tensor], queries: torch.Tensor | None = None
    ) -> dict:
        """Features of `encode` -> outputs. `queries` [B,Q,C]: the `global_queries` in the outputs
        of another frame, with which this frame's own global decoder is skipped.
        """
        pixel_features = features["pixel_features"]
        outputs = self.instance_decoder(
            features["global_map"], features["mask_features"], pixel_features, queries
        )
        for output in (outputs, *outputs["aux"]):
            output["mask_logits"] = apply_kernels(output["kernels"], pixel_features)
        semantic = {key: value for key, value in features.items() if key.startswith("semantic")}
        return outputs | semantic | {"pixel_features": pixel_features}


class SemanticHead(nn.Conv2d):
    """Class logits of every cell of a map; used while training only."""

    def __init__(self, width: int, num_classes: int):
        super().__init__(width, num_classes, 1)

    def reset_parameters(self) -> None:
        init_conv(self)
        nn.init.constant_(self.bias, -2.0)  # most cells hold none of the classes


def build_mobileinst(
    config: MobileInstConfig,
    backbone: nn.Module,
    mask_decoder: MaskDecoder | None = None,
    instance_decoder: InstanceDecoder | None = None,
) -> MobileInst:
    """The model that `config` describes around a built backbone; parts handed in are used as is.

    Raises ValueError if the backbone lacks a stride or a part does not fit the others.
    """
    channels = used_channels(backbone)
    if mask_decoder is None:
        mask_decoder = MaskDecoder(channels, config.width, config.kernel_dim, config.coordinates)
    if instance_decoder is None:
        instance_decoder = InstanceDecoder(
            channels[-1],
            mask_decoder.width,
            config.num_classes,
            kernel_dim=mask_decoder.kernel_dim,
            num_queries=config.num_queries,
            width=config.query_width,
            num_heads=config.num_heads,
            ffn_ratio=config.ffn_ratio,
            kv_stride=config.kv_stride,
            self_attention=config.self_attention,
            guided=config.guided,
        )
    semantic_heads = None
    if config.semantic_weight:
        # On the backbone's own maps as well, our choice: from scratch, the loss on the mask
        # features alone took twice as many pictures to fall as far.
        widths = dict(zip(SEMANTIC_PLACES, (mask_decoder.width, *channels), strict=True))
        semantic_heads = nn.ModuleDict(
            {place: SemanticHead(width, config.num_classes) for place, width in widths.items()}
        )
    return MobileInst(backbone, mask_decoder, instance_decoder, semantic_heads)


def used_channels(backbone: nn.Module) -> tuple[int, ...]:
    """Channels of the backbone's maps at strides 8, 16, 32 and 64; ValueError if one is missing."""
    by_stride = dict(zip(backbone.strides, backbone.channels, strict=True))
    if missing := [stride for stride in STRIDES if stride not in by_stride]:
        raise ValueError(
            f"{type(backbone).__name__} has maps at strides {tuple(backbone.strides)};"
            f" MobileInst also needs {missing}"
        )
    return tuple(by_stride[stride] for stride in STRIDES)


def check_parts(
    backbone: nn.Module, mask_decoder: MaskDecoder, instance_decoder: InstanceDecoder
) -> None:
    """ValueError, with both numbers, at the first place where two parts do not fit."""
    channels = used_channels(backbone)
    pairs = {
        "channels of the backbone at strides 8, 16, 32, 64": (channels, mask_decoder.in_channels),
        "channels of X6": (channels[-1], instance_decoder.global_channels),
        "channels of the mask features": (mask_decoder.width, instance_decoder.mask_channels),
        "length of a kernel": (mask_decoder.kernel_dim, instance_decoder.kernel_dim),
    }
    for what, (given, expected) in pairs.items():
        if given != expected:
            raise ValueError(f"{what}: one part gives {given}, the next expects {expected}")
