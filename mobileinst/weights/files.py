"""From a file to named tensors: read without running code, unwrapped, prefixes taken off."""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mobileinst.weights.names import beginning, recognise, torchvision_swin_names
from mobileinst.weights.safetensors import read_safetensors

FORMAT = "mobileinst checkpoint 1"
CONTAINERS = ("state_dict_ema", "state_dict", "model", "average")  # the first that is there
OUR_CONTAINERS = ("average", "model")  # the average is what a run was scored with
MEND = "give a file of weights that torch.save wrote, or a .safetensors"
STARTS = {  # what other files begin with
    b"\x89PNG": "it is a picture",
    b"\xff\xd8\xff": "it is a picture",
    b"PK\x03\x04": "it is a zip archive that was cut short or holds something else",
    b"version https://git-lfs": "it is a git-lfs pointer, the file itself was never fetched",
    b"<": "it is a web page, what was to be downloaded is something else",
    b"{": "it is text that looks like json",
    b"[": "it is text that looks like json",
}


class LoadError(ValueError):
    """A file of weights that cannot be used: one sentence with the file, the fault, the mend."""


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    container: the key the tensors were found under, "" at the top. tensors: by their names in the
    file. others: entries that are no tensors. source: whose they are, in words. meta: what the
    file says about itself. config, classes: of a checkpoint of ours, else None.
    """

    path: Path
    container: str
    tensors: dict[str, torch.Tensor]
    others: tuple[str, ...]
    source: str
    meta: dict
    config: dict | None = None
    classes: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        """One line for people."""
        where = f"under '{self.container}'" if self.container else "at the top of the file"
        return f"{self.path}: {self.source}, {len(self.tensors)} tensors {where}"

    def rows_per_class(self, layers: Sequence[str]) -> int | None:
        """How many classes such layers of a model have in the file; None if it has none of them."""
        ends = tuple(f"{layer}.weight" for layer in layers)
        return next((len(t) for name, t in self.tensors.items() if name.endswith(ends)), None)

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


def read(path: Path, mend: str = MEND) -> object:
    """What `torch.save` wrote, or a file ending in .safetensors holds, on the CPU. Nothing but
    tensors and plain types is made from it.

    argparse.Namespace is let through: timm stores the options of its runs as one, and making it
    runs no code.

    Raises:
        LoadError: there is no such file, or not one that can be read; it ends with `mend`.
    """
    path = Path(path)
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "no such file"
        raise LoadError(f"{path}: {fault}; {mend}")
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        _require_stored(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about the pickle; what fails is told below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle fails in nearly every way there is
        raise LoadError(
            f"{path}: not a checkpoint that can be read safely, {_fault(path, error)}; {mend}"
        ) from error


def _require_stored(path: Path) -> None:
    """Raises ValueError for a zip whose entries are larger than what they take in the file: torch
    writes none, and a small one can unpack to more than there is memory.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.file_size > entry.compress_size for entry in archive.infolist()):
                raise ValueError("compressed")


def _fault(path: Path, error: Exception) -> str:
    """Why a file cannot be read, from how it begins or what went wrong."""
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks to run {asked[1]}, which is never done"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty"
    for start, what in STARTS.items():
        if head.lstrip().startswith(start):
            return what
    if not set(head) & set(range(9)):
        return "it is text"
    return f"it is of another kind or cut short ({type(error).__name__})"


def open_weights(path: Path) -> WeightFile:
    """Read a file of weights and find the tensors in it.

    Raises:
        LoadError: the file cannot be read, or there are no named tensors in it.
    """
    content = read(path)
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
    meta = content.get("meta")
    return WeightFile(
        path=Path(path),
        container=container,
        tensors=tensors,
        others=tuple(str(name) for name in entries if not _is_plain(name, entries[name])),
        source=recognise(tensors),
        meta=meta if isinstance(meta, dict) else {},
        **(_about_ours(path, content) if is_ours else {}),
    )


def _is_plain(name: object, value: object) -> bool:
    """Whether an entry is a named tensor with values: dense, not quantised, not only a shape."""
    dense = torch.is_tensor(value) and value.layout == torch.strided
    return isinstance(name, str) and dense and not (value.is_quantized or value.is_meta)


def _about_ours(path: Path, content: Mapping) -> dict:
    """The builder's keywords and the class names, in the order of their rows."""
    try:
        classes = sorted(content["classes"], key=lambda entry: entry["index"])
        names = tuple(entry["name"] for entry in classes)
        config = dict(content["config"])
        texts = [*names, *config, *(each for each in config.values() if isinstance(each, str))]
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise ValueError("a text of several lines")
        return {"config": config, "classes": names}
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(
            f"{path}: a checkpoint of ours without a whole config and class list; "
            "give a last.pt or best.pt as a run wrote it"
        ) from error
