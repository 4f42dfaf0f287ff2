"""Augmented views, all in every epoch or one drawn for each image: `python benchmarks/views.py CACHE --plain CACHE`.

Both caches are of the same images, the second without views. One head is trained in each way, with several seeds:

    epochs     every way for the same number of epochs
    steps      every way for as many steps as `all` takes in that many epochs
    patience   every way until early stopping ends it, within as many steps

Val, of plain images, chooses the epoch that is kept; told is accuracy on test. `draw - all` is taken seed by seed, with
a 95 % interval by Student's t. Results of other caches and heads stay in the file.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from machine import merge

from featcache.cache import FeatureCache
from featcache.errors import InvalidOption
from featcache.heads.config import HeadConfig
from featcache.rows.cuts import cut_cache
from featcache.rows.views import ALL, DRAW, TrainViews
from featcache.runs.fit import fit_head

PLAIN = "plain"
WAYS = (PLAIN, ALL, DRAW)
_SEEN: Mapping[str, TrainViews | None] = {PLAIN: None, ALL: ALL, DRAW: DRAW}


@dataclass(frozen=True, kw_only=True)
class Caches:
    """The same images with views and without. Raises InvalidOption where they are not, or where nothing judges."""

    viewed: FeatureCache
    plain: FeatureCache

    def __post_init__(self) -> None:
        if self.viewed.spec.views == 1 or self.plain.spec.views > 1:
            raise InvalidOption("expected a cache with views, and behind --plain one without")
        if "test" not in self.viewed:
            raise InvalidOption(f"{self.viewed.name} has no test split")
        if self.viewed.splits != self.plain.splits:
            raise InvalidOption(f"{self.viewed.name} and {self.plain.name} have other splits")
        for split in self.viewed.splits:
            here, there = self.viewed[split], self.plain[split]
            if not (np.array_equal(here.digests, there.digests) and np.array_equal(here.labels, there.labels)):
                raise InvalidOption(f"{split} of {self.viewed.name} and {self.plain.name} have other images or labels")

    def of(self, way: str) -> FeatureCache:
        """The cache that a way trains on."""
        return self.plain if way == PLAIN else self.viewed

    def steps(self, way: str, config: HeadConfig) -> int:
        """Steps that an epoch has."""
        images = len(cut_cache(self.plain, val_fraction=config.val_fraction, val_seed=config.val_seed).train)
        return math.ceil(images * (self.viewed.spec.views if way == ALL else 1) / config.head_batch_size)


def measured(caches: Caches, config: HeadConfig, epochs: int, seeds: int) -> dict[str, Any]:
    """Each comparison, way by way, and what drawing gains over all of them."""
    most = {way: round(epochs * caches.steps(ALL, config) / caches.steps(way, config)) for way in WAYS}
    comparisons = {
        "epochs": {way: replace(config, max_epochs=epochs, patience=epochs) for way in WAYS},
        "steps": {way: replace(config, max_epochs=most[way], patience=most[way]) for way in WAYS},
        "patience": {way: replace(config, max_epochs=most[way]) for way in WAYS},
    }
    known: dict[HeadConfig, tuple[dict[str, Any], float]] = {}
    told: dict[str, Any] = {}
    for name, configs in comparisons.items():
        tests: dict[str, list[float]] = {way: [] for way in WAYS}
        rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for seed in range(seeds):
            for way, one in configs.items():
                # Equal trainings stand in several comparisons.
                wanted = replace(one, seed=seed, train_views=_SEEN[way])
                if wanted not in known:
                    known[wanted] = _trained(caches, way, wanted)
                row, test = known[wanted]
                rows[way].append(row)
                tests[way].append(test)
        told[name] = {way: _summary(tests[way], rows[way]) for way in WAYS}
        told[name]["draw - all"] = _difference(tests[DRAW], tests[ALL])
        _show(name, told[name])
    return told


def _trained(caches: Caches, way: str, config: HeadConfig) -> tuple[dict[str, Any], float]:
    with tempfile.TemporaryDirectory() as runs:
        began = time.perf_counter()
        run = fit_head(caches.of(way), config, runs_dir=runs)
        seconds = time.perf_counter() - began
    done = run.training
    assert done.test is not None
    told = {
        "val": done.val.accuracy,
        "epochs": done.epochs,
        "best_epoch": done.best_epoch,
        "steps": done.epochs * caches.steps(way, config),
        "seconds": seconds,
    }
    return told, done.test.accuracy


def _summary(tests: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracies in per cent; `spread`: their standard deviation over the seeds."""
    return {
        "test": round(100 * statistics.fmean(tests), 3),
        "spread": round(100 * statistics.stdev(tests), 3) if len(tests) > 1 else None,
        "tests": [round(100 * test, 3) for test in tests],
        "val": round(100 * statistics.fmean(row["val"] for row in rows), 3),
        **{name: round(statistics.fmean(row[name] for row in rows), 3) for name in ("epochs", "best_epoch", "steps")},
        "seconds": round(statistics.fmean(row["seconds"] for row in rows), 3),
    }


