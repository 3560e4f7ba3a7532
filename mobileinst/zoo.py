"""The names a user may ask for → (model, criterion, postprocess). Knows every part, alone."""

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from mobileinst import weights
from mobileinst.backbones import mobilenet_v2, seaformer, swin, topformer
from mobileinst.layers.freeze import freeze_layers, freeze_norms
from mobileinst.layers.init import draw_parameters
from mobileinst.mask2former.model import Mask2FormerConfig, build_mask2former
from mobileinst.mask2former.published import hub_config
from mobileinst.mobile.model import MobileInstConfig, build_mobileinst
from mobileinst.set_prediction.costs import DiceClassCost, PointCost
from mobileinst.set_prediction.criterion import Criterion
from mobileinst.set_prediction.losses import (
    CrossEntropyClassLoss,
    FocalClassLoss,
    MaskLoss,
    ObjectnessLoss,
    PointMaskLoss,
    SemanticLoss,
)
from mobileinst.set_prediction.matcher import Matcher
from mobileinst.set_prediction.postprocess import (
    FullQuality,
    GridQuality,
    Postprocess,
    rank_by_class,
    rank_by_objectness,
)

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
    "mask2former_swin_tiny": Mask2FormerConfig(backbone="swin_tiny"),
    "mask2former_swin_small": Mask2FormerConfig(backbone="swin_small"),
    "mask2former_swin_base": Mask2FormerConfig(backbone="swin_base"),
    "mask2former_swin_large": Mask2FormerConfig(backbone="swin_large", num_queries=200),
    # Our choice, for a CPU and for the pretrained weights that are easiest to get.
    "mask2former_mobilenet_v2": Mask2FormerConfig(backbone="mobilenet_v2", drop_path=0.0),
}

LARGEST = 100_000  # value of any keyword

Config = MobileInstConfig | Mask2FormerConfig  # or a subclass of one
Built = tuple[nn.Module, Criterion, Postprocess]


def names() -> list[str]:
    """Every model that can be built."""
    return sorted(MODELS)


def config_for(model: str | Config, **overrides) -> Config:
    """The config of a named model, or the one given, with some of its keywords changed.

    Raises:
        ValueError: no such model, or no such keyword; the message lists what there is.
    """
    if isinstance(model, str) and model not in MODELS:
        raise ValueError(f"no model is called '{model}'; there are {', '.join(names())}")
    config = MODELS[model] if isinstance(model, str) else model
    known = [field.name for field in fields(config)]
    for key in overrides:
        if key not in known:
            name = model if isinstance(model, str) else type(model).__name__
            raise ValueError(f"{name} has no keyword '{key}'; it has {', '.join(known)}")
    return replace(config, **overrides)


def config_to_dict(config: Config) -> dict:
    """A config as plain values, to be stored."""
    return {"system": system_of(config)} | asdict(config)


def config_from_dict(values: dict) -> Config:
    """The config of `config_to_dict`. One that names no system is that of a MobileInst: there was
    no other when it was stored.

    Raises:
        ValueError: it names no system or backbone that there is, or has keywords or values that no
            config of that system has; it may come from a stranger.
    """
    values = {"system": "mobileinst"} | values
    name = values.pop("system")
    if name not in SYSTEMS:
        raise ValueError(f"describes a model of no known system; there are {', '.join(SYSTEMS)}")
    kind = SYSTEMS[name].config
    values = {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()}
    known = {field.name: field.default for field in fields(kind)}
    for key, value in values.items():
        if key not in known or not is_like(known[key], value):
            raise ValueError(f"describes a {name} model with a strange {key[:40]!r}")
    if values.get("backbone", "swin_tiny") not in BACKBONES:
        raise ValueError(f"describes a model of no known backbone, as {', '.join(BACKBONES)}")
    return kind(**values)


