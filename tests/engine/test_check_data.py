"""engine/check_data.py: each problem is planted in a small set, and its count is made here."""

import contextlib
import csv
import io
import json
import shlex
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data.errors import InputError
from engine import check_data
from tests.engine.report.pages import parsed


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Checks and conversions are kept in the folder of the test."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def checked(root, capsys, *options):
    """Exit code, the last line, and the number of rows of each title in problems.csv."""
    code = check_data.main([str(root), "--workers", "0", *options])
    said, _, steps = capsys.readouterr().out.partition("\nnext:\n")
    line = said.strip().splitlines()[-1]
    assert (" --overfit 8" in steps) == (code == 0) and shlex.quote(str(root)) in steps
    folder = check_data.Path(line.rsplit(": ", 1)[1]).parent
    with open(folder / "problems.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return code, line, Counter(row["what"] for row in rows), rows


def square(left, top, side):
    right, bottom = left + side, top + side
    return [[left, top, right, top, right, bottom, left, bottom]]


class Planted:
    """Images of noise, 64 x 48, in two splits; each with a disc and a square that do not touch."""

    def __init__(self, root):
        self.root, self.contents = root, {}
        for split, numbers in (("train", range(6)), ("val", range(6, 9))):
            (root / split).mkdir(parents=True)
            images, annotations = [], []
            for number in numbers:
                pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / f"{number}.png")
                images.append(
                    {"id": number, "file_name": f"{number}.png", "width": 64} | {"height": 48}
                )
                for category, left in ((1, 4), (2, 36)):
                    one = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
                    annotations.append(one | {"segmentation": square(left, 10, 20), "area": 400})
            categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]
            keys = ("images", "annotations", "categories")
            self.contents[split] = dict(zip(keys, (images, annotations, categories), strict=True))

    def write(self):
        (self.root / "annotations").mkdir(exist_ok=True)
        for split, content in self.contents.items():
            path = self.root / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(content))
        return self.root

    def add(self, split, number, segmentation, category=1, **more):
        annotations = self.contents[split]["annotations"]
        one = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
        annotations.append(one | {"segmentation": segmentation} | more)

    def path(self, split, number):
        return self.root / split / f"{number}.png"


@pytest.fixture
def planted(tmp_path):
    return Planted(tmp_path / "set")


def test_a_clean_set_passes(planted, capsys):
    code, line, found, _ = checked(planted.write(), capsys)
    assert code == 0 and not found
    assert line.startswith("READY, 9 images, 18 objects, 2 classes: checks/001/report.html")


def broken_records(planted):
    planted.add("train", 0, [[1, 2, 3, 4]], category=9)
    planted.add("train", 1, [[0, 0, 5, 0, 5, 1e8]])
    planted.add("val", 77, square(4, 4, 8))
    planted.contents["val"]["images"].append(
        {"id": 70, "file_name": "no.png", "width": 9, "height": 9}
    )
    return 4


def broken_files(planted):
    for number in (1, 4):
        path = planted.path("train", number)
        path.write_bytes(path.read_bytes()[:3000])
    planted.path("val", 7).write_text("no image")
    return 3


def other_sizes(planted):
    for split, number, size in (("train", 2, (32, 24)), ("val", 8, (48, 64))):
        path = planted.path(split, number)
        Image.open(path).resize(size).save(path)
    return 2


def turned(planted):
    for number, orientation in ((0, 6), (1, 3)):
        path = planted.path("train", number)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.open(path)
        image = image.rotate(90, expand=True) if orientation == 6 else image
        image.save(path, exif=exif)
    return 2


def leaks(planted):
    shutil.copy(planted.path("train", 0), planted.path("val", 6))  # the same bytes
    pixels = Image.open(planted.path("train", 3))
    pixels.save(planted.path("val", 7), compress_level=1)  # the same pixels
    assert planted.path("val", 7).read_bytes() != planted.path("train", 3).read_bytes()
    return 2


def doubles(planted):
    for number in (1, 2):
        shutil.copy(planted.path("train", 0), planted.path("train", number))
    return 1  # group


def empty_masks(planted):
    planted.add("train", 0, square(200, 200, 9))
    planted.add("val", 6, [[5, 5, 5, 5, 5, 5]])
    return 2


def boxes(planted):
    for number in (0, 1, 2):
        planted.add("train", number, [], bbox=[26, 30, 8, 8])
    return 3


def tiny(planted):
    planted.add("train", 0, square(30, 40, 3))
    planted.add("val", 7, square(30, 40, 2))
    planted.add("val", 7, square(30, 2, 4))  # 16 pixels are enough
    return 2


