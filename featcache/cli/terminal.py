"""What a person sees while a command works: sentences and progress bars, all on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self, TextIO

from featcache.cli.printing import human_seconds
from featcache.extraction.reporting import human_bytes

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

# Whatever is over sooner needs no bar.
_PATIENCE_S = 2.0
WARNING = "warning: "
_SLOWEST = {"decode": "decoding is slowest", "compute": "computing is slowest", "write": "the disk is slowest"}
_COUNTED_IN = {
    "training": "epochs",
    "sweeping": "epochs",
    "heads": "heads",
    "packing": "bytes",
    "verifying": "bytes",
    "judging": "folds",
    "segments": "segments",
}


class Terminal:
    """A Reporter: sentences to stderr, and a progress bar for a stage that takes longer than two seconds.

    Bars are shown on a terminal only; `quiet` leaves nothing but warnings. While it is open, whatever libraries
    print goes to stderr too: stdout belongs to results. `clock` gives seconds.
    """

    def __init__(
        self, *, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._quiet = quiet
        self._bars = not quiet and self._stream is not None and self._stream.isatty()
        self._open = contextlib.ExitStack()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._began, self._first = 0.0, 0

    def __enter__(self) -> Self:
        self._open.enter_context(contextlib.redirect_stdout(self._stream))
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self._open.close()

    def say(self, text: str) -> None:
        """One sentence that is worth reading; a warning is never left out."""
        if not self._quiet or text.startswith(WARNING):
            self._print(text)

    def warn(self, text: str) -> None:
        """One sentence that must not be overlooked."""
        self._print(f"{WARNING}{text}")

    def _print(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """`done` of `total` (images, epochs or bytes: see `_COUNTED_IN`) are through `stage`.

        `bound` names what it waits for most of all, where that is known.
        """
        if not self._bars:
            return
        if stage != self._stage:
            self._finish()
            self._stage, self._began, self._first = stage, self._clock(), done
        passed = self._clock() - self._began
        if self._progress is None and passed > _PATIENCE_S and done < total:
            self._begin(total)
        if self._progress is not None and self._task is not None:
            average = (done - self._first) / passed
            description = f"{stage}, {_SLOWEST.get(bound or '', '')}".rstrip(", ")
            self._progress.update(self._task, description=description, completed=done, total=total, average=average)
        if done >= total:
            self._finish()

    def _begin(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *_counting(_COUNTED_IN.get(self._stage, "images")),
            console=Console(file=self._stream),
            transient=True,
            speed_estimate_period=60,
            get_time=self._clock,
        )
        self._task = self._progress.add_task(self._stage, total=total, average=0.0)
        self._progress.start()

    def _finish(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task, self._stage = None, None, ""


def _counting(unit: str) -> Sequence[ProgressColumn]:
    """How far, how fast, and how long still."""
    from rich.progress import DownloadColumn, MofNCompleteColumn, ProgressColumn, Task
    from rich.text import Text

    def speed(task: Task) -> float:
        # Rich knows one after two updates, which may be a minute apart.
        return float(task.speed or task.fields["average"])

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = speed(task)
            return Text(f"{human_bytes(rate)}/s" if unit == "bytes" else f"{rate:,.1f} {unit}/s")

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = speed(task)
            return Text(f"{human_seconds((task.remaining or 0) / rate)} left" if rate else "")

    return DownloadColumn() if unit == "bytes" else MofNCompleteColumn(), Rate(), Left()
