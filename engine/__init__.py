"""Training, evaluation and use: the only package that imports both `data` and `mobileinst`.

For notebooks and programs: `engine.load`, `engine.train`, `engine.evaluate`, see engine/api.py.
"""

import signal
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import data

if sys.argv[0] == "-m":  # a command: Ctrl-C during imports ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

HERE = Path(__file__).parent
FOUND = Path(next(iter(getattr(data, "__path__", [data.__file__])))).resolve()
if FOUND != HERE.with_name("data").resolve():
    raise ImportError(
        f"{FOUND} hides the package 'data' of this library; rename it, or start Python elsewhere"
    )


class Command(ModuleType):
    """A module that is a command, `python -m engine.train`, and a function, `engine.train(...)`."""

    def __call__(self, *args: object, **options: object) -> object:
        return getattr(import_module("engine.api"), self.__name__.removeprefix("engine."))(
            *args, **options
        )


def __getattr__(name: str) -> object:
    """Imports modules on first use, so that `import engine` is fast."""
    if name == "load":
        return import_module("engine.api").load
    if name in ("train", "evaluate"):
        return import_module(f"engine.{name}")
    raise AttributeError(f"module 'engine' has no attribute '{name}'")
