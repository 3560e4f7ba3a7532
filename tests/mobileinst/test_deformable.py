"""Deformable attention against plain loops and against torch's own bilinear sampling."""

import math

import torch
import torch.nn.functional as F

from mobileinst.mask2former.deformable import deformable_attention

SIZES = [(2, 3), (1, 1), (6, 4)]


def attention_inputs(dtype=torch.float64, queries: int = 5, heads: int = 2, points: int = 3):
    """values, places (inside, outside, far away, on whole numbers and on borders) and weights."""
    torch.manual_seed(0)
    values = torch.randn(2, sum(h * w for h, w in SIZES), heads, 4, dtype=dtype)
    shape = (2, queries, 2, heads, len(SIZES), points)
    places = 3 * torch.randn(shape, dtype=dtype) + 1
    places[:, 1] = places[:, 1].round()
    places[:, 2, :, :, :, 0] *= 1000
    weights = torch.randn(shape[:2] + shape[3:], dtype=dtype)
    return values, places, weights


def loops(values, places, weights):
    """The definition, a cell at a time."""
    out = values.new_zeros(*weights.shape[:3], values.shape[3])
    for b, n, m, level, p in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        x, y = places[b, n, :, m, level, p].tolist()
        height, width = SIZES[level]
        start = sum(h * w for h, w in SIZES[:level])
        for row in range(height):
            for column in range(width):
                share = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                cell = values[b, start + row * width + column, m]
                out[b, n, m] += weights[b, n, m, level, p] * share * cell
    return out.flatten(2)


def by_grid_sample(values, sizes, places, weights):
    """A level at a time by torch's own bilinear sampling."""
    batch, _, heads, _ = values.shape
    total = 0
    for i, (height, width) in enumerate(sizes):
        level = values.split([h * w for h, w in sizes], 1)[i]
        level = level.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))
        size = places.new_tensor([width, height])
        grid = (places[:, :, :, :, i].permute(0, 3, 1, 4, 2) + 0.5) / size * 2 - 1
        samples = F.grid_sample(level, grid.flatten(0, 1), align_corners=False)  # [B·heads,d,N,P]
        weighted = samples * weights[:, :, :, i].transpose(1, 2).flatten(0, 1)[:, None]
        total = total + weighted.sum(3)
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def test_sums_are_those_of_the_definition():
    values, places, weights = attention_inputs()
    got = deformable_attention(values, SIZES, places, weights)
    torch.testing.assert_close(got, loops(values, places, weights), rtol=0, atol=1e-12)


def test_gradients_are_those_of_grid_sample():
    values, places, weights = attention_inputs()
    got = deformable_attention(values, SIZES, places, weights)
    want = by_grid_sample(values, SIZES, places, weights)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    # The rounding of grid_sample's own coordinates may move a place from a whole number to the
    # square of cells on its left, which has other slopes.
    inputs = [x.requires_grad_() for x in (values, places + 1e-9, weights)]
    cotangent = torch.randn_like(got)
    got = torch.autograd.grad(deformable_attention(values, SIZES, *inputs[1:]), inputs, cotangent)
    want = torch.autograd.grad(by_grid_sample(values, SIZES, *inputs[1:]), inputs, cotangent)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_place_that_is_no_number_spoils_its_own_sum_only():
    values, places, weights = attention_inputs(torch.float32)
    want = deformable_attention(values, SIZES, places, weights)
    places[0, 0, 0, 0, 0, 0] = math.nan
    places[1, 2, 1, 0, 2, 1] = math.inf
    got = deformable_attention(values, SIZES, places, weights)
    spoilt = torch.zeros_like(got, dtype=torch.bool).unflatten(2, (2, -1))
    spoilt[0, 0, 0] = spoilt[1, 2, 0] = True
    spoilt = spoilt.flatten(2)
    assert got[spoilt].isnan().all()
    assert torch.equal(got[~spoilt], want[~spoilt])
