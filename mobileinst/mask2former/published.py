"""Reads a config.json of Hugging Face's hub that describes a Mask2Former."""

import reprlib
from collections.abc import Mapping
from typing import Any

from mobileinst.mask2former.model import Mask2FormerConfig

ARCHITECTURE = "Mask2FormerForUniversalSegmentation"

# Settings that leave no trace in the tensors, of which only one value can be built here.
FIXED = {"activation_function": "relu", "dropout": 0.0, "pre_norm": False}
FIXED_OF_SWIN = {
    "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "layer_norm_eps": 1e-5, "model_type": "swin",
}  # fmt: skip
# Setting -> our keyword, with the same default.
SETTINGS = {
    "hidden_dim": "width", "mask_feature_size": "mask_dim", "num_attention_heads": "num_heads",
    "encoder_layers": "num_encoder_layers", "encoder_feedforward_dim": "encoder_ffn_width",
    "num_queries": "num_queries", "decoder_layers": "num_layers", "dim_feedforward": "ffn_width",
    "class_weight": "class_weight", "mask_weight": "pixel_weight", "dice_weight": "dice_weight",
    "no_object_weight": "no_object_weight", "train_num_points": "train_points",
    "oversample_ratio": "oversample", "importance_sample_ratio": "importance",
}  # fmt: skip
SETTINGS_OF_SWIN = {
    "embed_dim": "embed_dim", "depths": "depths", "num_heads": "backbone_heads",
    "window_size": "window_size", "drop_path_rate": "drop_path",
}  # fmt: skip
DEFAULTS_OF_SWIN = {
    "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7,
    "drop_path_rate": 0.1,
}  # fmt: skip
DEFAULT_BACKBONE = {"depths": [2, 2, 18, 2], "drop_path_rate": 0.3}


def hub_config(values: Mapping[str, Any]) -> Mask2FormerConfig:
    """The config that a config.json describes; settings that it leaves out have the hub's defaults.

    Raises:
        ValueError: if it describes another architecture, or one that cannot be built here.
    """
    if ARCHITECTURE not in (values.get("architectures") or []):
        what = reprlib.repr(values.get("architectures") or values.get("model_type"))
        raise ValueError(f"config.json describes {what}; give the folder of a {ARCHITECTURE}")
    swin = DEFAULTS_OF_SWIN | (values.get("backbone_config") or DEFAULT_BACKBONE)
    require_fixed(values, FIXED, "")
    require_fixed(swin, FIXED_OF_SWIN, "backbone_config.")
    keywords = translated(values, SETTINGS) | translated(swin, SETTINGS_OF_SWIN)
    labels = values.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    try:
        if "num_layers" in keywords:
            keywords["num_layers"] -= 1  # the hub counts the prediction of the start values
        config = Mask2FormerConfig.from_dict({"num_classes": len(labels)} | keywords)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.json has a wrong value, {error}; get it again") from error
    require_fixed(values, {"feature_size": config.width}, "")
    return config


def require_fixed(values: Mapping[str, Any], wanted: Mapping[str, Any], path: str) -> None:
    """Checks that settings, where given, have the wanted values, raises ValueError."""
    for key, value in wanted.items():
        if values.get(key, value) != value:
            raise ValueError(
                f"config.json has {path}{key} {reprlib.repr(values[key])}, and only {value!r} can "
                "be built here; give another model"
            )


def translated(values: Mapping[str, Any], settings: Mapping[str, str]) -> dict[str, Any]:
    """Our keywords for these settings, where they are given."""
    return {keyword: values[key] for key, keyword in settings.items() if key in values}
