"""Published files of Mask2Former, the hub's folders and the authors' pickles, by their names."""

import json
import pickle
import re

import numpy as np
import pytest
import torch

from mobileinst import weights, zoo
from mobileinst.mask2former.model import Mask2FormerConfig
from mobileinst.mask2former.published import hub_config

# A small model, in the hub's words and in ours. Two channels a group at least.
SWIN = dict(embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=4)
SETTINGS = {
    "architectures": ["Mask2FormerForUniversalSegmentation"],
    "model_type": "mask2former",
    "backbone_config": SWIN | {"model_type": "swin", "drop_path_rate": 0.0},
    "id2label": {"0": "cat", "1": "dog", "2": "hen"},
    "feature_size": 64, "mask_feature_size": 16, "hidden_dim": 64, "encoder_feedforward_dim": 24,
    "encoder_layers": 2, "decoder_layers": 5, "num_attention_heads": 4, "dim_feedforward": 40,
    "num_queries": 7, "train_num_points": 50,
}  # fmt: skip
CONFIG = Mask2FormerConfig(
    num_classes=3, embed_dim=16, depths=(1, 1, 2, 1), backbone_heads=(1, 2, 2, 4), window_size=4,
    drop_path=0.0, width=64, mask_dim=16, num_heads=4, num_encoder_layers=2, encoder_ffn_width=24,
    num_queries=7, num_layers=4, ffn_width=40, train_points=50,
)  # fmt: skip
CLASS_LAYER = "query_decoder.class_embed"
HUB_NORM = "model.transformer_module.decoder.layernorm.weight"
HUB_KEYS = "model.transformer_module.decoder.layers.2.self_attn.k_proj.weight"


def build(num_classes=3, seed=0):
    return zoo.build_from_config(zoo.config_for(CONFIG, num_classes=num_classes), seed=seed)[0]


def ours(name):
    """A name of the authors' in ours, by hand."""
    name = name.replace("sem_seg_head.pixel_decoder.", "pixel_decoder.")
    return name.replace("sem_seg_head.predictor.", "query_decoder.")


def theirs(name):
    name = re.sub(r"^query_decoder\.", "sem_seg_head.predictor.", name)
    return re.sub(r"^pixel_decoder\.", "sem_seg_head.pixel_decoder.", name)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def dropped(report):
    return {why.split(",")[0]: len(names) for why, names in report.dropped.items()}


def listed(names):
    """Name -> a tensor of the shape and dtype that a list has for it, unlike every other."""
    tensors = {}
    for number, (name, (shape, dtype)) in enumerate(names.items()):
        array = np.full(shape, number, dtype)
        array += np.arange(shape[-1]).astype(dtype)
        array.T[...] += 3 * np.arange(shape[0]).astype(dtype)
        tensors[name] = torch.from_numpy(array)
    return tensors


@pytest.fixture(scope="module")
def keys(reference) -> dict:
    return reference("mask2former_swin_tiny")


@pytest.fixture(scope="module")
def model():
    return build(seed=3).eval()


@pytest.fixture(scope="module")
def hub_state(keys, model) -> dict:
    """The tensors of `model` with the names in the hub's files, and what those have besides."""
    state = {"criterion.empty_weight": torch.ones(4)}
    start = "model.pixel_level_module.encoder."
    index = f"{start}encoder.layers.0.blocks.0.attention.self.relative_position_index"
    state |= {index: torch.zeros(16, 16).long(), f"{start}swin.layernorm.weight": torch.ones(128)}
    own = model.state_dict()
    for name, official in keys["hub_to_official"].items():
        whole, third = official if isinstance(official, list) else (official, None)
        if (whole := ours(whole)) in own:
            state[name] = own[whole] if third is None else own[whole].chunk(3)[third].clone()
    return state


@pytest.fixture(scope="module")
def official_state(model) -> dict:
    """The same for the authors' files."""
    state = {theirs(name): value for name, value in model.state_dict().items()}
    index = "backbone.layers.0.blocks.0.attn.relative_position_index"
    return state | {index: torch.zeros(16, 16).long(), "criterion.empty_weight": torch.ones(4)}


def save(path, state):
    torch.save(state, path)


