"""Mask2Former's tensors under their published names, the hub's and the authors', and under ours."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from mobileinst.weights.names import beginning

T = TypeVar("T")

# What names begin with in the hub's files and in the authors', and in no others.
HUB = ("model.pixel_level_module.", "model.transformer_module.")
AUTHORS = "sem_seg_head."

# The hub's names. How a name begins there and here; the first that fits. What stands below
# `encoder.swin` is what newer versions of transformers call it in memory.
STARTS = {
    "model.pixel_level_module.encoder.swin.layernorm.": "backbone.norm.",
    "model.pixel_level_module.encoder.swin.embeddings.": "backbone.patch_embed.",
    "model.pixel_level_module.encoder.swin.encoder.": "backbone.",
    "model.pixel_level_module.encoder.layernorm.": "backbone.norm.",
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
        r"attention\.(q|k|v)_proj": r"attn.qkv|\1|",
        r"attention\.(self|relative_position_bias)": "attn",
        r"attention\.(output\.dense|o_proj)": "attn.proj",
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
# The authors' names; the first pattern that fits. Their older files call the start values
# `static_query` and leave out `pixel_decoder.`.
OFFICIAL = {
    r"sem_seg_head\.predictor\.static_query\.": "query_decoder.query_feat.",
    r"sem_seg_head\.predictor\.": "query_decoder.",
    r"sem_seg_head\.(pixel_decoder\.)?": "pixel_decoder.",
}


def in_our_names(tensors: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """Whose names these are ("" if they are nobody's that is known), and the tensors in ours.

    `module.` in front of a name stays there.

    Raises:
        ValueError: two tensors would have one name; the file to tell is the caller's.
    """
    plain = [without_wrapper(name)[1] for name in tensors]
    if any(name.startswith(HUB) for name in plain):
        return "Hugging Face", stacked(rename(tensors, hub_name))
    if any(name.startswith(AUTHORS) for name in plain):
        return "its authors", rename(tensors, official_name)
    return "", dict(tensors)


def without_wrapper(name: str) -> tuple[str, str]:
    """What data parallel training puts in front of names, and the rest."""
    start = beginning(name, ("module.",))
    return start, name[len(start) :]


def rename(tensors: Mapping[str, T], new_name: Callable[[str], str]) -> dict[str, T]:
    """The tensors in other names; ValueError if two would have the same."""
    renamed: dict[str, T] = {}
    for name, value in tensors.items():
        start, plain = without_wrapper(name)
        ours = start + new_name(plain)
        if ours in renamed:
            raise ValueError(f"{name} and another of its tensors are both {ours} here")
        renamed[ours] = value
    return renamed


def official_name(name: str) -> str:
    """The authors' name of a tensor in ours."""
    for pattern, ours in OFFICIAL.items():
        name, found = re.subn(rf"^{pattern}", ours, name)
        if found:
            break
    return name


def hub_name(name: str) -> str:
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


def stacked(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Queries, keys and values, marked in their names, as one tensor. A stack that is not whole, or
    of different shapes, stays as it is.
    """
    whole: dict[str, torch.Tensor] = {}
    stacks: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        start, *third = name.split("|")
        if len(third) == 2:
            stacks[start + third[1]][third[0]] = value
        else:
            whole[name] = value
    for name, thirds in stacks.items():
        kinds = {(value.shape, value.dtype) for value in thirds.values()}
        if thirds.keys() == {"q", "k", "v"} and len(kinds) == 1 and thirds["q"].ndim:
            whole[name] = torch.cat([thirds[third] for third in "qkv"])
        else:
            whole |= {f"{name} ({third})": value for third, value in thirds.items()}
    return whole
