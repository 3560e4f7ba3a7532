"""engine/api.py: a walk as in a notebook, in a folder of the user's, and wrong input."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import engine
from data.loaders import first_images
from engine import predict
from tests.conftest import TINY, scene

ROOT = Path(__file__).resolve().parents[2]
WALK = """
import sys
from pathlib import Path
import engine
import numpy as np

data, start = sys.argv[1:]
numbers = engine.evaluate(start, data=data, device="cpu", workers=0)
model = engine.load(start, device="cpu")
results = model(Path(data) / "val")
print(numbers["AP"], [len(one) for one in results])
assert isinstance(results, list) and all(one.masks.dtype == bool for one in results)
"""


@pytest.fixture(scope="module")
def model(toy_run):
    return engine.load(toy_run / "best.pt", device="cpu")


@pytest.fixture(scope="module")
def path(toy_coco):
    """An image that the run has learned."""
    return toy_coco / "train" / f"{first_images(8, 0, 4)[0]}.png"


def same(a, b):
    return a.rles == b.rles and np.array_equal(a.scores, b.scores) and a.names == b.names


def test_a_walk_in_a_folder_that_has_data_and_datasets(toy_run, toy_coco, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("mine")
    (tmp_path / "datasets").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    shutil.copy(toy_run / "best.pt", tmp_path)  # the evaluation writes beside it
    command = [sys.executable, "-c", WALK, str(toy_coco), "best.pt"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and not done.stderr  # quiet
    (tmp_path / "data.py").write_text("")
    (tmp_path / "data" / "notes.txt").unlink()
    (tmp_path / "data").rmdir()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "data.py hides the package 'data' of this library" in done.stderr.splitlines()[-1]


def test_train_and_evaluate_are_quiet(toy_coco, tmp_path, capsys):
    keywords = dict(each.split("=") for each in TINY[TINY.index("--set") + 1 :])
    folder = engine.train(
        data=toy_coco, out=tmp_path / "run", set=keywords, from_scratch=True, iterations=2,
        image_size=64, canvas=["64x64", "64x128"], device="cpu", threads=1, workers=0, eval_train=0,
    )  # fmt: skip
    numbers = engine.evaluate(folder / "best.pt", data=toy_coco, device="cpu", workers=0)
    assert capsys.readouterr() == ("", "")
    found = json.loads(next(folder.glob("test-*/best_val_results.json")).read_text())
    assert numbers == found["scores"]["metrics"] and len(numbers) == 12
    with pytest.raises(ValueError, match="--model: 'x' is not one of"):
        engine.train(data=toy_coco, model="x")
    with pytest.raises(ValueError, match="missing"):
        engine.evaluate(tmp_path / "missing.pt")
    with pytest.raises(TypeError, match="no option is called epoch"):
        engine.train(epoch=3)


def test_every_source_gives_the_same_result(model, path, tmp_path):
    whole = model(path)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 9, np.uint8)])
    for source in (str(path), Image.open(path), pixels, alpha, Image.fromarray(alpha)):
        assert same(model(source), whole)
    grey = model(pixels[..., 0])
    assert same(grey, model(np.repeat(pixels[..., :1], 3, 2)))
    one, two = model([path, pixels])
    assert same(one, whole) and same(two, whole)
    lazily = model(each for each in [path, path])
    assert not isinstance(lazily, list) and same(next(lazily), whole)
    folder = model(path.parent)
    assert len(folder) == len(list(path.parent.iterdir()))
    assert any(same(one, whole) for one in folder)


def test_a_result_holds_what_was_found(model, path, tmp_path):
    result, (_, objects) = model(path), scene(int(path.stem))
    assert len(result) == len(objects) == 2 and list(result.scores) == sorted(result.scores)[::-1]
    assert result.labels.tolist() == [{"disc": 90, "square": 0}[name] for name in result.names]
    for mask, box, crop, row, label in zip(
        result.masks, result.boxes, result.crops(), result.as_table(), result.labels
    ):
        truth = next(mask for category, mask in objects if category == label)
        assert (mask & truth).sum() > 0.5 * (mask | truth).sum()
        rows, columns = np.nonzero(mask)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == tight == [row[name] for name in ("x0", "y0", "x1", "y1")]
        assert row["area"] == mask.sum() == (np.asarray(crop)[..., 3] == 255).sum()
        assert (row["cx"], row["cy"]) == pytest.approx((columns.mean(), rows.mean()), abs=0.05)
        assert crop.size == (tight[2] - tight[0], tight[3] - tight[1])
    records = json.loads(json.dumps(result.to_coco(image_id=7, first_id=3)))
    assert [one["id"] for one in records] == [3, 4] and {one["image_id"] for one in records} == {7}
    decoded = [coco_mask.decode(one["segmentation"]) for one in records]
    assert np.array_equal(np.array(decoded, bool), result.masks)
    saved = Image.open(result.save(tmp_path / "out.png"))
    assert saved.size == result.image.size and result._repr_png_().startswith(b"\x89PNG")
    size = f"{saved.width}x{saved.height}"
    assert repr(result) == f"Result({size}: 1 {result.names[0]}, 1 {result.names[1]})"
    with pytest.raises(ValueError, match="no image format ends in"):
        result.save(tmp_path / "out.xyz")


def test_a_model_prints_its_classes_and_threshold(model):
    first, *_ = model.categories
    text = repr(model)
    assert text.startswith(f"Model({first.name}")
    assert text.endswith(f"; threshold {model.threshold:.3f}, on cpu)")


def test_the_bits_are_those_of_the_command(model, toy_run, toy_coco, tmp_path):
    given = ["--checkpoint", toy_run / "best.pt", "--out", tmp_path / "out", "--device", "cpu"]
    predict.main([str(each) for each in (toy_coco / "val", *given, "--threads", 1)])
    content = json.loads((tmp_path / "out" / "objects.json").read_text())
    assert content["annotations"]
    found = []
    for number, result in enumerate(model(toy_coco / "val"), 1):
        found += result.to_coco(number, len(found) + 1)
    assert found == content["annotations"]


def test_batches_and_threads(model, toy_coco):
    paths = sorted((toy_coco / "train").iterdir())
    alone = model(paths)
    for one, other in zip(alone, model(paths, batch_size=3), strict=True):
        assert one.names == other.names
        assert one.scores == pytest.approx(other.scores, abs=1e-4)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(model, paths * 2))
    assert all(map(same, together, alone * 2))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("missing.png", "missing.png is missing"),
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((4, 4, 2), np.uint8), r"\[4, 4, 2\] is no image"),
        (np.zeros((0, 4), np.uint8), "is no image"),
        (3, "int"),
        (["missing.png"], "missing.png is missing"),
    ],
)
def test_wrong_images(model, source, sentence):
    with pytest.raises(ValueError, match=sentence):
        model(source)
