"""What came of loading a file, for people and for a json file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import torch

from mobileinst.weights.names import COUNTER, RECOMPUTED

STATISTICS = ("running_mean", "running_var", COUNTER, *RECOMPUTED)


@dataclass(frozen=True)
class Tally:
    """Some of the tensors: their names, and how many parameters they hold (no statistics)."""

    names: tuple[str, ...] = ()
    parameters: int = 0

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, names: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> "Tally":
        """The tally of those names, sizes as in `tensors`."""
        names = tuple(names)
        learned = (name for name in names if not name.endswith(STATISTICS))
        return cls(names, sum(tensors[name].numel() for name in learned))

    def __str__(self) -> str:
        return f"{len(self):,} tensors, {self.parameters:,} parameters"


@dataclass(frozen=True)
class Report:
    """What came of loading a file into a module.

    path, source, container, naming, prefixes: the file, what it is, the key its tensors were under
    ("" at the top), in whose names they were ("" if in these), what was taken off them. target:
    what was loaded into. whole: whether all was filled that the file was meant for.
    loaded: copied. missing, other_shape: of the target, left as they were (`allow_partial`).
    unexpected: of the file, without a place. dropped: reason -> left out on purpose.
    conversion: of number formats, "" if none. before, after: fingerprints of the loaded tensors.
    carried, new: classes whose rows came from the file, and those whose rows start from random
    values. random: parts that start from random values. warnings: sentences.
    """

    path: str
    source: str
    container: str
    naming: str
    prefixes: tuple[str, ...]
    target: str
    whole: bool
    loaded: Tally
    missing: Tally
    other_shape: Tally
    unexpected: Tally
    dropped: dict[str, Tally]
    conversion: str
    before: str
    after: str
    carried: tuple[str, ...]
    new: tuple[str, ...]
    random: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def headline(self) -> str:
        """One line: the file, what it is, how much came in."""
        alone = "" if self.whole else "; THE REST STARTS FROM RANDOM VALUES"
        return f"{self.path} ({self.source}), {self.loaded} of {self.target}{alone}"

    @property
    def text(self) -> str:
        """A few aligned lines."""
        where = f"'{self.container}'" if self.container else "at the top of the file"
        cut = f", without {' and '.join(map(repr, self.prefixes))}" if self.prefixes else ""
        whose = f", in the names of {self.naming}" if self.naming else ""
        part = "NOT ALL" if self.missing or self.other_shape else "all"
        changed = "" if self.before != self.after else " (the model held these values already)"
        lines = [
            ("weights", f"{self.path}: {self.source}"),
            ("found", where + whose + cut),
            ("loaded", f"{self.loaded}: {part} of {self.target}"),
            ("not loaded", self._not_loaded()),
            *(("left out", f"{len(each)} of {reason}") for reason, each in self.dropped.items()),
            ("converted", self.conversion),
            ("fingerprint", f"{self.before} -> {self.after}{changed}"),
            ("classes", self._classes()),
            *(("WARNING", each) for each in self.warnings),
        ]
        body = [f"{name:<13}{what}" for name, what in lines if what]
        return "\n".join([*body, *self._random()])

    def _not_loaded(self) -> str:
        pairs = ((self.missing, "missing in the file"), (self.other_shape, "of another shape"))
        return ", ".join(f"{len(tally):,} {what}" for tally, what in pairs if tally)

    def _classes(self) -> str:
        if not (self.carried or self.new):
            return ""
        carried, new = (shorten(each, 8) or "none" for each in (self.carried, self.new))
        return f"carried over: {carried}; from random values: {new}"

    def _random(self) -> list[str]:
        """In capitals where something was to be loaded and was not."""
        if not self.random:
            return []
        names = shorten(self.random, 8)
        if self.whole:
            return [f"{'drawn anew':<13}{names}"]
        return [f"STARTS FROM RANDOM VALUES: {names}"]

    def as_dict(self) -> dict:
        """The same as plain types."""
        values = {each.name: plain(getattr(self, each.name)) for each in fields(self)}
        return {"headline": self.headline} | values


def plain(value: object) -> object:
    """A field of a report as json has it."""
    if isinstance(value, Tally):
        own = {"tensors": len(value), "parameters": value.parameters}
        return own | {"names": list(value.names)}
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def shorten(names: Iterable[str], most: int) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def describe(tensor: torch.Tensor) -> str:
    """The shape, and what kind of numbers if not real ones."""
    shape = "x".join(map(str, tensor.shape)) or "one number"
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return shape + kind
