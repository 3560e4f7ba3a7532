"""data/dataset.py: ids, masks, sizes, and the messages for wrong files."""

import copy
import json
import warnings

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import rle
from data.dataset import CocoDataset
from data.errors import InputError
from data.images import SUFFIXES, read_rgb
from data.records import Category


def opened(tiny, change=lambda content: None, **keywords):
    content = copy.deepcopy(tiny.content)
    change(content)
    return CocoDataset(content, tiny.images, **keywords)


def masks_of(annotation):
    return rle.decode(annotation.rles, annotation.orig_size)


def test_indices_follow_the_sorted_ids(tiny_coco):
    dataset = CocoDataset(tiny_coco.json, tiny_coco.images)
    assert [tuple(c) for c in dataset.categories] == [
        (0, 0, "shrimp"), (1, 3, "fish"), (2, 7, "unused"), (3, 90, "crab"),
    ]  # fmt: skip
    assert dataset.class_names == ["shrimp", "fish", "unused", "crab"]
    assert [record.id for record in dataset.images] == [0, 2, 5, 11, 40, 41]
    assert dataset.annotation(0).labels.tolist() == [0, 3]
    assert dataset.annotation(4).labels.tolist() == [3, 1]


def test_masks_are_those_of_the_file(tiny_coco):
    dataset = CocoDataset(tiny_coco.json, tiny_coco.images)
    for index, ids in enumerate([(0, 7), (8,), (), (20,), (21, 22), (30,)]):
        image, annotation = dataset.read(index)
        record = dataset.images[index]
        assert image.mode == "RGB" and image.size == (record.width, record.height)
        assert annotation.orig_size == (record.height, record.width)
        assert annotation.labels.dtype == np.int64
        expected = [tiny_coco.masks[id_] for id_ in ids]
        assert len(annotation.rles) == len(expected)
        for mask, one in zip(masks_of(annotation), expected, strict=True):
            assert (mask == one).all()


def test_void_and_crowd_are_ignored_and_never_objects(tiny_coco):
    dataset = CocoDataset(tiny_coco.json, tiny_coco.images)
    void = rle.decode([dataset.annotation(0).ignore], (48, 64))[0]
    assert void[:3].all() and not void[3:].any()
    with_crowd = dataset.annotation(1)
    assert len(with_crowd.rles) == 1
    assert (rle.decode([with_crowd.ignore], (64, 48))[0] == tiny_coco.masks[9]).all()
    assert dataset.annotation(2).ignore is None


def test_void_and_crowd_of_one_image_are_joined(tiny_coco):
    void = np.zeros((64, 48), dtype=bool)
    void[:, :2] = True
    region = rle.to_json(rle.encode(void[None])[0])
    dataset = opened(tiny_coco, lambda content: content["images"][1].update(void=region))
    ignore = rle.decode([dataset.annotation(1).ignore], (64, 48))[0]
    assert (ignore == (void | tiny_coco.masks[9])).all()


def test_a_subset_keeps_the_order_it_was_given(tiny_coco):
    dataset = CocoDataset(tiny_coco.json, tiny_coco.images)
    part = dataset.subset([4, 0]).subset([1, 0])
    assert [record.id for record in part.images] == [0, 40] and len(part) == 2
    assert part.annotation(1).labels.tolist() == [3, 1]
    assert len(dataset) == 6


