"""What an audit found, as records: they know how to become JSON and nothing of how they were found.

An audit has sections, one a kind of finding, the gravest kind first; a section has findings, the worst first; a
finding names the images it is about, if it is about some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from featcache.images.samples import UNLABELLED, Sample

KINDS: Final = {
    "leak": "Leaks: the same picture in several splits",
    "split": "Splits that do not fit each other or their names",
    "label_error": "Labels that are likely wrong",
    "duplicate": "Duplicates within a split",
    "unlabelled": "Images without a label",
    "balance": "Class balance",
    "outlier": "Outliers: far from everything else",
}
"""Kinds of findings and what a section of them is called, the gravest first."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Two images of a finding, `first` and `second` of its samples, show the same picture.

    `how`: "exact" (the same bytes), "copy" (their pixels agree), "mirrored" (they agree when one is turned left to
    right) or "features" (their features agree, and pixels were not compared). `cosine`: of their centred features,
    1.0 for the same bytes. `pixels`: the correlation of their pixels, -1 to 1; None where they were not compared.
    """

    first: int
    second: int
    how: str
    cosine: float
    pixels: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return {
            "first": self.first,
            "second": self.second,
            "how": self.how,
            "cosine": round(self.cosine, 4),
            "pixels": None if self.pixels is None else round(self.pixels, 4),
        }


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that a person should look at.

    `kind`: a key of KINDS. `samples`: the images it is about, as the cache names them; none where it is about a
    split or a class. `score`: how strong the evidence is, 0 to 1, comparable within a kind. `reason`: one sentence.
    `suggested`: the label that the features speak for (label_error), an index into the classes. `links`: which of
    the samples are the same picture (leak, duplicate).
    """

    kind: str
    samples: tuple[Sample, ...] = ()
    score: float
    reason: str
    suggested: int | None = None
    links: tuple[Link, ...] = ()

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Its fields; labels by name, None for an image without one."""
        return {
            "kind": self.kind,
            "samples": [
                {"id": one.id, "split": one.split, "label": class_name(one.label, classes)} for one in self.samples
            ],
            "score": round(self.score, 4),
            "reason": self.reason,
            "suggested": None if self.suggested is None else class_name(self.suggested, classes),
            "links": [link.to_json() for link in self.links],
        }


@dataclass(frozen=True, kw_only=True)
class Section:
    """All findings of one kind, the worst first. `note`: how they were looked for; why not, where they were not."""

    kind: str
    findings: tuple[Finding, ...]
    note: str

    @property
    def title(self) -> str:
        """What a person reads above it."""
        return KINDS[self.kind]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit of one layer of one cache found. `counts`: images by split and class, "" for unlabelled."""

    cache: str
    layer: str
    classes: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    sections: tuple[Section, ...]
    seconds: float

    def section(self, kind: str) -> Section:
        """The section of a kind. Raises KeyError."""
        return {one.kind: one for one in self.sections}[kind]

    def to_json(self) -> dict[str, Any]:
        """Everything, with labels by name."""
        return {
            "cache": self.cache,
            "layer": self.layer,
            "classes": list(self.classes),
            "rows": {split: sum(of_class.values()) for split, of_class in self.counts.items()},
            "counts": {split: dict(of_class) for split, of_class in self.counts.items()},
            "sections": [
                {
                    "kind": section.kind,
                    "title": section.title,
                    "note": section.note,
                    "count": len(section.findings),
                    "findings": [finding.to_json(self.classes) for finding in section.findings],
                }
                for section in self.sections
            ],
            "seconds": round(self.seconds, 2),
        }


def class_name(label: int, classes: Sequence[str]) -> str | None:
    """A label's class, None for unlabelled."""
    return None if label == UNLABELLED else classes[label]
