"""The authors' checkpoints of Mask2Former, by the lists of their names: pickles in, models out."""

import json
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mobileinst import weights, zoo

MODEL = "mask2former_swin_tiny"
CLASS_LAYER = ("query_decoder.class_embed.weight", "query_decoder.class_embed.bias")
# A small model, for what does not depend on the published sizes.
SMALL = dict(
    embed_dim=16, depths=(1, 1, 2, 1), backbone_heads=(1, 2, 2, 4), window_size=4, width=64,
    mask_dim=16, num_heads=4, num_encoder_layers=2, encoder_ffn_width=24, num_queries=7,
    num_layers=4, ffn_width=40,
)  # fmt: skip


def listed(names):
    """Name -> an array of the shape and dtype that a list has for it, unlike every other."""
    arrays = {}
    for number, (name, (shape, dtype)) in enumerate(names.items()):
        array = np.full(shape, number, dtype)
        array += np.arange(shape[-1]).astype(dtype)
        array.T[...] += 3 * np.arange(shape[0]).astype(dtype)
        arrays[name] = array
    return arrays


def ours(name):
    """A name of the authors' in ours, by hand."""
    name = name.replace("sem_seg_head.pixel_decoder.", "pixel_decoder.")
    return name.replace("sem_seg_head.predictor.", "query_decoder.")


def theirs(name):
    """The way back."""
    starts = {"pixel_decoder.": "sem_seg_head.", "query_decoder.": "sem_seg_head.predictor."}
    start = next((start for start in starts if name.startswith(start)), "")
    rest = name.removeprefix("query_decoder.") if start == "query_decoder." else name
    return starts.get(start, "") + rest


