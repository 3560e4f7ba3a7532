"""Copies of images under other names are found, other images of the same kind are not."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.near_duplicates import grey_images, near_duplicates


def scene(seed, objects=6):
    """Smooth ground with bright discs."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(40, 120, (6, 8, 3), np.uint8)).resize((320, 240))
    image = np.array(ground)
    rows, columns = np.mgrid[:240, :320]
    for y, x, radius in zip(*(rng.integers(low, high, objects) for low, high in
                              ((20, 220), (20, 300), (8, 30)))):  # fmt: skip
        image[np.hypot(rows - y, columns - x) < radius] = rng.integers(120, 256, 3)
    return Image.fromarray(image)


def saved(folder, images):
    paths = []
    for number, (image, options) in enumerate(images):
        paths.append(folder / f"{number}.{options.get('format', 'png')}")
        image.save(paths[-1], **{k: v for k, v in options.items() if k != "format"})
    return paths


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    return grey_images(saved(folder, [(scene(seed), {}) for seed in range(40)]))


@pytest.mark.parametrize(
    "change, options",
    [
        (lambda image: image, {}),
        (lambda image: image, {"format": "jpg", "quality": 40}),
        (lambda image: image.resize((150, 112)), {"format": "jpg"}),
        (lambda image: image.resize((960, 720)), {}),
        (ImageOps.mirror, {"format": "jpg", "quality": 80}),
        (lambda image: ImageOps.exif_transpose(image.convert("L")), {}),
    ],
)
def test_copies_are_found(tmp_path, others, change, options):
    ours = grey_images(saved(tmp_path, [(change(scene(seed)), options) for seed in (7, 3, 101)]))
    assert near_duplicates(ours, others) == {0: 7, 1: 3}


def test_a_moved_object_makes_another_image(tmp_path, others):
    """Frames of a camera that stands still are not the same image."""
    frame = scene(5)
    moved = frame.copy()
    moved.paste((250, 250, 250), (150, 100, 166, 116))
    images = grey_images(saved(tmp_path, [(frame, {}), (moved, {})]))
    assert near_duplicates(images, others) == {0: 5}


def test_images_without_contrast_and_broken_files_are_no_copies(tmp_path):
    black = Image.new("RGB", (64, 64))
    paths = saved(tmp_path, [(black, {}), (black, {})])
    paths[1].write_bytes(b"no image")
    images = grey_images([*paths, tmp_path / "missing.png"])
    assert images.shape == (3, 64, 64) and near_duplicates(images, images) == {}
    assert near_duplicates(images[:0], images) == near_duplicates(images, images[:0]) == {}
