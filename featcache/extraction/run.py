"""images + backbone -> cache, in one sentence: plan, look who has rows already, compute the rest, assemble."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from featcache.backbones import load_backbone
from featcache.backbones.backbone import Backbone
from featcache.errors import InvalidOption
from featcache.extraction import devices
from featcache.extraction.compilation import resolve_runner
from featcache.extraction.job import Job
from featcache.extraction.matching import settled_spec
from featcache.extraction.plan import part_rows_for, selected
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.extraction.request import Request
from featcache.extraction.resizing import resolve_resizing
from featcache.extraction.result import Extraction
from featcache.images import open_source
from featcache.images.sources import ImageSource

_DEFAULT_BATCH = {"cpu": 32, "mps": 64, "cuda": 256}
_PIXELS_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How an extraction runs: nothing here changes a feature. None stands for auto.

    `on_error`: "fail" at the first image that cannot be used, or "skip" and list it. `wait`: for somebody else
    who writes the same cache. `rehash`: read every image, also those that look unchanged. `resize_on`: "host",
    "device", or "auto". Raises InvalidOption.
    """

    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    part_rows: int | None = None
    resize_on: str = "auto"
    on_error: str = "fail"
    wait: bool = True
    rehash: bool = False

    def __post_init__(self) -> None:
        if self.on_error not in ("fail", "skip"):
            raise InvalidOption(f"expected --on-error fail or skip, got {self.on_error!r}")
        for name in ("batch_size", "workers", "part_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidOption(f"expected --{name.replace('_', '-')} of at least 1, got {value}")

    @property
    def threads(self) -> int:
        """Decoding threads: they wait for the disk as much as they compute, two keep a CPU backbone fed."""
        return self.workers or 2

    def batch(self, backbone: Backbone, device: str) -> int:
        """Images per forward pass to begin with; it halves when memory does not suffice."""
        if self.batch_size is not None:
            return self.batch_size
        return _PIXELS_BATCH if backbone.stores_bytes else _DEFAULT_BATCH[device.partition(":")[0]]


def extract(request: Request, execution: Execution | None = None, *, reporter: Reporter | None = None) -> Extraction:
    """Makes sure that the cache `request` describes is there, computing only rows that nobody has.

    Raises FeatcacheError; whatever was finished before stands, and the same call goes on from there.
    """
    began = time.monotonic()
    execution = execution or Execution()
    with prepared(request, execution, reporter or LogReporter()) as job:
        done = job.locked(wait=execution.wait)
    return replace(done, seconds=time.monotonic() - began)


@contextmanager
def prepared(request: Request, execution: Execution, reporter: Reporter) -> Iterator[Job]:
    """Images opened, backbone loaded and placed, spec settled; nothing read and nothing computed yet."""
    device = devices.resolve_device(execution.device)
    if (waste := devices.unused_gpu(device)) is not None:
        reporter.warn(waste)
    # Before anything is downloaded.
    precision = devices.resolve_precision(request.precision, device)
    with closing(_opened(request, reporter)) as source:
        backbone = _backbone(request, source, reporter)
        if not backbone.stores_bytes and (waste := devices.idle_cores(device)) is not None:
            reporter.warn(waste)
        runner = resolve_runner(
            request.runner,
            backbone,
            device=device,
            precision=precision,
            images=lambda: sum(map(len, selected(source, request).values())),
            reporter=reporter,
        )
        spec = settled_spec(backbone, request, precision, runner)
        backbone.place(device, spec.precision)
        yield Job(
            request=request,
            reporter=reporter,
            source=source,
            backbone=backbone,
            spec=spec,
            device=device,
            batch_size=execution.batch(backbone, device),
            threads=execution.threads,
            part_rows=execution.part_rows or part_rows_for(backbone),
            skip=execution.on_error == "skip",
            rehash=execution.rehash,
            resizing=resolve_resizing(execution.resize_on, backbone, device, reporter),
        )


def _opened(request: Request, reporter: Reporter) -> ImageSource:
    if isinstance(request.dataset, ImageSource):
        return request.dataset
    return open_source(request.dataset, datasets_dir=request.datasets_dir, report=reporter.say)


def _backbone(request: Request, source: ImageSource, reporter: Reporter) -> Backbone:
    if isinstance(request.backbone, Backbone):
        return request.backbone
    size = request.image_size
    if size is None and request.backbone == "pixels" and source.native_size is not None:
        size = max(source.native_size)
    backbone = load_backbone(
        request.backbone,
        weights=request.weights,
        layers=request.layers,
        pool=request.pool,
        image_size=size,
        resize=request.resize,
        normalize=request.normalize,
        weights_dir=request.weights_dir,
    )
    for note in backbone.notes:
        reporter.say(note)
    for warning in backbone.warnings:
        reporter.warn(warning)
    return backbone
