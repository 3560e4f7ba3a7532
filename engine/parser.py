"""The parser of the commands, and how an option is declared."""

import argparse
import difflib
import re
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import NoReturn

from data.errors import InputError
from engine import values
from engine.values import fraction, is_unset, positive, positive_real, real, shown, whole


class HelpFormatter(argparse.HelpFormatter):
    """Adds the defaults to --help."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if is_unset(action.default) or action.default == argparse.SUPPRESS:
            return action.help
        return f"{action.help} (default: {shown(action.default)})"


class Parser(argparse.ArgumentParser):
    """The parser of an entry; raises InputError for wrong arguments."""

    def __init__(self, description: str) -> None:
        # No abbreviations: the scripts look for some options by their full names.
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Also names the option, or the value of one, that is closest to a mistyped one."""
        _, _, unknown = message.partition("unrecognized arguments: ")
        known = [name for name in self._option_string_actions if name.startswith("--")]
        words = [word.partition("=")[0] for word in unknown.split() if word.startswith("--")]
        if wrong := re.search(r"argument (--[\w-]+).*invalid choice: '(.*?)'", message):
            known, words = list(self._option_string_actions[wrong[1]].choices), [wrong[2]]
        near = [difflib.get_close_matches(word, known, 1) for word in words]
        hint = ", ".join(each[0] for each in near if each)
        raise InputError(
            f"{message}; did you mean {hint}?" if hint else f"{message}; --help lists all options"
        )


METAVARS = {
    **dict.fromkeys((values.integer, positive, whole), "N"),
    **dict.fromkeys((positive_real, real, fraction, values.decay), "X"),
    **{Path: "PATH", values.canvas: "HxW"},
}


def option(
    default: object,
    convert: Callable[[object], object],
    help: str,
    group: str | None = None,
    **argument: object,
):
    """Declares an option of this default, None where the value follows from something else.

    `convert` makes a value of a text or a value. `group` is the heading of this option and the
    following ones in --help. `argument` is for `add_argument`.
    """
    about = {"convert": convert, "help": help, "group": group, "argument": argument}
    return field(default=default, metadata=about)