def write(path, tensors, protocol=4):
    """As the authors do."""
    content = {"model": tensors, "__author__": "somebody", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.fixture(scope="module")
def arrays(reference):
    found = listed(reference("mask2former_swin_tiny")["official"])
    assert len(found) == 482
    return found


def in_their_names(model):
    tensors = {theirs(name): value.numpy() for name, value in model.state_dict().items()}
    rows = len(model.query_decoder.class_embed.bias)
    index = np.zeros((16, 16), dtype="i8")
    tensors["backbone.layers.0.blocks.0.attn.relative_position_index"] = index
    return tensors | {"criterion.empty_weight": np.ones(rows, dtype="f4")}


def small(num_classes=3, seed=0, **keywords):
    return zoo.build(MODEL, num_classes, seed=seed, **(SMALL | keywords))[0]


@pytest.fixture(scope="module")
def trained():
    return small(seed=5)


@pytest.fixture
def file(tmp_path, trained):
    """A function: a file of the small model, with some of its tensors changed or left out."""

    def file(changes=None, name="model.pkl", **options):
        tensors = in_their_names(trained) | (changes or {})
        kept = {name: value for name, value in tensors.items() if value is not None}
        return write(tmp_path / name, kept, **options)

    return file


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# By the lists of names


def test_every_official_name_has_its_place(arrays, tmp_path):
    """All of a model in the published size, and the report of it."""
    model = zoo.build(MODEL, 80)[0]
    report = weights.load(model, write(tmp_path / "model_final.pkl", arrays))
    left = {name for names in report.dropped.values() for name in names}
    assert {ours(name) for name in arrays} == {*report.loaded, *left}
    assert report.whole and not report.unexpected and not report.missing and not report.random
    assert (len(report.loaded), sum(report.loaded.values())) == (469, 47_421_643)
    state = model.state_dict()
    for name, array in arrays.items():
        if ours(name) not in left:
            assert np.array_equal(state[ours(name)].numpy(), array), name
    assert {why: len(names) for why, names in report.dropped.items()} == {
        "buffers that follow from the sizes": 12,
        "criterion.*, class weights of the loss": 1,
    }
    assert report.source == report.target == "Mask2Former with Swin-T, window 7"
    assert (report.container, report.naming, report.prefixes) == ("model", "its authors", ())
    assert re.search(r"^found +'model', in the names of its authors$", report.text, re.M)
    assert re.search(r"^fingerprint +\w{12} -> \w{12}$", report.text, re.M)
    assert "has no class names, its rows were taken" in report.warnings[0]
    assert json.loads(json.dumps(report.as_dict()))["naming"] == "its authors"


def test_the_hubs_names_and_the_authors_mean_the_same(reference, arrays):
    """The list of the hub's names and shapes, and a table of what becomes of which name."""
    keys = reference("mask2former_swin_tiny")
    tensors = {}
    for name, like in listed(keys["hub"]).items():
        there = keys["hub_to_official"].get(name)
        whole, third = there if isinstance(there, list) else (there, None)
        array = arrays.get(whole, like)
        tensors[name] = torch.from_numpy(array if third is None else np.split(array, 3)[third])
        assert tuple(tensors[name].shape) == like.shape
    assert len(tensors) == 566
    naming, hubs = weights.in_our_names(tensors)
    _, authors = weights.in_our_names({n: torch.from_numpy(a) for n, a in arrays.items()})
    assert naming == "Hugging Face"
    assert same({n: v for n, v in hubs.items() if n in authors}, authors)
    assert all(name.startswith("backbone.norm.") for name in hubs.keys() - authors.keys())


# By a small model


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(file, trained, protocol):
    model = small()
    weights.load(model, file(protocol=protocol))
    assert same(model.state_dict(), trained.state_dict())


def test_another_number_of_classes_draws_the_class_layer_anew(file, trained):
    model = small(2)
    drawn = {name: model.state_dict()[name].clone() for name in CLASS_LAYER}
    report = weights.load(model, file(), classes=["shrimp", "organ"])
    assert report.whole and not report.warnings and not report.missing
    assert report.random == ("query_decoder.class_embed",)
    assert (report.carried, report.new) == ((), ("shrimp", "organ"))
    assert "2 of query_decoder.class_embed, with rows for 3 classes" in report.text
    assert re.search(r"^random start query_decoder.class_embed$", report.text, re.M)
    assert same(model.state_dict(), trained.state_dict() | drawn)


def test_the_backbone_alone(file, trained):
    model = small(backbone="swin_tiny")
    report = weights.load(model.backbone, file())
    assert same(model.backbone.state_dict(), trained.backbone.state_dict())
    assert report.whole and not report.unexpected and not report.random
    assert report.prefixes == ("backbone.",)
    assert [why.split(",")[0] for why in report.dropped] == [
        "pixel_decoder.*", "query_decoder.*", "buffers that follow from the sizes", "criterion.*",
    ]  # fmt: skip


@pytest.mark.parametrize("decoder", ["with a name", "without"])
@pytest.mark.parametrize("start", ["query_feat", "static_query"])
def test_names_of_older_files(tmp_path, trained, start, decoder):
    tensors = in_their_names(trained)
    renamed = OrderedDict(
        (
            name.replace("query_feat", start)
            if decoder == "with a name"
            else name.replace("query_feat", start).replace("pixel_decoder.", ""),
            value,
        )
        for name, value in tensors.items()
    )
    model = small()
    report = weights.load(model, write(tmp_path / "old.pkl", renamed))
    assert same(model.state_dict(), trained.state_dict()) and not report.unexpected


def test_what_torch_saved_in_their_names(tmp_path, trained):
    """Checkpoints of their training runs, also of several processes."""
    for prefix in ("", "module."):
        tensors = {
            prefix + name: torch.from_numpy(array)
            for name, array in in_their_names(trained).items()
        }
        content = {"model": tensors, "optimizer": {"state": {}}, "iteration": 7}
        torch.save(content, tmp_path / "model.pth")
        model = small()
        report = weights.load(model, tmp_path / "model.pth")
        assert same(model.state_dict(), trained.state_dict())
        assert report.prefixes == ((prefix,) if prefix else ())


NORM = "sem_seg_head.predictor.decoder_norm.weight"
CLASS_BIAS = "sem_seg_head.predictor.class_embed.bias"
QUERIES = "sem_seg_head.predictor.query_feat.weight"
SAME_NAME = "sem_seg_head.predictor.static_query.weight"
ONES = np.ones


@pytest.mark.parametrize(
    "changes, message",
    [
        ({NORM: None}, r"1 are missing \(query_decoder.decoder_norm.weight\); get the whole file"),
        ({NORM: ONES(3, "f4")}, "1 have another shape .*decoder_norm.weight is 3 there, 64 here"),
        (
            {QUERIES: ONES((9, 64), "f4")},
            "1 have another shape .*query_feat.weight is 9x64 .*; build the",
        ),
        ({CLASS_BIAS: ONES(9, "f4")}, "1 have another shape .*class_embed.bias is 9 there, 4 here"),
        ({CLASS_BIAS: ONES((), "f4")}, "1 have another shape .*class_embed.bias is one number"),
        ({CLASS_BIAS: None}, r"1 are missing \(query_decoder.class_embed.bias\)"),
        ({NORM: np.full(64, np.nan, "f4")}, "1 of its tensors hold values that are not finite"),
        ({SAME_NAME: ONES((7, 64), "f4")}, "static_query.weight and another .* are both query_dec"),
        ({NORM: np.array(["x"] * 64, dtype=object)}, "holds arrays of 'O8', and weights are num"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(file, changes, message):
    path = file(changes)
    for num_classes in (3, 5):
        model = small(num_classes)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        if num_classes == 5:
            message = message.replace(
                "1 have another shape .*class", "2 have another shape .*class"
            )
            message = message.replace("embed.bias is 9 there, 4 here", "embed.weight is 4x64 there")
            message = message.replace("embed.bias is one number", "embed.weight is 4x64 there")
        with pytest.raises(weights.LoadError, match=message) as error:
            weights.load(model, path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
        assert same(model.state_dict(), before)


def test_more_than_there_is_place_for_is_told(file):
    report = weights.load(small(), file({"sem_seg_head.predictor.more.bias": ONES(3, "f4")}))
    assert [*report.unexpected] == ["query_decoder.more.bias"]
    assert "1 tensors of the file have no place here (query_decoder.more.bias)" in report.warnings


def test_another_backbone_is_named(tmp_path, trained):
    tensors = {n: v for n, v in in_their_names(trained).items() if not n.startswith("backbone.")}
    tensors = {"backbone.stem.conv1.weight": ONES((64, 3, 7, 7), "f4")} | tensors
    path = write(tmp_path / "resnet.pkl", tensors)
    with pytest.raises(weights.LoadError, match=r"not known here \(stem.conv1.weight"):
        weights.load(small(), path)
    with pytest.raises(weights.LoadError, match=r"0 of 86 tensors fit, 86 are missing"):
        weights.load(small().backbone, path)


def test_their_pictures_come_out_the_same(file, trained):
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    model = small().eval()
    weights.load(model, file())
    with torch.no_grad():
        got, want = model(images), trained.eval()(images)
    assert torch.equal(got["mask_logits"], want["mask_logits"])
