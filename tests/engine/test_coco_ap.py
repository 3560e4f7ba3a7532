"""AP against pycocotools used by hand, and what COCO leaves open: void, thresholds, maxDets."""

import contextlib
import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import rle
from engine import coco_ap
from engine.coco_ap import METRICS, score, score_with_curves
from engine.report import tables

HEIGHT, WIDTH = 160, 200


def blob(generator, low=4, high=70):
    """A random ellipse, often cut by the border."""
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    centre = generator.uniform((0, 0), (HEIGHT, WIDTH))
    axes = generator.uniform(low, high, 2)
    return ((y - centre[0]) / axes[0]) ** 2 + ((x - centre[1]) / axes[1]) ** 2 < 1


def shifted(mask, generator, most=6):
    return np.roll(mask, generator.integers(-most, most + 1, 2), (0, 1))


def annotation(number, image_id, category_id, mask, iscrowd=0):
    encoded = rle.encode(mask[None])[0]
    box = rle.boxes([encoded])[0]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": encoded,
        "area": float(mask.sum()),
        "bbox": [*box[:2], *(box[2:] - box[:2])],
        "iscrowd": iscrowd,
    }


def detection(truth, mask, value, category_id=None):
    return {
        "image_id": truth["image_id"],
        "category_id": truth["category_id"] if category_id is None else category_id,
        "segmentation": rle.encode(mask[None])[0],
        "score": float(value),
    }


def random_set(seed, images=8, categories=(0, 3, 17, 90), crowds=True):
    """Ground truth and detections: shifted, doubled, misnamed, missing and made-up objects."""
    generator = np.random.default_rng(seed)
    truths, found = [], []
    for image_id in range(images):
        for _ in range(generator.integers(0, 9)):
            mask = blob(generator)
            if not mask.any():
                continue
            category = int(generator.choice(categories[:-1]))
            crowd = int(crowds and generator.random() < 0.1)
            truth = annotation(len(truths) + 1, image_id, category, mask, crowd)
            truths.append(truth)
            for _ in range(generator.integers(0, 3)):
                other = int(generator.choice(categories)) if generator.random() < 0.2 else category
                value = generator.integers(1, 100) / 100  # few values, so that scores tie
                found.append(detection(truth, shifted(mask, generator), value, other))
    ground_truth = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
        "annotations": truths,
    }
    return ground_truth, found


