"""A set with everything that formats differ in, and what its objects cover."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

SIZES = {3: (60, 80), 5: (41, 33), 9: (24, 50), 10: (70, 70)}  # image id -> (height, width)
CATEGORIES = [
    {"id": 0, "name": 'a "sea" & <land>'},
    {"id": 4, "name": "unused"},
    {"id": 7, "name": "Größe, x"},
]


def compressed(mask):
    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return {"size": list(mask.shape), "counts": counts}


def drawn(polygons, height, width):
    """The union of polygons, each drawn by the COCO tools alone."""
    parts = coco_mask.frPyObjects([list(map(float, one)) for one in polygons], height, width)
    return coco_mask.decode(parts).any(2)


def noise(height, width, seed):
    return np.random.default_rng(seed).random((height, width)) < 0.5


def masks():
    """Annotation id -> (image id, mask): ring, parts, a corner pixel, all of it, noise."""
    ring, parts, corner = np.zeros((3, *SIZES[3]), bool)
    ring[5:30, 10:50] = True
    ring[10:20, 20:35] = False
    ring[12:14, 25:28] = True  # an island in the hole
    parts[40:50, 3:20] = parts[35:55, 60:80] = parts[55:60, 0:5] = True
    corner[-1, -1] = True
    return {
        1: (3, ring),
        12: (3, parts),
        13: (3, corner),
        20: (9, np.ones(SIZES[9], bool)),
        21: (9, noise(*SIZES[9], 0)),
    }


POLYGONS = {  # annotation id -> (image id, polygons)
    30: (5, [[3.1, 4.7, 20.333333333333332, 5.1, 17.9, 30.25, 4.4, 28.123456789012]]),
    31: (5, [[1, 1, 9.5, 1, 9.5, 9.5, 1, 9.5], [20.1, 20.2, 30.3, 20.4, 25.5, 38.6]]),
    32: (5, [[2, 12, 14, 12, 14, 24, 2, 24], [8, 18, 28, 18, 28, 36, 8, 36]]),  # overlap
    33: (5, [[-4.5, 30, 12, 30, 12, 50.5, -4.5, 50.5]]),  # reaches out of the image
}
CROWD, BOX = 40, 50


@pytest.fixture
def content():
    """Checked COCO content, ids with gaps, one image without objects, one with void."""
    images = [
        {"id": id_, "file_name": f"{id_}.png", "height": height, "width": width}
        for id_, (height, width) in SIZES.items()
    ]
    images[2]["file_name"] = "deep/er/9 %.png"
    void = np.zeros(SIZES[3], bool)
    void[30:35, 40:] = True
    images[0]["void"] = compressed(void)
    annotations = [
        (id_, image, compressed(mask)) for id_, (image, mask) in masks().items()
    ] + [(id_, image, [np.array(one, float) for one in polygons])
         for id_, (image, polygons) in POLYGONS.items()]  # fmt: skip
    annotations = [
        {"id": id_, "image_id": image, "segmentation": outline, "iscrowd": 0}
        | {"category_id": (0, 7)[id_ % 2]}
        for id_, image, outline in annotations
    ]
    crowd = compressed(noise(*SIZES[3], 1))
    annotations += [
        {"id": CROWD, "image_id": 3, "segmentation": crowd, "iscrowd": 1, "category_id": 7},
        {"id": BOX, "image_id": 5, "segmentation": [], "bbox": [2.5, 3.5, 10.25, 7.75]}
        | {"iscrowd": 0, "category_id": 0},
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


@pytest.fixture
def truth():
    """Annotation id -> mask of the objects that every format can hold."""
    found = {id_: mask for id_, (_, mask) in masks().items()}
    for id_, (image, polygons) in POLYGONS.items():
        found[id_] = drawn(polygons, *SIZES[image])
    return found
