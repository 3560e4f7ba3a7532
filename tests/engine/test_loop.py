"""One optimizer step: accumulation, clipping, the schedule, bad losses, mixed precision."""

import copy
import math
import signal

import pytest
import torch
from torch import nn

from data.dataset import CocoDataset
from data.loaders import train_loader
from data.presets import TrainPreset
from engine import checkpoint, dist
from engine.interrupt import GracefulStop
from engine.log import StepTimer
from engine.loop import NonFiniteError, Trainer
from engine.optim import MovingAverage, Schedule, parameter_groups
from mobileinst import zoo
from tests.small import SMALL


@pytest.fixture(scope="module")
def dataset(toy_coco):
    return CocoDataset(toy_coco / "annotations" / "instances_train.json", toy_coco / "train")


def micro_batches(dataset, batch_size, accumulate=1, steps=1):
    loader = train_loader(
        dataset,
        TrainPreset(),
        batch_size=batch_size,
        accumulate=accumulate,
        stop_step=steps,
        canvases=[(64, 64)],
    )
    return [batch.to("cpu") for batch in loader]


def trainer_of(optimizer=torch.optim.SGD, drop_path=0.0, average=None, lr=1e-2, **others):
    model, criterion, _ = zoo.build(
        "mobileinst_topformer_tiny", 3, drop_path=drop_path, **SMALL["mobileinst_topformer_tiny"]
    )
    settings = dict(
        model=model,
        criterion=criterion,
        optimizer=optimizer(parameter_groups(model, lr, 0.0), lr=lr),
        schedule=Schedule(20, kind="multistep"),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        average=MovingAverage(model, average) if average else None,
        device=torch.device("cpu"),
        seed=0,
    )
    return Trainer(**settings | others)


class Loaded:
    """A batch as the loader hands it over."""

    def __init__(self, batch):
        self.batch = batch

    def to(self, device):
        return self.batch


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


class PlainCriterion(nn.Module):
    """Counts objects like ours, and needs no matching: a sum over objects, in float64."""

    def forward(self, outputs, targets, counts=None, points=None):
        masses = torch.stack([t["masks"].double().mean((1, 2)).sum() for t in targets])
        mean = outputs["mask_logits"].mean((1, 2, 3))
        return {"mass": ((mean - 1) ** 2 * masses).sum() / counts["objects"]}

    @staticmethod
    def counts(targets):
        return {"objects": torch.tensor(float(sum(len(t["labels"]) for t in targets)))}


def test_the_gradient_is_clipped(dataset):
    trainer = trainer_of(lr=1.0, clip=0.05)
    before = weights_of(trainer)
    values = trainer.step(micro_batches(dataset, 4), StepTimer())
    assert values["grad_norm"] > 0.05
    moved = [
        (p.detach() - before[name]).square().sum() for name, p in trainer.model.named_parameters()
    ]
    assert math.sqrt(sum(moved)) == pytest.approx(0.05, rel=1e-2)


def test_the_schedule_moves_with_every_optimizer_step(dataset):
    trainer = trainer_of(lr=0.5, accumulate=2, schedule=Schedule(8, warmup=3), criterion=Quick())
    seen = []
    for values, seconds in trainer.steps(train_batches(dataset, batch_size=2, accumulate=2)):
        seen.append(trainer.optimizer.param_groups[0]["lr"])
        assert set(seconds) == {"data", "forward", "loss", "backward", "update"}
        assert values["loss"] > 0 and trainer.model.training
        trainer.model.eval()  # as an evaluation would leave it
    assert trainer.iteration == 8
    assert seen == pytest.approx([0.5 * trainer.schedule.factor(i) for i in range(8)])
    assert seen[3] == 0.5


class Quick(PlainCriterion):
    """A loss that changes nothing: no gradient but zero."""

    def forward(self, outputs, targets, counts=None, points=None):
        return {"quick": outputs["mask_logits"].sum() * 0 + 1}


