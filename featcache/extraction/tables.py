"""What a cache says of the rows of a plan: their ids, labels and digests, and which images it had to leave out.

An image is left out with all its views, and with every image of the same bytes, which fails alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import leading_numbers, row_digests
from featcache.cache.parts import Skipped, SplitTable
from featcache.extraction.plan import Plan
from featcache.images.samples import SampleIds, Samples


def left_out(plan: Plan, failures: Iterable[tuple[bytes, str]]) -> list[Skipped]:
    """The images of the plan whose bytes have one of these SHA-256 digests, each with the reason beside it."""
    reasons = dict(failures)
    if not reasons:
        return []
    failed = leading_numbers(np.frombuffer(b"".join(reasons), np.uint8).reshape(-1, 32))
    return [
        Skipped(id=sample.id, split=split, reason=reasons[digest], digest=digest.hex())
        for split, digests in plan.digests.items()
        for row in np.flatnonzero(np.isin(leading_numbers(digests), failed)).tolist()
        if (digest := digests[row].tobytes()) in reasons
        for sample in [plan.samples[split][row]]
    ]


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
        tables[split] = SplitTable(ids=SampleIds(samples), labels=samples.labels, digests=row_digests(digests, views))
    return tables


def _rows_of(samples: Samples, digests: npt.NDArray[np.uint8], named: Mapping[str, str | None]) -> list[int]:
    """Of the images that have these names, those that have the digest (hex) beside it, too."""
    if not named:
        return []
    called = np.fromiter((one in named for one in samples.ids()), np.bool_, len(samples))
    return [row for row in np.flatnonzero(called).tolist() if named[samples[row].id] == digests[row].tobytes().hex()]
