"""From a file to named tensors: unwrapped, in our names, prefixes taken off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mobileinst.weights.names import beginning, recognise, torchvision_swin_names
from mobileinst.weights.reading import MEND, LoadError, read
from mobileinst.weights.shards import is_index, read_shards
from mobileinst.weights.vocabularies import in_our_names

FORMAT = "mobileinst checkpoint 1"
CONTAINERS = ("state_dict_ema", "state_dict", "model", "average")  # the first that is there
OUR_CONTAINERS = ("average", "model")  # the average is what a run was scored with


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    container: the key the tensors were found under, "" at the top. tensors: by their names in the
    file, or in ours if those are published names of Mask2Former. naming: in whose names those were,
    "" if they are as in the file. others: entries that are no tensors. source: whose they are, in
    words. meta: what the file says about itself. config, classes: of a checkpoint of ours, else
    None.
    """

    path: Path
    container: str
    tensors: dict[str, torch.Tensor]
    others: tuple[str, ...]
    source: str
    meta: dict
    naming: str = ""
    config: dict | None = None
    classes: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        """One line for people."""
        where = f"under '{self.container}'" if self.container else "at the top of the file"
        whose = f", in the names of {self.naming}" if self.naming else ""
        return f"{self.path}: {self.source}, {len(self.tensors)} tensors {where}{whose}"

    def rows_per_class(self, layers: Sequence[str]) -> int | None:
        """How many classes such layers of a model have in the file; None if it has none of them."""
        ends = tuple(f"{layer}.weight" for layer in layers)
        rows = (t.shape[0] for name, t in self.tensors.items() if name.endswith(ends) and t.ndim)
        return next(rows, None)

    def without(self, *prefixes: str) -> tuple[tuple[str, ...], dict[str, torch.Tensor]]:
        """What was taken off the names, and the tensors without it.

        Args:
            prefixes: what wrappers leave in front of names; taken off repeatedly, in any order.
        Raises:
            LoadError: two tensors would have one name.
        """
        cut = {name: beginning(name, prefixes) for name in self.tensors}
        plain = {name[len(cut[name]) :]: value for name, value in self.tensors.items()}
        taken = tuple(sorted(set(cut.values()) - {""}))
        if len(plain) < len(self.tensors):
            raise LoadError(
                f"{self.path}: holds tensors whose names differ only by what stands before them "
                f"({', '.join(taken)}); save those of one model alone"
            )
        return taken, torchvision_swin_names(plain)


def open_weights(path: Path) -> WeightFile:
    """Read a file of weights, or the files that an index (`*.index.json`) names, and find the
    tensors.

    Raises:
        LoadError: a file cannot be read, or there are no named tensors in it.
    """
    path = Path(path)
    content = read_shards(path) if is_index(path) and path.is_file() else read(path)
    if not isinstance(content, Mapping):
        raise LoadError(f"{path}: holds a {type(content).__name__}, no named tensors; {MEND}")
    is_ours = content.get("format") == FORMAT
    keys = OUR_CONTAINERS if is_ours else CONTAINERS
    found = [key for key in keys if isinstance(content.get(key), Mapping)]
    container = next(
        (key for key in found if content[key]), (*found, "")[0]
    )  # empty only if all are
    entries = content[container] if container else content
    tensors = {name: value.detach() for name, value in entries.items() if _is_plain(name, value)}
    if not tensors:
        where = f" under '{container}'" if container else ""
        raise LoadError(f"{path}: holds no named tensors{where}; {MEND}")
    naming, tensors = _in_our_names(path, tensors)
    meta = content.get("meta")
    return WeightFile(
        path=path,
        container=container,
        tensors=tensors,
        others=tuple(str(name) for name in entries if not _is_plain(name, entries[name])),
        source=recognise(tensors),
        meta=meta if isinstance(meta, dict) else {},
        naming=naming,
        **(_about_ours(path, content) if is_ours else {}),
    )


def _is_plain(name: object, value: object) -> bool:
    """Whether an entry is a named tensor with values: dense, not quantised, not only a shape."""
    dense = torch.is_tensor(value) and value.layout == torch.strided
    return isinstance(name, str) and dense and not (value.is_quantized or value.is_meta)


def _in_our_names(
    path: Path, tensors: dict[str, torch.Tensor]
) -> tuple[str, dict[str, torch.Tensor]]:
    try:
        return in_our_names(tensors)
    except ValueError as error:
        raise LoadError(f"{path}: {error}; save those of one model alone") from error


def _about_ours(path: Path, content: Mapping) -> dict:
    """The builder's keywords and the class names, in the order of their rows."""
    try:
        classes = sorted(content["classes"], key=lambda entry: entry["index"])
        names = tuple(entry["name"] for entry in classes)
        return {"config": dict(content["config"]), "classes": names}
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(
            f"{path}: a checkpoint of ours without a whole config and class list; "
            "give a last.pt or best.pt as a run wrote it"
        ) from error
