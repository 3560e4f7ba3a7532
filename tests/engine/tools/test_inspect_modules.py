"""Parts of a model: what passes between them, against calls by hand and counts made elsewhere."""

import json

import pytest
import torch

from data.errors import InputError
from engine.determinism import reseed
from engine.tools import benchmark, inspect_modules
from engine.values import builder_keywords, keyword
from mobileinst import zoo

SIZE = 97  # odd: every map is rounded up
SET = "width=32 kernel_dim=16 query_width=32 num_heads=2 num_queries=6".split()
ARGV = f"--device cpu --threads 1 --image-size {SIZE} --num-classes 5 --rounds 1 --set".split()


@pytest.fixture(scope="module")
def parts():
    opts = inspect_modules.parse([*ARGV, *SET])
    found = inspect_modules.inspect_all(opts, torch.device("cpu"))
    return {part.path: part for part in found}


@pytest.fixture(scope="module")
def by_hand():
    """The same model and images, its modules called one by one."""
    keywords = builder_keywords("mobileinst_topformer_tiny", map(keyword, SET))
    model, criterion, postprocess = zoo.build("mobileinst_topformer_tiny", 5, **keywords)
    images, padding, targets = benchmark.synthetic_batch(SIZE, 2, 5, torch.device("cpu"))
    model.eval().requires_grad_(False)  # as inspected: gradients may change low bits of a forward
    pixels = model.normalise(images, padding)
    maps = model.backbone(pixels)
    mask_features, pixel_features = model.mask_decoder(maps[1:4], maps[4])
    outputs = model(images, padding)
    reseed(0)
    trained = model.train()(images, padding)
    losses = criterion(trained, targets)
    model.eval()
    return locals()


def same(value, tensor):
    return (value.shape, value.dtype) == (tuple(tensor.shape), str(tensor.dtype)[6:]) and (
        value.least,
        value.most,
    ) == (tensor.min().item(), tensor.max().item())


def test_what_passes_is_what_the_modules_give_by_hand(parts, by_hand):
    backbone = parts["backbone"]
    assert [value.name for value in backbone.receives] == ["images"]
    assert same(backbone.receives[0], by_hand["pixels"])
    assert all(map(same, backbone.returns, by_hand["maps"]))
    assert [value.stride for value in backbone.returns] == [4, 8, 16, 32, 64]
    assert [value.channels for value in backbone.returns] == [16, 32, 64, 96, 208]
    assert backbone.returns[4].shape == (2, 208, 2, 2)
    decoder = parts["mask_decoder"]
    names = ["local_maps[0]", "local_maps[1]", "local_maps[2]", "global_map"]
    assert [value.name for value in decoder.receives] == names
    assert all(map(same, decoder.receives, by_hand["maps"][1:]))
    features = by_hand["mask_features"], by_hand["pixel_features"]
    assert all(map(same, decoder.returns, features))
    outputs = {name: value for name, value in by_hand["outputs"].items() if name != "aux"}
    assert [value.name for value in parts["model"].returns] == list(outputs)
    assert all(map(same, parts["model"].returns, outputs.values()))


def test_the_criterion_sees_the_outputs_of_training(parts, by_hand):
    received = {value.name: value for value in parts["criterion"].receives}
    assert same(received["outputs.mask_logits"], by_hand["trained"]["mask_logits"])
    first = by_hand["trained"]["aux"][0]["class_logits"]
    assert same(received["outputs.aux[0].class_logits"], first)
    assert received["targets[1].masks"].stride == 1
    returned = {value.name: value.least for value in parts["criterion"].returns}
    assert returned == {name: value.item() for name, value in by_hand["losses"].items()}


def test_results_come_last(parts):
    assert list(parts)[-2:] == ["criterion", "postprocess"]
    returned = {value.name: value for value in parts["postprocess"].returns}
    masks = returned["[0].masks"]
    assert (masks.shape[1:], masks.dtype, masks.stride) == ((SIZE, SIZE), "bool", 1)
    assert returned["[1].labels"].most < 5


