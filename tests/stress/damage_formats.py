"""What is damaged in a set of any format: values, numbers, text, files, and paths."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numpy.random import Generator

from tests.stress.formats import SETS
from tests.stress.sets import (
    NAMES,
    NAMES_THAT_LEAD_AWAY,
    ODD_NAMES,
    WRONG,
    Expected,
    SmallSet,
    broken_bytes,
    pick,
)

TEXTS = (".json", ".xml", ".csv", ".txt", ".yaml", ".geojson")
ODD_NUMBERS = (
    "NaN", "Infinity", "-1", "0", "1e8", "1e308", "9" * 30, "1.5", "-0.0", "x", "", '"7"', "null",
    "[]", "2147483648", "0x10", "1,5",
)  # fmt: skip


def containers(content: Any) -> Iterator[dict | list]:
    """Every record and list in the content of a json file."""
    if isinstance(content, (dict, list)):
        yield content
        for inner in content.values() if isinstance(content, dict) else content:
            yield from containers(inner)


def text_of(rng: Generator, made: SmallSet, suffixes: tuple[str, ...]) -> str | None:
    """The name of a file with one of these suffixes."""
    names = sorted(name for name in made.files if name.endswith(suffixes))
    return pick(rng, names) if names else None


def values(rng: Generator, made: SmallSet) -> Expected:
    """A field of a json is gone, wrong or repeated; a number of another text file is odd."""
    name = text_of(rng, made, (".json", ".geojson"))
    if name is None:
        return numbers(rng, made)
    content = json.loads(made.files[name])
    inside = pick(rng, [one for one in containers(content) if one])
    keys = list(inside) if isinstance(inside, dict) else range(len(inside))
    key = pick(rng, keys)
    which = int(rng.integers(4))
    if which == 0:
        del inside[key]
    elif which == 1 and isinstance(inside, list):
        inside.append(inside[key])
    else:
        inside[key] = pick(rng, WRONG)
    made.files[name] = json.dumps(content).encode()
    return Expected(("",))


def numbers(rng: Generator, made: SmallSet) -> Expected:
    """A number in a text file is another one, or none."""
    name = text_of(rng, made, TEXTS)
    if name is None:
        return files(rng, made)
    text = made.files[name].decode()
    digits = [place for place, letter in enumerate(text) if letter.isdigit()] or [0]
    start = end = pick(rng, digits)
    while end < len(text) and text[end] in "0123456789.":
        end += 1
    made.files[name] = (text[:start] + pick(rng, ODD_NUMBERS) + text[end:]).encode()
    return Expected(("",))


def text(rng: Generator, made: SmallSet) -> Expected:
    """A text file is cut short, encoded otherwise, has other letters or lines, or entities."""
    name = text_of(rng, made, TEXTS)
    if name is None:
        return files(rng, made)
    before = made.files[name].decode()
    place = int(rng.integers(len(before)))
    lines = before.splitlines()
    line = int(rng.integers(len(lines)))
    odd = [
        before[:place], before[:place] + chr(int(rng.integers(1, 1000))) + before[place + 1 :], "",
        "null", "[]", "{}", "[" * 100_000, f"[{before}]", before + before,
        "\n".join(lines[:line] + lines[line + 1 :]), "\n".join([*lines, lines[line]]),
        before.replace(":", ": &anchor "), before.replace("crab", "\x1b[31m"),
        before.replace("crab", "x" * 3000), before.replace("crab", ""),
    ]  # fmt: skip
    encoding = pick(rng, ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"))
    made.files[name] = pick(rng, odd).encode(encoding, "surrogatepass")
    return Expected(("",))


def files(rng: Generator, made: SmallSet) -> Expected:
    """A file is missing, broken, another one, a folder or a link."""
    name = pick(rng, sorted(made.files))
    which = int(rng.integers(5))
    if which < 2:
        made.files[name] = broken_bytes(rng, made.files[name])
    elif which == 2:
        made.files[name] = made.files[pick(rng, sorted(made.files))]
    else:
        del made.files[name]
        if which == 3:
            made.files[f"{name}/inside.bin"] = b"a folder with the name of a file"
        elif rng.integers(2):
            made.files[str(Path(name).with_name("beside.bin"))] = b""
            made.links[name] = pick(rng, ("gone.png", "/etc", "../..", "beside.bin"))
    return Expected(("",))


def paths(rng: Generator, made: SmallSet) -> Expected:
    """The name of an image leads out of the folder, or is odd."""
    name = text_of(rng, made, TEXTS)
    if name is None:
        return files(rng, made)
    old = pick(rng, NAMES)
    stem = pick(rng, (*NAMES_THAT_LEAD_AWAY, *ODD_NAMES)).removesuffix(".png")
    raw = made.files[name].decode()
    new = json.dumps(stem)[1:-1] if name.endswith("json") else stem
    made.files[name] = raw.replace(old, new).encode("utf-8", "surrogatepass")
    return Expected(("",))


CHANGES = {"values": values, "numbers": numbers, "text": text, "files": files, "paths": paths}
OF_FORMATS: dict[str, tuple[Callable[[], SmallSet], Callable]] = {
    f"{name}: {what}": (base, change)
    for name, base in SETS.items()
    for what, change in CHANGES.items()
}
