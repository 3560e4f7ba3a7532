"""Weights from files of every documented form are loaded completely, with a report."""

import argparse
import json
import re

import pytest
import torch
from torchvision.models import SwinTransformer, mobilenet_v2, resnet18, swin_t

from mobileinst import weights, zoo
from mobileinst.backbones.topformer import topformer_tiny
from mobileinst.mobile.model import MobileInst
from tests import small

SMALL = small.SMALL["mobileinst_topformer_tiny"]


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

ARGS = argparse.Namespace(lr=0.1, sizes=[1, 2])
CONTAINERS = {
    "at the top": ("", lambda good, bad: good),
    "timm": (
        "state_dict_ema",
        lambda good, bad: {"args": ARGS, "state_dict": bad, "state_dict_ema": good},
    ),
    "no average": ("state_dict", lambda good, bad: {"state_dict_ema": None, "state_dict": good}),
    "mmcv": ("state_dict", lambda good, bad: {"meta": {"epoch": 3}, "state_dict": good}),
    "Swin's": ("model", lambda good, bad: {"model": good, "epoch": 3}),
    "average": ("average", lambda good, bad: {"average": good}),
}


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("whole", [False, True])
def test_containers(save, backbone, tensors, kind, whole):
    container, wrap = CONTAINERS[kind]
    module = model_of() if whole else backbone
    rest = {n: v for n, v in snapshot(module).items() if whole and not n.startswith("backbone.")}
    bad = {name: value + 1 for name, value in tensors.items()}
    report = weights.load(module, save(wrap(tensors, bad)))
    assert same(getattr(module, "backbone", module).state_dict(), tensors)
    assert report.container == container and size_of(report) == (314, 1_293_888)
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


@pytest.mark.parametrize(
    "name, source, size, head, dropped",
    [
        ("topformer_tiny", "TopFormer-T", (314, 1_293_888), "head.l.weight", {"SIM.*": 54}),
        ("topformer_tiny", "TopFormer-T", (314, 1_293_888), "decode_head.x.bias", {"SIM.*": 54}),
        ("seaformer_tiny", "SeaFormer-T", (426, 1_620_096), "linear.weight", {}),
    ],
)
def test_official_names(save, reference, name, source, size, head, dropped):
    theirs = values_for(reference(name)["shapes"])
    report = weights.load(
        backbone := zoo.build_backbone(name), save(theirs | {head: torch.ones(9)})
    )
    assert same(backbone.state_dict(), {n: theirs[n] for n in backbone.state_dict()})
    assert size_of(report) == size and report.whole
    assert report.source == source and not report.unexpected and not report.warnings
    found = {reason.split(",")[0]: len(names) for reason, names in report.dropped.items()}
    assert found == dropped | {f"{head.split('.')[0]}.*": 1}


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


# Swin


def small_swin():
    return zoo.build_backbone(
        "swin_tiny", embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=7
    )


def test_swin_of_torchvision_in_the_official_names(reference):
    """Their index of relative positions, a constant, has another shape."""
    with torch.device("meta"):
        theirs = shapes_of(swin_t(weights=None))
    renamed = weights.backbone_names(theirs)
    official = {
        name.removeprefix("backbone."): tuple(shape)
        for name, (shape, _) in reference("mask2former_swin_tiny")["official"].items()
        if re.match(r"backbone\.(?!norm\d)", name)
    }
    assert renamed.keys() - official.keys() == {
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }
    constant = "relative_position_index"
    assert {n: s for n, s in official.items() if not n.endswith(constant)} == {
        n: renamed[n] for n in official if not n.endswith(constant)
    }
    assert official.keys() <= renamed.keys()
    assert weights.backbone_names(renamed) == renamed


