"""What the tests of every backbone need: rebuilt weights, reference activations, a counter."""

import math
import zlib
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def value_from_name(name: str, shape: torch.Size) -> torch.Tensor:
    """The weights of the reference activations: anyone can rebuild them from the names."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    kind = name.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return torch.tensor(1)
    if kind in ("running_mean", "bias"):
        return 0.1 * torch.randn(shape, generator=generator)
    if kind == "pos_embed":
        return 0.5 * torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return torch.rand(shape, generator=generator) + 0.5
    return torch.randn(shape, generator=generator) * math.sqrt(1.6 / math.prod(shape[1:]))


@pytest.fixture(scope="session")
def rebuild() -> Callable[[nn.Module], nn.Module]:
    """A function: the module in eval mode with weights that follow from their names."""

    def rebuild(module: nn.Module) -> nn.Module:
        state = module.state_dict()
        module.load_state_dict({name: value_from_name(name, v.shape) for name, v in state.items()})
        return module.eval()

    return rebuild


@pytest.fixture(scope="session")
def oracle(shared) -> Callable[[str], dict]:
    """A function: name of a model -> what its official code computed, and its `keys`."""
    return lambda name: torch.load(shared / "oracles" / f"{name}.pt", weights_only=True)


@pytest.fixture(
    params=[("even", (2, 3, 128, 192), 1), ("odd", (1, 3, 200, 333), 2)], ids=["even", "odd"]
)
def oracle_input(request) -> tuple[str, torch.Tensor]:
    """A key of an oracle's `results` and the images that it was computed for."""
    case, shape, seed = request.param
    return case, torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def largest_error() -> Callable[[list, list], float]:
    """A function: maps, wanted maps -> the largest error, relative to each map's largest value."""

    def largest_error(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
        assert [x.shape for x in got] == [x.shape for x in want]
        return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(got, want))

    return largest_error


@pytest.fixture(scope="session")
def giga_multiply_adds() -> Callable[..., float]:
    """A function: (model, height, width) -> multiply-adds / 1e9 for one image of that size.

    Nothing is computed: the model is moved to the device "meta", where tensors are shapes only.
    """

    @torch.no_grad()
    def giga_multiply_adds(model: nn.Module, height: int, width: int) -> float:
        with FlopCounterMode(display=False) as counter:
            model.to("meta")(torch.zeros(1, 3, height, width, device="meta"))
        return counter.get_total_flops() / 2e9

    return giga_multiply_adds
