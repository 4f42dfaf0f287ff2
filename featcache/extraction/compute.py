"""One pass over the images: each is read and decoded once, for all backbones that lack its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing

import numpy as np

from featcache.cache.donors import Donors, MemoryDonor
from featcache.cache.info import CacheInfo
from featcache.errors import ExtractionError
from featcache.extraction.cut import Cut, computes
from featcache.extraction.forecast import Forecast
from featcache.extraction.forward import ForwardPass
from featcache.extraction.images import Images, Numbers
from featcache.extraction.network import open_forward, provenance_of
from featcache.extraction.pipeline import Block, Pipeline
from featcache.extraction.publish import feature_bytes, packs, scaling_of
from featcache.extraction.result import Computed
from featcache.extraction.segment_writer import SegmentWriter
from featcache.extraction.variation import Variation
from featcache.files import free_bytes
from featcache.text import human_bytes


def compute(cuts: Sequence[Cut]) -> list[Computed]:
    """Write the missing segments of one or several backbones over the same images.

    Raises:
        ExtractionError: The disk has not enough free space, or a feature is not finite.
        ImageError: An image cannot be read, and `on_error` is not "skip".
        CacheError: The segments cannot be written.
    """
    for one in cuts:
        _report_existing(one)
        _require_space(one)
    with ExitStack() as opened:
        works = [_Work(one) for one in cuts]
        for work in works:
            opened.enter_context(work.writer)
        images = cuts[0].inventory.job.images
        try:
            _pass_over(images, works)
        except KeyboardInterrupt:
            cuts[0].inventory.job.reporter.info(
                "stopped; finished segments are kept: run the same command again to go on"
            )
            raise
        finally:
            images.save()
    return [work.summary() for work in works]


class _Work:
    """The segments of one backbone while they are computed."""

    def __init__(self, cut: Cut) -> None:
        job = cut.inventory.job
        self.job, self.units = job, cut.todo
        self._total = sum(map(len, cut.todo))
        # Before the first segment is created: a network that cannot be opened leaves no files.
        self.forward: ForwardPass | None = open_forward(job) if computes(cut.inventory, cut.todo, cut.donors) else None
        self._variation = Variation(job.spec.layer_names)
        self._forecast = Forecast(total=self._total)
        self._before = sum(job.stages.seconds.values())
        self.writer = SegmentWriter(
            cut.inventory.folder,
            CacheInfo(
                spec=job.spec,
                selection=job.request.selection,
                set_name=job.source.name,
            ),
            cut.todo,
            job.images,
            Donors(cut.donors, cut.inventory.warn),
            provenance=lambda: provenance_of(job),
            scaling=scaling_of(job),
            stages=job.stages,
        )

    def take(self, block: Block, number: int) -> None:
        """Store the rows of a block. `number`: the index of this backbone among those of the pipeline."""
        for failure in block.failures:
            if not self.job.skips:
                raise failure.error
            self.writer.fail(failure)
        self.writer.read(block.images)
        for rows in block.rows[number]:
            self.writer.put(rows)
            self._variation.add(rows.features)
        self._report_progress()

    def finish(self) -> None:
        """Check, after the last block, that all images were processed, and that features differ between images."""
        if self.writer.done != self._total:
            raise ExtractionError(f"{self._total - self.writer.done} images were neither computed nor skipped")
        for layer in self._variation.constant():
            self.job.reporter.warn(
                f"all {self._total:,} images have the same features in layer {layer} ({self.job.backbone.source}): "
                "check the layer and the weights"
            )

    def summary(self) -> Computed:
        """How many rows were computed, and how fast, once the writer is closed."""
        seconds = sum(self.job.stages.seconds.values()) - self._before
        rows = self.writer.computed
        return Computed(rows=rows, images_per_s=rows / max(seconds, 1e-9) if rows else None)

    def _report_progress(self) -> None:
        done, bound = self.writer.done, self.job.stages.bound
        self.job.reporter.advance("extracting", done, self._total, bound=bound)
        if (sentence := self._forecast.sentence(done, bound)) is not None:
            self.job.reporter.info(sentence)


def _pass_over(images: Images, works: Sequence[_Work]) -> None:
    active = [work for work in works if work.forward is not None]
    for work in works:
        if work.forward is None:
            # All rows exist elsewhere: they are copied, and no image is read.
            for number in range(len(work.units)):
                work.writer.open_unit(number)
    if active:
        pipeline = Pipeline(
            source=images.source,
            backbones=[work.forward for work in active if work.forward is not None],
            workers=max(work.job.computer.workers for work in active),
            rows_per_image=active[0].job.spec.views,
            payloads=images.payloads,
        )
        with closing(pipeline):
            blocks = pipeline.run(
                images.samples,
                _numbers(images, active),
                lambda image, digest: [work.writer.views_to_compute(image, digest) for work in active],
            )
            for block in blocks:
                images.learn(block.images, block.digests)
                for failure in block.failures:
                    if failure.digest is not None:
                        images.learn(np.array([failure.image]), np.frombuffer(failure.digest, np.uint8)[None])
                for number, work in enumerate(active):
                    work.take(block, number)
    for work in works:
        work.finish()


def _numbers(images: Images, works: Sequence[_Work]) -> Iterator[Numbers]:
    """The images that have to be read for any backbone, ascending; units are opened as they are reached."""
    units = sorted(
        (int(unit.images[0]), place, number)
        for place, work in enumerate(works)
        for number, unit in enumerate(work.units)
    )
    waiting = np.empty(0, np.int64)
    for first, place, number in units:
        ready = int(np.searchsorted(waiting, first))
        yield waiting[:ready]
        images.look_up(works[place].units[number].images)
        waiting = np.union1d(waiting[ready:], works[place].writer.open_unit(number))
    yield waiting


# --- reports and checks before the first image -------------------------------------------------------------


def _report_existing(cut: Cut) -> None:
    job = cut.inventory.job
    rows, (missing, unknown) = len(job.images), _count_missing(cut)
    least, most = ("at least ", "at most ") if unknown else ("", "")
    size = f"the cache will have {human_bytes(feature_bytes(job.spec, job.images.rows_of_splits))}"
    if missing == rows:
        views = f", {job.spec.views} views of each train image" if job.spec.views > 1 else ""
        job.reporter.info(f"{most}{rows:,} images to extract with {job.backbone.name}{views}; {size}")
    elif job.execution.shard is not None:
        job.reporter.info(f"{most}{missing:,} images to extract in this share of {rows:,}; {size}")
    else:
        job.reporter.info(
            f"{least}{rows - missing:,} of {rows:,} images exist already, {most}{missing:,} to extract; {size}"
        )


def _count_missing(cut: Cut) -> tuple[int, int]:
    """How many images of the units have no row on disk, and of how many of these that is not known yet.

    The digests of the latter are looked up when their unit is reached; some of their rows may be found then.
    """
    images = cut.inventory.job.images
    numbers = np.concatenate([unit.images for unit in cut.todo])
    # Rows in memory were computed a moment ago, to try out the speed.
    stored = [donor for donor in cut.donors if not isinstance(donor, MemoryDonor)]
    if not stored:
        return len(numbers), 0
    known = numbers[images.known[numbers]]
    donors = Donors(stored, cut.inventory.warn)
    return len(numbers) - int((donors.locate(images.digests[known]).donor >= 0).sum()), len(numbers) - len(known)


def _require_space(cut: Cut) -> None:
    """Raise ExtractionError, before the first forward pass, where the disk has not enough free space.

    Segments and packed file exist together for a moment.
    """
    job = cut.inventory.job
    packed = job.execution.shard is None and packs(job)
    written: dict[str, int] = {}
    for unit in cut.todo:
        written[unit.segment.split] = written.get(unit.segment.split, 0) + len(unit)
    needed = feature_bytes(job.spec, written) + (feature_bytes(job.spec, job.images.rows_of_splits) if packed else 0)
    job.request.features_dir.mkdir(parents=True, exist_ok=True)
    free = free_bytes(job.request.features_dir)
    if free < needed:
        parts = " (segments and, for a moment, the packed file)" if packed else ""
        raise ExtractionError(
            f"the disk of {job.request.features_dir} has {human_bytes(free)} free, "
            f"{human_bytes(needed)} are needed{parts}",
            hint="free some space, choose another --data-dir, or extract fewer images with --limit",
        )
