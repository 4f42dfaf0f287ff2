"""The records of a sweep's results, as returned and as stored in its folder. Reading them needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.display import Shown, Summary
from featcache.errors import FeatcacheError, HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.records import Score
from featcache.runs.files import REPORT_FILE, SWEEP_FILE, read_json
from featcache.training.checkpoint_file import other_version

if TYPE_CHECKING:
    from featcache import WrittenReport

SWEEP_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The mean score of the heads of a row.

    Attributes:
        value, loss: Means over the heads.
        metric: The metric of `value`, as in Score.
        spread: The standard deviation of the heads' values; None for a single head.
        interval: The 95 % interval: over draws by Student's t; else over the images scored, by Wilson's score; None
            for a metric that has no such interval.
    """

    value: float
    loss: float
    metric: str = "accuracy"
    spread: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def score(self) -> Score:
        """The mean value and the mean loss, as a Score."""
        return Score(value=self.value, loss=self.loss, metric=self.metric)

    @property
    def accuracy(self) -> float:
        """`value`, if the metric is accuracy. Raises AttributeError for another metric."""
        return self.score.accuracy

    def apart_from(self, best: Estimate) -> bool | None:
        """Whether this interval lies below that of `best`, without overlap; None if either has no interval."""
        if self.interval is None or best.interval is None:
            return None
        return self.interval[1] < best.interval[0]

    def to_json(self) -> dict[str, Any]:
        """All fields by name; the value under the name of its metric."""
        interval = None if self.interval is None else list(self.interval)
        return {**self.score.to_json(), "spread": self.spread, "interval": interval}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Estimate:
        """The estimate from the result of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        interval = values["interval"]
        score = Score.from_json({name: one for name, one in values.items() if name not in ("spread", "interval")})
        return cls(
            value=score.value,
            loss=score.loss,
            metric=score.metric,
            spread=values["spread"],
            interval=None if interval is None else (interval[0], interval[1]),
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class TrialResult(Shown):
    """The result of one head of a sweep.

    Attributes:
        seed: Its seed.
        fold, draw: Its fold or draw, counted from 1; None without folds or draws.
        val: Score on val of the best epoch, or of the candidate that a solver chose; None if there is no head.
        last: Score on val of the last epoch; for a head that is solved, `val`.
        held: Score on the held-out images of its fold.
        held_images: The number of these images.
        test: Score on test, for the heads that were evaluated there; else None.
        epochs: Number of epochs trained, or of candidates that a solver tried.
        best_epoch: The selected epoch or candidate, counted from 1.
        seconds: Its share of the training time.
        candidate: The candidate that a solver chose, as text.
        interrupted: Whether Ctrl-C ended it.
        trouble: Why there is no head; None if there is one.
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
        """The score that ranks the head: on the held-out images with folds, else on val."""
        return self.val if self.fold is None else self.held

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        scores = {part: getattr(self, part) for part in ("val", "last", "held", "test")}
        return asdict(self) | {part: None if score is None else score.to_json() for part, score in scores.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrialResult:
        """The result that `to_json` wrote."""
        scores = {part: _score(values[part]) for part in ("val", "last", "held", "test")}
        return cls(**{**values, **scores})


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepRow(Shown):
    """One combination of the grid, and all heads that were trained for it.

    Attributes:
        values: Its values of the grid, as text, by option name.
        config: The options of its heads.
        heads: The results of its heads.
        wanted: The number of heads that it has when complete.
        cache: Index of its cache among those of the sweep.
        shots: Train images per class; None for all.
        estimate: The mean score of its heads; None if no head has a score.
        test: The mean score on test; None if test was not evaluated.
        run: The run folder of its best head; None if no run was written.
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
        """Whether all of its heads have a score."""
        return sum(head.judged is not None for head in self.heads) == self.wanted

    @property
    def rank(self) -> tuple[bool, float, float]:
        """The sort key, larger is better: complete rows first, then by metric, then by loss."""
        if self.estimate is None:
            return False, -math.inf, 0.0
        return self.complete, self.estimate.value, -self.estimate.loss

    @property
    def epochs(self) -> float:
        """Mean number of epochs of the heads."""
        return sum(head.epochs for head in self.heads) / max(1, len(self.heads))

    @property
    def seconds(self) -> float:
        """The training time of all heads, in seconds."""
        return sum(head.seconds for head in self.heads)

    @property
    def remark(self) -> str:
        """Short remarks on the row: troubles, missing heads, interruption, the candidate."""
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
        """The row from the result of `to_json`."""
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


@dataclass(frozen=True, kw_only=True, repr=False)
class Sweep(Shown):
    """The result of a sweep: all rows, the best first, and the chosen head.

    Attributes:
        folder: The sweep's folder, in the folder of runs.
        created: When it began, in UTC, as ISO 8601 text.
        caches: The paths of its caches.
        grid: The values of each option, as text.
        seeds, folds, shots, draws: As in its plan.
        images: Number of images of each part, before any resampling.
        rows: The best first; with shots, those of the most shots first.
        run: The run folder of the chosen head; None if Ctrl-C came before it was written.
        chosen: Seed and draw of the chosen head.
        test: The chosen head's score on test.
        seconds: Duration of the whole sweep.
        interrupted: Whether Ctrl-C ended it.
        stacks: The numbers of heads trained in one batch, in descending order.
        notes: Sentences about the sweep.
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
        """The row of the chosen head."""
        return self.rows[0]

    @classmethod
    def load(cls, folder: Path | str) -> Sweep:
        """Read the folder of a sweep. Raises HeadError if it is not a sweep, or damaged."""
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
        """The result of `featcache sweep --json`, which is also the content of sweep.json."""
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

    def summary(self) -> Summary:
        """What a prompt and a notebook show: the chosen head, and the table."""
        from featcache.sweeps.tables import summary_of

        return summary_of(self)

    def report(self, path: Path | str | None = None, **options: Any) -> WrittenReport:
        """Write a report on the runs of this sweep as one HTML page; a notebook shows the page.

        Args:
            path: The page's path; None for `report.html` in the sweep's folder.
            options: Options of `featcache.write_report`.

        Returns:
            The page's path, and what it shows.

        Raises:
            HeadError: The sweep was interrupted before a run was written.
        """
        # Imported here, through the public API: the package `sweeps` does not depend on `report`.
        import featcache

        runs = list(dict.fromkeys(row.run for row in self.rows if row.run is not None))
        if not runs:
            raise HeadError(f"the sweep {self.folder} has written no run", hint="resume it with featcache.resume_sweep")
        return featcache.write_report(runs, path or self.folder / REPORT_FILE, **options)

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that the rows differ in, except shots."""
        return tuple(name for name in self.grid if name != "seed")

    @property
    def tied(self) -> int:
        """How many of the first rows do not differ clearly from the best: their 95 % intervals overlap with its own.

        0 if there are no intervals.
        """
        best = self.best.estimate
        if best is None:
            return 0
        rivals = [row.estimate for row in self.rows if row.shots == self.best.shots]
        apart = [one is None or one.apart_from(best) is not False for one in rivals]
        return apart.index(True) if True in apart else len(apart)

    @property
    def judge(self) -> str:
        """The images that rank the rows, as text: "val" or "out of fold"."""
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


def rank_rows(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """Sort rows, the best first; with shots, the rows of the most shots first. Rows without a score are last."""
    return tuple(sorted(rows, key=lambda row: (row.estimate is not None, row.shots or 0, row.rank), reverse=True))
