"""engine/shards.py: the jobs of an array do their part, are started again, and are joined."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from engine import checkpoint, files, output, predict, shards
from engine.shards import Shard, shard

SETS = "overlay,ids,cutouts,coco,csv,labelme,yolo"


@pytest.fixture(scope="module")
def images(toy_coco, tmp_path_factory):
    """Images in folders, one with a space and a letter beyond ASCII, and a TIFF of three pages."""
    folder = tmp_path_factory.mktemp("shards") / "in"
    (folder / "bélow it").mkdir(parents=True)
    for number in (0, 1, 2, 3, 5):
        shutil.copy(toy_coco / "train" / f"{number}.png", folder / f"{number}.png")
    shutil.copy(toy_coco / "train" / "7.png", folder / "bélow it" / "0.png")
    pages = [Image.open(toy_coco / "train" / f"{number}.png") for number in (0, 3, 4)]
    pages[0].save(folder / "4.tif", save_all=True, append_images=pages[1:])
    return folder


@pytest.fixture
def run(toy_run, images, tmp_path):
    """Predicts the images into a folder; the images are another list where one is given."""
    given = ["--checkpoint", toy_run / "best.pt", "--device", "cpu", "--threads", "1"]
    given += ["--recursive", "--pages", "all", "--tiles", "2", "--save", SETS]

    def run(out, *argv, images=images):
        predict.main([str(each) for each in [images, *given, "--out", tmp_path / out, *argv]])
        return tmp_path / out

    return run


def merge(out, *argv):
    predict.main(["--merge", "--out", str(out), *argv])


def content(folder):
    """The files below a folder with their bytes, but those of the shards."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    named = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {name: one for name, one in named.items() if not name.startswith("shards/")}


def test_joined_shards_are_the_run_in_one_go(run, capsys):
    """Whatever their order, and also where there are more shards than images."""
    whole = content(run("whole"))
    assert "00006_4_page2" not in str(sorted(whole)) and "cutouts/00001_0_object001.png" in whole
    for count, order in ((2, (2, 1)), (10, range(1, 11))):
        out = None
        for index in order:
            out = run(str(count), "--shard", f"{index}/{count}")
            last = "join the shards" in capsys.readouterr().out
            assert last == (index in (order[-1], 9))  # there are 9 images
            if index == order[0]:
                with pytest.raises(InputError, match=f"start them again: --shard .*/{count} \\("):
                    merge(out)
        for _ in range(2):  # again is the same
            merge(out)
            assert content(out) == whole


def test_what_is_done_is_not_done_again(run, monkeypatch, capsys):
    """After a kill at any place, also one in the middle of a line."""
    whole = content(run("whole"))
    write_images, done = output.Output.write_images, []

    def killed(self, number, *argv):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(number)
        return write_images(self, number, *argv)

    monkeypatch.setattr(output.Output, "write_images", killed)
    with pytest.raises(KeyboardInterrupt):
        run("out", "--shard", "1/2")
    assert done == [1, 3]
    monkeypatch.setattr(output.Output, "write_images", write_images)
    path = run("out", "--shard", "2/2") / "shards" / "1-of-2" / "records.jsonl"
    text = path.read_text()
    path.write_text(text[:-20])  # image 3 is not whole any more
    done.clear()
    monkeypatch.setattr(
        output.Output, "write_images", lambda *argv: done.append(argv[1]) or write_images(*argv)
    )
    capsys.readouterr()
    out = run("out", "--shard", "1/2")
    assert done == [3, 5, 7, 9]
    assert "shard 1/2: 5 of 5 images, 1 of them done before" in capsys.readouterr().out
    run("out", "--shard", "1/2")
    assert done == [3, 5, 7, 9]
    merge(out)
    assert content(out) == whole


