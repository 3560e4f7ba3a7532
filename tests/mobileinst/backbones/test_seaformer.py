"""SeaFormer against the reference activations, the published sizes and NumPy's interpolation."""

import numpy as np
import pytest
import torch

from mobileinst import zoo
from mobileinst.backbones.seaformer import PositionEmbedding, SeaFormer, seaformer_tiny

SIZES = ("tiny", "small", "base", "large")


def outputs_of(model: SeaFormer, names: list[str], images: torch.Tensor) -> list[torch.Tensor]:
    """What the named parts of `model` give on the way through `images`."""
    seen = {}
    for name in names:
        part = model.get_submodule(name)
        part.register_forward_hook(lambda _, x, y, name=name: seen.update({name: y}))
    model(images)
    return [seen[name] for name in names]


@torch.no_grad()
def test_agrees_with_the_official_code(reference, official_input, rebuild, sampled_errors):
    """In float64, so that the only rounding is that of the official code in float32."""
    case, images = official_input
    model = rebuild(seaformer_tiny()).double()
    stages = [f"smb{i}" for i in range(1, 6)]
    maps = dict(zip(stages, outputs_of(model, stages, images), strict=True))
    _, x3, x4, x5, x6 = model(images)
    errors = sampled_errors(
        maps | {"X3": x3, "X5": x5, "X6": x6}, reference("seaformer_tiny")["maps"][case]
    )
    assert max(errors.values()) < 1e-5
    assert torch.equal(x4, maps["smb3"])


def test_names_and_shapes_are_the_official_ones(reference):
    ours = {name: [*value.shape] for name, value in seaformer_tiny().state_dict().items()}
    assert ours == reference("seaformer_tiny")["shapes"]


@pytest.mark.parametrize(
    "size, parameters, entries, giga",
    [
        ("tiny", 1_620_096, 426, (0.467, 0.987)),
        ("small", 3_912_656, 558, (0.877, 1.855)),
        ("base", 8_485_664, 690, (1.532, 3.243)),
        ("large", 13_725_504, 762, (5.905, 12.468)),
    ],
)
def test_parameters_and_multiply_adds(size, parameters, entries, giga, giga_multiply_adds):
    with torch.device("meta"):
        model = zoo.build_backbone(f"seaformer_{size}").eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries
    got = [giga_multiply_adds(model, *side) for side in ((512, 512), (640, 864))]
    assert got == pytest.approx(giga, abs=6e-4)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_transformers_stand_in_the_last_stages_and_feed_the_next(size):
    """X4, at 1/16, is that of smb3 but for large, whose first transformer stands behind smb3."""
    model = zoo.build_backbone(f"seaformer_{size}").eval()
    parts = {
        "smb1": "smb1",
        "smb2": "smb2",
        "smb3": "trans1" if size == "large" else "smb3",
        "smb4": "trans2" if size == "large" else "trans1",
        "smb5": "trans3" if size == "large" else "trans2",
    }
    inputs = []
    for stage in parts:
        model.get_submodule(stage).register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    images = torch.rand(1, 3, 64, 96)
    ends = outputs_of(model, list(parts.values()), images)
    assert all(x is y for x, y in zip(inputs, [images, *ends[:-1]], strict=True))
    inputs.clear()
    assert all(torch.equal(x, y) for x, y in zip(model(images), ends, strict=True))


@pytest.mark.parametrize("count", [1, 2, 7, 16, 23, 40])
@torch.no_grad()
def test_positions_are_interpolated_between_the_centres_of_16_cells(count, rebuild):
    module = rebuild(PositionEmbedding(3))
    x = torch.randn(2, 3, count)
    places = (np.arange(count) + 0.5) * 16 / count - 0.5  # beyond the outer centres they stay
    codes = [np.interp(places, np.arange(16), row) for row in module.pos_embed[0].numpy()]
    assert np.allclose(module(x) - x, np.stack(codes), atol=1e-6)
