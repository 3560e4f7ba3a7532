"""Identical runs are reported as such; a single different bit gives exit code 3."""

import json
import math
import shutil

import pytest
import torch
from torch import nn

from data.errors import InputError
from engine import checkpoint, evaluate, options, predict, train, visualize
from engine.files import FailedRun
from engine.tools import own_parts, reproduce
from mobileinst.mobile.mask_decoder import MaskDecoder
from mobileinst.segmenter import channels_at

LITTLE = (
    "embed_dim=16 depths=1,1,1,1 backbone_heads=1,2,4,8 window_size=2 width=16 mask_dim=16 "
    "num_heads=2 num_encoder_layers=1 encoder_ffn_width=16 num_queries=5 num_layers=1 "
    "ffn_width=16 train_points=16"
)
METRICS = {"test_map": 0.1, "test_loss": 3.0, "test_runtime": 1.0, "epoch": 2.0}


def weights():
    """A checkpoint as far as it matters here."""
    values = torch.arange(24.0).reshape(2, 3, 2, 2)
    return {
        "model": {"conv.weight": values / 7, "norm.count": torch.tensor(3)},
        "average": {"conv.weight": values / 9, "norm.count": torch.tensor(3)},
    }


class Runs:
    """Stands in for processes: a training leaves a checkpoint, an evaluation leaves metrics.

    `change` (name of the run, content of the checkpoint, metrics) may spoil either.
    """

    def __init__(self, change):
        self.change, self.started = change, []

    def __call__(self, module, argv, log):
        self.started.append((module, argv))
        given = dict(zip(argv, argv[1:]))
        if module == "engine.evaluate":
            path = reproduce.Path(given["--out"])
            metrics = {**METRICS, "test_runtime": float(len(self.started))}
            self.change(path.parent.name, {}, metrics)
            path.write_text(json.dumps({"metrics": metrics}))
            return
        folder = reproduce.Path(given["--out"])
        folder.mkdir()
        content = weights()
        self.change(folder.name, content, {})
        checkpoint.save(folder / "last.pt", content)


@pytest.fixture
def reproduced(tmp_path, monkeypatch, capsys):
    """Runs the entry on stand-ins; returns exit code, lines, json and what was started."""

    def run(change, *argv):
        started = Runs(change)
        monkeypatch.setattr(reproduce, "start", started)
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        code = reproduce.main(["--out", str(out), "--data", "images", *argv])
        content = json.loads((out / "reproduce.json").read_text())
        said, _, steps = capsys.readouterr().out.partition("\n\nnext:\n")
        assert steps.count("bash sbin/") == 1
        return code, said.splitlines(), content, started.started

    return run


def unchanged(name, content, metrics):
    pass


def test_identical_runs(reproduced):
    code, lines, content, started = reproduced(unchanged, "--lr", "0.5", "--set", "width=64")
    assert code == 0 and content["identical"] and lines[-1] == "identical to the last bit"
    assert [run["name"] for run in content["runs"]] == ["run-1", "run-2", "run-3", "workers"]
    assert [run["workers"] for run in content["runs"]] == [0, 0, 0, 2]
    assert len({run["weights"] for run in content["runs"]}) == 1
    assert lines.count("***** test metrics *****") == 4
    rows = [line.split() for line in lines if line.startswith(("run-", "workers "))]
    assert [row[:2] for row in rows if row[0] == "run-3"][-1] == ["run-3", "identical"]
    trainings = [train.parse(argv) for module, argv in started if module == "engine.train"]
    assert [opts.workers for opts in trainings] == [0, 0, 0, 2]
    assert {(opts.seed, opts.lr, dict(opts.set)["width"]) for opts in trainings} == {(42, 0.5, 64)}
    assert any("no run with inherited parts" in line for line in lines)
    assert not any("equality means little" in line for line in lines)


def test_numbers_of_runs_seed_and_workers(reproduced):
    argv = "--runs 2 --seed 7 --workers 3 --threads 1 --device cpu".split()
    _, _, content, started = reproduced(unchanged, *argv)
    assert [run["workers"] for run in content["runs"]] == [0, 0, 3]
    assert {train.parse(a).seed for module, a in started if module == "engine.train"} == {7}
    evaluations = [evaluate.parse(a) for module, a in started if module == "engine.evaluate"]
    assert {(opts.threads, opts.device) for opts in evaluations} == {(1, "cpu")}
    assert [opts.workers for opts in evaluations] == [0, 0, 3]
    assert all(opts.metrics_block and opts.checkpoint.name == "last.pt" for opts in evaluations)


def test_a_metric_that_differs_in_its_last_bit(reproduced):
    def change(name, content, metrics):
        if name == "run-2" and metrics:
            metrics["test_map"] = math.nextafter(metrics["test_map"], 1)

    code, lines, content, _ = reproduced(change)
    assert code == 3 and not content["identical"] and lines[-1] == "NOT identical"
    assert "run-2 differs from run-1 in test_map" in lines


def test_models_that_learned_nothing_are_reported(reproduced):
    code, lines, _, _ = reproduced(lambda name, content, metrics: metrics.update(test_map=0.05))
    assert code == 0 and lines[-2].startswith("test_map is not above 0.05: equality means little")


@pytest.mark.parametrize("part", ["model", "average"])
def test_a_weight_that_differs_in_its_last_bit(reproduced, part):
    def change(name, content, metrics):
        if name == "run-3" and content:
            weight = content[part]["conv.weight"]
            weight[1, 2, 0, 1] = weight[1, 2, 0, 1].nextafter(torch.tensor(9.0))

    code, lines, _, _ = reproduced(change)
    assert code == 3 and "run-3 differs from run-1 in the weights" in lines
    row = next(line.split() for line in reversed(lines) if line.startswith("run-3  "))
    assert row[1:3] == ["identical", "DIFFER"]


