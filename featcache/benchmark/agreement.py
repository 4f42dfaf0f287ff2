"""Whether end to end and cached come to the same head: step by step, logit by logit, answer by answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from featcache.benchmark.answers import Answers
from featcache.benchmark.records import Agreement
from featcache.benchmark.twins import Twin
from featcache.benchmark.ways import EndToEnd


def compared(end_to_end: EndToEnd, twin: Twin) -> Agreement:
    """Sets one end-to-end training beside its cached twin."""
    ours, theirs = twin.answers, end_to_end.answers
    pairs = [(theirs.logits[part], ours.logits[part]) for part in theirs.logits]
    same = [int((first.argmax(axis=1) == second.argmax(axis=1)).sum()) for first, second in pairs]
    return Agreement(
        baseline=twin.baseline,
        precision=twin.precision,
        stored=twin.stored,
        images=twin.images,
        epochs=len(ours.curve.train_loss),
        step_loss=step_difference(theirs.curve.step_losses, ours.curve.step_losses),
        logits=logit_difference(theirs.logits, ours.logits),
        same_answers=sum(same),
        answers=sum(len(first) for first, _ in pairs),
        val_accuracy=(_accuracy(theirs, "val"), _accuracy(ours, "val")),
        test_accuracy=(_accuracy(theirs, "test"), _accuracy(ours, "test")) if "test" in ours.logits else None,
        cached=ours.curve,
    )


def step_difference(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """The greatest difference of two losses of the same step; infinite where the trainings differ in length."""
    if len(first) != len(second):
        return float("inf")
    return max(abs(one - other) for one, other in zip(first, second, strict=True))


def logit_difference(first: Mapping[str, NDArray[np.float32]], second: Mapping[str, NDArray[np.float32]]) -> float:
    """The greatest difference of two logits (N, C) of the same image and class, over the greatest of the first."""
    apart = max(float(np.abs(first[part] - second[part]).max()) for part in first)
    return apart / max(float(np.abs(logits).max()) for logits in first.values())


def _accuracy(answers: Answers, part: str) -> float:
    return float((answers.logits[part].argmax(axis=1) == answers.labels[part]).mean())
