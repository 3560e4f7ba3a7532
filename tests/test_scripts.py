"""The shell scripts: each parses, and passes options that its entry understands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import run as torchrun

from engine import convert, train
from engine.tools import (
    benchmark,
    benchmark_mask2former,
    benchmark_maskrcnn,
    benchmark_training,
    benchmark_ultralytics,
    compare_systems,
    inspect_modules,
    reproduce,
)

ROOT = Path(__file__).parent.parent


# Not in bash 3.2 or the tools of macOS.
MISSING = (
    r"readlink -f|sed -i|date -d|\(nproc|\b(flock|timeout|mapfile|readarray|realpath|coproc)\b|"
    r"(declare|local) -[An]|\$\{\w+(,|\^|@)|\[-1\]|&>>|\|&|wait -n"
)


def test_scripts_are_correct_and_need_no_newer_bash_and_no_gnu_tools():
    for path in sorted((ROOT / "sbin").glob("*.sh")):
        subprocess.run(["bash", "-n", str(path)], check=True)
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if re.search(MISSING, line.partition("# ")[0])], path


def started(tmp_path, script, *arguments, **environment):
    """The words a script would start python with, exit code and complaints.

    A stand-in for python takes down what it is started with; the set-up believes in it.
    """
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text('#!/bin/sh\n[ "$1" = - ] || printf "%s\\n" "$@" > "$WORDS"\n')
    stand_in.chmod(0o755)
    path = tmp_path / "words"
    ended = subprocess.run(
        ["bash", str(ROOT / "sbin" / script), *arguments],
        cwd=ROOT,
        env={**os.environ, "VIRTUAL_ENV": str(tmp_path), "WORDS": str(path), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    words = path.read_text().splitlines() if path.exists() else []
    return words, ended.returncode, ended.stderr


def recipe(tmp_path, script, *arguments, entry=train):
    """The options a script would start its entry with, read by the entry's own parser."""
    words, code, _ = started(tmp_path, script, *arguments)
    assert code == 0
    assert words[:2] == ["-m", entry.__name__]
    return entry.parse(words[2:])


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")
def test_recipes_are_understood_and_later_values_win(tmp_path):
    voc = recipe(tmp_path, "train_voc.sh", "--data", "a folder", "--lr", "0.5")
    assert (voc.lr, voc.data, voc.canvas) == (0.5, Path("a folder"), None)
    longer = recipe(tmp_path, "train_voc.sh", "--data", "x", "--set", "num_queries=70")
    assert longer.set["num_queries"] == 70 and longer.set["guided"] is True
    fixed = recipe(tmp_path, "train_voc.sh", "--data", "x", "--overfit", "8", "--epochs", "50")
    assert (fixed.overfit, fixed.epochs, fixed.iterations) == (8, 50.0, None)
    weights = recipe(tmp_path, "train_voc.sh", "--data", "x", "--pretrained", "y")
    assert (weights.pretrained, weights.backbone_factor) == (Path("y"), 0.1)
    assert weights.set["frozen_norms"] is True and voc.backbone_factor == 1
    coco = recipe(tmp_path, "train_coco.sh", "--data", "x")
    assert coco.iterations == 270_000 and coco.batch_size * coco.accumulate == 64
    assert recipe(tmp_path, "train_coco.sh", "--data", "x", "--epochs", "12").iterations is None


def test_own_data_have_a_script_without_a_default(tmp_path):
    words = "--data x --overfit 8".split()
    own = recipe(tmp_path, "train.sh", *words)
    assert (own.recipe, own.data, own.model) == ("overfit", Path("x"), "mobileinst_topformer_tiny")
    assert own == recipe(tmp_path, "train_voc.sh", *words)
    (tmp_path / "words").unlink()
    words, code, said = started(tmp_path, "train.sh", "--epochs", "3")
    assert (words, code, said.count("\n")) == ([], 2, 1)
    assert said.startswith("error: ") and "--data DIR" in said
    assert started(tmp_path, "train.sh", "--help")[0][-1] == "--help"


def test_without_voc_the_demo_set_is_drawn_first(tmp_path):
    demo = recipe(tmp_path, "train_voc.sh")
    if not (ROOT / "datasets").exists():
        assert demo.data == Path("datasets/demo/VOCdevkit/VOC2012")
    assert demo.model == "mobileinst_topformer_tiny"


