"""Mask2Former as Hugging Face's hub has it: the names of its tensors, and its config.json."""

import re
from collections import defaultdict
from collections.abc import Mapping

import torch

from mobileinst.mask2former.model import STRIDES, Mask2FormerConfig

ARCHITECTURE = "Mask2FormerForUniversalSegmentation"

# How a name begins there and here; the first that fits.
STARTS = {
    "model.pixel_level_module.encoder.embeddings.": "backbone.patch_embed.",
    "model.pixel_level_module.encoder.encoder.": "backbone.",
    "model.pixel_level_module.encoder.hidden_states_norms.": "backbone.",
    "model.pixel_level_module.decoder.encoder.": "pixel_decoder.transformer.encoder.",
    "model.pixel_level_module.decoder.level_embed": "pixel_decoder.transformer.level_embed",
    "model.pixel_level_module.decoder.": "pixel_decoder.",
    "model.transformer_module.decoder.mask_predictor.": "query_decoder.",
    "model.transformer_module.decoder.layernorm.": "query_decoder.decoder_norm.",
    "model.transformer_module.decoder.": "query_decoder.",
    "model.transformer_module.": "query_decoder.",
    "class_predictor.": "query_decoder.class_embed.",
}
# What is named otherwise in each part; the first that fits. |q|, |k| or |v| marks a matrix that is
# a third of one here.
NAMES = {
    "backbone": {
        r"patch_embeddings\.projection": "proj",
        r"stage1": "norm0",
        r"stage2": "norm1",
        r"stage3": "norm2",
        r"stage4": "norm3",
        r"layernorm_before": "norm1",
        r"layernorm_after": "norm2",
        r"attention\.self\.(q|k|v)(uery|ey|alue)": r"attn.qkv|\1|",
        r"attention\.self": "attn",
        r"attention\.output\.dense": "attn.proj",
        r"intermediate\.dense": "mlp.fc1",
        r"output\.dense": "mlp.fc2",
    },
    "pixel_decoder": {
        r"input_projections": "input_proj",
        r"self_attn_layer_norm": "norm1",
        r"final_layer_norm": "norm2",
        r"fc1": "linear1",
        r"fc2": "linear2",
        r"(adapter_1|layer_1)\.0": r"\1",
        r"(adapter_1|layer_1)\.1": r"\1.norm",
        r"mask_projection": "mask_features",
    },
    "query_decoder": {
        r"queries_embedder": "query_embed",
        r"queries_features": "query_feat",
        r"mask_embedder\.(\d+)\.0": r"mask_embed.layers.\1",
        r"layers\.(\d+)\.self_attn\.(q|k|v)_proj\.": (
            r"transformer_self_attention_layers.\1.self_attn.in_proj_|\2|"
        ),
        r"layers\.(\d+)\.self_attn\.": r"transformer_self_attention_layers.\1.self_attn.",
        r"layers\.(\d+)\.self_attn_layer_norm": r"transformer_self_attention_layers.\1.norm",
        r"layers\.(\d+)\.cross_attn\.": r"transformer_cross_attention_layers.\1.multihead_attn.",
        r"layers\.(\d+)\.cross_attn_layer_norm": r"transformer_cross_attention_layers.\1.norm",
        r"layers\.(\d+)\.fc1": r"transformer_ffn_layers.\1.linear1",
        r"layers\.(\d+)\.fc2": r"transformer_ffn_layers.\1.linear2",
        r"layers\.(\d+)\.final_layer_norm": r"transformer_ffn_layers.\1.norm",
    },
}
UNUSED = (  # buffers that follow from the sizes, the norm before a classifier, the loss's weights
    r"model\.pixel_level_module\.encoder\..*\.relative_position_index",
    r"model\.pixel_level_module\.encoder\.(swin\.)?layernorm\.(weight|bias)",
    r"criterion\.empty_weight",
)


