"""engine/export.py: files that find what the checkpoint finds, and their use in place of one."""

import copy
import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import engine
import mobileinst
from data import rle
from data.errors import InputError
from data.images import read_rgb
from engine import (
    backends,
    checkpoint,
    evaluate,
    export,
    graphs,
    parity,
    predict,
    quantise,
    web_page,
)
from engine.exported import decode
from engine.files import FailedRun
from mobileinst import zoo

FORBIDDEN = ("TopK", "Gather", "Scatter", "GridSample", "NonZero", "Loop", "If", "Scan", "NonMax")


def run_export(path: Path, images: Path, out: Path, *more: str) -> Path:
    argv = ["--checkpoint", path, "--images", images, "--out", out, "--size", "64x128"]
    export.main([str(each) for each in [*argv, "--threads", "1", *more]])
    return out


def test_what_a_folder_holds(exported):
    meta = json.loads((exported / "model.json").read_text())
    names = ["model.onnx", "model.fp16.onnx", "model.int8.onnx", "int8.csv", "model.json"]
    names += ["parity.csv", "summary.md", "example.png", "example_image.png", "web", *export.HOW]
    assert sorted(path.name for path in exported.iterdir()) == sorted(names)
    assert meta["format"] == backends.FORMAT and (meta["height"], meta["width"]) == (64, 128)
    assert [each["id"] for each in meta["categories"]] == [0, 7, 90]
    assert meta["threshold"] == 0.0543 and meta["mask_stride"] == 8
    assert meta["versions"] == {"torch": torch.__version__, "mobileinst": mobileinst.__version__}
    with open(exported / "parity.csv", newline="") as file:
        first, second, *_ = csv.DictReader(file)
    assert first["file"] == "checkpoint" and second["file"] == "model.onnx"
    assert int(second["detections"]) >= 20 and float(second["score_difference"]) < 1e-3
    assert float(second["mask_iou_worst"]) > 0.99 and second["same"] == "True"
    assert meta["files"]["model.onnx"]["parity"]["detections"] == int(second["detections"])


def test_the_graph_has_fixed_shapes_and_operators_for_phones(exported):
    import onnx

    model = onnx.load(exported / "model.onnx")
    operators = {node.op_type for node in model.graph.node}
    assert not [name for name in operators if name.startswith(FORBIDDEN)]
    shapes = {
        each.name: [side.dim_value for side in each.type.tensor_type.shape.dim]
        for each in (*model.graph.input, *model.graph.output)
    }
    expected = {"image": [1, 64, 128, 3], "scores": [1, 6, 3], "masks": [1, 6, 8, 16]}
    assert shapes == expected
    text = {each.key: each.value for each in model.metadata_props}[backends.KEY]
    assert text == (exported / "model.json").read_text()
    assert (
        str(Path(export.__file__).parents[1]).encode() not in (exported / "model.onnx").read_bytes()
    )


def found_by_predict(model: Path, image: Path, out: Path) -> dict:
    argv = [image, "--checkpoint", model, "--out", out, "--device", "cpu", "--threads", "1"]
    predict.main([str(each) for each in argv])
    return json.loads((out / "objects.json").read_text())


def test_decode_py_alone_finds_what_predict_finds(exported, tmp_path):
    """In a Python that knows numpy, Pillow and onnxruntime only."""
    script = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image
