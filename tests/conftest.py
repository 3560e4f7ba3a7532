"""Fixtures of all tests."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from data import rle
from engine import train


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets beside the project."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder `shared` beside the project, with real data sets")
    return path


class TinyCoco(NamedTuple):
    """A small set in COCO layout; `masks` maps annotation id to the dense mask it was made from."""

    root: Path
    json: Path
    images: Path
    content: dict
    masks: dict[int, np.ndarray]


@pytest.fixture
def tiny_coco(tmp_path) -> TinyCoco:
    """Six images: a hole and a split object, a crowd, void, one without objects, one grey.

    Category ids 0, 3, 90 are listed out of order, 7 is unused; image ids start at 0 with gaps; all
    three kinds of segmentation occur. The same file serves as train and val.
    """
    rng = np.random.default_rng(7)
    sizes = {0: (48, 64), 2: (64, 48), 5: (40, 40), 11: (33, 57), 40: (64, 80), 41: (30, 90)}
    masks, annotations = _tiny_annotations(sizes)
    void = np.zeros(sizes[0], dtype=bool)
    void[:3] = True
    images = []
    for id_, (height, width) in sizes.items():
        images.append({"id": id_, "file_name": f"{id_}.png", "width": width, "height": height})
    images[0]["void"] = _compressed(void)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": 90, "name": "crab"},
            {"id": 0, "name": "shrimp"},
            {"id": 7, "name": "unused"},
            {"id": 3, "name": "fish"},
        ],
    }
    folder = tmp_path / "tiny" / "train"
    folder.mkdir(parents=True)
    (tmp_path / "tiny" / "val").symlink_to(folder)
    for id_, (height, width) in sizes.items():
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels[..., 0] if id_ == 41 else pixels).save(folder / f"{id_}.png")
    path = tmp_path / "tiny" / "annotations" / "instances_train.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    path.with_name("instances_val.json").write_text(json.dumps(content))
    return TinyCoco(tmp_path / "tiny", path, folder, content, masks)


def _tiny_annotations(sizes: dict) -> tuple[dict[int, np.ndarray], list[dict]]:
    ring = np.zeros(sizes[0], dtype=bool)
    ring[10:30, 10:40] = True
    ring[15:25, 20:30] = False
    split = np.zeros(sizes[0], dtype=bool)
    split[32:44, 2:20] = split[32:44, 40:60] = True
    crowd = np.zeros(sizes[2], dtype=bool)
    crowd[40:60, 5:45] = True
    square = np.zeros(sizes[2], dtype=bool)
    square[4:34, 8:38] = True
    wide = np.zeros(sizes[11], dtype=bool)
    wide[5:25, 3:50] = True
    left, right = np.zeros((2, *sizes[40]), dtype=bool)
    left[8:56, 4:36] = True
    right[8:56, 44:76] = True
    grey = np.zeros(sizes[41], dtype=bool)
    grey[6:24, 20:70] = True
    boxes = [[8, 4, 38, 4, 38, 34, 8, 34]]
    halves = [[4, 8, 20, 8, 20, 56, 4, 56], [20, 8, 36, 8, 36, 56, 20, 56]]
    rows = [  # annotation id, image id, category id, mask, segmentation
        (0, 0, 0, ring, _compressed(ring)),
        (7, 0, 90, split, _plain(split)),
        (8, 2, 3, square, boxes),
        (9, 2, 3, crowd, _plain(crowd)),
        (20, 11, 0, wide, _compressed(wide)),
        (21, 40, 90, left, halves),
        (22, 40, 3, right, _plain(right)),
        (30, 41, 0, grey, _compressed(grey)),
    ]
    annotations = [
        {"id": id_, "image_id": image, "category_id": category, "segmentation": segmentation}
        | {"iscrowd": int(id_ == 9), "area": int(mask.sum())}
        for id_, image, category, mask, segmentation in rows
    ]
    return {row[0]: row[3] for row in rows}, annotations


def _compressed(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def _plain(mask: np.ndarray) -> dict:
    flat = np.concatenate(([0], mask.T.ravel().astype(int)))
    runs = np.diff(np.concatenate((np.flatnonzero(np.diff(flat)), [mask.size])), prepend=0)
    return {"size": list(mask.shape), "counts": runs.tolist()}


# Everything as small as it gets; one thread, no loader processes, no GPU: the same bits everywhere.
TINY = (  # begins with --from-scratch: a test that gives weights leaves it out
    "--from-scratch --device cpu --threads 1 --workers 0 --image-size 64 --canvas 64x64 64x128 "
    "--batch-size 4 --warmup 4 --log-every 2 --eval-train 0 "
    "--set width=32 kernel_dim=16 query_width=32 num_heads=2 num_queries=6"
).split()

CATEGORIES = [  # with gaps, from 0, and not in order
    {"id": 90, "name": "disc"},
    {"id": 0, "name": "square"},
    {"id": 7, "name": "unused"},
]
COLOURS = {90: (220, 60, 40), 0: (40, 90, 230)}
SIZES = [(64, 64), (48, 64), (64, 80), (64, 64), (80, 64), (56, 64), (64, 64), (64, 64)]  # (h, w)


def scene(number: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image uint8 [H,W,3] and its objects (category id, mask); every seventh has none."""
    rng = np.random.default_rng(number)
    height, width = SIZES[number % len(SIZES)]
    image = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    objects = []
    for place in range(0 if number % 7 == 6 else 2):
        category = (90, 0)[(number + place) % 2]
        radius = rng.integers(9, 14)
        centre = rng.integers(16, height - 16), (place + 0.5) * width / 2
        far = np.abs(rows - centre[0]), np.abs(columns - centre[1])
        mask = np.hypot(*far) < radius if category == 90 else np.maximum(*far) < radius
        image[mask] = COLOURS[category]
        objects.append((category, mask))
    return image, objects


@pytest.fixture(scope="session")
def toy_coco(tmp_path_factory) -> Path:
    """COCO layout: eight images to train on, four others to validate on. Not to be changed."""
    root = tmp_path_factory.mktemp("toy_coco")
    (root / "annotations").mkdir()
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        (root / split).mkdir()
        images, annotations = [], []
        for number in numbers:
            image, objects = scene(number)
            name = f"{number}.png"
            Image.fromarray(image).save(root / split / name)
            height, width = image.shape[:2]
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
    """The folder of a run that has overfitted four images. Not to be changed."""
    out = tmp_path_factory.mktemp("toy_run") / "run"
    length = "--iterations 48 --eval-every 24 --log-every 12 --overfit 4 --lr 1.1e-2 --average 0.5"
    # TINY ends in the keywords of --set: one more follows.
    argv = [*TINY, "drop_path=0", *length.split(), "--seed", "1"]
    assert train.main([*argv, "--data", str(toy_coco), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def tiny(toy_coco) -> list[str]:
    """Options of a training on the toy set as small as it gets."""
    return [*TINY, "--data", str(toy_coco)]


@pytest.fixture
def no_finish(monkeypatch):
    """Runs end without the last evaluation and its images: a third of the time of a short run."""
    monkeypatch.setattr(train, "finish", lambda run: None)
