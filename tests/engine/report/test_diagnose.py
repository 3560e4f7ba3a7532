"""Why objects are missed, against numbers that are known by hand or counted pixel by pixel."""

import json

import numpy as np
import pytest
import torch

from data import rle
from engine import evaluate
from engine.coco_ap import score
from engine.report import diagnose
from mobileinst.set_prediction.postprocess import Postprocess, rank_by_class, rank_by_objectness

HEIGHT, WIDTH = 100, 200


def box(top, bottom, left, right):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def record(image, category, mask, **more):
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": rle.encode(mask[None])[0],
        **more,
    }


def truth_of(images, objects, void=None):
    """Ground truth of image ids, rows (image, category, mask, crowd), and void by image."""
    shape = {"height": HEIGHT, "width": WIDTH}
    images = [{"id": image, **shape} for image in images]
    for image in images:
        if image["id"] in (void or {}):
            image["void"] = rle.encode(void[image["id"]][None])[0]
    return {
        "images": images,
        "categories": [{"id": number, "name": str(number)} for number in (1, 2, 3)],
        "annotations": [
            record(image, category, mask, iscrowd=int(crowd), id=number)
            for number, (image, category, mask, crowd) in enumerate(objects, 1)
        ],
    }


def detections_of(*rows):
    """Detections from rows (image, category, score, mask)."""
    return [
        record(image, category, mask, score=value, best=True)
        for image, category, value, mask in rows
    ]


def diagnosed(ground_truth, detections):
    return diagnose.diagnose(ground_truth, detections, score(ground_truth, detections), 0.7)


def pixel_iou(one, other):
    return (one & other).sum() / (one | other).sum()


def test_recall_and_merged_masks_against_counted_pixels():
    generator = np.random.default_rng(5)

    def drawn():
        top, left = generator.integers(0, 70), generator.integers(0, 150)
        height, width = generator.integers(8, 60, 2)
        return box(top, top + height, left, left + width)

    objects, rows, void = [], [], {}
    for image in range(80):
        void[image] = box(*sorted(generator.integers(0, 20, 2)), 0, WIDTH)
        kept = [drawn() & ~void[image] for _ in range(generator.integers(0, 6))]
        kept = [mask for mask in kept if mask.any()]
        for mask in kept:
            objects.append((image, generator.integers(1, 3), mask, generator.random() < 0.1))
        if len(kept) > 1:
            rows.append((image, 1, 0.5, np.logical_or.reduce(kept[:2])))
        rows += [(image, 1, generator.random(), drawn()) for _ in range(generator.integers(0, 4))]
        rows += [(image, 2, 0.3, np.roll(mask, 5, 1)) for mask in kept if generator.random() < 0.4]
    truth, detections = truth_of(range(80), objects, void), detections_of(*rows)
    found = diagnosed(truth, detections)

    counted = {(group, size): [] for group in diagnose.GROUPS for size in diagnose.SIZES}
    missed, merged = 0, 0
    for image in range(80):
        masks = [mask & ~void[image] for place, _, _, mask in rows if place == image]
        masks = [mask for mask in masks if mask.any()]
        real = [(c, mask) for place, c, mask, crowd in objects if place == image and not crowd]
        for category, mask in real:
            same = [other for c, other in real if c == category]
            group = "alone" if len(same) == 1 else "not alone"
            size = "small" if mask.sum() <= 1024 else "large" if mask.sum() > 9216 else "medium"
            best = max((pixel_iou(mask, other) for other in masks), default=0)
            for key in [("all", "all"), ("all", size), (group, "all"), (group, size)]:
                counted[key].append(best)
            missed += best < 0.5
            for other in masks if best < 0.5 else ():
                inside = [one for one in same if 2 * (one & other).sum() >= one.sum()]
                around = 2 * (mask & other).sum() >= mask.sum()
                union = np.logical_or.reduce(inside) if inside else mask
                if around and len(inside) > 1 and pixel_iou(other, union) >= 0.5:
                    merged += 1
                    break
    for (group, size), ious in counted.items():
        expected = [len(ious)]
        expected += [np.mean([iou >= at for iou in ious]) if ious else -1 for at in (0.5, 0.75)]
        assert list(found["recall"][group][size].values()) == pytest.approx(expected)
    assert found["missed"]["objects"] == missed and found["missed"]["in a merged mask"] == merged
    assert missed > 10 and merged > 3 and len(counted["not alone", "small"]) > 5


