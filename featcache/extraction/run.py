"""images + backbone -> cache, in one sentence: plan, look which rows there are, compute the others, publish."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

from featcache.errors import InvalidOption
from featcache.extraction.computing import Computer
from featcache.extraction.execution import Execution as Execution
from featcache.extraction.job import Job
from featcache.extraction.matching import settled_spec
from featcache.extraction.reporting import LogReporter, Reporter, taking_turns
from featcache.extraction.request import Request
from featcache.extraction.result import Extraction
from featcache.extraction.shared_images import SharedImages
from featcache.extraction.turns import side_by_side
from featcache.files import disk_errors
from featcache.images import open_source
from featcache.images.sources import ImageSource


def extract(request: Request, execution: Execution | None = None, *, reporter: Reporter | None = None) -> Extraction:
    """Makes sure that the cache `request` describes is there, computing only rows that no other has.

    Raises FeatcacheError; whatever was finished before stands, and the same call goes on from there.
    """
    began = time.monotonic()
    (done,) = extract_each([request], execution, reporter=reporter)
    return replace(done, seconds=time.monotonic() - began)


def extract_each(
    requests: Sequence[Request], execution: Execution | None = None, *, reporter: Reporter | None = None
) -> tuple[Extraction, ...]:
    """The same for several backbones over the same images, which are listed, read, hashed and decoded once.

    Each has a cache, segments and a lock of its own; `seconds` and `images_per_s` count the time spent on it alone.
    Raises InvalidOption where the requests differ in their images, or two ask for the same backbone.
    """
    execution = execution or Execution()
    with disk_errors(requests[0].data_dir), prepared_each(requests, execution, reporter or LogReporter()) as jobs:
        return side_by_side(jobs, wait=execution.wait)


def assemble(request: Request, execution: Execution | None = None, *, reporter: Reporter | None = None) -> Extraction:
    """Publishes the cache `request` describes from segments that shards have written; nothing is computed.

    Raises CacheIncomplete where rows are missing, and what `extract` raises.
    """
    execution = execution or Execution()
    with disk_errors(request.data_dir), prepared(request, execution, reporter or LogReporter()) as job:
        job.assembles_only = True
        (done,) = side_by_side([job], wait=execution.wait)
    return done


@contextmanager
def prepared(request: Request, execution: Execution, reporter: Reporter, *, measures: bool = True) -> Iterator[Job]:
    """Images opened, backbone described, spec settled; nothing read and nothing computed yet."""
    with prepared_each([request], execution, reporter, measures=measures) as (job,):
        yield job


@contextmanager
def prepared_each(
    requests: Sequence[Request], execution: Execution, reporter: Reporter, *, measures: bool = True
) -> Iterator[tuple[Job, ...]]:
    """One job for each request, over images they share."""
    _require_same_images(requests)
    with closing(_opened(requests[0], reporter)) as source:
        images = SharedImages(
            source=source,
            request=requests[0],
            workers=execution.threads,
            skip_unreadable=execution.on_error == "skip",
            rehash=execution.rehash,
            reporter=reporter,
        )
        reporters = (
            [reporter] if len(requests) == 1 else taking_turns(reporter, [one.backbone_name for one in requests])
        )
        yield tuple(
            _job(request, execution, images, told, measures=measures)
            for request, told in zip(requests, reporters, strict=True)
        )


def _require_same_images(requests: Sequence[Request]) -> None:
    names = [request.backbone_name for request in requests]
    if len(set(names)) != len(names):
        raise InvalidOption(f"expected different backbones, got {', '.join(names)}")
    if len({(request.selection, request.views, request.data_dir) for request in requests}) != 1:
        raise InvalidOption("expected the same images and the same data folder for every backbone")


def _job(request: Request, execution: Execution, images: SharedImages, reporter: Reporter, *, measures: bool) -> Job:
    """`measures`: whether a runner that is left to auto may be chosen by measuring; else it is eager."""
    request = _with_size(request, images.source)
    given = None if isinstance(request.backbone, str) else request.backbone
    computer = Computer(
        request=request,
        execution=execution,
        images=lambda: images.count,
        reporter=reporter,
        given=given,
    )
    backbone = computer.backbone
    for warning in backbone.warnings:
        reporter.warn(warning)
    choose = computer.choose if measures else computer.choose_eager
    spec = settled_spec(backbone, request, choose, reporter)
    return Job(
        request=request,
        reporter=reporter,
        images=images,
        backbone=backbone,
        spec=spec,
        computer=computer,
        segment_rows=execution.segment_rows,
        pack=execution.pack,
        skip=execution.on_error == "skip",
        min_cosine=execution.min_cosine,
        share=execution.shard,
    )


def _with_size(request: Request, source: ImageSource) -> Request:
    """`pixels` takes the size that the images have, where they all have one."""
    if request.backbone != "pixels" or request.image_size is not None or source.native_size is None:
        return request
    return replace(request, image_size=max(source.native_size))


def _opened(request: Request, reporter: Reporter) -> ImageSource:
    if isinstance(request.dataset, ImageSource):
        return request.dataset
    return open_source(request.dataset, datasets_dir=request.datasets_dir, report=reporter.say)
