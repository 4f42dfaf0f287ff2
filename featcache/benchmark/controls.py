"""The controls: the heads of the end-to-end ways, trained again from a cache of the same images. Not timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from featcache.benchmark.outputs import HeadOutputs, head_outputs
from featcache.benchmark.records import NOTEBOOK, TUNED
from featcache.benchmark.training import parts_of_cache, train
from featcache.benchmark.ways import EXACT_DTYPE, Task
from featcache.cache.reader import FeatureCache
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.training.preparation import cut_of


@dataclass(frozen=True, kw_only=True)
class Control:
    """The same training as one end-to-end way (`baseline`), but from a cache; not timed."""

    baseline: str
    precision: str
    stored: str
    images: Mapping[str, int]
    outputs: HeadOutputs


def train_controls(task: Task, reporter: Reporter) -> list[Control]:
    """Train a control for the notebook's way, with exact features, and one for the tuned way, with default features."""
    sample = task.scenario.sample_images
    exact = task.request(sample, precision="fp32", dtype=EXACT_DTYPE)
    return [
        _train_control(NOTEBOOK, replace(exact, runner="eager"), task, reporter),
        _train_control(TUNED, task.request(sample), task, reporter),
    ]


def _train_control(baseline: str, request: Request, task: Task, reporter: Reporter) -> Control:
    extraction = extract(request, Execution(device=task.scenario.device), reporter=reporter)
    with FeatureCache.open(extraction.cache) as cache:
        trained = train(parts_of_cache(cache, task.sampled, task.device), task.sampled)
        cut = cut_of(cache, task.sampled)
        return Control(
            baseline=baseline,
            precision=cache.spec.precision,
            stored=cache.spec.dtype,
            images=cut.images(),
            outputs=head_outputs(trained),
        )
