"""First values depend on (seed, module path) and on nothing else."""

import math

import pytest
import torch
from torch import nn

from mobileinst.backbones.seaformer import seaformer_tiny
from mobileinst.backbones.topformer import topformer_tiny
from mobileinst.layers.attention import MLP
from mobileinst.layers.conv import ConvBN
from mobileinst.layers.init import draw_parameters, init_conv
from mobileinst.mobile.model import MobileInstConfig, build_mobileinst


def small(first: str = "a", second: str = "b", extra: bool = False) -> nn.Module:
    parts = {"a": lambda: ConvBN(3, 8, 3), "b": lambda: MLP(8, 16, 4)}
    model = nn.Module()
    if extra:
        model.unused = nn.Sequential(nn.Linear(7, 5), nn.Embedding(3, 2))
    for name in (first, second):
        model.add_module(name, parts[name]())
    return model


def drawn(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    draw_parameters(model, seed)
    return model.state_dict()


@pytest.mark.parametrize("changes", [{}, {"first": "b", "second": "a"}, {"extra": True}])
def test_values_do_not_depend_on_order_or_on_other_modules(changes):
    want = drawn(small())
    got = drawn(small(**changes))
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_same_seed_same_values_whatever_was_drawn_before():
    torch.manual_seed(5)
    want = drawn(small(), seed=3)
    torch.manual_seed(6)
    torch.rand(11)
    got = drawn(small(), seed=3)
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_different_seeds_and_paths_give_different_values():
    want, other = drawn(small(), seed=0), drawn(small(), seed=1)
    assert not torch.equal(want["a.c.weight"], other["a.c.weight"])
    twins = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    draw_parameters(twins, 0)
    assert not torch.equal(twins[0].weight, twins[1].weight)


def test_torchs_own_attention_is_drawn_as_well():
    """Its method has another name; it must not keep what it drew when it was built."""
    values = []
    for before in (0, 1):
        torch.manual_seed(before)
        model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
        values.append(drawn(model))
    assert all(torch.equal(values[0][name], value) for name, value in values[1].items())
    other = drawn(model, seed=1)
    assert not torch.equal(values[0]["attention.in_proj_weight"], other["attention.in_proj_weight"])


def test_random_state_is_left_alone():
    model = small()
    before = torch.get_rng_state()
    draw_parameters(model, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("backbone", [topformer_tiny, seaformer_tiny])
def test_every_value_of_a_whole_model_is_drawn(backbone):
    model = build_mobileinst(MobileInstConfig(num_classes=3, width=16), backbone())
    with torch.no_grad():
        for value in (*model.parameters(), *model.backbone.buffers()):
            if value.is_floating_point():
                value.fill_(math.nan)
    draw_parameters(model, 0)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_parents_have_the_last_word():
    model = build_mobileinst(MobileInstConfig(num_classes=3, width=16), topformer_tiny())
    draw_parameters(model, 0)
    for block in model.backbone.trans.transformer_blocks:
        assert block.attn.proj[1].bn.weight.eq(0).all()
    prior = model.instance_decoder.heads.classes.bias.sigmoid()
    assert torch.allclose(prior, torch.tensor(0.01))


@pytest.mark.parametrize("groups, fan_in", [(1, 64 * 9), (64, 9)])
def test_convolutions_start_as_torch_starts_them_but_for_the_bias(groups, fan_in):
    conv = nn.Conv2d(64, 64, 3, groups=groups)
    torch.manual_seed(0)
    init_conv(conv)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(1 / (3 * fan_in)), rel=0.1)
    assert conv.bias.eq(0).all()
