"""data/readers/__init__.py: which format a folder or file has, and what is said where none fits."""

import json
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data import readers
from data.errors import LONGEST, InputError
from data.opening import open_datasets
from data.readers import recognise
from data.readers.source import Source


def fake(name, wanted, **more):
    """A reader of folders that hold files called `wanted`."""

    def find(path):
        files = sorted(path.glob(wanted)) if path.is_dir() else []
        return (
            {"all": Source(path, "all", [path], [file.name for file in files], files)}
            if files
            else None
        )

    def read(source, bad):
        names = [file.stem for file in source.files]
        images = [
            {"id": k, "file_name": f"{file.stem}.png", "width": 8, "height": 6}
            for k, file in enumerate(source.files)
        ]
        annotations = [
            {"id": k, "image_id": k, "category_id": k + 1, "segmentation": [[0, 0, 5, 0, 5, 5]]}
            for k in range(len(images))
        ]
        classes = sorted({file.read_text() for file in source.files})
        annotations = [
            one | {"category_id": classes.index(file.read_text()) + 1}
            for one, file in zip(annotations, source.files)
        ]
        content = {"images": images, "annotations": annotations, "counts": {"lines": len(names)}}
        return content | {"categories": [{"id": k + 1, "name": c} for k, c in enumerate(classes)]}

    about = {"NAME": name, "TITLE": name.title(), "LAYOUT": wanted, "__file__": __file__}
    return SimpleNamespace(find=find, read=read, **about | more)


@pytest.fixture
def formats(monkeypatch):
    """Formats of classes in text files, beside the ones that there are."""
    ours = (
        fake("red", "*.red"),
        fake("blue", "*.blue"),
        fake("dark", "*.blue", YIELDS_TO=("blue",)),
    )
    monkeypatch.setattr(readers, "READERS", (*readers.READERS, *ours))


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        stem, _, suffix = name.partition("_")
        (folder / f"{stem}.{suffix}").write_text(text)
        Image.fromarray(np.zeros((6, 8), np.uint8)).save(folder / f"{stem}.png")
    return folder


def formats_of(found):
    return {split: (one.reader.NAME, one.path) for split, one in found.items()}


def test_a_folder_its_splits_and_one_level_below(formats, tmp_path):
    write(tmp_path / "here", a_red="x")
    assert formats_of(recognise(tmp_path / "here")) == {"all": ("red", tmp_path / "here")}
    assert formats_of(recognise(tmp_path)) == {"all": ("red", tmp_path / "here")}
    for folder in ("Train", "valid", "testing"):
        write(tmp_path / "split" / folder, a_blue="x")
    found = recognise(tmp_path / "split")
    assert {split: path.name for split, (_, path) in formats_of(found).items()} == {
        "test": "testing",
        "train": "Train",
        "val": "valid",
    }
    assert [one.split for one in found.values()] == [*found]
    (tmp_path / "above").mkdir()
    (tmp_path / "split").rename(tmp_path / "above" / "split")
    assert recognise(tmp_path / "above").keys() == found.keys()
    write(tmp_path / "too" / "far" / "down", a_red="x")
    with pytest.raises(InputError, match="holds no data set"):
        recognise(tmp_path / "too")


def test_two_readings_are_named_and_format_decides(formats, tmp_path):
    write(tmp_path / "both", a_red="x", b_blue="y")
    words = r"Red \(red\) and Blue \(blue\): choose one with --format red or --format blue"
    with pytest.raises(InputError, match=words):
        recognise(tmp_path / "both")
    assert recognise(tmp_path / "both", "red")["all"].reader.NAME == "red"
    assert recognise(tmp_path / "both", "dark")["all"].reader.NAME == "dark"
    with pytest.raises(InputError, match="--format pink: there is no such format; known are .*red"):
        recognise(tmp_path, "pink")
    with pytest.raises(InputError, match=r"one is no data set of --format red \(Red: \*.red\)"):
        recognise(write(tmp_path / "one", a_blue="x"), "red")
    write(tmp_path / "several" / "first", a_red="x")
    write(tmp_path / "several" / "second", a_red="x")
    with pytest.raises(InputError, match="holds 2 data sets .*first and .*second.*: give one"):
        recognise(tmp_path / "several")


@pytest.mark.parametrize("other", ["another", "val"])
def test_a_format_in_any_folder_does_not_hide_another_one_beside_it(formats, tmp_path, other):
    """LabelMe's files are found in any folders below."""
    record = {"version": "5.0", "shapes": [], "imagePath": "a.png"}
    write(tmp_path / "train", a_json=json.dumps(record))
    assert recognise(tmp_path)["train"].names == ["train/a.json"]
    write(tmp_path / other, a_red="x")
    words = r"LabelMe \(labelme\) and Red \(red\): choose one with --format labelme or --format red"
    with pytest.raises(InputError, match=words):
        recognise(tmp_path)
    for name in ("labelme", "red"):
        assert {one.reader.NAME for one in recognise(tmp_path, name).values()} == {name}
    write(tmp_path, b_json=json.dumps(record))  # at the top: what lies below may follow from it
    assert recognise(tmp_path)["all"].names == ["b.json"]


def test_what_was_recognised_is_said(formats, tmp_path, capsys):
    write(tmp_path / "set", a_red="crab", b_red="fish", c_red="crab")
    one = open_datasets(tmp_path / "set", cache=tmp_path / "cache", splits=None)["all"]
    said = capsys.readouterr().out
    assert f"Red: 3 red files, 3 images, 2 classes ({tmp_path / 'set'})" in said
    assert "converted to COCO format once" in said
    assert f"{tmp_path / 'set'}: lines left out: 3" in one.summary()
    open_datasets(tmp_path / "set", cache=tmp_path / "cache", splits=None)
    assert "Red: 3" in (said := capsys.readouterr().out) and "converted" not in said


