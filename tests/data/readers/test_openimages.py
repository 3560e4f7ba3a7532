"""data/readers/openimages.py: masks against plain numpy, layouts, and wrong files."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.errors import InputError
from data.readers import openimages

REAL = Path(__file__).resolve().parents[3].parent / "shared/datasets/formats/openimages/v6"
HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
SIZE = (30, 40)
CAT, DOG = "/m/01yrx", "/m/0bt9lr"


def mask():
    drawn = np.zeros(SIZE, bool)
    drawn[6:15, 8:20] = True
    drawn[10, 10] = False
    return drawn


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def write(root, rows, split="train", names=f"{CAT},Cat\n{DOG},Dog\n/m/x,Unused\n", header=HEADER):
    """rows: (image, label) of objects with a mask of their own."""
    folder = root / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [header]
    for number, (image, label) in enumerate(rows):
        name = f"{image}_{label[1:].replace('/', '')}_{number:08x}.png"
        lines.append(f"{name},{image},{label},{number:08x},0.2,0.5,0.2,0.5,0.9,0.1 0.2 1")
        save(root / "masks" / split / name, mask())
        save(root / "images" / split / f"{image}.jpg", np.zeros((*SIZE, 3), np.uint8))
    (folder / f"{split}-annotations-object-segmentation.csv").write_text("\n".join(lines) + "\n")
    (folder / "class-descriptions-boxable.csv").write_text(names)
    return root


def masks_of(content, size=SIZE):
    return rle.decode([one["segmentation"] for one in content["annotations"]], size)


def edit(root, old, new):
    path = root / "annotations/train-annotations-object-segmentation.csv"
    path.write_text(path.read_text().replace(old, new))


def test_rows_are_objects(tmp_path, read):
    root = write(tmp_path, [("a", DOG), ("b", CAT), ("a", CAT)])
    content = read(root)
    assert (masks_of(content) == np.stack([mask()] * 3)).all()
    names = [one["file_name"] for one in content["images"]]
    assert names == ["images/train/a.jpg", "images/train/b.jpg"]
    assert [one["image_id"] for one in content["annotations"]] == [1, 2, 1]
    assert content["categories"] == [{"id": 1, "name": "Cat"}, {"id": 2, "name": "Dog"}]
    assert [one["category_id"] for one in content["annotations"]] == [2, 1, 1]


def test_files_are_splits_and_may_be_given_alone(tmp_path, read):
    write(tmp_path, [("a", DOG)])
    write(tmp_path, [("b", DOG), ("c", DOG)], "validation")
    assert openimages.find(tmp_path).keys() == {"train", "val"}
    assert len(read(tmp_path, "val")["images"]) == 2
    file = tmp_path / "annotations/train-annotations-object-segmentation.csv"
    assert [one["file_name"] for one in read(file)["images"]] == ["images/train/a.jpg"]


def test_masks_of_another_size_are_scaled(tmp_path, read):
    root = write(tmp_path, [("a", DOG)])
    path = next((root / "masks").rglob("*.png"))
    save(path, mask()[::2, ::2])
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] // 2
    assert (masks_of(read(root))[0] == mask()[::2, ::2][y, x]).all()


def test_images_that_are_not_there_are_counted(tmp_path, read):
    root = write(tmp_path, [("a", DOG), ("b", CAT), ("b", DOG)])
    (root / "images/train/b.jpg").unlink()
    content = read(root)
    assert content["counts"] == {"images that are not there": 1}
    assert len(content["annotations"]) == 1
    (root / "images/train/a.jpg").unlink()
    with pytest.raises(InputError, match="none of the images"):
        read(root)


def test_boxes_of_groups_are_boxes(tmp_path, read):
    root = write(tmp_path, [("a", DOG)])
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
    )
    rows = [
        f"a,xclick,{CAT},1,0.5,1.0,0.1,0.2,0,0,1",
        f"a,xclick,{DOG},1,0.2,0.5,0.2,0.5,0,0,0",
        f"z,xclick,{DOG},1,0.2,0.5,0.2,0.5,0,0,1",
        f"a,xclick,{DOG},1,x,0.5,0.2,0.5,0,0,1",
    ]
    (root / "annotations/train-annotations-bbox.csv").write_text("\n".join([header, *rows]))
    content = read(root)
    group = content["annotations"][1]
    assert group["corners"] and group["bbox"] == pytest.approx([20, 3, 20, 3])
    assert content["counts"] == {"broken boxes of groups": 1}
    assert len(content["annotations"]) == 2


def test_without_descriptions_the_codes_are_the_names(tmp_path, read):
    root = write(tmp_path, [("a", DOG)])
    (root / "annotations/class-descriptions-boxable.csv").unlink()
    assert read(root)["categories"] == [{"id": 1, "name": DOG}]


def test_other_csv_files(tmp_path):
    (tmp_path / "segmentation.csv").write_text("filename,region_count\na,1\n")
    assert openimages.find(tmp_path) is None
    assert openimages.find(tmp_path / "segmentation.csv") is None


def test_paths_of_masks_never_lead_out(tmp_path, read):
    root = write(tmp_path / "set", [("a", DOG)])
    save(tmp_path / "secret.png", mask())
    edit(root, "a_m0bt9lr_00000000.png", "../secret.png")
    with pytest.raises(InputError, match=r"'secret\.png', which is not there"):
        read(root)


WRONG = {
    "not there": lambda root: next((root / "masks").rglob("a*.png")).unlink(),
    "cannot be read": lambda root: next((root / "masks").rglob("a*.png")).write_bytes(b"x"),
    "has the class": lambda root: edit(root, f"a,{DOG}", "a,"),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_bad_row_is_named_and_its_box_remains(tmp_path, reason, read):
    root = write(tmp_path, [("a", DOG), ("b", DOG)])
    WRONG[reason](root)
    with pytest.raises(InputError, match=rf"(segmentation\.csv: row 1|a_m.*\.png) .*{reason}"):
        read(root)
    broken, whole = read(root, skip=True)["annotations"]
    assert broken["broken"] and "broken" not in whole
    region = rle.decode([rle.from_annotation(broken["segmentation"], *SIZE)], SIZE)[0]
    assert region.sum() == 9 * 12


@pytest.mark.parametrize(
    "text", [b"\xff\xfe\xff", b"a,b,c\n\x00,1", b'a,b,/m/x,"' + b"x" * 200_000]
)
def test_a_file_that_is_no_csv_is_named(tmp_path, text, read):
    root = write(tmp_path, [("a", DOG)])
    path = root / "annotations/train-annotations-object-segmentation.csv"
    path.write_bytes(path.read_bytes() + text)
    content = None
    try:
        content = read(root)
    except InputError as error:
        assert path.name in str(error)
    assert content is None or len(content["images"]) == 1


def test_a_broken_image_is_named(tmp_path, refused):
    root = write(tmp_path, [("a", DOG), ("b", DOG)])
    (root / "images/train/a.jpg").write_bytes(b"no image")
    assert len(refused(root, r"images/train/a\.jpg cannot be read")["images"]) == 1


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}")
def test_real_files(tmp_path, read):
    shutil.copytree(REAL, tmp_path / "v6")
    content = read(tmp_path / "v6")
    with open(next(REAL.rglob("*segmentation.csv"))) as file:
        rows = list(csv.DictReader(file))
    expected = [np.asarray(Image.open(next(REAL.rglob(row["MaskPath"])))) for row in rows]
    assert (masks_of(content, expected[0].shape) == np.stack(expected)).all()
    assert content["categories"] == [{"id": 1, "name": "Generic label #0"}]
