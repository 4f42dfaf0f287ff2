"""What a sweep found: the small records that it hands out and its folder keeps. No torch is needed to read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featcache.errors import FeatcacheError, HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.records import Score
from featcache.runs.files import SWEEP_FILE, read_json

SWEEP_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the heads of a row say together. Accuracies are fractions from 0 to 1.

    `accuracy`, `loss`: means. `spread`: the standard deviation of the heads' accuracies; None for a single head.
    `interval`: 95 %; over draws by Student's t, over folds by bootstrap over the images; None for mere seeds.
    """

    accuracy: float
    loss: float
    spread: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class SweptHead:
    """One head of a sweep.

    `fold`, `draw`: which, counted from 1, where there are some. `val`: of the best epoch, or of the candidate that a
    solver chose; None for a head that has none, and `trouble` says why. `held`: on the `held_images` of its fold.
    `test`: only of the chosen draws. `seconds`: its share of the time.
    """

    seed: int
    fold: int | None = None
    draw: int | None = None
    val: Score | None = None
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

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SweptHead:
        """What `asdict` described."""
        scores = {part: _score(values[part]) for part in ("val", "held", "test")}
        return cls(**{**values, **scores})


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One combination of the grid, and all heads that were trained for it.

    `said`: what the grid says of it, as text. `wanted`: how many heads it should have. `estimate`: None where no head
    could be judged. `test`: only of the chosen row of each number of shots.
    """

    said: Mapping[str, str]
    config: HeadConfig
    heads: tuple[SweptHead, ...]
    wanted: int
    shots: int | None = None
    estimate: Estimate | None = None
    test: Estimate | None = None

    @property
    def complete(self) -> bool:
        """Whether every head that it should have was judged."""
        return sum(head.judged is not None for head in self.heads) == self.wanted

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Larger is better: complete ones first, then accuracy, then loss."""
        if self.estimate is None:
            return False, -1.0, 0.0
        return self.complete, self.estimate.accuracy, -self.estimate.loss

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
            said=values["said"],
            config=HeadConfig.from_json(values["config"]),
            heads=tuple(map(SweptHead.from_json, values["heads"])),
            wanted=values["wanted"],
            shots=values["shots"],
            estimate=_estimate(values["estimate"]),
            test=_estimate(values["test"]),
        )

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self) | {"config": self.config.to_json(), "heads": [asdict(head) for head in self.heads]}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All rows of a sweep, the best first, and what was chosen.

    `rows`: with shots, those of the most shots first. `run`: the folder of the chosen head, None where a Ctrl-C came
    before it could be made; `test`: its score there. `grid`: the values of each option, as text. `images`: how many
    each part has, before any resampling. `stacks`: how many heads were trained as one, from the most to the fewest.
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
                hint="a newer featcache wrote it: upgrade",
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
            "chosen": {**self.best.said, **self.chosen},
            "test": None if self.test is None else self.test.to_json(),
            "rows": [row.to_json() for row in self.rows],
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
    if values is None:
        return None
    interval = values["interval"]
    return Estimate(**{**values, "interval": None if interval is None else tuple(interval)})


def ranked(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """The best first; with shots, the rows of the most shots first. Those that could not be judged are last."""
    return tuple(sorted(rows, key=lambda row: (row.estimate is not None, row.shots or 0, row.rank), reverse=True))