def test_ground_truth_as_predictions_scores_one(tiny_coco):
    truth = CocoDataset(tiny_coco.json, tiny_coco.images).ground_truth()
    assert json.loads(json.dumps(truth)) == truth
    assert min(annotation["id"] for annotation in truth["annotations"]) == 1
    assert {a["category_id"] for a in truth["annotations"]} == {0, 3, 90}
    assert truth["images"][0]["void"]["size"] == [48, 64]
    reference = COCO()
    reference.dataset = truth
    reference.createIndex()
    found = [
        {key: a[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 1.0}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    judge = COCOeval(reference, reference.loadRes(found), "segm")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judge.stats[0] == 1.0


def test_ground_truth_describes_its_masks(tiny_coco):
    truth = CocoDataset(tiny_coco.json, tiny_coco.images).ground_truth([4, 1])
    assert [image["id"] for image in truth["images"]] == [40, 2]
    assert [a["image_id"] for a in truth["annotations"]] == [40, 40, 2, 2]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 0, 0, 1]
    for annotation, id_ in zip(truth["annotations"], (21, 22, 8, 9), strict=True):
        ys, xs = np.nonzero(tiny_coco.masks[id_])
        assert annotation["area"] == len(ys)
        box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert annotation["bbox"] == box


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_mini_gives_the_masks_of_pycocotools(shared, split, capsys):
    root = shared / "datasets" / "coco-mini"
    path = root / "annotations" / f"instances_{split}.json"
    dataset, reference = CocoDataset(path, root / split), COCO(path)
    assert [c.id for c in dataset.categories] == sorted(reference.getCatIds())
    assert len(dataset.categories) == 80 and dataset.categories[-1].id == 90
    index_of = {category.id: category.index for category in dataset.categories}
    for index, record in enumerate(dataset.images):
        rows = reference.loadAnns(reference.getAnnIds(record.id))
        rows = [row for row in rows if reference.annToMask(row).any()]
        things = [row for row in rows if not row["iscrowd"]]
        annotation = dataset.annotation(index)
        assert annotation.labels.tolist() == [index_of[row["category_id"]] for row in things]
        for mask, row in zip(masks_of(annotation), things, strict=True):
            assert (mask == reference.annToMask(row)).all()
        crowds = [reference.annToMask(row).astype(bool) for row in rows if row["iscrowd"]]
        assert (annotation.ignore is not None) == bool(crowds)
        if crowds:
            ignore = rle.decode([annotation.ignore], annotation.orig_size)[0]
            assert (ignore == np.any(crowds, axis=0)).all()


# --- images -------------------------------------------------------------------------------------


def replaced(tiny, id_, image, **keywords):
    image.save(tiny.images / f"{id_}.png", **keywords)
    return CocoDataset(tiny.json, tiny.images)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_images_of_every_mode_become_rgb(tiny_coco, mode):
    colours = Image.fromarray(np.full((40, 40, 3), 204, dtype=np.uint8))
    image, _ = replaced(tiny_coco, 5, colours.convert(mode)).read(2)
    assert image.mode == "RGB"
    if mode != "1":
        assert np.abs(np.asarray(image).astype(int) - 204).max() <= 1


def test_cmyk_images_become_rgb(tiny_coco):
    colours = Image.fromarray(np.full((40, 40, 3), 204, dtype=np.uint8)).convert("CMYK")
    colours.save(tiny_coco.images / "5.jpg")
    content = copy.deepcopy(tiny_coco.content)
    content["images"][2]["file_name"] = "5.jpg"
    image, _ = CocoDataset(content, tiny_coco.images).read(2)
    assert np.abs(np.asarray(image).astype(int) - 204).max() <= 3


def test_16_bit_grey_keeps_its_range(tiny_coco):
    ramp = np.linspace(100, 4000, 1600).reshape(40, 40).astype(np.uint16)
    image, _ = replaced(tiny_coco, 5, Image.fromarray(ramp)).read(2)
    values = np.asarray(image)[..., 0]
    assert values.min() == 0 and values.max() == 255 and len(np.unique(values)) == 256


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_that_is_looked_for_can_be_read(tmp_path, suffix):
    Image.new("L" if suffix == ".pgm" else "RGB", (9, 8)).save(tmp_path / f"image{suffix}")
    assert read_rgb(tmp_path / f"image{suffix}").size == (9, 8)


def turned_image(tiny):
    """An image stored on its side, which EXIF turns upright, and how it is displayed."""
    upright = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(np.rot90(upright).copy()).save(tiny.images / "0.png", exif=exif)
    return upright


def test_exif_rotation_is_applied_once(tiny_coco):
    upright = turned_image(tiny_coco)
    image, _ = CocoDataset(tiny_coco.json, tiny_coco.images).read(0)
    assert (np.asarray(image) == upright).all()


def test_annotations_of_the_unturned_image_are_refused(tiny_coco):
    turned_image(tiny_coco)

    def swap(content):
        content["images"][0].update(width=48, height=64, void=None)
        content["annotations"] = content["annotations"][2:]

    with pytest.raises(InputError, match=r"0.png is 64 x 48 .* has 48 x 64 for image 0"):
        opened(tiny_coco, swap).read(0)


def test_a_truncated_image_is_named(tiny_coco):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = tiny_coco.images / "5.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    content = copy.deepcopy(tiny_coco.content)
    content["images"][2]["file_name"] = "5.jpg"
    with pytest.raises(InputError, match=r"5\.jpg cannot be read .*truncated.*replace the file"):
        CocoDataset(content, tiny_coco.images).read(2)


def test_an_image_of_another_size_is_named(tiny_coco):
    dataset = replaced(tiny_coco, 5, Image.new("RGB", (50, 41)))
    with pytest.raises(InputError, match=r"5\.png is 50 x 41 .* 40 x 40 for image 5"):
        dataset.read(2)


def test_missing_images_are_found_when_the_set_is_opened(tiny_coco):
    (tiny_coco.images / "11.png").unlink()
    with pytest.raises(InputError, match=r"1 of 6 images .* the first is 11\.png"):
        CocoDataset(tiny_coco.json, tiny_coco.images)


# --- wrong files ----------------------------------------------------------------------------------

WRONG = {
    "unknown image": (lambda c: c["annotations"][4].update(image_id=99), "annotation 20 .*99"),
    "unknown category": (lambda c: c["annotations"][4].update(category_id=1), "annotation 20 .*1"),
    "no category": (lambda c: c["annotations"][4].pop("category_id"), "annotation 20 .*None"),
    "no segmentation": (lambda c: c["annotations"][4].pop("segmentation"), "20 of image 11 .*null"),
    "other size": (lambda c: c["annotations"][4]["segmentation"].update(size=[9, 9]), "20 .*size"),
    "image twice": (lambda c: c["images"][1].update(id=0), "image 0 has an id that is used twice"),
    "category twice": (lambda c: c["categories"][0].update(id=3), "category 3 has .*twice"),
    "no id": (lambda c: c["images"][1].pop("id"), "image number 2 .*None"),
    "a list as id": (
        lambda c: c["images"][1].update(id=[2]),
        r"image number 2 .*has id \[2\]",
    ),
    "no width": (
        lambda c: c["images"][1].update(width=None, file_name="gone.png"),
        "image 2 has width None",
    ),
    "too many pixels": (lambda c: c["images"][2].update(width=20_000, height=20_000), "image 5 is"),
    "no pixels": (lambda c: c["images"][1].update(width=-1), "image 2 is -1 x 64"),
    "no name": (lambda c: c["images"][1].pop("file_name"), "image 2 has no file_name"),
    "no images": (lambda c: c.update(images=[], annotations=[]), "lists no images"),
    "no categories": (lambda c: c.update(categories=[], annotations=[]), "has no categories"),
    "no list": (lambda c: c.pop("annotations"), "'annotations' is not a list"),
    "list of numbers": (lambda c: c.update(images=[1, 2]), "image number 1 .*is not a record"),
    "wrong void": (lambda c: c["images"][0].update(void=[]), "image 0 has a void region .*empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_record_is_named_with_its_file(tiny_coco, name):
    change, words = WRONG[name]
    content = copy.deepcopy(tiny_coco.content)
    change(content)
    tiny_coco.json.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words) as caught:
        CocoDataset(tiny_coco.json, tiny_coco.images)
    assert str(tiny_coco.json) in str(caught.value)
    assert ": " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "no json", "[1, 2]", "3", '{"images": 1}'])
