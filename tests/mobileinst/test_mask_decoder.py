"""The mask decoder against a plain re-statement of the paper's figure."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mobileinst.layers.position import coordinate_maps
from mobileinst.mobile.mask_decoder import CoordinateConv, FinePixels, MaskDecoder

CHANNELS = (6, 8, 10, 12)


def pyramid(height: int, width: int, batch: int = 2) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(batch, c, -(-height // s), -(-width // s), generator=generator)
        for c, s in zip(CHANNELS, (8, 16, 32, 64), strict=True)
    ]
    return maps[:3], maps[3]


def randomise_norms(module: nn.Module) -> nn.Module:
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.normal_(child.running_mean)
            nn.init.uniform_(child.running_var, 0.5, 1.5)
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.normal_(child.bias)
    return module.eval()


@pytest.mark.parametrize("coordinates", [True, False])
@pytest.mark.parametrize("height, width", [(128, 192), (200, 333)])
@torch.no_grad()
def test_agrees_with_a_plain_restatement(height, width, coordinates):
    torch.manual_seed(0)
    decoder = randomise_norms(MaskDecoder(CHANNELS, 16, kernel_dim=5, coordinates=coordinates))
    (x3, x4, x5), x6 = pyramid(height, width)
    state = decoder.state_dict()

    def brick(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, norm = state[f"{name}.0.c.weight"], f"{name}.0.bn."
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[norm + key] for key in keys)).clamp(min=0)

    def up(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    def down(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf)
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        assert x.shape == like.shape
        return x

    x3, x4, x5 = (brick(x, f"local_inputs.{i}") for i, x in enumerate((x3, x4, x5)))
    g = brick(x6, "global_input")
    p5 = x5 * up(g, x5) + up(g, x5)
    p4 = x4 + up(p5, x4)
    p3 = x3 + up(p4, x3)
    c3, c4, c5 = (brick(p, f"top_down.{i}") for i, p in enumerate((p3, p4, p5)))
    q4 = c4 + down(c3, c4)
    q5 = c5 + down(q4, c5)
    places = coordinate_maps(*c3.shape[2:]).expand(2, -1, -1, -1)
    q3 = brick(torch.cat((c3, places), 1) if coordinates else c3, "bottom_up.0")
    q4, q5 = brick(q4, "bottom_up.1"), brick(q5, "bottom_up.2")
    r5 = q5 * up(g, q5) + up(g, q5)
    r4 = q4 + up(r5, q4)
    r3 = q3 + up(r4, q3)
    features = F.conv2d(r3, state["pixel_projection.weight"], state["pixel_projection.bias"])

    mask_features, pixel_features = decoder(*pyramid(height, width))
    assert torch.allclose(mask_features, r3, rtol=1e-4, atol=1e-4)
    assert torch.allclose(pixel_features, features, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fine_pixels_agree_with_a_plain_restatement():
    torch.manual_seed(0)
    fine = randomise_norms(FinePixels(6, 5))
    nn.init.normal_(fine.mix.bias)
    coarse, x2 = torch.randn(2, 5, 9, 7), torch.randn(2, 6, 17, 14)

    def normalise(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[
            :, None, None
        ]

    x = F.interpolate(coarse, (17, 14), mode="bilinear", align_corners=False)
    x = x + normalise(
        torch.einsum("oi,bihw->bohw", fine.lateral.c.weight[..., 0, 0], x2), fine.lateral.bn
    )
    each = [
        F.conv2d(x[:, i : i + 1], fine.spatial.c.weight[i : i + 1], padding=1) for i in range(5)
    ]
    spatial = normalise(torch.cat(each, 1), fine.spatial.bn).clamp(min=0)
    mixed = torch.einsum("oi,bihw->bohw", fine.mix.weight[..., 0, 0], spatial)
    want = x + mixed + fine.mix.bias[:, None, None]
    torch.testing.assert_close(fine(coarse, x2), want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_multiply_adds_of_the_six_convolutions():
    """151,200 · D² at 640 × 640: three 3×3 convolutions, twice."""
    width = 8
    decoder = MaskDecoder(CHANNELS, width, coordinates=False).eval()
    with FlopCounterMode(display=False) as counter:
        decoder(*pyramid(640, 640, batch=1))
    cells = (80**2, 40**2, 20**2, 10**2)
    ones = sum(n * c * width for n, c in zip(cells, CHANNELS, strict=True)) + 80**2 * width**2
    assert counter.get_total_flops() / 2 == 151_200 * width**2 + ones


@torch.no_grad()
def test_depthwise_convolutions_agree_with_a_plain_restatement():
    torch.manual_seed(0)
    decoder = randomise_norms(MaskDecoder(CHANNELS, 5, depthwise=True))
    x = torch.randn(2, 5, 6, 7)
    convs = [*decoder.top_down, *decoder.bottom_up]
    assert len(convs) == 6 and all(conv[0].c.groups == 5 for conv in convs)
    for conv in convs:
        first, last = conv[0], conv[2]
        each = [F.conv2d(x[:, [i]], first.c.weight[[i]], padding=1) for i in range(5)]
        middle = first.bn(torch.cat(each, 1)).clamp(min=0)
        if conv is decoder.bottom_up[0]:
            middle = torch.cat((middle, coordinate_maps(6, 7).expand(2, -1, -1, -1)), 1)
        mixed = torch.einsum("oi,bihw->bohw", last.c.weight[..., 0, 0], middle)
        torch.testing.assert_close(conv(x), last.bn(mixed).clamp(min=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_the_part_of_the_coordinates_is_that_of_one_convolution(training, kernel):
    """Outputs, gradients and running averages, for a batch on a grid that is no square."""
    torch.manual_seed(0)
    split = CoordinateConv(4, 5, kernel).double()
    randomise_norms(split).train(training)
    whole = nn.Sequential(split.c, split.bn)
    places = coordinate_maps(6, 7).double().expand(3, -1, -1, -1)
    results = []
    for forward in (split, lambda x: whole(torch.cat((x, places), 1))):
        split.bn.reset_running_stats()
        x = torch.linspace(-1, 1, 3 * 4 * 6 * 7).double().sin().view(3, 4, 6, 7).requires_grad_()
        y = forward(x)
        grads = torch.autograd.grad(y.pow(3).sum(), (x, *split.parameters()))
        results.append([y, *grads, split.bn.running_mean.clone(), split.bn.running_var.clone()])
    torch.testing.assert_close(*results)
