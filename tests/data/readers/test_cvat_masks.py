"""data/readers/cvat_masks.py: colours against plain numpy, and wrong folders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.errors import InputError
from data.readers import cvat_masks, voc

REAL = Path(__file__).resolve().parents[3].parent / "shared/datasets/formats/cvat_segmask"
LABELMAP = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncactus fruit:250,50,83::\n"
    "ratio 1:2:0,128,0::\nunused:9,9,9::\nignored:224,224,192::\n"
)
CACTUS, RATIO, VOID = (250, 50, 83), (0, 128, 0), (224, 224, 192)
FIRST, SECOND = (128, 0, 0), (0, 128, 0)  # objects' colours follow VOC's map


def write(root, maps, lists=("default",), labelmap=LABELMAP, suffix=".jpg"):
    """maps: name -> (class colours, object colours)."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "labelmap.txt").write_text(labelmap)
    for name, pair in maps.items():
        for part, colours in zip(("SegmentationClass", "SegmentationObject"), pair, strict=True):
            path = root / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours).save(path)
        path = root / "JPEGImages" / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", pair[0].shape[1::-1]).save(path)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
    for split in lists:
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.write_text("".join(f"{name}\n" for name in maps))
    return root


def two_objects():
    """The second lies over the first; its class is disputed, and it has a void border."""
    classes, objects = np.zeros((2, 30, 40, 3), np.uint8)
    classes[5:20, 5:18], objects[5:20, 5:18] = CACTUS, FIRST
    classes[10:25, 10:30], objects[10:25, 10:30] = RATIO, SECOND
    classes[10:12, 10:30] = CACTUS
    classes[24, 10:30] = VOID
    return classes, objects


def masks_of(content, size=(30, 40)):
    return rle.decode([one["segmentation"] for one in content["annotations"]], size)


def test_colours_become_objects_and_classes(tmp_path, read):
    pair = two_objects()
    content = read(write(tmp_path, {"a": pair}))
    expected = [(pair[1] == colour).all(2) for colour in (FIRST, SECOND)]
    assert (masks_of(content) == np.stack(expected)).all()
    assert [one["category_id"] for one in content["annotations"]] == [1, 2]
    names = [one["name"] for one in content["categories"]]
    assert names == ["cactus fruit", "ratio 1:2", "unused"]
    image = content["images"][0]
    assert (image["file_name"], image["width"], image["height"]) == ("a.jpg", 40, 30)
    void = rle.decode([image["void"]], (30, 40))[0]
    assert (void == (pair[0] == VOID).all(2)).all()


def test_palette_files_are_read_by_their_colours(tmp_path, read):
    root = write(tmp_path, {"a": two_objects()})
    before = read(root)
    for path in root.glob("Segmentation*/a.png"):
        Image.open(path).quantize(8).save(path)
    after = read(root)
    assert (masks_of(after) == masks_of(before)).all()


def test_lists_are_splits_and_names_may_have_folders_and_blanks(tmp_path, read):
    maps = {"left cam/1.2": two_objects(), "b": two_objects()}
    root = write(tmp_path, maps, ("Train", "Validation", "trainval"), suffix=".png")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "Train.txt").write_text('"left cam/1.2"\n')
    (lists / "Validation.txt").write_text(f"b\nnot_annotated\n{300 * 'x'}\n")
    assert cvat_masks.find(root).keys() == {"train", "val"}
    assert [one["file_name"] for one in read(root, "train")["images"]] == ["left cam/1.2.png"]
    content = read(root, "val")
    assert [one["file_name"] for one in content["images"]] == ["b.png"]
    assert content["counts"] == {"listed images without masks": 2}


def test_without_lists_all_masks_are_read(tmp_path, read):
    root = write(tmp_path, {"sub/a": two_objects(), "b": two_objects()}, lists=())
    assert [one["file_name"] for one in read(root)["images"]] == ["b.jpg", "sub/a.jpg"]


def test_images_are_not_needed(tmp_path, read):
    root = write(tmp_path, {"a": two_objects()})
    (root / "JPEGImages" / "a.jpg").unlink()
    (root / "JPEGImages").rmdir()
    content = read(root)
    assert content["images"][0]["file_name"] == "a.jpg" and len(content["annotations"]) == 2


def test_it_is_not_voc_and_voc_is_not_it(tmp_path):
    root = write(tmp_path, {"a": two_objects()})
    assert voc.find(root) is None
    (root / "labelmap.txt").unlink()
    assert cvat_masks.find(root) is None
    assert cvat_masks.find(root / "nothing") is None


@pytest.mark.parametrize(
    "line, reason",
    [
        ("dog:1,2::", "name:red,green,blue"),
        ("dog:1,2,300::", "0 to 255"),
        ("dog:0,128,0::", "ratio 1:2 and dog have the same colour"),
        ("dog", "name:red,green,blue"),
    ],
)
def test_a_wrong_labelmap_is_named(tmp_path, line, reason, read):
    root = write(tmp_path, {"a": two_objects()}, labelmap=f"{LABELMAP}{line}\n")
    with pytest.raises(InputError, match=f"labelmap.txt: .*{reason}"):
        read(root)


def unknown_colour(root):
    path = root / "SegmentationClass" / "a.png"
    colours = np.array(Image.open(path))
    colours[0, 0] = (1, 2, 3)
    Image.fromarray(colours).save(path)


def no_class(root):
    Image.new("RGB", (40, 30)).save(root / "SegmentationClass" / "a.png")


def other_size(root):
    Image.new("RGB", (40, 31)).save(root / "SegmentationObject" / "a.png")


def other_image_size(root):
    Image.new("RGB", (41, 30)).save(root / "JPEGImages" / "a.jpg")


def truncated(root):
    path = root / "SegmentationObject" / "a.png"
    path.write_bytes(path.read_bytes()[:60])


def no_class_file(root):
    (root / "SegmentationClass" / "a.png").unlink()


def jpeg(root):
    Image.new("RGB", (40, 30)).save(root / "SegmentationObject" / "a.png", format="JPEG")


WRONG = {
    "colour 1,2,3": unknown_colour,
    "2 of 2 objects lie on background": no_class,
    "40 x 31": other_size,
    "41 x 30": other_image_size,
    "save it again": truncated,
    "is missing": no_class_file,
    "JPEG": jpeg,
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_bad_image_is_named_and_the_others_stay(tmp_path, reason, refused):
    root = write(tmp_path, {"a": two_objects(), "b": two_objects()})
    WRONG[reason](root)
    content = refused(root, reason)
    assert [one["file_name"] for one in content["images"]] == ["b.jpg"]


def test_classes_alone_are_refused(tmp_path):
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    with pytest.raises(InputError, match="cannot be told apart"):
        cvat_masks.find(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}")
def test_real_files(read):
    content = read(REAL)
    pixels = {
        path.stem: (np.asarray(Image.open(path)) == (128, 0, 0)).all(2)
        for path in sorted((REAL / "SegmentationObject").glob("*.png"))
    }
    assert [one["file_name"] for one in content["images"]] == [f"{name}.jpg" for name in pixels]
    assert (masks_of(content, (1080, 1920)) == np.stack(list(pixels.values()))).all()
    assert content["categories"] == [{"id": 1, "name": "tool"}]
    listed = len((REAL / "ImageSets/Segmentation/default.txt").read_text().split())
    assert content["counts"] == {"listed images without masks": listed - len(pixels)}
