"""Measures the four ways, each with a function that runs in its own process, and compares the heads.

All train the same head with the same seed on the same batches in the same order. Clocks start after the imports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from featcache.backbones.loading import plain
from featcache.backbones.options import BackboneOptions
from featcache.benchmark.end_to_end import (
    Forward,
    ImageEpochs,
    NotebookForward,
    NotebookNetwork,
    Parts,
    Trained,
    TunedForward,
    cut_samples,
    notebook_preset,
    parts_of_cache,
    train,
)
from featcache.benchmark.options import BenchmarkOptions
from featcache.benchmark.result import COLD, NOTEBOOK, TUNED, WARM, Agreement, Features, Way
from featcache.cache.reader import FeatureCache
from featcache.extraction.images import select_samples
from featcache.extraction.network import open_forward
from featcache.extraction.pipeline import Pipeline
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Request, Runner
from featcache.extraction.resolve import resolve
from featcache.extraction.run import Execution, extract
from featcache.heads.config import HeadConfig
from featcache.images.options import ImageOptions
from featcache.images.samples import Sample
from featcache.rows.devices import choose_device
from featcache.rows.target import class_target
from featcache.runs.fit import fit_head
from featcache.runs.run import Run
from featcache.training.preparation import cut_of


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process measures. `data_dir`: for caches and runs. `runner`: computes the backbone of the tuned way."""

    options: BenchmarkOptions
    data_dir: Path
    runner: Runner = "auto"

    def request(self, *, sample: bool) -> Request:
        """The request for the features of all images, or of the sample."""
        names = {field.name for record in (ImageOptions, BackboneOptions) for field in fields(record)}
        values = {name: getattr(self.options, name) for name in names}
        limit = self.options.sample_limit if sample else self.options.limit
        return Request(**(values | {"limit": limit, "runner": self.runner, "data_dir": self.data_dir}))

    def exact(self) -> Request:
        """The request for features of the sample as the notebook computes them, stored without rounding."""
        return replace(self.request(sample=True), precision="fp32", dtype="float32", runner="eager")

    @property
    def execution(self) -> Execution:
        """How features are computed."""
        return Execution(device=self.options.device)

    @property
    def device(self) -> torch.device:
        """The device on which heads are trained."""
        return choose_device(self.options.device)


# --- from a cache ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cold:
    """The result of the cold way, and the cache that it wrote."""

    way: Way
    cache: Path
    features: Features


def measure_cold(task: Task, reporter: Reporter) -> Cold:
    """Extract, then train all heads."""
    began, configs = time.perf_counter(), task.options.configs()
    extraction = extract(task.request(sample=False), task.execution, reporter=reporter)
    setup_s, heads_s = time.perf_counter() - began, []
    with FeatureCache.open(extraction.cache) as cache:
        runs = []
        for number in range(1, len(configs) + 1):
            runs.append(_fit(cache, task, number - 1))
            heads_s.append((number, time.perf_counter() - began))
            reporter.advance("heads", number, len(configs))
        way = _way_of_run(COLD, runs[0], setup_s, heads_s)
        return Cold(way=way, cache=extraction.cache, features=_features(cache, extraction.images_per_s))


def measure_warm(task: tuple[Task, Path], reporter: Reporter) -> Way:
    """Open the cache and train the first head."""
    settings, path = task
    began = time.perf_counter()
    with FeatureCache.open(path) as cache:
        run = _fit(cache, settings, 0)
    return _way_of_run(WARM, run, 0.0, [(1, time.perf_counter() - began)])


def _fit(cache: FeatureCache, task: Task, number: int) -> Run:
    config = task.options.configs()[number]
    run = fit_head(cache, config, device=task.options.device, runs_dir=task.data_dir / "runs")
    if run.training.interrupted:
        # Half a measurement is useless.
        raise KeyboardInterrupt
    return run


def _way_of_run(name: str, run: Run, setup_s: float, heads_s: Sequence[tuple[int, float]]) -> Way:
    done = run.training
    return Way(
        name=name,
        images=dict(done.images),
        setup_s=setup_s,
        epoch_s=tuple(epoch.seconds for epoch in run.history()),
        test_s=0.0,
        heads_s=tuple(heads_s),
        val_accuracy=done.val.accuracy,
        test_accuracy=None if done.test is None else done.test.accuracy,
        memory={},
    )


def _features(cache: FeatureCache, images_per_s: float | None) -> Features:
    (layer,) = cache.spec.layers
    kind, colon, path = str(cache.provenance.get("weights")).partition(":")
    return Features(
        layer=layer.name,
        feature_dim=layer.feature_dim,
        precision=cache.spec.precision,
        runner=cache.spec.runner,
        stored=cache.spec.dtype,
        # The folder of a weights file is private to this machine: results are published.
        weights=f"file:{Path(path).name}" if kind == "file" else f"{kind}{colon}{path}",
        cache_bytes=cache.path.stat().st_size,
        extract_images_per_s=images_per_s or 0.0,
    )


# --- end to end --------------------------------------------------------------------------------------------


