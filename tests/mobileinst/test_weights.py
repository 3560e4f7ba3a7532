"""Weights from files of every documented form are loaded completely, with a report."""

import argparse
import json
import re

import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer, mobilenet_v2, resnet18, swin_t

from mobileinst import weights, zoo
from mobileinst.backbones.topformer import topformer_base, topformer_small, topformer_tiny
from mobileinst.mobile.model import MobileInst

SMALL = dict(width=16, kernel_dim=8, query_width=16, num_heads=2, num_queries=6)


def values_for(shapes, seed=0):
    """A tensor of each shape: random, and unlike what any module starts from."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(7)
        if name.endswith("num_batches_tracked")
        else 0.1 + torch.rand(tuple(shape), generator=generator)
        for name, shape in shapes.items()
    }


def shapes_of(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def module_of(shapes):
    """A module whose state dict has these names and shapes, all zero."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.register_buffer(last, torch.zeros(shape))
    return root


def size_of(report):
    return len(report.loaded), sum(report.loaded.values())


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def backbone():
    return topformer_tiny()


@pytest.fixture(scope="module")
def official():
    return values_for(shapes_of(topformer_tiny()))


@pytest.fixture
def tensors(official):
    """Weights for the backbone, unlike what it holds."""
    return dict(official)


@pytest.fixture
def save(tmp_path):
    def save(content, name="file.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def model_of(num_classes=3, name="mobileinst_topformer_tiny", seed=0, **keywords):
    return zoo.build(name, num_classes, seed=seed, **(SMALL | keywords))[0]


# Every documented container and prefix

CONTAINERS = {
    "at the top": (lambda good, bad: good, ""),
    "timm": (lambda good, bad: {"state_dict": bad, "state_dict_ema": good}, "state_dict_ema"),
    "no average kept": (lambda good, bad: {"state_dict_ema": None, "state_dict": good}, None),
    "mmcv": (lambda good, bad: {"meta": {"epoch": 3}, "state_dict": good}, "state_dict"),
    "Swin's": (lambda good, bad: {"model": good, "epoch": 3}, "model"),
    "average": (lambda good, bad: {"average": good}, "average"),
}


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("whole", [False, True])
def test_containers(save, backbone, tensors, kind, whole):
    wrap, container = CONTAINERS[kind]
    bad = {name: value + 1 for name, value in tensors.items()}
    module = model_of() if whole else backbone
    rest = {n: v for n, v in snapshot(module).items() if whole and not n.startswith("backbone.")}
    report = weights.load(module, save(wrap(tensors, bad)))
    assert same(getattr(module, "backbone", module).state_dict(), tensors)
    assert report.container == (container if container is not None else "state_dict")
    assert size_of(report) == (314, 1_293_888)
    assert report.whole and not report.unexpected and not report.warnings
    state = module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in rest.items())
    assert report.random == (("mask_decoder", "instance_decoder") if whole else ())


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.backbone.", "module.module."])
def test_prefixes(save, backbone, tensors, prefix):
    path = save({"state_dict": {prefix + name: value for name, value in tensors.items()}})
    report = weights.load(backbone, path)
    assert same(backbone.state_dict(), tensors)
    assert report.prefixes == (prefix,) and repr(prefix) in report.text


def test_files_of_timm_hold_their_options(save, backbone, tensors):
    content = {"args": argparse.Namespace(lr=0.1, sizes=[1, 2]), "state_dict": tensors}
    weights.load(backbone, save(content))
    assert same(backbone.state_dict(), tensors)


def test_topformer_for_segmentation(save, reference, backbone):
    """The official names, with the semantics injection and the head of an ADE20K file."""
    theirs = values_for(reference("topformer_tiny")["shapes"])
    content = {f"backbone.{name}": value for name, value in theirs.items()}
    content["decode_head.conv_seg.weight"] = torch.ones(150, 128, 1, 1)
    report = weights.load(backbone, save({"meta": {}, "state_dict": content, "optimizer": {}}))
    assert same(backbone.state_dict(), {n: theirs[n] for n in backbone.state_dict()})
    assert size_of(report) == (314, 1_293_888) and not report.unexpected
    dropped = {reason.split(",")[0]: len(names) for reason, names in report.dropped.items()}
    assert dropped == {"SIM.*": 54, "decode_head.*": 1}
    assert "SIM.*, semantics injection" in report.text


