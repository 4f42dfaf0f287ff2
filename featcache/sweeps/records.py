"""What a sweep found: the small records that it hands out and its folder keeps. No torch is needed to read them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featcache.errors import FeatcacheError, HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.records import Score
from featcache.runs.files import SWEEP_FILE, read_json
from featcache.training.checkpoint_file import other_version

SWEEP_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the heads of a row say together.

    Attributes:
        value, loss: Means over the heads; what `value` is, `metric` says, as in Score.
        spread: The standard deviation of the heads' values; None for a single head.
        interval: 95 %: over draws by Student's t, else over the images that judge, by Wilson's score; None for a
            metric that has no such interval.
    """

    value: float
    loss: float
    metric: str = "accuracy"
    spread: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def score(self) -> Score:
        """The two means."""
        return Score(value=self.value, loss=self.loss, metric=self.metric)

    @property
    def accuracy(self) -> float:
        """`value`, where it is one. Raises AttributeError where it is another metric."""
        return self.score.accuracy

    def apart_from(self, best: Estimate) -> bool | None:
        """Whether the intervals of the two have nothing in common; None where one has no interval."""
        if self.interval is None or best.interval is None:
            return None
        return self.interval[1] < best.interval[0]

    def to_json(self) -> dict[str, Any]:
        """All fields by name, the value by its metric's."""
        interval = None if self.interval is None else list(self.interval)
        return {**self.score.to_json(), "spread": self.spread, "interval": interval}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Estimate:
        """What `to_json` described. Raises KeyError, TypeError or ValueError for anything else."""
        interval = values["interval"]
        score = Score.from_json({name: one for name, one in values.items() if name not in ("spread", "interval")})
        return cls(
            value=score.value,
            loss=score.loss,
            metric=score.metric,
            spread=values["spread"],
            interval=None if interval is None else (interval[0], interval[1]),
        )


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What is known of one head of a sweep.

    Attributes:
        seed: Its seed.
        fold, draw: Which one it belongs to, counted from 1; None where there are no folds or draws.
        val: Score of the best epoch, or of the candidate that a solver chose; None for a head without one, and
            `trouble` is the reason.
        last: Score on val of the last epoch; of a head that is solved, `val`.
        held: Score on the `held_images` images of its fold, which it was not trained on.
        test: Score on test: of the chosen draws, or of every head where the sweep was asked for it.
        epochs: How many were trained, or how many candidates a solver tried.
        best_epoch: The one that was kept, counted from 1.
        seconds: Its share of the time.
        candidate: What a solver chose, in words.
        interrupted: Whether Ctrl-C ended it.
        trouble: Why there is no head; None where there is one.
    """

    seed: int
    fold: int | None = None
    draw: int | None = None
    val: Score | None = None
    last: Score | None = None
    held: Score | None = None
    held_images: int = 0
    test: Score | None = None
    epochs: int = 0
    best_epoch: int = 0
    seconds: float = 0.0
    candidate: str = ""
    interrupted: bool = False
    trouble: str | None = None

    @property
    def judged(self) -> Score | None:
        """What it is ranked by: on the fold's images where there are folds, else on val."""
        return self.val if self.fold is None else self.held

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        scores = {part: getattr(self, part) for part in ("val", "last", "held", "test")}
        return asdict(self) | {part: None if score is None else score.to_json() for part, score in scores.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrialResult:
        """What `to_json` described."""
        scores = {part: _score(values[part]) for part in ("val", "last", "held", "test")}
        return cls(**{**values, **scores})


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One combination of the grid, and all heads that were trained for it.

    Attributes:
        values: Those of the grid, as text.
        config: The options of its heads.
        heads: Their results.
        wanted: How many heads it should have.
        cache: The number of its cache among those of the sweep, counted from 0.
        shots: Train images a class; None for all.
        estimate: Their scores together; None where no head could be judged.
        test: The scores on test together; None where test was not looked at.
        run: The folder of the run of its best head; None where none was written.
    """

    values: Mapping[str, str]
    config: HeadConfig
    heads: tuple[TrialResult, ...]
    wanted: int
    cache: int = 0
    shots: int | None = None
    estimate: Estimate | None = None
    test: Estimate | None = None
    run: Path | None = None

    @property
    def complete(self) -> bool:
        """Whether every head that it should have was judged."""
        return sum(head.judged is not None for head in self.heads) == self.wanted

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Larger is better: complete ones first, then the metric, then loss."""
        if self.estimate is None:
            return False, -math.inf, 0.0
        return self.complete, self.estimate.value, -self.estimate.loss

    @property
    def epochs(self) -> float:
        """Mean over the heads."""
        return sum(head.epochs for head in self.heads) / max(1, len(self.heads))

    @property
    def seconds(self) -> float:
        """Of all heads together."""
        return sum(head.seconds for head in self.heads)

    @property
    def remark(self) -> str:
        """What has to be known of it, in a few words."""
        return "; ".join(self._remarks())

    def _remarks(self) -> Iterator[str]:
        troubles = dict.fromkeys(head.trouble for head in self.heads if head.trouble is not None)
        yield from (trouble for trouble in troubles if trouble is not None)
        judged = sum(head.judged is not None for head in self.heads)
        if judged < self.wanted:
            yield f"{judged} of {self.wanted} heads"
        if any(head.interrupted for head in self.heads):
            yield "interrupted"
        tried = dict.fromkeys(head.candidate for head in self.heads if head.candidate)
        if len(tried) == 1:
            yield from tried

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SweepRow:
        """What `asdict` described, with a config as JSON."""
        return cls(
            values=values["values"],
            config=HeadConfig.from_json(values["config"]),
            heads=tuple(map(TrialResult.from_json, values["heads"])),
            wanted=values["wanted"],
            cache=values["cache"],
            shots=values["shots"],
            estimate=_estimate(values["estimate"]),
            test=_estimate(values["test"]),
            run=None if values["run"] is None else Path(values["run"]),
        )

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self) | {
            "config": self.config.to_json(),
            "heads": [head.to_json() for head in self.heads],
            "estimate": None if self.estimate is None else self.estimate.to_json(),
            "test": None if self.test is None else self.test.to_json(),
            "run": None if self.run is None else str(self.run),
        }


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All rows of a sweep, the best first, and what was chosen.

    Attributes:
        folder: Its own folder, beside the runs.
        created: When it began, in UTC, as ISO 8601 has it.
        caches: The paths of its caches.
        grid: The values of each option, as text.
        seeds, folds, shots, draws: Those of its plan.
        images: How many each part has, before any resampling.
        rows: The best first; with shots, those of the most shots first.
        run: The folder of the chosen head's run; None where Ctrl-C came before it could be made.
        chosen: Seed and draw of the chosen head.
        test: Its score on test.
        seconds: What all of it took.
        interrupted: Whether Ctrl-C ended it.
        stacks: How many heads were trained as one, from the most to the fewest.
        notes: What has to be known of it, in sentences.
    """

    folder: Path
    created: str
    caches: tuple[str, ...]
    grid: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    folds: int | None
    shots: tuple[int, ...]
    draws: int
    images: Mapping[str, int]
    rows: tuple[SweepRow, ...]
    run: Path | None
    chosen: Mapping[str, int | None]
    test: Score | None
    seconds: float
    interrupted: bool
    stacks: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def best(self) -> SweepRow:
        """The row that the chosen head stands in."""
        return self.rows[0]

    @classmethod
    def load(cls, folder: Path | str) -> Sweep:
        """Read a sweep's folder. Raises HeadError if it is none, or damaged."""
        folder = Path(folder)
        values = read_json(folder / SWEEP_FILE)
        if values.get("format") != SWEEP_FORMAT:
            raise HeadError(
                f"expected a sweep of format {SWEEP_FORMAT} in {folder}, got {values.get('format')!r}",
                hint=other_version(values.get("format"), SWEEP_FORMAT, "sweep again"),
            )
        try:
            return _sweep_from_json(folder, values)
        except (KeyError, TypeError, ValueError, AttributeError, FeatcacheError) as error:
            raise HeadError(f"the record of the sweep {folder} is damaged: {error!r}", hint="sweep again") from error

    def to_json(self) -> dict[str, Any]:
        """The result of `featcache sweep --json`, and what sweep.json holds."""
        return {
            "sweep": str(self.folder),
            "run": None if self.run is None else str(self.run),
            "caches": list(self.caches),
            "grid": {name: list(values) for name, values in self.grid.items()},
            "seeds": list(self.seeds),
            "folds": self.folds,
            "shots": list(self.shots),
            "draws": self.draws,
            "n": dict(self.images),
            "heads": sum(len(row.heads) for row in self.rows),
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "chosen": {**self.best.values, **self.chosen},
            "test": None if self.test is None else self.test.to_json(),
            "rows": [row.to_json() for row in self.rows],
            "tied": self.tied,
            "stacks": list(self.stacks),
            "created": self.created,
            "notes": list(self.notes),
            "format": SWEEP_FORMAT,
        }

    @property
    def options(self) -> tuple[str, ...]:
        """What the rows differ in, by name; but for shots."""
        return tuple(name for name in self.grid if name != "seed")

    @property
    def tied(self) -> int:
        """How many of the first rows cannot be told apart from the best one: their 95 % intervals overlap.

        0 where there are no intervals.
        """
        best = self.best.estimate
        if best is None:
            return 0
        rivals = [row.estimate for row in self.rows if row.shots == self.best.shots]
        apart = [one is None or one.apart_from(best) is not False for one in rivals]
        return apart.index(True) if True in apart else len(apart)

    @property
    def judge(self) -> str:
        """On what the rows are ranked."""
        return "out of fold" if self.folds else "val"


