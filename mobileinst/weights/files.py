"""Reads named tensors from a file: finds the container, translates names, removes prefixes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mobileinst.weights.names import backbone_names, in_our_names, prefix_of, recognise
from mobileinst.weights.reading import FIX, LoadError, read, read_json

FORMAT = "mobileinst checkpoint 1"
CONTAINERS = ("state_dict_ema", "state_dict", "model", "average")  # in order of preference
OUR_CONTAINERS = ("average", "model")  # scores are those of the average
HUB_FILES = (  # in order of preference; large models are split into files named in an index
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    container: the key of the tensors in the file, "" at the top. tensors: by their names in the
    file, or by ours if those are published names of Mask2Former. non_tensors: names of the other
    entries. source: the model they belong to. meta: the file's own `meta`. naming: who
    published the names that were translated, "" if none were. config, classes: of a checkpoint of
    ours, else None.
    """

    path: Path
    container: str
    tensors: dict[str, Tensor]
    non_tensors: tuple[str, ...]
    source: str
    meta: dict
    naming: str = ""
    config: dict | None = None
    classes: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        """A summary in one line."""
        where = f"under '{self.container}'" if self.container else "at the top of the file"
        names = f", in the names of {self.naming}" if self.naming else ""
        return f"{self.path}: {self.source}, {len(self.tensors)} tensors {where}{names}"

    def rows_per_class(self, layers: Sequence[str]) -> int | None:
        """Number of rows of these class layers of a model in the file; None if it has none."""
        ends = tuple(f"{layer}.weight" for layer in layers)
        rows = (t.shape[0] for name, t in self.tensors.items() if name.endswith(ends) and t.ndim)
        return next(rows, None)

    def without(self, *prefixes: str) -> tuple[tuple[str, ...], dict[str, Tensor]]:
        """The prefixes removed from the names, in any order, and the tensors by the remaining
        names.
        """
        cut = {name: prefix_of(name, prefixes) for name in self.tensors}
        plain = {name[len(cut[name]) :]: value for name, value in self.tensors.items()}
        return tuple(sorted(set(cut.values()) - {""})), backbone_names(plain)


def open_weights(path: str | Path) -> WeightFile:
    """Reads a file of weights, or the files that an index (`*.index.json`) names.

    Raises:
        LoadError: if a file cannot be read or holds no named tensors.
    """
    path = Path(path)
    is_index = path.name.endswith(".index.json") and path.is_file()
    content = read_shards(path) if is_index else read(path)
    if not isinstance(content, Mapping):
        raise LoadError(f"{path}: holds a {type(content).__name__}, no named tensors; {FIX}")
    is_ours = content.get("format") == FORMAT
    keys = OUR_CONTAINERS if is_ours else CONTAINERS
    filled = (key for key in keys if content.get(key) and isinstance(content[key], Mapping))
    container = next(filled, "")
    entries = content[container] if container else content
    tensors = {str(name): v.detach() for name, v in entries.items() if torch.is_tensor(v)}
    if not tensors:
        raise LoadError(f"{path}: holds no named tensors; {FIX}")
    naming, tensors = in_our_names(tensors)
    meta = content.get("meta")
    classes = tuple(entry["name"] for entry in content["classes"]) if is_ours else None
    return WeightFile(
        path=path,
        container=container,
        tensors=tensors,
        non_tensors=tuple(str(name) for name, v in entries.items() if not torch.is_tensor(v)),
        source=recognise(tensors),
        meta=meta if isinstance(meta, dict) else {},
        naming=naming,
        config=content["config"] if is_ours else None,
        classes=classes,
    )


def read_shards(index: Path) -> dict[str, object]:
    """Reads all files that an index names; raises LoadError if one cannot be read."""
    fix = "get the index of the model again"
    places = read_json(index, fix).get("weight_map")
    if not places:
        raise LoadError(f"{index}: has no weight_map from tensors to files; {fix}")
    fix = f"put all files that {index.name} names beside it"
    shards = [read(index.parent / name, fix) for name in sorted(set(places.values()))]
    return {name: value for shard in shards for name, value in shard.items()}


def hub_settings(folder: Path) -> dict:
    """Reads config.json of a Hugging Face folder; raises LoadError if it cannot be read."""
    fix = "give the folder of a model as save_pretrained wrote it"
    return read_json(folder / "config.json", fix)


def hub_weights(folder: Path) -> WeightFile:
    """Reads the tensors of a Hugging Face folder; raises LoadError if they cannot be read."""
    found = [folder / name for name in HUB_FILES if (folder / name).is_file()]
    if not found:
        raise LoadError(
            f"{folder}: holds no {', '.join(HUB_FILES[:-1])} or {HUB_FILES[-1]}; "
            "put one beside config.json"
        )
    return open_weights(found[0])
