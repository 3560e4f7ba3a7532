"""Reads a config.json of Hugging Face's hub that describes a Mask2Former."""

import reprlib
from collections.abc import Mapping
from typing import Any

from mobileinst import config
from mobileinst.mask2former.model import STRIDES, Mask2FormerConfig

ARCHITECTURE = "Mask2FormerForUniversalSegmentation"

# Settings of which only one value can be built here.
FIXED = {
    "activation_function": "relu",
    "backbone": None,
    "common_stride": 4,
    "dropout": 0.0,
    "enforce_input_projection": False,
    "feature_strides": list(STRIDES),
    "pre_norm": False,
    "use_timm_backbone": False,
}
FIXED_OF_SWIN = {
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "layer_norm_eps": 1e-5,
    "mlp_ratio": 4.0,
    "model_type": "swin",
    "num_channels": 3,
    "patch_size": 4,
    "qkv_bias": True,
    "use_absolute_embeddings": False,
}
# Setting -> our keyword and the default there. The ranges are those of the keywords.
SETTINGS = {
    "hidden_dim": ("width", 256),
    "mask_feature_size": ("mask_dim", 256),
    "num_attention_heads": ("num_heads", 8),
    "encoder_layers": ("num_encoder_layers", 6),
    "encoder_feedforward_dim": ("encoder_ffn_width", 1024),
    "num_queries": ("num_queries", 100),
    "decoder_layers": ("num_layers", 10),
    "dim_feedforward": ("ffn_width", 2048),
    "class_weight": ("class_weight", 2.0),
    "mask_weight": ("pixel_weight", 5.0),
    "dice_weight": ("dice_weight", 5.0),
    "no_object_weight": ("no_object_weight", 0.1),
    "train_num_points": ("train_points", 12544),
    "oversample_ratio": ("oversample", 3.0),
    "importance_sample_ratio": ("importance", 0.75),
}
SETTINGS_OF_SWIN = {
    "embed_dim": ("embed_dim", 96),
    "depths": ("depths", [2, 2, 6, 2]),
    "num_heads": ("backbone_heads", [3, 6, 12, 24]),
    "window_size": ("window_size", 7),
    "drop_path_rate": ("drop_path", 0.1),
}
NO_BACKBONE = {"depths": [2, 2, 18, 2], "drop_path_rate": 0.3}  # if there is no backbone_config


def hub_config(values: Mapping[str, Any]) -> Mask2FormerConfig:
    """The config that a config.json describes; what it leaves out has its default there.

    Raises:
        ValueError: if it describes another architecture, or one that cannot be built here. The
            caller names the file.
    """
    architectures = values.get("architectures") or []
    is_known = isinstance(architectures, list) and ARCHITECTURE in architectures
    if values.get("model_type") != "mask2former" or not is_known:
        what = reprlib.repr(architectures or values.get("model_type"))
        raise ValueError(f"config.json describes {what}; give the folder of a {ARCHITECTURE}")
    swin = values.get("backbone_config") or NO_BACKBONE
    labels = values.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    for key, value, content in (
        ("backbone_config", swin, "settings"),
        ("id2label", labels, "class names"),
    ):
        if not isinstance(value, Mapping) or not value:
            raise ValueError(
                f"config.json has {key} {reprlib.repr(value)}, and a dict of {content} is needed; "
                "get it again"
            )
    require_fixed(values, FIXED, "")
    require_fixed(swin, FIXED_OF_SWIN, "backbone_config.")
    keywords = translated(values, SETTINGS, "")
    require_fixed(values, {"feature_size": keywords["width"]}, "")
    return Mask2FormerConfig(
        backbone="swin_tiny",
        num_classes=len(labels),
        **keywords,
        **translated(swin, SETTINGS_OF_SWIN, "backbone_config."),
    )


def require_fixed(values: Mapping[str, Any], wanted: Mapping[str, Any], path: str) -> None:
    """Raises ValueError if a setting is there and not as wanted."""
    for key, value in wanted.items():
        if key in values and values[key] != value:
            raise ValueError(
                f"config.json has {path}{key} {reprlib.repr(values[key])}, and only {value!r} can "
                "be built here; give another model"
            )


def translated(
    values: Mapping[str, Any], settings: Mapping[str, tuple[str, Any]], path: str
) -> dict[str, Any]:
    """Our keywords for these settings; raises ValueError if a value is out of range."""
    keywords = {}
    for key, (keyword, default) in settings.items():
        value = values.get(key, default)
        if key == "decoder_layers" and type(value) is int:
            value -= 1  # they count the prediction of the start values
        try:
            if isinstance(default, list):
                if not isinstance(value, list) or len(value) != len(default):
                    raise ValueError(f"it has no {len(default)} whole numbers")
                value = tuple(value)
            config.require(Mask2FormerConfig.keyword(keyword), value)
        except ValueError as error:
            raise ValueError(
                f"config.json has a wrong {path}{key}, {error}; get it again"
            ) from None
        keywords[keyword] = value
    return keywords