def _sweep_from_json(folder: Path, values: Mapping[str, Any]) -> Sweep:
    rows = tuple(map(SweepRow.from_json, values["rows"]))
    return Sweep(
        folder=folder,
        created=values["created"],
        caches=tuple(values["caches"]),
        grid={name: tuple(texts) for name, texts in values["grid"].items()},
        seeds=tuple(values["seeds"]),
        folds=values["folds"],
        shots=tuple(values["shots"]),
        draws=values["draws"],
        images=values["n"],
        rows=rows,
        run=None if values["run"] is None else Path(values["run"]),
        chosen={name: values["chosen"][name] for name in ("seed", "draw")},
        test=_score(values["test"]),
        seconds=values["seconds"],
        interrupted=values["interrupted"],
        stacks=tuple(values["stacks"]),
        notes=tuple(values["notes"]),
    )


def _score(values: Mapping[str, float] | None) -> Score | None:
    return None if values is None else Score.from_json(values)


def _estimate(values: Mapping[str, Any] | None) -> Estimate | None:
    return None if values is None else Estimate.from_json(values)


def ranked(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """The best first; with shots, the rows of the most shots first. Those that could not be judged are last."""
    return tuple(sorted(rows, key=lambda row: (row.estimate is not None, row.shots or 0, row.rank), reverse=True))
