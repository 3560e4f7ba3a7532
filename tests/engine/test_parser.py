"""--help of every command, and hints at the closest name for mistyped ones."""

import re
import shutil
from importlib import import_module
from os import terminal_size
from pathlib import Path

import pytest

import engine
from data.errors import InputError
from engine import options, train
from engine.parser import Parser
from mobileinst import zoo

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "engine").rglob("*.py")), ROOT / "tests" / "stress" / "__main__.py"]
ENTRIES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in FILES
    if "def parse(argv: list[str])" in path.read_text(encoding="utf-8")
]


def test_all_commands_are_found():
    names = "train evaluate visualize predict check_data convert export report.page"
    assert {f"engine.{name}" for name in names.split()} <= {*ENTRIES, "engine.report.page"}
    assert len(ENTRIES) > 12


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_describes_every_option(entry, monkeypatch, capsys):
    parsers = []
    monkeypatch.setattr(Parser, "print_help", lambda self: parsers.append(self))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: terminal_size((200, 50)))
    with pytest.raises(SystemExit):
        import_module(entry).parse(["--help"])
    [parser] = parsers
    for action in parser._actions:
        assert len((action.help or "").split()) > 1, action.dest
    text = parser.format_help()
    assert "[options]" in text.splitlines()[0]
    assert max(map(len, text.splitlines())) < 100
    assert "None" not in text and "()" not in text
    for name in zoo.names():
        assert len(re.findall(rf"(?<![\w:]){name}(?=[,\s])", text)) <= 2, name  # one is the default
    for name in ("small-pretrained", "mask2former-demo-pretrained"):
        assert text.count(f" {name}") <= 1


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--epoch", "3"], "did you mean --epochs?"),
        (["--image-sise=3", "--sede", "1"], "did you mean --image-size, --seed?"),
        (
            ["--model", "mobileinst_eficientnet_lite0"],
            "invalid choice: 'mobileinst_eficientnet_lite0'; did you mean "
            "mobileinst_efficientnet_lite0?",
        ),
        (["--recipe", "smal"], "did you mean small?"),
        (["--schedule", "cosin"], "did you mean cosine?"),
        (["--set", "widht=64"], "mobileinst has no keyword 'widht'; did you mean width?"),
        (["--zzz"], "--help lists all options"),
    ],
)
def test_a_mistyped_option_gets_the_closest_one(argv, hint):
    with pytest.raises(InputError, match=re.escape(hint) + "$"):
        options.train_options(argv, "")


@pytest.mark.parametrize(
    ("entry", "argv", "hint"),
    [
        ("convert", ["in", "out", "--to", "coc"], "did you mean coco?"),
        ("predict", ["x", "--save", "overlay,cvs"], "'cvs' is unknown; did you mean csv?"),
        ("export", ["--format", "onx"], "did you mean onnx?"),
        ("tools.get_weights", ["eficientnet_lite1"], "did you mean efficientnet_lite1?"),
    ],
)
def test_other_commands_give_hints_as_well(entry, argv, hint):
    with pytest.raises(InputError, match=re.escape(hint) + "$"):
        import_module(f"engine.{entry}").parse(argv)


def test_a_program_gets_the_same_hints():
    with pytest.raises(TypeError, match="no option is called epoch; did you mean epochs?"):
        engine.train(data="x", epoch=1)
    with pytest.raises(TypeError, match="no option is called zzz; there are recipe, data,"):
        engine.train(zzz=1)
    with pytest.raises(ValueError, match="did you mean --batch-size?"):
        engine.evaluate("best.pt", batchsize=1)
    wrong = "mobileinst_topformer_tinny"
    for build in (zoo.build, zoo.config_for):
        with pytest.raises(ValueError, match="did you mean mobileinst_topformer_tiny?"):
            build(wrong, num_classes=3)
    with pytest.raises(ValueError, match="--model.*did you mean mobileinst_topformer_tiny?"):
        engine.train(data="x", model=wrong)
    with pytest.raises(ValueError, match="did you mean swin_tiny?"):
        zoo.build_backbone("swin_tinny")
    assert train.__name__ == "engine.train"
