"""The subset of YAML that data sets use: mappings, lists and texts, in block or flow style.

All scalars are text, because a class may be called "no" or "1.0"; empty ones are None. Anchors,
tags and the like are refused with their line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from data.errors import InputError

DOUBLE, SINGLE = r'"(?:[^"\\]|\\.)*"', r"'(?:[^']|'')*'"
PLAIN = r"[^\s'\"\[\]{},#&*!|>%@`?](?:[^:#]|:(?=\S)|(?<=\S)#)*?"
KEY = re.compile(rf"({DOUBLE}|{SINGLE}|{PLAIN})\s*:(?=\s|$)")
TOKEN = re.compile(  # in brackets
    rf"\s+|(?P<comment>(?:(?<=\s)|^)#[^\n]*)|(?P<text>{DOUBLE}|{SINGLE})|(?P<mark>[\[\]{{}},])|"
    r"(?P<colon>:(?=[\s\[\]{},\"']|$))|(?P<plain>[^\s\[\]{},:'\"#&*!|>%@`](?:[^\[\]{},:#\n]|:(?=\S)|(?<=\S)#)*)"
)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", '"': '"', "\\": "\\", "/": "/", " ": " "}
EMPTY = ("", "~", "null", "Null", "NULL")


def load(path: Path) -> Any:
    """The content of a file: records (dict), lists, texts and None.

    Raises:
        InputError: if it cannot be read, or uses more of YAML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as reason:
        raise InputError(f"{path} cannot be read ({reason}): save it as UTF-8 text") from None
    return Reader(text, path).document()


class Reader:
    """Reads the lines one after the other; `place` is the next one."""

    def __init__(self, text: str, path: Path) -> None:
        self.path, self.place = path, 0
        self.lines = re.split(r"\r\n|\r|\n", text)

    def refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"{self.path}, line {self.place + 1}: {what}: write plain keys with texts, lists and "
            "records, as `names: [crab, fish]`"
        )

    def document(self) -> Any:
        if self.next() and self.rest() == "---":
            self.place += 1
        value = self.block(self.indent()) if self.next() else None
        if self.next() and self.rest() != "...":
            self.refuse("its indentation fits no line above it")
        return value

    def next(self) -> bool:
        """Goes to the next line that is not blank, returns whether there is one."""
        while self.place < len(self.lines):
            text = self.lines[self.place].strip()
            if text and not text.startswith("#"):
                return True
            self.place += 1
        return False

    def indent(self) -> int:
        line = self.lines[self.place]
        if "\t" in line[: len(line) - len(line.lstrip())]:
            self.refuse("a tab stands before its text where YAML needs blanks")
        return len(line) - len(line.lstrip())

    def rest(self) -> str:
        return self.lines[self.place].strip()

    def block(self, indent: int) -> Any:
        """A list or a record whose lines have this indentation."""
        return self.items(indent) if is_item(self.rest()) else self.record(indent)

    def items(self, indent: int) -> list:
        found = []
        while self.next() and self.indent() == indent and is_item(self.rest()):
            text = self.rest()[1:].strip()
            if is_item(text) or KEY.match(text):
                self.refuse("a list of lists or records")
            found.append(self.value(text, indent, inside_list=True))
        return found

    def record(self, indent: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.next() and self.indent() == indent and self.rest() != "...":
            key = KEY.match(self.rest())
            if not key:
                self.refuse(f"{self.rest()[:60]!r} is no `key: value`")
            name = self.scalar(key[1])
            if name in found:
                self.refuse(f"the key {name!r} is there twice")
            found[str(name)] = self.value(self.rest()[key.end() :].strip(), indent)
        return found

    def value(self, text: str, indent: int, inside_list: bool = False) -> Any:
        """What stands behind a key or a dash, and in the lines that belong to it."""
        if text.startswith(("[", "{")):
            return self.flow(text)
        if re.fullmatch(r"[|>][-+0-9]*(\s+#.*)?", text):
            return self.literal(indent)
        if text and not text.startswith("#"):
            value = self.scalar(text)
            self.place += 1
            if self.next() and self.indent() > indent:
                self.refuse("a text that goes on in the next line, or an indentation that is wrong")
            return value
        self.place += 1
        if not self.next():
            return None
        deeper = self.indent() > indent
        if deeper or (not inside_list and self.indent() == indent and is_item(self.rest())):
            return self.block(self.indent())
        return None

    def literal(self, indent: int) -> str:
        """The lines of a text after | or >, with their line breaks."""
        self.place += 1
        start = self.place
        while self.place < len(self.lines):
            line = self.lines[self.place]
            if line.strip() and len(line) - len(line.lstrip()) <= indent:
                break
            self.place += 1
        return "\n".join(line.strip() for line in self.lines[start : self.place])

    def scalar(self, text: str) -> str | None:
        """A text with or without quotes, and perhaps a comment."""
        quoted = re.match(rf"({DOUBLE}|{SINGLE})\s*(#.*)?$", text)
        if quoted:
            return unquoted(quoted[1])
        if text[0] in "\"'&*!|>%@`?[]{}," or re.search(r":\s", text):
            self.refuse(f"{text[:60]!r} is more of YAML than is read here")
        plain = re.split(r"\s#", text)[0].strip()
        return None if plain in EMPTY else plain

    def flow(self, text: str) -> Any:
        """A list or a record in brackets, which may go over several lines: json with its texts in
        quotes.
        """
        parts: list[str] = []
        start, depth = self.place, 0
        while True:
            place = 0
            while place < len(text) and (depth or not parts):
                token = TOKEN.match(text, place)
                if not token:
                    self.refuse(f"{text[place : place + 60]!r} cannot be read")
                place, kind = token.end(), token.lastgroup
                if kind in ("text", "plain"):
                    parts.append(json.dumps(self.scalar(token[0].strip())))
                elif kind in ("mark", "colon"):
                    depth += (token[0] in "[{") - (token[0] in "]}")
                    if token[0] in ",}" and parts[-1:] == [":"]:  # a key without a value
                        parts.append("null")
                    if token[0] in "]}" and parts[-1:] == [","] and parts[-2:-1] != ["["]:
                        parts.pop()
                    parts.append(token[0])
            if not depth:
                break
            self.place += 1
            if self.place >= len(self.lines):
                self.place = start
                self.refuse("a bracket is not closed")
            text = self.lines[self.place]
        if text[place:].strip() and not text[place:].strip().startswith("#"):
            self.refuse(f"{text[place:].strip()[:60]!r} after a bracket")
        try:
            value = json.loads("".join(parts), object_pairs_hook=self.unique)
        except json.JSONDecodeError:
            self.refuse("brackets that hold neither [a, b] nor {key: value}")
        self.place += 1
        return value

    def unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self.refuse("a key in brackets is there twice")
        return found


def is_item(text: str) -> bool:
    return text == "-" or text.startswith("- ")


def unquoted(text: str) -> str:
    if text[0] == "'":
        return text[1:-1].replace("''", "'")

    def meant(escape: re.Match) -> str:
        if escape[1]:
            return chr(int(escape[1][1:], 16))
        return ESCAPES.get(escape[2], escape[0])  # a path of Windows has others

    return re.sub(r"\\(?:(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})|(.))", meant, text[1:-1])
