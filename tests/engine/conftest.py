"""Fixtures of the engine's tests."""

from pathlib import Path

import pytest

from engine import checkpoint, export, graphs, web_page


@pytest.fixture(scope="session")
def trained(toy_run, tmp_path_factory) -> Path:
    """A checkpoint with a threshold below which it has twenty detections."""
    path = tmp_path_factory.mktemp("trained") / "run" / "best.pt"
    path.parent.mkdir()
    content = checkpoint.load(toy_run / "best.pt")
    content["best"]["threshold"] = 0.0543
    checkpoint.save(path, content)
    return path


@pytest.fixture(scope="session")
def runtime(tmp_path_factory) -> Path:
    """A stand-in for the npm package of ONNX Runtime."""
    folder = tmp_path_factory.mktemp("runtime")
    (folder / "dist").mkdir()
    for name in web_page.RUNTIME:
        (folder / name).write_text("a stand-in")
    return folder


@pytest.fixture(scope="session")
def exported(trained, toy_coco, runtime, tmp_path_factory) -> Path:
    """An export with all files that can be made from ONNX. Not to be changed."""
    for name in graphs.FORMATS["onnx"].packages:
        pytest.importorskip(name, reason=f"{name}, of requirements-export.txt, is missing")
    out = tmp_path_factory.mktemp("exports") / "x"
    argv = ["--checkpoint", trained, "--images", toy_coco / "train", "--out", out]
    argv += ["--size", "64x128", "--threads", "1", "--fp16", "--int8", "--allow-mismatch"]
    export.main([str(each) for each in [*argv, "--web", "--web-runtime", runtime]])
    return out