def test_a_file_that_is_no_coco_json(tiny_coco, text):
    tiny_coco.json.write_text(text)
    with pytest.raises(InputError, match="instances_train.json is no"):
        CocoDataset(tiny_coco.json, tiny_coco.images)


# --- crowds and classes ---------------------------------------------------------------------------


def all_crowd(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def test_a_set_of_crowds_is_warned_about_and_can_be_used(tiny_coco):
    with pytest.warns(
        UserWarning, match=r"shrimp \(3\), fish \(3\), crab \(2\) .*--crowd-as-instances"
    ):
        crowds = opened(tiny_coco, all_crowd)
    assert len(crowds.annotation(0).rles) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objects = opened(tiny_coco, all_crowd, crowd_as_instances=True)
        opened(tiny_coco)
    assert len(objects.annotation(0).rles) == 2
    assert not any(a["iscrowd"] for a in objects.ground_truth()["annotations"])


def test_images_that_have_objects(tiny_coco):
    """Image 5 has none; of image 2 the one that is no crowd is removed."""
    dataset = opened(tiny_coco)
    assert dataset.with_objects() == [0, 1, 3, 4, 5]
    assert dataset.subset([2, 4, 2, 1]).with_objects() == [1, 3]
    without = lambda content: content["annotations"].pop(2)  # noqa: E731
    assert opened(tiny_coco, without).with_objects() == [0, 3, 4, 5]
    assert opened(tiny_coco, without, crowd_as_instances=True).with_objects() == [0, 1, 3, 4, 5]


def plain(classes):
    return [one._asdict() for one in classes]


@pytest.mark.parametrize("change", [{"id": 8}, {"name": "lobster"}])
def test_the_class_list_has_to_fit(tiny_coco, change):
    dataset = opened(tiny_coco)
    own = dataset.categories
    given = [one._replace(**change) if one.id == 7 else one for one in own if one.id != 3]
    with pytest.raises(
        InputError, match=r"class list does not fit.* the x have .*there: .*7 \(unused\)"
    ):
        dataset.use_classes(plain(given), "the x")
    with pytest.raises(InputError, match="class list does not fit"):
        dataset.use_classes([{"id": 1, "name": "eel"}], "the x")
    moved = [one for one in own if one.id < 7]
    more = [Category(0, -4, "eel"), *moved, Category(3, 7, "unused"), Category(4, 90, "crab")]
    before = [dataset.class_names[label] for label in dataset.annotation(0).labels]
    dataset.use_classes(plain(more), "the x")
    assert [dataset.class_names[label] for label in dataset.annotation(0).labels] == before
    truth = dataset.ground_truth()
    assert {one["category_id"] for one in truth["annotations"]} == {0, 3, 90}
    assert [one["id"] for one in truth["categories"]] == [-4, 0, 3, 7, 90]
    other_ids = [one._replace(id=one.id + 100) for one in own]
    same_names = opened(tiny_coco)
    same_names.use_classes(plain(other_ids), "the x")
    assert same_names.categories == own  # its results carry its own ids


def test_objects_of_more_classes_are_left_out(tiny_coco):
    """Crab and unused are unknown; image 40 has a crab and a fish."""
    dataset, whole = opened(tiny_coco), opened(tiny_coco)
    classes = [{"id": 3, "name": "fish"}, {"id": 0, "name": "shrimp"}]
    with pytest.warns(UserWarning, match="classes unused, crab, which the x has not: .* 2 objects"):
        dataset.use_classes(classes, "the x")
    assert dataset.class_names == ["fish", "shrimp"]
    assert dataset.annotation(0).labels.tolist() == [1]
    truth, before = dataset.ground_truth(), whole.ground_truth()["annotations"]
    before = [one for one in before if one["category_id"] != 90]
    assert len(before) == 6 and truth["categories"] == classes
    assert [{**one, "id": 0} for one in truth["annotations"]] == [{**b, "id": 0} for b in before]
    head = "train: 6 images (1 without objects), 5 objects, 1 crowd, 2 classes"
    assert dataset.summary().splitlines()[0] == head


def test_the_summary_counts(tiny_coco):
    dataset = opened(tiny_coco)
    head = "train: 6 images (1 without objects), 7 objects, 1 crowd, 4 classes"
    assert dataset.summary().splitlines()[0] == head
    assert "shrimp 3, fish 2, unused 0, crab 2" in dataset.summary()
    assert "2 images" in dataset.subset([0, 1]).summary()
    assert "0 objects" in dataset.subset([2]).summary()


def test_classes_are_the_same_by_name_where_all_are_there_or_ids_are_made_up(tiny_coco):
    """As a set that was corrected in an annotation tool has them: other ids, not all classes."""
    dataset, own = opened(tiny_coco), opened(tiny_coco).categories
    given = [{"id": 50 - k, "name": one.name} for k, one in enumerate(reversed(own))]
    eel = {"id": own[0].id, "name": "eel"}
    before = [dataset.class_names[label] for label in dataset.annotation(0).labels]
    dataset.use_classes([*given, eel], "the x")
    assert [dataset.class_names[label] for label in dataset.annotation(0).labels] == before
    other = opened(tiny_coco)
    with pytest.raises(InputError, match="class list does not fit"):
        other.use_classes([eel, *given[:2]], "the x")
    other.own_ids = False
    with pytest.warns(UserWarning, match="which the x has not"):
        other.use_classes([eel, *given[:2]], "the x")
    assert other.class_names == ["eel", *(one["name"] for one in given[:2])]
