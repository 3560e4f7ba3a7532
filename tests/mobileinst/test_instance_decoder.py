"""The instance decoder, its attention against torch's own, its positions against the formula."""

import math

import pytest
import torch
from torch import nn

from mobileinst.layers.attention import MultiHeadAttention
from mobileinst.layers.conv import apply_kernels, average_over
from mobileinst.layers.init import draw_parameters
from mobileinst.layers.position import cell_centres, sine_position
from mobileinst.mobile.instance_decoder import (
    DecoderLayer,
    InstanceDecoder,
    Places,
    blob_maps,
)


def build(**overrides) -> InstanceDecoder:
    options = {"kernel_dim": 6, "num_queries": 9, "width": 16, "num_heads": 4} | overrides
    decoder = InstanceDecoder(12, 10, num_classes=5, **options)
    draw_parameters(decoder, 0)
    return decoder


def maps(height: int = 128, width: int = 192) -> tuple[torch.Tensor, ...]:
    """X6 [2,12,·,·] at 1/64, X_mask [2,10,·,·] and the pixel features [2,6,·,·] at 1/8."""
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(2, c, -(-height // s), -(-width // s), generator=generator)
        for c, s in ((12, 64), (10, 8), (6, 8))
    )


def torch_attention(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    """torch's attention with the same weights."""
    width = ours.proj.in_features
    theirs = nn.MultiheadAttention(width, ours.num_heads, batch_first=True)
    projections = (ours.to_q, ours.to_k, ours.to_v)
    biases = (ours.to_q.bias, torch.zeros(width), ours.to_v.bias)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat(biases))
        theirs.out_proj.weight.copy_(ours.proj.weight)
        theirs.out_proj.bias.copy_(ours.proj.bias)
    return theirs


def randomise_biases(module: nn.Module) -> nn.Module:
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return module


@torch.no_grad()
def test_attention_agrees_with_torch():
    torch.manual_seed(0)
    ours = randomise_biases(MultiHeadAttention(16, 4))
    q, k, v = torch.randn(2, 3, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    want, _ = torch_attention(ours)(q, k, v)
    assert torch.allclose(ours(q, k, v), want, atol=1e-5)


@pytest.mark.parametrize("self_attention", [True, False])
@torch.no_grad()
def test_layer_against_a_plain_restatement(self_attention):
    """Pre-norm; positions on queries and keys but not on values; self-attention second."""
    torch.manual_seed(0)
    layer = randomise_biases(DecoderLayer(16, 4, self_attention))
    x, position = torch.randn(2, 5, 16), torch.randn(5, 16)
    memory, memory_position = torch.randn(2, 6, 16), torch.randn(6, 16)
    cross = torch_attention(layer.cross_attention)
    want = x + cross(layer.cross_norm(x) + position, memory + memory_position, memory)[0]
    if self_attention:
        y = layer.self_norm(want)
        want = want + torch_attention(layer.self_attention)(y + position, y + position, y)[0]
    assert torch.allclose(layer(x, position, memory, memory_position), want, atol=1e-5)


@pytest.mark.parametrize("height, width", [(1, 1), (10, 14), (3, 5)])
def test_sine_position_is_the_formula(height, width):
    got = sine_position(height, width, 12)
    frequencies = [math.pi / 2 * 32 ** (i / 2) for i in range(3)]
    want = []
    for row in range(height):
        for column in range(width):
            y, x = (2 * row + 1) / height - 1, (2 * column + 1) / width - 1
            code = [f(a * w) for a in (y, x) for f in (math.sin, math.cos) for w in frequencies]
            want.append(code)
    assert torch.allclose(got, torch.tensor(want), atol=1e-4)


@pytest.mark.parametrize("height, width", [(128, 192), (200, 333), (640, 864), (64, 64)])
@pytest.mark.parametrize("kv_stride", [64, 32, 16])
@torch.no_grad()
def test_the_local_memory_is_the_max_pooled_mask_map(height, width, kv_stride):
    decoder = build(kv_stride=kv_stride).eval()
    seen = {}
    decoder.local_memory.register_forward_pre_hook(lambda _, args: seen.update(local=args[0]))
    decoder.global_memory.register_forward_pre_hook(lambda _, args: seen.update(whole=args[0]))
    global_map, mask_features, pixel_features = maps(height, width)
    decoder(global_map, mask_features, pixel_features)
    rows, columns = -(-height // kv_stride), -(-width // kv_stride)
    assert seen["local"].shape[2:] == (rows, columns)
    assert seen["whole"] is global_map
    step = kv_stride // 8
    for row, column in ((0, 0), (rows - 1, columns - 1)):
        window = mask_features[
            :, :, row * step : (row + 1) * step, column * step : (column + 1) * step
        ]
        assert torch.equal(seen["local"][:, :, row, column], window.amax((2, 3)))


@torch.no_grad()
def test_queries_of_another_frame_skip_the_global_layer():
    decoder = build().eval()
    global_map, mask_features, pixel_features = maps()
    usual = decoder(global_map, mask_features, pixel_features)
    decoder.global_layer = None  # must not be called
    again = decoder(global_map, mask_features, pixel_features, usual["global_queries"])
    assert all(torch.equal(again[key], usual[key]) for key in usual if key != "aux")
    other = decoder(global_map, mask_features, pixel_features, usual["global_queries"].flip(1))
    assert not torch.allclose(other["class_logits"], usual["class_logits"])


@torch.no_grad()
def test_every_image_starts_near_the_class_prior():
    outputs = build(width=128, num_heads=8, num_queries=50).eval()(*maps())
    assert outputs["class_logits"].sigmoid().mean().item() == pytest.approx(0.01, rel=0.2)


@torch.no_grad()
def test_a_guided_query_reads_the_places_of_its_first_mask_alone():
    """What lies where a query's first mask is zero does not reach it; unguided, it does."""
    global_map, mask_features, pixel_features = maps()
    changed = mask_features.clone()
    changed[..., 12:] += 5.0  # the right half
    for guided in (True, False):
        decoder = build(guided=guided, kv_stride=16, self_attention=False).eval()
        for module in (decoder.heads.kernel[-1],):  # kernels that see the first channel only
            module.weight.zero_()
            module.bias.copy_(torch.tensor([50.0, 0, 0, 0, 0, 0]))
        places = torch.full_like(pixel_features, -1.0)
        places[..., :12] = 1.0  # every first mask is the left half
        before = decoder(global_map, mask_features, places)["queries"]
        after = decoder(global_map, changed, places)["queries"]
        moved = (before - after).abs().max().item()
        assert moved < 0.1 if guided else moved > 0.1, (guided, moved)


@torch.no_grad()
def test_the_guide_is_the_log_probability_of_the_first_mask():
    decoder = build(guided=True, kv_stride=16).eval()
    _, _, pixel_features = maps(64, 64)
    kernels = torch.randn(2, 9, 6)
    logits = torch.einsum("bqd,bdhw->bqhw", kernels, pixel_features)
    pooled = torch.nn.functional.max_pool2d(logits, 2).sigmoid().clamp(min=1e-3).log()
    guide = decoder.guide(kernels, pixel_features)
    torch.testing.assert_close(guide, pooled.flatten(2)[:, None], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("queries, grid", [(9, (3, 3)), (6, (2, 3)), (7, (1, 7)), (1, (1, 1))])
@torch.no_grad()
def test_a_placed_query_starts_with_a_blob_around_its_cell(queries, grid):
    places = Places(10, 16, queries)
    draw_parameters(places, 0)
    coefficients = places.blobs(torch.randn(2, queries, 16))  # [2,Q,5]
    logits = apply_kernels(coefficients, blob_maps(8, 12).expand(2, -1, -1, -1))  # [2,Q,8,12]
    rows, columns = (cell_centres(n) for n in grid)
    y, x = (cell_centres(n) for n in (8, 12))
    for query in range(queries):
        cy, cx = rows[query // grid[1]], columns[query % grid[1]]
        want = 0.5 - 2 * ((y - cy)[:, None] ** 2 + (x - cx)[None] ** 2)
        assert torch.allclose(logits[1, query], want, atol=1e-5)


@torch.no_grad()
def test_a_blob_moves_and_stretches_around_its_cell():
    places = Places(10, 16, 6)
    draw_parameters(places, 0)
    c, bx, by, ex, ey = 0.3, 1.5, -0.7, 4.0, 0.5
    places.blob.bias.copy_(torch.tensor([c, bx, by, ex, ey]))
    logits = apply_kernels(places.blobs(torch.zeros(1, 6, 16)), blob_maps(5, 9))[0, 4]  # row 1 of 2
    dy, dx = (cell_centres(5) - 0.5)[:, None], cell_centres(9)[None]
    want = c + bx * dx + by * dy - ex * dx**2 - ey * dy**2
    assert torch.allclose(logits, want, atol=1e-5)


@torch.no_grad()
def test_a_placed_query_starts_from_its_own_cell():
    places = Places(10, 16, 6)
    draw_parameters(places, 0)
    x = torch.randn(1, 10, 8, 12)
    content, positions = places(x)
    cell = places.memory.norm(places.memory.proj(x[0, :, 4:, 4:8].mean((1, 2))))  # row 1, column 1
    assert torch.allclose(content[0, 4], cell, atol=1e-5)
    assert torch.equal(positions, sine_position(2, 3, 16))
    changed = x.clone()
    changed[..., 4:, 4:8] += torch.randn(10, 4, 4)
    differs = (places(changed)[0] - content).abs().amax(2)[0] > 1e-6
    assert differs.tolist() == [False] * 4 + [True, False]


@pytest.mark.parametrize("size, grid", [((8, 12), (2, 3)), ((7, 5), (3, 4)), ((2, 3), (5, 7))])
def test_averages_are_those_of_adaptive_pooling(size, grid):
    x = torch.randn(2, 4, *size)
    want = nn.functional.adaptive_avg_pool2d(x, grid)
    assert torch.allclose(average_over(x, grid), want, atol=1e-6)
