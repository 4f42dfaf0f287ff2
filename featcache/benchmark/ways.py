"""Measures the four ways, each with a function that runs in its own process.

All train the same head with the same seed on the same batches in the same order. Clocks start after the imports.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from featcache.backbones.loading import plain
from featcache.benchmark.end_to_end import (
    NotebookForward,
    NotebookNetwork,
    TunedForward,
    cut_samples,
    image_parts,
    notebook_preset,
)
from featcache.benchmark.outputs import HeadOutputs, curve_of, head_outputs
from featcache.benchmark.records import COLD, NOTEBOOK, TUNED, WARM, Features, Memory, Way
from featcache.benchmark.scenarios import Scenario
from featcache.benchmark.training import Trained, train
from featcache.cache.reader import FeatureCache
from featcache.extraction.images import select_samples
from featcache.extraction.network import open_forward
from featcache.extraction.pipeline import Pipeline
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Precision, Request, Runner
from featcache.extraction.resolve import Job, resolve
from featcache.extraction.run import Execution, extract
from featcache.heads.config import HeadConfig
from featcache.images.samples import Sample
from featcache.rows.devices import choose_device
from featcache.runs.fit import fit_head
from featcache.runs.run import Run
from featcache.sweeps.grid import Combination
from featcache.sweeps.plan import SweepPlan
from featcache.sweeps.sweeping import sweep_heads
from featcache.training.options import TrainingOptions

Dtype = Literal["float16", "float32"]

# End to end in fp32 is compared with features that are stored in fp32, without rounding.
EXACT_DTYPE: Dtype = "float32"
# A placeholder: `run` measures memory from outside the process and fills it in.
_UNKNOWN = Memory(peak=0, libraries=0)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A scenario, and the folder `data_dir` for its caches. `runner`: how the backbone computes in the tuned way."""

    scenario: Scenario
    data_dir: Path
    runner: Runner = "auto"

    def request(self, images: int, *, precision: Precision = "auto", dtype: Dtype = "float16") -> Request:
        """The request for the features of `images` images of each split."""
        chosen = self.scenario
        return Request(
            dataset=chosen.dataset,
            backbone=chosen.backbone,
            weights=chosen.weights,
            image_size=chosen.image_size,
            pool=chosen.pool,
            dtype=dtype,
            precision=precision,
            runner=self.runner,
            splits=chosen.splits,
            limit=images,
            data_dir=self.data_dir,
        )

    @property
    def runs_dir(self) -> Path:
        """The folder for the heads' runs."""
        return self.data_dir / "runs"

    @property
    def sampled(self) -> HeadConfig:
        """The head of the end-to-end ways and of their controls."""
        return self.scenario.head_for(self.scenario.sampled_epochs)

    @property
    def device(self) -> torch.device:
        """The device on which heads are trained."""
        return choose_device(self.scenario.device)


# --- cached ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cold:
    """The result of the cold way, and the cache that it wrote."""

    way: Way
    cache: Path
    features: Features


def measure_cold(task: Task, reporter: Reporter) -> Cold:
    """Extract, then train all heads, one after another or in a sweep."""
    began = time.perf_counter()
    scenario = task.scenario
    extraction = extract(task.request(scenario.images), Execution(device=scenario.device), reporter=reporter)
    setup_s = time.perf_counter() - began
    with FeatureCache.open(extraction.cache) as cache:
        first, *others = scenario.configs()
        run = _fit(cache, first, task)
        heads_s = [(1, time.perf_counter() - began)]
        for heads in _further(cache, others, task):
            heads_s.append((1 + heads, time.perf_counter() - began))
            reporter.advance("heads", 1 + heads, scenario.heads)
        way = way_of_run(COLD, run, setup_s=setup_s, heads_s=heads_s)
        return Cold(way=way, cache=extraction.cache, features=_features(cache, extraction.images_per_s))


def _further(cache: FeatureCache, configs: Sequence[HeadConfig], task: Task) -> Iterator[int]:
    """Train the other heads, and yield the number trained so far."""
    if task.scenario.together and configs:
        found = sweep_heads(
            [cache], _sweep_of(configs), TrainingOptions(device=task.scenario.device), runs_dir=task.runs_dir
        )
        if found.interrupted:
            raise KeyboardInterrupt
        yield len(configs)
        return
    for number, config in enumerate(configs, start=1):
        _fit(cache, config, task)
        yield number


def _sweep_of(configs: Sequence[HeadConfig]) -> SweepPlan:
    grid = [{"lr": f"{config.lr:g}", "weight_decay": f"{config.weight_decay:g}"} for config in configs]
    return SweepPlan(
        combinations=tuple(
            Combination(values=words, config=config) for words, config in zip(grid, configs, strict=True)
        ),
        grid={name: tuple(dict.fromkeys(words[name] for words in grid)) for name in ("lr", "weight_decay")},
        seeds=(configs[0].seed,),
    )


def measure_warm(task: tuple[Task, Path], reporter: Reporter) -> Way:
    """Open the cache and train the first head."""
    settings, path = task
    began = time.perf_counter()
    with FeatureCache.open(path) as cache:
        run = _fit(cache, settings.scenario.configs()[0], settings)
    return way_of_run(WARM, run, setup_s=0.0, heads_s=[(1, time.perf_counter() - began)])