def test_topformer_for_classification(save, backbone, tensors):
    head = {"head.bn.weight": torch.ones(208), "head.l.weight": torch.ones(1000, 208)}
    report = weights.load(backbone, save({"state_dict_ema": tensors | head}))
    assert [(len(names), why) for why, names in report.dropped.items()] == [
        (2, "head.*, a classification head")
    ]
    assert report.whole and not report.warnings


def test_half_precision_is_converted(save, backbone, tensors):
    half = {n: v.half() if v.is_floating_point() else v for n, v in tensors.items()}
    report = weights.load(backbone, save(half))
    rounded = {n: v.half().to(v.dtype) for n, v in tensors.items()}
    assert same(backbone.state_dict(), rounded)
    assert report.conversion == "263 tensors from float16 to float32"
    assert report.conversion in report.text


def test_counters_may_be_absent(save, backbone, tensors):
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    before = backbone.state_dict()[counters[0]].clone()
    path = save({name: tensors[name] for name in tensors if name not in counters})
    report = weights.load(backbone, path)
    assert report.whole and len(report.loaded) == 314 - len(counters)
    assert torch.equal(backbone.state_dict()[counters[0]], before)
    frozen = module_of({n: s for n, s in shapes_of(backbone).items() if n not in counters})
    assert not weights.load(frozen, save(tensors)).unexpected


def test_what_is_no_tensor_is_left_out(save, backbone, tensors):
    report = weights.load(backbone, save(tensors | {"epoch": 3, "arch": "topformer", 5: "x"}))
    assert same(backbone.state_dict(), tensors)
    assert [*report.dropped["entries that are no tensors"]] == ["epoch", "arch", "5"]


# MobileNetV2


def test_the_real_mobilenet(shared):
    path = shared / "datasets" / "weights" / "mobilenet_v2_imagenet_features_fp16.pth"
    theirs = torch.load(path, weights_only=True)["state_dict"]
    theirs = {name: v.float() if v.ndim else v for name, v in theirs.items()}
    plain = mobilenet_v2(weights=None)
    assert not plain.load_state_dict(theirs, strict=False).unexpected_keys
    backbone = zoo.build_backbone("mobilenet_v2_torchvision").eval()
    report = weights.load(backbone, path)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(backbone(images)[3], plain.eval().features(images))
    assert "use mobilenet_v2" in report.warnings[0] and "torchvision" not in report.warnings[0]
    report = weights.load(zoo.build_backbone("mobilenet_v2"), path)
    assert report.source == report.target == "MobileNetV2" and report.whole
    assert not report.warnings and not report.dropped and not report.random
    assert size_of(report)[1] == 2_223_872 and "float16 to float32" in report.text


@pytest.mark.parametrize("name, warned", [("mobilenet_v2", 1), ("mobilenet_v2_torchvision", 0)])
def test_torchvisions_mobilenet_wants_another_normalisation(save, name, warned):
    path = save(values_for(shapes_of(mobilenet_v2(weights=None))))
    report = weights.load(zoo.build_backbone(name), path)
    assert {why: len(names) for why, names in report.dropped.items()} == {
        "classifier.*, a classification head": 2
    }
    assert ["use mobilenet_v2_torchvision" in each for each in report.warnings] == [True] * warned


# SeaFormer


def test_seaformer_for_classification(save, reference):
    theirs = values_for(reference("seaformer_tiny")["shapes"])
    head = {"linear.weight": torch.ones(1000, 160), "linear.bias": torch.ones(1000)}
    content = {"epoch": 299, "args": argparse.Namespace(lr=1.0), "metric": 68.1}
    content |= {"state_dict": {n: v + 1 for n, v in theirs.items()} | head}
    backbone = zoo.build_backbone("seaformer_tiny")
    report = weights.load(backbone, save(content | {"state_dict_ema": theirs | head}))
    assert same(backbone.state_dict(), theirs)
    assert size_of(report) == (426, 1_620_096)
    assert report.source == "SeaFormer-T" and not report.unexpected


# Swin