def measure_notebook(task: Task, reporter: Reporter) -> tuple[Way, Trained]:
    """Train end to end as a notebook does, on the sample."""
    began, request = time.perf_counter(), task.exact()
    made = plain(request.backbone_options, weights_dir=request.weights_dir)
    network, preset = NotebookNetwork(made).to(task.device), notebook_preset(made.transform)
    with request.location.open_and_close(datasets_dir=request.datasets_dir, report=reporter.info) as source:
        forward = NotebookForward(source, network, preset, feature_dim=made.layers[0].feature_dim)
        samples = select_samples(source, request)
        return _train(NOTEBOOK, task, forward, samples, source.classes, "float32", began, reporter)


def measure_tuned(task: Task, reporter: Reporter) -> tuple[Way, Trained]:
    """Train end to end with featcache's fast pipeline, on the sample."""
    began, request = time.perf_counter(), task.request(sample=True)
    with resolve([request], task.execution, reporter) as (job,):
        # float32 instead of the storage type, because nothing is stored.
        backbone = replace(open_forward(job), dtype="float32", one_shape=False, before_first=None)
        with closing(Pipeline(source=job.source, backbones=[backbone], workers=job.computer.workers)) as pipeline:
            forward = TunedForward(pipeline, device=task.device)
            samples = select_samples(job.source, request)
            return _train(TUNED, task, forward, samples, job.source.classes, job.spec.dtype, began, reporter)


def _train(
    name: str,
    task: Task,
    forward: Forward,
    chosen: Mapping[str, Sequence[Sample]],
    classes: Sequence[str],
    stored: str,
    began: float,
    reporter: Reporter,
) -> tuple[Way, Trained]:
    config = task.options.head_for(task.options.sampled_epochs)
    samples = cut_samples(chosen, config)
    images = {part: len(some) for part, some in samples.items()}
    parts = image_parts(samples, forward, config, classes=classes, stored=stored, seen=_counter(images, task, reporter))
    setup_s = time.perf_counter() - began
    trained = train(parts, config)
    epoch_s = tuple(epoch.seconds for epoch in trained.history)
    way = Way(
        name=name,
        images=images,
        setup_s=setup_s,
        epoch_s=epoch_s,
        test_s=trained.test_s,
        heads_s=((1, setup_s + sum(epoch_s) + trained.test_s),),
        val_accuracy=trained.val.score().accuracy,
        test_accuracy=None if trained.test is None else trained.test.score().accuracy,
        memory={},
    )
    return way, trained


def image_parts(
    samples: Mapping[str, Sequence[Sample]],
    forward: Forward,
    config: HeadConfig,
    *,
    classes: Sequence[str],
    stored: str,
    seen: Callable[[int], None] = lambda images: None,
) -> Parts:
    """Train, val and test as end-to-end epochs. `stored`: the dtype of the cache that this is compared with."""
    row_bytes = forward.feature_dim * np.dtype(stored).itemsize
    epochs = {part: ImageEpochs(some, forward, config, row_bytes, seen) for part, some in samples.items()}
    return Parts(
        train=epochs["train"],
        val=epochs["val"],
        test=epochs.get("test"),
        feature_dim=forward.feature_dim,
        target=class_target(classes),
    )


def _counter(images: Mapping[str, int], task: Task, reporter: Reporter) -> Callable[[int], None]:
    """Counts the images that have been through the backbone, and reports progress."""
    # Every epoch reads train and val; evaluating the best epoch reads val and test once more.
    last = images["val"] + images.get("test", 0)
    total, done = task.options.sampled_epochs * (images["train"] + images["val"]) + last, 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        reporter.advance("training end to end", done, total)

    return advance


# --- the same head -----------------------------------------------------------------------------------------


def compare_with_cache(task: tuple[Task, Mapping[str, Trained]], reporter: Reporter) -> list[Agreement]:
    """Train the heads of both end-to-end ways again from a cache of the same images, untimed, and compare them.

    The notebook's with exact features, the tuned way's with those that are stored by default.
    """
    settings, baselines = task
    requests = {NOTEBOOK: settings.exact(), TUNED: settings.request(sample=True)}
    config = settings.options.head_for(settings.options.sampled_epochs)
    found = []
    for name, request in requests.items():
        extraction = extract(request, settings.execution, reporter=reporter)
        with FeatureCache.open(extraction.cache) as cache:
            trained = train(parts_of_cache(cache, config, settings.device), config)
            images = cut_of(cache, config).images()
            spec = cache.spec
        found.append(_agreement(name, baselines[name], trained, spec.precision, spec.dtype, images))
    return found


def _agreement(
    name: str, first: Trained, second: Trained, precision: str, stored: str, images: Mapping[str, int]
) -> Agreement:
    pairs = list(zip(first.outcomes, second.outcomes, strict=True))
    scores = [(one.score().accuracy, other.score().accuracy) for one, other in pairs]
    apart = max(float(np.abs(one.outputs - other.outputs).max()) for one, other in pairs)
    same = [one.outputs.argmax(axis=1) == other.outputs.argmax(axis=1) for one, other in pairs]
    return Agreement(
        baseline=name,
        precision=precision,
        stored=stored,
        images=images,
        epochs=len(first.history),
        step_loss=float(np.abs(first.step_losses - second.step_losses).max()),
        logits=apart / max(float(np.abs(one.outputs).max()) for one in first.outcomes),
        same_answers=sum(int(some.sum()) for some in same),
        answers=sum(len(some) for some in same),
        val_accuracy=scores[0],
        test_accuracy=scores[1] if len(scores) > 1 else None,
    )
