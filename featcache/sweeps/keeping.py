"""Keeps what a sweep has trained so far, for its checkpoint, so that it can continue after a kill.

Solved heads are not kept: solving them again gives the same heads. Finished heads trained by steps are kept with their
best tensors as long as they may be chosen; stacks in training with all the state that their next step depends on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from featcache.errors import HeadError
from featcache.sweeps.records import TrialResult
from featcache.training.checkpoints import Checkpoint, Unfinished
from featcache.training.engine import Engine
from featcache.training.trial import Trial


@dataclass(frozen=True, kw_only=True)
class TrialKey:
    """Identifies a trial of a sweep: the indices of its combination, of its round, and of its case in that round."""

    combination: int
    round: int
    case: int

    def __str__(self) -> str:
        return f"{self.combination}-{self.round}-{self.case}"

    @classmethod
    def of(cls, text: str) -> TrialKey:
        """The key that `str` wrote as this text. Raises ValueError."""
        combination, round_, case = map(int, text.split("-"))
        return cls(combination=combination, round=round_, case=case)


class TrialKeeper:
    """Keeps finished trials and those in training, and writes checkpoints of them.

    Args:
        unfinished: The folder that checkpoints are written to.
        resumed: The checkpoint to continue from; None for a new sweep.
    """

    def __init__(self, unfinished: Unfinished, resumed: Checkpoint | None = None) -> None:
        self._unfinished, self._resumed = unfinished, resumed
        self._finished: dict[TrialKey, Trial] = {}
        self._results: dict[TrialKey, TrialResult] = {}

    def restore_finished(self, key: TrialKey, trial: Trial) -> bool:
        """Restore a trial if it was finished in the checkpoint; returns whether it was.

        Raises HeadError for the checkpoint of another sweep.
        """
        if self._resumed is None or str(key) not in self._resumed.progress["finished"]:
            return False
        best = self._resumed.part(f"finished.{key}")
        try:
            trial.resume(self._resumed.progress["finished"][str(key)], best)
        except (KeyError, TypeError) as error:
            raise HeadError(f"the checkpoint does not fit this sweep: {error!r}", hint="sweep again") from error
        self._finished[key] = trial
        return True

    def result(self, key: TrialKey) -> TrialResult | None:
        """The result of a finished trial in the checkpoint; None if it has none."""
        results = {} if self._resumed is None else self._resumed.progress["results"]
        return TrialResult.from_json(results[str(key)]) if str(key) in results else None

    def judge(self, key: TrialKey, result: TrialResult) -> None:
        """Keep the result of a finished trial."""
        self._results[key] = result

    def keys_in_training(self) -> list[TrialKey]:
        """The trials that were in training together at the checkpoint, in their order."""
        return [] if self._resumed is None else [TrialKey.of(text) for text in self._resumed.progress["training"]]

    def restore(self, engine: Engine) -> None:
        """Restore the state of the engine of those trials."""
        assert self._resumed is not None
        engine.restore(self._resumed.progress["engine"], self._resumed.part("engine"))

    def epoch_ended(self, keys: Sequence[TrialKey], engine: Engine) -> None:
        """Write a checkpoint, if the last one is old enough. `keys`: those of the engine's trials."""

        def state() -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
            progress, tensors = engine.state()
            kept = {f"engine.{name}": tensor for name, tensor in tensors.items()}
            for key, trial in self._finished.items():
                kept |= {f"finished.{key}.{name}": tensor.cpu() for name, tensor in trial.best.items()}
            finished = {str(key): trial.progress() for key, trial in self._finished.items()}
            results = {str(key): result.to_json() for key, result in self._results.items()}
            training = list(map(str, keys))
            return {"finished": finished, "results": results, "training": training, "engine": progress}, kept

        self._unfinished.epoch_ended(state)

    def finish(self, keys: Sequence[TrialKey], trials: Sequence[Trial]) -> None:
        """Keep these finished trials, each with its best tensors (`Trial.best`)."""
        self._finished |= dict(zip(keys, trials, strict=True))
