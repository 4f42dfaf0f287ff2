"""Compares ways to train on augmented views (all per epoch, or one random view per image) with plain images:
`python benchmarks/views.py CACHE --plain CACHE`.

Both caches hold the same images; the second has no views. A head is trained in each way, with several seeds:

    epochs     every way for the same number of epochs
    steps      every way for the number of steps that `all` takes in these epochs
    patience   every way until early stopping, with at most this number of steps

Val, of plain images, selects the epoch; reported is the accuracy on test. `draw - all` is computed per seed, with a
95 % interval by Student's t. Results of other caches and heads stay in the file.
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
_TRAIN_VIEWS: Mapping[str, TrainViews | None] = {PLAIN: None, ALL: ALL, DRAW: DRAW}


@dataclass(frozen=True, kw_only=True)
class Caches:
    """Caches of the same images with and without views. Raises InvalidOption for other images or no test split."""

    viewed: FeatureCache
    plain: FeatureCache

    def __post_init__(self) -> None:
        if self.viewed.spec.views == 1 or self.plain.spec.views > 1:
            raise InvalidOption("expected a cache with views, and a cache without views for --plain")
        if "test" not in self.viewed:
            raise InvalidOption(f"{self.viewed.name} has no test split")
        if self.viewed.splits != self.plain.splits:
            raise InvalidOption(f"{self.viewed.name} and {self.plain.name} differ in their splits")
        for split in self.viewed.splits:
            here, there = self.viewed[split], self.plain[split]
            if not (np.array_equal(here.digests, there.digests) and np.array_equal(here.labels, there.labels)):
                raise InvalidOption(f"{split} of {self.viewed.name} and {self.plain.name} differ in images or labels")

    def of(self, way: str) -> FeatureCache:
        """The cache that a way trains on."""
        return self.plain if way == PLAIN else self.viewed

    def steps(self, way: str, config: HeadConfig) -> int:
        """The number of steps in an epoch."""
        images = len(cut_cache(self.plain, val_fraction=config.val_fraction, val_seed=config.val_seed).train)
        return math.ceil(images * (self.viewed.spec.views if way == ALL else 1) / config.head_batch_size)


def measure(caches: Caches, config: HeadConfig, epochs: int, seeds: int) -> dict[str, Any]:
    """Measure each comparison for each way, and the gain of `draw` over `all`."""
    most = {way: round(epochs * caches.steps(ALL, config) / caches.steps(way, config)) for way in WAYS}
    comparisons = {
        "epochs": {way: replace(config, max_epochs=epochs, patience=epochs) for way in WAYS},
        "steps": {way: replace(config, max_epochs=most[way], patience=most[way]) for way in WAYS},
        "patience": {way: replace(config, max_epochs=most[way]) for way in WAYS},
    }
    known: dict[HeadConfig, tuple[dict[str, Any], float]] = {}
    results: dict[str, Any] = {}
    for name, configs in comparisons.items():
        tests: dict[str, list[float]] = {way: [] for way in WAYS}
        rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for seed in range(seeds):
            for way, one in configs.items():
                # Some trainings are part of several comparisons.
                wanted = replace(one, seed=seed, train_views=_TRAIN_VIEWS[way])
                if wanted not in known:
                    known[wanted] = _train(caches, way, wanted)
                row, test = known[wanted]
                rows[way].append(row)
                tests[way].append(test)
        results[name] = {way: _summary(tests[way], rows[way]) for way in WAYS}
        results[name]["draw - all"] = _difference(tests[DRAW], tests[ALL])
        _show(name, results[name])
    return results


def _train(caches: Caches, way: str, config: HeadConfig) -> tuple[dict[str, Any], float]:
    with tempfile.TemporaryDirectory() as runs:
        began = time.perf_counter()
        run = fit_head(caches.of(way), config, runs_dir=runs)
        seconds = time.perf_counter() - began
    done = run.training
    assert done.test is not None
    result = {
        "val": done.val.accuracy,
        "epochs": done.epochs,
        "best_epoch": done.best_epoch,
        "steps": done.epochs * caches.steps(way, config),
        "seconds": seconds,
    }
    return result, done.test.accuracy


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
    """The gain of `draw` over `all`, in points of test accuracy, with its 95 % interval."""
    from scipy import stats

    points = [100 * (one - other) for one, other in zip(drawn, every, strict=True)]
    mean = statistics.fmean(points)
    if len(points) < 2:
        return {"points": round(mean, 3), "interval": None}
    half = float(stats.t.ppf(0.975, len(points) - 1)) * statistics.stdev(points) / math.sqrt(len(points))
    return {"points": round(mean, 3), "interval": [round(mean - half, 3), round(mean + half, 3)]}


def _show(name: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    for way in WAYS:
        one = results[way]
        spread = "" if one["spread"] is None else f" +- {one['spread']:.2f}"
        print(
            f"{name:9} {way:6} test {one['test']:6.2f}{spread}  steps {one['steps']:,.0f}  {one['seconds']:.1f} s",
            flush=True,
        )
    print(f"{name:9} draw - all: {results['draw - all']}", flush=True)


def main(
    cache: Annotated[Path, typer.Argument(help="A cache with views.")],
    plain: Annotated[Path, typer.Option(help="A cache of the same images without views.")],
    head: Annotated[str, typer.Option(help="A head that is trained by steps.")] = "mlp:128,64",
    layer: Annotated[str | None, typer.Option(help="The layer, if the cache has several.")] = None,
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
            **measure(caches, config, epochs, seeds),
        }
        name = f"{viewed.set_name}, {spec.backbone}, {images} images in {spec.views} views, {head}"
        print(f"written to {merge('views', name, result)}")


if __name__ == "__main__":
    typer.run(main)