def hub_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict in the names of the hub's files -> the same in ours.

    Queries, keys and values that are three tensors there are stacked; what nothing here reads is
    left out. A name that is not known, or a stack that is not whole, stays as it is.
    """
    renamed: dict[str, torch.Tensor] = {}
    stacks: dict[str, dict[str, str]] = defaultdict(dict)
    for name, value in state.items():
        if any(re.fullmatch(pattern, name) for pattern in UNUSED):
            continue
        start, *third = our_name(name).split("|")
        if third:
            stacks[start + third[1]][third[0]] = name
        else:
            renamed[start] = value
    for name, thirds in stacks.items():
        if thirds.keys() == {"q", "k", "v"}:
            renamed[name] = torch.cat([state[thirds[third]] for third in "qkv"])
        else:
            renamed |= {there: state[there] for there in thirds.values()}
    return renamed


def our_name(name: str) -> str:
    """The hub's name of a tensor in ours, with |q|, |k| or |v| in it where it is a third of one."""
    for start, ours in STARTS.items():
        if name.startswith(start):
            part, _, rest = (ours + name[len(start) :]).partition(".")
            for pattern, new in NAMES[part].items():
                rest, found = re.subn(rf"\b{pattern}", new, rest, count=1)
                if found:
                    break
            return f"{part}.{rest}"
    return name


# What a config.json may say of the network that is built in one way only here.
REQUIRED = {
    "activation_function": "relu",
    "common_stride": 4,
    "dropout": 0.0,
    "enforce_input_projection": False,
    "feature_strides": list(STRIDES),
    "pre_norm": False,
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


def hub_config(values: Mapping) -> Mask2FormerConfig:
    """The config that a config.json of the hub describes; what it leaves out has its default there.

    Raises:
        ValueError: it describes another architecture, or one that cannot be built here. The file
            to name is the caller's.
    """
    architectures = values.get("architectures") or []
    if values.get("model_type") != "mask2former" or ARCHITECTURE not in architectures:
        what = ", ".join(architectures) or values.get("model_type")
        raise ValueError(f"config.json describes {what}; give the folder of a {ARCHITECTURE}")
    swin = values.get("backbone_config") or {}
    require(values, REQUIRED, "")
    require(swin, REQUIRED_OF_SWIN, "backbone_config.")
    width = values.get("hidden_dim", 256)
    require(values, {"feature_size": width}, "")
    return Mask2FormerConfig(
        backbone="swin_tiny",
        num_classes=len(values.get("id2label", ("LABEL_0", "LABEL_1"))),
        embed=swin.get("embed_dim", 96),
        depths=tuple(swin.get("depths", (2, 2, 6, 2))),
        backbone_heads=tuple(swin.get("num_heads", (3, 6, 12, 24))),
        window=swin.get("window_size", 7),
        drop_path=swin.get("drop_path_rate", 0.1),
        width=width,
        mask_dim=values.get("mask_feature_size", 256),
        heads=values.get("num_attention_heads", 8),
        encoder_layers=values.get("encoder_layers", 6),
        encoder_ffn_width=values.get("encoder_feedforward_dim", 1024),
        queries=values.get("num_queries", 100),
        layers=values.get("decoder_layers", 10) - 1,
        ffn_width=values.get("dim_feedforward", 2048),
        class_weight=values.get("class_weight", 2.0),
        pixel_weight=values.get("mask_weight", 5.0),
        dice_weight=values.get("dice_weight", 5.0),
        no_object_weight=values.get("no_object_weight", 0.1),
        train_points=values.get("train_num_points", 12544),
        oversample=values.get("oversample_ratio", 3.0),
        importance=values.get("importance_sample_ratio", 0.75),
    )


def require(values: Mapping, wanted: Mapping, path: str) -> None:
    """ValueError at the first value that is there and not as wanted."""
    for key, value in wanted.items():
        if key in values and values[key] != value:
            raise ValueError(
                f"config.json has {path}{key} {values[key]}, and only {value} can be built here; "
                "give another model"
            )


def require_rows(state: Mapping[str, torch.Tensor], num_classes: int) -> None:
    """ValueError unless the class layer has a row for each class and one for no object."""
    rows = len(state.get("class_predictor.bias", ())) - 1
    if rows >= 0 and rows != num_classes:
        raise ValueError(
            f"config.json lists {num_classes} classes under id2label and class_predictor tells "
            f"{rows} apart; get both files of one model"
        )
