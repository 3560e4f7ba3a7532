"""SparseInst against numbers of the official code, plain re-statements, and published sizes.

The reference files are not part of the project; tests that need them are left out without.
"""

import math
import zlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mobileinst import weights, zoo
from mobileinst.set_prediction.targets import Target
from mobileinst.sparseinst.decoder import Decoder, InstanceBranch
from mobileinst.sparseinst.encoder import ContextEncoder
from mobileinst.sparseinst.model import SparseInst, SparseInstConfig, sparseinst_training

KINDS = {"base": {"groups": 0}, "giam": {}, "soft": {"softmax": True}}
FULL = {"base": "sparseinst_resnet50", "giam": "sparseinst_resnet50_giam"}
FULL["giam_soft"] = FULL["giam"]
TERMS = {"class": "loss_ce", "pixel": "loss_mask", "dice": "loss_dice"}
TERMS["objectness"] = "loss_objectness"
LIMIT = 1e-4  # deliberate mistakes, as another order of coordinates, give 1.3e-3 and more


@pytest.fixture(scope="module")
def oracle(shared):
    def oracle(name):
        path = shared / "oracles" / f"sparseinst_{name}.pt"
        if not path.is_file():
            pytest.skip(f"needs {path.name}, numbers of the official code")
        return torch.load(path, weights_only=True)

    return oracle


def error(got, want):
    """The largest difference, relative to the largest value."""
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()


class Maps(nn.Module):
    """A backbone that returns the maps of a case."""

    mean, std, strides = (0.5,) * 3, (0.5,) * 3, (8, 16, 32)

    def __init__(self, channels, maps):
        super().__init__()
        self.channels, self.maps = channels, maps

    def forward(self, images):
        return self.maps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["even", "odd", "small"])
@torch.no_grad()
def test_heads_agree_with_the_official_code(oracle, kind, case):
    numbers = oracle(kind)
    dims = numbers["dims"]
    model = SparseInst(
        Maps(dims["in_channels"], numbers["inputs"][case]),
        ContextEncoder(dims["in_channels"], dims["width"]),
        Decoder(
            dims["width"], dims["classes"], width=dims["inst_dim"], kernel_dim=dims["kernel_dim"],
            num_queries=dims["queries"], **KINDS[kind],
        ),
    ).eval()  # fmt: skip
    model.load_state_dict(numbers["state"])  # every name and shape is the official one
    seen = {}
    for name, module in (("ppm", model.encoder.ppm), ("encoder", model.encoder)):
        module.register_forward_hook(lambda *call, name=name: seen.update({name: call[-1]}))
    model.decoder.inst_branch.iam_conv.register_forward_hook(
        lambda *call: seen.update(iam=call[-1])
    )
    seen |= model(torch.zeros(1, 3, 8, 8))
    wanted = numbers["outputs"][case]
    assert max(error(seen[name], want) for name, want in wanted.items()) < LIMIT


class OfficialMasks(Target):
    """Sampled in the middle of a cell; padding is background and counts."""

    def soft_masks(self, grid):
        masks = F.interpolate(self.masks[None].float(), grid, mode="bilinear", align_corners=False)
        return masks[0], torch.ones(grid)


