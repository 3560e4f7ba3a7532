"""The commands of assets/first_hour.md, and those that commands print at their end, are right."""

import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

from data.demo import pond
from engine.commands import after_training, command, data_arguments, train_script
from engine.options import TrainOptions
from tests.conftest import TINY
from tests.test_scripts import started

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "assets" / "first_hour.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
LINES = [line for block in BLOCKS for line in block.splitlines()]
# Added to the commands of the page, so that they take seconds.
SHORT = {
    "train": [*TINY, "--epochs", "1"],
    "predict": ["--threshold", "0", "--device", "cpu"],
    "test": ["--workers", "0", "--device", "cpu"],
    "check_data": ["--workers", "0"],
}


def entry_of(tmp_path, line):
    """The module that a command of a script starts, and its arguments."""
    bash, script, *arguments = shlex.split(line)
    assert bash == "bash" and (ROOT / script).is_file()
    words, code, said = started(tmp_path, Path(script).name, *arguments)
    assert code == 0 and words[0] == "-m", said
    return import_module(words[1]), words[2:]


def test_the_walk_from_photos_to_a_prediction(tmp_path, monkeypatch, capsys):
    """Only the exports are not made: tests/engine/test_export.py does that."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    exported, following = [], []
    for line in LINES:
        words = shlex.split(line)
        if words[1:3] == ["-m", "data.demo.pond"]:
            pond.main([*words[3:], "--train", "6", "--val", "2"])
        elif words[0] != "bash":
            subprocess.run(["bash", "-c", line], cwd=here, check=True)
        else:
            module, arguments = entry_of(tmp_path, line)
            if "exports/first" in line:
                exported.append(module.parse(arguments))
                continue
            code = module.main([*arguments, *SHORT.get(Path(words[1]).stem, [])])
            assert not code, line
            said = capsys.readouterr().out
            following += re.findall(r"  (bash sbin/.*)", said.partition("\nnext:\n")[2])
    assert len(exported) == 2 and exported[1].checkpoint.parent == exported[0].out
    assert (here / "runs" / "first" / "report.html").is_file()
    assert len(list((here / "predictions" / "first").glob("*_overlay.jpg"))) == 2
    assert len(following) > 8
    for line in dict.fromkeys(following):
        module, arguments = entry_of(tmp_path, line)
        opts = module.parse(arguments)
        data, path = getattr(opts, "data", None), getattr(opts, "checkpoint", None)
        assert not data or data.exists(), line
        assert not path or path == Path("runs/first/best.pt"), line


def test_the_pictures_are_small():
    names = re.findall(r"\]\((first_hour/[\w.]+)\)", PAGE)
    files = [ROOT / "assets" / name for name in names]
    assert {*files} == {*(ROOT / "assets" / "first_hour").iterdir()}
    assert sum(path.stat().st_size for path in files) < 600_000


def test_commands_are_quoted_for_a_shell():
    words = data_arguments({"data": Path("my photos/é"), "val_fraction": 0.2, "format": None})
    assert command("train", *words) == "bash sbin/train.sh --data 'my photos/é'"
    assert (
        data_arguments({"data": "x", "val_fraction": 0.0}) == "--data x --val-fraction 0.0".split()
    )
    assert train_script("sparseinst_resnet50_giam") == "train_sparseinst"
    assert train_script("mobileinst_topformer_tiny") == "train"


def test_after_a_self_test_comes_the_training(tmp_path):
    path = Path("runs/a b/best.pt")
    opts = TrainOptions(data="my set", overfit=8, model="mask2former_swin_tiny")
    [line] = after_training(path, opts).values()
    assert line == "bash sbin/train_mask2former.sh --data 'my set' --model mask2former_swin_tiny"
    lines = after_training(path, TrainOptions(data="my set", epochs=3)).values()
    assert "bash sbin/export.sh --checkpoint 'runs/a b/best.pt'" in lines
