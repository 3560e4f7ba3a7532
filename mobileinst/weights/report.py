"""The report on loading a file of weights into a module."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from mobileinst.weights.names import COUNTER, RECOMPUTED

STATISTICS = ("running_mean", "running_var", COUNTER, *RECOMPUTED)
Sizes = dict[str, int]  # name of a tensor -> its number of parameters, 0 for statistics


@dataclass
class Report:
    """What came of loading a file into a module.

    path, source, container, naming: as in `WeightFile`. prefixes: removed from the names. target:
    the module that was loaded into. whole: whether everything came in that the file can fill.
    loaded: tensors copied. missing, other_shape: tensors of the module that keep their values
    (`allow_partial`). unexpected: tensors of the file without a place. dropped: reason -> tensors
    left out on purpose. conversion: of dtypes, "" if none. before, after: fingerprints of the
    loaded tensors. carried, new: classes with rows from the file, and with rows of random
    values. queries: how many came from the file, if it has another number. random: parts that
    start from random values. warnings: sentences.
    """

    path: str
    source: str
    container: str
    naming: str
    prefixes: tuple[str, ...]
    target: str
    whole: bool = True
    loaded: Sizes = field(default_factory=dict)
    missing: Sizes = field(default_factory=dict)
    other_shape: Sizes = field(default_factory=dict)
    unexpected: Sizes = field(default_factory=dict)
    dropped: dict[str, Sizes] = field(default_factory=dict)
    conversion: str = ""
    before: str = ""
    after: str = ""
    carried: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    queries: str = ""
    random: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def fitting(self) -> list[str]:
        """The loaded tensors, without counters of batch norms, which always fit."""
        return [name for name in self.loaded if not name.endswith(COUNTER)]

    @property
    def complete(self) -> bool:
        """Whether all of the module comes from the file."""
        return bool(self.fitting) and not (self.missing or self.other_shape)

    @property
    def text(self) -> str:
        """A few aligned lines. In capitals what was not loaded and should have been."""
        found = f"'{self.container}'" if self.container else "at the top of the file"
        found += f", in the names of {self.naming}" if self.naming else ""
        found += f", without {' and '.join(map(repr, self.prefixes))}" if self.prefixes else ""
        part = "NOT ALL" if self.missing or self.other_shape else "all"
        pairs = ((self.missing, "missing in the file"), (self.other_shape, "of another shape"))
        carried, new = (shorten(names, 8) or "none" for names in (self.carried, self.new))
        same = " (the model held these values already)" if self.before == self.after else ""
        lines = [
            ("weights", f"{self.path}: {self.source}"),
            ("found", found),
            ("loaded", f"{count(self.loaded)}: {part} of {self.target}"),
            ("not loaded", ", ".join(f"{len(names):,} {what}" for names, what in pairs if names)),
            *(("left out", f"{len(names)} of {why}") for why, names in self.dropped.items()),
            ("converted", self.conversion),
            ("fingerprint", f"{self.before} -> {self.after}{same}"),
        ]
        if self.carried or self.new:
            lines.append(("classes", f"from the file: {carried}; random start: {new}"))
        lines.append(("queries", self.queries))
        body = [f"{label:<13}{what}" for label, what in lines if what]
        body += [f"WARNING      {each}" for each in self.warnings]
        if self.random:
            start = "random start " if self.whole else "STARTS FROM RANDOM VALUES: "
            body.append(start + shorten(self.random, 8))
        return "\n".join(body)

    @property
    def headline(self) -> str:
        """One line: the file, its origin, how much was loaded."""
        rest = "" if self.whole else "; THE REST STARTS FROM RANDOM VALUES"
        return f"{self.path} ({self.source}), {count(self.loaded)} of {self.target}{rest}"

    def as_dict(self) -> dict:
        """The same as plain types."""
        values = {"headline": self.headline} | asdict(self)
        for key in ("loaded", "missing", "other_shape", "unexpected"):
            values[key] = summary(values[key])
        values["dropped"] = {why: summary(names) for why, names in self.dropped.items()}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def sizes(names: Iterable[str], tensors: Mapping[str, Tensor]) -> Sizes:
    """The number of parameters of each of these tensors."""
    return {name: 0 if name.endswith(STATISTICS) else tensors[name].numel() for name in names}


def count(tensors: Sizes) -> str:
    return f"{len(tensors):,} tensors, {sum(tensors.values()):,} parameters"


def summary(tensors: Sizes) -> dict:
    return {"tensors": len(tensors), "parameters": sum(tensors.values()), "names": [*tensors]}


def shorten(names: Iterable[str], most: int) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def describe(tensor: Tensor) -> str:
    """The shape, and the dtype unless it is a floating point one."""
    shape = "x".join(map(str, tensor.shape)) or "one number"
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return shape + kind


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, in the given order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()
