"""Named models and backbones: builds (model, criterion, postprocess)."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from mobileinst import weights
from mobileinst.backbones import efficientnet_lite, mobilenet_v2, resnet, seaformer, swin, topformer
from mobileinst.config import Config, did_you_mean
from mobileinst.layers.freeze import freeze_depthwise, freeze_layers, freeze_norms
from mobileinst.layers.init import draw_parameters
from mobileinst.mask2former.model import Mask2FormerConfig, build_mask2former, mask2former_training
from mobileinst.mask2former.published import hub_config
from mobileinst.mobile.model import MobileInstConfig, build_mobileinst, mobileinst_training
from mobileinst.segmenter import Segmenter
from mobileinst.set_prediction.losses import Criterion
from mobileinst.set_prediction.postprocess import Postprocess
from mobileinst.sparseinst.model import SparseInstConfig, build_sparseinst, sparseinst_training

Built = tuple[Segmenter, Criterion, Postprocess]


class System(NamedTuple):
    """How the models of one paper are built.

    config: class of their configs. build: (config, backbone, **parts) -> model.
    training: (config, model) -> criterion and post-processing.
    """

    config: type[Config]
    build: Callable[..., Segmenter]
    training: Callable[..., tuple[Criterion, Postprocess]]


SYSTEMS = {
    "mobileinst": System(MobileInstConfig, build_mobileinst, mobileinst_training),
    "mask2former": System(Mask2FormerConfig, build_mask2former, mask2former_training),
    "sparseinst": System(SparseInstConfig, build_sparseinst, sparseinst_training),
}

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
    "efficientnet_lite0": efficientnet_lite.efficientnet_lite0,
    "efficientnet_lite1": efficientnet_lite.efficientnet_lite1,
    "efficientnet_lite2": efficientnet_lite.efficientnet_lite2,
    "resnet50": resnet.resnet50,
    "swin_tiny": swin.swin_tiny,
    "swin_small": swin.swin_small,
    "swin_base": swin.swin_base,
    "swin_large": swin.swin_large,
}

# The width is our choice where the paper is silent: 256 for base and large backbones, else 128.
MODELS = {
    "mobileinst_topformer_tiny": MobileInstConfig(backbone="topformer_tiny", width=128),
    # For phones, our choice: 0.31 of the CPU time of YOLO26n-seg, see assets/results/phone.md.
    "mobileinst_topformer_tiny_lite": MobileInstConfig(
        backbone="topformer_tiny", width=64, kernel_dim=64, kv_stride=16, depthwise=True
    ),
    "mobileinst_topformer_small": MobileInstConfig(backbone="topformer_small", width=128),
    "mobileinst_topformer_base": MobileInstConfig(backbone="topformer_base", width=256),
    "mobileinst_seaformer_tiny": MobileInstConfig(backbone="seaformer_tiny", width=128),
    "mobileinst_seaformer_small": MobileInstConfig(backbone="seaformer_small", width=128),
    "mobileinst_seaformer_base": MobileInstConfig(backbone="seaformer_base", width=256),
    "mobileinst_seaformer_large": MobileInstConfig(backbone="seaformer_large", width=256),
    "mobileinst_mobilenet_v2": MobileInstConfig(backbone="mobilenet_v2"),
    "mobileinst_mobilenet_v2_torchvision": MobileInstConfig(backbone="mobilenet_v2_torchvision"),
    "mobileinst_efficientnet_lite0": MobileInstConfig(backbone="efficientnet_lite0"),
    "mobileinst_efficientnet_lite1": MobileInstConfig(backbone="efficientnet_lite1"),
    "mobileinst_efficientnet_lite2": MobileInstConfig(backbone="efficientnet_lite2"),
    "mask2former_swin_tiny": Mask2FormerConfig(backbone="swin_tiny"),
    "mask2former_swin_small": Mask2FormerConfig(backbone="swin_small"),
    "mask2former_swin_base": Mask2FormerConfig(backbone="swin_base"),
    "mask2former_swin_large": Mask2FormerConfig(backbone="swin_large", num_queries=200),
    # Our choice, for a CPU and for the pretrained weights that are easiest to get.
    "mask2former_mobilenet_v2": Mask2FormerConfig(backbone="mobilenet_v2", drop_path=0.0),
    "mask2former_efficientnet_lite0": Mask2FormerConfig(
        backbone="efficientnet_lite0", drop_path=0.0
    ),
    # As published: the backbone's norms stay as ImageNet left them.
    "sparseinst_resnet50": SparseInstConfig(groups=0, frozen_norms=True),
    "sparseinst_resnet50_giam": SparseInstConfig(frozen_norms=True),
    "sparseinst_topformer_tiny": SparseInstConfig(backbone="topformer_tiny", injected=128),
    "sparseinst_mobilenet_v2": SparseInstConfig(backbone="mobilenet_v2"),
    "sparseinst_efficientnet_lite0": SparseInstConfig(backbone="efficientnet_lite0"),
}


def names() -> list[str]:
    """The names of the models, sorted."""
    return sorted(MODELS)


def config_for(model: str | Config, **overrides: Any) -> Config:
    """The config of a named model, or the one given, with some of its keywords changed.

    Raises:
        ValueError: if there is no such model or keyword, or a value is out of its range.
    """
    if isinstance(model, str) and model not in MODELS:
        hint = did_you_mean([model], names()) or f"there are {', '.join(names())}"
        raise ValueError(f"no model is called '{model}'; {hint}")
    config = MODELS[model] if isinstance(model, str) else model
    for key in overrides:
        config.keyword(key)
    return replace(config, **overrides)


def config_from_dict(values: dict[str, Any]) -> Config:
    """The config whose `to_dict` gave these values.

    Raises:
        ValueError: if it names no known system or backbone, or has a keyword or value that no
            config of that system has.
    """
    values = dict(values)
    name = values.pop("system", None)
    if name not in SYSTEMS:
        raise ValueError(f"describes a model of no known system, as {', '.join(SYSTEMS)}")
    try:
        config = SYSTEMS[name].config.from_dict(values)
    except ValueError as error:
        raise ValueError(f"describes no {name} model: {error}") from error
    if config.backbone not in BACKBONES:
        raise ValueError(f"describes a model of no known backbone, as {', '.join(BACKBONES)}")
    return config


def from_huggingface(folder: str | Path) -> nn.Module:
    """The model of a folder that `save_pretrained` of a Mask2FormerForUniversalSegmentation wrote,
    or the hub holds: built from its config.json, loaded, in eval mode.

    Raises:
        weights.LoadError: if it is another architecture, or one that cannot be built here, or the
            tensors are not exactly those of the model.
    """
    folder = Path(folder)
    settings = weights.hub_settings(folder)
    try:
        model, *_ = build_from_config(hub_config(settings))
    except ValueError as error:
        raise weights.LoadError(f"{folder}: {error}") from error
    report = weights.load(model, weights.hub_weights(folder))
    if report.random or report.queries or report.unexpected:
        raise weights.LoadError(
            f"{folder}: its tensors are not those of the model that config.json describes; get "
            "both files of one model"
        )
    return model.eval()


def build_backbone(name: str, **overrides: Any) -> nn.Module:
    """A backbone: (normalised images) -> list of maps; `.channels` and `.strides` describe them.

    Raises:
        ValueError: if there is no such backbone, or it has none of the keywords.
    """
    if name not in BACKBONES:
        hint = did_you_mean([name], list(BACKBONES)) or f"there are {', '.join(BACKBONES)}"
        raise ValueError(f"no backbone is called '{name}'; {hint}")
    try:
        return BACKBONES[name](**overrides)
    except TypeError as error:
        sizes = " or ".join(name for name in overrides if name != "drop_path")
        raise ValueError(f"{name} has no {sizes} to set") from error


def build(model: str | Config, num_classes: int, *, seed: int = 0, **keywords: Any) -> Built:
    """Model, criterion and post-processing of a system.

    Args:
        model: one of `names()`, or a config.
        num_classes: K, without background.
        seed: fixes the start values: each module draws from (seed, its own path).
        keywords: other values for keywords of the system's config; or modules that replace its own
            parts, under the name these have in the model (`backbone`, `pixel_decoder`, …). They
            start from drawn values as well: load weights into them afterwards. None keeps the
            system's own.
    Raises:
        ValueError: if there is no such model, keyword or part, or a part does not fit.
    """
    keywords = {name: value for name, value in keywords.items() if value is not None}
    parts = {name: value for name, value in keywords.items() if isinstance(value, nn.Module)}
    overrides = {name: value for name, value in keywords.items() if name not in parts}
    config = config_for(model, num_classes=num_classes, **overrides)
    return build_from_config(config, seed=seed, **parts)


def build_from_config(config: Config, *, seed: int = 0, **parts: nn.Module) -> Built:
    """The same from a config."""
    system = SYSTEMS[config.system]
    _, *known = inspect.signature(system.build).parameters
    if wrong := parts.keys() - set(known):
        raise ValueError(f"no part is called '{min(wrong)}'; there are {', '.join(known)}")
    backbone = parts.pop("backbone", None)
    if backbone is None:
        backbone = build_backbone(config.backbone, **config.backbone_keywords())
    if config.frozen_norms:
        freeze_norms(backbone)
    if config.frozen_depthwise:
        freeze_depthwise(backbone)
    if config.frozen_stride:
        freeze_layers(backbone, config.frozen_stride)
    model = system.build(config, backbone, **parts)
    draw_parameters(model, seed)
    return model, *system.training(config, model)
