"""What the names and shapes in published files mean: the model, what is left out, renaming."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# Tensors that are left out on purpose, by how their names begin, unless the module has them too.
DROPPED = {
    "head.": "a classification head",
    "linear.": "a classification head",
    "classifier.": "a classification head",
    "decode_head.": "a segmentation head",
    "auxiliary_head.": "a segmentation head",
    "SIM.": "semantics injection, which MobileInst does without",
}
# The parts of a whole model beside its backbone; the second one is in no other model.
SYSTEMS = {
    "MobileInst": ("mask_decoder.", "instance_decoder.", "semantic_heads."),
    "Mask2Former": ("pixel_decoder.", "query_decoder."),
}
LOSS_DROPPED = {"criterion.": "class weights of the loss"}
DROPPED |= LOSS_DROPPED
DROPPED |= {part: "the decoder of a whole model" for parts in SYSTEMS.values() for part in parts}
SWIN_DROPPED = {"norm.": "the norm before a classifier; here each output has one of its own"}
# The same for whole models of Mask2Former as they are published.
PUBLISHED_DROPPED = {f"backbone.{name}": why for name, why in SWIN_DROPPED.items()}
PUBLISHED_DROPPED |= LOSS_DROPPED
SWIN_NEW = ("norm0.", "norm1.", "norm2.", "norm3.")  # output norms, which no classifier has
RECOMPUTED = ("relative_position_index", "attn_mask")  # buffers that follow from the sizes
COUNTER = "num_batches_tracked"  # unused in batch norms with a momentum

WRAPPERS = ("module.", "backbone.")  # what data parallel training and whole models put in front

# Family -> a tensor, and the size of the model by its number of output channels.
FAMILIES = {
    "TopFormer": ("tpm.layer2.conv.4.c.weight", {16: "T", 24: "S", 32: "B"}),
    "SeaFormer": ("smb5.layer1.conv.4.c.weight", {160: "T", 192: "S", 256: "B", 320: "L"}),
    "MobileNetV2": ("features.17.conv.2.weight", {320: ""}),
}
SWIN = "layers.0.blocks.0.attn.qkv.weight"
SWIN_SIZES = {(96, 6): "T", (96, 18): "S", (128, 18): "B", (192, 18): "L"}  # width, blocks
# Torchvision's names: pattern, and what the authors write instead.
SWIN_NAMES = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^(features\.\d\.\d+\.mlp)\.0\.", r"\1.fc1."),
    (r"^(features\.\d\.\d+\.mlp)\.3\.", r"\1.fc2."),
    (r"^features\.([1357])\.", lambda found: f"layers.{int(found[1]) // 2}.blocks."),
    (r"^features\.([246])\.", lambda found: f"layers.{int(found[1]) // 2 - 1}.downsample."),
)

# Mask2Former has two sets of published names, the hub's and the authors'. How they alone begin.
HUB = ("model.pixel_level_module.", "model.transformer_module.")
AUTHORS = "sem_seg_head."
WRAPPER = ("module.",)  # what data parallel training puts in front of names

# How a hub's name begins there and here; the first that fits. `encoder.swin` is what newer versions
# of transformers name it in memory.
HUB_STARTS = {
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
# What is named differently in each part; the first that fits. |q|, |k| or |v| marks a third of a
# matrix here.
HUB_NAMES = {
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
AUTHORS_NAMES = {
    r"sem_seg_head\.predictor\.static_query\.": "query_decoder.query_feat.",
    r"sem_seg_head\.predictor\.": "query_decoder.",
    r"sem_seg_head\.(pixel_decoder\.)?": "pixel_decoder.",
}


def beginning(name: str, prefixes: tuple[str, ...]) -> str:
    """The longest start of a name that is made of these prefixes alone, in any order."""
    length = 0
    while found := [prefix for prefix in prefixes if name.startswith(prefix, length)]:
        length += len(found[0])
    return name[:length]


def recognise(tensors: Mapping[str, Tensor]) -> str:
    """The model that these tensors of a file or state dict belong to, with or without prefixes."""
    plain = {name[len(beginning(name, WRAPPERS)) :]: value for name, value in tensors.items()}
    for system, parts in SYSTEMS.items():
        if any(name.startswith(parts[1]) for name in plain):
            rest = {name: v for name, v in plain.items() if not name.startswith(parts)}
            return f"{system} with {recognise_backbone(rest)}"
    return recognise_backbone(torchvision_swin_names(plain))


def recognise_backbone(tensors: Mapping[str, Tensor]) -> str:
    if any(name.startswith("model.pixel_level_module.") for name in tensors):
        return "Mask2Former in the names of Hugging Face"
    for family, (telling, sizes) in FAMILIES.items():
        if telling in tensors:
            width = size_of(tensors[telling], 0)
            size = sizes.get(width, f"of another size ({width} channels in {telling})")
            return f"{family}-{size}" if len(size) == 1 else f"{family} {size}".rstrip()
    if SWIN in tensors:
        return recognise_swin(tensors)
    return f"names that are not known here ({', '.join(list(tensors)[:2])}, …)"


def recognise_swin(tensors: Mapping[str, Tensor]) -> str:
    """The size by width and depth, and the window by the table of relative positions."""
    width = size_of(tensors[SWIN], 1)
    blocks = sum(bool(re.fullmatch(r"layers\.2\.blocks\.\d+\.norm1\.weight", n)) for n in tensors)
    size = SWIN_SIZES.get((width, blocks), f" of another size ({width} wide, {blocks} blocks)")
    table = tensors.get(SWIN.replace("qkv.weight", "relative_position_bias_table"))
    window = 0 if table is None else (round(size_of(table, 0) ** 0.5) + 1) // 2
    return f"Swin{'-' if len(size) == 1 else ''}{size}, window {window or 'unknown'}"


def size_of(tensor: Tensor, dimension: int) -> int:
    return tensor.shape[dimension] if tensor.ndim > dimension else 0


def expectations(names: Mapping) -> tuple[dict[str, str], tuple[str, ...]]:
    """How names begin that only the file of a backbone has, with the reason; and how those begin
    that only the backbone has.
    """
    if SWIN not in names:
        return DROPPED, ()
    has_norms = any(name.startswith(SWIN_NEW) for name in names)
    return DROPPED | SWIN_DROPPED, () if has_norms else SWIN_NEW


def torchvision_swin_names(state: Mapping[str, T]) -> dict[str, T]:
    """Renames torchvision's Swin to the official names, and leaves anything else unchanged.

    Stage s is features[2s + 1], the merging after it features[2s + 2]; the tensors are the same.
    """
    if "features.1.0.attn.qkv.weight" not in state:
        return dict(state)
    return {official_swin_name(name): value for name, value in state.items()}


def official_swin_name(name: str) -> str:
    for pattern, replacement in SWIN_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def in_our_names(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Renames tensors with published names; a prefix `module.` stays.

    Returns:
        Who published the names, "" if it is unknown, and the tensors by our names.
    Raises:
        ValueError: if two tensors would have one name; the caller adds the file.
    """
    plain = [name.removeprefix(beginning(name, WRAPPER)) for name in tensors]
    if any(name.startswith(HUB) for name in plain):
        return "Hugging Face", stacked(rename(tensors, hub_name))
    if any(name.startswith(AUTHORS) for name in plain):
        return "its authors", rename(tensors, official_name)
    return "", dict(tensors)


