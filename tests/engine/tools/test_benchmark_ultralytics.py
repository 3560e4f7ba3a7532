"""The comparison with ultralytics, with a small stand-in for it in a process of its own."""

import sys

import pytest
import torch

from data.errors import InputError
from engine.files import FailedRun
from engine.tools import benchmark_ultralytics as benchmark
from mobileinst import zoo

LITE = "mobileinst_topformer_tiny_lite"
STAND_IN = """
import json, torch
from types import SimpleNamespace

print("printed while it is imported")

class Network(torch.nn.Conv2d):
    def fuse(self):
        return self

class YOLO:
    def __init__(self, name):
        if name == "unknown.yaml":
            raise FileNotFoundError("no such model")
        print("printed", name)
        self.model, self.callbacks = Network(3, 4, 3), {}

    def predict(self, image, imgsz, max_det, retina_masks, **others):
        masks = torch.zeros(max_det, imgsz, imgsz)
        return [SimpleNamespace(masks=SimpleNamespace(data=masks))]

    def add_callback(self, name, call):
        self.callbacks[name] = call

    def train(self, data, epochs, batch, **others):
        content = json.load(open(data))
        assert len(content["names"]) == 80
        for _ in range(epochs):
            self.callbacks["on_train_batch_start"](self)
            self.callbacks["on_train_batch_end"](self)
"""


@pytest.fixture
def argv(tmp_path, monkeypatch):
    package = tmp_path / "ultralytics"
    package.mkdir()
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = f"--peer-python {sys.executable} --rounds 2 --image-size 64"
    words += f" --train-size 64 --batch-size 2 --models small-pretrained:{LITE} --rows"
    return words.split()


def test_rows_have_a_ratio_to_the_peer(argv, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "PHOTO", (128, 96))
    benchmark.main([*argv, "files", "eager", "training"])
    lines = capsys.readouterr().out.splitlines()
    titles = ["file -> 10 masks, 500 x 375", "file -> 10 masks, 128 x 96", "eager", "training step"]
    for title in titles:
        (start,) = (number for number, line in enumerate(lines) if line.startswith(title))
        peer, ours = (line.split() for line in lines[start + 2 : start + 4])
        assert peer[0] == "yolo26n-seg" and float(peer[-1]) == 1
        assert ours[0] == f"small-pretrained:{LITE}" and float(ours[-1]) > 0


def test_exported_networks_are_those_of_the_models(argv, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = benchmark.build(f"small-pretrained:{LITE}")[0]
    path = benchmark.to_onnx(benchmark.Scores(model), 64, tmp_path / "model.onnx")
    image = torch.rand(1, 3, 64, 64)
    found = onnxruntime.InferenceSession(path).run(None, {"image": image.numpy()})
    with torch.no_grad():
        wanted = benchmark.Scores(model)(image)
    for each, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(other), each, rtol=1e-3, atol=1e-4)


def test_a_peer_that_fails_is_one_sentence(argv):
    with pytest.raises(FailedRun, match="peer's forward ended: .*no such model"):
        benchmark.main([*argv, "eager", "--peer-model", "unknown"])
    with pytest.raises(InputError, match="--peer-python .*none: cannot be started"):
        benchmark.main([*argv, "eager", "--peer-python", "none"])
    with pytest.raises(InputError, match="--models yolo: no model is called 'yolo'"):
        benchmark.main([*argv, "eager", "--models", "yolo"])


def test_the_lite_model_trains_with_a_recipe_and_costs_less():
    """With placed queries and several matches of the auxiliary output."""
    step = benchmark.training_step(f"small-pretrained:{LITE}", 64, 2)
    step()
    usual, lite = (
        sum(parameter.numel() for parameter in benchmark.build(f"small:{name}")[0].parameters())
        for name in (benchmark.TINY, LITE)
    )
    assert lite < 0.92 * usual
    assert zoo.build(LITE, 3)[0].mask_decoder.kernel_dim == 64
