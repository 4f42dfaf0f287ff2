"""What a person at a terminal sees: sentences and progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Whatever is over sooner needs no bar.
_PATIENCE_S = 2.0


class Terminal:
    """A Reporter: sentences to stderr, and a progress bar for what takes longer than two seconds.

    The bar is shown on a terminal only. `quiet` leaves warnings.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars = sys.stderr.isatty() and not quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._began = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    def say(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}")

    def _print(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def advance(self, stage: str, done: int, total: int) -> None:
        if not self._bars:
            return
        if stage != self._stage:
            self._finish()
            self._stage, self._began = stage, time.monotonic()
        if self._progress is None and time.monotonic() - self._began > _PATIENCE_S and done < total:
            self._begin(total)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self._finish()

    def _begin(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:.1f} {unit}/s" if task.speed else f"- {unit}/s")

        unit = "epochs" if self._stage == "training" else "images"
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            speed_estimate_period=60,
        )
        self._task = self._progress.add_task(self._stage, total=total)
        self._progress.start()

    def _finish(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task, self._stage = None, None, ""


def print_json(value: Mapping[str, Any]) -> None:
    """Exactly one JSON object on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def print_table(rows: Sequence[Sequence[str]], *, header: Sequence[str] = ()) -> None:
    """Columns on stdout, as wide as their content; the first is left-aligned, numbers to the right."""
    everything = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    widths = [max(len(row[column]) for row in everything) for column in range(len(everything[0]))]
    for number, row in enumerate(everything):
        print("  ".join(_cell(text, width) for text, width in zip(row, widths, strict=True)).rstrip())
        if header and number == 0:
            print("  ".join("-" * width for width in widths))


def _cell(text: str, width: int) -> str:
    numeric = text[:1].isdigit() and not any(letter.isalpha() for letter in text.rstrip("%BKMGTs "))
    return text.rjust(width) if numeric else text.ljust(width)


def human_bytes(count: float) -> str:
    """1_234_567 -> "1.2 MB"."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """75.2 -> "1m15s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
