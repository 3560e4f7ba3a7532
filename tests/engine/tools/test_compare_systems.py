"""The comparison of the systems: its table, its length, and resuming."""

import json

import pytest
import torch

from data.errors import InputError
from engine import evaluate, train
from engine.tools import compare_systems
from mobileinst import zoo


@pytest.fixture
def argv(toy_coco, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "lite0.pth"
    torch.save(zoo.build_backbone("efficientnet_lite0").state_dict(), file)
    words = f"--data {toy_coco} --pretrained {file} --recipe demo --trial-steps 4 --rounds 1"
    tiny = "--image-size 64 --canvas 64x64 --batch-size 2 --threads 1 --workers 0"
    sizes = "--set width=16 num_queries=5"
    return [*words.split(), *tiny.split(), *sizes.split(), "--out", str(tmp_path / "out")]


@pytest.fixture
def in_line(monkeypatch, no_finish):
    """Trainings and evaluations run in this process, and only the first model is exported."""
    entries = {"engine.train": train.main, "engine.evaluate": evaluate.main}
    monkeypatch.setattr(compare_systems, "start", lambda module, argv, log: entries[module](argv))
    export, exported = compare_systems.onnx_forward, []

    def export_once(trained):
        if not exported:
            exported.append(export(trained))
        return exported[0]

    monkeypatch.setattr(compare_systems, "onnx_forward", export_once)


def test_a_table_and_a_run_folder_for_each_system(argv, tmp_path, capsys, in_line):
    argv = ["--systems", "mobileinst", "sparseinst", "--cpu-minutes", "0.002", *argv]
    compare_systems.main(argv)
    out = tmp_path / "out"
    content = json.loads((out / "systems.json").read_text())
    for system in ("mobileinst", "sparseinst"):
        row = content["rows"][system]
        assert row["recipe"].endswith("demo-pretrained") and row["images of a step"] == 2
        assert row["steps"] == max(1, round(0.12 / content["seconds_per_step"][system]))
        assert row["AP of the ground truth through the mask grid"] > 0.1
        assert (out / system / "best.pt").exists()
    table = (out / "systems.md").read_text()
    assert "|  | mobileinst | sparseinst |" in table and "| recall, not alone |" in table
    # What is finished stays, and other options are refused.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/test.json")}
    compare_systems.main([*argv, "--resume"])
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/test.json")}
    with pytest.raises(InputError, match="was made with another --rounds; give the same options"):
        compare_systems.main([*argv, "--resume", "--rounds", "2"])
    assert "ONNX" in capsys.readouterr().out


def test_the_time_of_a_step_leaves_out_the_start():
    rows = [{"iteration": i, "cpu_minutes": m} for i, m in ((20, 1.0), (40, 1.1), (80, 1.5))]
    assert compare_systems.seconds_per_step(rows) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "more, words",
    [
        (["--backbone", "swin_tiny"], "--backbone swin_tiny: there is no mobileinst_swin_tiny"),
        (["--epochs", "x"], "--epochs"),
        (["--epochs", "3"], "are two lengths"),
        (["--resume"], "name the folder with --out"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_trained(more, words):
    with pytest.raises(InputError, match=words):
        compare_systems.parse(["--data", "x", *more])


def test_a_folder_without_a_comparison_is_not_gone_on_with(argv, tmp_path):
    with pytest.raises(InputError, match="holds no systems.json to go on from"):
        compare_systems.main([*argv, "--resume"])