def is_like(default: object, value: object) -> bool:
    """Whether a value has the type of a keyword's default, and a size that a model can have."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) < 20 and all(is_like(1, v) for v in value)
    if type(default) is float and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        return False
    return isinstance(value, (bool, str)) or 0 <= value <= LARGEST


def from_huggingface(folder: str | Path) -> nn.Module:
    """The model of a folder that `save_pretrained` of a Mask2FormerForUniversalSegmentation wrote,
    or the hub holds: built from its config.json, loaded, in eval mode.

    Raises:
        weights.LoadError: it is another architecture, or one that cannot be built here, or the
            tensors are not exactly those of the model.
    """
    folder = Path(folder)
    try:
        config = hub_config(weights.hub_settings(folder))
    except ValueError as error:
        raise weights.LoadError(f"{folder}: {error}") from error
    try:
        with torch.device("meta"):  # shapes alone: a config may ask for more than there is memory
            sketch, *_ = build_from_config(config)
    except (ValueError, TypeError) as error:
        raise weights.LoadError(
            f"{folder}: config.json describes a model that cannot be built, {error}; get it again"
        ) from error
    file = weights.hub_weights(folder)
    weights.require_exact(file, sketch, config.num_classes)
    model, *_ = build_from_config(config)
    weights.load(model, file)
    return model.eval()


def build_backbone(name: str, **overrides) -> nn.Module:
    """A backbone: (normalised images) → list of maps; `.channels` and `.strides` describe them."""
    if name not in BACKBONES:
        raise ValueError(f"no backbone is called '{name}'; there are {', '.join(BACKBONES)}")
    return BACKBONES[name](**overrides)


def build(model: str | Config, num_classes: int, *, seed: int = 0, **keywords) -> Built:
    """Model, criterion and post-processing of a system.

    Args:
        model: one of `names()`, or a config.
        num_classes: K, without background.
        seed: fixes the start values: each module draws from (seed, its own path).
        keywords: other values for keywords of the system's config. Or modules that stand in the
            place of its own, under the name these have in the model (`backbone`, `pixel_decoder`,
            …). They start from drawn values as well: load weights into them afterwards. None
            stands for the system's own.
    Raises:
        ValueError: there is no such model, keyword or part, or a part does not fit.
    """
    parts = {name: value for name, value in keywords.items() if isinstance(value, nn.Module)}
    others = keywords.keys() - parts.keys()
    overrides = {key: keywords[key] for key in others if keywords[key] is not None}
    config = config_for(model, num_classes=num_classes, **overrides)
    return build_from_config(config, seed=seed, **parts)


def build_from_config(config: Config, *, seed: int = 0, **parts: nn.Module) -> Built:
    """The same from a config; configuration ends here."""
    system = SYSTEMS[system_of(config)]
    if wrong := parts.keys() - set(system.parts):
        raise ValueError(f"no part is called '{min(wrong)}'; there are {', '.join(system.parts)}")
    backbone = parts.pop("backbone", None) or system.backbone(config)
    if config.frozen_norms:
        freeze_norms(backbone)
    if config.frozen_stride:
        freeze_layers(backbone, config.frozen_stride)
    model = system.model(config, backbone, **parts)
    draw_parameters(model, seed)
    return model, *system.training(config, model)


class System(NamedTuple):
    """How the models of one paper are built.

    config: class of their configs. parts: what can be handed in. backbone: config → module.
    model: (config, backbone, **parts) → module. training: (config, model) → criterion and
    post-processing.
    """

    config: type
    parts: tuple[str, ...]
    backbone: Callable[[Config], nn.Module]
    model: Callable[..., nn.Module]
    training: Callable[[Config, nn.Module], tuple[Criterion, Postprocess]]


def system_of(config: Config) -> str:
    """Which of the systems a config belongs to."""
    return next(name for name, each in SYSTEMS.items() if isinstance(config, each.config))


def mobileinst_backbone(config: MobileInstConfig) -> nn.Module:
    return build_backbone(config.backbone, drop_path=config.drop_path)


def mobileinst_training(
    config: MobileInstConfig, model: nn.Module
) -> tuple[Criterion, Postprocess]:
    extra = [ObjectnessLoss(config.objectness_weight)]
    if config.semantic_weight:
        extra.append(SemanticLoss(config.semantic_weight))
    criterion = Criterion(
        Matcher(DiceClassCost(config.dice_power, config.class_power)),
        FocalClassLoss(config.class_weight),
        MaskLoss(config.pixel_weight, config.dice_weight),
        extra,
    )
    return criterion, Postprocess(
        rank_by_objectness, config.mask_threshold, config.max_detections, GridQuality()
    )


def mask2former_backbone(config: Mask2FormerConfig) -> nn.Module:
    sizes = {
        "embed_dim": config.embed_dim,
        "depths": config.depths,
        "num_heads": config.backbone_heads,
        "window_size": config.window_size,
    }
    sizes = {name: value for name, value in sizes.items() if value}
    try:
        return build_backbone(config.backbone, drop_path=config.drop_path, **sizes)
    except TypeError as error:
        raise ValueError(f"{config.backbone} has no {' or '.join(sizes)} to set") from error


def mask2former_training(
    config: Mask2FormerConfig, model: nn.Module
) -> tuple[Criterion, Postprocess]:
    weights = config.class_weight, config.pixel_weight, config.dice_weight
    criterion = Criterion(
        Matcher(PointCost(*weights, points=config.train_points)),
        CrossEntropyClassLoss(
            model.query_decoder.num_queries, config.class_weight, config.no_object_weight
        ),
        PointMaskLoss(
            config.pixel_weight,
            config.dice_weight,
            points=config.train_points,
            oversample=config.oversample,
            importance=config.importance,
        ),
    )
    return criterion, Postprocess(
        rank_by_class, config.mask_threshold, config.max_detections, FullQuality()
    )


SYSTEMS = {
    "mobileinst": System(
        MobileInstConfig,
        ("backbone", "mask_decoder", "instance_decoder"),
        mobileinst_backbone,
        build_mobileinst,
        mobileinst_training,
    ),
    "mask2former": System(
        Mask2FormerConfig,
        ("backbone", "pixel_decoder", "query_decoder"),
        mask2former_backbone,
        build_mask2former,
        mask2former_training,
    ),
}
