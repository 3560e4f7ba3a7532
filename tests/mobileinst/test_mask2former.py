"""The assembled Mask2Former: sizes, gradients, settings, parts, published names and counts."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from mobileinst import zoo
from mobileinst.backbones.swin import SwinTransformer
from mobileinst.mask2former.model import Mask2FormerConfig
from mobileinst.mask2former.pixel_decoder import PixelDecoder
from mobileinst.mask2former.query_decoder import QueryDecoder
from mobileinst.set_prediction.points import SeededPoints

TINY = dict(
    embed_dim=8, depths=(1, 1, 2, 1), backbone_heads=(1, 2, 2, 4), window_size=4, drop_path=0.0,
    width=32, mask_dim=12, num_heads=4, num_encoder_layers=1, encoder_ffn_width=24,
    points_per_level=2, num_queries=7, num_layers=4, ffn_width=24, train_points=48,
)  # fmt: skip
CONFIG = Mask2FormerConfig(num_classes=3, **TINY)
CHANNELS = (8, 16, 32, 64)


def build(**keywords) -> tuple:
    return zoo.build("mask2former_swin_tiny", 3, **TINY | keywords)


def draw_images(height, width, batch=2, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def make_targets(*labels, size=(64, 96)):
    targets = []
    for number, own in enumerate(labels):
        generator = torch.Generator().manual_seed(number)
        masks = torch.zeros(len(own), *size, dtype=torch.bool)
        for mask in masks:
            y, x = (int(torch.randint(0, side - 30, (), generator=generator)) for side in size)
            mask[y : y + 30, x : x + 30] = True
        ignore = torch.zeros(size, dtype=torch.bool)
        labels = torch.tensor(own, dtype=torch.int64)
        targets.append({"labels": labels, "masks": masks, "ignore": ignore})
        targets[-1] |= {"image_id": number, "size": size, "orig_size": size}
    return targets


@pytest.mark.parametrize("height, width", [(64, 64), (65, 127), (30, 200), (1, 1)])
@pytest.mark.parametrize("queries", [1, 7])
@torch.no_grad()
def test_any_size(height, width, queries):
    model = build(num_queries=queries)[0].eval()
    outputs = model(draw_images(height, width), torch.zeros(2, height, width, dtype=torch.bool))
    grid = (-(-height // model.mask_stride), -(-width // model.mask_stride))
    shapes = {key: tuple(value.shape) for key, value in outputs.items() if key != "aux"}
    assert shapes == {
        "class_logits": (2, queries, 4),
        "mask_logits": (2, queries, *grid),
        "queries": (2, queries, 32),
        "kernels": (2, queries, 12),
        "pixel_features": (2, 12, *grid),
    }
    assert outputs["aux"] == []


@pytest.mark.parametrize("size", [(64, 96), (65, 127)])
def test_every_parameter_receives_a_gradient_from_the_criterion(size):
    # Two channels a group at least: of a single one a group norm takes out whatever is constant.
    torch.manual_seed(0)
    model, criterion, _ = build(width=64, num_layers=3)
    for name, parameter in model.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            nn.init.normal_(parameter, std=0.02)  # they start at zero and hide what lies behind
    losses = criterion(model(draw_images(*size)), make_targets([0, 2], [1], size=size))
    sum(losses.values()).backward()
    zero = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert zero == []


@pytest.mark.parametrize("labels", [([], []), ([], [1]), ([0, 1, 2, 0], [2, 2])])
@pytest.mark.parametrize("queries", [1, 3])
def test_every_parameter_is_in_the_graph_whatever_the_images_hold(labels, queries):
    model, criterion, _ = build(num_queries=queries)
    losses = criterion(model(draw_images(64, 96)), make_targets(*labels))
    assert all(torch.isfinite(value) for value in losses.values())
    assert len(losses) == 3 * 5
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_two_batches_of_two_are_one_of_four():
    """In double precision, normalised by counts known before: the same losses and gradients."""
    images, targets = draw_images(64, 96, batch=4).double(), make_targets([0, 1], [], [2], [1] * 9)
    gradients, totals = [], []
    for step in (4, 2):
        model, criterion, _ = build()
        model.double()
        parts = [slice(start, start + step) for start in range(0, 4, step)]
        counts = [criterion.counts(targets[part]) for part in parts]
        counts = {name: sum(count[name] for count in counts) for name in counts[0]}
        total = 0.0
        for part in parts:
            outputs = model(images[part])
            losses = criterion(outputs, targets[part], counts, SeededPoints(1, 2))
            sum(losses.values()).backward()
            total += sum(losses.values()).item()
        totals.append(total)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert totals[1] == pytest.approx(totals[0], rel=1e-12)
    for name, gradient in gradients[0].items():
        error = (gradients[1][name] - gradient).abs().max()
        assert error <= 1e-9 * gradient.abs().max() + 1e-15, name


def test_the_same_seed_gives_the_same_bits():
    def step(seed):
        model, criterion, _ = build(seed=seed, drop_path=0.3)
        torch.manual_seed(1)
        losses = criterion(model(draw_images(64, 96)), make_targets([0], [1, 2]))
        sum(losses.values()).backward()
        return losses | {name: p.grad for name, p in model.named_parameters()}

    first, second, other = step(3), step(3), step(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["class"] != other["class"]


OTHER_SIZES = dict(
    embed_dim=16, depths=(1, 1, 1, 1), backbone_heads=(2, 2, 2, 2), window_size=5, width=64,
    mask_dim=16, num_encoder_layers=2, encoder_ffn_width=20, points_per_level=1, num_queries=8,
    num_layers=3, ffn_width=20, num_classes=4,
)  # fmt: skip


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_each_size_changes_the_parameters(name):
    def shapes(config):
        with torch.device("meta"):
            model, *_ = zoo.build_from_config(config)
        return {name: tuple(value.shape) for name, value in model.state_dict().items()}

    assert shapes(replace(CONFIG, **{name: OTHER_SIZES[name]})) != shapes(CONFIG)


def test_a_backbone_can_be_kept_in_part():
    decoders = {
        name: TINY[name] for name in ("width", "mask_dim", "num_heads", "num_encoder_layers")
    }
    keywords = decoders | {"frozen_norms": True, "frozen_stride": 8}
    model, *_ = zoo.build("mask2former_mobilenet_v2", 3, **keywords)
    layers = model.backbone.features
    assert not any(p.requires_grad for layer in layers[:7] for p in layer.parameters())
    assert layers[8].conv[0][0].weight.requires_grad
    assert not layers[8].conv[0][1].weight.requires_grad  # a norm
    swin = build(frozen_stride=8)[0].backbone
    kept = {name.partition(".blocks")[0] for name, p in swin.named_parameters() if p.requires_grad}
    assert "layers.2" in kept and not kept & {"layers.0", "layers.1"}


@pytest.mark.parametrize("change", [{"num_heads": 2}, {"drop_path": 0.9}])
def test_keywords_without_parameters_change_the_outputs(change):
    def outputs(**keywords):
        model = build(**keywords)[0].train()
        torch.manual_seed(0)
        return model(draw_images(64, 96))["class_logits"]

    assert not torch.allclose(outputs(), outputs(**change), atol=1e-6)


def test_each_setting_of_the_criterion_changes_the_loss():
    model, criterion, _ = build()
    outputs, targets = model(draw_images(64, 96)), make_targets([0, 2], [1])
    usual = sum(criterion(outputs, targets).values())
    weights = dict(class_weight=3.0, pixel_weight=3.0, dice_weight=3.0, no_object_weight=0.2)
    points = dict(train_points=40, oversample=2.0, importance=0.5)
    for name, value in (weights | points).items():
        other = sum(build(**{name: value})[1](outputs, targets).values())
        assert usual.item() != other.item(), name


def test_the_weights_count_in_the_matching_as_well():
    cost, other = build()[1].matcher.cost, build(class_weight=3.0, train_points=50)[1].matcher.cost
    assert (cost.class_weight, cost.pixel_weight, cost.dice_weight, cost.points) == (2, 5, 5, 48)
    assert (other.class_weight, other.points) == (3, 50)


@torch.no_grad()
def test_each_setting_of_the_post_processing_changes_the_results():
    model, _, postprocess = build()
    outputs, sizes = model.eval()(draw_images(64, 96)), [((64, 96), (64, 96), (50, 70))] * 2
    usual = postprocess(outputs, sizes)[0]
    few = build(max_detections=2)[2]
    few.duplicate_iou = 1.0
    assert len(few(outputs, sizes)[0]["scores"]) == 2
    other = build(mask_threshold=0.7)[2](outputs, sizes)[0]
    assert other["masks"].sum() != usual["masks"].sum()
    assert usual["masks"].shape[1:] == (50, 70) and usual["scores"].max() < 1


@pytest.mark.parametrize(
    "size, millions", [("tiny", 47.42), ("small", 68.74), ("base", 106.90), ("large", 215.52)]
)
def test_published_numbers_of_parameters(size, millions):
    with torch.device("meta"):
        model, *_ = zoo.build(f"mask2former_swin_{size}", 80)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert model.query_decoder.num_queries == (200 if size == "large" else 100)


def test_the_names_and_shapes_are_the_published_ones(reference):
    """Official files fit after two changes of prefixes."""
    starts = {
        "sem_seg_head.pixel_decoder.": "pixel_decoder.",
        "sem_seg_head.predictor.": "query_decoder.",
    }
    published = {}
    for name, (shape, _) in reference("mask2former_swin_tiny")["official"].items():
        for start, ours in starts.items():
            name = name.replace(start, ours)
        if not name.endswith(("relative_position_index", "empty_weight")):
            published[name] = shape
    with torch.device("meta"):
        model, *_ = zoo.build("mask2former_swin_tiny", 80)
    assert {name: [*value.shape] for name, value in model.state_dict().items()} == published


@dataclass(frozen=True)
class OwnConfig(Mask2FormerConfig):
    """A config with one keyword more, as a user may write it."""

    remark: str = "mine"


class OwnSwin(SwinTransformer):
    pass


class OwnPixelDecoder(PixelDecoder):
    def forward(self, maps):
        return super().forward(maps)


class OwnQueryDecoder(QueryDecoder):
    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self.extra = nn.Linear(3, 3)


@torch.no_grad()
def test_inherited_classes_give_the_same_numbers():
    """The values drawn for a module depend on its path alone, whoever built it and when."""
    torch.rand(7)
    own = OwnConfig(**TINY | {"remark": "changed"})
    parts = {
        "query_decoder": OwnQueryDecoder(
            32, 12, 3, num_queries=7, width=32, num_heads=4, ffn_width=24, num_layers=4
        ),
        "pixel_decoder": OwnPixelDecoder(CHANNELS, 32, 12, 1, 4, 2, 24),
        "backbone": OwnSwin(8, (1, 1, 2, 1), (1, 2, 2, 4), 4, 0.0),
    }
    model, criterion, postprocess = zoo.build(own, 3, seed=5, **parts)
    usual, usual_criterion, usual_postprocess = build(seed=5, backbone=None, query_decoder=None)
    assert model.query_decoder is parts["query_decoder"] and model.backbone is parts["backbone"]
    images, targets = draw_images(64, 96), make_targets([0], [1, 2])
    got, want = model.train()(images), usual.train()(images)
    assert torch.equal(got["mask_logits"], want["mask_logits"])
    got_losses, want_losses = criterion(got, targets), usual_criterion(want, targets)
    assert all(torch.equal(got_losses[name], want_losses[name]) for name in want_losses)
    sizes = [((64, 96), (64, 96), (64, 96))] * 2
    for mine, theirs in zip(postprocess(got, sizes), usual_postprocess(want, sizes)):
        assert torch.equal(mine["scores"], theirs["scores"])


def test_a_backbone_with_more_maps_will_do():
    model, *_ = build(
        backbone="topformer_tiny", embed_dim=0, depths=(), backbone_heads=(), window_size=0
    )
    assert model.pixel_decoder.in_channels == (16, 32, 64, 96)
    assert model.eval()(draw_images(64, 64))["mask_logits"].shape == (2, 7, 16, 16)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"pixel_decoder": (8, 16, 32, 60)}, r"\(8, 16, 32, 64\).*\(8, 16, 32, 60\)"),
        ({"in_channels": 64}, "width of the maps: one part gives 32, the next expects 64"),
        ({"mask_dim": 16}, "mask features: one part gives 12, the next expects 16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(keywords, message):
    pixel_decoder = PixelDecoder(keywords.get("pixel_decoder", CHANNELS), 32, 12, 1, 4)
    query_decoder = QueryDecoder(
        keywords.get("in_channels", 32), keywords.get("mask_dim", 12), 3, width=32, num_heads=4
    )
    with pytest.raises(ValueError, match=message):
        build(pixel_decoder=pixel_decoder, query_decoder=query_decoder)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"mask_decoder": nn.Identity()}, "no part is called 'mask_decoder'.*query_decoder"),
        ({"kv_stride": 32}, "no keyword 'kv_stride'.*points_per_level"),
        ({"backbone": "seaformer_tiny"}, "seaformer_tiny has no embed_dim or depths"),
        ({"backbone": "resnet"}, "no backbone is called 'resnet'"),
    ],
)
def test_what_cannot_be_built_is_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        build(**keywords)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"depths": (1, 1, 2)}, r"depths \(1, 1, 2\) and num_heads \(1, 2, 2, 4\) are of diff"),
        (
            {"depths": (1, 1, 0, 1)},
            "depths is .1, 1, 0, 1., but must be whole numbers from 1 to 100",
        ),
        ({"num_heads": 0}, "num_heads is 0, but must be a whole number from 1 to 512"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"window_size": -1}, "window_size is -1, but must be a whole number from 0 to 32"),
        ({"train_points": 0}, "train_points is 0"),
        ({"oversample": 0.5}, "oversample is 0.5, but must be a number from 1 to 100"),
        ({"importance": 1.5}, "importance is 1.5, but must be a number from 0 to 1"),
        ({"depths": (1, 1.0, 1, 1)}, "must be whole numbers from 1 to 100"),
    ],
)
def test_a_number_that_no_model_has_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


def test_a_query_decoder_for_other_classes_is_refused():
    decoder = QueryDecoder(32, 12, 2, width=32, num_heads=4)
    with pytest.raises(ValueError, match="number of classes: one part gives 2, the next expects 3"):
        build(query_decoder=decoder)
