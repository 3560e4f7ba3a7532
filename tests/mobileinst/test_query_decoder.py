"""The query decoder against a plain restatement on torch's own attention, and its edge cases."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mobileinst.layers.conv import apply_kernels
from mobileinst.layers.init import draw_parameters
from mobileinst.layers.position import detr_position
from mobileinst.mask2former.query_decoder import QueryDecoder, attention_bias

GRIDS = ((2, 3), (4, 5), (7, 9))  # of the maps, coarse to fine
FULL = (14, 18)  # of the mask features
SIZES = dict(
    in_channels=16, mask_dim=8, num_classes=3, num_queries=5, width=16, num_heads=2, ffn_width=12
)


def build(seed=0, **overrides) -> QueryDecoder:
    decoder = QueryDecoder(**SIZES | {"num_layers": 4} | overrides)
    draw_parameters(decoder, seed)
    for name, parameter in decoder.named_parameters():
        if name.endswith(("bias", "norm.weight")):  # else zero or one, which would hide mistakes
            nn.init.normal_(parameter, 0.5, 0.3, torch.Generator().manual_seed(len(name)))
    return decoder.double()


def features(batch=2, channels=16, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [draw(batch, channels, *grid) for grid in GRIDS], draw(batch, 8, *FULL)


def plain_position(height, width, channels):
    """Cell by cell: [channels,height,width]."""
    code = torch.zeros(channels, height, width, dtype=torch.float64)
    half = channels // 2
    for row in range(height):
        for column in range(width):
            for start, at, count in ((0, row, height), (half, column, width)):
                for i in range(half):
                    angle = 2 * math.pi * (at + 1) / (count + 1e-6)
                    angle /= 10000 ** (2 * (i // 2) / half)
                    wave = math.sin if i % 2 == 0 else math.cos
                    code[start + i, row, column] = wave(angle)
    return code


def torch_attention(state, name, width, heads):
    attention = nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
    attention.load_state_dict(
        {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(name + ".")}
    )
    return attention


def restated(decoder, maps, mask_features, width=16, heads=2, layers=4):
    """Every prediction, one after the other, by the rules of the paper."""
    state = decoder.state_dict()

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"])

    def predict(x):
        x = norm(x, "decoder_norm")
        kernels = linear(x, "mask_embed.layers.0").relu()
        kernels = linear(linear(kernels, "mask_embed.layers.1").relu(), "mask_embed.layers.2")
        masks = torch.einsum("bqd,bdhw->bqhw", kernels, mask_features)
        return {"class_logits": linear(x, "class_embed"), "mask_logits": masks, "queries": x}

    x = state["query_feat.weight"].expand(len(mask_features), -1, -1)
    place = state["query_embed.weight"]
    predictions = [predict(x)]
    for i in range(layers):
        level = i % 3
        values = (maps[level] + state["level_embed.weight"][level][:, None, None]).flatten(2).mT
        keys = values + plain_position(*GRIDS[level], width).flatten(1).mT
        masks = F.interpolate(
            predictions[-1]["mask_logits"], GRIDS[level], mode="bilinear", align_corners=False
        )
        hidden = masks.flatten(2).sigmoid() < 0.5
        hidden[hidden.all(-1)] = False
        name = f"transformer_cross_attention_layers.{i}"
        attention = torch_attention(state, f"{name}.multihead_attn", width, heads)
        hidden = hidden.repeat_interleave(heads, 0)
        x = norm(x + attention(x + place, keys, values, attn_mask=hidden)[0], f"{name}.norm")
        name = f"transformer_self_attention_layers.{i}"
        attention = torch_attention(state, f"{name}.self_attn", width, heads)
        x = norm(x + attention(x + place, x + place, x)[0], f"{name}.norm")
        name = f"transformer_ffn_layers.{i}"
        hidden = linear(x, f"{name}.linear1").relu()
        x = norm(x + linear(hidden, f"{name}.linear2"), f"{name}.norm")
        predictions.append(predict(x))
    return predictions


@torch.no_grad()
def test_every_prediction_agrees_with_a_plain_restatement():
    decoder, (maps, mask_features) = build(), features()
    outputs = decoder.train()(maps, mask_features)
    expected = restated(decoder, maps, mask_features)
    shares = [(each["mask_logits"] < 0).double().mean().item() for each in expected]
    assert 0.1 < min(shares) and max(shares) < 0.9  # the attention is masked, and not everywhere
    assert len(outputs["aux"]) == 4
    for got, want in zip((*outputs["aux"], outputs), expected, strict=True):
        got["mask_logits"] = apply_kernels(got["kernels"], mask_features)
        for key, value in want.items():
            torch.testing.assert_close(got[key], value, rtol=0, atol=2e-6)  # float32 positions


@pytest.mark.parametrize("grid", [(1, 1), (3, 5)])
def test_positions_agree_with_a_plain_restatement(grid):
    want = plain_position(*grid, 16).flatten(1).mT.float()
    torch.testing.assert_close(detr_position(*grid, 16), want, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        detr_position(2, 2, 6)


@torch.no_grad()
def test_evaluation_gives_the_same_numbers_and_no_auxiliary_outputs():
    decoder, inputs = build(), features()
    train, evaluation = decoder.train()(*inputs), decoder.eval()(*inputs)
    assert evaluation.pop("aux") == []
    train.pop("aux")
    assert train.keys() == evaluation.keys()
    assert all(torch.equal(train[key], evaluation[key]) for key in train)


def test_a_query_whose_whole_row_is_hidden_sees_everything():
    kernels = torch.eye(3)[None]
    small = torch.tensor([[[1.0, -1, 0, -2], [-1, -1, -3, -1], [2, 3, 1, 1]]], requires_grad=True)
    bias = attention_bias(kernels, small)
    inf = math.inf
    assert bias.tolist() == [[[[0, -inf, 0, -inf], [0, 0, 0, 0], [0, 0, 0, 0]]]]
    assert not bias.requires_grad


@torch.no_grad()
def test_queries_can_be_handed_in():
    decoder, inputs = build().eval(), features()
    learned = decoder.query_feat.weight.expand(2, -1, -1)
    assert torch.equal(decoder(*inputs, learned)["queries"], decoder(*inputs)["queries"])
    other = decoder(*inputs, decoder(*inputs)["queries"])["queries"]
    assert not torch.allclose(other, decoder(*inputs)["queries"])


@pytest.mark.parametrize("change", [{}, {"in_channels": 20}, {"num_queries": 1}])
def test_every_parameter_receives_a_gradient(change):
    decoder = build(**change).train()
    outputs = decoder(*features(channels=change.get("in_channels", 16)))
    everything = (outputs, *outputs["aux"])
    sum((o["class_logits"] ** 2).mean() + (o["kernels"] ** 2).mean() for o in everything).backward()
    zero = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert zero == []


@torch.no_grad()
def test_the_start_is_that_of_the_paper():
    decoder = QueryDecoder(256, 256, 80)
    draw_parameters(decoder, 0)
    for name in ("query_feat", "query_embed", "level_embed"):
        assert decoder.get_submodule(name).weight.std().item() == pytest.approx(1, abs=0.05)
    attention = decoder.transformer_self_attention_layers[3].self_attn
    ffn = decoder.transformer_ffn_layers[8]
    for matrix in (attention.in_proj_weight, attention.out_proj.weight, ffn.linear1.weight):
        bound = math.sqrt(6 / sum(matrix.shape))  # Xavier
        assert 0.99 * bound < matrix.abs().max() <= bound
    assert not attention.in_proj_bias.any() and not attention.out_proj.bias.any()
    assert 0.9 / 16 < decoder.class_embed.weight.abs().max() <= 1 / 16  # torch's own


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="16 is not a multiple of 3 heads"):
        build(num_heads=3)