@pytest.fixture
def folder(tmp_path, hub_state, write_safetensors):
    """A function: a folder of the hub with some settings and tensors changed."""

    def folder(settings=None, tensors=None, write=write_safetensors, name="model.safetensors"):
        (tmp_path / "config.json").write_text(json.dumps(SETTINGS | (settings or {})))
        state = hub_state | (tensors or {})
        write(tmp_path / name, {key: value for key, value in state.items() if value is not None})
        return tmp_path

    return folder


@pytest.fixture
def pickled(tmp_path):
    """A function: the authors' file of these tensors."""

    def pickled(tensors, protocol=4):
        arrays = {name: value.numpy() for name, value in tensors.items()}
        content = {"model": arrays, "__author__": "name", "matching_heuristics": True}
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol))
        return tmp_path / "model.pkl"

    return pickled


# Names


def test_every_official_name_has_its_place(keys, pickled):
    """All of a model in the published size, and its report."""
    tensors = listed(keys["official"])
    assert len(tensors) == 482
    model = zoo.build("mask2former_swin_tiny", 80)[0]
    report = weights.load(model, pickled(tensors))
    left = {name for names in report.dropped.values() for name in names}
    assert {ours(name) for name in tensors} == {*report.loaded, *left}
    assert report.whole and not report.unexpected and not report.missing and not report.random
    assert (len(report.loaded), sum(report.loaded.values())) == (469, 47_421_643)
    state = model.state_dict()
    for name, value in tensors.items():
        assert ours(name) in left or torch.equal(state[ours(name)], value), name
    assert dropped(report) == {"buffers that follow from the sizes": 12, "criterion.*": 1}
    assert report.source == report.target == "Mask2Former with Swin-T, window 7"
    assert (report.container, report.naming, report.prefixes) == ("model", "its authors", ())
    assert re.search(r"^found +'model', in the names of its authors$", report.text, re.M)
    assert re.search(r"^fingerprint +\w{12} -> \w{12}$", report.text, re.M)
    assert "has no class names, its rows count as" in report.warnings[0]
    assert json.loads(json.dumps(report.as_dict()))["naming"] == "its authors"


def test_the_hubs_names_and_the_authors_mean_the_same(keys):
    official, tensors = listed(keys["official"]), {}
    for name, like in listed(keys["hub"]).items():
        there = keys["hub_to_official"].get(name)
        whole, third = there if isinstance(there, list) else (there, None)
        value = official.get(whole, like)
        tensors[name] = value if third is None else value.chunk(3)[third]
        assert tensors[name].shape == like.shape
    assert len(tensors) == 566
    naming, hubs = weights.in_our_names(tensors)
    _, authors = weights.in_our_names(official)
    assert naming == "Hugging Face"
    assert same({name: value for name, value in hubs.items() if name in authors}, authors)
    assert all(name.startswith("backbone.norm.") for name in hubs.keys() - authors.keys())


def test_whole_models_are_recognised(model, hub_state):
    with torch.device("meta"):
        tiny, *_ = zoo.build("mask2former_swin_tiny", 2)
    assert weights.recognise(tiny.state_dict()) == "Mask2Former with Swin-T, window 7"
    assert weights.recognise(model.state_dict()).startswith("Mask2Former with Swin of another size")
    assert weights.recognise(hub_state) == "Mask2Former in the names of Hugging Face"


# A file fills a model


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("names", ["hub", "authors"])
def test_what_torch_saved_fills_a_model(tmp_path, model, hub_state, official_state, names, prefix):
    state = hub_state if names == "hub" else official_state
    tensors = {prefix + name: value for name, value in state.items()}
    torch.save({"model": tensors, "optimizer": {"state": {}}, "iteration": 7}, tmp_path / "x.pth")
    loaded = build()
    report = weights.load(loaded, tmp_path / "x.pth")
    assert same(loaded.state_dict(), model.state_dict())
    assert report.whole and not report.unexpected and report.source == report.target
    assert report.prefixes == ((prefix,) if prefix else ())
    expected = {"buffers that follow from the sizes": 1, "criterion.*": 1}
    assert dropped(report) == expected | ({"backbone.norm.*": 1} if names == "hub" else {})