def rename(tensors: Mapping[str, T], new_name: Callable[[str], str]) -> dict[str, T]:
    """Renames tensors.

    Raises:
        ValueError: if two would have the same name.
    """
    renamed: dict[str, T] = {}
    for name, value in tensors.items():
        start = beginning(name, WRAPPER)
        ours = start + new_name(name[len(start) :])
        if ours in renamed:
            raise ValueError(f"{name} and another of its tensors are both {ours} here")
        renamed[ours] = value
    return renamed


def official_name(name: str) -> str:
    """Translates an authors' name."""
    for pattern, ours in AUTHORS_NAMES.items():
        name, found = re.subn(rf"^{pattern}", ours, name)
        if found:
            break
    return name


def hub_name(name: str) -> str:
    """Translates a hub's name, with |q|, |k| or |v| in it where the tensor is a third of ours."""
    for start, ours in HUB_STARTS.items():
        if name.startswith(start):
            part, _, rest = (ours + name[len(start) :]).partition(".")
            for pattern, new in HUB_NAMES[part].items():
                rest, found = re.subn(rf"\b{pattern}", new, rest, count=1)
                if found:
                    break
            return f"{part}.{rest}"
    return name


def stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenates queries, keys and values, which are marked in their names. Incomplete ones, and
    ones of different shapes, stay apart.
    """
    whole: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, Tensor]] = defaultdict(dict)
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
