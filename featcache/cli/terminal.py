"""What a person sees while a command works: sentences and progress bars, all on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

from featcache.progress import ProgressBar, terminal_screen
from featcache.text import message_line

WARNING = "warning: "


class Terminal:
    """A Reporter: sentences to stderr, and a progress bar for a stage that takes longer than two seconds.

    Bars are shown on a terminal only; `quiet` leaves nothing but warnings. While it is open, whatever libraries
    print goes to stderr too: stdout belongs to results. `clock` gives seconds.
    """

    def __init__(
        self, *, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._bar = ProgressBar(None if quiet else terminal_screen(self._stream), clock=clock)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(contextlib.redirect_stdout(self._stream))
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._open.close()

    def info(self, text: str) -> None:
        """One sentence that is worth reading; a warning is never left out."""
        if not self._quiet or text.startswith(WARNING):
            self._print(text)

    def warn(self, text: str) -> None:
        """One sentence that must not be overlooked."""
        self._print(f"{WARNING}{text}")

    def _print(self, text: str) -> None:
        line = message_line(text)
        if not self._bar.print_above(line):
            print(line, file=self._stream, flush=True)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """`done` of `total` images are through `stage`, or epochs or bytes: see `ProgressBar.advance`."""
        self._bar.advance(stage, done, total, bound=bound)
