"""The base of the systems' configs: plain values in and out, and the range of every keyword."""

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, ClassVar

FULL_RANGE = (0, 100_000)  # of a keyword that states no range


def within(least: float, most: float, default: Any) -> Any:
    """A keyword with a range; in a tuple, that of every number."""
    return field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True)
class Config:
    """The keywords that a model is built from, as plain values.

    drop_path: of the backbone. frozen_norms, frozen_depthwise, frozen_stride: BatchNorms of a
    pretrained backbone, its depth-wise filters, and its layers up to this stride (0: none), stay as
    loaded.
    mask_threshold, max_detections: of post-processing.

    Raises:
        ValueError: if a value has another type than its default or is out of range.
    """

    system: ClassVar[str]  # its name in the zoo

    backbone: str
    num_classes: int = within(1, 100_000, 80)
    drop_path: float = within(0, 0.99, 0.1)
    frozen_norms: bool = False
    frozen_depthwise: bool = False
    frozen_stride: int = 0
    mask_threshold: float = within(1e-6, 1 - 1e-6, 0.5)  # the logits of 0 and 1 are infinite
    max_detections: int = within(1, 100_000, 100)

    def __post_init__(self) -> None:
        for keyword in fields(self):
            value = getattr(self, keyword.name)
            if not fits(keyword, value):
                raise wrong_value(keyword, reprlib.repr(value))

    def backbone_keywords(self) -> dict[str, Any]:
        """The keywords that the backbone is built with."""
        return {"drop_path": self.drop_path}

    def to_dict(self) -> dict[str, Any]:
        return {"system": self.system} | asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The config of `to_dict`, given without its system.

        Raises:
            ValueError: if a keyword is unknown or its value wrong.
        """
        for name in values:
            cls.keyword(name)
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    @classmethod
    def keyword(cls, name: str) -> Field:
        """The field of a keyword; raises ValueError if there is none."""
        known = {each.name: each for each in fields(cls)}
        if name not in known:
            hint = did_you_mean([name[:40]], known) or f"it has {', '.join(known)}"
            raise ValueError(f"{cls.system} has no keyword {name[:40]!r}; {hint}")
        return known[name]

    @classmethod
    def parse(cls, name: str, text: str) -> Any:
        """The value of a keyword from text; a tuple as 2,2,6.

        Raises:
            ValueError: if there is no such keyword, or the text is no value of its type.
        """
        keyword = cls.keyword(name)
        kind = type(keyword.default)
        try:
            if kind is bool:
                return {"true": True, "false": False}[text]
            return tuple(map(int, text.split(","))) if kind is tuple else kind(text)
        except (ValueError, KeyError):
            raise wrong_value(keyword, text) from None


def did_you_mean(words: Iterable[str], known: Sequence[str]) -> str:
    """The names that are closest to mistyped ones, as a question; empty if none is close."""
    near = [difflib.get_close_matches(word, known, 1, cutoff=0.65) for word in words]
    found = [each[0] for each in near if each]
    return f"did you mean {', '.join(found)}?" if found else ""


def fits(keyword: Field, value: object) -> bool:
    """Whether a value has the type of a keyword and is in its range."""
    least, most = keyword.metadata.get("range", FULL_RANGE)
    kind = type(keyword.default)
    if kind in (bool, str):
        return type(value) is kind
    if kind is tuple:
        numbers = type(value) is tuple and len(value) < 20
        return numbers and all(type(each) is int and least <= each <= most for each in value)
    return type(value) in (kind, int) and least <= value <= most


def wrong_value(keyword: Field, value: str) -> ValueError:
    least, most = keyword.metadata.get("range", FULL_RANGE)
    allowed = {
        bool: "true or false",
        str: "a name",
        int: f"a whole number from {least} to {most}",
        float: f"a number from {least:g} to {most:g}",
        tuple: f"whole numbers from {least} to {most}, as 2,2,6",
    }[type(keyword.default)]
    return ValueError(f"{keyword.name} is {value}, but must be {allowed}")
