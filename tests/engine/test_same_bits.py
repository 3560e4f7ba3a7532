"""The same training always leads to the same weights, to the last bit, however it is run."""

import os

import pytest
import torch

from data.dataset import CocoDataset
from data.loaders import eval_loader, train_loader
from data.presets import EvalPreset, TrainPreset
from engine import checkpoint, determinism
from engine.loop import Trainer, run_inference
from engine.optim import MovingAverage, Schedule, parameter_groups
from mobileinst import zoo
from tests.small import SMALL

SYSTEMS = {name: keywords | {"drop_path": 0.2} for name, keywords in SMALL.items()}
SYSTEMS["mobileinst_topformer_tiny"] |= {"placed": True, "guided": True}
STEPS, SKIPPED = 4, 1  # the step whose numbers are bad, and which is left out


class SpoiltOnce(torch.nn.Module):
    """A criterion whose loss is not finite at one step."""

    def __init__(self, criterion):
        super().__init__()
        self.criterion, self.counts = criterion, criterion.counts

    def forward(self, outputs, targets, counts, points):
        losses = self.criterion(outputs, targets, counts, points)
        factor = float("nan") if points.step == SKIPPED else 1.0
        return {name: value * factor for name, value in losses.items()}


class Training:
    """Four steps of two micro-batches with EMA, drop path and copy-paste; step 1 is skipped."""

    def __init__(self, system, dataset, seed=3):
        model, criterion, self.postprocess = zoo.build(
            system, num_classes=3, seed=seed, **SYSTEMS[system]
        )
        self.dataset = dataset
        self.trainer = Trainer(
            model=model,
            criterion=SpoiltOnce(criterion),
            optimizer=torch.optim.AdamW(parameter_groups(model, 1e-3, 0.05), lr=1e-3, fused=True),
            schedule=Schedule(STEPS, warmup=2),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            average=MovingAverage(model, 0.9),
            device=torch.device("cpu"),
            seed=3,
            accumulate=2,
            clip=1.0,
            skip_bad_steps=1,
        )

    def run(self, workers=0, after=lambda: None):
        """Train to the end, with something to do after each step; returns the fingerprint."""
        loader = train_loader(
            self.dataset,
            TrainPreset(copy_paste=0.5),
            batch_size=2,
            accumulate=2,
            seed=3,
            start_step=self.trainer.iteration,
            stop_step=STEPS,
            canvases=[(64, 64), (64, 128)],
            workers=workers,
        )
        for _ in self.trainer.steps(loader):
            after()
        assert (self.trainer.iteration, self.trainer.skipped) == (STEPS, 1)
        return checkpoint.fingerprint(checkpoint.state_of(self.trainer))

    def evaluate(self):
        loader = eval_loader(self.dataset, EvalPreset(64), batch_size=3)
        model = self.trainer.average.model
        run_inference(model, self.postprocess, loader, torch.device("cpu"), [0, 7, 90])
        torch.rand(7)  # as anything else that draws numbers


@pytest.fixture(scope="module")
def dataset(toy_coco):
    return CocoDataset(toy_coco / "annotations" / "instances_train.json", toy_coco / "train")


@pytest.fixture(scope="module", params=SYSTEMS)
def whole(request, dataset, tmp_path_factory):
    """System, fingerprint of an uninterrupted training, and checkpoints of each of its steps."""
    determinism.set_up(True, torch.device("cpu"), 1)
    folder = tmp_path_factory.mktemp("states")
    training = Training(request.param, dataset)

    def save():
        checkpoint.save(
            folder / f"{training.trainer.iteration}.pt", checkpoint.state_of(training.trainer)
        )

    save()
    return request.param, training.run(after=save), folder


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are cores
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_over_runs_and_numbers_of_loader_processes(whole, dataset, workers):
    system, fingerprint, _ = whole
    assert Training(system, dataset).run(workers) == fingerprint


def test_over_evaluating_after_every_step(whole, dataset):
    system, fingerprint, _ = whole
    training = Training(system, dataset)
    assert training.run(after=training.evaluate) == fingerprint


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_over_resuming_at_every_step(whole, dataset, step):
    system, fingerprint, folder = whole
    training = Training(system, dataset, seed=8)  # everything must come from the file
    checkpoint.restore(training.trainer, checkpoint.load(folder / f"{step}.pt"))
    assert training.trainer.skipped == (step > SKIPPED)
    assert training.run() == fingerprint


def test_another_seed_is_another_training(whole, dataset):
    system, fingerprint, _ = whole
    assert Training(system, dataset, seed=8).run() != fingerprint


# Nodes of autograd whose kernels add in no fixed order on CUDA, by torch's own documentation.
# Bilinear interpolation would be one, but is taken apart by torch itself under the flag.
UNORDERED = (
    "GridSampler AdaptiveAvgPool AdaptiveMaxPool AvgPool3D FractionalMaxPool MaxPool3D MaxUnpool "
    "ReflectionPad NllLoss2D CtcLoss EmbeddingBag Put Histc Median Kthvalue UpsampleBicubic"
).split()


def nodes_of(tensor):
    """Names of all nodes that a backward goes through."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return {node.name() for node in seen}


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_backward_has_a_deterministic_kernel_on_cuda(system, dataset):
    model, criterion, _ = zoo.build(system, num_classes=3, **SYSTEMS[system])
    batch = next(iter(eval_loader(dataset, EvalPreset(64), batch_size=2))).to("cpu")
    losses = criterion(model.train()(batch.images, batch.padding), batch.targets)
    names = nodes_of(sum(losses.values()))
    assert len(names) > 20 and "AddBackward0" in names
    # The sums of embedding_bag have an order; its gradient by the table is our own.
    bad = {name for name in names for each in UNORDERED if name.startswith(each)}
    assert bad <= {"EmbeddingBagBackward0"}


def test_the_settings_of_torch(monkeypatch):
    settings = []
    for name in ("enable_flash_sdp", "enable_mem_efficient_sdp", "enable_cudnn_sdp"):
        monkeypatch.setattr(torch.backends.cuda, name, settings.append)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    try:
        assert determinism.set_up(None, cpu, 1) is True
        assert torch.get_deterministic_debug_mode() == 2  # strict
        assert determinism.set_up(False, cpu, 1) is False
        assert torch.get_deterministic_debug_mode() == 0 and not torch.backends.cudnn.deterministic
        assert determinism.set_up(None, cuda, 1) is False and settings == [True] * 3
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        assert determinism.set_up(True, cuda, 1) is True and settings[3:] == [False] * 3
        assert torch.get_deterministic_debug_mode() == 1  # warns
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.backends.cudnn.deterministic
    finally:
        determinism.set_up(True, cpu, 1)