def test_classes_without_ids_are_joined(monkeypatch, tmp_path):
    monkeypatch.setattr(readers, "READERS", (fake("red", "*.red", OWN_IDS=False),))
    for folder, classes in (("train", "zf"), ("val", "fa"), ("test", "fb")):
        write(tmp_path / "set" / folder, **{f"{k}_red": name for k, name in enumerate(classes)})
    sets = open_datasets(tmp_path / "set", cache=tmp_path / "cache", progress=False)
    assert sets["train"].class_names == sets["val"].class_names == ["f", "z", "a"]
    names = {
        split: [one.class_names[one.labels(k)[0]] for k in range(2)] for split, one in sets.items()
    }
    assert names == {"train": ["z", "f"], "val": ["f", "a"]}
    every = open_datasets(tmp_path / "set", cache=tmp_path / "cache", splits=None, progress=False)
    assert every["test"].class_names == ["f", "z", "a", "b"] and len(every) == 3
    alone = open_datasets(tmp_path / "set", splits=("val",), cache=tmp_path / "c", progress=False)
    assert alone["val"].class_names == ["f", "z", "a"]  # the same ids as beside train


def test_an_error_that_no_reader_expects_is_one_sentence(monkeypatch, tmp_path):
    def broken(*arguments):
        raise KeyError("shapes")

    write(tmp_path / "set", a_red="x")
    reader = fake("red", "*.red")
    reader.read = broken
    monkeypatch.setattr(readers, "READERS", (reader,))
    with pytest.raises(InputError, match=r"set: failed to read as Red \(KeyError: 'shapes'\): "):
        open_datasets(tmp_path / "set", cache=tmp_path / "cache", progress=False)
    reader.find = broken
    with pytest.raises(InputError, match="failed to read as Red"):
        recognise(tmp_path / "set")


def test_images_alone(tmp_path):
    write(tmp_path / "photos", a_png="", b_png="")
    (tmp_path / "photos" / "c.JPG").write_bytes(b"")
    with pytest.raises(InputError, match="photos holds 3 images and no annotations: .*predict.sh"):
        recognise(tmp_path / "photos")


def test_masks_alone(tmp_path):
    values = np.zeros((40, 50), np.uint8)
    values[5:20, 5:30] = 1
    rng = np.random.default_rng(0)
    for name in "ab":
        photo = Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8))
        for folder in ("raw", "seg"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (photo if folder == "raw" else Image.fromarray(values)).save(
                tmp_path / folder / f"{name}.png"
            )
    for folder, number in ((tmp_path, 4), (tmp_path / "seg", 2)):
        words = rf"holds {number} images; those in \S*seg look like masks: arrange them as images/x"
        with pytest.raises(InputError, match=words):
            recognise(folder)
    with pytest.raises(InputError, match="holds 2 images and no annotations"):
        recognise(tmp_path / "raw")


def test_labelbox_has_no_masks(tmp_path):
    record = {"Labeled Data": "https://example.org/a.jpg", "Label": {"objects": []}}
    (tmp_path / "export.json").write_text(json.dumps([record]))
    (tmp_path / "v2.ndjson").write_text('{"data_row": {"id": "a"}, "projects": {}}\n')
    for path in (tmp_path, tmp_path / "export.json", tmp_path / "v2.ndjson"):
        with pytest.raises(InputError, match="json is an export of Labelbox, whose masks are web"):
            recognise(path)


def test_nothing_known(tmp_path):
    write(tmp_path / "music", a_mp3="", b_mp3="", c_txt="")
    for file in (tmp_path / "music").glob("*.png"):
        file.unlink()
    with pytest.raises(InputError) as caught:
        recognise(tmp_path / "music")
    said = str(caught.value)
    assert "2 .mp3, 1 .txt files" in said and "--train-json" in said and "[...]" not in said
    assert all(f"{one.NAME}: {one.LAYOUT[:8]}" in said for one in readers.READERS)
    assert len(said) < LONGEST
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no files: give the folder"):
        recognise(tmp_path / "empty")
    with pytest.raises(InputError, match="c.txt is no annotation file of a known format"):
        recognise(tmp_path / "music" / "c.txt")


def test_archives_are_not_unpacked(tmp_path):
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.json", "b.json", "images/a.jpg"):
            archive.writestr(name, "{}")
    words = r"export.zip is an archive: unpack it"
    with pytest.raises(InputError, match=words):
        recognise(path)
    with pytest.raises(InputError, match=r"holds 1 .zip file: unpack the .zip file"):
        recognise(tmp_path)
    path.write_bytes(b"PK\3\4 cut short")
    with pytest.raises(InputError, match="export.zip is an archive.*: unpack it"):
        recognise(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["export.zip"]


def test_a_file_for_the_folder(tiny_coco, capsys):
    sets = open_datasets(tiny_coco.json, val_fraction=0.5)
    assert {split: len(one) for split, one in sets.items()} == {"train": 3, "val": 3}
    assert "COCO json: 1 json file, 6 images, 4 classes" in capsys.readouterr().out
    (tiny_coco.json.with_name("other.json")).write_text(json.dumps({"a": 1}))
    with pytest.raises(InputError, match="other.json is no annotation file"):
        open_datasets(tiny_coco.json.with_name("other.json"))
    image = next(tiny_coco.json.parent.parent.rglob("*.png"))
    with pytest.raises(InputError, match="is an image: give the folder of the data set"):
        open_datasets(image)


def test_a_folder_of_images_beside_named_files(tiny_coco):
    sets = open_datasets(tiny_coco.images, train_json=tiny_coco.json, val_fraction=0.5)
    assert {split: len(one) for split, one in sets.items()} == {"train": 3, "val": 3}
