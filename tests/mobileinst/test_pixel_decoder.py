"""The pixel decoder against transformers', with the same weights."""

import math

import pytest
import torch

from mobileinst.layers.init import draw_parameters
from mobileinst.mask2former import pixel_decoder
from mobileinst.mask2former.pixel_decoder import PixelDecoder

CHANNELS = (6, 8, 10, 12)
SWIN = {"tiny": (96, 192, 384, 768), "base": (128, 256, 512, 1024), "large": (192, 384, 768, 1536)}


def pyramid(height: int, width: int, channels=CHANNELS, batch: int = 2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s), generator=generator, dtype=dtype)
        for c, s in zip(channels, (4, 8, 16, 32))
    ]


def flat(outputs: tuple[list[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    return [*outputs[0], outputs[1]]


def randomise(decoder: torch.nn.Module) -> None:
    """Parameters with which every part matters: places in and out of the maps, uneven weights."""
    torch.manual_seed(0)
    for name, parameter in decoder.named_parameters():
        wide = 3.0 if "sampling_offsets.bias" in name else 0.3
        torch.nn.init.normal_(parameter, std=wide if parameter.ndim < 2 else 0.1)


def of_transformers(channels, width: int, mask_dim: int, layers: int, heads: int):
    """Their module, and a function from their parameter names to the official ones."""
    pytest.importorskip("transformers")
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

    config = Mask2FormerConfig(
        feature_size=width,
        hidden_dim=width,
        mask_feature_size=mask_dim,
        encoder_layers=layers,
        num_attention_heads=heads,
        encoder_feedforward_dim=4 * width,
    )
    renames = {
        "input_projections.": "input_proj.",
        "level_embed": "transformer.level_embed",
        "encoder.layers.": "transformer.encoder.layers.",
        "self_attn_layer_norm": "norm1",
        "final_layer_norm": "norm2",
        "fc1": "linear1",
        "fc2": "linear2",
        "mask_projection": "mask_features",
        "er_1.0.": "er_1.",  # adapter_1 and layer_1
        "er_1.1.": "er_1.norm.",
    }

    def official(name: str) -> str:
        for theirs, ours in renames.items():
            name = name.replace(theirs, ours)
        return name

    return Mask2FormerPixelDecoder(config, list(channels)), official


@pytest.mark.parametrize(
    "channels, width, layers, height, breadth",
    [
        (CHANNELS, 32, 2, 75, 141),
        (CHANNELS, 64, 6, 33, 65),
        (SWIN["tiny"], 256, 6, 64, 96),
    ],
)
def test_agrees_with_transformers(channels, width, layers, height, breadth, monkeypatch):
    monkeypatch.setattr(pixel_decoder, "PART", 50)
    theirs, official = of_transformers(channels, width, 24, layers, 8)
    randomise(theirs.double())
    ours = PixelDecoder(channels, width, 24, layers, ffn_width=4 * width).double()
    ours.load_state_dict({official(name): value for name, value in theirs.state_dict().items()})

    maps = [x.double().requires_grad_() for x in pyramid(height, breadth, channels)]
    want = theirs(maps)
    want = [*want.multi_scale_features, want.mask_features]
    got = flat(ours(maps))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    # Gradients in float64 only: in float32 some places fall into the neighbouring square of cells,
    # which has other slopes.
    cotangents = [torch.randn_like(x) for x in want]
    names = [*range(4), *(official(name) for name, _ in theirs.named_parameters())]
    want_grads = torch.autograd.grad(want, [*maps, *theirs.parameters()], cotangents)
    want_grads = dict(zip(names, want_grads, strict=True))
    names = [*range(4), *(name for name, _ in ours.named_parameters())]
    got_grads = torch.autograd.grad(got, [*maps, *ours.parameters()], cotangents)
    largest = max(gradient.norm() for gradient in want_grads.values())
    for name, gradient in zip(names, got_grads, strict=True):
        # A bias before the norm of a single channel does nothing; its gradient is rounding alone.
        scale = want_grads[name].norm() + 1e-9 * largest
        assert (gradient - want_grads[name]).norm() < 1e-4 * scale, name

    for a, b in zip(flat(ours.float()([x.float() for x in maps])), want):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "size, millions", [("tiny", 5.421504), ("base", 5.544384), ("large", 5.790144)]
)
def test_parameters_are_as_many_as_published(size, millions):
    with torch.device("meta"):
        decoder = PixelDecoder(SWIN[size])
    assert sum(p.numel() for p in decoder.parameters()) == round(1e6 * millions)


def test_half_precision_stays_outside():
    decoder = PixelDecoder(CHANNELS, 16, mask_dim=8, num_layers=1, num_heads=2)
    maps = [x.bfloat16() for x in pyramid(64, 64)]
    want = decoder([x.float() for x in maps])[1]
    with torch.autocast("cpu", torch.bfloat16):
        got = decoder(maps)[1]
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def test_heads_begin_with_eight_directions_and_even_weights():
    decoder = PixelDecoder(CHANNELS, 64, num_layers=1)
    randomise(decoder)
    draw_parameters(decoder, 0)
    attention = decoder.transformer.encoder["layers"][0].self_attn
    rays = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    want = [[[(k * x, k * y) for k in (1, 2, 3, 4)]] * 3 for x, y in rays]
    bias = attention.sampling_offsets.bias.view(8, 3, 4, 2)
    torch.testing.assert_close(bias, torch.tensor(want).float(), rtol=0, atol=1e-5)
    for zero in (attention.sampling_offsets.weight, *attention.attention_weights.parameters()):
        assert not zero.any()


def test_the_other_first_values():
    decoder = PixelDecoder(SWIN["tiny"], num_layers=1)
    randomise(decoder)
    draw_parameters(decoder, 0)
    state = decoder.state_dict()
    layer = "transformer.encoder.layers.0."
    bounds = {  # of uniform draws
        "input_proj.0.0": math.sqrt(6 / (768 + 256)),
        layer + "self_attn.value_proj": math.sqrt(6 / 512),
        layer + "self_attn.output_proj": math.sqrt(6 / 512),
        layer + "linear1": math.sqrt(6 / (256 + 1024)),
        layer + "linear2": math.sqrt(6 / (256 + 1024)),
        "adapter_1": math.sqrt(3 / 96),
        "layer_1": math.sqrt(3 / (9 * 256)),
        "mask_features": math.sqrt(3 / 256),
    }
    for name, bound in bounds.items():
        assert 0.98 * bound < state[name + ".weight"].abs().max() <= bound, name
    for name in ("input_proj.0.0", layer + "self_attn.value_proj", "mask_features"):
        assert not state[name + ".bias"].any()
    for name in ("input_proj.0.1", layer + "norm1", layer + "norm2", "adapter_1.norm"):
        assert (state[name + ".weight"] == 1).all() and not state[name + ".bias"].any()
    assert 0.9 < state["transformer.level_embed"].std() < 1.1


@pytest.mark.parametrize("width, heads", [(20, 8), (30, 6)])
def test_a_width_that_does_not_divide_is_refused(width, heads):
    with pytest.raises(ValueError, match=f"{width} .* {heads} heads"):
        PixelDecoder(CHANNELS, width, num_heads=heads)
