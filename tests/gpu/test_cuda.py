"""Training on CUDA: near the CPU in every precision, resumed, and the same bits every time."""

import json
import signal

import pytest
import torch

from data.demo import pond
from engine import checkpoint, train
from engine.tools import reproduce

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("no_finish"),
]

DEVICE = "cuda"
SYSTEMS = {
    "mobileinst": (
        "--model mobileinst_topformer_tiny --lr 2e-3 --set drop_path=0 width=32 kernel_dim=32 "
        "query_width=32 num_heads=4 num_queries=20 kv_stride=16 guided=true semantic_weight=1"
    ),
    "mask2former": (
        "--model mask2former_swin_tiny --lr 1e-3 --set drop_path=0 embed_dim=16 depths=1,1,1,1 "
        "backbone_heads=1,2,2,4 window_size=4 width=64 mask_dim=32 num_heads=4 "
        "num_encoder_layers=1 encoder_ffn_width=64 num_queries=20 num_layers=3 ffn_width=64 "
        "train_points=256"
    ),
}
COMMON = (
    "--from-scratch --image-size 64 --canvas 64x64 64x128 --batch-size 4 --iterations 200 "
    "--warmup 20 --average 0 --eval-every 0 --log-every 20 --threads 1"
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The drawn demo set, small."""
    return pond.write(tmp_path_factory.mktemp("pond"), train=32, val=4)


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    """A function: system, device, options -> folder of the run."""
    root = tmp_path_factory.mktemp("runs")

    def run(system, device, *more, name="", code=0):
        out = root / (name or "-".join((system, device, *more)))
        options = [*COMMON.split(), "--workers", "0", "--device", device]
        options += ["--data", str(demo), "--out", str(out)]
        assert train.main([*SYSTEMS[system].split(), *options, *more]) == code
        return out

    return run


def last_loss(folder):
    """The mean of the last 60 iterations."""
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").open()]
    return sum(losses[-3:]) / 3


@pytest.fixture(scope="module")
def cpu_loss(run):
    """A function: system -> loss on the CPU in float32."""
    losses = {}

    def cpu_loss(system):
        if system not in losses:
            losses[system] = last_loss(run(system, "cpu"))
        return losses[system]

    return cpu_loss


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_training_ends_near_the_loss_of_the_cpu(run, cpu_loss, system, amp):
    assert last_loss(run(system, DEVICE, "--amp", amp)) == pytest.approx(cpu_loss(system), rel=0.05)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(run, monkeypatch, system):
    options = ["--deterministic", "--amp", "bf16", "--iterations", "40"]
    whole = checkpoint.load(run(system, DEVICE, *options, name=f"{system}-whole") / "last.pt")
    step = train.Trainer.step

    def interrupted(trainer, *args):
        values = step(trainer, *args)
        if trainer.iteration == 15:
            signal.raise_signal(signal.SIGTERM)
        return values

    name = f"{system}-stopped"
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "step", interrupted)
        run(system, DEVICE, *options, name=name, code=143)
    resumed = checkpoint.load(run(system, DEVICE, *options, "--resume", name=name) / "last.pt")
    assert resumed["iteration"] == whole["iteration"] == 40
    assert checkpoint.fingerprint(resumed) == checkpoint.fingerprint(whole)


def test_reproduce_finds_identical_bits(demo, tmp_path):
    options = [*SYSTEMS["mask2former"].split(), *COMMON.split(), "--data", str(demo)]
    own = ["--runs", "2", "--device", DEVICE, "--deterministic", "--out", str(tmp_path / "runs")]
    assert reproduce.main([*options, *own]) == 0
