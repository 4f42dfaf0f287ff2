"""Compares end-to-end and cached training: losses of every step, logits, and predicted classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from featcache.benchmark.controls import Control
from featcache.benchmark.outputs import HeadOutputs
from featcache.benchmark.records import Agreement
from featcache.benchmark.ways import EndToEnd


def compare_heads(end_to_end: EndToEnd, control: Control) -> Agreement:
    """Compare one end-to-end training with its control, the same training from a cache."""
    baseline, cached = end_to_end.outputs, control.outputs
    pairs = [(baseline.logits[part], cached.logits[part]) for part in baseline.logits]
    same = [int((first.argmax(axis=1) == second.argmax(axis=1)).sum()) for first, second in pairs]
    return Agreement(
        baseline=control.baseline,
        precision=control.precision,
        stored=control.stored,
        images=control.images,
        epochs=len(cached.curve.train_loss),
        step_loss=step_difference(baseline.curve.step_losses, cached.curve.step_losses),
        logits=logit_difference(baseline.logits, cached.logits),
        same_answers=sum(same),
        answers=sum(len(first) for first, _ in pairs),
        val_accuracy=(_accuracy(baseline, "val"), _accuracy(cached, "val")),
        test_accuracy=(_accuracy(baseline, "test"), _accuracy(cached, "test")) if "test" in cached.logits else None,
        cached=cached.curve,
    )


def step_difference(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """The greatest difference between the losses of the same step; infinite if the numbers of steps differ."""
    if len(first) != len(second):
        return float("inf")
    return max(abs(one - other) for one, other in zip(first, second, strict=True))


def logit_difference(first: Mapping[str, NDArray[np.float32]], second: Mapping[str, NDArray[np.float32]]) -> float:
    """The greatest difference between logits (N, C) of the same image and class, over the greatest of `first`."""
    apart = max(float(np.abs(first[part] - second[part]).max()) for part in first)
    return apart / max(float(np.abs(logits).max()) for logits in first.values())


def _accuracy(outputs: HeadOutputs, part: str) -> float:
    return float((outputs.logits[part].argmax(axis=1) == outputs.labels[part]).mean())