def outside(planted):
    planted.add("train", 0, square(-9, 35, 12), category=2)
    planted.add("train", 1, square(50, 35, 20), category=2)
    planted.add("train", 1, square(26, 40, 8.9), category=2)  # tools round: under a pixel
    return 2


def wrong_areas(planted):
    for place, area in enumerate((601, 199, 600, 200, 401)):
        planted.contents["train"]["annotations"][place]["area"] = area
    return 2


def twice(planted):
    planted.add("train", 0, square(4, 10, 19))  # IoU 361 / 400
    planted.add("train", 1, square(4, 10, 20), category=2)
    planted.add("train", 2, square(4, 10, 17), category=2)  # 289 / 400, of another class
    return 2


def inside(planted):
    planted.add("train", 0, square(6, 12, 10))
    planted.add("train", 1, square(6, 12, 10), category=2)  # of another class
    planted.add("val", 6, square(19, 10, 8))  # 5 of its 8 columns
    planted.add("val", 6, square(20, 20, 8), category=2)
    return 2


def unused(planted):
    for content in planted.contents.values():
        content["categories"] += [{"id": 5, "name": "whale"}, {"id": 8, "name": "crab"}]
    return 2


def missing_in_a_split(planted):
    for content in planted.contents.values():
        content["categories"].append({"id": 5, "name": "whale"})
    planted.add("train", 0, square(26, 30, 8), category=5)
    return 1


def similar(planted):
    names = ("Disc", "discs", "triangle_1", "triangle_2", "elephant", "elehpant")
    for content in planted.contents.values():
        content["categories"] += [{"id": 10 + i, "name": name} for i, name in enumerate(names)]
    for split, number in (("train", 0), ("val", 6)):
        for place in range(len(names)):
            planted.add(split, number, square(2 + 10 * place, 34, 8), category=10 + place)
    return 4  # three pairs of discs, one of elephants


def warned(planted):
    for one in planted.contents["train"]["annotations"][::2]:
        one["iscrowd"] = 1
    return 1  # sentence: all discs are crowds


def no_objects(planted):
    planted.contents["train"]["annotations"] = []
    return 1


PROBLEMS = {
    "records that cannot be used": broken_records,
    "broken image files": broken_files,
    "images of another size than annotated": other_sizes,
    "images in several splits": leaks,
    "training set without objects": no_objects,
    "warnings of reading": warned,
    "images turned by EXIF": turned,
    "images several times in a split": doubles,
    "masks without a pixel": empty_masks,
    "boxes without a mask": boxes,
    "masks under 16 pixels": tiny,
    "outlines that leave their image": outside,
    "areas off by more than half": wrong_areas,
    "objects drawn twice": twice,
    "objects inside another of their class": inside,
    "classes without objects": unused,
    "classes missing in a split": missing_in_a_split,
    "class names that are nearly the same": similar,
}
ERRORS = list(PROBLEMS)[:5]


@pytest.mark.parametrize("title", PROBLEMS)
def test_a_planted_problem_is_found(planted, capsys, title):
    """With its exact count, and a page of it; nothing else is found but what follows from it."""
    count = PROBLEMS[title](planted)
    code, line, _, rows = checked(planted.write(), capsys)
    assert code == (2 if title in ERRORS else 0)
    assert line.startswith("NOT READY" if title in ERRORS else "READY")
    assert f"{title} ({count})" in line
    if title not in ("training set without objects", "warnings of reading"):  # no disc is left
        assert line.count("(") == 1, line
    page = check_data.Path(line.rsplit(": ", 1)[1]).read_text()
    assert f"{title}: {count} " in page


def test_objects_beyond_the_queries_and_detections(planted, capsys):
    """The recipe follows the training set, so only val and a number of the user are too small."""
    for place in range(60):
        planted.add("val", 6, square(place, 40, 5))
    _, line, _, rows = checked(planted.write(), capsys)
    assert "splits with more objects than queries or detections (1)" in line
    text = next(row["where"] for row in rows if row["what"].startswith("splits with more"))
    assert "1 image of 3" in text and "62" in text and "49 queries" in text
    _, _, _, rows = checked(planted.root, capsys, "--set", "num_queries=1", "max_detections=60")
    found = [row["where"] for row in rows if row["what"].startswith("splits with more")]
    assert [text.split(":")[0] for text in found] == ["train", "val", "val"]
    assert "6 images of 6" in found[0] and "63 objects" in found[1] and "2 objects" in found[2]


