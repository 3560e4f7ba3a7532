"""Bad records left out: what goes, what stays, and that batches depend on nothing else."""

import copy
import json

import numpy as np
import pytest
import torch

from data import loaders
from data.dataset import CocoDataset
from data.errors import BadRecord, BadRecords, InputError
from data.opening import open_datasets
from data.packed import Bytes, ImageRecord, Images, pack_polygons, unpack_polygons
from data.presets import EvalPreset, TrainPreset
from tests.stress.sets import voc_set

CANVASES = [(64, 64), (64, 128)]


def opened(tiny, change=lambda content: None, skip_bad=True):
    content = copy.deepcopy(tiny.content)
    change(content)
    return CocoDataset(content, tiny.images, skip_bad=skip_bad)


def break_image(tiny, id_):
    path = tiny.images / f"{id_}.png"
    path.write_bytes(path.read_bytes()[:100])


def batches(dataset, preset=None, **keywords):
    given = {"batch_size": 2, "seed": 3, "stop_step": 12, "canvases": CANVASES} | keywords
    return list(loaders.train_loader(dataset, preset or TrainPreset(), **given))


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)
        assert a.image_ids == b.image_ids and torch.equal(a.labels, b.labels)


LEFT_OUT = {  # what is changed, the images and objects that stay, what the list names
    "an annotation": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]]), 6, 6, ["number 1 of ann"]
    ),
    "an unknown image": (lambda c: c["annotations"][0].update(image_id=99), 6, 6, ["number 1 of"]),
    "an image, with its annotations": (
        lambda c: c["images"][0].pop("width"), 5, 5, ["number 1 of im", "number 1 of a", "number 2"]
    ),
    "the second of two": (
        lambda c: c["images"][1].update(id=0), 5, 6, ["number 2 of im", "number 3", "number 4"]
    ),
    "a category, with its objects": (
        lambda c: c["categories"][3].update(name=[]), 6, 5,
        ["number 4 of cat", "number 3", "number 4", "number 7"],
    ),
    "an image without a file": (
        lambda c: c["images"][0].update(file_name="gone.png"), 5, 5,
        ["image 0", "number 1", "number 2"],
    ),
    "what is no record": (lambda c: c["annotations"].append(7), 6, 7, ["number 9 of annotations"]),
    "void": (
        lambda c: c["images"][0].update(void=3), 5, 5, ["number 1 of im", "number 1", "number 2"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out(tiny_coco, name):
    change, images, objects, named = LEFT_OUT[name]
    with pytest.raises(InputError, match="--skip-bad-records"):
        opened(tiny_coco, change, skip_bad=False)
    dataset = opened(tiny_coco, change)
    assert len(dataset) == images
    truths = dataset.ground_truth()["annotations"]
    assert sum(not one["iscrowd"] for one in truths) == objects
    assert [one.record for one in dataset.bad][0].startswith(named[0])
    assert len(dataset.bad) == len(named)
    for one, start in zip(dataset.bad, named, strict=True):
        assert one.record.startswith(start) and one.file == "the train annotations" and one.reason


def test_annotations_of_an_image_that_is_left_out_say_so(tiny_coco):
    dataset = opened(tiny_coco, lambda c: c["images"][0].update(file_name="gone.png"))
    reasons = [one.reason for one in dataset.bad]
    assert reasons[1:] == [
        f"the train annotations: annotation {id_} is of image 0, which is left out"
        for id_ in (one["id"] for one in tiny_coco.content["annotations"] if one["image_id"] == 0)
    ]


def test_a_good_set_is_the_same_either_way(tiny_coco):
    strict, lenient = opened(tiny_coco, skip_bad=False), opened(tiny_coco)
    assert strict.ground_truth() == lenient.ground_truth() and not len(lenient.bad)
    assert_same(batches(strict), batches(lenient))


def test_a_file_that_is_none_is_refused_either_way(tiny_coco):
    for change in (lambda c: c.pop("images"), lambda c: c["categories"].clear()):
        with pytest.raises(InputError):
            opened(tiny_coco, change)


@pytest.mark.parametrize("preset", [TrainPreset(), TrainPreset(copy_paste=0.7)])
def test_the_next_image_takes_the_place_of_a_broken_one(tiny_coco, preset):
    whole = batches(opened(tiny_coco), preset)
    break_image(tiny_coco, 5)
    break_image(tiny_coco, 11)
    dataset = opened(tiny_coco)
    alone = batches(dataset, preset)
    for before, now in zip(whole, alone, strict=True):
        assert now.images.shape == before.images.shape
        assert now.image_ids == [{5: 40, 11: 40}.get(id_, id_) for id_ in before.image_ids]
    assert dataset.bad.image_ids == {5, 11} and len(dataset.bad) == 2
    assert_same(alone, batches(dataset, preset))
    for workers in (1, 2):
        fresh = opened(tiny_coco)
        assert_same(alone, batches(fresh, preset, workers=workers))
        assert fresh.bad.image_ids == {5, 11}  # as the workers reported
    assert_same(alone[5:], batches(opened(tiny_coco), preset, start_step=5))


def test_in_the_place_of_the_last_comes_the_first(tiny_coco):
    break_image(tiny_coco, 41)
    ids = {id_ for batch in batches(opened(tiny_coco)) for id_ in batch.image_ids}
    assert ids == {0, 2, 5, 11, 40}


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_has_the_others_only(tiny_coco, workers):
    break_image(tiny_coco, 40)
    dataset = opened(tiny_coco)
    loader = loaders.eval_loader(dataset, EvalPreset(48), batch_size=1, workers=workers)
    assert sorted(id_ for batch in loader for id_ in batch.image_ids) == [0, 2, 5, 11, 41]
    truth = dataset.ground_truth()
    assert [image["id"] for image in truth["images"]] == [0, 2, 5, 11, 41]
    assert not [one for one in truth["annotations"] if one["image_id"] == 40]
    assert [(one.record, one.image_id) for one in dataset.bad] == [("image 40", 40)]


def test_nothing_that_can_be_read(tiny_coco):
    for id_ in (0, 2, 5, 11, 40, 41):
        break_image(tiny_coco, id_)
    dataset = opened(tiny_coco)
    with pytest.raises(InputError, match="none of the 6 images .* can be read"):
        batches(dataset)
    with pytest.raises(InputError, match="none of the images .* can be read"):
        dataset.ground_truth()


def test_what_a_conversion_leaves_out_is_known_later(tmp_path):
    root = tmp_path / "VOC2012"
    made = voc_set()
    made.files["VOC2012/SegmentationObject/mb.png"] = b"no image"
    made.write(tmp_path)
    for _ in range(2):  # converted, and found converted
        dataset = open_datasets(
            root, splits=("train",), cache=tmp_path / "cache", skip_bad=True, progress=False
        )["train"]
        assert [record.file_name for record in dataset.images] == ["ma.jpg", "mc.jpg"]
        assert [one.record for one in dataset.bad] == ["image mb"]
    with pytest.raises(InputError, match="mb.png"):  # a strict start does not use that conversion
        open_datasets(root, splits=("train",), cache=tmp_path / "cache", progress=False)


def test_records_are_listed_once_and_in_order():
    bad = BadRecords(skip=True)
    for record in ("b", "a", "b"):
        bad.note(InputError("why"), "file", record)
    bad.add([BadRecord("file", "a", "why"), BadRecord("file", "c", "why", 3)])
    assert [one.record for one in bad] == ["b", "a", "c"] and bad.image_ids == {3}
    with pytest.raises(InputError, match="^why, or leave it out with --skip-bad-records$"):
        BadRecords().note(InputError("why"), "file", "a")


# --- flat storage ---------------------------------------------------------------------------------


def test_packed_tables_give_back_what_was_put_in():
    texts = [b"", b"one", b"", b"three \xff"]
    packed = Bytes(texts)
    assert list(packed) == texts and len(packed) == 4
    records = [ImageRecord(2**62, "a \ud800.png", 3, 4), ImageRecord(-1, "虾", 70_000, 1)]
    images = Images(records)
    assert list(images) == records and list(images.take(np.array([1, 1, 0]))) == [
        records[1], records[1], records[0],
    ]  # fmt: skip
    polygons = [np.arange(6) / 3, np.arange(8) / 3]
    for parts in (polygons, polygons[:1]):
        unpacked = unpack_polygons(pack_polygons(parts))
        assert [part.tolist() for part in unpacked] == [part.tolist() for part in parts]


def test_a_set_is_a_few_flat_buffers(tiny_coco):
    """No Python object for each image or annotation is left, which forked workers would copy."""
    content = copy.deepcopy(tiny_coco.content)
    image, annotation = content["images"][4], content["annotations"][5]
    for number in range(3000):
        content["images"].append({**image, "id": 1000 + number})
        content["annotations"].append(
            {**annotation, "id": 1000 + number, "image_id": 1000 + number}
        )
    tiny_coco.json.write_text(json.dumps(content))
    dataset = CocoDataset(tiny_coco.json, tiny_coco.images)
    things, seen, found, size = [dataset], set(), 0, 0
    while things:
        thing = things.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        found += 1
        size += thing.nbytes if isinstance(thing, np.ndarray) else 0
        size += len(thing) if isinstance(thing, bytes) else 0
        inside = thing.values() if isinstance(thing, dict) else ()
        inside = thing if isinstance(thing, (list, tuple)) else inside
        things += list(inside) + list(getattr(thing, "__dict__", {}).values())
    assert found < 150
    # two polygons of 8 numbers are 128 bytes; offsets, label, kind, area and the image the rest
    assert size / 3000 < 136 + 120
