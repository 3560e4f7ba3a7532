"""Costs, matching, losses and criterion against independent implementations."""

import itertools

import pytest
import torch
import torchvision
from scipy.optimize import linear_sum_assignment

from mobileinst import zoo
from mobileinst.set_prediction.costs import DiceClassCost
from mobileinst.set_prediction.criterion import Criterion
from mobileinst.set_prediction.grids import soft_masks, stride_grid
from mobileinst.set_prediction.losses import (
    FocalClassLoss,
    MaskLoss,
    ObjectnessLoss,
    SemanticLoss,
    dice_loss,
    focal_loss,
    in_ignore,
    mask_iou,
)
from mobileinst.set_prediction.matcher import Matcher

SIZE = (64, 96)


def make_target(labels, seed=0, size=SIZE, ignore=None):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(labels), *size, dtype=torch.bool)
    for mask in masks:
        y, x = (int(torch.randint(0, side - 20, (), generator=generator)) for side in size)
        mask[y : y + 20, x : x + 20] = True
    return {
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        "ignore": torch.zeros(size, dtype=torch.bool) if ignore is None else ignore,
        "image_id": seed,
        "size": size,
        "orig_size": size,
    }


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


def make_criterion():
    return Criterion(Matcher(DiceClassCost()), FocalClassLoss(), MaskLoss(), (ObjectnessLoss(),))


def test_focal_loss_agrees_with_torchvision():
    logits, wanted = torch.randn(4, 7, 3), (torch.rand(4, 7, 3) > 0.8).float()
    expected = torchvision.ops.sigmoid_focal_loss(logits, wanted, 0.25, 2.0)
    torch.testing.assert_close(focal_loss(logits, wanted), expected)


def test_dice_loss_of_perfect_and_disjoint_masks():
    masks = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0]])
    logits = torch.tensor([[99.0, 99, -99, -99], [-99, -99, 99, 99]])
    loss = dice_loss(logits, masks, torch.ones(2, 4))
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0)


def test_pixels_of_no_weight_change_no_mask_loss():
    masks, logits, weights = torch.rand(3, 50), torch.randn(3, 50), torch.ones(3, 50)
    weights[:, 20:] = 0
    spoiled = logits.clone()
    spoiled[:, 20:] = 37.0
    torch.testing.assert_close(
        dice_loss(logits, masks, weights), dice_loss(spoiled, masks, weights)
    )


@pytest.mark.parametrize("shape", [(4, 3), (3, 3), (3, 5), (1, 3), (5, 1)])
def test_matching_is_the_best_of_all_assignments(shape):
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    matcher = Matcher(lambda outputs, target: cost)
    target = make_target([0] * shape[1])
    [(query_idx, target_idx)] = matcher({"class_logits": torch.zeros(1, shape[0], 2)}, [target])
    short, long = sorted(shape)
    rows = range(short)
    table = cost if shape[0] == short else cost.T
    best = min(
        sum(table[r, c].item() for r, c in zip(rows, columns))
        for columns in itertools.permutations(range(long), short)
    )
    assert len(query_idx) == short
    assert cost[query_idx, target_idx].sum().item() == pytest.approx(best)


def test_cost_agrees_with_a_plain_restatement():
    outputs, target = make_outputs(1, 6, 4), make_target([2, 0, 3])
    one = {key: outputs[key][0].detach() for key in ("class_logits", "mask_logits")}
    cost = DiceClassCost()(one, target)
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
    matches = Matcher(lambda *_: cost)(outputs | {"aux": []}, [target])
    assert matches[0][1].tolist() == [1, 2, 0]
    loss = FocalClassLoss()(outputs, [target], matches, {"objects": torch.tensor(3.0)})["class"]
    assert loss.item() < 1e-6
    wrong = [(matches[0][0], torch.tensor([2, 0, 1]))]
    assert (
        FocalClassLoss()(outputs, [target], wrong, {"objects": torch.tensor(3.0)})["class"].item()
        > 10
    )