def test_costs_are_those_counted_elsewhere(parts, by_hand):
    model = by_hand["model"]
    assert parts["model"].parameters == sum(p.numel() for p in model.parameters())
    assert parts["backbone"].parameters == sum(p.numel() for p in model.backbone.parameters())
    whole = benchmark.multiply_adds(model, by_hand["images"], by_hand["padding"])[""]
    assert parts["model"].multiply_adds == whole
    alone = benchmark.multiply_adds(model.backbone, by_hand["pixels"])[""]
    assert parts["backbone"].multiply_adds == alone > 1e6
    copied = zoo.build("mobileinst_topformer_tiny", 5)[0]
    benchmark.multiply_adds(copied, by_hand["images"], by_hand["padding"])
    assert copied.training and all(p.requires_grad for p in copied.parameters())  # unchanged
    # 1 x 1, 16 wide at stride 8: by hand
    projection = parts["mask_decoder.pixel_projection"]
    assert projection.multiply_adds == 2 * 13 * 13 * 32 * 16
    assert parts["normalise"].multiply_adds == 0 and parts["criterion"].multiply_adds is None
    assert all(part.seconds > 0 for part in parts.values() if part.calls)


def test_parts_stand_in_the_order_of_the_calls(parts):
    paths = list(parts)
    assert paths.index("normalise") < paths.index("backbone") < paths.index("mask_decoder")
    inside = [path for path in paths if path.startswith("backbone.")]
    assert inside == ["backbone.tpm", "backbone.trans"]
    assert paths[paths.index("backbone") + 1 :][:2] == inside
    assert parts["backbone"].depth == 1 and parts["backbone.tpm"].depth == 2
    assert parts["instance_decoder.query_features"].calls == 0


def test_json_and_table_say_the_same(parts, tmp_path, capsys):
    path = tmp_path / "new" / "parts.json"
    inspect_modules.main([*ARGV, *SET, "--json", str(path)])
    content = json.loads(path.read_text())
    assert (content["model"], content["image_size"]) == ("mobileinst_topformer_tiny", SIZE)
    assert content["set"]["num_queries"] == "6"
    assert [part["path"] for part in content["parts"]] == list(parts)
    for part, known in zip(content["parts"], parts.values(), strict=True):
        again = json.loads(json.dumps(inspect_modules.as_json(known)))
        assert {**part, "seconds": 0} == {**again, "seconds": 0}  # values are drawn from seeds
    printed = capsys.readouterr().out
    assert "backbone (TopFormer)  1,293,888 parameters" in printed
    assert "2 x 208 x 2 x 2" in printed and "stride 64" in printed
    assert "targets[*].masks" in printed and "query_features (Embedding)" in printed


def test_the_parts_of_the_other_system():
    little = (
        "embed_dim=8 depths=1,1,1,1 backbone_heads=1,1,2,2 window_size=2 width=32 mask_dim=12 "
        "num_heads=2 num_encoder_layers=1 encoder_ffn_width=8 num_queries=5 num_layers=3 "
        "ffn_width=8 train_points=9"
    )
    argv = [*ARGV, *little.split(), "--model", "mask2former_swin_tiny", "--depth", "1"]
    found = inspect_modules.inspect_all(inspect_modules.parse(argv), torch.device("cpu"))
    parts = {part.path: part for part in found}
    names = ["model", "normalise", "backbone", "pixel_decoder", "query_decoder"]
    assert list(parts) == [*names, "criterion", "postprocess"]
    assert [value.stride for value in parts["backbone"].returns] == [4, 8, 16, 32]
    decoded = [(value.stride, value.channels) for value in parts["pixel_decoder"].returns]
    assert decoded == [(32, 32), (16, 32), (8, 32), (4, 12)]
    received = [value.shape for value in parts["query_decoder"].receives]
    assert received == [value.shape for value in parts["pixel_decoder"].returns]
    assert len(parts["criterion"].returns) == 3 * 4


@pytest.mark.parametrize(
    "grid, stride", [((97, 97), 1), ((49, 49), 2), ((13, 13), 8), ((12, 12), 8), ((13, 12), None)]
)
def test_strides(grid, stride):
    assert inspect_modules.stride_of(grid, 97) == stride


def test_a_batch_too_small_to_train_with():
    argv = "--device cpu --threads 1 --image-size 64 --batch-size 1 --rounds 1 --set".split()
    with pytest.raises(InputError, match="raise --batch-size or --image-size"):
        inspect_modules.main([*argv, *SET])
