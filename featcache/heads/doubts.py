"""Warnings about a trained head, which are reported once and stored with the run."""

from __future__ import annotations

import math

from featcache.heads.config import HeadConfig
from featcache.heads.records import Score

# Losses of predicting the mean of the train values, in deviations of these. Huber's loss is half the squared one, or
# less.
_LOSS_OF_MEAN = {"mse": 1.0, "l1": 1.0, "huber": 0.5}


def worse_than_constant(val: Score, *, outputs: int, config: HeadConfig) -> tuple[str, ...]:
    """A sentence if the loss on val is above that of a constant prediction; else nothing.

    Args:
        val: Score of the trained head.
        outputs: Number of classes, or of columns of numbers.
        config: The head's options.
    """
    constant, what = _constant_loss(val.metric, outputs, config.loss)
    if val.loss <= constant:
        return ()
    advice = "" if config.architecture.solved else "; a lower learning rate may help"
    return (f"the loss on val is {val.loss:.4g}, and {what} would have {constant:.4g}{advice}",)


def _constant_loss(metric: str, outputs: int, loss: str) -> tuple[float, str]:
    if metric == "accuracy":
        return math.log(outputs), "equal probabilities for all classes"
    if metric == "map":
        return math.log(2), "a probability of 0.5 for every class"
    return _LOSS_OF_MEAN[loss], "the mean of the train values"