def _difference(drawn: Sequence[float], every: Sequence[float]) -> dict[str, Any]:
    """In points of test accuracy: what `draw` has more than `all`."""
    from scipy import stats

    points = [100 * (one - other) for one, other in zip(drawn, every, strict=True)]
    mean = statistics.fmean(points)
    if len(points) < 2:
        return {"points": round(mean, 3), "interval": None}
    half = float(stats.t.ppf(0.975, len(points) - 1)) * statistics.stdev(points) / math.sqrt(len(points))
    return {"points": round(mean, 3), "interval": [round(mean - half, 3), round(mean + half, 3)]}


def _show(name: str, told: Mapping[str, Mapping[str, Any]]) -> None:
    for way in WAYS:
        one = told[way]
        spread = "" if one["spread"] is None else f" +- {one['spread']:.2f}"
        print(
            f"{name:9} {way:6} test {one['test']:6.2f}{spread}  steps {one['steps']:,.0f}  {one['seconds']:.1f} s",
            flush=True,
        )
    print(f"{name:9} draw - all: {told['draw - all']}", flush=True)


def main(
    cache: Annotated[Path, typer.Argument(help="A cache with views.")],
    plain: Annotated[Path, typer.Option(help="A cache of the same images without views.")],
    head: Annotated[str, typer.Option(help="A head that is trained by steps.")] = "mlp:128,64",
    layer: Annotated[str | None, typer.Option(help="Which layer, where there are several.")] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = HeadConfig.lr,
    schedule: Annotated[
        Literal["constant", "cosine", "plateau"], typer.Option(help="How the rate falls.")
    ] = HeadConfig.schedule,
    epochs: Annotated[int, typer.Option(help="Epochs of `all`.")] = 20,
    seeds: Annotated[int, typer.Option(help="Trainings of each way.")] = 5,
) -> None:
    """Measure, print, and write benchmarks/results/views.json."""
    layers = None if layer is None else (layer,)
    config = HeadConfig(head=head, layers=layers, lr=lr, schedule=schedule)
    with FeatureCache.open(cache) as viewed, FeatureCache.open(plain) as other:
        caches = Caches(viewed=viewed, plain=other)
        spec = viewed.spec
        images = len(cut_cache(other, val_fraction=config.val_fraction, val_seed=config.val_seed).train)
        result = {
            "views": spec.views,
            "images": images,
            "test_images": len(viewed["test"]),
            "epochs": epochs,
            "seeds": seeds,
            "options": config.to_json(),
            **measured(caches, config, epochs, seeds),
        }
        name = f"{viewed.set_name}, {spec.backbone}, {images} images in {spec.views} views, {head}"
        print(f"written to {merge('views', name, result)}")


if __name__ == "__main__":
    typer.run(main)