import decode
meta = json.load(open("model.json"))
image = Image.open("example_image.png")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
scores, masks = session.run(["scores", "masks"], {"image": decode.prepare(image, meta)[0]})
found = decode.decode(scores, masks, meta, (image.height, image.width))
np.savez("found.npz", masks=[each.pop("mask") for each in found])
print(json.dumps(found))
assert not {"torch", "mobileinst", "engine", "data", "scipy"} & sys.modules.keys()
"""
    copy = shutil.copytree(exported, tmp_path / "copy")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*argv):
        return subprocess.run(
            [sys.executable, *argv], cwd=copy, env=environment, capture_output=True, text=True
        )

    done = run("-c", script)
    assert done.returncode == 0, done.stderr
    detections = json.loads(done.stdout)
    (copy / "model.json").unlink()  # the file holds its metadata
    done = run("decode.py", "example_image.png")
    assert done.stdout.endswith(
        f"{len(detections)} objects with scores above 0.054: example_image_objects.png\n"
    ), done.stderr
    for name in ("gone.jpg", "int8.csv"):
        done = run("decode.py", name)
        assert done.returncode == 2
        assert done.stderr.startswith(f"{name} cannot be read as an image")
    for path in copy.glob("*.onnx"):
        path.unlink()
    assert "no ONNX file beside this script" in run("decode.py", "example_image.png").stderr
    content = found_by_predict(
        exported / "model.onnx", exported / "example_image.png", tmp_path / "found"
    )
    expected = content["annotations"]
    result = engine.load(exported / "model.onnx")(str(exported / "example_image.png"))
    assert [rle.to_json(one) for one in result.rles] == [one["segmentation"] for one in expected]
    assert len(detections) == len(expected) >= 2
    masks = np.load(copy / "found.npz")["masks"]
    for detection, mask, one in zip(detections, masks, expected):
        assert detection["id"] == one["category_id"]
        assert detection["score"] == pytest.approx(one["score"], abs=1e-5)
        assert rle.to_json(rle.encode(mask[None])[0]) == one["segmentation"]
        left, top, width, height = one["bbox"]
        assert detection["box"] == [left, top, left + width, top + height]


def test_the_vectors_of_the_description(tmp_path):
    """DECODE.md holds inputs and outputs as json, for decoders in other languages."""
    sys.path.insert(0, str(web_page.EXPORTED))
    import decode

    sys.path.remove(str(web_page.EXPORTED))
    text = (web_page.EXPORTED / "DECODE.md").read_text(encoding="utf-8")
    vectors = json.loads(text.partition("```json\n")[2].partition("```")[0])
    meta = vectors["model"]
    for case in vectors["fit"]:
        assert decode.fit(case["original"], meta) == tuple(case["size"])
    image = Image.fromarray(np.array(vectors["prepare"]["image"], np.uint8))
    pixels, size = decode.prepare(image, meta)
    assert list(size) == vectors["prepare"]["size"]
    assert pixels[0, :, :, 0].tolist() == vectors["prepare"]["red"]
    scores, masks = (np.array(vectors["decode"][key], np.float32) for key in ("scores", "masks"))
    detections = decode.decode(scores, masks, meta, vectors["decode"]["original"])
    expected = vectors["decode"]["detections"]
    one = meta | {"config": {"max_detections": 1}}
    assert (
        len(decode.decode(scores, masks, one, vectors["decode"]["original"])) == 1 < len(detections)
    )
    assert [detection.pop("mask").astype(int).tolist() for detection in detections] == [
        one.pop("mask") for one in expected
    ]
    for detection, one in zip(detections, expected, strict=True):
        assert detection == one | {"box": tuple(one["box"]), "score": pytest.approx(one["score"])}


def test_an_exported_file_is_evaluated_like_a_checkpoint(exported, toy_coco, tmp_path):
    """On the size that both see alike, the scores are the same."""
    argv = ["--data", str(toy_coco), "--device", "cpu", "--workers", "0", "--threads", "1"]
    out = tmp_path / "results.json"
    evaluate.main(["--checkpoint", str(exported / "model.onnx"), "--out", str(out), *argv])
    results = json.loads(out.read_text())
    assert results["scores"]["images"] == 4 and results["detections"]
    with pytest.raises(InputError, match="names no data set; give one with --data"):
        evaluate.main(["--checkpoint", str(exported / "model.onnx")])
    with pytest.raises(InputError, match="has no loss for --metrics-block"):
        evaluate.main(["--checkpoint", str(exported / "model.onnx"), "--metrics-block", *argv])


def test_wrong_files_are_named_in_a_sentence(exported, tmp_path):
    import onnx

    def refused(change, match, size=None):
        content = onnx.load(exported / "model.onnx")
        meta = json.loads(content.metadata_props[0].value)
        text = change(meta)
        props = {} if text is None else {backends.KEY: text if text else json.dumps(meta)}
        onnx.helper.set_model_props(content, props)
        onnx.save(content, tmp_path / "m.onnx")
        with pytest.raises(InputError, match=match):
            backends.load(tmp_path / "m.onnx", image_size=size)

    refused(lambda meta: None, "not exported by this library")
    refused(lambda meta: "{", "metadata cannot be read")
    refused(lambda meta: meta.update(format=1) or "", "has format 1 and this version .* reads 2")
    refused(lambda meta: meta.update(height=128) or "", "metadata were changed")
    refused(lambda meta: meta["categories"].pop() and "", "metadata were changed")
    refused(lambda meta: meta.pop("sha256") and "", "metadata were changed")
    refused(lambda meta: "[]", "metadata cannot be read")
    refused(lambda meta: "" if meta else "", "its input is 64x128, which is fixed", size=64)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="broken.onnx cannot be opened by ONNX Runtime"):
        backends.load(tmp_path / "broken.onnx")
    with pytest.raises(InputError, match="gone.onnx is missing"):
        backends.load(tmp_path / "gone.onnx")


def test_a_file_with_other_detections_is_refused(
    trained, toy_coco, tmp_path, monkeypatch, exported, capsys
):
    import onnx

    def write(model, path):
        content = onnx.load(exported / "model.onnx")
        (bias,) = (each for each in content.graph.initializer if "objectness.bias" in each.name)
        bias.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.float32), bias.name))
        onnx.save(content, path)

    each = graphs.FORMATS["onnx"]
    monkeypatch.setitem(graphs.FORMATS, "onnx", each._replace(write=write))
    with pytest.raises(FailedRun, match="model.onnx in .*: detections differ"):
        run_export(trained, toy_coco / "train", tmp_path / "x")
    out = tmp_path / "x"
    assert (out / "model.onnx.failed").exists() and not (out / "model.onnx").exists()
    assert json.loads((out / "model.json").read_text())["files"] == {}
    assert "NO" in capsys.readouterr().out
    run_export(trained, toy_coco / "train", out, "--overwrite", "--allow-mismatch")
    assert (out / "model.onnx").exists()


def test_the_data_set_of_the_run_is_the_default(trained, toy_coco, tmp_path, monkeypatch, exported):
    """Its validation set gives the size and AP, its training set the ranges for int8."""
    trains = []

    def to_int8(source, target, images, threshold):
        trains.extend(images)
        shutil.copy(source, target)

    monkeypatch.setattr(quantise, "to_int8", to_int8)
    monkeypatch.setattr(export, "MIN_IMAGES", 4)  # that the set has
    monkeypatch.setattr(export, "MIN_DETECTIONS", 1)
    out = tmp_path / "x"
    argv = ["--checkpoint", str(trained), "--out", str(out), "--threads", "1", "--int8"]
    export.main(argv)
    with open(out / "parity.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["checkpoint", "model.onnx", "model.int8.onnx"]
    assert {row["images"] for row in rows} == {"4"}
    assert float(rows[0]["AP"]) > 0.02
    assert all(float(row["AP"]) == pytest.approx(float(rows[0]["AP"]), abs=1e-4) for row in rows)
    meta = json.loads((out / "model.json").read_text())
    assert (meta["height"], meta["width"]) == (64, 64)  # that all four fill best
    images = [read_rgb(path) for path in sorted((toy_coco / "train").iterdir())]
    inputs = [decode.prepare(image, meta)[0] for image in images]
    assert trains and all(any(np.array_equal(one, each) for each in inputs) for one in trains)

    def other_classes(model, path):
        other = copy.deepcopy(model)
        other.model.instance_decoder.heads.classes.weight.neg_()
        graphs.write_onnx(other, path)

    lenient = graphs.Limits(1, 0, missing=1, ap=0.01)
    wrong = graphs.FORMATS["onnx"]._replace(write=other_classes, limits=lenient)
    monkeypatch.setitem(graphs.FORMATS, "onnx", wrong)
    with pytest.raises(FailedRun, match="model.onnx in .*: detections differ"):
        export.main([*argv[:-1], "--overwrite"])


def test_wrong_requests_are_named_in_a_sentence(trained, toy_coco, tmp_path, monkeypatch):
    def refused(match, *argv):
        with pytest.raises(InputError, match=match):
            run_export(trained, toy_coco / "train", tmp_path / "x", *argv)

    refused("litert: no LiteRT converter", "--format", "litert")
    refused("'tflite' is not one of onnx, onnx-plain, pte", "--format", "onnx,tflite")
    refused("--out m.onnx: name a folder", "--out", "m.onnx")
    refused("both sides must be multiples of 64", "--size", "100x128")
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    refused("--format onnx needs onnx and onnxscript .*-r requirements-export.txt")
    refused("--format pte needs executorch: .*'executorch==1", "--format", "pte")
    monkeypatch.undo()
    for name in graphs.FORMATS["onnx"].packages:
        pytest.importorskip(name)
    refused("are too few to compare", "--count", "3")
    refused("no images", "--images", str(tmp_path))
    refused("name a folder of images", "--images", str(tmp_path / "gone"))
    argv = ["--checkpoint", str(trained), "--out", str(tmp_path / "x"), "--data", str(tmp_path)]
    with pytest.raises(InputError, match="no images to compare on.*--images"):
        export.main(argv)


def test_a_part_that_is_no_graph_is_named(capsys):
    class Part(nn.Module):
        def forward(self, x):
            return 2 * x if x.sum() > 0 else x

    model = nn.ModuleDict({"model": nn.Sequential(nn.ReLU(), Part())})
    model.forward = model["model"].forward
    with pytest.raises(InputError, match="the model cannot be exported: 1 is no graph of tensors"):
        graphs.traced(model, torch.ones(2))
    assert not capsys.readouterr().err  # torch prints the whole graph


def other_model(trained: Path, out: Path, name: str, **keywords) -> Path:
    """A checkpoint of another model with 3 classes: the trained weights that fit, or drawn ones."""
    content = checkpoint.load(trained)
    config = zoo.config_for(name, num_classes=3, **keywords)
    weights = zoo.build_from_config(config)[0].state_dict()
    for key, value in content["model"].items():
        if key in weights and weights[key].shape == value.shape:
            weights[key] = value
    for key in weights.keys() & {"query_decoder.mask_embed.layers.2.weight"}:
        weights[key] = 30 * weights[key]  # steep, or no mask of Mask2Former is stable
    content |= {"model": weights, "config": config.to_dict()}
    content["best"]["threshold"] = 0.0
    checkpoint.save(out, content)
    return out


@pytest.mark.parametrize("kind", ["onnx", "pte"])
@pytest.mark.parametrize(
    "name, keywords",
    [
        (
            "mask2former_mobilenet_v2",
            {"num_encoder_layers": 1, "mask_dim": 16, "stable_scores": True},
        ),
        ("sparseinst_mobilenet_v2", {"kernel_dim": 16}),
    ],
)
def test_other_systems_export(kind, name, keywords, trained, toy_coco, tmp_path):
    """Their untrained detections, on fewer images than are needed for a check."""
    for package in graphs.FORMATS[kind].packages:
        pytest.importorskip(package, reason=f"{package} is missing: {kind} is not tested")
    path = other_model(trained, tmp_path / "m.pt", name, width=32, num_queries=6, **keywords)
    out = run_export(path, toy_coco / "train", tmp_path / "x", "--format", kind)
    with open(out / "parity.csv", newline="") as file:
        *_, row = csv.DictReader(file)
    assert row["file"] == f"model.{kind}"
    assert row["same"] == "True" and int(row["detections"]) >= 20


def test_executorch(trained, toy_coco, tmp_path, monkeypatch):
    """XNNPACK runs all but the norms and copies of constants, also of parts on demand."""
    pytest.importorskip("executorch", reason="executorch is missing: .pte is not tested")
    path = other_model(
        trained, tmp_path / "m.pt", "mobileinst_topformer_tiny", width=32, kernel_dim=16,
        query_width=32, num_heads=2, num_queries=6, placed=True, guided=True,
    )  # fmt: skip
    names, lower = Counter(), graphs.for_xnnpack

    def counted(model):
        lowered = lower(model)
        nodes = lowered.exported_program().graph.nodes
        calls = [node for node in nodes if node.op == "call_function"]
        names.update(node.target.__name__ for node in calls if node.args[0].op != "placeholder")
        return lowered

    monkeypatch.setattr(graphs, "for_xnnpack", counted)
    out = run_export(path, toy_coco / "train", tmp_path / "x", "--format", "pte")
    assert names.pop("aten.native_layer_norm.default") == 10
    assert names.keys() <= {"executorch_call_delegate", "getitem"}
    with open(out / "parity.csv", newline="") as file:
        *_, row = csv.DictReader(file)
    assert row["file"] == "model.pte" and row["same"] == "True"
    from executorch.extension.pybindings import portable_lib

    assert portable_lib._threadpool_get_thread_count() == 1  # of --threads
    image = toy_coco / "train" / "0.png"
    found = found_by_predict(out / "model.pte", image, tmp_path / "found")
    assert found["annotations"]
    path = out / "model.pte"
    shutil.copy(path, tmp_path / "alone.pte")
    with pytest.raises(InputError, match="model.json is missing beside it"):
        backends.load(tmp_path / "alone.pte")
    assert backends.load(shutil.copy(path, out / "renamed.pte")).model
    content = path.read_bytes()
    for changed in (path, out / "renamed.pte"):
        changed.write_bytes(content + b"\0")
        with pytest.raises(InputError, match="is not a file that model.json describes; copy both"):
            backends.load(changed)
    path.write_bytes(content[:1000])
    with pytest.raises(InputError, match="model.pte cannot be opened by ExecuTorch"):
        backends.load(path)


@pytest.mark.parametrize("flips, wanted", [(1, 1e-6), (3, 5e-3)])
def test_a_cell_that_a_rounding_flips_does_not_fail_an_export(flips, wanted):
    """One of a hundred small masks may change its mean probability, three may not."""
    mask = rle.encode(np.ones((1, 4, 4), bool))[0]

    def detections(scores):
        row = {"query_idx": torch.arange(100), "labels": torch.zeros(100), "masks": [mask] * 100}
        return parity.Detections(every=[row | {"scores": torch.tensor(scores)}])

    reference = np.full(100, 0.6)
    found = reference + 1e-6
    found[:flips] += 5e-3
    compared = parity.compare(detections(reference), detections(found), 0.5, 1e-3)
    assert compared.score_difference == pytest.approx(wanted, rel=0.01)
