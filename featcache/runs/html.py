"""A run as HTML for notebooks: the head, its features and its scores."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.heads.records import Score
    from featcache.runs.run import Run


def run_html(run: Run) -> str:
    """A small table as HTML; names are escaped."""
    done = run.training
    scores = [_row(part, score, done.images.get(part, 0)) for part, score in (("val", done.val), ("test", done.test))]
    return (
        f"<p><strong>{escape(run.config.head)}</strong> on {escape(run.features.label)}, "
        f"{done.trainable:,} parameters, trained in {done.seconds:,.1f} s</p>"
        f"<table><thead><tr><th></th><th>{escape(done.val.metric)}</th><th>loss</th><th>images</th></tr></thead>"
        f"<tbody>{''.join(scores)}</tbody></table>"
        f"<p><small>{escape(str(run.folder))}</small></p>"
    )


def _score_text(score: Score) -> str:
    return f"{score.value:.3f}" if score.metric == "r2" else f"{100 * score.value:.2f} %"


def _row(part: str, score: Score | None, images: int) -> str:
    if score is None:
        return ""
    return f"<tr><th>{part}</th><td>{_score_text(score)}</td><td>{score.loss:.4f}</td><td>{images:,}</td></tr>"
