"""The rows of a plan as a cache stores them: ids, digests and labels, without the images that were left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import row_digests
from featcache.cache.tables import Skipped, SplitTable
from featcache.cache.targets import LABEL
from featcache.extraction.plan import Plan
from featcache.images.samples import SampleIds, Samples


def split_tables(plan: Plan, skipped: Sequence[Skipped]) -> dict[str, SplitTable]:
    """The rows of each split without the skipped images; one whose bytes have changed since counts again."""
    tables = {}
    for split, samples in plan.samples.items():
        digests, views = plan.digests[split], plan.views_in(split)
        gone = _rows_of(samples, digests, {one.id: one.digest for one in skipped if one.split == split})
        # Only where it must be: of ten million rows a copy is 400 MB.
        if gone:
            kept = np.delete(np.arange(len(samples)), gone)
            samples, digests = samples.take(kept), digests[kept]
        if views > 1:
            samples = samples.take(np.arange(len(samples)).repeat(views))
        tables[split] = SplitTable(
            ids=SampleIds(samples), digests=row_digests(digests, views), targets={LABEL: samples.labels}
        )
    return tables


def _rows_of(samples: Samples, digests: npt.NDArray[np.uint8], named: Mapping[str, str | None]) -> list[int]:
    """Of the images that have these names, those that have the digest (hex) beside it, too."""
    if not named:
        return []
    called = np.fromiter((one in named for one in samples.ids()), np.bool_, len(samples))
    return [row for row in np.flatnonzero(called).tolist() if named[samples[row].id] == digests[row].tobytes().hex()]


def rows_kept(table: SplitTable, skipped: Sequence[Skipped], views: int) -> npt.NDArray[np.bool_]:
    """Of a table's rows those that stay without the skipped images: (n,).

    Args:
        table: Rows of whole images.
        skipped: With their names and digests.
        views: How many rows an image has.
    """
    named = {one.id: one.digest for one in skipped}
    kept = np.ones(len(table), np.bool_)
    if named:
        for row in range(0, len(table), views):
            # The first row of an image has the image's own digest.
            if table.ids[row] in named and named[table.ids[row]] == table.digests[row].tobytes().hex():
                kept[row : row + views] = False
    return kept
