"""Mask2Former as the hub has it: names, config, files; and the same numbers as transformers."""

import copy
import json
import struct

import pytest
import torch

from mobileinst import weights, zoo
from mobileinst.mask2former.model import Mask2FormerConfig
from mobileinst.mask2former.published import hub_config

# A small model in the words of the hub. Two channels a group at least, see test_mask2former.
SWIN = dict(embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=4)
SIZES = dict(
    feature_size=64, mask_feature_size=16, hidden_dim=64, encoder_feedforward_dim=24,
    encoder_layers=2, decoder_layers=5, num_attention_heads=4, dim_feedforward=40, num_queries=7,
    train_num_points=50,
)  # fmt: skip
SETTINGS = SIZES | {
    "architectures": ["Mask2FormerForUniversalSegmentation"],
    "model_type": "mask2former",
    "backbone_config": SWIN | {"model_type": "swin", "drop_path_rate": 0.0},
    "id2label": {"0": "cat", "1": "dog", "2": "hen"},
}
CONFIG = Mask2FormerConfig(
    num_classes=3, embed_dim=16, depths=(1, 1, 2, 1), backbone_heads=(1, 2, 2, 4), window_size=4,
    drop_path=0.0, width=64, mask_dim=16, num_heads=4, num_encoder_layers=2, encoder_ffn_width=24,
    num_queries=7, num_layers=4, ffn_width=40, train_points=50,
)  # fmt: skip


@pytest.fixture(scope="module")
def table(reference) -> dict:
    """Name in the hub's files -> (ours, which third of it or None), from a list made elsewhere."""
    names = {}
    for hub, official in reference("mask2former_swin_tiny")["hub_to_official"].items():
        official, third = official if isinstance(official, list) else (official, None)
        ours = official.replace("sem_seg_head.pixel_decoder.", "pixel_decoder.")
        names[hub] = ours.replace("sem_seg_head.predictor.", "query_decoder."), third
    return names


@pytest.fixture(scope="module")
def model():
    return zoo.build_from_config(CONFIG, seed=3)[0].eval()


@pytest.fixture(scope="module")
def hub_state(table, model) -> dict:
    """The tensors of `model` as the hub's files have them, with what those have besides."""
    state = {"criterion.empty_weight": torch.ones(4)}
    start = "model.pixel_level_module.encoder."
    state[f"{start}encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(
        16, 16, dtype=torch.int64
    )
    state[f"{start}swin.layernorm.weight"] = torch.ones(128)
    own = model.state_dict()
    for hub, (name, third) in table.items():
        if name in own:
            state[hub] = own[name] if third is None else own[name].chunk(3)[third].clone()
    return state


@pytest.fixture
def folder(tmp_path, hub_state, write_safetensors):
    """A function: a folder of the hub with some settings and tensors changed."""

    def folder(settings=None, tensors=None, write=write_safetensors, name="model.safetensors"):
        (tmp_path / "config.json").write_text(json.dumps(SETTINGS | (settings or {})))
        state = hub_state | (tensors or {})
        write(tmp_path / name, {key: value for key, value in state.items() if value is not None})
        return tmp_path

    return folder


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_whole_models_are_recognised(model, hub_state):
    tiny, *_ = zoo.build("mask2former_swin_tiny", 2)
    assert weights.recognise(tiny.state_dict()) == "Mask2Former with Swin-T, window 7"
    assert weights.recognise(model.state_dict()).startswith("Mask2Former with Swin of another size")
    assert weights.recognise(hub_state) == "Mask2Former in the names of Hugging Face"


def test_every_name_of_the_hub_has_its_place(hub_state, model):
    naming, tensors = weights.in_our_names(hub_state)
    assert naming == "Hugging Face"
    own = model.state_dict()
    assert same({name: tensors[name] for name in own}, own)
    assert sorted(tensors.keys() - own.keys()) == [
        "backbone.layers.0.blocks.0.attn.relative_position_index",
        "backbone.norm.weight",
        "criterion.empty_weight",
    ]


def test_names_that_are_not_known_and_stacks_that_are_not_whole_stay(hub_state):
    key = "model.transformer_module.decoder.layers.2.self_attn.k_proj.weight"
    state = {name: value for name, value in hub_state.items() if name != key}
    _, renamed = weights.in_our_names(state | {"lm_head.weight": torch.ones(1)})
    stack = "query_decoder.transformer_self_attention_layers.2.self_attn.in_proj_weight"
    assert {"lm_head.weight", f"{stack} (q)", f"{stack} (v)"} <= renamed.keys()
    assert stack not in renamed


