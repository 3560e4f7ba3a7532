"""First values of parameters: drawn per module from (seed, module path), so that no module's
values depend on what else the model holds or on the order in which it was built.
"""

import math

import torch
from torch import nn

from mobileinst.layers.seeds import named_seed


def draw_parameters(model: nn.Module, seed: int) -> None:
    """Draws every parameter of `model` as a function of the seed and the module's path only.

    Every module that has `reset_parameters` is called (or `_reset_parameters`, as torch's own
    attention has it), children before parents, so that a parent has the last word about its
    children (such as a zero scale at the end of a residual branch). A module with neither keeps the
    values it was built with.
    Call it before the model moves to a device or another memory format, which would draw the same
    numbers in another order. The numbers come from the CPU generator, whose state is the same
    afterwards as before.
    """
    modules = list(model.named_modules())
    with torch.random.fork_rng(devices=[]):
        for path, module in reversed(modules):  # named_modules lists parents first
            reset = getattr(module, "reset_parameters", None)
            if reset := reset or getattr(module, "_reset_parameters", None):
                torch.default_generator.manual_seed(named_seed(seed, path))
                reset()


@torch.no_grad()
def init_conv(conv: nn.Conv2d) -> None:
    """Uniform weights of variance 1 / (3 · fan-in), torch's own start, and zero bias.

    Our choice, because it was measured: behind a batch norm the scale of a weight changes nothing
    but the size of AdamW's steps relative to it. Weights of variance 2 / fan-out per group, two to
    five times as large, learned the classes of the demo set at less than half the speed.
    """
    nn.init.kaiming_uniform_(conv.weight, a=math.sqrt(5))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


@torch.no_grad()
def init_linear(linear: nn.Linear) -> None:
    """Xavier-uniform weights and zero bias: keeps the scale of normalised inputs."""
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