def _fit(cache: FeatureCache, config: HeadConfig, task: Task) -> Run:
    run = fit_head(cache, config, device=task.scenario.device, runs_dir=task.runs_dir)
    if run.training.interrupted:
        # Half a measurement is useless.
        raise KeyboardInterrupt
    return run


def way_of_run(name: str, run: Run, *, setup_s: float, heads_s: Sequence[tuple[int, float]]) -> Way:
    """The measurement of a cached way, from the run of its first head."""
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
        curve=curve_of(run.history()),
        memory=_UNKNOWN,
    )


def _features(cache: FeatureCache, images_per_s: float | None) -> Features:
    (layer,) = cache.spec.layers
    return Features(
        layer=layer.name,
        feature_dim=layer.feature_dim,
        precision=cache.spec.precision,
        runner=cache.spec.runner,
        stored=cache.spec.dtype,
        weights=_weights_name(str(cache.provenance.get("weights"))),
        cache_bytes=cache.path.stat().st_size,
        extract_images_per_s=images_per_s or 0.0,
    )


def _weights_name(weights: str) -> str:
    # The folder of a weights file is private to this machine: results are published.
    kind, colon, path = weights.partition(":")
    return f"file:{Path(path).name}" if kind == "file" else f"{kind}{colon}{path}"


# --- end to end --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """The result of an end-to-end way, with its head's outputs."""

    way: Way
    outputs: HeadOutputs


def measure_notebook(task: Task, reporter: Reporter) -> EndToEnd:
    """Train end to end as a notebook does, on the sample."""
    began = time.perf_counter()
    request = task.request(task.scenario.sample_images)
    made = plain(request.backbone_options, weights_dir=request.weights_dir)
    network = NotebookNetwork(made).to(task.device)
    with request.location.open_and_close(datasets_dir=request.datasets_dir, report=reporter.info) as source:
        forward = NotebookForward(
            source, network, notebook_preset(made.transform), feature_dim=made.layers[0].feature_dim
        )
        samples = cut_samples(select_samples(source, request), task.sampled)
        seen = _Seen.of(samples, task.sampled, reporter)
        parts = image_parts(samples, forward, task.sampled, classes=source.classes, stored=EXACT_DTYPE, seen=seen)
        setup_s = time.perf_counter() - began
        return _end_to_end(NOTEBOOK, samples, train(parts, task.sampled), setup_s)


def measure_tuned(task: Task, reporter: Reporter) -> EndToEnd:
    """Train end to end with featcache's fast pipeline, on the sample."""
    began = time.perf_counter()
    request = task.request(task.scenario.sample_images)
    with (
        resolve([request], Execution(device=task.scenario.device), reporter) as (job,),
        closing(_pipeline(job)) as pipeline,
    ):
        forward = TunedForward(pipeline, device=task.device)
        samples = cut_samples(select_samples(job.source, request), task.sampled)
        seen = _Seen.of(samples, task.sampled, reporter)
        parts = image_parts(
            samples, forward, task.sampled, classes=job.source.classes, stored=job.spec.dtype, seen=seen
        )
        setup_s = time.perf_counter() - began
        return _end_to_end(TUNED, samples, train(parts, task.sampled), setup_s)


def _pipeline(job: Job) -> Pipeline:
    # float32 instead of the storage type, because nothing is stored.
    forward = replace(open_forward(job), dtype="float32", one_shape=False, before_first=None)
    return Pipeline(source=job.source, backbones=[forward], workers=job.computer.workers)


@dataclass(kw_only=True)
class _Seen:
    """Counts the images that have been through the backbone, and reports progress."""

    reporter: Reporter
    total: int
    done: int = 0

    @classmethod
    def of(cls, samples: Mapping[str, Sequence[Sample]], config: HeadConfig, reporter: Reporter) -> _Seen:
        # Every epoch reads train and val; evaluating the best epoch reads val and test once more.
        train_and_val = len(samples["train"]) + len(samples["val"])
        last = len(samples["val"]) + len(samples.get("test", ()))
        return cls(reporter=reporter, total=config.max_epochs * train_and_val + last)

    def __call__(self, images: int) -> None:
        self.done += images
        self.reporter.advance("training end to end", self.done, self.total)


def _end_to_end(name: str, samples: Mapping[str, Sequence[Sample]], trained: Trained, setup_s: float) -> EndToEnd:
    epoch_s = tuple(epoch.seconds for epoch in trained.history)
    outputs = head_outputs(trained)
    way = Way(
        name=name,
        images={part: len(some) for part, some in samples.items()},
        setup_s=setup_s,
        epoch_s=epoch_s,
        test_s=trained.test_seconds,
        heads_s=((1, setup_s + sum(epoch_s) + trained.test_seconds),),
        val_accuracy=trained.val.score().accuracy,
        test_accuracy=None if trained.test is None else trained.test.score().accuracy,
        curve=outputs.curve,
        memory=_UNKNOWN,
    )
    return EndToEnd(way=way, outputs=outputs)