def test_the_config_is_read():
    assert hub_config(SETTINGS) == CONFIG
    weights = {"class_weight": 1.0, "mask_weight": 2.0, "dice_weight": 3.0, "no_object_weight": 0.4}
    points = {"oversample_ratio": 2.0, "importance_sample_ratio": 0.5}
    config = hub_config(SETTINGS | weights | points)
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
    deeper = given | {"depths": (2, 2, 18, 2), "drop_path": 0.3}  # what stands for no backbone
    assert hub_config(short) == zoo.config_for(usual, **deeper)


def save(path, state):
    torch.save(state, path)


def test_both_kinds_of_files_are_read(folder, model):
    for keywords in ({"write": save, "name": "pytorch_model.bin"}, {}):  # the latter is preferred
        loaded = zoo.from_huggingface(folder(**keywords))
        assert same(loaded.state_dict(), model.state_dict())
        assert not loaded.training


def test_half_precision_is_converted(folder, model):
    half = {"class_predictor.bias": torch.tensor([1.0, 2.0, 3.0, 4.5]).half()}
    loaded = zoo.from_huggingface(str(folder(tensors=half)))
    assert loaded.query_decoder.class_embed.bias.tolist() == [1.0, 2.0, 3.0, 4.5]


# Large models are spread over files.


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
    """A folder of the hub with its tensors in three files; its index."""
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    return split(tmp_path, hub_state)


def test_files_with_an_index_are_read_as_one(shards, model, tmp_path, hub_state, write_safetensors):
    assert same(zoo.from_huggingface(tmp_path).state_dict(), model.state_dict())
    fresh = zoo.build_from_config(CONFIG)[0]
    assert str(shards) in weights.load(fresh, shards).text
    assert same(fresh.state_dict(), model.state_dict())
    for path in tmp_path.glob("*model*"):
        path.unlink()
    split(tmp_path, hub_state, 2, "safetensors", write_safetensors)
    assert same(zoo.from_huggingface(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "name", ["../x.bin", "a/b.bin", "..", "", ".", "/x", "a\\b", "C:x", 5, None]
)
def test_an_index_leads_to_no_other_folder(shards, tmp_path, name):
    content = json.loads(shards.read_text())
    content["weight_map"][NORM] = name
    shards.write_text(json.dumps(content))
    with pytest.raises(
        weights.LoadError, match="no name of a file beside it; get the index"
    ) as error:
        zoo.from_huggingface(tmp_path)
    assert str(error.value).startswith(f"{shards}: ")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda index: index.write_text("{"), r"index.json: is no json"),
        (lambda index: index.write_text("[]"), r"index.json: holds no settings, but a list; get"),
        (lambda index: index.write_text("{}"), r"index.json: has no weight_map from tensors"),
        (lambda index: next(index.parent.glob("*2.bin")).unlink(), "2.bin: no such"),
        (
            lambda index: save(index.parent / "model-00002.bin", {}),
            r"index.json: \d+ of \d+ tensors are not in the file that it names .*get all files",
        ),
        (
            lambda index: save(index.parent / "model-00002.bin", [1]),
            "2.bin: holds no named tensors; put all files",
        ),
        (lambda index: split(index.parent, {"a": torch.ones(1)}), "are missing"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_is_refused(shards, tmp_path, change, message):
    change(shards)
    with pytest.raises(weights.LoadError, match=message) as error:
        zoo.from_huggingface(tmp_path)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


# A file alone, to start from.


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "of_two_processes.pth"])
def test_a_file_alone_fills_a_model(folder, model, hub_state, name):
    if name == "model.safetensors":
        path = folder() / name
    else:
        start = "module." if name == "of_two_processes.pth" else ""
        path = folder() / name
        torch.save({start + key: value for key, value in hub_state.items()}, path)
    fresh = zoo.build_from_config(CONFIG)[0]
    report = weights.load(fresh, path)
    assert same(fresh.state_dict(), model.state_dict())
    assert report.whole and not report.unexpected and report.naming == "Hugging Face"
    assert report.source == report.target and "in the names of Hugging Face" in report.text
    assert {why.split(",")[0]: len(names) for why, names in report.dropped.items()} == {
        "buffers that follow from the sizes": 1, "backbone.norm.*": 1, "criterion.*": 1,
    }  # fmt: skip


