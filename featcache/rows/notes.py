"""Notes: sentences for the user about what was left out or decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Report = Callable[[str], None]


def report_notes(report: Report | None, notes: Sequence[str]) -> None:
    """Pass each sentence to `report`, if it is given."""
    if report is not None:
        for note in notes:
            report(note)