def test_a_nonfinite_cost_names_the_picture():
    matcher = Matcher(lambda *_: torch.full((3, 1), float("nan")))
    with pytest.raises(FloatingPointError, match="picture 12"):
        matcher({"class_logits": torch.zeros(1, 3, 2)}, [make_target([0], seed=12)])


@pytest.mark.parametrize("labels", [[[], []], [[1], []], [[0, 1, 2, 1, 0, 1, 2, 0], [3]]])
@pytest.mark.parametrize("queries", [1, 5])
def test_pictures_without_objects_and_more_objects_than_queries(labels, queries):
    outputs = make_outputs(2, queries, 4)
    targets = [make_target(one, seed) for seed, one in enumerate(labels)]
    losses = make_criterion()(outputs, targets)
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    for layer in (outputs, *outputs["aux"]):
        for key in ("class_logits", "objectness", "mask_logits"):
            assert layer[key].grad is not None, key


def test_losses_of_two_halves_add_up_to_the_whole():
    outputs = make_outputs(4, 6, 3)
    targets = [make_target(one, seed) for seed, one in enumerate([[0, 1], [], [2], [1, 1, 0]])]
    criterion = make_criterion()
    whole, counts = criterion(outputs, targets), criterion.counts(targets)
    summed = {}
    for part in (slice(0, 2), slice(2, 4)):
        some = {key: outputs[key][part] for key in outputs if key != "aux"}
        some["aux"] = [{key: value[part] for key, value in outputs["aux"][0].items()}]
        for name, value in criterion(some, targets[part], counts).items():
            summed[name] = summed.get(name, 0) + value
    torch.testing.assert_close(summed, whole)


def test_void_and_padding_change_no_mask_loss():
    void = torch.zeros(SIZE, dtype=torch.bool)
    void[:, 40:56] = True
    target = make_target([0, 1], ignore=void) | {"size": (64, 80)}
    outputs = make_outputs(1, 3, 2)
    matches = [(torch.tensor([0, 2]), torch.tensor([1, 0]))]
    before = MaskLoss()(outputs, [target], matches, {"objects": torch.tensor(2.0)})
    changed = {**target, "masks": target["masks"] | void}
    changed["masks"][:, :, 80:] = True
    after = MaskLoss()(outputs, [changed], matches, {"objects": torch.tensor(2.0)})
    torch.testing.assert_close(before, after)
    assert after["dice"].item() > 0


def test_half_void_cells_keep_the_share_of_their_valid_pixels():
    void = torch.zeros(SIZE, dtype=torch.bool)
    void[:, 4:8] = True
    target = make_target([0], ignore=void)
    target["masks"][:] = False
    target["masks"][0, :, :4] = True
    soft, valid = soft_masks(target, stride_grid(SIZE, 8))
    assert soft[0, 0, 0].item() == 1.0
    assert valid[0, 0].item() == 0.5


def test_an_unmatched_query_inside_void_has_no_class_loss():
    void = torch.zeros(SIZE, dtype=torch.bool)
    void[:32, :48] = True
    target = make_target([], ignore=void)
    logits = torch.full((1, 2, *stride_grid(SIZE, 8)), -9.0)
    logits[0, 0, :4, :6] = 9.0  # inside the void
    logits[0, 1, 4:, 6:] = 9.0  # outside
    assert in_ignore(logits[0], target).tolist() == [True, False]
    classes = torch.full((1, 2, 3), 3.0, requires_grad=True)
    outputs = {"class_logits": classes, "mask_logits": logits}
    nothing = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))]
    FocalClassLoss()(outputs, [target], nothing, {"objects": torch.tensor(1.0)})["class"].backward()
    assert classes.grad[0, 0].abs().sum() == 0
    assert classes.grad[0, 1].abs().min() > 0