@pytest.mark.parametrize("decoder", ["pixel_decoder.", ""])
@pytest.mark.parametrize("start", ["query_feat", "static_query"])
def test_names_of_older_files(pickled, model, official_state, start, decoder):
    renamed = {
        name.replace("query_feat", start).replace("pixel_decoder.", decoder): value
        for name, value in official_state.items()
    }
    loaded = build()
    report = weights.load(loaded, pickled(renamed))
    assert same(loaded.state_dict(), model.state_dict()) and not report.unexpected


@pytest.mark.parametrize("names", ["hub", "authors"])
def test_another_number_of_classes(folder, pickled, model, official_state, names):
    path = pickled(official_state) if names == "authors" else folder() / "model.safetensors"
    loaded = build(2)
    drawn = {n: value for n, value in copied(loaded).items() if n.startswith(CLASS_LAYER)}
    report = weights.load(loaded, path, classes=["shrimp", "organ"])
    assert same(loaded.state_dict(), model.state_dict() | drawn)
    assert report.whole and not report.warnings and report.random == (CLASS_LAYER,)
    assert (report.carried, report.new) == ((), ("shrimp", "organ"))
    assert f"2 of {CLASS_LAYER}, with rows for 3 classes" in report.text
    assert re.search(rf"^random start {CLASS_LAYER}$", report.text, re.M)


def test_the_backbone_alone(folder, pickled, model, official_state):
    for path in (folder() / "model.safetensors", pickled(official_state)):
        backbone = build().backbone
        report = weights.load(backbone, path)
        assert same(backbone.state_dict(), model.backbone.state_dict())
        assert report.whole and not report.unexpected and not report.random
        assert report.prefixes == ("backbone.",)
    assert [*dropped(report)] == [
        "pixel_decoder.*", "query_decoder.*", "buffers that follow from the sizes", "criterion.*",
    ]  # fmt: skip


# The config


def test_the_config_is_read():
    assert hub_config(SETTINGS) == CONFIG
    terms = {"class_weight": 1.0, "mask_weight": 2.0, "dice_weight": 3.0, "no_object_weight": 0.4}
    points = {"oversample_ratio": 2.0, "importance_sample_ratio": 0.5}
    config = hub_config(SETTINGS | terms | points)
    assert (config.class_weight, config.pixel_weight, config.dice_weight) == (1.0, 2.0, 3.0)
    assert (config.no_object_weight, config.oversample, config.importance) == (0.4, 2.0, 0.5)
    labels = {"id2label": {"9": "cow", "2": "owl"}}  # how many there are counts, not their numbers
    assert hub_config(SETTINGS | labels).num_classes == 2


def test_what_a_config_leaves_out_has_its_default_there():
    short = {key: SETTINGS[key] for key in ("architectures", "model_type")}
    usual = zoo.config_for("mask2former_swin_tiny", num_classes=2, drop_path=0.1)
    given = dict(embed_dim=96, depths=(2, 2, 6, 2), backbone_heads=(3, 6, 12, 24), window_size=7)
    assert hub_config(short | {"backbone_config": {"model_type": "swin"}}) == zoo.config_for(
        usual, **given
    )
    deeper = given | {"depths": (2, 2, 18, 2), "drop_path": 0.3}  # without a backbone_config
    assert hub_config(short) == zoo.config_for(usual, **deeper)


# Folders of the hub


def test_both_kinds_of_files_are_read(folder, model):
    for keywords in ({"write": save, "name": "pytorch_model.bin"}, {}):  # the latter is preferred
        loaded = zoo.from_huggingface(str(folder(**keywords)))
        assert same(loaded.state_dict(), model.state_dict())
        assert not loaded.training


def split(folder, state, number=3, ending="bin", write=save):
    """Writes the tensors into several files, and returns their index."""
    places = {name: f"model-{i % number + 1:05}.{ending}" for i, name in enumerate(state)}
    for part in set(places.values()):
        write(folder / part, {name: state[name] for name in state if places[name] == part})
    stem = "model" if ending == "safetensors" else "pytorch_model"
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": places}))
    return index


@pytest.fixture
def shards(tmp_path, hub_state):
    """The index of a folder of the hub with its tensors in three files."""
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    return split(tmp_path, hub_state)


