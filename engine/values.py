"""Values of options, from a text or from a program; defaults that follow from the machine."""

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from data.errors import InputError
from engine import dist
from mobileinst import weights, zoo
from mobileinst.config import did_you_mean


def number(kind: type, holds: Callable[[float], bool], wanted: str) -> Callable[[object], float]:
    """A converter of texts and values to numbers for which `holds` is true."""

    def convert(value: object) -> float:
        try:
            found = kind(str(value))
        except ValueError:
            found = math.nan
        if not (math.isfinite(found) and holds(found)):
            raise argparse.ArgumentTypeError(f"{value} is not {wanted}")
        return found

    return convert


integer = number(int, lambda value: True, "a whole number")
positive = number(int, lambda value: value > 0, "a whole number above zero")
whole = number(int, lambda value: value >= 0, "a whole number, zero or above")
image_side = number(int, lambda value: 0 < value <= 16384, "a whole number from 1 to 16384")
positive_real = number(float, lambda value: value > 0, "a number above zero")
real = number(float, lambda value: value >= 0, "a number, zero or above")
fraction = number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
decay = number(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def canvas(value: str | tuple[int, int]) -> tuple[int, int]:
    """HEIGHTxWIDTH, both multiples of 64."""
    try:
        height, width = map(int, value.lower().split("x") if isinstance(value, str) else value)
    except (ValueError, TypeError):
        raise argparse.ArgumentTypeError(f"{value}: write HEIGHTxWIDTH, as 256x320") from None
    if height <= 0 or width <= 0 or height % 64 or width % 64:
        raise argparse.ArgumentTypeError(f"{value}: both sides must be multiples of 64")
    return height, width


def keyword(text: str) -> tuple[str, str]:
    """KEY=VALUE for the model's config."""
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text}: write KEY=VALUE, as width=64")
    return key, value


def unknown(name: str, known: Sequence[str]) -> str:
    """A message about a name that is none of the known ones."""
    hint = did_you_mean([name], known)
    return f"'{name}' is unknown; {hint}" if hint else f"'{name}' is not one of {', '.join(known)}"


def some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A converter of names that are separated by commas."""

    def convert(text: str) -> tuple[str, ...]:
        names = tuple(filter(None, text.split(",")))
        for name in names or ("",):
            if name not in known:
                raise argparse.ArgumentTypeError(unknown(name, known))
        return names

    return convert


def shown(value: object) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, (list, tuple)):
        inner = "x" if value and isinstance(value[0], (list, tuple)) else None
        return " ".join(inner.join(map(str, one)) if inner else str(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_unset(value: object) -> bool:
    """Whether an option of this value does nothing; 0 is a value."""
    return value is None or value is False or value in ([], ())


def checked(name: str, about: dict, value: object) -> object:
    """The value of an option as `add_argument` would make it; raises InputError for a wrong one."""
    if name == "set":
        return dict(value)
    convert, argument = about["convert"], about["argument"]
    choices, nargs = argument.get("choices"), argument.get("nargs")
    try:
        found = [convert(one) for one in value] if nargs else convert(value)
        if isinstance(nargs, int) and len(found) != nargs:
            raise argparse.ArgumentTypeError(f"{value} are not {nargs} values")
        if choices and found not in choices:
            raise argparse.ArgumentTypeError(unknown(str(found), choices))
    except argparse.ArgumentTypeError as error:
        raise InputError(f"--{name.replace('_', '-')}: {error}") from None
    return found


@contextmanager
def model_errors() -> Iterator[None]:
    """Turns the ValueError of a config, a builder or a file of weights into an InputError."""
    try:
        yield
    except InputError:
        raise
    except weights.LoadError as error:
        raise InputError(str(error)) from error
    except ValueError as error:
        fix = "" if str(error).endswith("?") else "; change the value"
        raise InputError(f"--set: {error}{fix}") from error


def builder_keywords(name: str, keywords: dict[str, object]) -> dict[str, object]:
    """Keywords for a model's config, texts as values of its types; raises InputError if wrong."""
    keywords = dict(keywords)
    if "num_classes" in keywords:
        raise InputError("--set num_classes: it follows from the data; leave it out")
    with model_errors():
        config = zoo.config_for(name)
        for key, value in keywords.items():
            if isinstance(value, str):
                keywords[key] = config.parse(key, value)
            elif isinstance(value, list):  # as json holds tuples
                keywords[key] = tuple(value)
        zoo.config_for(name, **keywords)
    return keywords


def cores() -> int:
    """Cores that this process may use: of its affinity, and of its cgroup."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(found, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup, or no quota ("max")
        return found


def default_threads() -> int:
    """Half of the cores: small networks gain little from more, and loader workers need some."""
    return max(1, cores() // 2 // dist.local_world_size())


def default_workers(wanted: int = 2) -> int:
    """Loader processes of each training process, no more than it has cores."""
    return min(wanted, max(1, cores() // dist.local_world_size()))


def device_for(name: str | None) -> torch.device:
    """The device asked for, or the best one; raises InputError if it is not on this machine."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    found += ["mps:0", "cpu:0"] if torch.backends.mps.is_available() else ["cpu:0"]
    name = name or found[0].partition(":")[0]
    if (name if ":" in name else f"{name}:0") not in found:
        raise InputError(f"--device {name}: not on this machine; there is {', '.join(found)}")
    return torch.device(name)
