"""One rule for what commands write: the next free folder, or --out; nothing is replaced unasked."""

import contextlib
import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.errors import InputError
from engine import checkpoint, evaluate, files, predict, train, visualize
from engine.report import write
from mobileinst import zoo

ON_CPU = "--device cpu --threads 1".split()
MODEL = "mobileinst_topformer_tiny"


def content(folder):
    """Files below a folder, with their bytes."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def commands(toy_run, toy_coco, tiny, tmp_path, monkeypatch, no_finish):
    """Commands in an empty folder: main, arguments, their output for --out, what they write."""
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(toy_run, tmp_path / "runs" / f"{MODEL}-001")
    best = ["--checkpoint", str(run / "best.pt"), *ON_CPU]
    image = str(toy_coco / "val" / "8.png")
    return {
        "train": (
            train.main, [*tiny, "--iterations", "1"], "mine", "runs/{model}-{number}/last.pt",
        ),
        "predict": (predict.main, [image, *best], "mine", "predictions/{number}/objects.json"),
        "test": (
            evaluate.main, [*best, "--workers", "0", "--diagnose"], "mine.json",
            "runs/{model}-001/test-{number}/best_val_results.json",
        ),
        "visualize": (
            visualize.main, [*best, "--workers", "0", "--count", "1"], "mine.png",
            "runs/{model}-001/visualize-{number}/best_val.png",
        ),
        "report": (
            write.main, [str(run), str(toy_run), *ON_CPU, "--workers", "0"], "mine.html",
            "comparisons/{number}/comparison.html",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["train", "predict", "test", "visualize", "report"])
def test_nothing_is_replaced_unasked(commands, tmp_path, name):
    main, argv, out, written = commands[name]
    first = 2 if name == "train" else 1
    for number in (first, first + 1):
        before = content(tmp_path)
        main(argv)
        after = content(tmp_path)
        assert {path: after[path] for path in before} == before
        assert written.format(model=MODEL, number=f"{number:03d}") in after
    main([*argv, "--out", out])
    before = content(tmp_path)
    with pytest.raises(InputError, match=f"^{out}: the output exists; .*--overwrite, or name"):
        main([*argv, "--out", out])
    assert content(tmp_path) == before
    mine = tmp_path / out
    if mine.is_dir():
        (mine / "of the one before.txt").touch()
    else:
        mine.write_text("before")
    main([*argv, "--out", out, "--overwrite"])
    assert content(tmp_path).keys() == before.keys() and (mine.is_dir() or mine.stat().st_size > 9)


@pytest.mark.parametrize("name", ["test", "visualize"])
def test_results_go_into_a_folder_that_is_named(commands, tmp_path, name):
    main, argv, _, written = commands[name]
    main([*argv, "--out", "deep/folder"])
    found = content(tmp_path / "deep")
    assert f"folder/{Path(written).name}" in found
    assert name != "test" or json.loads(found["folder/diagnose.json"])


def test_a_failed_prediction_keeps_the_one_before(commands, tmp_path):
    """And leaves no folder of its own."""
    main, argv, out, _ = commands["predict"]
    main([*argv, "--out", out])
    before = content(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for more in (["--out", out, "--overwrite"], []):
        with pytest.raises(InputError, match="broken.png cannot be read"):
            main(["broken.png", *argv[1:], *more])
    assert content(tmp_path).keys() - before.keys() == {"broken.png"}
    assert not list(Path("predictions").iterdir()) and not list(tmp_path.glob(".*"))


def test_numbers_of_processes_that_start_at_once(tmp_path):
    (tmp_path / "x-007").mkdir()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: files.next_free(tmp_path, "x"), range(24)))
    assert sorted(found) == [tmp_path / f"x-{number:03d}" for number in range(8, 32)]
    assert files.next_free(tmp_path / "new") == tmp_path / "new" / "001"
    (tmp_path / "x-999").mkdir()
    assert [files.next_free(tmp_path, "x").name for _ in range(2)] == ["x-1000", "x-1001"]
    with pytest.raises(InputError, match="/proc/x-001: the folder cannot be made"):
        files.next_free(Path("/proc"), "x")  # as on a disk that may only be read


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_two_trainings_into_one_folder(tiny, tmp_path, monkeypatch, options):
    """The second one was started before the first one had made the folder."""
    out = tmp_path / "run"
    opts = train.parse([*tiny, "--iterations", "1", "--out", str(out), *options])
    with contextlib.ExitStack() as stack:
        open_data, first = train.open_data, []

        def opened(opts):
            if not first:
                first.append(None)
                first[0] = stack.enter_context(train.prepare(opts, zoo.build_from_config))
            return open_data(opts)

        monkeypatch.setattr(train, "open_data", opened)
        with pytest.raises(InputError, match=f"^{out}: another process is writing in this folder"):
            stack.enter_context(train.prepare(opts, zoo.build_from_config))
        assert {"last.pt", "options.json", "train_batch.png"} == set(os.listdir(out))
        monkeypatch.setattr(train, "finish", lambda run: None)
        train.fit(first[0])
    assert checkpoint.load(out / "best.pt")["iteration"] == 1


def test_two_writers_of_one_folder(tmp_path):
    out = tmp_path / "found"
    with files.atomic_folder(out) as folder:
        (folder / "first.txt").touch()
        with pytest.raises(InputError, match="another process is writing in this folder"):
            with files.atomic_folder(out):
                pass
    assert os.listdir(tmp_path) == ["found"] and os.listdir(out) == ["first.txt"]
    with pytest.raises(InputError, match=f"{out}: holds no objects.json, so --overwrite leaves it"):
        with files.atomic_folder(out, overwrite=True, mark="objects.json"):
            pass
    with files.atomic_folder(out, overwrite=True, mark="first.txt") as folder:
        (folder / "second.txt").touch()
    assert os.listdir(out) == ["second.txt"]


def test_a_linked_folder_is_written_into(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "found").symlink_to("disk")
    for number in range(2):  # a new one, then one in use
        with files.atomic_folder(
            tmp_path / "found", overwrite=bool(number), mark="a.txt"
        ) as folder:
            (folder / "a.txt").write_text(str(number))
    assert content(tmp_path / "disk") == {"a.txt": b"1"}
    assert (tmp_path / "found").is_symlink()


def test_the_rest_of_a_killed_prediction_is_removed(tmp_path):
    (tmp_path / "out" / "unfinished.tmp" / "more").mkdir(parents=True)
    (tmp_path / "out" / "draft.tmp").touch()
    with files.atomic_folder(tmp_path / "out") as folder:
        (folder / "a.txt").touch()
    assert set(os.listdir(tmp_path / "out")) == {"a.txt", "draft.tmp"}


def test_a_folder_on_a_disk_that_may_only_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    (tmp_path / "last.pt").touch()
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be written .Read-only file system"):
        files.FolderLock().claim(tmp_path, Path("runs"), "run", "last.pt", overwrite=True)
