"""Mask2Former (CVPR 2022): backbone, pixel decoder, query decoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mobileinst.config import Config, within
from mobileinst.mask2former.pixel_decoder import PixelDecoder
from mobileinst.mask2former.query_decoder import QueryDecoder
from mobileinst.segmenter import Segmenter, channels_at, require_fit
from mobileinst.set_prediction.losses import Criterion, CrossEntropyClassLoss, PointMaskLoss
from mobileinst.set_prediction.matcher import Matcher, PointCost
from mobileinst.set_prediction.postprocess import (
    Postprocess,
    grid_stability,
    rank_by_class,
    rank_by_class_root,
)

STRIDES = (4, 8, 16, 32)  # of the backbone maps


@dataclass(frozen=True)
class Mask2FormerConfig(Config):
    """The keywords of a Mask2Former.

    embed_dim, depths, backbone_heads, window_size: of a Swin backbone; 0 or empty: those of its
    name.
    width, num_heads: of both decoders. mask_dim: channels of kernels and mask features.
    num_encoder_layers, encoder_ffn_width, points_per_level: of the pixel decoder.
    num_queries, num_layers, ffn_width: of the query decoder. Published configs count the supervised
    start values too: 10 layers for 9.
    *_weight: of the matching cost and the loss terms; no_object_weight: of an unmatched query.
    iou_targets: of the class loss (`CrossEntropyClassLoss`).
    stable_scores: a score is the root of the class probability, times `grid_stability`, in place of
    the class probability times the mean probability inside the mask. Our choice for large objects:
    Penn-Fudan gains (assets/results/neighbours.md).
    train_points, oversample, importance: of the points masks are compared at.
    """

    system = "mask2former"

    backbone: str = "swin_tiny"
    embed_dim: int = within(0, 4096, 0)
    depths: tuple[int, ...] = within(1, 100, ())
    backbone_heads: tuple[int, ...] = within(1, 512, ())
    window_size: int = within(0, 32, 0)
    drop_path: float = within(0, 0.99, 0.3)
    width: int = within(1, 8192, 256)
    mask_dim: int = within(1, 8192, 256)
    num_heads: int = within(1, 512, 8)
    num_encoder_layers: int = within(1, 100, 6)
    encoder_ffn_width: int = within(1, 65536, 1024)
    points_per_level: int = within(1, 100, 4)
    num_queries: int = within(1, 100_000, 100)
    num_layers: int = within(1, 100, 9)
    ffn_width: int = within(1, 65536, 2048)
    class_weight: float = within(0, 1e6, 2.0)
    pixel_weight: float = within(0, 1e6, 5.0)
    dice_weight: float = within(0, 1e6, 5.0)
    no_object_weight: float = within(0, 1e6, 0.1)
    iou_targets: bool = False
    stable_scores: bool = False
    train_points: int = within(1, 10_000_000, 12544)
    oversample: float = within(1, 100, 3.0)
    importance: float = within(0, 1, 0.75)

    def backbone_keywords(self) -> dict[str, Any]:
        sizes = {
            "embed_dim": self.embed_dim,
            "depths": self.depths,
            "num_heads": self.backbone_heads,
            "window_size": self.window_size,
        }
        return super().backbone_keywords() | {name: size for name, size in sizes.items() if size}


class Mask2Former(Segmenter):
    """Queries read the maps of the pixel decoder inside their own masks.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    class_layers = ("query_decoder.class_embed",)
    more_rows = ("(no object)",)

    def __init__(self, backbone: nn.Module, pixel_decoder: nn.Module, query_decoder: nn.Module):
        super().__init__(backbone, STRIDES)
        self.pixel_decoder = pixel_decoder
        self.query_decoder = query_decoder
        channels, expected = channels_at(backbone, STRIDES), tuple(pixel_decoder.in_channels)
        require_fit(
            {
                "channels of the backbone at strides 4, 8, 16, 32": (channels, expected),
                "width of the maps": (pixel_decoder.width, query_decoder.in_channels),
                "channels of the mask features": (pixel_decoder.mask_dim, query_decoder.mask_dim),
            }
        )

    def encode(self, images: Tensor, padding: Tensor | None = None) -> dict[str, Any]:
        """maps [B,C,·,·] at 1/32, 1/16, 1/8, and pixel_features [B,D,h,w] at 1/4."""
        maps, pixel_features = self.pixel_decoder(self.backbone_maps(images, padding))
        return {"maps": maps, "pixel_features": pixel_features}

    def predict(self, features: Mapping[str, Any], queries: Tensor | None) -> dict[str, Any]:
        """`queries`: of another frame; they replace the learned ones."""
        return self.query_decoder(features["maps"], features["pixel_features"], queries)


def build_mask2former(
    config: Mask2FormerConfig,
    backbone: nn.Module,
    pixel_decoder: nn.Module | None = None,
    query_decoder: nn.Module | None = None,
) -> Mask2Former:
    """The model that `config` describes around a built backbone, with the parts given.

    Raises:
        ValueError: if the backbone lacks a stride or a part does not fit.
    """
    if pixel_decoder is None:
        pixel_decoder = PixelDecoder(
            channels_at(backbone, STRIDES),
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
    require_fit({"number of classes": (query_decoder.num_classes, config.num_classes)})
    return Mask2Former(backbone, pixel_decoder, query_decoder)


def mask2former_training(
    config: Mask2FormerConfig, model: Mask2Former
) -> tuple[Criterion, Postprocess]:
    """Criterion and post-processing of a model."""
    class_weight, *mask_weights = config.class_weight, config.pixel_weight, config.dice_weight
    cost = PointCost(class_weight, *mask_weights, points=config.train_points)
    queries = model.query_decoder.num_queries
    class_loss = CrossEntropyClassLoss(
        queries, class_weight, config.no_object_weight, config.iou_targets
    )
    mask_loss = PointMaskLoss(
        *mask_weights,
        points=config.train_points,
        oversample=config.oversample,
        importance=config.importance,
    )
    rank, quality = rank_by_class, None
    if config.stable_scores:
        rank, quality = rank_by_class_root, grid_stability
    postprocess = Postprocess(rank, config.mask_threshold, config.max_detections, quality)
    return Criterion(Matcher(cost), class_loss, mask_loss), postprocess
