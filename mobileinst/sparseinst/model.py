"""SparseInst (CVPR 2022): backbone, context encoder, kernels · pixel features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mobileinst.config import Config, within
from mobileinst.layers.position import coordinate_maps
from mobileinst.segmenter import Segmenter, channels_at, require_fit
from mobileinst.set_prediction.losses import Criterion, FocalClassLoss, MaskLoss, ObjectnessLoss
from mobileinst.set_prediction.matcher import DiceClassCost, Matcher
from mobileinst.set_prediction.postprocess import Postprocess, grid_quality, rank_by_objectness
from mobileinst.sparseinst.decoder import Decoder
from mobileinst.sparseinst.encoder import ContextEncoder

STRIDES = (8, 16, 32)  # of C3, C4, C5
LOSS_STRIDE = 4  # of matching and losses: mask logits are upsampled by 2


@dataclass(frozen=True)
class SparseInstConfig(Config):
    """The keywords of a SparseInst.

    injected: channels of the maps of a TopFormer, into which it injects X6; 0: its taps, which
    would leave its transformer without use.
    width: of the encoder and of both branches. kernel_dim: channels of kernels and pixel features.
    num_queries: instances that can be found. groups: activation maps of each, 0 for one without the
    layer that joins several. softmax: over the cells of a map, in place of a normalised sigmoid.
    convs: 3×3 convolutions of each branch.
    dice_power, class_power: of the matching cost. *_weight: of the loss terms, as in the published
    code; the paper has 2 for pixel_weight.
    """

    system = "sparseinst"

    backbone: str = "resnet50"
    drop_path: float = within(0, 0.99, 0.0)
    injected: int = within(0, 8192, 0)
    width: int = within(1, 8192, 256)
    kernel_dim: int = within(1, 8192, 128)
    num_queries: int = within(1, 100_000, 100)
    groups: int = within(0, 100, 4)
    softmax: bool = False
    convs: int = within(1, 100, 4)
    dice_power: float = within(0, 100, 0.8)
    class_power: float = within(0, 100, 0.2)
    class_weight: float = within(0, 1e6, 2.0)
    pixel_weight: float = within(0, 1e6, 5.0)
    dice_weight: float = within(0, 1e6, 2.0)
    objectness_weight: float = within(0, 1e6, 1.0)
    mask_threshold: float = within(1e-6, 1 - 1e-6, 0.45)

    def backbone_keywords(self) -> dict[str, Any]:
        return super().backbone_keywords() | ({"injected": self.injected} if self.injected else {})


class SparseInst(Segmenter):
    """One map of features; activation maps pick the instances from it.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    class_layers = ("decoder.inst_branch.cls_score",)

    def __init__(self, backbone: nn.Module, encoder: ContextEncoder, decoder: Decoder):
        super().__init__(backbone, STRIDES)
        self.encoder = encoder
        self.decoder = decoder
        channels = channels_at(backbone, STRIDES)
        require_fit(
            {
                "channels of the backbone at strides 8, 16, 32": (channels, encoder.in_channels),
                "width of the features": (encoder.width, decoder.in_channels),
            }
        )

    def encode(self, images: Tensor, padding: Tensor | None = None) -> dict[str, Any]:
        """features [B,D+2,h,w], the x and the y of their cells first, and pixel_features."""
        features = self.encoder(self.backbone_maps(images, padding))  # [B,D,H/8,W/8]
        places = coordinate_maps(*features.shape[-2:], features.device, corners=True)
        places = places.to(features.dtype).expand(len(features), -1, -1, -1)
        features = torch.cat((places, features), 1)
        return {"features": features, "pixel_features": self.decoder.mask_branch(features)}

    def predict(self, features: Mapping[str, Any], queries: Tensor | None) -> dict[str, Any]:
        """`queries`: of another frame, whose instances are kept."""
        return self.decoder.inst_branch(features["features"], queries) | {"aux": []}


def build_sparseinst(
    config: SparseInstConfig,
    backbone: nn.Module,
    encoder: ContextEncoder | None = None,
    decoder: Decoder | None = None,
) -> SparseInst:
    """The model that `config` describes around a built backbone, with the parts given.

    Raises:
        ValueError: if the backbone lacks a stride or a part does not fit the others.
    """
    if encoder is None:
        encoder = ContextEncoder(channels_at(backbone, STRIDES), config.width)
    if decoder is None:
        decoder = Decoder(
            encoder.width,
            config.num_classes,
            width=config.width,
            kernel_dim=config.kernel_dim,
            num_queries=config.num_queries,
            groups=config.groups,
            softmax=config.softmax,
            convs=config.convs,
        )
    require_fit({"number of classes": (decoder.num_classes, config.num_classes)})
    return SparseInst(backbone, encoder, decoder)


def sparseinst_training(
    config: SparseInstConfig, model: SparseInst
) -> tuple[Criterion, Postprocess]:
    """Criterion and post-processing of a model."""
    cost = DiceClassCost(config.dice_power, config.class_power, LOSS_STRIDE)
    criterion = Criterion(
        Matcher(cost),
        FocalClassLoss(config.class_weight),
        MaskLoss(config.pixel_weight, config.dice_weight, LOSS_STRIDE),
        [ObjectnessLoss(config.objectness_weight, LOSS_STRIDE)],
    )
    return criterion, Postprocess(
        rank_by_objectness, config.mask_threshold, config.max_detections, grid_quality
    )
