"""Ctrl-C and SIGTERM: deferred until the current step has finished."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from engine import dist
from engine.log import info

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupted(KeyboardInterrupt):
    """A signal has ended the work; `exit_code` follows the shell's convention."""

    def __init__(self, number: int):
        super().__init__()
        self.exit_code = EXIT_CODES[number]


class GracefulStop:
    """Handles Ctrl-C and SIGTERM: the first sets `requested`, the second raises `Interrupted`."""

    def __init__(self, at_once: bool = False) -> None:
        self.signal: int | None = None
        self.at_once = at_once
        self._process = os.getpid()

    def __enter__(self) -> "GracefulStop":
        self._handlers = {each: signal.signal(each, self._handle) for each in EXIT_CODES}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if os.getpid() != self._process:  # a loader worker that was just forked
            return
        repeated, self.signal = self.signal is not None, self.signal or number
        if repeated or self.at_once:
            raise Interrupted(self.signal)
        with suppress(RuntimeError):  # the signal came while a line was being written
            info("stopping after this step, then saving; press Ctrl-C again to stop at once")

    def requested(self) -> bool:
        """Collective: whether any rank received a signal, so that all ranks stop together."""
        number = dist.max_over_ranks(self.signal or 0)
        if number:  # else keep a signal that arrived during the exchange for the next step
            self.signal = number
        return bool(number)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """A signal before or during the block raises `Interrupted` at once."""
        before, self.at_once = self.at_once, True
        try:
            if self.signal is not None:
                raise Interrupted(self.signal)
            yield
        finally:
            self.at_once = before
