"""An audit as the page shows it: the first findings of each kind, with pictures of their images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.cache.reader import FeatureCache
from featcache.errors import FeatcacheError
from featcache.images import Sample, open_images
from featcache.progress import StageProgress
from featcache.report.thumbnails import Pixels, Thumbnails, pack_sheets, pictures_at

if TYPE_CHECKING:
    from featcache.analysis import Audit, Finding

MOST_FINDINGS = 20
MOST_SAMPLES = 6
PICTURE_BYTES = 400_000
"""The space for pictures: enough for some hundred."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditView:
    """An audit with pictures. `samples`: the images that are shown, in the order of their `thumbnails`."""

    audit: Audit
    samples: tuple[Sample, ...]
    thumbnails: Thumbnails

    def content(self) -> dict[str, Any]:
        """The values for the page template; a sample's `image` is its index in `samples`."""
        audit = self.audit
        rows = {split: sum(of_class.values()) for split, of_class in audit.counts.items()}
        number = {sample: place for place, sample in enumerate(self.samples)}
        return {
            "summary": f"{', '.join(f'{count:,} {split}' for split, count in rows.items())} images of {audit.cache}, "
            f"layer {audit.layer}.",
            "sections": [
                {
                    "title": section.title,
                    "note": section.note + (f"; withheld: {section.withheld}" if section.withheld else ""),
                    "count": len(section.findings),
                    "more": max(0, len(section.findings) - MOST_FINDINGS),
                    "findings": [self._finding(one, number) for one in section.findings[:MOST_FINDINGS]],
                }
                for section in audit.sections
            ],
        }

    def _finding(self, finding: Finding, number: dict[Sample, int]) -> dict[str, Any]:
        values = finding.to_json(self.audit.classes)
        shown = zip(finding.samples[:MOST_SAMPLES], values["samples"], strict=False)
        return {
            "reason": finding.reason,
            "score": finding.score,
            "suggested": values["suggested"],
            "samples": [sample_values | {"image": number[sample]} for sample, sample_values in shown],
            "more": max(0, len(finding.samples) - MOST_SAMPLES),
        }


def audit_view_of(path: Path, data_dir: Path, given: Audit | None, progress: StageProgress | None) -> AuditView:
    """The audit of a cache (`given`, or computed now) with pictures of its images. Nothing is downloaded."""
    with FeatureCache.open(path) as cache:
        audit = _run_audit(cache, data_dir / "datasets", progress) if given is None else given
        samples = tuple(dict.fromkeys(_samples_to_show(audit)))
        return AuditView(audit=audit, samples=samples, thumbnails=_pictures(cache, samples, data_dir / "datasets"))


def _run_audit(cache: FeatureCache, datasets_dir: Path, progress: StageProgress | None) -> Audit:
    from featcache.analysis.audit import audit_cache

    with ExitStack() as stack:
        try:
            source = open_images(cache.selection.source, datasets_dir=datasets_dir, download=False)
            stack.callback(source.close)
        except FeatcacheError:
            # The note of the section states that pixels were not compared.
            source = None
        return audit_cache(cache, source=source, progress=progress)


def _samples_to_show(audit: Audit) -> Iterator[Sample]:
    for section in audit.sections:
        for finding in section.findings[:MOST_FINDINGS]:
            yield from finding.samples[:MOST_SAMPLES]


def _pictures(cache: FeatureCache, samples: tuple[Sample, ...], datasets_dir: Path) -> Thumbnails:
    pictures: list[Pixels | None] = [None] * len(samples)
    for split in cache.splits:
        wanted = [number for number, sample in enumerate(samples) if sample.split == split]
        place = {name: row for row, name in reversed(list(enumerate(cache[split].ids)))}
        ids = [samples[number].id for number in wanted]
        rows = np.array([place.get(name, -1) for name in ids], np.int64)
        images, _ = pictures_at(cache, split, ids, rows, datasets_dir)
        for number, image in zip(wanted, images, strict=True):
            pictures[number] = image
    return pack_sheets(pictures, PICTURE_BYTES)
