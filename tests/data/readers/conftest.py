"""What tests of readers share; the reader is the one that the test module is named after."""

import importlib

import numpy as np
import pytest

from data import rle
from data.errors import BadRecords, InputError


@pytest.fixture
def read(request):
    """Reads a split, by default the only one, "all" or "train"; the content also has "bad", the
    record and reason of each bad one.
    """
    name = request.module.__name__.rsplit(".", 1)[-1].removeprefix("test_")
    reader = importlib.import_module(f"data.readers.{name}")

    def read_split(path, split=None, skip=False):
        bad, found = BadRecords(skip), reader.find(path)
        split = split or next(one for one in ("all", "train", *found) if one in found)
        content = reader.read(found[split], bad)
        return content | {"bad": [(one.record, one.reason) for one in bad]}

    return read_split


@pytest.fixture
def refused(read):
    """Checks that a split is refused in these words; returns it without the one bad record."""

    def check(path, words):
        with pytest.raises(InputError, match=words):
            read(path)
        content = read(path, skip=True)
        assert len(content["bad"]) == 1
        return content

    return check


@pytest.fixture
def labels():
    """The class names of all annotations; None of one without a class."""

    def names_of(content):
        names = {one["id"]: one["name"] for one in content["categories"]}
        return [names.get(one.get("category_id")) for one in content["annotations"]]

    return names_of


@pytest.fixture
def ellipse(request):
    """The pixels whose centres an ellipse holds; its angle is in radians, clockwise."""

    def inside(x, y, rx, ry, angle=0.0):
        down, right = np.mgrid[: request.module.HEIGHT, : request.module.WIDTH] + 0.5
        along = (right - x) * np.cos(angle) + (down - y) * np.sin(angle)
        across = (down - y) * np.cos(angle) - (right - x) * np.sin(angle)
        return (along / rx) ** 2 + (across / ry) ** 2 <= 1

    return inside


@pytest.fixture
def pixels(request):
    """The mask of an annotation, by default of an image of the module's HEIGHT and WIDTH."""

    def mask_of(annotation, size=None):
        size = size or (request.module.HEIGHT, request.module.WIDTH)
        return rle.decode([rle.from_annotation(annotation["segmentation"], *size)], size)[0]

    return mask_of
