"""Winograd's convolution is the convolution."""

import numpy as np
import pytest
import torch
from torch import nn

from engine import backends, graphs
from mobileinst import zoo
from mobileinst.deploy import deploy
from mobileinst.layers import winograd
from mobileinst.layers.winograd import winograd_conv, with_winograd

SIZE = (64, 128)
MODELS = {
    "mobileinst_topformer_tiny": {"width": 96, "query_width": 16},
    "mask2former_mobilenet_v2": {"width": 96, "num_encoder_layers": 1, "num_layers": 1},
    "sparseinst_mobilenet_v2": {},
}


@pytest.mark.parametrize("size", [(4, 4), (8, 20), (7, 8), (6, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution(size, bias, monkeypatch):
    monkeypatch.setattr(winograd, "LEAST_PRODUCT", 0)
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, 3, padding=1, bias=bias).double()
    x = torch.randn(1, 5, *size, dtype=torch.double)
    found = winograd_conv(x, conv.weight, conv.bias)
    torch.testing.assert_close(found, conv(x), rtol=0, atol=1e-12)


def test_a_small_map_and_a_batch_are_convolved_directly(monkeypatch):
    conv = nn.Conv2d(96, 96, 3, padding=1)
    monkeypatch.setattr(torch.Tensor, "__matmul__", None)
    for shape in ((1, 96, 24, 24), (2, 96, 32, 32), (96, 32, 32)):
        x = torch.rand(shape)
        assert torch.equal(winograd_conv(x, conv.weight, conv.bias), conv(x))
    with pytest.raises(TypeError):
        winograd_conv(torch.rand(1, 96, 32, 32), conv.weight, conv.bias)


def test_convolutions_of_another_kind_stay():
    class Own(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, weight, bias) + 1

    wide, padding = (96, 96, 3), {"padding": 1}
    kinds = [nn.Conv2d(*wide, **padding, padding_mode="reflect"), Own(*wide, **padding)]
    kinds += [nn.Conv2d(*wide), nn.Conv2d(*wide, **padding, groups=96), nn.Conv2d(64, 96, 3, 1, 1)]
    assert not any(map(winograd.is_wide, kinds))
    assert winograd.is_wide(nn.Conv2d(*wide, **padding))


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_wide_convolutions_so(name, monkeypatch):
    monkeypatch.setattr(winograd, "LEAST_PRODUCT", 0)
    torch.manual_seed(0)
    model, _, postprocess = zoo.build(name, 3, num_queries=7, **MODELS[name])
    deployed = deploy(model.eval(), postprocess, SIZE).double()
    calls = []
    monkeypatch.setattr(
        winograd, "winograd_conv", lambda *each: calls.append(1) or winograd_conv(*each)
    )
    changed = with_winograd(deployed)
    image = torch.rand(1, 3, *SIZE, dtype=torch.double)
    with torch.no_grad():
        expected = deployed(image)
        assert not calls
        for one, other in zip(changed(image), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    assert calls


def test_the_exported_file_computes_them_so(tmp_path, monkeypatch):
    monkeypatch.setattr(winograd, "LEAST_PRODUCT", 0)
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    name = "mobileinst_topformer_tiny"
    model, _, postprocess = zoo.build(name, 3, num_queries=7, **MODELS[name])
    deployed = deploy(model.eval(), postprocess, SIZE)
    paths = tmp_path / "model.onnx", tmp_path / "plain.onnx"
    graphs.write_onnx(deployed, paths[0])
    graphs.write_plain_onnx(deployed, paths[1])
    operators = [{node.op_type for node in onnx.load(path).graph.node} for path in paths]
    assert "ConvTranspose" in operators[0] - operators[1]
    image = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    found, expected = (backends.onnx_session(path).run(None, {"image": image}) for path in paths)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
