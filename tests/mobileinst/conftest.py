"""What the tests of every backbone need: rebuilt weights, reference activations, a counter."""

import gzip
import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

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
def reference() -> Callable[[str], dict]:
    """A function: name of a model -> its fixture, as tests/fixtures/make.py describes it."""
    folder = Path(__file__).parents[1] / "fixtures"
    return lambda name: json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))


@pytest.fixture(
    params=[("even", (2, 3, 128, 192), 1), ("odd", (1, 3, 200, 333), 2)], ids=["even", "odd"]
)
def official_input(request) -> tuple[str, torch.Tensor]:
    """A case of the fixtures and the images that its maps were computed for, in float64."""
    case, shape, seed = request.param
    images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return case, images.double()


@pytest.fixture(scope="session")
def sampled_errors() -> Callable[[dict, dict], dict[str, float]]:
    """A function: maps by name, the maps of a fixture -> the largest error of each, relative to the
    largest value of the map.
    """

    def error(got: torch.Tensor, want: dict) -> float:
        assert list(got.shape) == want["shape"]
        values = got.flatten()[want["places"]] - torch.tensor(want["values"], dtype=got.dtype)
        mean = abs(got.abs().mean().item() - want["mean"])
        return max(values.abs().max().item(), mean) / want["largest"]

    def sampled_errors(maps: dict[str, torch.Tensor], wanted: dict) -> dict[str, float]:
        assert maps.keys() == wanted.keys()
        return {name: error(maps[name], wanted[name]) for name in maps}

    return sampled_errors


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


@pytest.fixture(scope="session")
def write_safetensors() -> Callable[[Path, dict], None]:
    """A function: writes tensors by name to a file in the .safetensors format."""

    def write_safetensors(path, tensors):
        table, blobs, place = {"__metadata__": {"format": "pt"}}, [], 0
        names = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.bool: "BOOL"}
        for name, tensor in tensors.items():
            blobs.append(tensor.contiguous().numpy().tobytes())
            ends = [place, place := place + len(blobs[-1])]
            table[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape)}
            table[name]["data_offsets"] = ends
        head = json.dumps(table).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(blobs))

    return write_safetensors