def train_batches(dataset, **sizes):
    return train_loader(dataset, TrainPreset(), stop_step=8, canvases=[(64, 64)], **sizes)


class Spoilt(PlainCriterion):
    """Not finite in one of its terms as soon as a certain image comes."""

    def __init__(self, image_id):
        super().__init__()
        self.image_id = image_id

    def forward(self, outputs, targets, counts=None, points=None):
        mean = outputs["mask_logits"].mean()
        bad = any(target["image_id"] == self.image_id for target in targets)
        return {"class": mean**2, "dice": mean * (math.nan if bad else 1)}


def test_a_loss_that_is_not_finite_stops_before_any_weight_changed(dataset):
    batches = micro_batches(dataset, 2, accumulate=2)
    good, bad = ([target["image_id"] for target in batch.targets] for batch in batches)
    trainer = trainer_of(torch.optim.AdamW, criterion=Spoilt(bad[1]), average=0.9, accumulate=2)
    before, averaged = weights_of(trainer), copy.deepcopy(trainer.average.model.state_dict())
    with pytest.raises(NonFiniteError) as error:
        trainer.step(batches, StepTimer())
    assert "(dice nan; images" in str(error.value) and "iteration 0" in str(error.value)
    assert f"images: {bad[0]}, {bad[1]};" in str(error.value)
    learned = dict(trainer.model.named_parameters())
    assert all(torch.equal(before[name], parameter) for name, parameter in learned.items())
    assert same(averaged, trainer.average.model.state_dict())
    assert trainer.iteration == 0 and not trainer.optimizer.state


class Cusp(PlainCriterion):
    """A finite loss whose gradient is not."""

    def forward(self, outputs, targets, counts=None, points=None):
        return {"cusp": (outputs["mask_logits"].sum() * 0).abs().sqrt()}


def everything(trainer):
    """Copies of all tensors that a checkpoint would hold."""
    moments = [value for each in trainer.optimizer.state.values() for value in each.values()]
    states = [trainer.model.state_dict(), trainer.average.model.state_dict()]
    return [tensor.clone() for state in states for tensor in state.values()] + [
        moment.clone() for moment in moments
    ]


@pytest.mark.parametrize("system", SMALL)
def test_a_skipped_step_leaves_no_trace(dataset, system, capsys):
    """Its forward would have spoilt the statistics of the norms before any loss is seen."""
    model, criterion, _ = zoo.build(system, num_classes=3, **SMALL[system])
    trainer = trainer_of(model=model, criterion=criterion, skip_bad_steps=1)
    trainer.optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 0.05))
    trainer.average = MovingAverage(model, 0.9)
    model.train()
    good, bad = micro_batches(dataset, 2, accumulate=2)
    assert next(trainer.steps([Loaded(good)]))[0]["loss"] > 0
    before = everything(trainer)
    bad.images[0] = math.nan
    trainer.accumulate = 2
    assert next(trainer.steps([Loaded(good), Loaded(bad)]))[0] == {}
    trainer.accumulate = 1
    assert all(map(torch.equal, before, everything(trainer)))
    assert (trainer.iteration, trainer.skipped, trainer.average.updates) == (2, 1, 1)
    said = capsys.readouterr().out
    assert "skipped, 1 of 1: the loss is not finite at iteration 1 (matching cost of" in said
    assert trainer.skipped == 1
    with pytest.raises(NonFiniteError):  # no more of them
        next(trainer.steps([Loaded(bad)]))
    assert trainer.iteration == 2


def scaled(criterion, **others):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    return trainer_of(criterion=criterion, scaler=scaler, **others)