def official_swin(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7):
    """Names and shapes of a Swin file of its authors, from the naming rules."""
    shapes = {"patch_embed.proj.weight": (width, 3, 4, 4), "patch_embed.proj.bias": (width,)}

    def norm(name, size):
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    def linear(name, inputs, outputs):
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    norm("patch_embed.norm", width)
    for stage, depth in enumerate(depths):
        size = width * 2**stage
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}"
            norm(f"{at}.norm1", size)
            table = ((2 * window - 1) ** 2, heads[stage])
            shapes[f"{at}.attn.relative_position_bias_table"] = table
            shapes[f"{at}.attn.relative_position_index"] = (window**2, window**2)
            linear(f"{at}.attn.qkv", size, 3 * size)
            linear(f"{at}.attn.proj", size, size)
            norm(f"{at}.norm2", size)
            linear(f"{at}.mlp.fc1", size, 4 * size)
            linear(f"{at}.mlp.fc2", 4 * size, size)
            if block % 2:
                shapes[f"{at}.attn_mask"] = (64, window**2, window**2)
        if stage < 3:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * size, 4 * size)
            norm(f"layers.{stage}.downsample.norm", 4 * size)
    norm("norm", 8 * width)
    linear("head", 8 * width, 1000)
    return shapes


def trained(shapes):
    """Without what follows from the sizes."""
    return {n: s for n, s in shapes.items() if not n.endswith(("_index", "_mask"))}


def swin_backbone(shapes):
    """What a backbone keeps of it: no head, an output norm per stage in place of the last norm."""
    kept = {n: s for n, s in shapes.items() if not n.startswith(("head.", "norm."))}
    width = shapes["patch_embed.proj.bias"][0]
    for stage in range(4):
        for end in ("weight", "bias"):
            kept[f"norm{stage}.{end}"] = (width * 2**stage,)
    return module_of(kept)


def test_swin_of_torchvision_in_the_official_names():
    with torch.device("meta"):
        listed = shapes_of(swin_t(weights=None))
    renamed = weights.torchvision_swin_names(listed)
    assert trained(renamed) == trained(official_swin())
    assert weights.torchvision_swin_names(renamed) == renamed


def test_both_kinds_of_swin_files_fill_the_same_backbone(save):
    sizes = dict(depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8])
    theirs = values_for(shapes_of(SwinTransformer([4, 4], 8, window_size=[7, 7], **sizes)))
    shapes = official_swin(8, sizes["depths"], sizes["num_heads"])
    renamed = weights.torchvision_swin_names(theirs)
    authors = {name: renamed[name] for name in trained(shapes)} | {
        name: torch.zeros(shape) for name, shape in shapes.items() if name not in trained(shapes)
    }
    states = []
    for content in (theirs, {"model": authors}, {"module." + n: v for n, v in theirs.items()}):
        backbone = swin_backbone(shapes)
        report = weights.load(backbone, save(content))
        assert report.source == report.target and "8 wide, 6 blocks" in report.source
        assert report.random == ("norm0", "norm1", "norm2", "norm3")
        assert report.whole and not report.unexpected
        reasons = {why.split(",")[0]: len(names) for why, names in report.dropped.items()}
        assert reasons["head.*"] == reasons["norm.*"] == 2
        states.append(backbone.state_dict())
    assert same(states[0], states[1]) and same(states[0], states[2])
    assert all(torch.equal(states[0][name], renamed[name]) for name in report.loaded)


def test_output_norms_of_a_swin_file_are_loaded_or_missed(save):
    shapes = official_swin(width=8, depths=(2, 2, 2, 2), heads=(1, 1, 1, 1))
    backbone = swin_backbone(shapes)
    content = values_for(shapes_of(backbone))
    assert weights.load(backbone, save(content)).random == ()
    assert torch.equal(backbone.state_dict()["norm2.bias"], content["norm2.bias"])
    del content["norm2.bias"]
    with pytest.raises(weights.LoadError, match=r"1 are missing \(norm2\.bias\)"):
        weights.load(backbone, save(content))


# Recognising


def test_sizes_are_recognised():
    with torch.device("meta"):
        models = (mobilenet_v2(weights=None), resnet18(weights=None))
        wide = mobilenet_v2(weights=None, width_mult=1.4)
    for letter, build in (("T", topformer_tiny), ("S", topformer_small), ("B", topformer_base)):
        assert weights.recognise(build().state_dict()) == f"TopFormer-{letter}"
    for size, letter in (("tiny", "T"), ("small", "S"), ("base", "B"), ("large", "L")):
        sea = zoo.build_backbone(f"seaformer_{size}").state_dict()
        wrapped = {f"module.backbone.{name}": value for name, value in sea.items()}
        assert weights.recognise(wrapped) == f"SeaFormer-{letter}"
    for letter, width, depth in (("T", 96, 6), ("S", 96, 18), ("B", 128, 18), ("L", 192, 18)):
        shapes = official_swin(width, (2, 2, depth, 2), window=12)
        swin = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        assert weights.recognise(swin) == f"Swin-{letter}, window 12"
    found = [weights.recognise(module.state_dict()) for module in (model_of(), *models, wide)]
    assert found[:2] == ["MobileInst with TopFormer-T", "MobileNetV2"]
    assert "not known here (conv1.weight" in found[2]
    assert found[3].startswith("MobileNetV2 of another size (448 channels")


