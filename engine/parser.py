"""The parser of the commands, and how an option is declared."""

import argparse
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import field
from pathlib import Path
from typing import NoReturn

from data.errors import InputError
from engine import values
from engine.values import fraction, is_unset, positive, positive_real, real, shown, whole
from mobileinst.config import did_you_mean

WIDTH = 98  # of --help at most


class HelpFormatter(argparse.HelpFormatter):
    """Adds defaults and metavars to --help, and breaks no names at hyphens."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(WIDTH, shutil.get_terminal_size().columns - 2))

    def add_usage(
        self, usage: None, actions: Iterable[argparse.Action], groups: object, prefix: object = None
    ) -> None:
        """Shows required arguments only; the list of all options follows."""
        words = ["%(prog)s", "[options]"]
        for action in actions:
            default = self._get_default_metavar_for_optional(action)
            if not action.option_strings:
                words.append(self._format_args(action, action.dest))
            elif action.required:
                words += [action.option_strings[0], self._format_args(action, default)]
        super().add_usage(" ".join(words), actions, groups, prefix)

    def _get_help_string(self, action: argparse.Action) -> str:
        if is_unset(action.default) or action.default == argparse.SUPPRESS:
            return action.help
        return f"{action.help} (default: {shown(action.default)})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return METAVARS.get(action.type, action.dest.upper())

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """The parser of an entry; raises InputError for wrong arguments."""

    def __init__(self, description: str) -> None:
        # No abbreviations: the scripts look for some options by their full names.
        super().__init__(
            prog=os.environ.get("MOBILEINST_SCRIPT"),
            description=description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Also names the option, or the value of one, that is closest to a mistyped one."""
        _, _, unknown = message.partition("unrecognized arguments: ")
        known = [name for name in self._option_string_actions if name.startswith("--")]
        words = [word.partition("=")[0] for word in unknown.split() if word.startswith("--")]
        wrong = re.search(r"argument (\S+): invalid choice: '(.*?)'", message)
        for action in self._actions:
            if wrong and wrong[1] in (*action.option_strings, action.metavar, action.dest):
                known, words = list(action.choices), [wrong[2]]
        if hint := did_you_mean(words, known):
            message = re.sub(r" \(choose from .*\)", "", message)  # the names are in --help
        elif not message.endswith("?"):
            hint = "--help lists all options"
        raise InputError(f"{message}; {hint}" if hint else message)


METAVARS = {
    **dict.fromkeys((int, values.integer, positive, whole), "N"),
    **dict.fromkeys((float, positive_real, real, fraction, values.decay), "X"),
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
