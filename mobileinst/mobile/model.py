"""MobileInst (AAAI 2024): backbone, mask decoder, instance decoder, kernels · pixel features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mobileinst.config import Config, within
from mobileinst.layers.init import init_conv
from mobileinst.mobile.instance_decoder import InstanceDecoder, blob_maps
from mobileinst.mobile.mask_decoder import MaskDecoder
from mobileinst.segmenter import Segmenter, channels_at, require_fit
from mobileinst.set_prediction.losses import (
    Criterion,
    FocalClassLoss,
    MaskLoss,
    ObjectnessLoss,
    SemanticLoss,
)
from mobileinst.set_prediction.matcher import DiceClassCost, Matcher
from mobileinst.set_prediction.postprocess import (
    Postprocess,
    grid_quality,
    rank_by_objectness,
)

STRIDES = (4, 8, 16, 32, 64)  # of X2 to X6; X2 is used for masks at stride 4 alone
SEMANTIC_MAPS = ("mask", "x3", "x4", "x5", "x6")  # maps with a semantic head, if there are any


@dataclass(frozen=True)
class MobileInstConfig(Config):
    """The keywords of a MobileInst.

    width: D of the mask decoder. kernel_dim: channels of kernels and pixel features. mask_stride: 8
    as in the paper, or 4. depthwise: the 3×3 convolutions of the mask decoder.
    query_width, num_heads, ffn_ratio, kv_stride, self_attention, guided, placed: of the instance
    decoder.
    semantic_weight: of a class loss for every cell, of each of five maps (`SEMANTIC_MAPS`); 0 as
    in the paper; above 0 heads for it are built, which only training uses.
    dice_power, class_power: of the matching cost. aux_matches: queries per object in the auxiliary
    output, 1 as in the paper. *_weight: of the loss terms, 2/2/2/1 as in the
    paper (SparseInst's code has 2/5/2/1).
    """

    system = "mobileinst"

    backbone: str = "topformer_tiny"
    width: int = within(1, 8192, 128)
    kernel_dim: int = within(1, 8192, 128)
    mask_stride: int = within(4, 8, 8)
    coordinates: bool = True
    depthwise: bool = False
    num_queries: int = within(1, 100_000, 100)
    query_width: int = within(1, 8192, 128)
    num_heads: int = within(1, 512, 8)
    ffn_ratio: int = within(1, 100, 4)
    kv_stride: int = within(16, 64, 64)
    self_attention: bool = True
    guided: bool = False
    placed: bool = False
    semantic_weight: float = within(0, 1e6, 0.0)
    dice_power: float = within(0, 100, 0.8)
    class_power: float = within(0, 100, 0.2)
    aux_matches: int = within(1, 100, 1)
    class_weight: float = within(0, 1e6, 2.0)
    pixel_weight: float = within(0, 1e6, 2.0)
    dice_weight: float = within(0, 1e6, 2.0)
    objectness_weight: float = within(0, 1e6, 1.0)
    mask_threshold: float = within(1e-6, 1 - 1e-6, 0.45)


class MobileInst(Segmenter):
    """The local maps X3, X4, X5 and the global map X6 -> mask features; queries read both.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    class_layers = ("instance_decoder.heads.classes", "semantic_heads")
    training_layers = ("semantic_heads",)

    def __init__(
        self,
        backbone: nn.Module,
        mask_decoder: MaskDecoder,
        instance_decoder: InstanceDecoder,
        semantic_heads: nn.ModuleDict | None = None,
    ):
        strides = STRIDES[-len(mask_decoder.in_channels) :]
        super().__init__(backbone, strides)
        self.mask_decoder = mask_decoder
        self.instance_decoder = instance_decoder
        self.semantic_heads = semantic_heads or nn.ModuleDict()
        channels = channels_at(backbone, strides)
        given = f"channels of the backbone at strides {', '.join(map(str, strides))}"
        require_fit(
            {
                given: (channels, mask_decoder.in_channels),
                "channels of X6": (channels[-1], instance_decoder.global_channels),
                "channels of the mask features": (
                    mask_decoder.width,
                    instance_decoder.mask_channels,
                ),
                "stride of the masks": (self.mask_stride, instance_decoder.mask_stride),
                "length of a kernel": (mask_decoder.kernel_dim, instance_decoder.kernel_dim),
            }
        )

    def encode(self, images: Tensor, padding: Tensor | None = None) -> dict[str, Tensor]:
        """global_map [B,C6,·,·] at 1/64, mask_features [B,D,·,·] at 1/8, and pixel_features
        [B,kernel_dim,h,w] at `mask_stride`, with five more for placed queries. While training with
        semantic heads, also semantic_logits_* [B,K,·,·].
        """
        *local_maps, global_map = self.backbone_maps(images, padding)
        mask_features, pixel_features = self.mask_decoder(local_maps, global_map)
        if self.instance_decoder.places is not None:
            blobs = blob_maps(*pixel_features.shape[-2:], pixel_features.device).to(pixel_features)
            blobs = blobs.expand(len(images), -1, -1, -1)
            pixel_features = torch.cat((pixel_features, blobs), 1)  # [B,kernel_dim+5,h,w]
        features = {
            "global_map": global_map,
            "mask_features": mask_features,
            "pixel_features": pixel_features,
        }
        if self.training:
            maps = dict(zip(SEMANTIC_MAPS, (mask_features, *local_maps[-3:], global_map)))
            for name, head in self.semantic_heads.items():
                features[f"semantic_logits_{name}"] = head(maps[name])
        return features

    def predict(self, features: Mapping[str, Tensor], queries: Tensor | None) -> dict[str, Any]:
        """`queries`: the `global_queries` of another frame, which replace the global layer."""
        outputs = self.instance_decoder(
            features["global_map"], features["mask_features"], features["pixel_features"], queries
        )
        return outputs | {key: x for key, x in features.items() if key.startswith("semantic")}


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
    """The model that `config` describes around a built backbone, with the parts given.

    Raises:
        ValueError: if the backbone lacks a stride or a part does not fit the others.
    """
    if config.mask_stride not in (4, 8):
        raise ValueError(f"mask_stride is 4 or 8, not {config.mask_stride}")
    channels = channels_at(backbone, STRIDES[-4 if config.mask_stride == 8 else -5 :])
    if mask_decoder is None:
        mask_decoder = MaskDecoder(
            channels, config.width, config.kernel_dim, config.coordinates, config.depthwise
        )
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
            mask_stride=config.mask_stride,
            placed=config.placed,
        )
    semantic_heads = None
    if config.semantic_weight:
        # On the backbone's own maps as well, our choice: from scratch, the loss on the mask
        # features alone took twice as many images to fall as far.
        widths = zip(SEMANTIC_MAPS, (mask_decoder.width, *channels[-4:]), strict=True)
        semantic_heads = nn.ModuleDict(
            {name: SemanticHead(width, config.num_classes) for name, width in widths}
        )
    return MobileInst(backbone, mask_decoder, instance_decoder, semantic_heads)


def mobileinst_training(
    config: MobileInstConfig, model: MobileInst
) -> tuple[Criterion, Postprocess]:
    """Criterion and post-processing of a model."""
    extra = [ObjectnessLoss(config.objectness_weight)]
    if config.semantic_weight:
        extra.append(SemanticLoss(config.semantic_weight))
    criterion = Criterion(
        Matcher(DiceClassCost(config.dice_power, config.class_power), config.aux_matches),
        FocalClassLoss(config.class_weight),
        MaskLoss(config.pixel_weight, config.dice_weight),
        extra,
    )
    return criterion, Postprocess(
        rank_by_objectness, config.mask_threshold, config.max_detections, grid_quality
    )
