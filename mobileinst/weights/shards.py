"""Weights that are spread over several files, with an index that tells which tensor is where."""

import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from mobileinst.weights.reading import LoadError, read
from mobileinst.weights.report import shorten


def is_index(path: Path) -> bool:
    return path.name.endswith(".index.json")


def read_json(path: Path, mend: str) -> dict:
    """The json object in a file; LoadError, ending with `mend`, if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror}; {mend}") from error
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: is no json ({error}); get the file again") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path}: holds no settings, but a {type(content).__name__}; {mend}")
    return content


def read_shards(index: Path) -> dict:
    """All that is in the files which an index names, all of which lie beside it.

    Raises:
        LoadError: the index or one of the files cannot be read, or lacks a tensor.
    """
    places = places_in(index)
    mend = f"put all files that {index.name} names beside it"
    shards = {name: read(index.parent / name, mend) for name in sorted(set(places.values()))}
    for name, content in shards.items():
        if not isinstance(content, Mapping):
            raise LoadError(f"{index.parent / name}: holds no named tensors; {mend}")
    lost = [tensor for tensor, name in places.items() if tensor not in shards[name]]
    if lost:
        raise LoadError(
            f"{index}: {len(lost)} of {len(places)} tensors are not in the files that it names for "
            f"them ({shorten(lost, 3)}); get all files of one model"
        )
    everything = {tensor: value for content in shards.values() for tensor, value in content.items()}
    return everything | {tensor: shards[name][tensor] for tensor, name in places.items()}


def places_in(index: Path) -> dict[str, str]:
    """Tensor -> name of the file it is in; LoadError unless these are names of files alone."""
    mend = "get the index of the model again"
    places = read_json(index, mend).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise LoadError(f"{index}: has no weight_map from tensors to files; {mend}")
    for name in places.values():
        if not isinstance(name, str) or not is_plain(name):
            raise LoadError(
                f"{index}: names {ascii(name)[:60]} as a file of weights, which is no name of a "
                f"file beside it; {mend}"
            )
    return places


def is_plain(name: str) -> bool:
    """Whether a path is the name of a file and no way to another folder, on any system."""
    return name not in ("", "..") and name == Path(name).name == PureWindowsPath(name).name
