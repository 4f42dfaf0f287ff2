"""One extraction at work: look which rows there are, compute the others into segments, publish the cache.

A segment that is written twice is the same, so the same job after a kill, or two jobs at once, end with the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from featcache.backbones import devices
from featcache.backbones.spec import BackboneSpec
from featcache.cache.donors import Donor, Donors, MemoryDonor
from featcache.cache.info import CacheInfo
from featcache.cache.locks import Owner, locked
from featcache.cache.manifest import Manifest
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import Json, Spec
from featcache.cache.tables import Skipped
from featcache.errors import CacheIncomplete, ExtractionError, ImageError, WeightsError
from featcache.extraction import drift
from featcache.extraction.computing import Computer
from featcache.extraction.forecast import Forecast
from featcache.extraction.inventory import Inventory
from featcache.extraction.matching import as_command
from featcache.extraction.pipeline import Failure, Pipeline
from featcache.extraction.plan import Plan, PlannedRows, augmentation_of
from featcache.extraction.publish import begin, packs, publish, relabelled, row_bytes, scaling_of
from featcache.extraction.reporting import Reporter, human_bytes
from featcache.extraction.request import Request
from featcache.extraction.result import Extraction
from featcache.extraction.segment_writer import SegmentWriter, Work
from featcache.extraction.shared_images import SharedImages
from featcache.extraction.stages import Stages, Stopwatch
from featcache.extraction.units import Shard, Unit, assumed_speed, segment_rows_for, units_in, units_of
from featcache.extraction.variation import Variation
from featcache.files import free_bytes
from featcache.images.sources import ImageSource

Returned = TypeVar("Returned")
#: Yields how far it is, as a row of the plan, whenever another job may take its turn.
Steps = Generator[int, None, Extraction]
_BEGUN = -1
# The speed is measured before segments are cut where so many batches have to be computed; one of them is measured.
_BATCHES_WORTH_MEASURING = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """The rows that go into segments, cut into units.

    Args:
        units: All of them.
        manifest: Names their segments.
        todo: Those whose segment does not stand yet.
    """

    units: list[Unit]
    manifest: Manifest
    todo: list[Unit]


@dataclass(kw_only=True)
class Job:
    """Everything settled: what to compute (`spec`), of which images, and how fast.

    Jobs that share their `images` may be done side by side, in turns (`run.extract_each`).
    """

    request: Request
    reporter: Reporter
    images: SharedImages
    backbone: BackboneSpec
    spec: Spec
    computer: Computer
    skip: bool
    min_cosine: float
    # None: as many as half a minute's work.
    segment_rows: int | None = None
    # Whether the cache becomes one file; None: where it is small.
    pack: bool | None = None
    # Whose units are computed, where several do it together. None: all.
    share: Shard | None = None
    # Nothing is computed: what others have done is published.
    assembles_only: bool = False
    stages: Stages = field(default_factory=Stages)
    # What was measured now, or, where nothing had to be computed, when the rows were.
    _drift: Json = None
    # Of this job alone: it stands while others take their turn.
    _watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def source(self) -> ImageSource:
        return self.images.source

    @property
    def plan(self) -> Plan:
        return self.images.plan

    @cached_property
    def inventory(self) -> Inventory:
        """What there is of the rows."""
        return Inventory(
            request=self.request,
            backbone=self.backbone,
            spec=self.spec,
            source=self.source,
            skip=self.skip,
            reporter=self.reporter,
        )

    @property
    def name(self) -> str:
        """What the cache is called."""
        return self.inventory.folder.name

    def lock(self, *, wait: bool) -> AbstractContextManager[object]:
        """Keeps others from writing the same cache; `wait` for another that does, else CacheBusy."""
        return locked(
            self.request.features_dir, self.name, shared=self.share is not None, wait=wait, waiting=self._say_waiting
        )

    def _say_waiting(self, owner: Owner | None) -> None:
        self.reporter.say(f"waiting: {owner or 'another process'} is writing this cache (--no-wait stops instead)")

    # --- from the first look to the cache -------------------------------------------------------------------

    def hit(self) -> Extraction | None:
        """The result where every row is in one complete cache already; nothing is locked or written."""
        self._watch.start()
        plan, standing = self.plan, self.inventory.standing()
        found = self._hit(plan, standing)
        if found is None:
            self._watch.stop()
            return None
        self.inventory.discard_leftovers(found)
        return self.result(found)

    def _hit(self, plan: Plan, standing: FeatureCache | None) -> FeatureCache | None:
        """The cache that has every row; None where there is none, or where it is to be packed."""
        found = self.inventory.hit(standing, plan)
        return None if found is not None and self.assembles_only and self.pack and found.path.is_dir() else found

    def steps(self) -> Steps:
        """The extraction; the caller holds the lock. It yields first when all images it needs are announced."""
        self._watch.start()
        plan, standing = self.plan, self.inventory.standing()
        found = self._hit(plan, standing)
        if found is None and not self.assembles_only:
            found = relabelled(self.inventory, plan, standing)
        if found is not None:
            # Another process has written it meanwhile, or only labels had changed.
            return self.result(found)
        donors = self.inventory.donors(standing)
        rows = self.rows_for_segments(plan, standing)
        computed, rate, cut = 0, None, None
        if len(rows):
            cut = self.cut(plan, rows, donors)
            mine = [unit for unit in units_in(cut.units, self.share) if unit in cut.todo]
            if mine:
                computed, rate = yield from self._compute(plan, mine, donors)
            if self.share is not None:
                return self._share_result(plan, cut, computed=computed, rate=rate)
        cache = self._publish(plan, standing, cut)
        return self.result(cache, computed=computed, rate=rate)

    def run(self) -> Extraction:
        """All steps in one go; the caller holds the lock."""
        return _value_of(self.steps())

    def run_units(self, numbers: Sequence[int], rows: npt.NDArray[np.int64], donors: list[Donor]) -> int:
        """Computes some units of an extraction that was begun, and returns how many rows were computed.

        Args:
            numbers: Which units.
            rows, donors: As `rows_for_segments` and `inventory.donors` give them.
        """
        units = self._units(self.plan, rows, self._segment_rows(len(rows), self.inventory.manifest()))
        todo = [units[number] for number in numbers if not self.inventory.stands(units[number], self.plan)]
        if not todo:
            return 0
        self._watch.start()
        computed, _ = _value_of(self._compute(self.plan, todo, donors))
        return computed

    def cut(self, plan: Plan, rows: npt.NDArray[np.int64], donors: list[Donor]) -> Cut:
        """The units of the rows that go into segments, and which of them are still to be written.

        What the first process decides is written into the manifest, and every other one obeys it.
        """
        with self._deciding():
            before = self.inventory.manifest()
            speed = self._try_out(plan, rows, donors) if before is None and not self.assembles_only else None
            segment_rows = self._segment_rows(len(rows), before, speed)
            units = self._units(plan, rows, segment_rows)
            todo = [unit for unit in units if not self.inventory.stands(unit, plan)]
            if self.assembles_only and todo:
                # Nothing is begun: what stands there stays as it is.
                raise self._incomplete(plan, units, todo)
            segments = [unit.segment for unit in units]
            manifest = begin(self.inventory, segments, segment_rows, as_command(self.request))
        return Cut(units=units, manifest=manifest, todo=todo)

    def _units(self, plan: Plan, rows: npt.NDArray[np.int64], segment_rows: int) -> list[Unit]:
        return units_of(rows, plan.rows_of_splits, segment_rows=segment_rows, views=self.spec.views)

    def _deciding(self) -> AbstractContextManager[object]:
        """One process at a time begins or publishes an extraction that several compute."""
        return locked(self.request.features_dir, f"{self.name}.manifest")

    def missing(self, plan: Plan, donors: Sequence[Donor]) -> npt.NDArray[np.int64]:
        """The rows of the plan that are nowhere, ascending: (m,)."""
        found = Donors(donors, self.reporter.warn)
        digests = np.concatenate(list(plan.row_digests().values()))
        return np.flatnonzero(found.locate(digests, self.spec.layer_names).donor < 0)

    def rows_for_segments(self, plan: Plan, standing: FeatureCache | None) -> npt.NDArray[np.int64]:
        """All rows of the plan; beside a packed cache that is packed again, only those that it has not."""
        again = packs(self.pack, self.spec, plan.rows)
        if standing is None or not again or standing.path != self.inventory.packed_path:
            return np.arange(plan.rows)
        return self.missing(plan, self.inventory.rows_of(standing))

    def _segment_rows(self, rows: int, before: Manifest | None, speed: float | None = None) -> int:
        """How many rows a segment has: as asked, as the extraction was begun, else by the speed, in images/s."""
        if self.segment_rows is not None:
            return self.segment_rows
        if before is not None:
            return before.segment_rows
        return segment_rows_for(speed or assumed_speed(self.backbone.flops_per_image), rows)

    def _try_out(self, plan: Plan, rows: npt.NDArray[np.int64], donors: list[Donor]) -> float | None:
        """Compute some of the missing rows before anything is begun: the drift, and images/s where many are missing.

        A whole batch is kept among the donors.
        """
        missing = rows[Donors(donors).locate(plan.at(rows).digests).donor < 0]
        if not len(missing):
            return None
        with closing(self._pipeline()) as pipeline:
            self._require_described()
            self._measure_drift(pipeline, plan.at(missing[drift.sample_of(len(missing))]))
            batch = self.computer.batch_size
            if self.backbone.stores_bytes or len(missing) < _BATCHES_WORTH_MEASURING * batch:
                return None
            some = plan.at(missing[np.linspace(0, len(missing) - 1, batch).astype(np.int64)])
            return self._speed(pipeline, some, donors)

    def _speed(self, pipeline: Pipeline, some: PlannedRows, donors: list[Donor]) -> float | None:
        """Images/s by one batch of real images; None where one of them cannot be used."""
        began = time.perf_counter()
        try:
            images = pipeline.images(some.samples, some.images, some.views)
        except ImageError:
            return None
        decoded = time.perf_counter()
        if len(images) < len(some.samples):
            return None
        features = pipeline.features(images, self.spec.dtype)
        computed = time.perf_counter()
        donors.append(MemoryDonor(fingerprint=self.spec.fingerprint, digests=some.digests, features=features))
        slowest = max((decoded - began) / self.computer.workers, computed - decoded, 1e-6)
        return len(some.samples) / slowest

    def _publish(self, plan: Plan, standing: FeatureCache | None, cut: Cut | None) -> FeatureCache:
        return publish(
            self.inventory,
            plan,
            standing=standing,
            manifest=None if cut is None else cut.manifest,
            packed=packs(self.pack, self.spec, plan.rows),
            advance=lambda done, total: self.reporter.advance("packing", done, total),
        )

    def _incomplete(self, plan: Plan, units: Sequence[Unit], todo: Sequence[Unit]) -> CacheIncomplete:
        missing = sum(map(len, todo))
        return CacheIncomplete(
            f"{missing:,} of {plan.rows:,} rows are missing, in {len(todo):,} of {len(units):,} segments",
            hint="run the shards that have not ended, or `featcache extract` with the same options",
        )

    # --- what is said and checked before --------------------------------------------------------------------

    def _say_what_stands(self, plan: Plan, missing: int) -> None:
        rows, size = plan.rows, f"the cache will have {human_bytes(plan.rows * row_bytes(self.spec))}"
        if missing == rows:
            what = "images" if self.spec.views == 1 else f"rows ({self.spec.views} views of each train image)"
            self.reporter.say(f"{rows} {what} to extract with {self.backbone.name}; {size}")
        elif self.share is not None:
            self.reporter.say(f"{missing} rows to extract in this share of {rows}; {size}")
        else:
            self.reporter.say(f"{rows - missing} of {rows} rows stand already, {missing} to extract; {size}")

    def _require_room(self, rows: int, written: int) -> None:
        """Segments and packed file stand side by side for a moment. Raises ExtractionError before a forward pass."""
        packed = rows if self.share is None and packs(self.pack, self.spec, rows) else 0
        needed = (packed + written) * row_bytes(self.spec)
        self.request.features_dir.mkdir(parents=True, exist_ok=True)
        free = free_bytes(self.request.features_dir)
        if free < needed:
            beside = " (segments and, for a moment, the packed file)" if packed else ""
            raise ExtractionError(
                f"the disk of {self.request.features_dir} has {human_bytes(free)} free, "
                f"{human_bytes(needed)} are needed{beside}",
                hint="make room, choose another --data-dir, or extract fewer images with --limit",
            )

    # --- computing ------------------------------------------------------------------------------------------

    def _compute(
        self, plan: Plan, units: Sequence[Unit], donors: Sequence[Donor]
    ) -> Generator[int, None, tuple[int, float | None]]:
        """Writes the segments of these units; how many rows were computed, and images per second."""
        planned = plan.at(np.concatenate([unit.rows for unit in units]))
        work = Work.of(units, planned, Donors(donors, self.reporter.warn), self.spec.layer_names)
        measured = [number for number, one in enumerate(work.donors.donors) if isinstance(one, MemoryDonor)]
        before = int(np.isin(work.located.donor, measured).sum())
        missing = len(work.missing)
        self._say_what_stands(plan, missing + before)
        self._require_room(plan.rows, len(planned.samples))
        if not len(work.computed):
            with self._writer(work):
                pass
            return before, None
        failed, rate = yield from self._compute_missing(work)
        return before + missing - failed, rate

    def _compute_missing(self, work: Work) -> Generator[int, None, tuple[int, float]]:
        """The same where rows have to be computed; how many could not be, and images per second."""
        wanted = work.planned.take(work.computed)
        done, failed = 0, 0
        varied = Variation(self.spec.layer_names)
        with closing(self._pipeline()) as pipeline:
            self._require_described()
            self._measure_drift(pipeline, wanted.take(drift.sample_of(len(wanted.samples))))
            self.images.decoder.expect(wanted.images)
            yield from self._pausing(_BEGUN)
            began = self._watch.read()
            forecast = Forecast(total=len(work.computed), clock=self._watch.read)
            with self._writer(work) as writer:
                try:
                    for block in pipeline.rows(wanted.samples, wanted.images, wanted.views):
                        for failure in self._accepted(block.failures):
                            index = int(work.computed[failure.row])
                            writer.fail(index, failure.error.message)
                            failed += int((work.source == index).sum())
                        writer.put(work.computed[block.index], block.features)
                        varied.add(block.features)
                        done += len(block.index) + len(block.failures)
                        self.reporter.advance("extracting", done, len(work.computed), bound=self.stages.bound)
                        if (sentence := forecast.sentence(done, self.stages.bound)) is not None:
                            self.reporter.say(sentence)
                        yield from self._pausing(int(work.computed[done - 1]))
                except KeyboardInterrupt:
                    self.reporter.say("stopped; what is finished stands: run the same command again to go on")
                    raise
        for layer in varied.constant():
            self.reporter.warn(
                f"all {done:,} images have the same features in layer {layer} ({self.backbone.source}): "
                "check the layer and the weights"
            )
        return failed, len(work.computed) / max(self._watch.read() - began, 1e-9)

    def _require_described(self) -> None:
        """The network in memory must be the one that the spec describes. Raises WeightsError."""
        described = {layer.name: layer.weights for layer in self.spec.layers}
        if {layer.name: layer.weights for layer in self.computer.network.spec.layers} != described:
            raise WeightsError(
                f"the weights of {self.backbone.name} changed while the extraction began", hint="run it again"
            )

    def _pausing(self, reached: int) -> Generator[int, None, None]:
        self._watch.stop()
        yield reached
        self._watch.start()

    def _measure_drift(self, pipeline: Pipeline, some: PlannedRows) -> None:
        """Compare some rows with fp32 on the CPU, torch as it is. Raises ExtractionError where they are too far off."""
        program = pipeline.program
        assert program is not None
        exact = ("cpu", "fp32", "eager")
        if self.backbone.stores_bytes or self._drift is not None:
            return
        if (program.device, program.precision, program.runner) == exact:
            return
        images = pipeline.images(some.samples, some.images, some.views)
        if not len(images):
            return
        name = program.precision if program.device == "cpu" else f"{program.precision} on {program.device}"
        found = drift.measured(
            name,
            pipeline.on_cpu(images, self.computer.network.on(*exact)),
            pipeline.features(images, "float32"),
        )
        found.require(self.min_cosine if program.precision != "fp32" else max(self.min_cosine, drift.LEAST_IN_FP32))
        self.reporter.say(str(found))
        self._drift = found.to_json()

    def _pipeline(self) -> Pipeline:
        computer = self.computer
        batch_size = computer.batch_size
        return Pipeline(
            source=self.source,
            program=computer.program(self.spec, batch_size),
            dtype=self.spec.dtype,
            batch_size=batch_size,
            workers=computer.workers,
            augmentation=augmentation_of(self.spec),
            view_seed=self.spec.view_seed or 0,
            resizing=computer.resizing,
            stages=self.stages,
            decoder=self.images.decoder,
            one_shape=True,
        )

    def _writer(self, work: Work) -> SegmentWriter:
        info = CacheInfo(
            spec=self.spec,
            selection=self.request.selection,
            set_name=self.source.name,
        )
        return SegmentWriter(
            self.inventory.folder,
            info,
            work,
            provenance=self.computed_by,
            scaling=scaling_of(self.inventory),
            stages=self.stages,
        )

    def _accepted(self, failures: Sequence[Failure]) -> Sequence[Failure]:
        if failures and not self.skip:
            raise failures[0].error
        return failures

    def computed_by(self) -> dict[str, Any]:
        """How rows are computed now: the provenance of segments."""
        probe = self.backbone.probe
        return {
            "drift": self._drift,
            "probe": None if probe is None else probe.to_json(),
            "batch_size": self.computer.batch_size,
            **devices.provenance(self.computer.device, *_packages(self.spec.runner)),
        }

    # --- what is reported -----------------------------------------------------------------------------------

    def _share_result(self, plan: Plan, cut: Cut, *, computed: int, rate: float | None) -> Extraction:
        """Of a share; of the whole where it was the last."""
        with self._deciding():
            if all(self.inventory.stands(unit, plan) for unit in cut.todo):
                standing = self.inventory.standing()
                hit = self.inventory.hit(standing, plan)
                return self.result(hit or self._publish(plan, standing, cut), computed=computed, rate=rate)
        mine = units_in(cut.units, self.share)
        skipped = [one for split in self.inventory.segments_of(self.inventory.folder) for one in _skipped_in(split)]
        own = {unit.segment.file for unit in mine}
        return self._extraction(
            cache=self.inventory.folder,
            complete=False,
            fingerprint=self.spec.fingerprint,
            rows=plan.rows_of_splits,
            computed=computed,
            reused=sum(map(len, mine)) - computed,
            skipped=tuple(one for file, one in skipped if file in own),
            rate=rate,
            drift=self._drift,
        )

    def result(self, cache: FeatureCache, *, computed: int = 0, rate: float | None = None) -> Extraction:
        """What is reported of a complete cache."""
        rows = {split: len(cache[split]) for split in cache.splits}
        return self._extraction(
            cache=self.request.features_dir / cache.path.name,
            complete=True,
            fingerprint=cache.spec.fingerprint,
            rows=rows,
            computed=computed,
            reused=max(0, sum(rows.values()) - computed),
            skipped=tuple(cache.skipped),
            rate=rate,
            drift=cache.provenance.get("drift"),
        )

    def _extraction(
        self,
        *,
        cache: Path,
        complete: bool,
        fingerprint: str,
        rows: dict[str, int],
        computed: int,
        reused: int,
        skipped: tuple[Skipped, ...],
        rate: float | None,
        drift: Json,
    ) -> Extraction:
        return Extraction(
            cache=cache,
            complete=complete,
            fingerprint=fingerprint,
            rows=rows,
            feature_dim={layer.name: layer.feature_dim for layer in self.spec.layers},
            computed=computed,
            reused=reused,
            skipped=skipped,
            seconds=self._watch.read(),
            images_per_s=rate,
            shares=self.stages.shares,
            bound=self.stages.bound,
            drift=drift,
        )


def _skipped_in(split: Any) -> list[tuple[str, Skipped]]:
    with FeatureCache(split.file) as segment:
        return [(segment.path.name, one) for one in segment.skipped]


def _packages(runner: str) -> tuple[str, ...]:
    """The packages that a runner computes with besides torch."""
    return {"openvino": ("openvino",), "ncnn": ("ncnn", "pnnx")}.get(runner, ())


def _value_of(steps: Generator[int, None, Returned]) -> Returned:
    """What a generator returns after all its steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: Returned = end.value
            return value
