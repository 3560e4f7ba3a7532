"""The base of the systems' configs: plain values in and out, and the range of every keyword."""

import reprlib
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, ClassVar

LARGEST = 100_000  # value of a keyword that states no range


def within(least: float, most: float, default: Any) -> Any:
    """A keyword with a range; that of every number where its default is a tuple."""
    return field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True)
class Config:
    """Everything between a name and a built model; plain values, stored in checkpoints as they are.

    drop_path: of the backbone. frozen_norms, frozen_stride: of a pretrained backbone, whose
    BatchNorms, and layers up to this stride (0: none), keep the values they were given.
    mask_threshold, max_detections: of post-processing.

    Raises:
        ValueError: if a value has another type than its default or is out of range; names the
            keyword, the value, and what it can be.
    """

    system: ClassVar[str]  # its name in the zoo

    backbone: str
    num_classes: int = within(1, LARGEST, 80)
    drop_path: float = within(0, 0.99, 0.1)
    frozen_norms: bool = False
    frozen_stride: int = 0
    mask_threshold: float = within(1e-6, 1 - 1e-6, 0.5)  # the logits of 0 and 1 are infinite
    max_detections: int = within(1, LARGEST, 100)

    def __post_init__(self) -> None:
        for keyword in fields(self):
            require(keyword, getattr(self, keyword.name))

    def backbone_keywords(self) -> dict[str, Any]:
        """The keywords that the backbone is built with."""
        return {"drop_path": self.drop_path}

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values, to be stored."""
        return {"system": self.system} | asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The config of `to_dict`, without its system.

        Raises:
            ValueError: if a keyword is unknown or a value is not one it can have.
        """
        for name in values:
            cls.keyword(name)
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    @classmethod
    def keyword(cls, name: str) -> Field:
        """The field of a keyword.

        Raises:
            ValueError: if there is none of this name; lists those there are.
        """
        known = {each.name: each for each in fields(cls)}
        if name not in known:
            raise ValueError(
                f"{cls.system} has no keyword {name[:40]!r}; it has {', '.join(known)}"
            )
        return known[name]

    @classmethod
    def parse(cls, name: str, text: str) -> Any:
        """The value that a text gives a keyword; several whole numbers as 2,2,6.

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
            raise ValueError(f"{name} is {text}, and can be {allowed(keyword)}") from None


def range_of(keyword: Field) -> tuple[float, float]:
    """The smallest and the largest number that a keyword can be."""
    return keyword.metadata.get("range", (0, LARGEST))


def require(keyword: Field, value: object) -> None:
    """Raises ValueError unless the value has the type of a keyword and is in its range."""
    least, most = range_of(keyword)
    kind = type(keyword.default)
    if kind is tuple:
        fits = type(value) is tuple and len(value) < 20
        fits = fits and all(type(each) is int and least <= each <= most for each in value)
    else:
        fits = type(value) is kind or kind is float and type(value) is int
        fits = fits and (kind in (bool, str) or least <= value <= most)
    if not fits:
        what = reprlib.repr(value)
        raise ValueError(f"{keyword.name} is {what}, and can be {allowed(keyword)}")


def allowed(keyword: Field) -> str:
    """What a keyword can be, in words."""
    least, most = range_of(keyword)
    return {
        bool: "true or false",
        str: "a name",
        int: f"a whole number from {least} to {most}",
        float: f"a number from {least:g} to {most:g}",
        tuple: f"whole numbers from {least} to {most}, as 2,2,6",
    }[type(keyword.default)]