def test_all_forms_of_swin_files_fill_the_same_backbone(save):
    theirs = SwinTransformer([4, 4], 16, [2, 2, 2, 2], [1, 2, 4, 8], window_size=[7, 7])
    theirs = values_for(shapes_of(theirs))
    authors = weights.backbone_names(theirs)
    constants = {"layers.0.blocks.1.attn_mask": torch.zeros(2)}
    wanted = [name for name in small_swin().state_dict() if not re.match(r"norm\d", name)]
    for content in (
        theirs,
        {"model": authors | constants},
        {"module." + name: value for name, value in theirs.items()},
    ):
        backbone = small_swin()
        report = weights.load(backbone, save(content))
        state = backbone.state_dict()
        assert report.source == report.target and "16 wide, 2 blocks" in report.source
        assert report.random == ("norm0", "norm1", "norm2", "norm3")
        assert report.whole and not report.unexpected and [*report.loaded] == wanted
        reasons = {why.split(",")[0]: len(names) for why, names in report.dropped.items()}
        assert reasons["head.*"] == reasons["norm.*"] == 2
        assert all(torch.equal(state[name], authors[name]) for name in wanted)


# Recognising


def test_sizes_are_recognised():
    sizes = {
        "TopFormer-T": "topformer_tiny", "TopFormer-S": "topformer_small",
        "TopFormer-B": "topformer_base", "SeaFormer-T": "seaformer_tiny",
        "SeaFormer-S": "seaformer_small", "SeaFormer-B": "seaformer_base",
        "SeaFormer-L": "seaformer_large", "Swin-T, window 7": "swin_tiny",
        "Swin-S, window 7": "swin_small", "Swin-B, window 12": "swin_base",
        "Swin-L, window 12": "swin_large", "MobileNetV2": "mobilenet_v2",
    }  # fmt: skip
    with torch.device("meta"):
        others = resnet18(weights=None), mobilenet_v2(weights=None, width_mult=1.4)
        for known, name in sizes.items():
            state = zoo.build_backbone(name).state_dict()
            assert weights.recognise(state) == known
            assert weights.recognise({f"module.backbone.{n}": v for n, v in state.items()}) == known
    assert weights.recognise(model_of().state_dict()) == "MobileInst with TopFormer-T"
    found = [weights.recognise(module.state_dict()) for module in others]
    assert "not known here (conv1.weight" in found[0]
    assert found[1].startswith("MobileNetV2 of another size (448 channels")


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
    """With a class layer whose rows are distinguished by their values."""
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


def test_rows_of_same_named_classes_are_taken_over(save, trained_model):
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


def test_new_rows_keep_their_precision(save, trained_model):
    """Rows that the file does not have are not rounded to its dtype."""
    half = {n: v.half() if v.ndim else v for n, v in trained_model.state_dict().items()}
    path = save(checkpoint_of(trained_model, ["cat", "dog", "fox"]) | {"model": half})
    model = model_of(2)
    drawn = snapshot(model)
    report = weights.load(model, path, classes=["owl", "dog"])
    weight = model.state_dict()[HEADS[0]]
    assert torch.equal(weight[0], drawn[HEADS[0]][0])
    assert torch.equal(weight[1], half[HEADS[0]][1].float())
    assert (report.carried, report.new) == (("dog",), ("owl",))


def test_the_average_is_preferred(save, trained_model):
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


@pytest.mark.parametrize(
    "classes, listed, message",
    [
        (None, ["a", "b", "c"], r"classes \(a, b, c\) are matched by name; give the names"),
        (["a", "b"], ["a", "b", "c"], "is 3x16 there and 3x16 here, for 3 and 2 class names"),
        (["a", "b", "c"], ["a", "b"], "is 3x16 there and 3x16 here, for 2 and 3 class names"),
    ],
)
def test_class_names_that_do_not_match_the_rows(save, trained_model, classes, listed, message):
    model = model_of(3)
    before = snapshot(model)
    with pytest.raises(weights.LoadError, match=message):
        weights.load(model, save(checkpoint_of(trained_model, listed)), classes=classes)
    assert same(model.state_dict(), before)


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


# The report