# Our own checkpoints


def checkpoint_of(model, classes, **more):
    """The documented form of what a run writes."""
    return {
        "format": weights.FORMAT,
        "config": {"backbone": "topformer_tiny", "num_classes": len(classes)} | SMALL,
        "classes": [{"index": i, "id": 10 * i, "name": name} for i, name in enumerate(classes)],
        "model": model.state_dict(),
        "average": None,
        "options": {"lr": 1e-3},
    } | more


@pytest.fixture
def trained_model():
    """With a class layer whose rows are told apart by their values."""
    model = model_of(3, seed=5, semantic_weight=1.0)
    model.load_state_dict(values_for(shapes_of(model), seed=5))
    return model


HEADS = ("instance_decoder.heads.classes.weight", "instance_decoder.heads.classes.bias")
PLACES = ("mask", "x3", "x4", "x5", "x6")
ROWS = (
    *HEADS,
    *(f"semantic_heads.{place}.{part}" for place in PLACES for part in ("weight", "bias")),
)


def test_the_model_names_every_layer_with_a_row_per_class():
    state = model_of(7, semantic_weight=1.0).state_dict()
    assert {name for name, value in state.items() if value.shape[:1] == (7,)} == set(ROWS)
    assert {name for name in state if name.startswith(MobileInst.class_layers)} == set(ROWS)


def test_rows_of_same_named_classes_come_over(save, trained_model):
    path = save(checkpoint_of(trained_model, ["cat", "dog", "fox"]))
    model = model_of(4, semantic_weight=1.0)
    drawn = snapshot(model)
    report = weights.load(model, path, classes=["fox", "hen", "cat", "owl"])
    theirs, ours = trained_model.state_dict(), model.state_dict()
    for name in ROWS:
        expected = torch.stack((theirs[name][2], drawn[name][1], theirs[name][0], drawn[name][3]))
        assert torch.equal(ours[name], expected), name
    others = theirs.keys() - set(ROWS)
    assert all(torch.equal(ours[name], theirs[name]) for name in others)
    assert (report.carried, report.new) == (("fox", "cat"), ("hen", "owl"))
    assert "from the file: fox, cat; random start: hen, owl" in report.text
    assert report.whole and report.random == ()


@pytest.mark.parametrize("classes", [["cat", "dog", "fox"], ["fox", "cat", "dog"]])
def test_an_identical_class_list_brings_everything(save, trained_model, classes):
    path = save(checkpoint_of(trained_model, ["cat", "dog", "fox"]))
    model = model_of(3, semantic_weight=1.0)
    report = weights.load(model, path, classes=classes)
    order = [["cat", "dog", "fox"].index(name) for name in classes]
    theirs = trained_model.state_dict()
    assert same(model.state_dict(), theirs | {name: theirs[name][order] for name in ROWS})
    assert report.carried == tuple(classes) and report.new == ()


def test_new_rows_keep_their_precision(save, trained_model):
    """Half the bits in the file are none of the model's business where the file has no rows."""
    half = {n: v.half() if v.ndim else v for n, v in trained_model.state_dict().items()}
    path = save(checkpoint_of(trained_model, ["cat", "dog", "fox"]) | {"model": half})
    model = model_of(2)
    drawn = snapshot(model)
    report = weights.load(model, path, classes=["owl", "dog"])
    weight = model.state_dict()[HEADS[0]]
    assert torch.equal(weight[0], drawn[HEADS[0]][0])
    assert torch.equal(weight[1], half[HEADS[0]][1].float())
    assert (report.carried, report.new) == (("dog",), ("owl",))


def test_the_average_is_what_a_checkpoint_is_known_for(save, trained_model):
    average = {name: value + 1 for name, value in trained_model.state_dict().items()}
    path = save(checkpoint_of(trained_model, ["a", "b", "c"], average=average))
    model = model_of(3, semantic_weight=1.0)
    assert weights.load(model, path, classes=["a", "b", "c"]).container == "average"
    assert same(model.state_dict(), average)


