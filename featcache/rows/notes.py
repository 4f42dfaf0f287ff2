"""Sentences about what was left out or decided, for the person who trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Report = Callable[[str], None]


def tell(report: Report | None, notes: Sequence[str]) -> None:
    """Say the sentences, if anybody listens."""
    if report is not None:
        for note in notes:
            report(note)
