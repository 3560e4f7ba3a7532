"""The names a user may ask for → (model, criterion, postprocess). Knows every part, alone."""

from dataclasses import fields, replace

from torch import nn

from mobileinst.backbones import mobilenet_v2, seaformer, swin, topformer
from mobileinst.layers.freeze import freeze_layers, freeze_norms
from mobileinst.layers.init import draw_parameters
from mobileinst.mobile.model import MobileInstConfig, build_mobileinst
from mobileinst.set_prediction.costs import DiceClassCost
from mobileinst.set_prediction.criterion import Criterion
from mobileinst.set_prediction.losses import (
    FocalClassLoss,
    MaskLoss,
    ObjectnessLoss,
    SemanticLoss,
)
from mobileinst.set_prediction.matcher import Matcher
from mobileinst.set_prediction.postprocess import Postprocess, rank_by_objectness

BACKBONES = {
    "topformer_tiny": topformer.topformer_tiny,
    "topformer_small": topformer.topformer_small,
    "topformer_base": topformer.topformer_base,
    "seaformer_tiny": seaformer.seaformer_tiny,
    "seaformer_small": seaformer.seaformer_small,
    "seaformer_base": seaformer.seaformer_base,
    "seaformer_large": seaformer.seaformer_large,
    "mobilenet_v2": mobilenet_v2.mobilenet_v2,
    "mobilenet_v2_torchvision": mobilenet_v2.mobilenet_v2_torchvision,
    "swin_tiny": swin.swin_tiny,
    "swin_small": swin.swin_small,
    "swin_base": swin.swin_base,
    "swin_large": swin.swin_large,
}

# The width is our choice where the paper is silent: 256 for base and large backbones, else 128.
MODELS = {
    "mobileinst_topformer_tiny": MobileInstConfig(backbone="topformer_tiny", width=128),
    "mobileinst_topformer_small": MobileInstConfig(backbone="topformer_small", width=128),
    "mobileinst_topformer_base": MobileInstConfig(backbone="topformer_base", width=256),
    "mobileinst_seaformer_tiny": MobileInstConfig(backbone="seaformer_tiny", width=128),
    "mobileinst_seaformer_small": MobileInstConfig(backbone="seaformer_small", width=128),
    "mobileinst_seaformer_base": MobileInstConfig(backbone="seaformer_base", width=256),
    "mobileinst_seaformer_large": MobileInstConfig(backbone="seaformer_large", width=256),
    "mobileinst_mobilenet_v2": MobileInstConfig(backbone="mobilenet_v2"),
    "mobileinst_mobilenet_v2_torchvision": MobileInstConfig(backbone="mobilenet_v2_torchvision"),
}


def names() -> list[str]:
    """Every model that can be built."""
    return sorted(MODELS)


def config_for(name: str, **overrides) -> MobileInstConfig:
    """The config of a named model, with some of its keywords changed.

    Raises:
        ValueError: no such model, or no such keyword; the message lists what there is.
    """
    if name not in MODELS:
        raise ValueError(f"no model is called '{name}'; there are {', '.join(names())}")
    known = [field.name for field in fields(MODELS[name])]
    for key in overrides:
        if key not in known:
            raise ValueError(f"{name} has no keyword '{key}'; it has {', '.join(known)}")
    return replace(MODELS[name], **overrides)


def config_from_dict(values: dict) -> MobileInstConfig:
    """The config that was stored with `dataclasses.asdict`."""
    return MobileInstConfig(**values)


def build_backbone(name: str, **overrides) -> nn.Module:
    """A backbone: (normalised images) → list of maps; `.channels` and `.strides` describe them."""
    if name not in BACKBONES:
        raise ValueError(f"no backbone is called '{name}'; there are {', '.join(BACKBONES)}")
    return BACKBONES[name](**overrides)


def build(
    name: str, num_classes: int, *, seed: int = 0, **overrides
) -> tuple[nn.Module, Criterion, Postprocess]:
    """Model, criterion and post-processing of a named system.

    Args:
        name: one of `names()`.
        num_classes: K, without background.
        seed: fixes the start values: each module draws from (seed, its own path).
        overrides: other values for keywords of the system's config.
    """
    return build_from_config(config_for(name, num_classes=num_classes, **overrides), seed=seed)


def build_from_config(
    config: MobileInstConfig, *, seed: int = 0
) -> tuple[nn.Module, Criterion, Postprocess]:
    """The same from a config; configuration ends here."""
    backbone = build_backbone(config.backbone, drop_path=config.drop_path)
    if config.frozen_norms:
        freeze_norms(backbone)
    if config.frozen_stride:
        freeze_layers(backbone, config.frozen_stride)
    model = build_mobileinst(config, backbone)
    draw_parameters(model, seed)
    extra = [ObjectnessLoss(config.objectness_weight)]
    if config.semantic_weight:
        extra.append(SemanticLoss(config.semantic_weight))
    criterion = Criterion(
        Matcher(DiceClassCost(config.dice_power, config.class_power)),
        FocalClassLoss(config.class_weight),
        MaskLoss(config.pixel_weight, config.dice_weight),
        extra,
    )
    postprocess = Postprocess(rank_by_objectness, config.mask_threshold, config.max_detections)
    return model, criterion, postprocess