def test_objectness_learns_the_iou():
    target = make_target([0])
    grid = stride_grid(SIZE, 8)
    wanted = soft_masks(target, grid)[0] > 0.5
    predicted = wanted.roll(1, -1)
    iou = mask_iou(predicted, wanted, torch.ones(1, *grid)).item()
    expected = (predicted & wanted).sum() / (predicted | wanted).sum()
    assert iou == pytest.approx(expected.item())
    scores = torch.zeros(1, 1, 1, requires_grad=True)
    outputs = {"objectness": scores, "mask_logits": torch.where(predicted, 9.0, -9.0)[None]}
    match = [(torch.tensor([0]), torch.tensor([0]))]
    ObjectnessLoss()(outputs, [target], match, {"objects": torch.tensor(1.0)})[
        "objectness"
    ].backward()
    assert scores.grad.item() == pytest.approx(0.5 - iou, abs=1e-6)


def test_matching_agrees_with_scipy_on_the_cost_of_a_whole_batch():
    outputs = make_outputs(3, 8, 4)
    targets = [make_target(one, seed) for seed, one in enumerate([[1, 2], [0], [3, 3, 1]])]
    matches = Matcher(DiceClassCost())(outputs, targets)
    for index, (query_idx, target_idx) in enumerate(matches):
        one = {key: outputs[key][index] for key in ("class_logits", "mask_logits")}
        cost = DiceClassCost()(one, targets[index]).detach().numpy()
        expected = linear_sum_assignment(cost)
        assert [query_idx.tolist(), target_idx.tolist()] == [part.tolist() for part in expected]


def test_semantic_loss_agrees_with_a_plain_restatement():
    target = make_target([1, 1, 0], seed=4)
    logits = torch.randn(1, 3, 8, 12)
    loss = SemanticLoss(0.5)(
        {"semantic_logits_x4": logits}, [target], [], {"pictures": torch.tensor(1.0)}
    )
    wanted = torch.zeros(3, 8, 12)
    for label, mask in zip(target["labels"], target["masks"]):
        share = mask.float().view(8, 8, 12, 8).mean((1, 3))
        wanted[label] = torch.maximum(wanted[label], share)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits[0], wanted, reduction="none")
    assert loss["semantic_x4"].item() == pytest.approx(0.5 * bce.sum(0).mean().item(), rel=1e-5)


def test_semantic_loss_passes_over_pictures_without_objects_and_auxiliary_outputs():
    logits = torch.zeros(1, 3, 8, 12, requires_grad=True)
    counts = {"pictures": torch.tensor(1.0)}
    loss = SemanticLoss()({"semantic_logits_x4": logits}, [make_target([])], [], counts)[
        "semantic_x4"
    ]
    loss.backward()
    assert loss.item() > 0 and (logits.grad > 0).all()
    assert SemanticLoss()({"class_logits": logits}, [make_target([])], [], counts) == {}


@pytest.mark.parametrize("small_set", [{}, {"guided": True, "semantic_weight": 1.0}])
@pytest.mark.parametrize("size", [(64, 96), (65, 127), (100, 201)])
def test_every_parameter_receives_a_gradient_from_the_criterion(size, small_set):
    model, criterion, _ = zoo.build(
        "mobileinst_topformer_tiny", 3, width=32, kernel_dim=16, query_width=32, queries=4,
        drop_path=0.0, **small_set,
    )  # fmt: skip
    # A residual branch that starts at zero passes nothing on: start it elsewhere.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.7)
    targets = [make_target([0, 2], 1, size), make_target([1], 2, size)]
    images, padding = torch.rand(2, 3, *size), torch.zeros(2, *size, dtype=torch.bool)
    model.train()
    sum(criterion(model(images, padding), targets).values()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_zoo_refuses_unknown_names_and_keywords():
    with pytest.raises(ValueError, match="mobileinst_topformer_tiny"):
        zoo.build("mobileinst_topformer_huge", 3)
    with pytest.raises(ValueError, match="kv_stride"):
        zoo.build("mobileinst_topformer_tiny", 3, stride=4)