def test_parts_that_only_training_uses_may_differ(save, trained_model):
    model = model_of(3)
    path = save(checkpoint_of(trained_model, ["a", "b", "c"]))
    report = weights.load(model, path, classes=["a", "b", "c"])
    assert list(report.dropped) == ["semantic_heads.*, only training uses it, and it is off here"]
    theirs = trained_model.state_dict()
    kept = {name: theirs[name] for name in theirs if not name.startswith("semantic_heads.")}
    assert report.whole and same(model.state_dict(), kept)
    back = save(checkpoint_of(model, ["a", "b", "c"]))
    report = weights.load(model_of(3, semantic_weight=1.0), back, classes=["a", "b", "c"])
    assert report.whole and report.random == ("semantic_heads",)
    assert re.search(r"^random start semantic_heads$", report.text, re.M)


def test_the_backbone_of_a_checkpoint_alone(save, trained_model, backbone):
    report = weights.load(backbone, save(checkpoint_of(trained_model, ["a", "b", "c"])))
    assert same(backbone.state_dict(), trained_model.backbone.state_dict())
    assert report.whole and not report.unexpected and report.prefixes == ("backbone.",)


def test_a_plain_state_dict_of_a_whole_model(save, trained_model):
    path = save({f"module.{n}": v for n, v in trained_model.state_dict().items()})
    model = model_of(3, semantic_weight=1.0)
    report = weights.load(model, path)
    assert same(model.state_dict(), trained_model.state_dict())
    assert "has no class names" in report.warnings[0]
    with pytest.raises(weights.LoadError, match="12 have another shape"):
        weights.load(model_of(2, semantic_weight=1.0), path)


def test_a_checkpoint_of_another_architecture(save, trained_model):
    path = save(checkpoint_of(trained_model, ["a", "b", "c"]))
    model = model_of(3, width=24, semantic_weight=1.0)
    config = {"backbone": "topformer_tiny", "num_classes": 3} | SMALL | {"width": 24}
    before = snapshot(model)
    with pytest.raises(weights.LoadError, match=r"build the .* keywords, width=16 \(24 here\)$"):
        weights.load(model, path, classes=["a", "b", "c"], config=config)
    assert same(model.state_dict(), before)
    report = weights.load(model, path, classes=["a", "b", "c"], config=config, allow_partial=True)
    assert same(model.backbone.state_dict(), trained_model.backbone.state_dict())
    after = model.state_dict()
    outside = {name for name in before if not name.startswith("backbone.")}
    assert all(torch.equal(after[name], before[name]) for name in outside)
    assert not report.whole and (report.carried, report.new) == ((), ())
    assert "STARTS FROM RANDOM VALUES: mask_decoder, instance_decoder" in report.text


def test_keywords_without_a_shape_are_reported(save, trained_model):
    path = save(checkpoint_of(trained_model, ["a", "b", "c"]))
    config = {"backbone": "topformer_tiny", "num_classes": 3} | SMALL | {"num_heads": 4}
    report = weights.load(model_of(3), path, classes=["a", "b", "c"], config=config)
    assert report.warnings == ("the checkpoint's model was built with num_heads=2 (4 here)",)


@pytest.mark.parametrize(
    "classes, listed, message",
    [
        (None, ["a", "b", "c"], r"classes \(a, b, c\) are matched by name; give the names"),
        (["a", "b"], ["a", "b", "c"], "of the model is 3x16, and there are 2 class names"),
        (["a", "b", "c"], ["a", "b"], "of the file is 3x16, and there are 2 class names"),
    ],
)
def test_class_names_that_do_not_tell_the_rows(save, trained_model, classes, listed, message):
    model = model_of(3)
    before = snapshot(model)
    with pytest.raises(weights.LoadError, match=message):
        weights.load(model, save(checkpoint_of(trained_model, listed)), classes=classes)
    assert same(model.state_dict(), before)


def test_a_checkpoint_without_its_class_list(save, trained_model):
    content = checkpoint_of(trained_model, ["a", "b", "c"])
    for classes in (None, ["a", "b", "c"], [{"index": 0}]):
        with pytest.raises(weights.LoadError, match="without a whole config and class list; give"):
            weights.load(model_of(3), save(content | {"classes": classes}), classes=["a"])


# Refusals are in test_refused_files


