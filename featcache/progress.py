"""Progress bars for long calls: on a terminal's stderr, or below the cell of a notebook.

    with call_bar(progress) as bar:
        bar.advance("training", 3, 100)

The command line and the Python functions use the same bar. rich is imported when the first bar is drawn.
"""

from __future__ import annotations

import importlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from featcache.errors import InvalidOption
from featcache.text import human_bytes, human_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

#: Called with a stage, the images done and the images in all.
StageProgress = Callable[[str, int, int], None]

# A shorter stage needs no bar.
_SHORTEST_S = 2.0
# A notebook gets a message over the network for each change that it shows.
_NOTEBOOK_INTERVAL_S = 0.2
_NOTEBOOK_WIDTH = 120
_SLOWEST = {"decode": "decoding is slowest", "compute": "computing is slowest", "write": "the disk is slowest"}
_UNITS = {
    "training": "epochs",
    "solving": "candidates",
    # Heads that are trained count epochs, those that are solved candidates.
    "sweeping": "%",
    "heads": "heads",
    "packing": "bytes",
    "verifying": "bytes",
    "digesting": "bytes",
    "copying": "bytes",
    "comparing": "bytes",
    "judging": "folds",
    "mapping features": "maps",
    "segments": "segments",
    "exporting": "rows",
}


class Screen(Protocol):
    """Where a bar is drawn."""

    def open(self, columns: Sequence[ProgressColumn], clock: Callable[[], float]) -> Progress:
        """The rich display of a new bar."""

    def show(self, progress: Progress) -> None:
        """Draw it again: its numbers have changed."""

    def close(self, progress: Progress) -> None:
        """Its stage has ended."""


class TerminalScreen:
    """A terminal. rich draws the bar in a thread of its own, and removes it at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def open(self, columns: Sequence[ProgressColumn], clock: Callable[[], float]) -> Progress:
        """The rich display of a new bar."""
        from rich.console import Console
        from rich.progress import Progress

        console = Console(file=self._stream, force_jupyter=False)
        progress = Progress(*columns, console=console, transient=True, speed_estimate_period=60, get_time=clock)
        progress.start()
        return progress

    def show(self, progress: Progress) -> None:
        """rich's thread does it."""

    def close(self, progress: Progress) -> None:
        """Remove the bar."""
        progress.stop()


class NotebookScreen:
    """The output of a notebook's cell, where the bar is text that is replaced. It needs no ipywidgets."""

    def __init__(self) -> None:
        self._clock: Callable[[], float] = time.monotonic
        self._handle: Any = None
        self._shown = 0.0

    def open(self, columns: Sequence[ProgressColumn], clock: Callable[[], float]) -> Progress:
        """A display that rich does not draw by itself."""
        from rich.console import Console
        from rich.progress import Progress

        console = Console(file=io.StringIO(), width=_NOTEBOOK_WIDTH, color_system=None, force_jupyter=False)
        self._clock, self._handle, self._shown = clock, None, 0.0
        return Progress(*columns, console=console, auto_refresh=False, speed_estimate_period=60, get_time=clock)

    def show(self, progress: Progress) -> None:
        """Replace the text, a few times a second at most."""
        if self._handle is None or self._clock() - self._shown >= _NOTEBOOK_INTERVAL_S:
            self._replace(progress)

    def close(self, progress: Progress) -> None:
        """Leave the last numbers in the cell."""
        self._replace(progress)

    def _replace(self, progress: Progress) -> None:
        with progress.console.capture() as capture:
            progress.console.print(progress.get_renderable())
        content = {"text/plain": capture.get().rstrip()}
        if self._handle is None:
            display = importlib.import_module("IPython.display").display
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
        self._shown = self._clock()


def in_notebook() -> bool:
    """Whether this code runs in an IPython kernel, as that of Jupyter or Colab."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


def terminal_screen(stream: TextIO | None) -> TerminalScreen | None:
    """A screen on `stream`; None where it is no terminal."""
    return TerminalScreen(stream) if stream is not None and stream.isatty() else None


class ProgressBar:
    """A bar for each stage that takes longer than two seconds, one at a time. Use it as a context manager.

    Args:
        screen: Where it is drawn; None draws nothing.
        clock: Returns seconds.
    """

    def __init__(self, screen: Screen | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._screen, self._clock = screen, clock
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._began, self._first = 0.0, 0

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """`done` of `total` (images, epochs or bytes: see `_UNITS`) are through `stage`.

        `bound` names what limits the speed ("decode", "compute", "write"), where that is known.
        """
        if self._screen is None:
            return
        if stage != self._stage:
            self.close()
            self._stage, self._began, self._first = stage, self._clock(), done
        passed = self._clock() - self._began
        if self._progress is None and passed > _SHORTEST_S and done < total:
            self._progress = self._screen.open(_columns(_UNITS.get(stage, "images")), self._clock)
            self._task = self._progress.add_task(stage, total=total, average=0.0)
        if self._progress is not None and self._task is not None:
            average = (done - self._first) / passed if passed else 0.0
            description = f"{stage}, {_SLOWEST.get(bound or '', '')}".rstrip(", ")
            self._progress.update(self._task, description=description, completed=done, total=total, average=average)
            self._screen.show(self._progress)
        if done >= total:
            self.close()

    def print_above(self, text: str) -> bool:
        """Print a line above the bar of a terminal; False where there is no such bar now."""
        if self._progress is None or not isinstance(self._screen, TerminalScreen):
            return False
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        return True

    def close(self) -> None:
        """End the bar of the current stage, if there is one."""
        if self._screen is not None and self._progress is not None:
            self._screen.close(self._progress)
        self._progress, self._task, self._stage = None, None, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def call_bar(progress: object) -> ProgressBar:
    """The bar for the `progress` argument of a Python function.

    Args:
        progress: None or True: a bar, in a terminal or a notebook. False, or the caller's own function: none.

    Raises:
        InvalidOption: It is something else.
    """
    if progress is False or callable(progress):
        return ProgressBar(None)
    if progress is not None and progress is not True:
        raise InvalidOption(f"expected progress to be True, False or a function, got {progress!r}")
    return ProgressBar(NotebookScreen() if in_notebook() else terminal_screen(sys.stderr))


@contextmanager
def stage_progress(progress: StageProgress | bool | None) -> Iterator[StageProgress]:
    """What a function calls with (stage, done, total), for its `progress` argument: the caller's function, or a bar.

    Raises InvalidOption, as `call_bar` does.
    """
    with call_bar(progress) as bar:
        yield progress if callable(progress) else bar.advance


def _columns(unit: str) -> Sequence[ProgressColumn]:
    """The stage, the bar, the count, the speed and the time left."""
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
    from rich.text import Text

    def speed(task: Task) -> float:
        # rich knows the speed after two updates, which may be a minute apart.
        return float(task.speed or task.fields["average"])

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = speed(task)
            return Text(f"{human_bytes(rate)}/s" if unit == "bytes" else f"{rate:,.1f} {unit}/s")

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = speed(task)
            return Text(f"{human_seconds((task.remaining or 0) / rate)} left" if rate else "")

    if unit == "%":
        return TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), Left()
    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    return TextColumn("{task.description}"), BarColumn(), count, Rate(), Left()
