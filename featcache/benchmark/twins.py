"""The cached twins: the heads of the end-to-end ways, trained once more on a cache of the same images. Not timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from featcache.benchmark.answers import Answers, answers_of
from featcache.benchmark.records import NOTEBOOK, TUNED
from featcache.benchmark.training import cached_parts, train
from featcache.benchmark.ways import EXACT_DTYPE, Task
from featcache.cache.reader import FeatureCache
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.training.preparation import cut_of


@dataclass(frozen=True, kw_only=True)
class Twin:
    """Cached training on the sample, for comparison with one way end to end; not timed."""

    baseline: str
    precision: str
    stored: str
    images: Mapping[str, int]
    answers: Answers


def twins(task: Task, reporter: Reporter) -> list[Twin]:
    """The notebook's twin has exact features, the tuned way's those of the product."""
    sample = task.scenario.sample_images
    exact = task.request(sample, precision="fp32", dtype=EXACT_DTYPE)
    return [
        _twin(NOTEBOOK, replace(exact, runner="eager"), task, reporter),
        _twin(TUNED, task.request(sample), task, reporter),
    ]


def _twin(baseline: str, request: Request, task: Task, reporter: Reporter) -> Twin:
    extraction = extract(request, Execution(device=task.scenario.device), reporter=reporter)
    with FeatureCache.open(extraction.cache) as cache:
        trained = train(cached_parts(cache, task.sampled, task.place), task.sampled)
        cut = cut_of(cache, task.sampled)
        return Twin(
            baseline=baseline,
            precision=cache.spec.precision,
            stored=cache.spec.dtype,
            images=cut.images(),
            answers=answers_of(trained),
        )
