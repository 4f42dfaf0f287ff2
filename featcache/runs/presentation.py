"""What is shown of a run: the head, its features and its scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featcache.display import Summary, Table
from featcache.text import human_seconds

if TYPE_CHECKING:
    from featcache.heads.records import Score
    from featcache.runs.run import Run


def summary_of(run: Run) -> Summary:
    """The scores on val and test, and where the run is."""
    done = run.training
    scores = {part: score for part, score in (("val", done.val), ("test", done.test)) if score is not None}
    return Summary(
        title=run.config.head,
        about=f"on {run.features.label}",
        facts=[
            *((f"{part} {score.metric}", score_text(score)) for part, score in scores.items()),
            ("parameters", done.trainable),
            ("trained in", human_seconds(done.seconds)),
            ("folder", run.folder),
        ],
        tables=[
            Table(
                header=("", done.val.metric, "loss", "images"),
                rows=[
                    (part, score_text(score), f"{score.loss:.4f}", done.images.get(part, 0))
                    for part, score in scores.items()
                ],
            )
        ],
        notes=done.notes,
    )


def score_text(score: Score) -> str:
    """A score for people: R2 as a number, other metrics in per cent."""
    return f"{score.value:.3f}" if score.metric == "r2" else f"{100 * score.value:.2f} %"
