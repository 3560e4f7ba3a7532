"""Matches above a threshold, against counted pixels and numbers known by hand."""

import numpy as np
import pytest

from data import rle
from engine.report.confusion import Matches, confusion, match

SIZE = (60, 80)


def box(top, bottom, left, right):
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def record(image, category, mask, **more):
    encoded = rle.encode(mask[None])[0]
    return {"image_id": image, "category_id": category, "segmentation": encoded, **more}


def truth_of(images, objects, void=None):
    """Ground truth of image ids, and rows (image, category, mask, crowd)."""
    images = [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in images]
    for image in images:
        if image["id"] in (void or {}):
            image["void"] = rle.encode(void[image["id"]][None])[0]
    return {
        "images": images,
        "categories": [{"id": id_, "name": str(id_)} for id_ in (3, 5, 9)],
        "annotations": [record(i, c, mask, iscrowd=int(crowd)) for i, c, mask, crowd in objects],
    }


def test_known_matches():
    one, two, three = box(0, 20, 0, 20), box(0, 20, 30, 50), box(40, 60, 0, 20)
    crowd = box(30, 60, 40, 80)
    truth = truth_of(
        [1, 2, 4], [(1, 3, one, 0), (1, 5, two, 0), (1, 9, three, 0), (1, 3, crowd, 1)]
    )
    detections = [
        record(1, 3, box(0, 20, 0, 16), score=0.9, best=True),  # right, IoU 0.8
        record(1, 3, one, score=0.5, best=True),  # its object has a detection
        record(1, 9, two, score=0.7, best=True),  # a right mask with the wrong class
        record(1, 9, three, score=0.3, best=True),  # not above the threshold
        record(1, 9, three, score=0.9, best=False),  # not displayed
        record(1, 3, box(40, 60, 50, 70), score=0.8, best=True),  # in a crowd of its class
        record(1, 5, box(40, 60, 50, 70), score=0.8, best=True),  # in one of another class
        record(2, 5, one, score=0.6, best=True),  # in an image without objects
    ]
    found = match(truth, detections, 0.3)
    assert found == {
        1: Matches([(0, 0, pytest.approx(0.8)), (1, 2, 1.0)], [2], [1, 0]),
        2: Matches([], [], [1]),
        4: Matches([], [], []),
    }
    assert found[1].found == 1 and found[1].objects == 3
    assert found[1].quality == pytest.approx(2 * 0.8 / (3 + 4))
    assert (found[2].quality, found[4].quality) == (0.0, 1.0)
    counts = [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 2, 0, 0]]
    assert confusion(found.values(), 3).tolist() == counts


def test_matches_against_counted_pixels():
    rng = np.random.default_rng(2)

    def drawn():
        top, left = rng.integers(0, 40), rng.integers(0, 60)
        return box(top, top + rng.integers(5, 20), left, left + rng.integers(5, 20))

    objects, detections, void = [], [], {}
    for image in range(60):
        void[image] = box(0, rng.integers(0, 10), 0, 80)
        kept = [mask for mask in (drawn() & ~void[image] for _ in range(4)) if mask.any()]
        objects += [(image, int(rng.choice([3, 5, 9])), mask, rng.random() < 0.15) for mask in kept]
        for mask in [*kept, *kept, drawn()]:
            moved = np.roll(mask, rng.integers(0, 5), 1) | void[image] & drawn()
            detections.append((image, int(rng.choice([3, 5, 9])), rng.random(), moved))
    truth = truth_of(range(60), objects, void)
    records = [record(i, c, mask, score=score, best=True) for i, c, score, mask in detections]
    found, counted = match(truth, records, 0.25), np.zeros((4, 4), int)
    index = {3: 0, 5: 1, 9: 2}
    for image in range(60):
        real = [(c, mask) for i, c, mask, crowd in objects if i == image and not crowd]
        crowds = [(c, mask) for i, c, mask, crowd in objects if i == image and crowd]
        taken, right, number = set(), 0.0, 0
        shown = [one for one in detections if one[0] == image and one[2] > 0.25]
        masks = [(c, m & ~void[image]) for _, c, _, m in sorted(shown, key=lambda one: -one[2])]
        left = [(c, m) for c, m in masks if m.any()]
        for same in (True, False):
            waiting, left = left, []
            for category, mask in waiting:
                ious = [
                    0
                    if n in taken or (same and other_class != category)
                    else (mask & other).sum() / (mask | other).sum()
                    for n, (other_class, other) in enumerate(real)
                ]
                best = int(np.argmax(ious)) if ious else -1
                if best >= 0 and ious[best] >= 0.5:
                    taken.add(best)
                    number += 1
                    counted[index[real[best][0]], index[category]] += 1
                    right += ious[best] * (real[best][0] == category)
                else:
                    left.append((category, mask))
        for category, mask in left:
            if not any(c == category and 2 * (mask & m).sum() >= mask.sum() for c, m in crowds):
                number += 1
                counted[3, index[category]] += 1
        for n, (category, _) in enumerate(real):
            counted[index[category], 3] += n not in taken
        quality = 2 * right / (len(real) + number) if len(real) + number else 1
        assert found[image].quality == pytest.approx(quality)
    assert confusion(found.values(), 3).tolist() == counted.tolist()
    assert counted[:3, :3].sum() > 40 and counted[3].sum() > 20 and counted[:, 3].sum() > 10