def test_unknown_options_are_refused(tmp_path):
    with pytest.raises(InputError, match="--epoches"):
        reproduce.main(["--out", str(tmp_path / "out"), "--epoches", "3"])
    with pytest.raises(InputError, match="cuda:99: not on this machine"):
        reproduce.main(["--out", str(tmp_path / "out"), "--device", "cuda:99"])
    assert not (tmp_path / "out").exists()


def test_a_process_that_fails(tmp_path):
    log = tmp_path / "log"
    reproduce.start("platform", [], log)
    assert log.read_text().strip()
    with pytest.raises(InputError, match="json.tool ended with exit code 2"):
        reproduce.start("json.tool", ["--no-such-option"], log)
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(FailedRun, match="exit code 1"):
        reproduce.start("json.tool", [str(tmp_path / "half.json")], log)


@pytest.fixture
def in_process(monkeypatch):
    """Entries are called here instead of in processes of their own."""
    entries = {
        "engine.train": train.main,
        "engine.evaluate": evaluate.main,
        "engine.tools.own_parts": lambda argv: train.main(argv, own_parts.build),
    }
    monkeypatch.setattr(reproduce, "start", lambda module, argv, log: entries[module](argv))


def test_workers_and_inherited_parts_change_no_bit(
    in_process, toy_coco, tmp_path, capsys, no_finish
):
    argv = f"--data {toy_coco} --out {tmp_path / 'out'} --runs 1 --workers 1 --iterations 2 "
    argv += "--from-scratch --device cpu --threads 1 --image-size 64 --canvas 64x64 "
    argv += f"--batch-size 4 --warmup 0 --model {own_parts.MODEL} --set {LITTLE}"
    assert reproduce.main(argv.split()) == 0
    printed = capsys.readouterr().out
    assert "backbone: SwinTransformer, pixel_decoder: PixelDecoder, query_decoder: Query" in printed
    assert (
        "backbone: OwnBackbone, pixel_decoder: OwnPixelDecoder, query_decoder: OwnQuery" in printed
    )
    content = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert [run["name"] for run in content["runs"]] == ["run-1", "workers", "own-parts"]
    trained = checkpoint.load(tmp_path / "out" / "run-1" / "last.pt")
    config = options.zoo.config_from_dict(trained["config"])
    model, *_ = own_parts.build(config, seed=42)
    assert type(model.backbone) is own_parts.OwnBackbone
    assert checkpoint.fingerprint({"model": model.state_dict(), "average": None}) != (
        checkpoint.fingerprint({**trained, "average": None})
    )  # something was learned


def test_another_system_is_reproduced(in_process, toy_coco, tmp_path, monkeypatch, no_finish):
    monkeypatch.setattr(reproduce, "NOISE", -1)
    argv = f"--data {toy_coco} --out {tmp_path / 'out'} --runs 1 --workers 1 --iterations 2 "
    argv += "--from-scratch --device cpu --threads 1 --image-size 64 --canvas 64x64 "
    argv += "--batch-size 4 --eval-every 0 --model sparseinst_topformer_tiny --set width=32"
    assert reproduce.main(argv.split()) == 0


class Scaled(MaskDecoder):
    """A mask decoder with a parameter more."""

    def reset_parameters(self):
        super().reset_parameters()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, local_maps, global_map):
        mask_features, pixel_features = super().forward(local_maps, global_map)
        return mask_features, self.scale * pixel_features


def with_scale(config, seed=0):
    channels = channels_at(options.zoo.build_backbone(config.backbone), (8, 16, 32, 64))
    part = Scaled(channels, config.width, config.kernel_dim, config.coordinates)
    return options.zoo.build(config, config.num_classes, seed=seed, mask_decoder=part)


def test_a_part_with_a_parameter_of_its_own_goes_all_the_way(
    tiny, toy_coco, tmp_path, capsys, no_finish
):
    out = tmp_path / "run"
    argv = [*tiny, "--iterations", "1", "--overfit", "4"]
    assert train.main([*argv, "--out", str(out)], with_scale) == 0
    assert "mask_decoder: Scaled" in capsys.readouterr().out
    content = checkpoint.load(out / "last.pt")
    content["average"]["mask_decoder.scale"] += 2
    checkpoint.save(out / "last.pt", content)
    following = [*argv[1:], "--pretrained", str(out / "last.pt"), "--out", str(tmp_path / "next")]
    assert train.main([*following, "--lr", "1e-9"], with_scale) == 0
    scale = checkpoint.load(tmp_path / "next" / "last.pt")["model"]["mask_decoder.scale"]
    assert scale.item() == pytest.approx(content["average"]["mask_decoder.scale"].item(), abs=1e-4)
    given = ["--checkpoint", str(out / "last.pt"), "--device", "cpu", "--threads", "1"]
    evaluate.main([*given, "--workers", "0"], with_scale)
    visualize.main([*given, "--workers", "0", "--count", "1"], with_scale)
    image = str(toy_coco / "val" / "8.png")
    predict.main([image, *given, "--out", str(tmp_path / "found")], with_scale)
    with pytest.raises(InputError, match="parts of your own"):
        evaluate.main([*given, "--workers", "0"])
    with pytest.raises(InputError, match="last.pt: its weights do not fit the model"):
        train.main([*argv, "--out", str(out), "--iterations", "2", "--resume"])