def by_hand(ground_truth, found, kind="segm"):
    """pycocotools as its own demo uses it."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            **ground_truth,
            "annotations": [dict(a) for a in ground_truth["annotations"]],
        }
        coco.createIndex()
        results = coco.loadRes([dict(each) for each in found])
        evaluation = COCOeval(coco, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def perfect(ground_truth):
    """Every object, crowds left out, as a detection."""
    return [
        {**{k: a[k] for k in ("image_id", "category_id", "segmentation")}, "score": 1.0}
        for a in ground_truth["annotations"]
        if not a["iscrowd"]
    ]


@pytest.mark.parametrize("seed", range(6))
def test_twelve_numbers_are_those_of_pycocotools(seed):
    ground_truth, found = random_set(seed)
    scores = score(ground_truth, found)
    expected = by_hand(ground_truth, found)
    np.testing.assert_allclose([scores.metrics[key] for key in METRICS], expected.stats, atol=1e-12)
    per_class = {row["name"]: row for row in scores.per_class}
    for k, category in enumerate(expected.params.catIds):
        values = expected.eval["precision"][:, :, k, 0, 2]
        row = per_class[f"class {category}"]
        objects = [a for a in ground_truth["annotations"] if a["category_id"] == category]
        assert row["objects"] == sum(not a["iscrowd"] for a in objects)
        assert row["AP"] == pytest.approx(values.mean())
        assert row["AP50"] == pytest.approx(values[0].mean())


@pytest.mark.parametrize("seed", range(3))
def test_box_numbers_are_those_of_pycocotools(seed):
    ground_truth, found = random_set(seed)
    corners = rle.boxes([each["segmentation"] for each in found])
    boxed = [
        {k: v for k, v in each.items() if k != "segmentation"}
        | {"bbox": [*box[:2], *(box[2:] - box[:2])]}
        for each, box in zip(found, corners, strict=True)
    ]
    scores = score(ground_truth, found)
    expected = by_hand(ground_truth, boxed, "bbox").stats
    np.testing.assert_allclose([scores.boxes[key] for key in METRICS], expected, atol=1e-12)


def coco_mini(shared):
    path = shared / "datasets/coco-mini/annotations/instances_val.json"
    ground_truth = json.loads(path.read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in ground_truth["images"]}
    for each in ground_truth["annotations"]:
        each["segmentation"] = rle.from_annotation(each["segmentation"], *sizes[each["image_id"]])
    return ground_truth, sizes


def test_ground_truth_as_predictions_is_perfect_on_real_coco(shared):
    ground_truth, _ = coco_mini(shared)
    metrics = score(ground_truth, perfect(ground_truth)).metrics
    assert {metrics[key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")} == {1.0}


def test_ground_truth_as_predictions_is_perfect_with_crowds_holes_and_empty_images():
    ground_truth, _ = random_set(11)
    ring = np.zeros((HEIGHT, WIDTH), bool)
    ring[10:60, 10:60] = True
    ring[20:50, 20:50] = False
    ground_truth["annotations"].append(annotation(500, 0, 3, ring))
    ground_truth["images"].append({"id": 99, "height": HEIGHT, "width": WIDTH})
    assert any(a["iscrowd"] for a in ground_truth["annotations"])
    scores = score(ground_truth, perfect(ground_truth))
    assert scores.metrics["AP"] == scores.boxes["AP"] == 1.0
    assert scores.f1 == scores.precision == scores.recall == 1.0
    assert scores.images == len(ground_truth["images"])


@pytest.mark.parametrize("categories", [(0, 1, 2), (1, 2, 3), (7, 3, 250)])
def test_category_and_annotation_ids_may_be_any(categories):
    ground_truth, found = random_set(2, categories=(1, 2, 3, 4))
    names = dict(zip((1, 2, 3), categories, strict=True)) | {4: 1000}
    moved = {
        "images": ground_truth["images"],
        "categories": [
            {"id": names[c["id"]], "name": c["name"]} for c in ground_truth["categories"]
        ],
        # Ids from 0: COCOeval alone takes a match with object 0 for none.
        "annotations": [
            {**a, "id": i, "category_id": names[a["category_id"]]}
            for i, a in enumerate(ground_truth["annotations"])
        ],
    }
    renamed = [{**each, "category_id": names[each["category_id"]]} for each in found]
    before, after = score(ground_truth, found), score(moved, renamed)
    assert after.metrics == pytest.approx(before.metrics, abs=1e-12)
    assert after.per_class == before.per_class


def test_a_mask_over_half_the_void_is_perfect_only_without_void():
    inner, border = np.zeros((2, HEIGHT, WIDTH), bool)
    inner[40:80, 40:80] = True
    border[35:85, 35:85] = True
    border &= ~inner
    half = border.copy()
    half[:, 60:] = False
    truth = annotation(1, 5, 1, inner)
    image = {"id": 5, "height": HEIGHT, "width": WIDTH, "void": rle.encode(border[None])[0]}
    other = {"id": 6, "height": HEIGHT, "width": WIDTH}
    ground_truth = {
        "images": [image, other],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [truth, annotation(2, 6, 1, inner)],
    }
    found = [
        detection(truth, inner | half, 0.9),
        detection(ground_truth["annotations"][1], inner, 0.8),
    ]
    scores = score(ground_truth, found)
    assert scores.metrics["AP"] < 0.95
    assert scores.void_removed["AP"] == 1.0
    assert scores.headline == scores.void_removed
    assert scores.headline_per_class[0]["AP"] == 1.0
    assert scores.per_class[0]["AP"] < 0.95
    assert "void removed" in tables.table(scores)
    # Void text as json holds it gives the same.
    image["void"] = rle.to_json(image["void"])
    assert asdict(score(ground_truth, found)) == asdict(scores)
    # A mask wholly inside void is neither right nor wrong.
    undecided = score(ground_truth, [*found, detection(truth, half, 0.99)])
    assert undecided.detections == 3
    assert undecided.void_removed["AP"] == 1.0
    assert coco_ap.remove_void(ground_truth, [detection(truth, half, 1)]) == []


def matched_by_hand(ground_truth, found):
    """Right predictions, and objects: in order of score, each takes its best free object."""
    true = objects = 0
    for image in ground_truth["images"]:
        for category in ground_truth["categories"]:
            truths, mine = (
                [each for each in records
                 if (each["image_id"], each["category_id"]) == (image["id"], category["id"])]
                for records in (ground_truth["annotations"], found)
            )  # fmt: skip
            mine.sort(key=lambda each: -each["score"])
            overlap = rle.iou(*([e["segmentation"] for e in each] for each in (mine, truths)))
            objects += len(truths)
            free = np.ones(len(truths), bool)
            for row in overlap:
                row = np.where(free, row, 0)
                if row.size and row.max() >= 0.5:
                    free[row.argmax()] = False
                    true += 1
    return true, objects


def best_f1_by_brute_force(ground_truth, found):
    """Every threshold, matched from scratch."""
    best = (-1.0, None, None, None)
    for low in sorted({each["score"] for each in found}):
        kept = [each for each in found if each["score"] >= low]
        true, objects = matched_by_hand(ground_truth, kept)
        f1 = 2 * true / (len(kept) + objects)
        if f1 >= best[0]:
            best = (f1, low, true / len(kept), true / objects)
    return best


@pytest.mark.parametrize("seed", range(2))
def test_curves_against_pycocotools_and_brute_force(seed):
    ground_truth, found = random_set(seed, images=5, crowds=False)
    scores, about = score_with_curves(ground_truth, found)
    assert scores == score(ground_truth, found)
    precision = by_hand(ground_truth, found).eval["precision"][:, :, :, 0, 2]  # [T,R,K]
    precision = precision[:, :, precision[0, 0] > -1]  # classes with objects
    curves = about["curves"]
    for name, values in (("precision", precision), ("precision50", precision[:1])):
        np.testing.assert_allclose(curves[name], values.mean((0, 2)))
    assert np.mean(curves["precision75"]) == pytest.approx(scores.metrics["AP75"])
    np.testing.assert_allclose(curves["recall"], np.arange(101) / 100)
    by_score = about["thresholds"]
    assert len(by_score["score"]) == 100 and by_score["score"][0] == 0
    for at in (0, 7, 50, 90, 99):
        kept = [each for each in found if each["score"] > by_score["score"][at]]
        true, objects = matched_by_hand(ground_truth, kept)
        expected = true / len(kept), true / objects, 2 * true / (len(kept) + objects)
        values = [by_score[name][at] for name in ("precision", "recall", "f1")]
        assert values == pytest.approx(expected)
    assert max(by_score["f1"]) <= scores.f1


@pytest.mark.parametrize("seed", range(4))
def test_best_threshold_against_brute_force(seed):
    ground_truth, found = random_set(seed, images=5, crowds=False)
    scores = score(ground_truth, found)
    f1, low, precision, recall = best_f1_by_brute_force(ground_truth, found)
    assert scores.f1 == pytest.approx(f1)
    assert scores.precision == pytest.approx(precision)
    assert scores.recall == pytest.approx(recall)
    kept = {each["score"] for each in found if each["score"] > scores.best_threshold}
    assert kept == {each["score"] for each in found if each["score"] >= scores.best_threshold}
    assert min(kept) == low


def many_objects():
    """150 little squares in one image, all found."""
    truths = []
    for i in range(150):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        y, x = divmod(i, 20)
        mask[12 * y : 12 * y + 8, 10 * x : 10 * x + 7] = True
        truths.append(annotation(i + 1, 1, 1, mask))
    ground_truth = {
        "images": [{"id": 1, "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "nucleus"}],
        "annotations": truths,
    }
    return ground_truth, perfect(ground_truth)


def test_max_dets_lets_more_objects_count():
    ground_truth, found = many_objects()
    few, many = score(ground_truth, found), score(ground_truth, found, max_dets=300)
    assert few.metrics["AR100"] == pytest.approx(100 / 150)
    assert few.metrics["AP"] < 0.7
    assert many.metrics["AP"] == many.metrics["AR100"] == many.metrics["APs"] == 1.0
    assert many.metrics["AR10"] == pytest.approx(10 / 150)
    assert "AR300" in tables.table(many)
    assert score(ground_truth, found, max_dets=5).metrics["AR10"] == pytest.approx(5 / 150)


def test_no_detections_and_no_objects():
    ground_truth, found = random_set(5)
    nothing = score(ground_truth, [])
    assert nothing.metrics["AP"] == nothing.metrics["AR100"] == 0.0
    assert nothing.boxes["AP"] == 0.0
    assert nothing.best_threshold is None
    empty = {**ground_truth, "annotations": []}
    for results in ([], found):
        scores = score(empty, results)
        assert set(scores.metrics.values()) == {-1.0}
        assert scores.best_threshold is None
        curves = score_with_curves(empty, results)[1]
        assert set(curves["curves"]["precision"]) == {-1.0}
        assert curves["thresholds"] == {"score": [], "precision": [], "recall": [], "f1": []}
    no_images = {**empty, "images": []}
    assert set(score(no_images, []).metrics.values()) == {-1.0}
    for text in (tables.table(scores), tables.table(scores, markdown=True), tables.table(nothing)):
        assert "AP50" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 12345}, "image 12345"),
        ({"category_id": 4}, "category 4"),
        ({"score": float("nan")}, "score nan"),
        ({"segmentation": rle.encode(np.ones((1, 3, 4), bool))[0]}, r"\[3, 4\]"),
    ],
)
def test_detections_that_do_not_fit_are_refused(change, message):
    ground_truth, found = random_set(8)
    with pytest.raises(ValueError, match=message):
        score(ground_truth, [found[0] | change])


def test_result_is_plain_and_nothing_is_printed(capsys):
    ground_truth, found = random_set(9)
    scores = score(ground_truth, found)
    again = json.loads(json.dumps(asdict(scores)))
    assert again["metrics"] == scores.metrics
    assert again["per_class"][0]["name"] == "class 0"
    assert capsys.readouterr().out == ""
    for text in (tables.table(scores), tables.table(scores, markdown=True)):
        assert f"{scores.metrics['AP']:.3f}" in text
        assert "class 17" in text
        assert f"{scores.f1:.3f}" in text


def test_the_threshold_is_sought_among_the_detections_that_are_shown():
    truth, _ = random_set(5, crowds=False)
    found = [{**each, "score": 0.5, "best": True} for each in perfect(truth)]
    others = sorted({each["id"] for each in truth["categories"]})
    wrong = [
        {**each, "score": 0.9, "best": False}
        | {"category_id": others[(others.index(each["category_id"]) + 1) % len(others)]}
        for each in found
    ]
    assert score(truth, found + wrong).precision == 1.0
    assert score(truth, found + wrong).detections == 2 * len(found)
    assert score(truth, found + [{**each, "best": True} for each in wrong]).precision < 1.0