def test_an_overflow_halves_the_scale_until_it_is_below_one(dataset):
    trainer = scaled(Cusp(), skip_bad_steps=1)
    before, (batch,) = weights_of(trainer), micro_batches(dataset, 2)
    for expected in (2.0, 1.0, 0.5):
        values, _ = next(trainer.steps([Loaded(batch)]))
        assert "grad_norm" not in values and math.isfinite(values["loss"])
        assert trainer.scaler.get_scale() == expected
    assert (trainer.iteration, trainer.skipped) == (3, 0)
    assert next(trainer.steps([Loaded(batch)]))[0] == {} and trainer.skipped == 1
    with pytest.raises(NonFiniteError, match="gradient is not finite at iteration 4"):
        next(trainer.steps([Loaded(batch)]))
    learned = dict(trainer.model.named_parameters())
    assert all(torch.equal(before[name], parameter) for name, parameter in learned.items())


def test_a_bad_gradient_changes_no_weight_and_is_located(dataset):
    trainer = trainer_of(criterion=PlainCriterion(), accumulate=2, lr=0.25)
    trainer.model.instance_decoder.query_features.weight.register_hook(lambda grad: grad * math.inf)
    batches = micro_batches(dataset, 2, accumulate=2)
    before = weights_of(trainer)
    with pytest.raises(NonFiniteError) as error:
        trainer.step(batches, StepTimer())
    learned = dict(trainer.model.named_parameters())
    assert all(torch.equal(before[name], parameter) for name, parameter in learned.items())
    images = [str(target["image_id"]) for batch in batches for target in batch.targets]
    said = str(error.value)
    assert "of instance_decoder.query_features.weight;" in said and "backbone" not in said
    assert f"images: {', '.join(images)}; learning rate 0.25" in said


@pytest.mark.parametrize("part", ["model", "average", "optimizer"])
def test_bad_numbers_are_never_saved(dataset, part):
    trainer = trainer_of(torch.optim.AdamW, criterion=PlainCriterion(), average=0.9)
    trainer.step(micro_batches(dataset, 2), StepTimer())
    checkpoint.require_finite(trainer)
    parameter = trainer.model.instance_decoder.query_features.weight
    spoilt = {
        "model": parameter.data,
        "average": trainer.average.model.instance_decoder.query_features.weight,
        "optimizer": trainer.optimizer.state[parameter]["exp_avg_sq"],
    }
    spoilt[part][0, 0] = math.inf
    with pytest.raises(NonFiniteError, match=f"after iteration 1: {part} "):
        checkpoint.require_finite(trainer)


def test_mixed_precision_trains_with_the_criterion_in_float32(dataset):
    trainer = trainer_of(torch.optim.AdamW, amp=torch.bfloat16)
    cost, seen = trainer.criterion.matcher.cost, []

    def watching(outputs, target):
        seen.append({outputs["mask_logits"].dtype, outputs["class_logits"].dtype})
        seen.append({cost(outputs, target).dtype})
        assert not torch.is_autocast_enabled("cpu")
        return cost(outputs, target)

    trainer.criterion.matcher.cost = watching
    given = []
    hook = trainer.model.register_forward_hook(lambda *args: given.append(args[2]))
    trainer.model.train()
    values = trainer.step(micro_batches(dataset, 2), StepTimer())
    hook.remove()
    assert given[0]["mask_logits"].dtype == torch.bfloat16
    assert seen and all(types == {torch.float32} for types in seen)
    assert all(map(math.isfinite, values.values()))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_restoring_keeps_the_rates_that_were_asked_for():
    first, second = trainer_of(torch.optim.AdamW, lr=1e-2), trainer_of(torch.optim.AdamW, lr=1e-3)
    for parameter in first.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    first.optimizer.step()
    checkpoint.restore(second, checkpoint.state_of(first))
    assert {group["base_lr"] for group in second.optimizer.param_groups} == {1e-3}
    assert len(second.optimizer.state) == len(list(second.model.parameters()))


def test_a_signal_during_the_exchange_of_ranks_is_kept(monkeypatch):
    def exchange(number):  # no rank had a signal when it began
        signal.raise_signal(signal.SIGTERM)
        return number

    with GracefulStop() as stop:
        monkeypatch.setattr(dist, "max_over_ranks", exchange)
        assert not stop.requested()
        monkeypatch.undo()
        assert stop.requested() and stop.signal == signal.SIGTERM