def test_a_file_alone_of_other_classes(folder, model):
    path = folder() / "model.safetensors"
    fresh, *_ = zoo.build_from_config(zoo.config_for(CONFIG, num_classes=8), seed=9)
    layer = "query_decoder.class_embed"
    drawn = {n: v.clone() for n, v in fresh.state_dict().items() if n.startswith(layer)}
    report = weights.load(fresh, path, classes=[str(i) for i in range(8)])
    assert same(fresh.state_dict(), model.state_dict() | drawn)
    assert report.whole and report.random == (layer,) and report.carried == ()
    assert f"2 of {layer}, with rows for 3 classes" in report.text
    backbone = zoo.build_from_config(CONFIG)[0].backbone
    assert weights.load(backbone, path).whole
    assert same(backbone.state_dict(), model.backbone.state_dict())


def test_thirds_that_do_not_go_together_are_missed(folder, model):
    start = "model.transformer_module.decoder.layers.2.self_attn"
    for changed in (None, torch.ones(3, 5), torch.tensor(1.0), torch.ones(64, 64).half()):
        path = folder(tensors={f"{start}.k_proj.weight": changed})
        with pytest.raises(
            weights.LoadError, match=r"1 are missing \(.*2.self_attn.in_proj_weight"
        ):
            zoo.from_huggingface(path)


NORM = "model.transformer_module.decoder.layernorm.weight"


