"""What the names and shapes in published files mean: whose they are, what is left out, renaming."""

import re
from collections.abc import Mapping
from typing import TypeVar

import torch

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
# What a whole model has beside its backbone; the second part is in no other model.
SYSTEMS = {
    "MobileInst": ("mask_decoder.", "instance_decoder.", "semantic_heads."),
    "Mask2Former": ("pixel_decoder.", "query_decoder."),
}
LOSS_DROPPED = {"criterion.": "what the loss weighs classes with"}
DROPPED |= LOSS_DROPPED
DROPPED |= {part: "the decoder of a whole model" for parts in SYSTEMS.values() for part in parts}
SWIN_DROPPED = {"norm.": "the norm before a classifier; here each output has one of its own"}
# The same for whole models of Mask2Former as they are published.
PUBLISHED_DROPPED = {f"backbone.{name}": why for name, why in SWIN_DROPPED.items()}
PUBLISHED_DROPPED |= LOSS_DROPPED
SWIN_NEW = ("norm0.", "norm1.", "norm2.", "norm3.")  # output norms, which no classifier has
RECOMPUTED = ("relative_position_index", "attn_mask")  # buffers that follow from the sizes
COUNTER = "num_batches_tracked"  # of batch norms with a momentum nobody reads it

WRAPPERS = ("module.", "backbone.")  # what data parallel training and whole models put in front

# Family: a tensor whose number of output channels tells the size, and the size by that number.
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


def beginning(name: str, prefixes: tuple[str, ...]) -> str:
    """The longest start of a name that is made of these prefixes alone, in any order."""
    length = 0
    while found := [prefix for prefix in prefixes if name.startswith(prefix, length)]:
        length += len(found[0])
    return name[:length]


def recognise(tensors: Mapping) -> str:
    """Whose tensors these are, in words: of a file, or the state dict of a module.

    Args:
        tensors: name -> tensor, with or without prefixes.
    """
    plain = {name[len(beginning(name, WRAPPERS)) :]: value for name, value in tensors.items()}
    for system, parts in SYSTEMS.items():
        if any(name.startswith(parts[1]) for name in plain):
            return f"{system} with {_family(_outside(plain, parts))}"
    return _family(torchvision_swin_names(plain))


def _outside(tensors: Mapping[str, T], parts: tuple[str, ...]) -> dict[str, T]:
    return {name: value for name, value in tensors.items() if not name.startswith(parts)}


def _family(tensors: Mapping) -> str:
    if any(name.startswith("model.pixel_level_module.") for name in tensors):
        return "Mask2Former in the names of Hugging Face"
    for family, (telling, sizes) in FAMILIES.items():
        if telling in tensors:
            width = _size(tensors[telling], 0)
            size = sizes.get(width, f"of another size ({width} channels in {telling})")
            return f"{family}-{size}" if len(size) == 1 else f"{family} {size}".rstrip()
    if SWIN in tensors:
        return _swin(tensors)
    return f"names that are not known here ({', '.join(list(tensors)[:2])}, …)"


def _swin(tensors: Mapping) -> str:
    """The size by width and depth, and the window by the table of relative positions."""
    width = _size(tensors[SWIN], 1)
    blocks = sum(bool(re.fullmatch(r"layers\.2\.blocks\.\d+\.norm1\.weight", n)) for n in tensors)
    size = SWIN_SIZES.get((width, blocks), f" of another size ({width} wide, {blocks} blocks)")
    table = tensors.get(SWIN.replace("qkv.weight", "relative_position_bias_table"))
    window = 0 if table is None else (round(_size(table, 0) ** 0.5) + 1) // 2
    return f"Swin{'-' if len(size) == 1 else ''}{size}, window {window or 'unknown'}"


def _size(tensor: torch.Tensor, dimension: int) -> int:
    return tensor.shape[dimension] if tensor.ndim > dimension else 0


def expectations(names: Mapping) -> tuple[dict[str, str], tuple[str, ...]]:
    """What a file of a backbone has and the backbone does not (start of name -> reason), and how
    the names begin that no such file has.
    """
    if SWIN not in names:
        return DROPPED, ()
    has_norms = any(name.startswith(SWIN_NEW) for name in names)
    return DROPPED | SWIN_DROPPED, () if has_norms else SWIN_NEW


def torchvision_swin_names(state: Mapping[str, T]) -> dict[str, T]:
    """Torchvision's Swin in the official names; anything else as it is.

    Stage s is features[2s + 1], the merging behind it features[2s + 2]; the tensors are the same.
    """
    if "features.1.0.attn.qkv.weight" not in state:
        return dict(state)
    return {_official_swin_name(name): value for name, value in state.items()}


def _official_swin_name(name: str) -> str:
    for pattern, replacement in SWIN_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