@pytest.mark.parametrize("split", ["val", "test"])
def test_without_a_training_split_no_training_can_use_the_data(planted, capsys, split):
    planted.contents = {split: planted.contents["val"]}
    (planted.root / "val").rename(planted.root / split)
    shutil.rmtree(planted.root / "train")
    code, line, _, rows = checked(planted.write(), capsys)
    assert code == 2 and "to correct: no training split (1)" in line and len(rows) == 1


@pytest.mark.parametrize(
    "options, recipe",
    [
        ((), "small-pretrained"),
        (("--from-scratch",), "small"),
        (("--recipe", "mask2former-small", "--from-scratch"), "mask2former-small"),
        (("--recipe", "coco"), "coco"),
    ],
)
def test_the_recipe_is_the_one_of_a_training(planted, capsys, options, recipe):
    code, line, _, _ = checked(planted.write(), capsys, *options)
    page = check_data.Path(line.rsplit(": ", 1)[1]).read_text()
    assert code == 0 and f"Recipe {recipe}; " in page
    assert ("mask_stride" in page) != recipe.startswith("mask2former")


def test_data_without_a_validation_split_are_divided_as_a_training_does(planted, capsys):
    content = planted.contents.pop("train")
    shutil.rmtree(planted.root / "val")
    planted.contents = {"train": content}
    code, line, _, _ = checked(planted.write(), capsys, "--val-fraction", "0.34")
    page = check_data.Path(line.rsplit(": ", 1)[1]).read_text()
    assert code == 0 and "2 of 6 images are held out" in page
    shutil.copy(planted.path("train", 0), planted.path("train", 1))
    code, line, _, _ = checked(planted.root, capsys, "--val-fraction", "0")
    assert code == 0 and "6 images" in line and "images several times in a split (1)" in line
    content["annotations"][0]["category_id"] = 99
    code, _, _, rows = checked(planted.write(), capsys, "--val-fraction", "0.34")
    unusable = [row["split"] for row in rows if row["what"] == "records that cannot be used"]
    assert code == 2 and unusable == ["train"]


def test_the_page_is_whole_and_self_contained(planted, capsys):
    """Names of classes and files are text, whatever they hold."""
    for content in planted.contents.values():
        content["categories"][0]["name"] = "<script>alert(1)</script> & \u202e"
    Image.open(planted.path("train", 0)).save(planted.root / "train" / "<b>.png")
    planted.contents["train"]["images"][0]["file_name"] = "<b>.png"
    tiny(planted)
    doubles(planted)
    _, line, _, _ = checked(planted.write(), capsys)
    text = check_data.Path(line.rsplit(": ", 1)[1]).read_text()
    assert parsed(text).links
    assert "<script" not in text and "<b>.png" not in text and "\u202e" not in text
    assert "&lt;b&gt;.png" in text and text.count("data:image/jpeg;base64,") > 8


def test_wrong_input_is_one_sentence(tmp_path, planted, capsys):
    for argv, sentence in (
        ([], "give the data set with --data"),
        ([str(tmp_path / "no")], "is not a folder or a file"),
        (["a", "--data", "b"], "two data sets"),
        ([str(planted.write()), "--out", str(planted.root)], "the output exists"),
        ([str(planted.root), "--recipe", "no"], "invalid choice"),
        ([str(planted.root), "--set", "num_queries=x"], "num_queries"),
        ([str(tmp_path)], ""),
    ):
        if argv == [str(tmp_path)]:
            (planted.root / "annotations" / "instances_train.json").write_text("{")
        with pytest.raises(InputError) as error:
            check_data.main(argv)
        assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not check_data.CHECKS.exists()


def test_workers_and_no_workers_find_the_same(planted, capsys):
    for plant in (tiny, twice, leaks, broken_files, other_sizes):
        plant(planted)
    planted.write()
    one = checked(planted.root, capsys)
    two = checked(planted.root, capsys, "--workers", "2")
    assert one[0] == two[0] == 2 and one[3] == two[3]


def test_a_real_set(shared, capsys):
    """Counts of masks under 16 pixels and of identical files, by the COCO tools and bytes alone."""
    root = shared / "datasets" / "coco-mini"
    masks, files = 0, Counter()
    for split in ("train", "val"):
        with contextlib.redirect_stdout(io.StringIO()):
            tool = COCO(str(next((root / "annotations").glob(f"*{split}*.json"))))
        for one in tool.anns.values():
            masks += not one["iscrowd"] and 0 < tool.annToMask(one).sum() < 16
        files.update(path.read_bytes() for path in (root / split).iterdir())
    code, line, found, _ = checked(root, capsys)
    assert found["masks under 16 pixels"] == masks
    assert max(files.values()) == 1 and code == 0 and "READY, 121 images" in line
