"""One extraction at work: look who has rows already, compute the others in parts, assemble the cache.

Parts are idempotent, so the same job after a kill, or two jobs at once, end with the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.backbones import devices
from featcache.backbones.describe import Choice
from featcache.backbones.spec import BackboneSpec
from featcache.cache.catalog import CACHE_SUFFIX, candidates, set_aside
from featcache.cache.donors import Donor, Donors
from featcache.cache.locks import Owner, locked
from featcache.cache.manifest import SHARDED_SUFFIX
from featcache.cache.parts import Skipped, open_parts
from featcache.cache.plan import PartsPlan, discard_parts, write_plan
from featcache.cache.reader import FeatureCache
from featcache.cache.sharded import assemble_sharded
from featcache.cache.spec import Json, Spec, cache_name
from featcache.cache.writer import assemble, encoded_ids, serves
from featcache.errors import (
    CacheDamaged,
    CacheForeign,
    CacheIncomplete,
    CacheNotFound,
    ExtractionError,
    SourceError,
    WeightsError,
)
from featcache.extraction import drift
from featcache.extraction.behaviour import computes_the_same
from featcache.extraction.computing import Computer
from featcache.extraction.forecast import Forecast
from featcache.extraction.part_writer import PartWriter
from featcache.extraction.pipeline import Failure, Pipeline
from featcache.extraction.plan import Plan, PlannedRows, augmentation_of
from featcache.extraction.reporting import Reporter, human_bytes
from featcache.extraction.request import Request
from featcache.extraction.resizing import HostResizing
from featcache.extraction.result import Extraction
from featcache.extraction.shared_images import SharedImages
from featcache.extraction.shares import Share, rows_in, rows_of
from featcache.extraction.stages import Stages, Stopwatch
from featcache.extraction.tables import left_out, split_tables
from featcache.extraction.variation import Variation
from featcache.files import free_bytes
from featcache.images.sources import ImageSource

_UNUSABLE = (CacheDamaged, CacheForeign, CacheNotFound)

#: Yields how far it is, as a row of the plan, whenever another job may take its turn.
Steps = Generator[int, None, Extraction]
_BEGUN = -1

# An image that could not be used: the SHA-256 of its bytes, and why.
_Failed = tuple[bytes, str]


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
    part_rows: int
    skip: bool
    min_cosine: float
    # Whose rows are computed, where several do it together: then somebody else assembles. None: all.
    share: Share | None = None
    # Nothing is computed: what others have done is put together.
    assembles_only: bool = False
    # Rows of one file of a sharded cache; None: one file.
    shard_rows: int | None = None
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

    @property
    def cache_path(self) -> Path:
        name = cache_name(self.source.name, self.spec, self.request.selection)
        return self.request.features_dir / f"{name}{CACHE_SUFFIX if self.shard_rows is None else SHARDED_SUFFIX}"

    @property
    def parts_dir(self) -> Path:
        return self.cache_path.with_suffix(".parts")

    def lock(self, *, wait: bool) -> AbstractContextManager[object]:
        """Keeps others from writing the same cache; `wait` for whoever does, else CacheBusy."""
        return locked(
            self.request.features_dir,
            self.cache_path.stem,
            shared=self.share is not None,
            wait=wait,
            waiting=self._say_waiting,
        )

    def _say_waiting(self, owner: Owner | None) -> None:
        self.reporter.say(f"waiting: {owner or 'somebody else'} is writing this cache (--no-wait stops instead)")

    def steps(self) -> Steps:
        """The extraction; the caller holds the lock. It yields first when all images it needs are announced."""
        self._watch.start()
        plan = self.plan
        standing = self.standing_cache()
        if (hit := self.hit(standing)) is not None:
            return hit
        missing = self.missing(plan, standing)
        if self.share is not None:
            return (yield from self._do_share(plan, plan.distinct(missing), self.share))
        self._say_what_stands(plan.rows, len(missing))
        self._require_room(plan.rows, len(missing))
        failures: list[_Failed] = []
        computed, rate = 0, None
        if self.assembles_only:
            failures = self._unusable(plan, missing)
        elif len(missing):
            failures, rate = yield from self._compute(plan, plan.distinct(missing))
            computed = len(missing) - len(failures)
        cache = self._assemble(plan, failures)
        return self._result(cache, computed=computed, rate=rate)

    def run(self) -> Extraction:
        """All steps in one go; the caller holds the lock."""
        return _last(self.steps())

    def run_share(self, share: Share, wanted: npt.NDArray[np.int64]) -> Extraction:
        """Computes what of the rows `wanted` (all different) is `share`'s; nothing is looked up, nothing assembled."""
        return _last(self._do_share(self.plan, wanted, share))

    def hit(self, standing: FeatureCache | None) -> Extraction | None:
        """The result where every row is in one finished cache already."""
        if standing is not None and self.is_hit(standing, self.plan):
            # A run that was killed right after it had published may have left its parts.
            discard_parts(self.parts_dir)
            return self._result(standing, computed=0, rate=None)
        wider = self.wider_cache(self.plan)
        return None if wider is None else self._result(wider, computed=0, rate=None)

    def _do_share(self, plan: Plan, wanted: npt.NDArray[np.int64], share: Share) -> Steps:
        units = share.units(-(-plan.rows // self.part_rows))
        rows, mine = rows_of(units, plan.rows, self.part_rows), rows_in(units, wanted, self.part_rows)
        self._say_what_stands(rows, len(mine))
        self._require_room(0, len(mine))
        failures, rate = (yield from self._compute(plan, mine)) if len(mine) else ([], None)
        computed = len(mine) - len(failures)
        return self._share_result(
            plan, computed=computed, reused=rows - len(mine), lost=left_out(plan, failures), rate=rate
        )

    def missing(self, plan: Plan, standing: FeatureCache | None) -> npt.NDArray[np.int64]:
        """The rows of the plan that nobody has, ascending: (m,)."""
        donors = Donors(self.donors(standing), self.reporter.warn)
        found, first = [np.empty(0, np.int64)], 0
        for digests in plan.row_digests().values():
            found.append(first + np.flatnonzero(donors.locate(digests, self.spec.layer_names).donor < 0))
            first += len(digests)
        return np.concatenate(found)

    def units(self, rows: npt.NDArray[np.int64]) -> list[int]:
        """The units that these rows lie in, ascending."""
        numbers: list[int] = np.unique(rows // self.part_rows).tolist()
        return numbers

    # --- who has what ---------------------------------------------------------------------------------------

    def standing_cache(self) -> FeatureCache | None:
        """The cache that lies under this job's name; a damaged one is said and counts as absent."""
        try:
            return FeatureCache.open(self.cache_path)
        except CacheNotFound:
            return None
        except (CacheDamaged, CacheForeign) as error:
            self.reporter.warn(f"{error.message}; it counts as absent")
            return None

    def wider_cache(self, plan: Plan) -> FeatureCache | None:
        """A cache of the same rows that holds the asked layers among others: asking for some of them is a hit."""
        for entry in candidates(self.request.features_dir):
            if entry.complete and entry.selection == self.request.selection and self._is_served_by(entry.spec):
                cache = self._opened(entry.path)
                if cache is not None and self.is_hit(cache, plan):
                    return cache
        return None

    def _is_served_by(self, spec: Spec | None) -> bool:
        return spec is not None and serves(spec, self.spec)

    def _move_aside(self) -> None:
        """What lies under the cache's name and is none is kept: somebody may want to look at it, or own it."""
        aside = set_aside(self.cache_path)
        self.reporter.warn(f"it was kept as {aside} (`featcache gc` lists it)")

    def is_hit(self, cache: FeatureCache, plan: Plan) -> bool:
        """Whether the standing cache holds exactly the plan's rows, under the same labels and classes."""
        if not self._is_served_by(cache.spec) or (cache.skipped and not self.skip):
            return False
        unread = {(sample.split, sample.id) for sample, _ in plan.unreadable}
        if cache.classes != self.source.classes or not unread <= {(one.split, one.id) for one in cache.skipped}:
            return False
        kept = {split: table for split, table in split_tables(plan, cache.skipped).items() if len(table)}
        return set(cache.splits) == set(kept) and all(
            np.array_equal(cache[split].encoded_ids, encoded_ids(split, table.ids))
            and np.array_equal(cache[split].labels, table.labels)
            and np.array_equal(cache[split].digests, table.digests)
            for split, table in kept.items()
        )

    def donors(self, standing: FeatureCache | None) -> list[Donor]:
        """Everybody whose rows were computed under the same spec, further layers aside: parts first, then caches."""
        folder, short = self.request.features_dir, self.spec.fingerprint[:8]
        donors: list[Donor] = []
        for parts in sorted(folder.glob(f"*-{short}-*.parts")):
            donors += open_parts(parts, self.reporter.warn, fingerprint=self.spec.fingerprint)
        for entry in candidates(folder):
            if entry.complete and self._is_served_by(entry.spec):
                cache = standing if entry.path == self.cache_path else self._opened(entry.path)
                donors += [cache[split] for split in cache.splits] if cache is not None else []
        return [donor for donor in donors if self._is_the_same_function(donor)]

    def _is_the_same_function(self, donor: Donor) -> bool:
        """Whether a row of the donor is what the network computes now, by its outputs on the probe images."""
        provenance: Mapping[str, Any] = getattr(donor, "provenance", {})
        return computes_the_same(self.backbone, provenance, self.spec.layer_names)

    def _opened(self, path: Path) -> FeatureCache | None:
        try:
            return FeatureCache.open(path)
        except _UNUSABLE as error:
            self.reporter.warn(f"{error.message}; its rows do not count")
            return None

    def _say_what_stands(self, rows: int, missing: int) -> None:
        size = f"the cache will have {human_bytes(rows * self._row_bytes)}"
        if missing == rows:
            what = "images" if self.spec.views == 1 else f"rows ({self.spec.views} views of each train image)"
            self.reporter.say(f"{rows} {what} to extract with {self.backbone.name}; {size}")
        else:
            self.reporter.say(f"{rows - missing} of {rows} rows stand already, {missing} to extract; {size}")

    @property
    def _row_bytes(self) -> int:
        return sum(layer.feature_dim for layer in self.spec.layers) * np.dtype(self.spec.dtype).itemsize

    def _require_room(self, rows: int, missing: int) -> None:
        """Parts and file stand side by side for a moment. Raises ExtractionError before the first forward pass."""
        needed = (rows + missing) * self._row_bytes
        self.request.features_dir.mkdir(parents=True, exist_ok=True)
        free = free_bytes(self.request.features_dir)
        if free < needed:
            raise ExtractionError(
                f"the disk of {self.request.features_dir} has {human_bytes(free)} free, "
                f"{human_bytes(needed)} are needed (features and, for a moment, their parts)",
                hint="make room, choose another --data-dir, or extract fewer images with --limit",
            )

    # --- computing ------------------------------------------------------------------------------------------

    def _compute(self, plan: Plan, rows: npt.NDArray[np.int64]) -> Generator[int, None, tuple[list[_Failed], float]]:
        """Writes parts for these rows; what failed, and images per second."""
        wanted = plan.at(rows)
        failures: list[Failure] = []
        done = 0
        varied = Variation(self.spec.layer_names)
        with closing(self._pipeline()) as pipeline:
            self._require_described()
            self._measure_drift(pipeline, wanted)
            self.begin(plan)
            self.images.decoder.expect(wanted.images)
            yield from self._pausing(_BEGUN)
            began = self._watch.read()
            forecast = Forecast(total=len(rows), clock=self._watch.read)
            with self._part_writer(rows, wanted.digests) as writer:
                try:
                    for block in pipeline.rows(wanted.samples, wanted.images, wanted.views):
                        failures += self._accepted(block.failures)
                        writer.add(block)
                        varied.add(block.features)
                        done += len(block.index) + len(block.failures)
                        self.reporter.advance("extracting", done, len(rows), bound=self.stages.bound)
                        if (sentence := forecast.sentence(done, self.stages.bound)) is not None:
                            self.reporter.say(sentence)
                        yield from self._pausing(int(rows[done - 1]))
                except KeyboardInterrupt:
                    self.reporter.say("stopped; what is finished stands: run the same command again to go on")
                    raise
        for layer in varied.constant():
            self.reporter.warn(
                f"all {done:,} images have the same features in layer {layer} ({self.backbone.source}): "
                "check the layer and the weights"
            )
        rate = len(rows) / max(self._watch.read() - began, 1e-9)
        return _failed(wanted, failures), rate

    def _require_described(self) -> None:
        """The network in memory must be the one that the spec describes. Raises WeightsError."""
        described = {layer.name: layer.weights for layer in self.spec.layers}
        if {layer.name: layer.weights for layer in self.computer.network.spec.layers} != described:
            raise WeightsError(
                f"the weights of {self.backbone.name} changed while the extraction began", hint="run it again"
            )

    def _unusable(self, plan: Plan, rows: npt.NDArray[np.int64]) -> list[_Failed]:
        """Of rows that nobody has, those whose images cannot be used; CacheIncomplete where others are missing too."""
        asked = plan.at(rows)
        with closing(self._pipeline(computes=False)) as pipeline:
            failures = list(self._accepted(pipeline.failures(asked.samples, asked.images, asked.views)))
        if len(failures) < len(rows):
            raise CacheIncomplete(
                f"{len(rows) - len(failures):,} of {plan.rows:,} rows are missing, "
                f"in {len(self.units(rows)):,} of {-(-plan.rows // self.part_rows):,} parts",
                hint="run the shards that have not ended, or `featcache extract` with the same options",
            )
        return _failed(asked, failures)

    def _pausing(self, reached: int) -> Generator[int, None, None]:
        self._watch.stop()
        yield reached
        self._watch.start()

    def _measure_drift(self, pipeline: Pipeline, wanted: PlannedRows) -> None:
        """Compares with fp32 on the CPU, torch as it is; nothing is begun where features are too far from that."""
        program = pipeline.program
        assert program is not None
        exact = ("cpu", "fp32", "eager")
        if self.backbone.stores_bytes or self._drift is not None:
            return
        if (program.device, program.precision, program.runner) == exact:
            return
        rows = drift.sample_of(len(wanted.samples))
        some = [wanted.samples[row] for row in rows]
        images = pipeline.images(some, wanted.images[rows], wanted.views[rows])
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

    def begin(self, plan: Plan) -> None:
        """Settles the spec for everybody who takes part, and every resume."""
        write_plan(
            self.parts_dir,
            PartsPlan(
                spec=self.spec,
                selection=self.request.selection,
                set_name=self.source.name,
                classes=self.source.classes,
                rows=plan.rows_of_splits,
                created=_now(),
            ),
        )

    def _pipeline(self, *, computes: bool = True) -> Pipeline:
        computer = self.computer
        batch_size = computer.batch_size if computes else 1
        return Pipeline(
            source=self.source,
            program=computer.program(self.spec, batch_size) if computes else None,
            dtype=self.spec.dtype,
            batch_size=batch_size,
            workers=computer.workers if computes else devices.cores(),
            augmentation=augmentation_of(self.spec),
            view_seed=self.spec.view_seed or 0,
            resizing=computer.resizing if computes else HostResizing(self.backbone.transform),
            stages=self.stages,
            decoder=self.images.decoder,
            one_shape=True,
        )

    def _part_writer(self, rows: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8]) -> PartWriter:
        return PartWriter(
            self.parts_dir,
            self.spec,
            rows=rows,
            digests=digests,
            part_rows=self.part_rows,
            provenance=self.computed_by(),
            stages=self.stages,
        )

    def _accepted(self, failures: Sequence[Failure]) -> Sequence[Failure]:
        if failures and not self.skip:
            raise failures[0].error
        return failures

    # --- the cache ------------------------------------------------------------------------------------------

    def _assemble(self, plan: Plan, failures: Sequence[_Failed]) -> FeatureCache:
        lost = left_out(plan, failures)
        lost += [Skipped(id=s.id, split=s.split, reason=reason) for s, reason in plan.unreadable]
        tables = split_tables(plan, lost)
        standing = self.standing_cache()
        donors = self.donors(standing)
        self._drift = self._drift or drift.recorded(donors)
        if standing is None and self.cache_path.exists():
            self._move_aside()
        if not any(len(table) for table in tables.values()):
            raise SourceError(f"every image of {self.source.name} was skipped", hint="run with --on-error fail")
        write: Callable[..., Path] = assemble
        if self.shard_rows is not None:
            write = partial(assemble_sharded, rows_per_shard=self.shard_rows)
        write(
            self.cache_path,
            spec=self.spec,
            selection=self.request.selection,
            set_name=self.source.name,
            classes=self.source.classes,
            provenance=self._provenance(),
            tables={split: table for split, table in tables.items() if len(table)},
            skipped=lost,
            donors=Donors(donors, self.reporter.warn),
            arrays=self._scaling(),
            progress=lambda done, total: self.reporter.advance("assembling", done, total),
        )
        discard_parts(self.parts_dir)
        return FeatureCache.open(self.cache_path)

    def _scaling(self) -> dict[str, tuple[float, float]] | None:
        scaling = self.backbone.scaling
        return None if scaling is None else {self.backbone.name: scaling}

    def _provenance(self) -> dict[str, Any]:
        return {
            "created": _now(),
            "weights": self.backbone.source,
            "parameters": self.backbone.parameters,
            "normalize": self.request.normalize or ("half" if self.backbone.stores_bytes else "weights"),
            "choice": None if self.backbone.is_own_module else Choice.of(self.request.backbone_options).to_json(),
            **self.computed_by(),
        }

    def computed_by(self) -> dict[str, Any]:
        """The part of the provenance that belongs to rows rather than to a cache."""
        probe = self.backbone.probe
        return {
            "drift": self._drift,
            "probe": None if probe is None else probe.to_json(),
            "batch_size": self.computer.batch_size,
            **devices.provenance(self.computer.device, *_packages(self.spec.runner)),
        }

    def _share_result(
        self, plan: Plan, *, computed: int, reused: int, lost: list[Skipped], rate: float | None
    ) -> Extraction:
        return Extraction(
            cache=self.request.features_dir / self.cache_path.name,
            complete=False,
            fingerprint=self.spec.fingerprint,
            rows=plan.rows_of_splits,
            feature_dim={layer.name: layer.feature_dim for layer in self.spec.layers},
            computed=computed,
            reused=reused,
            skipped=tuple(lost),
            seconds=self._watch.read(),
            images_per_s=rate,
            shares=self.stages.shares,
            bound=self.stages.bound,
            drift=self._drift,
        )

    def _result(self, cache: FeatureCache, *, computed: int, rate: float | None) -> Extraction:
        rows = {split: len(cache[split]) for split in cache.splits}
        return Extraction(
            cache=self.request.features_dir / cache.path.name,
            fingerprint=cache.spec.fingerprint,
            rows=rows,
            feature_dim={layer.name: layer.feature_dim for layer in self.spec.layers},
            computed=computed,
            reused=sum(rows.values()) - computed,
            skipped=tuple(cache.skipped),
            seconds=self._watch.read(),
            images_per_s=rate,
            shares=self.stages.shares,
            bound=self.stages.bound,
            drift=cache.provenance.get("drift"),
        )


def _packages(runner: str) -> tuple[str, ...]:
    """The packages that a runner computes with besides torch."""
    return {"openvino": ("openvino",), "ncnn": ("ncnn", "pnnx")}.get(runner, ())


def _failed(rows: PlannedRows, failures: Sequence[Failure]) -> list[_Failed]:
    return [(rows.images[failure.row].tobytes(), failure.error.message) for failure in failures]


def _last(steps: Steps) -> Extraction:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            done: Extraction = end.value
            return done


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
