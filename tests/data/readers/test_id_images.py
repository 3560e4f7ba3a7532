"""data/readers/id_images.py: maps of every kind against plain numpy, and wrong folders."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.errors import InputError
from data.readers import id_images

REAL = Path(__file__).resolve().parents[3].parent / "shared/datasets/formats/id_image/stardist"


def numbered(largest=7, size=(30, 40)):
    """Rectangles with numbers that have gaps; the last one lies in two parts."""
    indices = np.zeros(size, np.int64)
    indices[2:10, 3:20] = 1
    indices[8:25, 15:30] = 4
    indices[20:28, 2:8] = indices[1:4, 30:39] = largest
    return indices


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)
    return path


def save_image(path, size=(30, 40)):
    return save(path, np.zeros((*size, 3), np.uint8))


def check(content, indices):
    masks = rle.decode([one["segmentation"] for one in content["annotations"]], indices.shape)
    expected = [indices == number for number in np.unique(indices) if number]
    assert (masks == np.stack(expected)).all()
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert {one["category_id"] for one in content["annotations"]} == {1}


def palette(indices):
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    image.putpalette([(91 * i) % 256 for i in range(768)])
    return image


def coded(indices):
    return Image.fromarray(
        np.stack([indices >> shift & 255 for shift in (0, 8, 16)], 2).astype("u1")
    )


KINDS = {
    "8 bits.png": lambda path: save(path, numbered(255).astype(np.uint8)),
    "16 bits.png": lambda path: save(path, numbered(60_000).astype(np.uint16)),
    "16 bits.tif": lambda path: save(path, numbered(60_000).astype(np.uint16)),
    "16 bits other order.tif": lambda path: save(path, numbered(60_000).astype(">u2")),
    "32 bits.tif": lambda path: save(path, numbered(100_000).astype(np.int32)),
    "floats.tif": lambda path: save(path, numbered(100_000).astype(np.float32)),
    "grey as rgb.png": lambda path: save(path, np.stack([numbered(9)] * 3, 2).astype(np.uint8)),
    "grey and alpha.png": lambda path: save(path, numbered(9).astype(np.uint8), "LA"),
    "palette.png": lambda path: palette(numbered(255)).save(path),
    "colours.png": lambda path: coded(numbered(300_000)).save(path),
    "colours and alpha.png": lambda path: coded(numbered(300_000)).convert("RGBA").save(path),
    "a.bmp": lambda path: save(path, numbered(9).astype(np.uint8)),
}
LARGEST = {"8 bits.png": 255, "palette.png": 255, "32 bits.tif": 100_000, "floats.tif": 100_000}


@pytest.mark.parametrize("name", KINDS)
def test_numbers_are_read_from_all_kinds_of_files(tmp_path, name, read):
    (tmp_path / "masks").mkdir()
    KINDS[name](tmp_path / "masks" / name)
    save_image((tmp_path / "images" / name).with_suffix(".jpg"))
    largest = LARGEST.get(name, 9)
    largest = 60_000 if "16" in name else 300_000 if "colours" in name else largest
    check(read(tmp_path), numbered(largest))


@pytest.mark.parametrize(
    "image, mask",
    [
        ("images/a.b.jpg", "masks/a.b.png"),
        ("Images/x.tif", "Labels/x.tif"),
        ("img/x.png", "masks/x_mask.png"),
        ("images/deep/x.png", "masks/deep/x.tif"),
        ("x.png", "x_masks.tif"),
        ("x.tif", "x_cp_masks.png"),
        ("000_img.png", "000_masks.png"),
        ("PNGImages/FudanPed00001.png", "PedMasks/FudanPed00001_mask.png"),
        ("images/img_001x.png", "masks/mask_001x.png"),
        ("imgs/x.JPG", "GT/X.png"),
        ("x.png", "masks/x.png"),
        ("x.png", "x-Mask.png"),
    ],
)
def test_maps_find_their_images(tmp_path, image, mask, read):
    save_image(tmp_path / image)
    save_image(tmp_path / image.replace("x", "y").replace("000", "111").replace("a.b", "c"))
    save(tmp_path / mask, numbered().astype(np.uint8))
    content = read(tmp_path)
    check(content, numbered())
    folder = id_images.find(tmp_path)["all"].images[0]
    assert folder / content["images"][0]["file_name"] == tmp_path / image
    assert content["counts"] == {"images without a map": 1}


def test_folders_of_splits_inside(tmp_path, read):
    for place in ("train/a", "valid/b", "valid/c"):
        save_image(tmp_path / "images" / f"{place}.png")
        save(tmp_path / "masks" / f"{place}.png", numbered().astype(np.uint8))
    found = id_images.find(tmp_path)
    assert {split: len(one.names) for split, one in found.items()} == {"train": 1, "val": 2}
    assert read(tmp_path, "train")["images"][0]["file_name"] == "train/a.png"


def test_an_empty_map_is_an_image_without_objects(tmp_path, read):
    save_image(tmp_path / "images/a.png")
    save(tmp_path / "masks/a.png", np.zeros((30, 40), np.uint8))
    content = read(tmp_path)
    assert len(content["images"]) == 1 and not content["annotations"]


def test_masks_of_a_class_are_refused(tmp_path, read):
    for name in "abc":
        save_image(tmp_path / "images" / f"{name}.png")
        save(tmp_path / "masks" / f"{name}.png", (numbered() == 7).astype(np.uint8) * 255)
    with pytest.raises(InputError, match="3 of 3 numbers in its maps stand for areas"):
        read(tmp_path)
    several = numbered() % 3 + (numbered() > 0)  # three classes
    for name in "abc":
        save(tmp_path / "masks" / f"{name}.png", several.astype(np.uint8))
    with pytest.raises(InputError, match="stand for areas that do not touch, as in masks of class"):
        read(tmp_path)
    save(tmp_path / "masks" / "c.png", (numbered() == 7).astype(np.uint8) * 255)
    for name in "ab":  # one area each
        save(tmp_path / "masks" / f"{name}.png", (numbered() == 1).astype(np.uint8) * 255)
    assert len(read(tmp_path)["annotations"]) == 3


def test_photos_for_maps_are_refused(tmp_path, read):
    """Also masks that were saved with losses, or scaled smoothly."""
    save_image(tmp_path / "images/a.png")
    photo = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    save(tmp_path / "masks/a.png", photo)
    with pytest.raises(
        InputError, match=r"a\.png has \d+ numbers, most of them on 2 pixels or few"
    ):
        read(tmp_path)


def test_two_maps_of_an_image_and_what_cellpose_writes_beside(tmp_path, read):
    save_image(tmp_path / "a.tif")
    for name in ("a_flows.tif", "a_cp_outlines.png", "a_cp_masks.png"):
        save(tmp_path / name, numbered().astype(np.uint8))
    content = read(tmp_path)
    check(content, numbered())
    assert not content["counts"]
    save(tmp_path / "a_masks.png", numbered().astype(np.uint8))
    with pytest.raises(
        InputError, match=r"a_masks\.png is about the image a\.tif, which \S*a_cp_m"
    ):
        read(tmp_path)


def test_pickles_are_refused(tmp_path, read):
    save_image(tmp_path / "a.png")
    (tmp_path / "a_seg.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 _seg\.npy files.*PNG or TIFF in cellpose"):
        id_images.find(tmp_path)
    save(tmp_path / "a_cp_masks.png", numbered().astype(np.uint8))
    check(read(tmp_path), numbered())


def test_maps_without_any_image_are_refused(tmp_path):
    save_image(tmp_path / "images/a.png")
    save(tmp_path / "masks/b.png", numbered().astype(np.uint8))
    with pytest.raises(InputError, match=r"1 maps, .*b\.png for one, but no image"):
        id_images.find(tmp_path)


def test_hidden_files_are_no_maps(tmp_path, read):
    """As systems write them beside files on disks of other systems."""
    save_image(tmp_path / "images/a.png")
    save(tmp_path / "masks/a.png", numbered().astype(np.uint8))
    (tmp_path / "masks/._a.png").write_bytes(b"\0\5\x16\7")
    check(read(tmp_path), numbered())


def test_other_folders_are_not_recognised(tmp_path):
    save_image(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 .1 .1 .2 .2 .3 .3")
    assert id_images.find(tmp_path) is None
    assert id_images.find(tmp_path / "labels/a.txt") is None
    assert id_images.find(tmp_path / "images") is None


def fraction(path):
    Image.fromarray(numbered().astype(np.float32) / 2).save(path.with_suffix(".tif"))
    path.unlink()


def not_finite(path):
    Image.fromarray(np.full((30, 40), np.nan, np.float32)).save(path.with_suffix(".tif"))
    path.unlink()


def negative(path):
    Image.fromarray(-numbered().astype(np.int32)).save(path.with_suffix(".tif"))
    path.unlink()


def pages(path):
    page = Image.fromarray(numbered().astype(np.uint8))
    page.save(path.with_suffix(".tif"), save_all=True, append_images=[page, page])
    path.unlink()


def jpeg_in_tiff(path):
    Image.fromarray(numbered().astype(np.uint8)).save(path.with_suffix(".tif"), compression="jpeg")
    path.unlink()


WRONG = {
    "JPEG with a compression": lambda path: path.write_bytes(jpeg()),
    "TIFF with a compression": jpeg_in_tiff,
    "3 pages": pages,
    "fractions or numbers below 0": fraction,
    "numbers below 0": negative,
    "no numbers of objects": not_finite,
    "41 x 30": lambda path: save(path, np.zeros((30, 41), np.uint8)),
    "cannot be read": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "no image of its name": lambda path: path.rename(path.with_name("other.png")),
    "mode CMYK": lambda path: Image.new("CMYK", (40, 30)).save(path, format="TIFF"),
}


def jpeg():
    buffer = BytesIO()
    Image.fromarray(numbered().astype(np.uint8)).save(buffer, format="JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("reason", WRONG)
def test_a_bad_map_is_named_and_the_others_stay(tmp_path, reason, refused):
    for name in "ab":
        save_image(tmp_path / "images" / f"{name}.png")
        save(tmp_path / "masks" / f"{name}.png", numbered().astype(np.uint8))
    WRONG[reason](tmp_path / "masks/a.png")
    content = refused(tmp_path, rf"masks/\w+\.\w+ .*{reason}")
    assert [one["file_name"] for one in content["images"]] == ["b.png"]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}")
def test_real_files(read):
    indices = np.asarray(Image.open(REAL / "masks/img2d.tif"))
    content = read(REAL)
    check(content, indices)
    assert len(content["annotations"]) == len(set(indices.ravel().tolist()) - {0})
    assert [one["file_name"] for one in content["images"]] == ["img2d.tif"]