def test_files_with_an_index_are_read_as_one(shards, model, tmp_path, hub_state, write_safetensors):
    assert same(zoo.from_huggingface(tmp_path).state_dict(), model.state_dict())
    fresh = build()
    assert str(shards) in weights.load(fresh, shards).text
    assert same(fresh.state_dict(), model.state_dict())
    for path in tmp_path.glob("*model*"):
        path.unlink()
    split(tmp_path, hub_state, 2, "safetensors", write_safetensors)
    assert same(zoo.from_huggingface(tmp_path).state_dict(), model.state_dict())


# Refusals


INDEX = {
    "no json": (lambda index: index.write_text("{"), "index.json: is not json"),
    "empty": (lambda index: index.write_text("{}"), "index.json: has no weight_map from tensors"),
    "a file missing": (lambda index: next(index.parent.glob("*2.bin")).unlink(), "2.bin: no such"),
    "a file empty": (lambda index: save(index.parent / "model-00002.bin", {}), "are missing"),
    "other tensors": (lambda index: split(index.parent, {"a": torch.ones(1)}), "are missing"),
}


@pytest.mark.parametrize("kind", INDEX)
def test_an_index_that_does_not_fit_is_refused(shards, tmp_path, kind):
    change, message = INDEX[kind]
    change(shards)
    with pytest.raises(weights.LoadError, match=message) as error:
        zoo.from_huggingface(tmp_path)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


SETTINGS_THAT_DO_NOT_FIT = [
    ({"architectures": ["DetrForSegmentation"]}, "describes .*DetrForSegmentation.*; give"),
    ({"architectures": None, "model_type": "swin"}, "config.json describes 'swin'; give"),
    ({"pre_norm": True}, "has pre_norm True, and only False can be built here"),
    (
        {"backbone_config": SWIN | {"model_type": "resnet"}},
        "has backbone_config.model_type 'resnet', and only 'swin' can",
    ),
    ({"backbone_config": SWIN | {"hidden_act": "x\ny" * 99}}, "hidden_act 'x.ny.*only 'gelu"),
    ({"id2label": {}}, "num_classes is 0, but must be a whole number from 1"),
    ({"id2label": {"0": "cat"}}, "are not those of the model that config.json"),
    ({"num_attention_heads": 5}, "width 64 is not a multiple"),
    ({"backbone_config": SWIN | {"num_heads": [1, 3, 2, 4]}}, ".*32"),
    ({"num_queries": "many"}, "a wrong value, num_queries is 'many', but must be a whole"),
    ({"num_queries": [7] * 999}, r"num_queries is \(7, 7, 7, .*, but must be a whole number from"),
    ({"backbone_config": SWIN | {"depths": [1]}}, "depths .* different"),
    ({"encoder_layers": 3}, r"16 are missing \(pixel_decoder.transformer.encoder.layers.2"),
]
ONES = torch.ones
TENSORS_THAT_DO_NOT_FIT = [
    ({HUB_NORM: None}, r"1 are missing \(query_decoder.decoder_norm.weight\); get the whole"),
    ({HUB_NORM: ONES(3)}, "1 have another shape .*decoder_norm.weight is 3 there, 64 here"),
    ({HUB_NORM: torch.full((64,), torch.nan)}, "1 of its tensors hold values that are not finite"),
    ({"a.b": ONES(1), "c": ONES(1)}, "are not those of the model that"),
    ({HUB_KEYS: ONES(3, 5)}, r"1 are missing \(query_decoder.*2.self_attn.in_proj_weight"),
]  # fmt: skip


@pytest.mark.parametrize(
    "settings, tensors, message",
    [(settings, {}, message) for settings, message in SETTINGS_THAT_DO_NOT_FIT]
    + [({}, tensors, message) for tensors, message in TENSORS_THAT_DO_NOT_FIT],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_sentence(folder, settings, tensors, message):
    path = folder(settings, tensors)
    with pytest.raises(weights.LoadError, match=message) as error:
        zoo.from_huggingface(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", None, "config.json: No such file or directory; give the folder"),
        ("config.json", b"[" * 100_000, "config.json: is not json"),
        ("model.safetensors", None, "holds no model.safetensors, .* put one beside"),
    ],
)
def test_files_that_are_missing_or_broken_are_named(folder, name, content, message):
    path = folder()
    (path / name).unlink()
    if content is not None:
        (path / name).write_bytes(content)
    with pytest.raises(weights.LoadError, match=message) as error:
        zoo.from_huggingface(path)
    assert str(error.value).count(str(path)) == 1
