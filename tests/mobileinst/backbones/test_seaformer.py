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


@torch.no_grad()
def test_fingerprint(rebuild):
    """Two numbers of each map, stored when the reference activations agreed."""
    model = rebuild(seaformer_tiny())
    maps = model(torch.linspace(-1, 1, 3 * 70 * 560).view(1, 3, 70, 560).sin())  # 18 cells at /32
    got = [(x.mean().item(), x.std().item()) for x in maps]
    assert torch.allclose(torch.tensor(got), torch.tensor(FINGERPRINT), rtol=1e-3, atol=1e-4)


FINGERPRINT = [
    (0.02533, 1.72789),
    (0.18052, 1.03141),
    (0.25008, 2.11499),
    (-0.57625, 5.73051),
    (-0.52817, 8.63748),
]


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


def test_drop_path_rates_rise_from_block_to_block_in_every_transformer():
    model = zoo.build_backbone("seaformer_large", drop_path=0.3)
    for transformer in (model.trans1, model.trans2, model.trans3):
        rates = [block.drop_path.p for block in transformer.transformer_blocks]
        assert rates == pytest.approx([0, 0.15, 0.3])


@pytest.mark.parametrize(
    "size, stride, prefixes",
    [
        ("tiny", 1, ()),
        ("tiny", 2, ("smb1.stem_block.", "smb1.layer1.")),
        ("tiny", 4, ("smb1.",)),
        ("tiny", 16, ("smb1.", "smb2.", "smb3.")),
        ("large", 16, ("smb1.", "smb2.", "smb3.", "trans1.")),
        ("large", 32, ("smb1.", "smb2.", "smb3.", "trans1.", "smb4.", "trans2.")),
        ("tiny", 64, ("smb", "trans")),
    ],
)
def test_layers_until_a_stride_hold_all_that_works_there(size, stride, prefixes):
    model = zoo.build_backbone(f"seaformer_{size}")
    held = {id(p) for layer in model.layers_until(stride) for p in layer.parameters()}
    got = [name for name, p in model.named_parameters() if id(p) in held]
    assert got == [name for name, _ in model.named_parameters() if name.startswith(prefixes)]


def test_a_custom_pyramid_states_its_own_channels_and_strides():
    stages = (((3, 1, 8, 2),), ((3, 2, 12, 2), (3, 2, 12, 2)), ((3, 2, 20, 2),))
    model = SeaFormer(
        stages, stem=6, depth=1, num_heads=2, key_dims=(5,), attn_ratio=3, mlp_ratios=(3,)
    ).eval()
    assert (model.channels, model.strides) == ((8, 12, 20), (4, 16, 32))
    assert [tuple(x.shape[1:]) for x in model(torch.zeros(1, 3, 96, 64))] == [
        (8, 24, 16),
        (12, 6, 4),
        (20, 3, 2),
    ]
    assert len(model.layers_until(16)) == 4  # the stem and the first two stages
    block = model.trans1.transformer_blocks[0]
    assert block.attn.to_v.c.weight.shape == (30, 20, 1, 1)
    assert block.mlp.fc1.c.weight.shape == (60, 20, 1, 1)


@pytest.mark.parametrize("size, width", [*zip(SIZES, (128, 128, 256, 256))])
def test_every_parameter_of_a_mobileinst_on_it_receives_a_gradient(size, width):
    model, _, _ = zoo.build(f"mobileinst_seaformer_{size}", num_classes=3, drop_path=0.0)
    assert model.mask_decoder.width == width
    assert model.mask_decoder.in_channels == model.backbone.channels[1:]
    outputs = model(torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(0)))
    terms = ("class_logits", "mask_logits", "objectness")
    sum(o[key].square().mean() for o in (outputs, *outputs["aux"]) for key in terms).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