def test_other_weights_options_or_images_are_refused(run, images, toy_run, tmp_path):
    out = run("out", "--shard", "1/2")
    weights = checkpoint.load(toy_run / "best.pt")
    weights["iteration"] += 1
    checkpoint.save(tmp_path / "other.pt", weights)
    for name, argv in {
        r"checkpoint \(": ["--checkpoint", tmp_path / "other.pt"],
        r"threshold \(": ["--threshold", "0.9"],
        r"tiles \(2\) than now \(3\)": ["--tiles", "3"],
        r"shards \(2\) than now \(3\)": ["--shard", "1/3"],
        r"save than": ["--save", "csv"],
    }.items():
        with pytest.raises(InputError, match=f"begun with other {name}"):
            run("out", "--shard", "2/2", *argv)
    with pytest.raises(InputError, match=r"begun with other images \(9\) than now \(1\)"):
        run("out", "--shard", "2/2", images=images / "0.png")
    with pytest.raises(InputError, match="begun with other list of images"):
        other = shutil.copytree(images, tmp_path / "in")
        (other / "0.png").rename(other / "00.png")
        run("out", "--shard", "2/2", images=other)
    lock = files.FolderLock()
    lock.acquire(out / "shards" / "2-of-2")
    with pytest.raises(InputError, match="another process is writing"):
        run("out", "--shard", "2/2")
    lock.release()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").touch()
    with pytest.raises(InputError, match="is not of shards"):
        run("mine", "--shard", "2/2")
    with pytest.raises(InputError, match="holds no shards/run.json"):
        merge(mine)


def test_of_shards_with_other_options_only_one_begins(tmp_path):
    """Also where the other one writes between the check and the start."""
    with ThreadPoolExecutor(8) as pool:
        begun = [pool.submit(shards.begin, tmp_path / "out", {"shards": n}) for n in range(2, 10)]
    refused = [one.exception() for one in begun if one.exception()]
    assert len(refused) == 7 and all("begun with other shards" in str(one) for one in refused)


def test_images_that_cannot_be_read(run, images, tmp_path, capsys):
    """They do not hold up the others, are tried again, and are listed once by the merge."""
    folder = shutil.copytree(images, tmp_path / "in")
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    frames = [Image.fromarray(each) for each in noise]
    frames[0].save(folder / "6.gif", save_all=True, append_images=frames[1:])
    data = (folder / "6.gif").read_bytes()
    (folder / "6.gif").write_bytes(data[: len(data) // 2])  # some of its pages are whole
    good = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(b"no image")
    for index in (1, 2):
        with pytest.raises(InputError, match="cannot be read, as listed above"):
            run("out", "--shard", f"{index}/2", images=folder)
    out = tmp_path / "out"
    with pytest.raises(InputError, match="2 of 12 images cannot be read, as .*skipped.json lists"):
        merge(out)
    with pytest.raises(InputError):
        run("whole", images=folder)
    assert content(out) == content(tmp_path / "whole")
    (folder / "1.png").write_bytes(good)
    run("out", "--shard", "2/2", "--skip-bad-records", images=folder)
    merge(out, "--skip-bad-records")
    found = json.loads((out / "objects.json").read_text())
    assert "1.png" in [one["file_name"] for one in found["images"]]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/", "a/3", "1/0", "1/3/4"])
def test_a_wrong_shard(text):
    with pytest.raises(InputError, match="is not I/N with I from 1 to N"):
        predict.parse(["x.png", "--out", "y", "--shard", text])


def test_options_that_do_not_go_together():
    assert shard("2/10") == Shard(2, 10)
    for argv, words in (
        (["x.png", "--shard", "1/2"], "need the --out"),
        (["--merge"], "need the --out"),
        (["x.png", "--shard", "1/2", "--merge", "--out", "y"], "give it without --shard"),
        (["x.png", "--shard", "1/2", "--out", "y", "--overwrite"], "remove the work of other"),
        ([], "no images"),
    ):
        with pytest.raises(InputError, match=words):
            predict.parse(argv)