def official_value(name, shape):
    """The weights of the whole models: they follow from the official names."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    kind = name.rsplit(".", 1)[-1]
    if kind == "softmax_bias":
        return torch.full(shape, 0.7)
    if kind == "running_var":
        value = torch.rand(shape, generator=generator) + 0.5
    elif kind in ("running_mean", "bias"):
        value = 0.1 * torch.randn(shape, generator=generator)
    elif len(shape) == 1:
        value = torch.rand(shape, generator=generator) + 0.5
        value *= 0.25 if ".conv3.norm." in name or ".shortcut.norm." in name else 1
    else:
        value = torch.randn(shape, generator=generator) * math.sqrt(1.6 / math.prod(shape[1:]))
    factors = {
        "iam_conv.weight": 12, "cls_score.weight": 4, "objectness.weight": 6,
        "mask_kernel.weight": 2.5,
    }  # fmt: skip
    value *= factors.get(name.removeprefix("decoder.inst_branch."), 1)
    return value - 2 if name == "decoder.inst_branch.cls_score.bias" else value


@pytest.mark.parametrize("kind", FULL)
@torch.no_grad()
def test_a_published_file_loads_and_gives_the_official_outputs(oracle, kind, tmp_path):
    """The whole model, losses and detections; the file is as a training of theirs saves it."""
    numbers = oracle(f"full_r50_{kind}")
    state = {name: official_value(name, shape) for name, shape in numbers["keys"].items()}
    torch.save({"model": state}, tmp_path / "official.pth")
    model, criterion, postprocess = zoo.build(FULL[kind], 80, softmax=kind == "giam_soft")
    report = weights.load(model.eval(), tmp_path / "official.pth")
    assert report.whole and len(report.loaded) == len(state) and not report.unexpected
    assert report.source == "SparseInst with ResNet-50" and report.container == "model"
    images, padding = torch.zeros(2, 3, 96, 160), torch.ones(2, 96, 160, dtype=torch.bool)
    sizes = []
    for image, blank, pixels, orig in zip(images, padding, numbers["images"], numbers["orig"]):
        height, width = pixels.shape[1:]
        image[:, :height, :width] = pixels / 255
        blank[:height, :width] = False
        sizes.append(((96, 160), (height, width), orig))
    outputs = model(images, padding)
    for name in ("class_logits", "objectness", "kernels", "mask_logits"):
        assert error(outputs[name], numbers["outputs"][name]) < LIMIT, name
    res5 = model.backbone_maps(images, padding)[-1].mean((2, 3))
    assert error(res5, numbers["outputs"]["res5_mean"]) < LIMIT
    targets = []
    for number, (target, (_, size, _)) in enumerate(zip(numbers["targets"], sizes)):
        masks = F.pad(target["masks"], (0, 160 - size[1], 0, 96 - size[0]))
        ignore = torch.zeros(96, 160, dtype=torch.bool)
        targets.append(
            target | {"masks": masks, "ignore": ignore, "image_id": number, "size": size}
        )
    losses = criterion(outputs, targets)
    # With masks as they are made there, matches are the official ones; with ours one changes.
    official = [OfficialMasks.of(target) for target in targets]
    matches = criterion.matcher([(outputs, official)])
    same = criterion(outputs, targets, matches=matches)["class"].item()
    assert same == pytest.approx(numbers["losses"]["loss_ce"], rel=1e-5)
    assert losses["class"].item() == pytest.approx(numbers["losses"]["loss_ce"], rel=1e-3)
    # Detections of the first image, which has no padding, before near duplicates are dropped.
    postprocess.duplicate_iou, postprocess.max_detections = 1.0, 8000
    result, want = postprocess(outputs, sizes)[0], numbers["results"][0]
    scores, labels = (result[name][result["best"]] for name in ("scores", "labels"))
    order = want["scores"].argsort(descending=True)
    assert (want["scores"][order] - scores).abs().max() < 1e-5
    assert (want["labels"][order] == labels).float().mean() > 0.9  # but for equal scores


def loss_case(case):
    """Outputs that need gradients, and targets of the contract."""
    outputs = {name: x.clone().requires_grad_() for name, x in case["outputs"].items()}
    targets = [
        target | {"ignore": torch.zeros(96, 160, dtype=torch.bool), "image_id": number}
        for number, target in enumerate(case["targets"])
    ]
    return outputs, targets


def criterion_for(outputs):
    config = SparseInstConfig(num_classes=outputs["class_logits"].shape[2])
    return sparseinst_training(config, None)[0]


CASES = ["whole", "aligned", "whole_free", "free", "few_queries"]


@pytest.mark.parametrize("name", CASES)
def test_matches_are_the_official_ones(oracle, name):
    case = oracle("loss")["cases"][name]
    outputs, targets = loss_case(case)
    matcher = criterion_for(outputs).matcher
    found = matcher([(outputs, [Target.of(target) for target in targets])])[0]
    for got, want in zip(found, case["matches"], strict=True):
        assert {*zip(*map(torch.Tensor.tolist, got))} == {*zip(*map(torch.Tensor.tolist, want))}


def test_losses_and_gradients_are_the_official_ones(oracle):
    """Without padding and with masks of whole cells, where both ways to shrink masks agree."""
    case = oracle("loss")["cases"]["whole"]
    outputs, targets = loss_case(case)
    losses = criterion_for(outputs)(outputs | {"aux": []}, targets)
    for ours, theirs in TERMS.items():
        assert losses[ours].item() == pytest.approx(case["losses"][theirs], rel=1e-5)
    sum(losses.values()).backward()
    for name, want in case["gradients"].items():
        assert error(outputs[name].grad, want) < 1e-5, name


# Ours over the official terms where we differ on purpose, as measured. Padding is background there
# and counts; here it is left out (aligned, free). Masks are sampled in the middle of a cell there
# and averaged over it here (free, whole_free).
RATIOS = {
    "aligned": {"class": 1, "pixel": 1.012788, "dice": 0.908393, "objectness": 1.013396},
    "whole_free": {"class": 1, "pixel": 1.01724, "dice": 0.859737, "objectness": 0.99867},
    "free": {"class": 1, "pixel": 1.053525, "dice": 0.824769, "objectness": 1.027321},
}


@pytest.mark.parametrize("name", RATIOS)
def test_losses_differ_where_we_chose_otherwise(oracle, name):
    case = oracle("loss")["cases"][name]
    outputs, targets = loss_case(case)
    losses = criterion_for(outputs)(outputs | {"aux": []}, targets)
    ratios = {ours: losses[ours].item() / case["losses"][theirs] for ours, theirs in TERMS.items()}
    assert ratios == pytest.approx(RATIOS[name], rel=1e-4)


def test_more_objects_than_queries(oracle):
    """The official code then compares other images with wrong masks, all but the class term."""
    case = oracle("loss")["cases"]["few_queries"]
    outputs, targets = loss_case(case)
    losses = criterion_for(outputs)(outputs | {"aux": []}, targets)
    assert losses["class"].item() == pytest.approx(case["losses"]["loss_ce"], rel=1e-5)
    alone = criterion_for(outputs)(
        {name: x[1:] for name, x in outputs.items()} | {"aux": []}, targets[1:]
    )
    first = criterion_for(outputs)(
        {name: x[:1] for name, x in outputs.items()} | {"aux": []}, targets[:1]
    )
    for term in ("pixel", "dice", "objectness"):  # each image for itself: 8 objects and 2
        assert losses[term].item() == pytest.approx((8 * first[term] + 2 * alone[term]).item() / 10)


def test_a_batch_without_objects(oracle):
    case = oracle("loss")["cases"]["empty"]
    assert "IndexError" in case["error"]  # of the official code
    outputs, targets = loss_case(case)
    losses = criterion_for(outputs)(outputs | {"aux": []}, targets)
    assert losses["class"] > 0
    assert [losses[name].item() for name in ("pixel", "dice", "objectness")] == [0, 0, 0]
    sum(losses.values()).backward()
    assert all(x.grad.isfinite().all() for x in outputs.values())


def test_answers_are_the_official_ones(oracle):
    """One per query. Masks differ by less than the resizing of probabilities or logits."""
    numbers = oracle("post")
    _, postprocess = sparseinst_training(SparseInstConfig(num_classes=6), None)
    outputs = numbers["outputs"]
    found = postprocess(outputs, numbers["sizes"])
    for (padded, size, _), result, want in zip(numbers["sizes"], found, numbers["results"]):
        order = want["scores"].argsort(descending=True)
        best = result["best"].nonzero()[:, 0]
        by_query = {int(q): i for i, q in zip(best, result["query_idx"][best])}
        for place in order.tolist():
            i = by_query.get(int(want["query_idx"][place]))
            if i is None:
                continue  # an empty mask, or nearly the mask of a better detection of its class
            assert result["labels"][i] == want["labels"][place]
            # Here padding is no part of the quality of a mask.
            limit = 2e-6 if padded == size else 0.05
            assert abs(result["scores"][i] - want["scores"][place]) < limit


@pytest.mark.parametrize(
    "name, keywords, count, giga_640, giga_608",
    [
        ("sparseinst_resnet50", {}, 31_584_373, 73.3, 94.0),
        ("sparseinst_resnet50_giam", {}, 32_794_785, 73.9, 94.8),
        ("sparseinst_resnet50_giam", {"softmax": True}, 32_794_786, 73.9, 94.8),
    ],
)
def test_parameters_and_costs(name, keywords, count, giga_640, giga_608, giga_multiply_adds):
    with torch.device("meta"):
        model = zoo.build(name, 80, **keywords)[0].eval()
    # Norms are buffers in the official code.
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert sum(len(m.weight) for m in model.modules() if isinstance(m, nn.BatchNorm2d)) == 26_560
    assert giga_multiply_adds(model, 640, 640) == pytest.approx(giga_640, abs=0.06)
    assert giga_multiply_adds(model, 608, 864) == pytest.approx(giga_608, abs=0.06)


@pytest.mark.parametrize("groups", [2, 3])
@torch.no_grad()
def test_any_number_of_groups_joins_the_maps_of_a_query(groups):
    """Query n is made of map n of every group. The official code does so for four groups only."""
    branch = InstanceBranch(7, 3, width=12, kernel_dim=4, num_queries=5, groups=groups)
    x = torch.rand(2, 7, 6, 8)
    features = branch.inst_convs(x)
    maps = branch.iam_conv(features).sigmoid()  # [B,G·N,h,w]
    maps = maps / maps.sum((2, 3), keepdim=True)
    rows = [
        torch.stack([(maps[:, None, g * 5 + n] * features).sum((2, 3)) for n in range(5)], 1)
        for g in range(groups)
    ]
    want = branch.fc(torch.cat(rows, 2)).relu()
    torch.testing.assert_close(branch(x)["queries"], want)


@pytest.mark.parametrize("dtype, limit", [(torch.float16, 5e-4), (torch.bfloat16, 4e-3)])
@torch.no_grad()
def test_sums_over_all_cells_are_float32(dtype, limit):
    """The mean of the features times 25600 cells is above what float16 holds."""
    branch = InstanceBranch(4, 2, width=4, kernel_dim=4, num_queries=3, groups=0)
    features = 10 + torch.rand(1, 4, 160, 160)
    activations = torch.randn(1, 3, 160, 160)
    want = branch.aggregate(activations, features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = branch.aggregate(activations.to(dtype), features.to(dtype))
    assert got.dtype == torch.float32 and error(got, want) < limit


def test_start_values_are_the_published_ones():
    model = zoo.build("sparseinst_efficientnet_lite0", 3, num_queries=20)[0]
    branch, prior = model.decoder.inst_branch, -math.log(99)
    for layer in (branch.iam_conv, branch.cls_score):
        assert layer.bias.detach().unique().tolist() == pytest.approx([prior])
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert branch.inst_convs[2].weight.std().item() == pytest.approx(0.0295, rel=0.01)
    assert model.encoder.fusion.weight.std().item() == pytest.approx(0.0884, rel=0.01)
    assert model.decoder.mask_branch.projection.weight.std().item() == pytest.approx(
        0.125, rel=0.02
    )
    limits = [math.sqrt(3 / 2304), math.sqrt(3 / 1024)]
    for layer, limit in zip((model.encoder.fpn_outputs[0], branch.fc), limits):
        assert layer.weight.abs().max().item() == pytest.approx(limit, rel=1e-3)
        assert layer.bias.eq(0).all()
    assert model.encoder.ppm.bottleneck.bias.abs().max() > 0  # torch's own start
