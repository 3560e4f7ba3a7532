"""What a checkpoint may hold, field by field: it may come from a stranger.

torch reads tensors and plain types only, so nothing in it is run. What is left to a hostile file
are values nobody expects: they are refused here, in one sentence, before anything is made of them.
No field names a file that is written; the paths in `options` are read from, as data sets.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from data.errors import InputError

MEND = "give a last.pt or best.pt of a run folder, or train one"
MOST = 100_000  # of anything: classes, queries, pixels of a side
LONGEST = 4096  # characters of a text
BUDGET = 100_000  # plain values below one field; lists within lists can stand for endless ones


class Fields(dict):
    """A dict whose missing keys are told to the user."""

    def __init__(self, content: dict, where: str):
        super().__init__(content)
        self.where = where

    def __missing__(self, key: str):
        raise InputError(f"{self.where} holds no '{key}'; {MEND}")


def checked(path: Path, content: dict) -> Fields:
    """The content of a checkpoint, every field that is there being what it should be.

    Raises:
        InputError: one is not; fields that are missing are told when they are asked for.
    """
    for name, value in content.items():
        wanted, holds = FIELDS.get(name, ("made of numbers and texts", is_plain))
        if not holds(value):
            raise InputError(f"{path}: its '{str(name)[:40]}' is not {wanted}; {MEND}")
    parts = [content.get(name) or {} for name in ("model", "average")]
    size = sum(tensor.nbytes for part in parts for tensor in part.values())
    if size > path.stat().st_size:  # one value that stands for many takes no room in a file
        raise InputError(f"{path}: claims {size} bytes of tensors, more than it has; {MEND}")
    nested = {name: content[name] for name in ("options", "best") if name in content}
    nested = {name: Fields(value, f"{path}: its '{name}'") for name, value in nested.items()}
    return Fields({**content, **nested}, f"{path}:")


def is_whole(value: object, least: int = 0, most: float = math.inf) -> bool:
    return type(value) is int and least <= value <= most


def is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e15 and value == value


def is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST and "\0" not in value


def is_plain(value: object) -> bool:
    """Whether there are numbers, texts and None alone, and not endlessly many, however nested."""
    left, waiting = BUDGET, [value]
    while waiting and left:
        one, left = waiting.pop(), left - 1
        if isinstance(one, dict):
            waiting += [*one, *one.values()] if len(one) <= left else [object()]
        elif isinstance(one, (list, tuple)):
            waiting += one if len(one) <= left else [object()]
        elif not (one is None or type(one) in (bool, int, float) or is_text(one)):
            return False
    return not waiting


def is_plain_dict(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_text, value)) and is_plain(value)


def is_class_list(value: object) -> bool:
    """Whether it maps 0, 1, 2, … to ids and names. A name is only shown, in a line of its own
    making; whatever else it holds (a slash, say), no path is made of it.
    """
    if not (isinstance(value, list) and 1 <= len(value) <= MOST and is_plain(value)):
        return False
    return all(
        isinstance(entry, dict)
        and entry.get("index") == place
        and is_whole(entry.get("id"), least=-math.inf)
        and is_text(entry.get("name"))
        and entry["name"].isprintable()
        for place, entry in enumerate(value)
    ) and len({entry["id"] for entry in value}) == len(value)


def is_state(value: object) -> bool:
    """Whether it is a dict of named tensors that hold what they say."""
    return isinstance(value, dict) and all(
        is_text(name)
        and torch.is_tensor(tensor)
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_meta)
        for name, tensor in value.items()
    )


def is_best(value: object) -> bool:
    if not is_plain_dict(value) or not is_number(value.get("AP", 0)):
        return False
    threshold = value.get("threshold")
    return is_whole(value.get("iteration", 0)) and (threshold is None or is_number(threshold))


def are_options(value: object) -> bool:
    """Whether those that are read from a checkpoint are of the right kind."""
    return is_plain_dict(value) and all(
        holds(value[name]) for name, holds in OPTIONS.items() if name in value
    )


def is_positive(value: object) -> bool:
    return is_whole(value, 1, MOST)


def is_path_or_none(value: object) -> bool:
    return value is None or is_text(value)


def is_meter(value: object) -> bool:
    """What `log.Meter.state` gives; its sums may be of any size."""
    if not is_plain_dict(value) or not is_whole(value.get("steps")):
        return False
    parts = [value.get(name) for name in ("sums", "counts", "seconds")]
    return all(
        isinstance(part, dict) and all(type(one) in (int, float) for one in part.values())
        for part in parts
    )


BOOLEANS = ("crowd_as_instances", "allow_partial", "skip_bad_records")
OPTIONS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("data", "train_json", "val_json", "images"), is_path_or_none),
    **dict.fromkeys(("pretrained",), is_path_or_none),
    **dict.fromkeys(("image_size", "batch_size", "accumulate"), is_positive),
    **dict.fromkeys(BOOLEANS, lambda value: type(value) is bool),
}
FIELDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    **dict.fromkeys(
        ("iteration", "average_updates", "pictures", "skipped", "evaluated"),
        ("a whole number", is_whole),
    ),
    "processes": ("a whole number above zero", is_positive),
    "seconds": ("a number", is_number),
    "config": ("a description of a model", is_plain_dict),
    "classes": ("a list of classes with index, id and a printable name", is_class_list),
    "options": ("the options of a training", are_options),
    "best": ("a score with its iteration and threshold", is_best),
    "optimizer": ("the state of an optimizer", lambda value: isinstance(value, dict)),
    "meter": ("the sums of an interval", is_meter),
    "model": ("named tensors", is_state),
    "average": ("named tensors", lambda value: value is None or is_state(value)),
}
