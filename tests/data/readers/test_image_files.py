"""data/readers/image_files.py: which image an annotation means."""

import pytest

from data.readers.image_files import ImageFiles


@pytest.fixture
def find(tmp_path):
    def find_in(images, *arguments):
        for image in images:
            (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / image).touch()
        return ImageFiles(tmp_path).find(*arguments)

    return find_in


def test_of_several_images_that_of_the_split(tmp_path):
    for place in ("images/train/a.jpg", "images/valid/a.jpg", "images/train/b.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    files = ImageFiles(tmp_path)
    assert files.find_in_split("a.jpg", "val") == "images/valid/a.jpg"
    assert files.find_in_split("/home/me/a.jpg", "train") == "images/train/a.jpg"
    assert files.find_in_split("b.jpg", "val") == "images/train/b.jpg"  # one folder for both
    assert files.find_in_split("a.jpg", "all") is None


def test_a_whole_path_before_its_base_name_in_the_folder_of_the_split(tmp_path):
    for place in ("train/a.jpg", "train/sub/a.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    files = ImageFiles(tmp_path)
    for name in ("train/sub/a.jpg", "train\\sub\\a.jpg", "sub/a.jpg"):
        assert files.find_in_split(name, "train") == "train/sub/a.jpg"
    assert files.find_in_split("a.jpg", "train") == "train/a.jpg"


def test_an_image_outside_the_folder_of_the_split_counts_last(tmp_path):
    for place in ("a.jpg", "images/a.jpg", "test/a.jpg", "train/a.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    files = ImageFiles(tmp_path)
    for name in ("a.jpg", "images/a.jpg", "test/a.jpg"):
        assert files.find_in_split(name, "train") == "train/a.png"


@pytest.mark.parametrize(
    "images, listed, place, wanted",
    [
        (["a.jpg", "x/a.jpg"], "a.jpg", ".", "a.jpg"),
        (["x/a.jpg"], "a.jpg", "", "x/a.jpg"),
        (["x/a.jpg", "y/a.jpg"], "a.jpg", "", None),
        (["x/a.jpg", "y/a.jpg"], "C:\\photos\\y\\a.jpg", "", "y/a.jpg"),
        (["p/x/a.jpg", "q/x/a.jpg"], "/home/me/q/x/a.jpg", "", "q/x/a.jpg"),
        (["images/train/a.jpg", "images/val/a.jpg"], "a.jpg", "labels/val", "images/val/a.jpg"),
        (["images/val/a.jpg"], "a.jpg", "labels/train", None),
        (["val/a.jpg"], "a.jpg", "train", None),
        (["images/a.jpg"], "a.jpg", "labels/train", "images/a.jpg"),
        (["Bild Ä.JPG"], "bild A\u0308.jpg", "", "Bild Ä.JPG"),
        (["x/a.tif"], "a.jpg", "", "x/a.tif"),
    ],
)
def test_find(find, images, listed, place, wanted):
    assert find(images, listed, place) == wanted
