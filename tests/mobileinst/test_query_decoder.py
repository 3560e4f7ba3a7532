"""Edge cases of the query decoder; test_transformers.py compares its numbers."""

import math

import pytest
import torch
from torch import nn

from mobileinst.layers.init import draw_parameters
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
