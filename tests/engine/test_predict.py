"""engine/predict.py: which images are taken, how they are named, and the checkpoint in use."""

import csv
import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.errors import InputError
from engine import checkpoint, convert, evaluate, options, predict, visualize

ON_CPU = ["--device", "cpu", "--threads", "1"]


@pytest.fixture
def run_predict(toy_run, tmp_path, capsys):
    """Predicts and returns the output folder, the printed lines, and the exit code."""

    def raises(*argv):
        given = ["--checkpoint", toy_run / "best.pt", "--out", out, *ON_CPU]
        predict.main([str(each) for each in [*argv, *given]])

    def run(*argv):
        code = 0
        try:
            raises(*argv)
        except InputError:
            code = 2
        return out, capsys.readouterr().out.partition("\n\nnext:\n")[0].splitlines(), code

    out, run.raises = tmp_path / "found", raises
    return run


def names_in(out):
    """The images in the table and in the json, each once, in order."""
    with open(out / "objects.csv", newline="") as file:
        table = list(dict.fromkeys(row["image"] for row in csv.DictReader(file)))
    content = json.loads((out / "objects.json").read_text())
    return table, [image["file_name"] for image in content["images"]]


def filled(folder, toy_coco, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(toy_coco / "train" / "0.png", folder / name)
    return folder


def test_a_folder_in_natural_order_and_what_is_passed_over(run_predict, toy_coco, tmp_path):
    images = ["frame_2.png", "Frame_3.PNG", "frame_10.png", "frame_11.jfif"]
    folder = filled(tmp_path / "in", toy_coco, *reversed(images))
    filled(folder / "below", toy_coco, "frame_1.png", "._frame_1.png")
    for name in ("._frame_2.png", ".DS_Store", "notes.txt", "photo.heic"):
        (folder / name).write_bytes(b"no image")
    (folder / "loop").symlink_to("loop")
    out, lines, code = run_predict(folder)
    assert code == 0 and names_in(out) == (images, images)
    assert "4 of 4 images" in lines[-1]
    for passed_over in ("hidden files: 2", "other kinds: 3", "folders (without --recursive): 1"):
        assert passed_over in lines[-1]
    shutil.rmtree(out)
    out, lines, code = run_predict(folder, "--recursive")
    assert code == 0 and names_in(out)[1] == [*images, "below/frame_1.png"]
    assert "hidden files: 3" in lines[-1] and "folders" not in lines[-1]


def test_a_list_with_a_byte_order_mark(run_predict, toy_coco, tmp_path):
    filled(tmp_path, toy_coco, "a.png", "b c.png")
    (tmp_path / "list.TXT").write_bytes("\ufeffb c.png\r\n\r\na.png\r\nb c.png\r\n".encode())
    out, lines, code = run_predict(tmp_path / "list.TXT")
    assert code == 0 and names_in(out)[1] == ["b c.png", "a.png"]
    assert "repeated: 1" in lines[-1]


def test_a_list_with_backslashes(run_predict, toy_coco, tmp_path):
    filled(tmp_path / "a", toy_coco, "1.png", "2.png")
    filled(tmp_path, toy_coco, "a\\2.png")  # a name of its own, on this system
    (tmp_path / "list.txt").write_text("a\\1.png\na\\2.png\na/2.png\n")
    out, _, code = run_predict(tmp_path / "list.txt")
    assert code == 0 and names_in(out)[1] == ["a/1.png", "a\\2.png", "a/2.png"]


def test_equal_names_in_different_folders(run_predict, toy_coco, tmp_path):
    for name in ("a", "b"):
        filled(tmp_path / "in" / name, toy_coco, "1.png", "2.png")
    wanted = ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    below = tmp_path / "in"
    (below / "list.txt").write_text("\n".join(wanted))
    files = [below / name for name in wanted]
    for given in ([below, "--recursive"], [below / "a", below / "b"], files, [below / "list.txt"]):
        out, _, code = run_predict(*given)
        assert code == 0 and names_in(out) == (wanted, wanted)
        content = json.loads((out / "objects.json").read_text())
        assert len({each["id"] for each in content["images"]}) == 4
        assert len(list(out.glob("*_overlay.jpg"))) == 4
        shutil.rmtree(out)
    out, _, _ = run_predict(below / "a")
    assert names_in(out)[1] == ["1.png", "2.png"]


def test_an_image_longer_than_a_jpeg_may_be(run_predict, toy_coco, tmp_path):
    filled(tmp_path, toy_coco, "a.png")
    Image.new("L", (65_501, 2)).save(tmp_path / "scan.png")
    out, _, code = run_predict(tmp_path / "a.png", tmp_path / "scan.png")
    overlays = sorted(path.name for path in out.glob("*_overlay.*"))
    assert code == 0 and overlays == ["00001_a_overlay.jpg", "00002_scan_overlay.png"]


def test_the_batch_size_changes_no_output(run_predict, toy_coco, tmp_path):
    """Images of three sizes, a bad one and pages, in order; masks may differ by rounding."""
    folder = filled(tmp_path / "in", toy_coco)
    for number in range(8):
        shutil.copy(toy_coco / "train" / f"{number}.png", folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"no image")
    pages = [Image.open(folder / f"{number}.png") for number in (0, 1)]
    pages[0].save(folder / "2.tif", save_all=True, append_images=pages[1:])
    contents, names = [], []
    for size in ("1", "3", "20"):
        argv = [folder, "--pages", "all", "--threshold", "0.1", "--batch-size", size]
        out, _, code = run_predict(*argv, "--overwrite")
        assert code == 2
        contents.append(json.loads((out / "objects.json").read_text()))
        names.append(sorted(path.name for path in out.iterdir()))
    first, *others = contents
    assert len(first["images"]) == 9 and len(first["annotations"]) > 9
    assert names[0] == names[1] == names[2]
    for other in others:
        assert other["images"] == first["images"]
        for one, two in zip(first["annotations"], other["annotations"], strict=True):
            assert all(one[key] == two[key] for key in ("id", "image_id", "category_id"))
            assert one["score"] == pytest.approx(two["score"], abs=1e-4)
            assert rle.iou([one["segmentation"]], [two["segmentation"]])[0, 0] > 0.98


def test_the_first_page_or_all_of_them(run_predict, toy_coco, tmp_path):
    pages = [Image.open(toy_coco / "train" / f"{number}.png") for number in (0, 3, 6)]  # one size
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "film.webp", save_all=True, append_images=pages[1:], lossless=True)
    given = [tmp_path / "scan.tif", tmp_path / "film.webp", toy_coco / "train" / "0.png"]
    out, lines, code = run_predict(*given)
    assert code == 0 and names_in(out)[1] == ["scan.tif", "film.webp", "0.png"]
    assert "pages (without --pages all): 4" in lines[-1]
    shutil.rmtree(out)
    out, lines, code = run_predict(*given, "--pages", "all")
    numbered = [f"{name}#page={n}" for name in ("scan.tif", "film.webp") for n in (1, 2, 3)]
    assert code == 0 and names_in(out)[1] == [*numbered, "0.png"]
    assert "7 of 7 images" in lines[-1] and "pages" not in lines[-1]
    content = json.loads((out / "objects.json").read_text())
    found = {
        number: [
            each["segmentation"] for each in content["annotations"] if each["image_id"] == number
        ]
        for number in range(1, 8)
    }
    assert found[1] == found[4] == found[7] and found[2] == found[5] != found[1]
    assert found[3] == found[6] == []  # scene 6 has no object