def test_mask2former_trains_on_the_organs_unless_data_is_named(tmp_path):
    script = "train_mask2former.sh"
    demo = recipe(tmp_path, script)
    assert (demo.model, demo.data) == ("mask2former_swin_tiny", Path("datasets/organs"))
    assert demo.canvas == [(192, 256)]
    own = recipe(tmp_path, script, "--data", "x", "--set", "num_queries=70")
    assert (own.data, own.canvas, own.set["num_queries"]) == (Path("x"), None, 70)
    assert own.set["depths"] == (2, 2, 2, 2)
    fixed = recipe(tmp_path, script, "--overfit", "8")
    assert (fixed.overfit, fixed.data, fixed.epochs) == (8, Path("datasets/organs"), None)


def test_mask2former_from_weights_has_the_sizes_that_these_have(tmp_path):
    words = ["train_mask2former.sh", "--data", "x", "--pretrained", "y"]
    large = recipe(tmp_path, *words, "--model=mask2former_swin_small")
    assert (large.model, large.set, large.amp) == ("mask2former_swin_small", {}, "bf16")
    for model in (["--model", "mask2former_mobilenet_v2"], ["--model=mask2former_mobilenet_v2"]):
        small = recipe(tmp_path, *words, *model)
        assert small.set["frozen_norms"] and small.set["width"] == 64
        assert "embed_dim" not in small.set


def test_sparseinst_trains_on_the_demo_set_unless_data_is_named(tmp_path):
    script = "train_sparseinst.sh"
    demo = recipe(tmp_path, script)
    assert demo.model == "sparseinst_topformer_tiny" and demo.set["width"] == 64
    if not (ROOT / "datasets").exists():
        assert demo.data == Path("datasets/demo/VOCdevkit/VOC2012")
    own = recipe(tmp_path, script, "--data", "x", "--set", "groups=0")
    assert (own.data, own.epochs, own.set["groups"]) == (Path("x"), 110, 0)
    words = [script, "--data", "x", "--pretrained", "y", "--model", "sparseinst_resnet50_giam"]
    assert recipe(tmp_path, *words).amp == "bf16"
    coco = recipe(tmp_path, script, "--recipe", "sparseinst-coco", "--data", "x")
    assert (coco.model, coco.iterations) == ("sparseinst_resnet50_giam", 270_000)


def test_reproducing_takes_the_options_of_a_training(tmp_path):
    demo = recipe(tmp_path, "reproduce.sh", entry=reproduce)
    assert (demo.runs, demo.seed, demo.workers, demo.model) == (3, 42, 2, "mask2former_swin_tiny")
    assert train.parse(demo.training).data == Path("datasets/organs")
    words = "--data x --runs 5 --set num_queries=70 --epochs 1".split()
    own = train.parse(recipe(tmp_path, "reproduce.sh", *words, entry=reproduce).training)
    assert (own.data, own.epochs, own.set["num_queries"]) == (Path("x"), 1.0, 70)
    assert own.set["depths"] == (2, 2, 2, 2)


def test_comparing_systems_takes_the_options_of_a_training(tmp_path):
    demo = recipe(tmp_path, "compare_systems.sh", entry=compare_systems)
    assert demo.recipe == "demo" and demo.cpu_minutes == 20
    words = "--data x --cpu-minutes 5 --image-size 192".split()
    own = recipe(tmp_path, "compare_systems.sh", *words, entry=compare_systems)
    assert own.recipe == "small" and own.training == ["--data", "x", "--image-size", "192"]
    argv = compare_systems.training_argv(own, "sparseinst")
    assert train.parse(argv).recipe == "sparseinst-small"


def test_converting_takes_a_set_a_folder_and_a_format(tmp_path):
    words = "in out --to label-studio --no-images --strict --format labelme"
    opts = recipe(tmp_path, "convert.sh", *words.split(), entry=convert)
    assert (opts.data, opts.out, opts.to) == (Path("in"), Path("out"), "label-studio")
    assert opts.no_images and opts.strict and opts.format == "labelme"


