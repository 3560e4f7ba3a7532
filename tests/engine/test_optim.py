"""Parameter groups by rule, schedules against torch's own, the moving average against a loop."""

import copy
import dataclasses
import random

import pytest
import torch
from torch import nn

from engine import train
from engine.optim import MovingAverage, Schedule, describe_groups, parameter_groups
from mobileinst import zoo
from tests.small import SMALL


@pytest.fixture(scope="module")
def model():
    return zoo.build(
        "mobileinst_topformer_tiny", num_classes=3, **SMALL["mobileinst_topformer_tiny"]
    )[0]


def decay_by_name(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [(names[id(p)], group["weight_decay"]) for group in groups for p in group["params"]]
    assert len(listed) == len(dict(listed)), "a parameter in two groups"
    return dict(listed)


def test_norms_biases_and_queries_are_not_decayed(model):
    decays = decay_by_name(model, parameter_groups(model, 1e-3, 0.05))
    assert decays.keys() == dict(model.named_parameters()).keys()
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    of_norms = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, norms)
        for name, _ in module.named_parameters()
    }
    assert len(of_norms) > 50
    kept = {name for name, decay in decays.items() if decay == 0}
    assert of_norms <= kept
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith("bias") or "query_" in name:
            assert name in kept, name
    queries = {f"instance_decoder.query_{what}.weight" for what in ("features", "positions")}
    assert queries <= kept
    # and nothing else is kept: the weights of layers are what is decayed
    assert {decays[name] for name in decays.keys() - kept} == {0.05}
    assert {name.rsplit(".", 1)[-1] for name in decays.keys() - kept} == {"weight"}


def test_mask2former_is_decayed_as_published():
    """Matrices of layers, those of attention stacked; no embedding, bias table, norm or bias. The
    pixel decoder's level embedding decays there, by the accident of being no embedding module.
    """
    with torch.device("meta"):
        model = zoo.build("mask2former_swin_tiny", 3)[0]
    decays = decay_by_name(model, parameter_groups(model, 1e-3, 0.05))
    kept = {name for name, decay in decays.items() if decay == 0}
    tables = ("query_feat", "query_embed", "level_embed", "relative_position_bias_table")
    for name, parameter in model.named_parameters():
        assert (name in kept) == (parameter.ndim < 2 or any(part in name for part in tables)), name


def test_the_rule_does_not_read_names():
    class Odd(nn.Module):
        no_weight_decay = ("weight",)

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))  # a table, whatever it is called
            self.linear_norm = nn.LayerNorm((4, 4))  # two dimensions, and still a norm
            self.bias = nn.Linear(4, 4)
            self.table = nn.Embedding(5, 4)
            self.up = nn.ConvTranspose2d(4, 4, 2)

    decays = decay_by_name(model := Odd(), parameter_groups(model, 1e-3, 0.1))
    assert {name for name, decay in decays.items() if decay} == {"bias.weight", "up.weight"}


def test_the_backbone_learns_at_its_own_rate_and_frozen_parameters_are_left_out(model):
    model = copy.deepcopy(model)
    frozen = next(model.mask_decoder.parameters()).requires_grad_(False)
    groups = parameter_groups(model, 1e-3, 0.05, backbone_factor=0.1)
    backbone = {id(p) for p in model.backbone.parameters()}
    for group in groups:
        inside = {id(p) in backbone for p in group["params"]}
        assert inside in ({True}, {False})
        assert group["lr"] == group["base_lr"] == (1e-4 if inside == {True} else 1e-3)
        assert frozen not in set(group["params"])
    text = describe_groups(groups)
    assert len(text.splitlines()) == len(groups) == 4
    assert f"{sum(p.numel() for p in groups[0]['params']):,}" in text


def rates(scheduler, optimizer, count):
    """The factors of one of torch's schedulers at iterations 0, 1, ..."""
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    "schedule, build",
    [
        (
            Schedule(50, kind="cosine"),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.01),
        ),
        (
            Schedule(50, kind="multistep", drops=(20, 35)),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [20, 35]),
        ),
        (
            Schedule(50, kind="poly"),
            lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 50, power=0.9),
        ),
        (
            Schedule(50, warmup=9, kind="multistep"),
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=9),
        ),
    ],
    ids=["cosine", "multistep", "poly", "warmup"],
)
def test_schedules_are_those_of_torch(schedule, build):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    expected = rates(build(optimizer), optimizer, 50)
    assert [schedule.factor(i) for i in range(50)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("images, kind", [(3, "cosine"), (40, "multistep"), (5000, "poly")])
def test_the_warm_up_ends_at_its_iteration_whatever_the_length_of_an_epoch(images, kind):
    opts = train.parse(["--epochs", "3000", "--batch-size", "4", "--accumulate", "2"])
    total = train.total_iterations(opts, images)
    assert total == 3000 * images / 8
    schedule = Schedule(total, warmup=100, kind=kind)
    factors = [schedule.factor(i) for i in range(101)]
    assert factors == pytest.approx([(i + 1) / 101 for i in range(101)])
    assert factors[-1] == 1.0 and schedule.factor(101) <= 1.0


def test_the_end_of_a_schedule():
    assert Schedule(1000, 100).factor(1000) == pytest.approx(0.01)
    assert Schedule(1000, 100).factor(999) == pytest.approx(0.01, abs=1e-5)
    drops = Schedule(1000, 10, "multistep", (600, 900))
    assert [drops.factor(i) for i in (599, 600, 899, 900)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_a_schedule_is_a_pure_function():
    schedule = Schedule(30, 4)
    in_order = [schedule.factor(i) for i in range(30)]
    shuffled = random.Random(0).sample(range(30), 30)
    optimizer = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.ones(1))], "base_lr": base} for base in (0.5, 2.0)], lr=9
    )
    for i in shuffled:
        schedule.apply(optimizer, i)
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([0.5 * in_order[i], 2.0 * in_order[i]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.warmup = 5


def test_the_moving_average_is_the_plain_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = MovingAverage(model, decay=0.8)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for n in range(1, 40):
        model(torch.randn(2, 3, 8, 8))  # moves the statistics of the norm
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        decay = min(0.8, (1 + n) / (10 + n))
        for name, value in model.state_dict().items():
            whole = not value.is_floating_point()
            mixed = value if whole else decay * expected[name] + (1 - decay) * value
            expected[name] = mixed.clone()
    assert average.updates == 39 and decay == 0.8
    assert average.model[1].num_batches_tracked == 39
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
