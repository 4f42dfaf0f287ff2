"""What a sweep has trained so far, for its checkpoint: so that it goes on after a kill as if nothing had happened.

Heads that are solved are solved again, which gives the same heads; those trained by steps are kept with their best
tensors, as long as they may yet be chosen, and the stacks in training with all that their next step depends on.
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
    """A trial of a sweep: the numbers of its combination, of its round and of its case in that, all from 0."""

    combination: int
    round: int
    case: int

    def __str__(self) -> str:
        return f"{self.combination}-{self.round}-{self.case}"

    @classmethod
    def of(cls, text: str) -> TrialKey:
        """The key that was written like this. Raises ValueError."""
        combination, round_, case = map(int, text.split("-"))
        return cls(combination=combination, round=round_, case=case)


class TrialKeeper:
    """The trials that are finished, and those in training.

    Args:
        unfinished: Where checkpoints go.
        resumed: The checkpoint from which the sweep goes on; None for one that begins.
    """

    def __init__(self, unfinished: Unfinished, resumed: Checkpoint | None = None) -> None:
        self._unfinished, self._resumed = unfinished, resumed
        self._finished: dict[TrialKey, Trial] = {}
        self._results: dict[TrialKey, TrialResult] = {}

    def restored(self, key: TrialKey, trial: Trial) -> bool:
        """Whether a trial was finished before; it is then as it was. Raises HeadError for another sweep's."""
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
        """What was known of a trial when it had been judged."""
        results = {} if self._resumed is None else self._resumed.progress["results"]
        return TrialResult.from_json(results[str(key)]) if str(key) in results else None

    def judge(self, key: TrialKey, result: TrialResult) -> None:
        """What is known of a finished trial."""
        self._results[key] = result

    def begun(self) -> list[TrialKey]:
        """The trials that were in training together, in their order."""
        return [] if self._resumed is None else [TrialKey.of(text) for text in self._resumed.progress["training"]]

    def restore(self, engine: Engine) -> None:
        """Let the engine of those trials go on."""
        assert self._resumed is not None
        engine.restore(self._resumed.progress["engine"], self._resumed.part("engine"))

    def epoch_ended(self, keys: Sequence[TrialKey], engine: Engine) -> None:
        """Write a checkpoint, if the last one is old enough. `keys`: of the engine's trials."""

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
        """These trials are over. What is chosen from later belongs to the trials themselves."""
        self._finished |= dict(zip(keys, trials, strict=True))
