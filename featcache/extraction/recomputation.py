"""Compare a cache's rows with a new computation by the same backbone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.backbones import devices
from featcache.backbones.network import Network
from featcache.backbones.program import Program
from featcache.backbones.spec import outputs_in
from featcache.cache.reader import CachedSplit, FeatureCache
from featcache.display import Shown
from featcache.errors import ExtractionError
from featcache.extraction.forward import ForwardPass
from featcache.extraction.pipeline import Pipeline
from featcache.extraction.rebuild import rebuild
from featcache.extraction.resolve import augmentation_of
from featcache.images import open_images
from featcache.images.samples import Sample
from featcache.images.source import ImageSource

_BATCH, _LARGEST_BATCH = 32, 4096


@dataclass(frozen=True, kw_only=True, repr=False)
class Recomputation(Shown):
    """Stored rows compared with recomputed ones.

    Attributes:
        rows: How many rows were compared.
        equal: How many of them are equal bit by bit.
        greatest: The greatest absolute difference of a number.
        relative: The greatest |difference| / |recomputed row|, in Euclidean norms.
        worst: The id of the image with that difference.
    """

    rows: int
    equal: int
    greatest: float
    relative: float
    worst: str

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "equal": self.equal,
            "greatest_difference": self.greatest,
            "relative_difference": self.relative,
            "worst": self.worst,
        }


def network_of(cache: FeatureCache, *, data_dir: Path, weights: str | Path | None = None) -> Network:
    """Open the backbone that computed this cache, with weights from where they are now, or from where they were.

    Raises what `rebuild` raises.
    """
    source = cache.provenance.get("weights")
    return rebuild(
        cache.spec,
        str(source) if source else None,
        what=cache.name,
        probe=outputs_in(cache.provenance),
        weights=weights,
        data_dir=data_dir,
    )


def recompute(
    cache: FeatureCache,
    rows: int,
    *,
    seed: int,
    data_dir: Path,
    device: str,
    weights: str | Path | None = None,
    threads: int = 2,
) -> Recomputation:
    """Recompute random rows of a cache, in the cache's own precision, and compare them with the stored ones.

    Args:
        cache: The cache.
        rows: How many rows.
        seed: Which rows.
        data_dir: The folder of data sets and weights.
        device: Where to compute.
        weights: Where the backbone's weights are now; None: where they were when the rows were computed.
        threads: Threads that decode images.

    Raises:
        ExtractionError: An image is missing or has changed since it was extracted.
        WeightsError: The weights are missing, or are not those that computed the rows.
        InvalidOption: The views were made by another version of featcache, in a way that this one does not know.
    """
    network = network_of(cache, data_dir=data_dir, weights=weights)
    spec = cache.spec
    precision = "uint8" if spec.precision == "uint8" else devices.resolve_precision(spec.precision, device)
    batch_size = _batch_size(cache)
    program = network.on(device, precision, spec.runner, batch_size=batch_size)
    with closing(open_images(cache.selection.source, datasets_dir=data_dir / "datasets")) as source:
        found = [
            _recompute_split(cache, cache[split], chosen, source, program, batch_size, threads)
            for split, chosen in _choose_rows(cache, rows, seed).items()
        ]
    return Recomputation(
        rows=sum(one.rows for one in found),
        equal=sum(one.equal for one in found),
        greatest=max(one.greatest for one in found),
        relative=max(one.relative for one in found),
        worst=max(found, key=lambda one: one.relative).worst,
    )


def _batch_size(cache: FeatureCache) -> int:
    """The batch size that the rows were computed with, because rounding may depend on it."""
    found = cache.provenance.get("batch_size")
    return found if isinstance(found, int) and 0 < found <= _LARGEST_BATCH else _BATCH


def _choose_rows(cache: FeatureCache, rows: int, seed: int) -> dict[str, npt.NDArray[np.int64]]:
    places = [(split, row) for split in cache.splits for row in range(len(cache[split]))]
    count = min(rows, len(places))
    picked = np.sort(np.random.default_rng(seed).choice(len(places), size=count, replace=False))
    chosen: dict[str, list[int]] = {}
    for place in picked:
        split, row = places[place]
        chosen.setdefault(split, []).append(row)
    return {split: np.asarray(some, np.int64) for split, some in chosen.items()}


def _recompute_split(
    cache: FeatureCache,
    split: CachedSplit,
    rows: npt.NDArray[np.int64],
    source: ImageSource,
    program: Program,
    batch_size: int,
    threads: int,
) -> Recomputation:
    by_id = {sample.id: sample for sample in source.samples(split.name)}
    samples = [_sample(by_id, split.ids[row], cache) for row in rows]
    forward = ForwardPass(
        program=program,
        dtype=split.spec.dtype,
        batch_size=batch_size,
        augmentation=augmentation_of(split.spec),
        view_seed=split.spec.view_seed or 0,
        one_shape=True,
    )
    with closing(Pipeline(source=source, backbones=[forward], workers=threads)) as pipeline:
        found = pipeline.gather(samples, lambda _image, _digest: [range(split.views)])
    if found.failures:
        raise ExtractionError(found.failures[0].error.message, hint="extract again: changed rows are replaced")
    for sample, row, digest in zip(samples, split.digests[rows], found.digests.values(), strict=True):
        if digest != row.tobytes():
            raise ExtractionError(
                f"{sample.id}: the image changed since it was extracted",
                hint="extract again: changed rows are replaced",
            )
    worst = Recomputation(rows=len(rows), equal=0, greatest=0.0, relative=-1.0, worst="")
    equal = np.ones(len(rows), np.bool_)
    (fresh_rows,) = found.rows
    for view in range(split.views):
        of_view = fresh_rows.views == view
        for layer in split.spec.layer_names:
            fresh, stored = fresh_rows.features[layer][of_view], split.gather(layer, rows, view)
            equal &= (fresh == stored).all(axis=1)
            worst = _worse(worst, fresh.astype(np.float64), stored.astype(np.float64), [s.id for s in samples])
    return Recomputation(
        rows=len(rows), equal=int(equal.sum()), greatest=worst.greatest, relative=worst.relative, worst=worst.worst
    )


def _sample(by_id: Mapping[str, Sample], name: str, cache: FeatureCache) -> Sample:
    if name not in by_id:
        raise ExtractionError(
            f"{name} is in {cache.name} and no longer in {cache.selection.source}",
            hint="extract again: rows of missing images are left out",
        )
    return by_id[name]


def _worse(
    so_far: Recomputation, fresh: npt.NDArray[np.float64], stored: npt.NDArray[np.float64], ids: list[str]
) -> Recomputation:
    # NaN counts as infinitely far: it is greater than nothing.
    difference = np.nan_to_num(fresh - stored, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    norms = np.linalg.norm(fresh, axis=1)
    relative = np.linalg.norm(difference, axis=1) / np.where((norms > 0) & np.isfinite(norms), norms, 1.0)
    row = int(relative.argmax())
    greatest = max(so_far.greatest, float(np.abs(difference).max()))
    if relative[row] <= so_far.relative:
        return Recomputation(rows=so_far.rows, equal=0, greatest=greatest, relative=so_far.relative, worst=so_far.worst)
    return Recomputation(rows=so_far.rows, equal=0, greatest=greatest, relative=float(relative[row]), worst=ids[row])