@pytest.mark.parametrize(
    "settings, tensors, message",
    [
        ({"architectures": ["DetrForSegmentation"]}, {}, "describes .*DetrForSegmentation.*; give"),
        ({"architectures": None, "model_type": "swin"}, {}, "config.json describes 'swin'; give"),
        ({"pre_norm": True}, {}, "has pre_norm True, and only False can be built here"),
        ({"feature_size": 32}, {}, "has feature_size 32, and only 64 can"),
        (
            {"backbone_config": SWIN | {"model_type": "resnet"}}, {},
            "has backbone_config.model_type 'resnet', and only 'swin' can",
        ),
        ({"id2label": {"0": "cat"}}, {}, "lists 1 classes under id2label and .* has 4 rows;"),
        ({"num_attention_heads": 5}, {}, "cannot be built, width 64 is not a multiple"),
        ({"num_queries": "many"}, {}, "has num_queries 'many', and a whole number from 1"),
        ({"num_queries": -1}, {}, "has num_queries -1, and a whole number from 1 to 100000 is"),
        ({"num_queries": 10**12}, {}, "has num_queries 1000000000000, and a whole number from 1"),
        ({"num_queries": True}, {}, "has num_queries True, and a whole number"),
        ({"num_queries": 7.0}, {}, "has num_queries 7.0, and a whole number"),
        ({"num_queries": [7] * 999}, {}, r"has num_queries \[7, 7, 7, .*, and a whole number"),
        ({"dim_feedforward": 0}, {}, "has dim_feedforward 0, and a whole number from 1 to 65536"),
        ({"dim_feedforward": 65536, "hidden_dim": 8192, "feature_size": 8192}, {}, "another shape"),
        ({"encoder_layers": 10**9}, {}, "has encoder_layers 1000000000, and a whole number from"),
        ({"decoder_layers": 1}, {}, "has decoder_layers 1, and a whole number from 2 to 100"),
        ({"class_weight": -1}, {}, "has class_weight -1, and a number from 0 to"),
        ({"class_weight": float("nan")}, {}, "has class_weight nan, and a number from 0 to"),
        ({"importance_sample_ratio": "all"}, {}, "has importance_sample_ratio 'all', and a number"),
        ({"architectures": 5}, {}, "config.json describes 5; give the folder of a Mask2Former"),
        ({"backbone_config": "swin"}, {}, "has backbone_config 'swin', and a dict of settings is"),
        ({"backbone": "resnet50"}, {}, "has backbone 'resnet50', and only None can be built here"),
        ({"use_timm_backbone": True}, {}, "has use_timm_backbone True, and only False can be"),
        ({"id2label": {}}, {}, "has id2label {}, and a dict of class names is needed"),
        ({"id2label": "cat"}, {}, "has id2label 'cat', and a dict of class names is needed"),
        (
            {"backbone_config": SWIN | {"depths": [1, 1, 10**9, 1]}}, {},
            "has backbone_config.depths 1000000000, and a whole number from 1 to 100 is needed",
        ),
        ({"backbone_config": SWIN | {"depths": [1]}}, {}, r"depths \[1\], and a list of 4 whole"),
        ({"backbone_config": SWIN | {"num_heads": 3}}, {}, "num_heads 3, and a list of 4 whole"),
        (
            {"backbone_config": SWIN | {"window_size": 5000}}, {},
            "has backbone_config.window_size 5000, and a whole number from 1 to 32 is needed",
        ),
        (
            {"backbone_config": SWIN | {"drop_path_rate": 2}}, {},
            "has backbone_config.drop_path_rate 2, and a number from 0 to 0.99 is needed",
        ),
        ({"backbone_config": SWIN | {"num_heads": [1, 3, 2, 4]}}, {}, "cannot be built, width 32"),
        ({"backbone_config": SWIN | {"qkv_bias": "x\ny" * 99}}, {}, "qkv_bias 'x.ny.*only True"),
        ({"encoder_layers": 1}, {}, r"16 tensors have no place in the model .*layers.1.*; get"),
        ({"encoder_layers": 3}, {}, r"16 are missing \(pixel_decoder.transformer.encoder.layers.2"),
        ({"id2label": {str(i): str(i) for i in range(80)}}, {}, "lists 80 classes .* has 4 rows;"),
        ({}, {NORM: None}, r"1 are missing \(query_decoder.decoder_norm.weight\)"),
        ({}, {NORM: torch.ones(3)}, "1 have another shape .*decoder_norm.weight is 3 there, 64"),
        ({}, {"a.b": torch.ones(1), "c": torch.ones(1)}, r"2 tensors have no place .*\(a.b, c\)"),
        ({}, {NORM: torch.full((64,), torch.nan)}, "1 of its tensors hold values that are not"),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_fit_is_refused_in_one_sentence(folder, settings, tensors, message):
    path = folder(settings, tensors)
    with pytest.raises(weights.LoadError, match=message) as error:
        zoo.from_huggingface(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", None, "config.json: No such file or directory; give the folder"),
        ("config.json", b"{", "config.json: is no json"),
        ("config.json", b"[]", "config.json: holds no settings, but a list; give the folder"),
        ("config.json", b"[" * 100_000, "config.json: is no json"),
        ("config.json", b"\xff\xfe{}", "config.json: is no json"),
        ("config.json", b"", "config.json: is no json"),
        ("config.json", b"{}", "config.json describes None; give the folder of a Mask2Former"),
        (
            "model.safetensors",
            None,
            "holds no model.safetensors, .* put one beside",
        ),
        ("model.safetensors", b"", "can be read safely, it is empty"),
        ("model.safetensors", struct.pack("<Q", 2**60) + b"{}", "can be read safely"),
        ("model.safetensors", struct.pack("<Q", 2) + b"{}", "holds no named tensors"),
    ],
)
def test_files_that_are_missing_or_broken_are_told(folder, name, content, message):
    path = folder()
    (path / name).unlink()
    if content is not None:
        (path / name).write_bytes(content)
    with pytest.raises(weights.LoadError, match=message):
        zoo.from_huggingface(path)


# From here on against transformers, where it is installed.


@torch.no_grad()
def randomise(model) -> None:
    """Values with which every part matters, masks have both signs, and queries differ.

    Nothing is left of the start values, which are others in other versions, but the ones of norms.
    """
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn(parameter.shape)
        elif "queries_" in name or "level_embed" in name:
            torch.nn.init.normal_(parameter)
        elif "sampling_offsets" in name or "attention_weights" in name or "bias_table" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        else:
            torch.nn.init.xavier_uniform_(parameter)
    model.class_predictor.weight *= 4


@pytest.fixture(scope="module")
def theirs():
    """The same small model in transformers."""
    transformers = pytest.importorskip("transformers")
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    swin = transformers.SwinConfig(**SWIN, drop_path_rate=0.0, out_features=stages)
    model = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(backbone_config=swin, num_labels=3, **SIZES)
    )
    randomise(model)
    return model


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("hub")
    theirs.save_pretrained(path)
    return zoo.from_huggingface(path)


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request):
    """Both models and all new tensors in this type."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("height, width", [(64, 96), (101, 67), (161, 223)])
@torch.no_grad()
def test_the_logits_of_transformers(theirs, ours, dtype, height, width):
    theirs.to(dtype).eval()
    ours.to(dtype).eval()
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    want = theirs(ours.normalise(images))
    got = ours(images)
    inside = (want.masks_queries_logits > 0).float().mean(1)  # share of the queries, [B,h,w]
    # What hides from attention is not all or nothing, and not the same for all queries.
    assert 0.05 < inside.mean() < 0.95 and ((inside > 0) & (inside < 1)).float().mean() > 0.02
    bound = 1e-5 if dtype is torch.float64 else 2e-4
    assert (got["class_logits"] - want.class_queries_logits).abs().max() < bound
    assert (got["mask_logits"] - want.masks_queries_logits).abs().max() < bound


def test_the_names_that_transformers_has_in_memory(theirs, ours, tmp_path):
    """Newer versions write the older names, unless it is torch that writes."""
    torch.save(theirs.state_dict(), tmp_path / "state.pth")
    model = zoo.build_from_config(CONFIG)[0]
    report = weights.load(model, tmp_path / "state.pth")
    assert same(model.state_dict(), ours.state_dict()) and not report.unexpected


def seed(*_) -> None:
    """To be called right before the loss: some versions draw numbers in the decoder as well."""
    torch.manual_seed(5)


class OfficialOrder:
    """Points from torch's own stream, drawn in the order of the published code: layer by layer, and
    in each first for matching. Our criterion matches all layers first: what it asks for in a first
    call is drawn in that order before a second one.
    """

    def __init__(self):
        self.shapes, self.points = {}, {}

    def draw(self, layer, image, purpose, shape):
        self.shapes[layer, image, purpose] = shape
        return self.points.get((layer, image, purpose), torch.rand(shape))

    def draw_all(self):
        layers = list(dict.fromkeys(layer for layer, *_ in self.shapes))
        keys = sorted(self.shapes, key=lambda key: layers.index(key[0]))  # stable
        self.points = {key: torch.rand(self.shapes[key]) for key in keys}


@torch.no_grad()
def keep_off_borders(model) -> None:
    """All sampling places at least a 32nd of a cell from where the slopes of a map jump.

    A place that rounding moves across has another gradient, by a hundredth of the largest or so.
    Where grids are exact halves of each other, centres of cells are at multiples of 1/8.
    """
    for name, parameter in model.named_parameters():
        if "sampling_offsets.weight" in name:
            parameter *= 0.003
        elif "sampling_offsets.bias" in name:
            parameter.copy_((8 * parameter).floor() / 8 + 1 / 16)


@pytest.mark.parametrize(
    "dtype, height, width",
    [(torch.float64, 101, 127), (torch.float64, 96, 128), (torch.float32, 96, 128)],
    indirect=["dtype"],
    ids=str,
)
def test_the_loss_and_the_gradients_of_transformers(theirs, dtype, height, width, tmp_path):
    theirs = copy.deepcopy(theirs).float()
    if dtype is torch.float32:
        keep_off_borders(theirs)
    theirs.save_pretrained(tmp_path / "weights")
    ours = zoo.from_huggingface(tmp_path / "weights").to(dtype).train()
    theirs.to(dtype).train()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, height, width, generator=generator)
    targets = []
    for number, count in enumerate((2, 1, 3)):
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        for mask in masks:
            y, x = torch.randint(0, 50, (2,), generator=generator).tolist()
            mask[y : y + 40, x : x + 50] = True
        ignore = torch.zeros(height, width, dtype=torch.bool)
        labels = torch.randint(0, 3, (count,), generator=generator)
        targets.append(
            {"masks": masks, "labels": labels, "ignore": ignore}
            | {"image_id": number, "size": (height, width)}
        )
    theirs.criterion.register_forward_pre_hook(seed)
    want = theirs(
        ours.normalise(images),
        mask_labels=[target["masks"].to(dtype) for target in targets],
        class_labels=[target["labels"] for target in targets],
    ).loss
    criterion = zoo.build_from_config(CONFIG)[1]
    points, outputs = OfficialOrder(), ours(images)
    criterion(outputs, targets, points=points)
    seed()
    points.draw_all()
    got = sum(criterion(outputs, targets, points=points).values())
    assert got.item() == pytest.approx(want.item(), rel=1e-4 if dtype is torch.float32 else 1e-7)
    want.backward()
    got.backward()
    with torch.no_grad():  # their gradients in our names: written and read like weights
        for parameter in theirs.parameters():
            gradient = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
    theirs.save_pretrained(tmp_path / "gradients")
    wanted = weights.open_weights(tmp_path / "gradients" / "model.safetensors").tensors
    bound = 1e-5 if dtype is torch.float64 else 1e-3
    for name, parameter in ours.named_parameters():
        largest = wanted[name].abs().max()
        assert largest > 0, name
        assert (parameter.grad - wanted[name]).abs().max() < bound * largest, name
