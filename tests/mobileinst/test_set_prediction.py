"""Costs, matching, losses and criterion against independent implementations."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from mobileinst import zoo
from mobileinst.set_prediction import matcher
from mobileinst.set_prediction.losses import (
    Criterion,
    CrossEntropyClassLoss,
    FocalClassLoss,
    MaskLoss,
    ObjectnessLoss,
    PointMaskLoss,
    SemanticLoss,
    dice_loss,
    focal_loss,
)
from mobileinst.set_prediction.matcher import DiceClassCost, Matcher, PointCost
from mobileinst.set_prediction.targets import Target, stride_grid
from tests.small import SMALL, make_target

SIZE = (64, 96)


def make_outputs(batch, queries, classes, seed=0, size=SIZE):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    one = lambda: {  # noqa: E731
        "class_logits": draw(batch, queries, classes),
        "objectness": draw(batch, queries, 1),
        "mask_logits": draw(batch, queries, *stride_grid(size, 8)),
    }
    return one() | {"aux": [one()]}


def call(term, outputs, targets, matches, **counts):
    """The loss terms of one output, given dicts of the contract and plain counts."""
    counts = {name: torch.tensor(float(number)) for name, number in counts.items()}
    return term(outputs, [Target.of(target) for target in targets], matches, counts)


def grid_criterion(queries):
    return Criterion(Matcher(DiceClassCost()), FocalClassLoss(), MaskLoss(), (ObjectnessLoss(),))


def point_criterion(queries):
    terms = CrossEntropyClassLoss(queries), PointMaskLoss(points=40)
    return Criterion(Matcher(PointCost(points=40)), *terms)


both_criteria = pytest.mark.parametrize("make_criterion", [grid_criterion, point_criterion])


def test_focal_loss_agrees_with_torchvision():
    logits, wanted = torch.randn(4, 7, 3), (torch.rand(4, 7, 3) > 0.8).float()
    expected = torchvision.ops.sigmoid_focal_loss(logits, wanted, 0.25, 2.0)
    torch.testing.assert_close(focal_loss(logits, wanted, 0.25, 2.0), expected)


def test_dice_loss_of_perfect_and_disjoint_masks():
    masks = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0]])
    logits = torch.tensor([[99.0, 99, -99, -99], [-99, -99, 99, 99]])
    loss = dice_loss(logits, masks, torch.ones(2, 4))
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(4, 3), (3, 3), (3, 5), (1, 3), (5, 1)])
def test_matching_is_the_best_of_all_assignments(shape):
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    matcher = Matcher(lambda outputs, target: cost)
    target = make_target([0] * shape[1])
    outputs = {"class_logits": torch.zeros(1, shape[0], 2)}
    [[(query_idx, target_idx)]] = matcher([(outputs, [Target.of(target)])])
    short, long = sorted(shape)
    rows = range(short)
    table = cost if shape[0] == short else cost.T
    best = min(
        sum(table[r, c].item() for r, c in zip(rows, columns))
        for columns in itertools.permutations(range(long), short)
    )
    assert len(query_idx) == short
    assert cost[query_idx, target_idx].sum().item() == pytest.approx(best)


@pytest.mark.parametrize(("objects", "times"), [(1, 3), (2, 2), (3, 1), (6, 1), (0, 1)])
def test_objects_have_several_queries_in_auxiliary_outputs(objects, times):
    """Checked against the best of all assignments, with 5 queries and 3 wanted per object."""
    cost = torch.randn((5, objects), generator=torch.Generator().manual_seed(5))
    outputs = {"class_logits": torch.zeros(1, 5, 2)}
    layer = outputs, [Target.of(make_target([0] * objects))]
    (last, aux, _) = (pairs for [pairs] in Matcher(lambda *_: cost, 3)([layer] * 3))
    assert sorted(last[1].tolist()) == sorted(set(last[1].tolist()))
    query_idx, target_idx = aux
    assert len(set(query_idx.tolist())) == len(query_idx) == min(5, times * objects)
    if objects < 6:
        assert sorted(target_idx.tolist()) == sorted(list(range(objects)) * times)
        orders = itertools.permutations(range(5), times * objects)
        best = min(
            sum(cost[q, n % objects].item() for n, q in enumerate(order)) for order in orders
        )
        assert cost[query_idx, target_idx].sum().item() == pytest.approx(best)


def test_cost_agrees_with_a_plain_restatement():
    outputs, target = make_outputs(1, 6, 4), make_target([2, 0, 3])
    one = {key: outputs[key][0].detach() for key in ("class_logits", "mask_logits")}
    cost = DiceClassCost()(one, Target.of(target))
    for q, n in itertools.product(range(6), range(3)):
        prob = one["mask_logits"][q].sigmoid()
        mask = target["masks"][n].float().view(8, 8, 12, 8).mean((1, 3))
        dice = 2 * (prob * mask).sum() / (prob.square().sum() + mask.square().sum() + 1e-4)
        class_prob = one["class_logits"][q, target["labels"][n]].sigmoid()
        assert cost[q, n].item() == pytest.approx(-(dice**0.8 * class_prob**0.2).item(), rel=1e-4)


def test_class_targets_follow_a_cyclic_assignment():
    """Three objects of three classes, matched in a cycle: the inverse permutation would differ."""
    cycle = {0: 1, 1: 2, 2: 0}
    target = make_target([5, 6, 7])
    cost = torch.ones(4, 3)
    for query, wanted in cycle.items():
        cost[query, wanted] = 0
    logits = torch.full((1, 4, 8), -20.0)
    for query, wanted in cycle.items():
        logits[0, query, target["labels"][wanted]] = 20.0
    outputs = make_outputs(1, 4, 8) | {"class_logits": logits}
    [matches] = Matcher(lambda *_: cost)([(outputs, [Target.of(target)])])
    assert matches[0][1].tolist() == [1, 2, 0]
    wrong = [(matches[0][0], torch.tensor([2, 0, 1]))]
    right_loss, wrong_loss = (
        call(FocalClassLoss(), outputs, [target], each, objects=3)["class"].item()
        for each in (matches, wrong)
    )
    assert right_loss < 1e-6 and wrong_loss > 10


@both_criteria
@pytest.mark.parametrize("labels", [[[], []], [[1], []], [[0, 1, 2, 1, 0, 1, 2, 0], [3]]])
@pytest.mark.parametrize("queries", [1, 5])
def test_images_without_objects_and_more_objects_than_queries(make_criterion, labels, queries):
    outputs = make_outputs(2, queries, 5)
    targets = [make_target(one, seed) for seed, one in enumerate(labels)]
    losses = make_criterion(queries)(outputs, targets)
    assert {"class", "pixel", "dice", "class_aux0", "pixel_aux0", "dice_aux0"} <= losses.keys()
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    read = ["class_logits", "mask_logits"] + ["objectness"] * ("objectness" in losses)
    for layer in (outputs, *outputs["aux"]):
        assert all(layer[key].grad is not None for key in read)


@both_criteria
def test_losses_of_two_halves_add_up_to_the_whole(make_criterion):
    outputs = make_outputs(4, 3, 4)
    layers = [
        {key: x.double() for key, x in layer.items() if key != "aux"}
        for layer in (outputs, *outputs["aux"])
    ]
    labels = [[0, 1], [], [2], [1, 1, 0, 2]]  # the last has more objects than there are queries
    targets = [make_target(one, seed) for seed, one in enumerate(labels)]
    criterion, halves = make_criterion(3), (slice(0, 2), slice(2, 4))
    counts, parts = criterion.counts(targets), [criterion.counts(targets[half]) for half in halves]
    assert counts == {name: parts[0][name] + parts[1][name] for name in counts}
    expected = {"objects": 7, "images": 4}
    if make_criterion is point_criterion:
        expected |= {"matched": 6, "unmatched": 6}
    assert counts == expected
    summed = {}
    for half in halves:
        last, aux = ({key: x[half] for key, x in layer.items()} for layer in layers)
        for name, value in criterion(last | {"aux": [aux]}, targets[half], counts).items():
            summed[name] = summed.get(name, 0) + value
    whole = criterion(layers[0] | {"aux": layers[1:]}, targets)
    assert all(value.dtype == torch.float64 for value in whole.values())
    torch.testing.assert_close(summed, whole, rtol=1e-12, atol=0)


@both_criteria
def test_matches_can_be_handed_in(make_criterion):
    outputs, targets = make_outputs(2, 3, 3), [make_target([0, 1], 1), make_target([], 2)]
    criterion, own = make_criterion(3), [Target.of(target) for target in targets]
    [matches] = criterion.matcher([({k: outputs[k] for k in outputs if k != "aux"}, own)])
    swapped = [(query_idx.flip(0), target_idx) for query_idx, target_idx in matches]
    losses = criterion(outputs, targets, matches=[matches, swapped])
    others = criterion(outputs, targets, matches=[swapped, swapped])
    assert losses["pixel"] == criterion(outputs, targets)["pixel"] != others["pixel"]
    assert losses["pixel_aux0"] == others["pixel_aux0"]


def test_half_void_cells_keep_the_share_of_their_valid_pixels():
    void = torch.zeros(SIZE, dtype=torch.bool)
    void[:, 4:8] = True
    target = make_target([0], ignore=void)
    target["masks"][:] = False
    target["masks"][0, :, :4] = True
    soft, valid = Target.of(target).soft_masks(stride_grid(SIZE, 8))
    assert (soft[0, 0, 0].item(), valid[0, 0].item()) == (1, 0.5)


def test_void_and_padding_change_no_mask_loss():
    void = torch.zeros(SIZE, dtype=torch.bool)
    void[:, 40:56] = True
    target = make_target([0, 1], ignore=void) | {"size": (64, 80)}
    outputs = make_outputs(1, 3, 2)
    matches = [(torch.tensor([0, 2]), torch.tensor([1, 0]))]
    before = call(MaskLoss(), outputs, [target], matches, objects=2)
    changed = {**target, "masks": target["masks"] | void}
    changed["masks"][:, :, 80:] = True
    after = call(MaskLoss(), outputs, [changed], matches, objects=2)
    torch.testing.assert_close(before, after)
    assert after["dice"].item() > 0


def test_an_unmatched_query_inside_void_has_no_class_loss():
    void = torch.zeros(SIZE, dtype=torch.bool)
    void[:32, :48] = True
    target = make_target([], ignore=void)
    logits = torch.full((1, 2, *stride_grid(SIZE, 8)), -9.0)
    logits[0, 0, :4, :6] = 9.0  # inside the void
    logits[0, 1, 4:, 6:] = 9.0  # outside
    assert Target.of(target).ignores(logits[0]).tolist() == [True, False]
    classes = torch.full((1, 2, 3), 3.0, requires_grad=True)
    outputs = {"class_logits": classes, "mask_logits": logits}
    nothing = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))]
    call(FocalClassLoss(), outputs, [target], nothing, objects=1)["class"].backward()
    assert classes.grad[0, 0].abs().sum() == 0
    assert classes.grad[0, 1].abs().min() > 0


def test_objectness_learns_the_iou():
    target = make_target([0])
    grid = stride_grid(SIZE, 8)
    wanted = Target.of(target).soft_masks(grid)[0] > 0.5
    predicted = wanted.roll(1, -1)
    iou = ((predicted & wanted).sum() / (predicted | wanted).sum()).item()
    scores = torch.zeros(1, 1, 1, requires_grad=True)
    outputs = {"objectness": scores, "mask_logits": torch.where(predicted, 9.0, -9.0)[None]}
    match = [(torch.tensor([0]), torch.tensor([0]))]
    call(ObjectnessLoss(), outputs, [target], match, objects=1)["objectness"].backward()
    assert scores.grad.item() == pytest.approx(0.5 - iou, abs=1e-6)


def test_the_class_learns_the_iou_if_asked():
    """A query at a time: in three images, one of them empty, one object with two queries, cells
    without weight, and an object that is too thin for a cell.
    """
    ignore = torch.zeros(SIZE, dtype=torch.bool)
    ignore[:, 75:] = True
    targets = [make_target([1, 0], 3, ignore=ignore), make_target([], 4), make_target([1], 5)]
    targets[2]["masks"][0] = False
    targets[2]["masks"][0, 40] = True
    outputs = make_outputs(3, 4, 3, seed=6)  # two classes and no object
    pairs = [[(2, 0), (0, 1), (3, 1)], [], [(1, 0)]]
    matches = [torch.tensor(each, dtype=torch.int64).reshape(-1, 2).unbind(1) for each in pairs]
    term = CrossEntropyClassLoss(4, weight=1.0, no_object_weight=0.3, iou_targets=True)
    found = call(term, outputs, targets, matches, matched=4, unmatched=8)["class"]
    expected, ious = 0.0, []
    for image, (target, each) in enumerate(zip(targets, pairs, strict=True)):
        logp = outputs["class_logits"][image].log_softmax(-1)
        masks, valid = Target.of(target).soft_masks(stride_grid(SIZE, 8))
        for query in range(4):
            objects = [place for one, place in each if one == query]
            if not objects:
                expected -= 0.3 * logp[query, 2]
                continue
            mask, wanted = outputs["mask_logits"][image, query] >= 0, masks[objects[0]] > 0.5
            shared, either = (
                ((x & y) * valid).sum() for x, y in ((mask, wanted), (mask | wanted,) * 2)
            )
            iou = (shared / either).item() if wanted.any() else 1.0
            label = target["labels"][objects[0]]
            expected -= iou * logp[query, label] + (1 - iou) * logp[query, 2]
            ious.append(iou)
    assert found.item() == pytest.approx(expected.item() / (4 + 0.3 * 8), rel=1e-5)
    assert ious[-1] == 1 and all(0.01 < iou < 0.9 for iou in ious[:-1])


@pytest.mark.parametrize("labels", [[1, 1, 0], []])
def test_semantic_loss_agrees_with_a_plain_restatement(labels):
    target = make_target(labels, seed=4)
    logits = torch.randn(1, 3, 8, 12)
    loss = call(SemanticLoss(0.5), {"semantic_logits_x4": logits}, [target], [], images=1)
    wanted = torch.zeros(3, 8, 12)
    for label, mask in zip(target["labels"], target["masks"]):
        share = mask.float().view(8, 8, 12, 8).mean((1, 3))
        wanted[label] = torch.maximum(wanted[label], share)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits[0], wanted, reduction="none")
    assert loss["semantic_x4"].item() == pytest.approx(0.5 * bce.sum(0).mean().item(), rel=1e-5)


def test_class_cross_entropy_is_the_weighted_mean_of_torch():
    outputs = make_outputs(2, 5, 4)  # three classes and no object
    targets = [make_target([2, 0]), make_target([])]
    nothing = torch.zeros(0, dtype=torch.int64)
    matches = [(torch.tensor([3, 1]), torch.tensor([0, 1])), (nothing, nothing)]
    term = CrossEntropyClassLoss(5, weight=2.0, no_object_weight=0.3)
    wanted = torch.full((2, 5), 3)
    wanted[0, 3], wanted[0, 1] = 2, 0
    expected = 2 * F.cross_entropy(
        outputs["class_logits"].transpose(1, 2), wanted, torch.tensor([1, 1, 1, 0.3])
    )
    loss = call(term, outputs, targets, matches, **term.counts(targets))["class"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_class_cross_entropy_passes_over_unmatched_queries_inside_void():
    void = torch.zeros(SIZE, dtype=torch.bool)
    void[:32, :48] = True
    logits = torch.full((1, 3, *stride_grid(SIZE, 8)), -9.0)
    logits[0, :2, :4, :6] = 9.0  # inside the void
    logits[0, 2, 4:, 6:] = 9.0  # outside
    classes = torch.full((1, 3, 4), 1.0, requires_grad=True)
    outputs = {"class_logits": classes, "mask_logits": logits}
    term, target = CrossEntropyClassLoss(3), make_target([0], ignore=void)
    matches = [(torch.tensor([1]), torch.tensor([0]))]
    call(term, outputs, [target], matches, matched=1, unmatched=2)["class"].backward()
    silent = classes.grad[0].abs().sum(1) == 0
    assert silent.tolist() == [True, False, False]
    before = classes.grad.clone()
    classes.grad = None
    call(term, outputs, [make_target([0])], matches, matched=1, unmatched=2)["class"].backward()
    assert torch.equal(classes.grad[0, 1:], before[0, 1:])  # the others are as without void


def test_void_changes_no_loss_at_points():
    void = torch.zeros(SIZE, dtype=torch.bool)
    void[:, 40:56] = True
    target = make_target([0, 1], ignore=void)
    changed = {**target, "masks": target["masks"] ^ void}
    criterion, outputs = point_criterion(3), make_outputs(1, 3, 3)
    one = {key: outputs[key][0].detach() for key in ("class_logits", "mask_logits")}
    costs = [PointCost()(one, Target.of(each)) for each in (target, changed)]
    torch.testing.assert_close(*costs)
    before, after = criterion(outputs, [target]), criterion(outputs, [changed])
    torch.testing.assert_close(before, after)
    without = criterion(outputs, [make_target([0, 1])])
    assert without["pixel"].item() != before["pixel"].item()


@pytest.fixture(scope="module", params=SMALL)
def criterion_of_a_system(request):
    return zoo.build(request.param, num_classes=3, **SMALL[request.param])[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 6e4])
def test_the_assignment_never_sees_a_cost_that_is_not_finite(
    criterion_of_a_system, monkeypatch, dtype, bad
):
    """Of an output that is not finite, or is where half precision ends, whatever the precision."""
    assign, seen = matcher.linear_sum_assignment, []

    def guarded(cost):
        assert np.isfinite(cost).all()
        seen.append(cost)
        return assign(cost)

    monkeypatch.setattr(matcher, "linear_sum_assignment", guarded)
    generator = torch.Generator().manual_seed(0)
    classes = 4 if "CrossEntropy" in type(criterion_of_a_system.terms[0]).__name__ else 3
    outputs = {
        "class_logits": torch.randn(1, 4, classes, generator=generator).to(dtype),
        "mask_logits": torch.randn(1, 4, 8, 8, generator=generator).to(dtype),
        "objectness": torch.zeros(1, 4, 1, dtype=dtype),
        "aux": [],
    }
    target = make_target([0, 2], seed=7, size=(64, 64))
    criterion_of_a_system(outputs, [target])
    assert len(seen) == 1
    for where in ("class_logits", "mask_logits"):
        seen.clear()
        spoilt = outputs | {where: outputs[where].clone()}
        spoilt[where][0, 1] = bad
        try:
            losses = criterion_of_a_system(spoilt, [target])
        except FloatingPointError as error:
            assert "matching cost of image 7" in str(error) and not math.isfinite(bad)
        else:  # an infinite logit is a certain one: its cost may be finite
            assert len(seen) == 1 and not math.isnan(bad)
            assert math.isfinite(sum(losses.values())) or math.isinf(bad)  # the loop looks at it