def test_a_name_that_looks_like_a_page(run_predict, toy_coco, tmp_path):
    name = "a #page=2.png"
    shutil.copy(toy_coco / "train" / "0.png", tmp_path / name)
    out, _, code = run_predict(tmp_path / name, "--save", "labelme")
    [copied] = out.rglob("*.png")
    assert code == 0 and copied.name == name
    assert copied.read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("threshold", ["nan", "2", "-1"])
def test_thresholds_are_fractions(run_predict, toy_coco, threshold):
    with pytest.raises(InputError, match="a number from 0 to 1"):
        run_predict.raises(toy_coco / "train", "--threshold", threshold)


def test_a_bad_page_is_listed_and_the_ones_before_are_kept(run_predict, toy_coco, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    pages = [Image.fromarray(each) for each in noise]
    path = tmp_path / "scan.gif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 5 // 6])
    out, lines, code = run_predict(path, toy_coco / "train" / "0.png", "--pages", "all")
    assert code == 2
    names = names_in(out)[1]
    assert "0.png" in names and "scan.gif#page=1" in names
    [bad] = json.loads((out / "skipped.json").read_text())
    assert bad["file"] == str(path) and "page 3 and later" in bad["record"]


def test_where_no_image_can_be_read_all_are_listed(run_predict, tmp_path, capsys):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    given = [str(tmp_path / name) for name in ("a.png", "b.jpg")]
    with pytest.raises(InputError, match="none of 2 images can be read, as listed above"):
        run_predict.raises(*given)
    printed = capsys.readouterr().out
    assert all(name in printed for name in given) and not (tmp_path / "found").exists()
    with pytest.raises(InputError, match="a.png cannot be read as an image"):
        run_predict.raises(given[0])


@pytest.mark.parametrize("main", [predict.main, visualize.main, evaluate.main])
@pytest.mark.parametrize("ap", [0.4137, 0.0, -1.0])
def test_the_newest_run_is_named_with_age_and_score(
    main, ap, toy_run, toy_coco, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(options, "RUNS", tmp_path)
    content = checkpoint.load(toy_run / "best.pt")
    content["best"]["AP"] = ap
    for name, hours in (("old", 50), ("new", 3), ("older", 90)):
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name / "best.pt", content)
        then = time.time() - 3600 * hours
        os.utime(tmp_path / name / "best.pt", (then, then))
    (tmp_path / "unscored").mkdir()
    checkpoint.save(tmp_path / "unscored" / "last.pt", content)
    out = tmp_path / ("out" if main is predict.main else "out.png")
    images = [str(toy_coco / "train" / "0.png")] if main is predict.main else ["--workers", "0"]
    main([*images, "--out", str(out), *ON_CPU])
    skipped, first, second = capsys.readouterr().out.splitlines()[:3]
    assert f"without a best.pt yet: {tmp_path}/unscored" in skipped
    assert f"{tmp_path}/new/best.pt, 3 hours old" in first
    assert ("AP 0.414" in first) == (ap > 0)
    assert ("never scored above 0" in first) == ("warning" in second) == (ap <= 0)


def test_the_command_for_corrections_has_the_options_that_decide_what_is_found(
    toy_run, toy_coco, tmp_path, capsys
):
    image, best = toy_coco / "train" / "0.png", toy_run / "best.pt"
    chosen = ["--threshold", "0.8", "--image-size", "64"]
    predict.main([str(image), "--checkpoint", str(best), *chosen, "--out", str(tmp_path / "out")])
    step = capsys.readouterr().out.partition("\n\nnext:\n")[2]
    words = f"predict.sh {image} --checkpoint {best} {' '.join(chosen)} --save labelme"
    assert words in step


TOOLS = ["masks", "labelme", "cvat", "yolo", "label-studio"]


def test_sets_for_annotation_tools(run_predict, toy_coco, tmp_path, monkeypatch):
    """Each is a set of its own, with copies of the images, that is read again."""
    filled(tmp_path / "in" / "a", toy_coco, "x.png")
    filled(tmp_path / "in", toy_coco, "x.jpg", "x.png", "empty.png")
    shutil.copy(toy_coco / "train" / "6.png", tmp_path / "in" / "empty.png")  # without objects
    out, lines, code = run_predict(tmp_path / "in", "--recursive", "--save", ",".join(TOOLS))
    assert code == 0 and sorted(os.listdir(out)) == sorted([*TOOLS, "objects.json"])
    copies = sorted(path.name for path in (out / "labelme").rglob("*.*g"))
    assert copies == ["empty.png", "x.jpg", "x.png", "x_2.png"]
    content = json.loads((out / "objects.json").read_text())
    record = json.loads((out / "labelme" / "train" / "a" / "x.json").read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    ids = {each["file_name"]: each["id"] for each in content["images"]}
    found = [each for each in content["annotations"] if each["image_id"] == ids["a/x.png"]]
    assert [shape["label"] for shape in record["shapes"]] == [
        names[each["category_id"]] for each in found
    ]
    assert {shape["shape_type"] for shape in record["shapes"]} <= {"polygon", "mask"}
    assert record["shapes"][0]["description"] == f"score {found[0]['score']}"
    tasks = json.loads((out / "label-studio" / "train.json").read_text())
    assert all("annotations" not in task for task in tasks)
    numbers = [len(task["predictions"][0]["result"]) for task in tasks]
    assert sum(numbers) == len(content["annotations"]) and 0 in numbers
    monkeypatch.chdir(tmp_path)
    convert.main([str(out / "cvat"), str(tmp_path / "back"), "--to", "coco"])
    back = json.loads((tmp_path / "back" / "annotations" / "instances_train.json").read_text())
    assert [one["segmentation"]["counts"] for one in back["annotations"]] == [
        one["segmentation"]["counts"] for one in content["annotations"]
    ]


def test_pages_become_images_of_the_sets(run_predict, toy_coco, tmp_path):
    pages = [Image.open(toy_coco / "train" / f"{number}.png") for number in (0, 3)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    out, _, code = run_predict(tmp_path / "scan.tif", "--pages", "all", "--save", "labelme")
    assert code == 0
    for number, page in enumerate(pages, 1):
        name = f"scan_page{number}"
        copy = np.asarray(Image.open(out / "labelme" / "train" / f"{name}.png"))
        assert (copy == np.asarray(page)).all()
        record = json.loads((out / "labelme" / "train" / f"{name}.json").read_text())
        assert record["imagePath"] == f"{name}.png"


def test_cutouts_and_colours_by_class(run_predict, toy_run, toy_coco, tmp_path):
    """One transparent PNG for each object of the table, in its order, also of classes whose names
    are no names of files.
    """
    weights = checkpoint.load(toy_run / "best.pt")
    weights["classes"] = [one | {"name": f"a/b 猫 {one['name']}"} for one in weights["classes"]]
    checkpoint.save(tmp_path / "named.pt", weights)
    folder = filled(tmp_path / "in", toy_coco)
    for number in (6, 0, 3):
        shutil.copy(toy_coco / "train" / f"{number}.png", folder / f"é {number}.png")
    argv = [str(folder), "--checkpoint", str(tmp_path / "named.pt"), "--threshold", "0.2", *ON_CPU]
    out, argv = tmp_path / "out", [*argv, "--save", "cutouts,csv,overlay", "--colour-by", "class"]
    predict.main([*argv, "--out", str(out)])
    with open(out / "objects.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cuts = sorted((out / "cutouts").iterdir())
    numbers = {"é 0.png": 1, "é 3.png": 2, "é 6.png": 3}
    assert len(cuts) == len(rows) > 1
    for row, path in zip(rows, cuts, strict=True):
        stem = f"{numbers[row['image']]:05d}_{row['image'][:-4]}"
        assert path.name == f"{stem}_object{int(row['object']):03d}.png"
        with Image.open(path) as cut:
            pixels = np.asarray(cut)
        x0, y0, x1, y1 = (int(row[side]) for side in ("x0", "y0", "x1", "y1"))
        assert pixels.shape == (y1 - y0, x1 - x0, 4)
        assert (pixels[..., 3] == 255).sum() == int(row["area"])
        photo = np.asarray(Image.open(folder / row["image"]).convert("RGB"))[y0:y1, x0:x1]
        assert (pixels[..., :3] == photo)[pixels[..., 3] > 0].all()