def test_inspecting_takes_a_model_and_sizes(tmp_path):
    words = "--model mobileinst_seaformer_tiny --image-size 65 --set width=64 --json parts.json"
    opts = recipe(tmp_path, "inspect_modules.sh", *words.split(), entry=inspect_modules)
    assert (opts.model, opts.image_size) == ("mobileinst_seaformer_tiny", 65)
    assert opts.json == Path("parts.json")


def test_several_processes_are_started_by_torchrun(tmp_path):
    for path in sorted((ROOT / "sbin").glob("train*.sh")):
        words, _, _ = started(tmp_path, path.name, "--data", "a folder", GPUS="3")
        launched = "-m engine.launch --standalone --nproc-per-node 3 -m engine.train".split()
        assert words[: len(launched)] == launched
        options = torchrun.parse_args(words[2:])
        assert options.standalone and options.training_script == "engine.train"
        assert train.parse(options.training_script_args).data == Path("a folder")


def test_several_machines_meet_where_the_user_says(tmp_path):
    where = dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", MASTER_PORT="4711")
    words, code, _ = started(tmp_path, "train_coco.sh", "--data", "x", GPUS="8", **where)
    assert code == 0 and words[:2] == ["-m", "engine.launch"]
    options = torchrun.parse_args(words[2:])
    assert (options.nnodes, options.node_rank, options.nproc_per_node) == ("2", 1, "8")
    assert (options.master_addr, options.master_port) == ("10.0.0.1", 4711)
    assert not options.standalone


def test_a_wrong_number_of_processes(tmp_path):
    for wrong in ({"GPUS": "0"}, {"GPUS": "two"}, {"NNODES": "2"}):
        words, code, said = started(tmp_path, "test.sh", **wrong)
        assert (words, code) == ([], 2) and said.startswith("error: ") and "give" in said
    words = started(tmp_path, "test.sh", "--help", GPUS="2")[0]
    assert words == ["-m", "engine.evaluate", "--help"]


def test_a_benchmark_against_something_else_is_refused(tmp_path):
    for wrong in (["--against", "detectron2"], ["--against"]):
        words, code, said = started(tmp_path, "benchmark.sh", *wrong)
        assert (words, code) == ([], 2) and "transformers, maskrcnn, ultralytics" in said


def test_the_benchmark_measures_variants_peers_or_trainings(tmp_path):
    assert recipe(tmp_path, "benchmark.sh", "--rounds", "3", entry=benchmark).rounds == 3
    words = "--rounds 3 --against transformers --threads 1 4"
    peers = recipe(tmp_path, "benchmark.sh", *words.split(), entry=benchmark_mask2former)
    assert (peers.rounds, peers.threads) == (3, [1, 4])
    for against in ("--against maskrcnn", "--against=maskrcnn"):
        words = f"--data x {against} --pretrained y"
        peer = recipe(tmp_path, "benchmark.sh", *words.split(), entry=benchmark_maskrcnn)
        assert (peer.data.name, peer.pretrained.name) == ("x", "y")
    words = "--against ultralytics --peer-python x --rows eager"
    peer = recipe(tmp_path, "benchmark.sh", *words.split(), entry=benchmark_ultralytics)
    assert (peer.peer_python.name, peer.rows) == ("x", ["eager"])
    words = "--training --data x --recipes coco --lr 1"
    measured = recipe(tmp_path, "benchmark.sh", *words.split(), entry=benchmark_training)
    assert measured.recipes == ["coco"] and measured.training == ["--data", "x", "--lr", "1"]


@pytest.mark.parametrize(
    "torch, torchvision, suits",
    [("2.14.1+cpu", "2.14.1", True), ("2.14.1", "2.10.0", False), ("2.9.1", "2.9.1", False)],
)
def test_versions_that_pip_would_not_install_together_are_refused(
    tmp_path, torch, torchvision, suits
):
    """`torchvision`: the torch that the installed torchvision requires."""
    for name, version, requires in (
        ("torch", torch, "filelock; extra == 'x'"),
        ("torchvision", "0.29.1", f"torch=={torchvision}"),
    ):
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        lines = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        content = f"{lines}Requires-Dist: {requires}\n"
        (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(content)
    (tmp_path / "needed.txt").write_text("torch>=2.10\ntorchvision>=0.25\n")
    script = f". sbin/setup.sh; has_requirements {sys.executable} {tmp_path / 'needed.txt'}"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment).returncode
    assert (code == 0) == suits