def test_a_partial_load_is_reported_in_capitals(save, tensors):
    model = model_of()
    before = snapshot(model)
    kept = {name: value for name, value in tensors.items() if ".layer9." not in name}
    report = weights.load(model, save(kept), allow_partial=True)
    state = model.state_dict()
    for name in tensors:
        expected = kept.get(name, before[f"backbone.{name}"])
        assert torch.equal(state[f"backbone.{name}"], expected)
    assert not report.whole and len(report.missing) == 15 and not report.other_shape
    assert sum(report.missing.values()) == sum(
        p.numel() for p in model.backbone.tpm.layer9.parameters()
    )
    text = report.text
    assert "STARTS FROM RANDOM VALUES: mask_decoder, instance_decoder, tpm.layer9" in text
    assert "15 missing in the file" in text and "NOT ALL of TopFormer-T" in text
    assert "THE REST STARTS FROM RANDOM VALUES" in report.headline


class Hollow(nn.Module):
    """Its state dict holds copies: what is written there reaches nothing."""

    def __init__(self):
        super().__init__()
        self.inner = topformer_tiny()

    def state_dict(self, *args, **kwargs):
        return {name: value.clone() for name, value in self.inner.state_dict().items()}


def test_values_that_do_not_arrive_are_noticed(save, tensors):
    module = Hollow()
    before = snapshot(module)
    with pytest.raises(weights.LoadError, match="314 tensors of TopFormer-T .* do not hold what"):
        weights.load(module, save(tensors))
    assert same(module.state_dict(), before)


def test_tensors_that_share_memory_are_put_back(save, backbone, tensors):
    """Two names for the same numbers, and a file that wants two things of them."""
    backbone.tpm.layer3.conv[0].bn.weight = backbone.tpm.layer3.conv[2].bn.weight
    before = snapshot(backbone)
    with pytest.raises(weights.LoadError, match="1 tensors of TopFormer-T"):
        weights.load(backbone, save(tensors))
    assert same(backbone.state_dict(), before)


# The report


def test_fingerprints_show_whether_anything_changed(save, backbone, tensors):
    path = save(tensors)
    first = weights.load(backbone, path)
    second = weights.load(backbone, path)
    assert first.before != first.after == second.before == second.after
    assert "held these values already" in second.text and "already" not in first.text
    other = dict(tensors)
    other["tpm.layer4.conv.0.bn.bias"] = tensors["tpm.layer4.conv.0.bn.bias"] + 1e-7
    assert weights.load(backbone, save(other)).after != first.after


def test_statistics_of_an_untrained_network_are_reported(save):
    path = save(topformer_tiny().state_dict())
    (warning,) = weights.load(topformer_tiny(), path).warnings
    assert "BatchNorm statistics are those of an untrained network" in warning


def test_tensors_without_a_place_are_reported(save, backbone, tensors):
    report = weights.load(backbone, save(tensors | {"extra.weight": torch.ones(2, 2)}))
    assert report.whole and report.unexpected == {"extra.weight": 4}
    assert report.warnings == ("1 tensors of the file have no place here (extra.weight)",)


def test_a_report_is_short_aligned_and_plain(save, tensors):
    half = {f"module.{n}": v.half() if v.ndim else v for n, v in tensors.items()}
    content = {"state_dict_ema": half | {"module.head.l.bias": torch.ones(5)}}
    report = weights.load(model_of(), save(content))
    lines = report.text.splitlines()
    assert 5 <= len(lines) <= 10
    assert all(re.match(r"\S[^ ]*( \S+)* +\S", line) and line[12] == " " for line in lines)
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain == report.as_dict()
    assert plain["loaded"]["tensors"] == 314 and plain["loaded"]["parameters"] == 1_293_888
    assert plain["random"] == ["mask_decoder", "instance_decoder"] and plain["whole"] is True
    assert plain["headline"] == report.headline and "TopFormer-T" in plain["headline"]


def test_a_swin_of_torchvision_fills_ours(save):
    theirs = swin_t(weights=None)
    swin = zoo.build_backbone("swin_tiny")
    report = weights.load(swin, save(theirs.state_dict()))
    assert report.whole and size_of(report)[1] == 27_517_818
    assert report.random == ("norm0", "norm1", "norm2", "norm3")
    merging = theirs.features[2].reduction.weight
    assert torch.equal(swin.state_dict()["layers.0.downsample.reduction.weight"], merging)