def test_oracles_of_known_detections():
    """Class 1 has an exact mask under the wrong class, class 2 a mask of IoU 0.82 after it."""
    first, second = box(0, 20, 0, 20), box(50, 70, 50, 100)
    crowd, far = box(80, 100, 0, 200), box(0, 20, 100, 120)
    truth = truth_of([1, 2], [(1, 1, first, 0), (1, 2, second, 0), (1, 2, crowd, 1)])
    detections = detections_of(
        (1, 2, 0.9, first),
        (1, 2, 0.8, box(50, 70, 50, 91)),  # 41/50
        (1, 2, 0.7, box(80, 100, 10, 60)),  # on the crowd: ignored
        (2, 2, 0.6, far),  # an image without objects; behind the last hit
    )
    found = diagnose.oracles(truth, detections, 100, 0.7)
    # Seven of the ten IoU thresholds are at most 0.82. A miss before the hit halves the precision.
    expected = {
        "best class only": (0.7 * 0.5 / 2, 0.5 / 2),
        "right class": ((1 + 0.7) / 2, 1),
        "right score": (0.7 / 2, 1 / 2),
        "both": ((1 + 0.7) / 2, 1),
        "perfect masks": (0.5 / 2, 0.5 / 2),
    }
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        assert list(found[name].values()) == pytest.approx(numbers, abs=1e-6), name


def test_a_duplicate_is_no_answer_of_an_oracle():
    """By its IoU, that of the first object would come before the detection to the second. The third
    object has the same mask and another class.
    """
    first, second = box(0, 20, 0, 20), box(50, 70, 50, 100)
    truth = truth_of([1], [(1, 1, first, 0), (1, 1, second, 0), (1, 2, first, 0)])
    rows = (1, 1, 0.9, first), (1, 1, 0.8, box(50, 70, 50, 91)), (1, 1, 0.5, box(0, 20, 0, 18))
    detections = detections_of(*rows, (1, 2, 0.4, first))
    found = diagnose.oracles(truth, detections, 100, 0.7)
    # Class 1: precision is 1 up to a recall of one half, 51 of the 101 that COCO looks at, and at
    # the seven thresholds that the second detection reaches at every recall. Class 2 has 1.
    for name in ("best class only", "right score"):
        assert found[name]["AP"] == pytest.approx((1 + (7 + 3 * 51 / 101) / 10) / 2), name
    kept = diagnose.oracles(truth, detections, 100, 1.0)
    assert kept["right score"]["AP"] < kept["best class only"]["AP"]


@pytest.mark.parametrize("objects", [[], [(1, 1, box(0, 9, 0, 9), 0)]])
def test_without_objects_or_detections(objects):
    found = diagnosed(truth_of([1, 2], objects), [])
    assert found["recall"]["all"]["all"]["recall50"] == (0 if objects else -1)
    assert found["missed"]["objects"] == len(objects)
    assert {each["AP"] for each in found["oracles"].values()} == {0 if objects else -1}
    assert "in a merged mask" in diagnose.text(found)


@pytest.mark.parametrize("rank, extra", [(rank_by_objectness, 0), (rank_by_class, 1)])
@pytest.mark.parametrize("limit", [100, 4])
def test_each_query_gives_one_mask_with_its_best_class(rank, extra, limit):
    generator = torch.Generator().manual_seed(3)
    outputs = {
        "class_logits": torch.randn(1, 7, 5 + extra, generator=generator),
        "mask_logits": torch.randn(1, 7, 8, 8, generator=generator),
        "objectness": torch.randn(1, 7, 1, generator=generator),
    }
    sizes = [((32, 32), (32, 32), (40, 40))]
    ordinary = Postprocess(rank, max_detections=limit, quality=None)
    (result,) = diagnose.one_per_query(ordinary)(outputs, sizes)
    best = result["best"]
    queries = result["query_idx"][best].tolist()
    assert len(queries) == min(limit, 7) and len(set(queries)) == len(queries)
    scores = rank({key: value[0] for key, value in outputs.items()})[0]
    assert result["labels"][best].tolist() == scores.argmax(1)[queries].tolist()
    assert set(queries) == set(scores.amax(1).argsort(descending=True)[:limit].tolist())
    (every,) = Postprocess(rank, max_detections=100, quality=None)(outputs, sizes)
    for query, mask in zip(queries, result["masks"][best], strict=True):
        assert torch.equal(mask, every["masks"][every["query_idx"].tolist().index(query)])


def test_the_command_writes_the_diagnosis_beside_the_results(toy_run, tmp_path, capsys):
    argv = ["--checkpoint", str(toy_run / "best.pt"), "--split", "train", "--diagnose"]
    argv += ["--device", "cpu", "--threads", "1", "--workers", "0"]
    evaluate.main([*argv, "--out", str(tmp_path / "results.json")])
    found = json.loads((tmp_path / "diagnose.json").read_text())
    scores = json.loads((tmp_path / "results.json").read_text())["scores"]
    assert found["split"] == "train" and found["oracles"]["as evaluated"]["AP"] > 0
    assert found["oracles"]["as evaluated"]["AP"] == scores["metrics"]["AP"]
    assert found["recall"]["all"]["all"]["objects"] == scores["objects"] == 14
    assert found["masks"] <= 8 * 6  # images, queries
    assert found["recall"]["all"]["all"]["recall50"] >= scores["recall"]
    assert found["oracles"]["perfect masks"]["AP"] > found["oracles"]["best class only"]["AP"] > 0
    said = capsys.readouterr().out
    assert "recall by any of the masks" in said and str(tmp_path / "diagnose.json") in said
