"""How both demo sets are written: the same for a seed, complete or not at all, not over another."""

from __future__ import annotations

import numpy as np
import pytest

from data.demo import organs, pond
from data.errors import InputError


@pytest.fixture(scope="module", params=[pond, organs], ids=["pond", "organs"])
def demo(request):
    return request.param


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    return demo.write(tmp_path_factory.mktemp("set") / "demo", 2, 2)


def test_the_same_seed_gives_the_same_files_however_many(demo, folder, tmp_path):
    more = demo.write(tmp_path / "more", 3, 2)
    images = [*folder.rglob("*.jpg"), *folder.rglob("*.png")]
    assert len(images) in (4, 12)
    for file in images:
        assert file.read_bytes() == (more / file.relative_to(folder)).read_bytes(), file.name
    (val,) = folder.rglob("instances_val.json")
    assert val.read_bytes() == (more / val.relative_to(folder)).read_bytes()
    one, other = (demo.draw_scene((seed, 0, 0)).image for seed in (0, 1))
    assert one.shape != other.shape or not np.array_equal(one, other)


def test_a_finished_set_is_used_again_and_nothing_else(demo, folder, tmp_path):
    before = (folder / "demo.json").stat().st_mtime_ns
    assert demo.write(folder, 2, 2) == folder
    assert (folder / "demo.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="already holds"):
        demo.write(folder, 2, 2, seed=1)
    with pytest.raises(InputError, match="already holds"):
        {pond: organs, organs: pond}[demo].write(folder, 2, 2)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds"):
        demo.write(tmp_path, 1, 1)
    with pytest.raises(InputError, match="at least one"):
        demo.write(tmp_path / "none", 0, 1)


def test_two_writers_of_one_set_at_once(demo, folder, tmp_path, monkeypatch):
    """The second one finds the set that the first one has finished meanwhile, and keeps it."""
    draw, out, first = demo.draw_scene, tmp_path / "set", []

    def draw_scene(seed):
        if not first:
            first.append(None)
            demo.write(out, 2, 2)
            first.append((out / "demo.json").stat().st_ino)
        return draw(seed)

    monkeypatch.setattr(demo, "draw_scene", draw_scene)
    assert demo.write(out, 2, 2) == out and first[1] == (out / "demo.json").stat().st_ino
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in files)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_interrupted_set_leaves_nothing(demo, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "draw_scene", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.write(tmp_path / "set", 1, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(demo, tmp_path, capsys):
    out = tmp_path / "set"
    assert demo.main(["--out", str(out), "--train", "1", "--val", "1"]) == 0
    assert (out / "demo.json").is_file()
    assert demo.main(["--out", str(out), "--train", "2", "--val", "1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
