"""Random points: where they come from, and what maps hold there."""

import pytest
import torch
import torch.nn.functional as F

from mobileinst.set_prediction.points import (
    SeededPoints,
    corners,
    sample_points,
    sample_shared_points,
)
from mobileinst.set_prediction.targets import Target


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(maps, points):
    """One map at a time: [M,h,w], [M,P,2] -> [M,P]."""
    rows = [
        F.grid_sample(one[None, None], 2 * own[None, None] - 1, align_corners=False)[0, 0, 0]
        for one, own in zip(maps, points)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("grid", [(1, 1), (5, 8), (16, 3)])
def test_sampling_and_its_gradient_are_those_of_grid_sample(grid):
    maps, points = draw(3, *grid), draw(3, 50, 2, seed=1)
    points[:, 0], points[:, 1] = 0, 1  # the corners of the image
    points[:, 2:7] = (points[:, 2:7] * torch.tensor(grid[::-1])).round() / torch.tensor(grid[::-1])
    own, other = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    values, expected = sample_points(own, points), reference(other, points)
    torch.testing.assert_close(values, expected)
    weights = draw(3, 50, seed=2)
    (values * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(own.grad, other.grad)
    shared = reference(maps, points[:1].expand(3, -1, -1))
    torch.testing.assert_close(sample_shared_points(maps, points[0]), shared)


def test_the_shares_of_the_corners_are_what_is_sampled():
    maps, points = draw(2, 4, 6), draw(2, 30, 2, seed=1)
    total = sum(maps.flatten(1).gather(1, index) * share for index, share in corners(points, 4, 6))
    torch.testing.assert_close(total, reference(maps, points))


def test_no_maps_have_no_values():
    assert sample_points(torch.zeros(0, 4, 6), torch.zeros(0, 9, 2)).shape == (0, 9)
    assert sample_shared_points(torch.zeros(0, 4, 6), torch.zeros(9, 2)).shape == (0, 9)


def test_a_point_counts_unless_its_value_is_made_of_ignored_pixels():
    ignore = torch.zeros(4, 6, dtype=torch.bool)
    ignore[1, 2] = True
    x, y = (
        torch.tensor([2.5, 2.1, 1.6, 1.4, 3.6, 5.9]) / 6,
        torch.tensor([1.5, 1.9, 1, 1, 1, 4]) / 4,
    )
    target = Target(torch.zeros(0), torch.zeros(0, 4, 6), ignore, 0, (4, 6))
    weights = target.valid_points(torch.stack([x, y], 1)[None])
    assert weights.tolist() == [[0, 0, 0, 1, 1, 1]]


def test_seeded_points_depend_on_each_of_their_names_and_on_nothing_else():
    usual = SeededPoints(1, 2).draw("", 5, "match", (4, 2))
    torch.rand(3)
    assert torch.equal(SeededPoints(1, 2).draw("", 5, "match", (4, 2)), usual)
    state = torch.random.get_rng_state()
    others = [
        SeededPoints(0, 2).draw("", 5, "match", (4, 2)),
        SeededPoints(1, 3).draw("", 5, "match", (4, 2)),
        SeededPoints(1, 2).draw("_aux0", 5, "match", (4, 2)),
        SeededPoints(1, 2).draw("", 6, "match", (4, 2)),
        SeededPoints(1, 2).draw("", 5, "fresh", (4, 2)),
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(not torch.equal(other, usual) for other in others)
    assert usual.min() >= 0 and usual.max() < 1