def test_half_precision_and_an_untrained_network_are_reported(save, backbone, tensors):
    half = {n: v.half() if v.is_floating_point() else v for n, v in tensors.items()}
    report = weights.load(backbone, save(half))
    assert same(backbone.state_dict(), {n: v.half().to(v.dtype) for n, v in tensors.items()})
    assert "263 tensors from float16 to float32" in report.text and not report.warnings
    (warning,) = weights.load(backbone, save(topformer_tiny().state_dict())).warnings
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


@pytest.mark.parametrize("queries, report", [(4, "4 of 6"), (9, "6 of 6 from the file; random st")])
def test_queries_are_carried_over(save, queries, report):
    name = "mobileinst_topformer_tiny"
    model = zoo.build(name, 1, **SMALL)[0]
    other = zoo.build(name, 1, seed=1, **SMALL | {"num_queries": queries})[0]
    before = other.instance_decoder.query_features.weight.clone()
    found = weights.load(other, save(model.state_dict()), classes=["a"])
    after, there = (one.instance_decoder.query_features.weight for one in (other, model))
    assert found.whole and found.queries.startswith(report)
    assert torch.equal(after[:6], there[:queries]) and torch.equal(after[6:], before[6:])


GROWN = {  # system, keywords of the file and of the model, what starts from random values
    "finer masks": ("mobileinst", {}, {"mask_stride": 4}, "mask_decoder.fine_pixels"),
    "coarser masks": ("mobileinst", {"mask_stride": 4}, {}, None),
    "placed queries": ("mobileinst", {}, {"placed": True}, "instance_decoder.places"),
    "attention": ("mobileinst", {"self_attention": False}, {}, "instance_decoder."),
    "more layers": ("mask2former", {"num_layers": 1}, {"num_layers": 2}, "query_decoder.transf"),
    "fewer layers": ("mask2former", {"num_layers": 2}, {"num_layers": 1}, None),
}


def with_keywords(system, keywords, seed):
    """A small model and its keywords."""
    sizes = SMALL if system == "mobileinst" else {"width": 32, "num_encoder_layers": 1}
    config = zoo.config_for(f"{system}_mobilenet_v2", num_classes=1, **sizes | keywords)
    return zoo.build_from_config(config, seed=seed)[0], config.to_dict()


@pytest.mark.parametrize("name", GROWN)
def test_other_keywords_carry_over_what_is_in_the_file(save, name):
    """All tensors in both are those of the file; the report names what is not in it."""
    system, there, here, random = GROWN[name]
    classes = [{"index": 0, "id": 1, "name": "a"}]
    old, config = with_keywords(system, there, 0)
    file = {"format": weights.FORMAT, "config": config, "classes": classes}
    path = save(file | {"model": old.state_dict()})
    new, config = with_keywords(system, here, 1)
    before = snapshot(new)
    found = weights.load(new, path, classes=["a"], config=config)
    expected = before | {k: v for k, v in old.state_dict().items() if k in before}
    assert found.whole and same(new.state_dict(), expected)
    assert [each for each in found.random if each.startswith(random or "")] == [*found.random]
    assert bool(found.random) == bool(random) and found.warnings[0].startswith("the checkpoint's")
    lost = dict(list(old.state_dict().items())[:-1])
    with pytest.raises(weights.LoadError, match="missing"):
        weights.load(new, save(file | {"model": lost}), classes=["a"], config=config)
    with pytest.raises(weights.LoadError, match="another shape"):
        wide = with_keywords(system, here | {"width": 64}, 1)
        weights.load(wide[0], path, classes=["a"], config=wide[1])


def test_an_efficientnet_with_squeeze_excite_is_no_lite(save):
    """B0 has all tensors of Lite0 in the same shapes, and more."""
    backbone = zoo.build_backbone("efficientnet_lite0")
    more = {f"blocks.0.se.{name}.weight": torch.ones(8, 8, 1, 1) for name in ("fc1", "fc2")}
    path = save(backbone.state_dict() | more)
    assert "EfficientNet with squeeze-excite" in weights.open_weights(path).source
    with pytest.raises(weights.LoadError, match="2 have no place .*blocks.0.se.fc1.weight"):
        weights.load(backbone, path)
