"""A set of toy pictures in both layouts, and a short run on it that several tests look at."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import rle
from engine import train

# Everything as small as it gets; one thread, no loader processes, no GPU: the same bits everywhere.
TINY = (
    "--device cpu --threads 1 --workers 0 --image-size 64 --canvas 64x64 64x128 --batch-size 4 "
    "--warmup 4 --log-every 2 --set width=32 kernel_dim=16 query_width=32 heads=2 queries=6"
).split()

CATEGORIES = [  # with gaps, from 0, and not in order
    {"id": 90, "name": "disc"},
    {"id": 0, "name": "square"},
    {"id": 7, "name": "unused"},
]
COLOURS = {90: (220, 60, 40), 0: (40, 90, 230)}
SIZES = [(64, 64), (48, 64), (64, 80), (64, 64), (80, 64), (56, 64), (64, 64), (64, 64)]  # (h, w)


def scene(number: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """A picture uint8 [H,W,3] and its objects (category id, mask); every seventh has none."""
    rng = np.random.default_rng(number)
    height, width = SIZES[number % len(SIZES)]
    picture = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    objects = []
    for place in range(0 if number % 7 == 6 else 2):
        category = (90, 0)[(number + place) % 2]
        radius = rng.integers(9, 14)
        centre = rng.integers(16, height - 16), (place + 0.5) * width / 2
        far = np.abs(rows - centre[0]), np.abs(columns - centre[1])
        mask = np.hypot(*far) < radius if category == 90 else np.maximum(*far) < radius
        picture[mask] = COLOURS[category]
        objects.append((category, mask))
    return picture, objects


@pytest.fixture(scope="session")
def toy_coco(tmp_path_factory) -> Path:
    """COCO layout: eight pictures to train on, four others to validate on. Not to be changed."""
    root = tmp_path_factory.mktemp("toy_coco")
    (root / "annotations").mkdir()
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        (root / split).mkdir()
        images, annotations = [], []
        for number in numbers:
            picture, objects = scene(number)
            name = f"{number}.png"
            Image.fromarray(picture).save(root / split / name)
            height, width = picture.shape[:2]
            record = {"id": 3 * number, "file_name": name, "width": width, "height": height}
            images.append(record)
            for category, mask in objects:
                segmentation = rle.to_json(rle.encode(mask[None])[0])
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": 3 * number, "iscrowd": 0}
                    | {"category_id": category, "segmentation": segmentation}
                )
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def toy_run(toy_coco, tmp_path_factory) -> Path:
    """The folder of a run that has learned four pictures by heart. Not to be changed."""
    out = tmp_path_factory.mktemp("toy_run") / "run"
    length = "--iterations 48 --eval-every 24 --log-every 12 --overfit 4 --lr 1.1e-2 --average 0.5"
    # TINY ends in the keywords of --set: one more follows.
    argv = [*TINY, "drop_path=0", *length.split(), "--data", str(toy_coco), "--out", str(out)]
    assert train.main(argv) == 0
    return out


@pytest.fixture(scope="session")
def tiny(toy_coco) -> list[str]:
    """Options of a training on the toy set as small as it gets."""
    return [*TINY, "--data", str(toy_coco)]


@pytest.fixture
def no_finish(monkeypatch):
    """Runs end without the last evaluation and the pictures: a third of the time of a short one."""
    monkeypatch.setattr(train.Run, "finish", lambda run: None)
