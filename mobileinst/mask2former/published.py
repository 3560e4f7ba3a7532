"""Mask2Former as Hugging Face's hub describes it: the settings in a config.json."""

import math
import reprlib
from collections.abc import Mapping

from mobileinst.mask2former.model import STRIDES, Mask2FormerConfig

ARCHITECTURE = "Mask2FormerForUniversalSegmentation"

# What a config.json may say of the network that is built in one way only here.
REQUIRED = {
    "activation_function": "relu",
    "backbone": None,
    "common_stride": 4,
    "dropout": 0.0,
    "enforce_input_projection": False,
    "feature_strides": list(STRIDES),
    "pre_norm": False,
    "use_timm_backbone": False,
}
REQUIRED_OF_SWIN = {
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
NO_BACKBONE = {"depths": [2, 2, 18, 2], "drop_path_rate": 0.3}  # in the place of a backbone_config

# Setting -> its default there, and the smallest and largest value that is taken. What is larger
# than any model is a broken file, and would fill the memory before that shows.
COUNTS = {
    "hidden_dim": (256, 1, 8192),
    "mask_feature_size": (256, 1, 8192),
    "num_attention_heads": (8, 1, 512),
    "encoder_layers": (6, 1, 100),
    "encoder_feedforward_dim": (1024, 1, 65536),
    "num_queries": (100, 1, 100_000),
    "decoder_layers": (10, 2, 100),
    "dim_feedforward": (2048, 1, 65536),
    "train_num_points": (12544, 1, 10_000_000),
}
COUNTS_OF_SWIN = {"embed_dim": (96, 1, 4096), "window_size": (7, 1, 32)}
COUNTS_PER_STAGE = {"depths": ((2, 2, 6, 2), 1, 100), "num_heads": ((3, 6, 12, 24), 1, 512)}
NUMBERS = {
    "class_weight": (2.0, 0, 1e6),
    "mask_weight": (5.0, 0, 1e6),
    "dice_weight": (5.0, 0, 1e6),
    "no_object_weight": (0.1, 0, 1e6),
    "oversample_ratio": (3.0, 1, 100),
    "importance_sample_ratio": (0.75, 0, 1),
}
NUMBERS_OF_SWIN = {"drop_path_rate": (0.1, 0, 0.99)}


def hub_config(values: Mapping) -> Mask2FormerConfig:
    """The config that a config.json of the hub describes; what it leaves out has its default there.

    Raises:
        ValueError: it describes another architecture, or one that cannot be built here. The file
            to name is the caller's.
    """
    require_architecture(values)
    swin = values.get("backbone_config") or NO_BACKBONE
    if not isinstance(swin, Mapping):
        raise ValueError(wrong("backbone_config", swin, "a dict of settings"))
    require(values, REQUIRED, "")
    require(swin, REQUIRED_OF_SWIN, "backbone_config.")
    own = {key: count(values, key, *range_) for key, range_ in COUNTS.items()}
    own |= {key: number(values, key, *range_) for key, range_ in NUMBERS.items()}
    require(values, {"feature_size": own["hidden_dim"]}, "")
    return Mask2FormerConfig(
        backbone="swin_tiny",
        num_classes=number_of_classes(values),
        **swin_keywords(swin),
        width=own["hidden_dim"],
        mask_dim=own["mask_feature_size"],
        num_heads=own["num_attention_heads"],
        num_encoder_layers=own["encoder_layers"],
        encoder_ffn_width=own["encoder_feedforward_dim"],
        num_queries=own["num_queries"],
        num_layers=own["decoder_layers"] - 1,
        ffn_width=own["dim_feedforward"],
        class_weight=own["class_weight"],
        pixel_weight=own["mask_weight"],
        dice_weight=own["dice_weight"],
        no_object_weight=own["no_object_weight"],
        train_points=own["train_num_points"],
        oversample=own["oversample_ratio"],
        importance=own["importance_sample_ratio"],
    )


def swin_keywords(swin: Mapping) -> dict:
    """The keywords of our config that a backbone_config decides."""
    path = "backbone_config."
    counts = {key: count(swin, key, *range_, path) for key, range_ in COUNTS_OF_SWIN.items()}
    stages = {key: per_stage(swin, key, *range_, path) for key, range_ in COUNTS_PER_STAGE.items()}
    numbers = {key: number(swin, key, *range_, path) for key, range_ in NUMBERS_OF_SWIN.items()}
    return {
        "embed_dim": counts["embed_dim"],
        "depths": stages["depths"],
        "backbone_heads": stages["num_heads"],
        "window_size": counts["window_size"],
        "drop_path": numbers["drop_path_rate"],
    }


def require_architecture(values: Mapping) -> None:
    """ValueError unless this is the config.json of a Mask2Former."""
    architectures = values.get("architectures") or []
    is_ours = isinstance(architectures, list) and ARCHITECTURE in architectures
    if values.get("model_type") != "mask2former" or not is_ours:
        what = reprlib.repr(architectures or values.get("model_type"))
        raise ValueError(f"config.json describes {what}; give the folder of a {ARCHITECTURE}")


def require(values: Mapping, wanted: Mapping, path: str) -> None:
    """ValueError at the first value that is there and not as wanted."""
    for key, value in wanted.items():
        if key in values and values[key] != value:
            raise ValueError(
                f"config.json has {path}{key} {reprlib.repr(values[key])}, and only {value!r} can "
                "be built here; give another model"
            )


def wrong(key: str, value: object, wanted: str) -> str:
    """The sentence for a value that no model has."""
    return f"config.json has {key} {reprlib.repr(value)}, and {wanted} is needed; get it again"


def count(values: Mapping, key: str, default: int, least: int, most: int, path: str = "") -> int:
    """A whole number within a range; ValueError if it is something else."""
    value = values.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(wrong(path + key, value, f"a whole number from {least} to {most}"))
    return value


def per_stage(
    values: Mapping, key: str, default: tuple[int, ...], least: int, most: int, path: str
) -> tuple[int, ...]:
    """A whole number for each of the four stages."""
    numbers = values.get(key, default)
    if not isinstance(numbers, list | tuple) or len(numbers) != len(STRIDES):
        raise ValueError(wrong(path + key, numbers, f"a list of {len(STRIDES)} whole numbers"))
    return tuple(count({key: value}, key, 0, least, most, path) for value in numbers)


def number(
    values: Mapping, key: str, default: float, least: float, most: float, path: str = ""
) -> float:
    """A number within a range; ValueError if it is something else."""
    value = values.get(key, default)
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
        raise ValueError(wrong(path + key, value, f"a number from {least} to {most}"))
    return value


def number_of_classes(values: Mapping) -> int:
    """How many classes id2label lists; two if there is none, as there."""
    labels = values.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(labels, dict) or not labels:
        raise ValueError(wrong("id2label", labels, "a dict of class names"))
    return len(labels)
