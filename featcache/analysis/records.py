"""The results of an audit as records that convert themselves to JSON.

An audit has one section per kind of finding, the most serious kind first. A section has findings, the worst first. A
finding lists the images that it is about, if any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from featcache.images.samples import UNLABELLED, Sample

KINDS: Final = {
    "leak": "Leaks: the same picture in several splits",
    "split": "Splits that do not match each other or their names",
    "label_error": "Labels that are likely wrong",
    "duplicate": "Duplicates within a split",
    "unlabelled": "Images without a label",
    "balance": "Class balance",
    "outlier": "Outliers: far from everything else",
}
"""Kinds of findings and the titles of their sections, the most serious first."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Two images of a finding that show the same picture.

    `first` and `second`: their indices in the finding's samples. `how`: "exact" (the same bytes), "copy" (their pixels
    agree), "mirrored" (their pixels agree if one is mirrored) or "features" (their features agree, and pixels were not
    compared). `cosine`: of their centred features, 1.0 for the same bytes. `pixels`: the correlation of their outlines,
    -1 to 1; None if they were not compared.
    """

    first: int
    second: int
    how: str
    cosine: float
    pixels: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, numbers rounded to 4 digits."""
        return {
            "first": self.first,
            "second": self.second,
            "how": self.how,
            "cosine": round(self.cosine, 4),
            "pixels": None if self.pixels is None else round(self.pixels, 4),
        }


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One possible problem of a cache, to be checked by a person.

    `kind`: a key of KINDS. `samples`: the images it is about, as the cache names them; empty if it is about a split or
    a class. `score`: the strength of the evidence, 0 to 1, comparable within a kind. `reason`: a short explanation.
    `suggested`: for a label_error, the label that the features support, an index into the classes. `links`: for a leak
    or duplicate, the samples that show the same picture.
    """

    kind: str
    samples: tuple[Sample, ...] = ()
    score: float
    reason: str
    suggested: int | None = None
    links: tuple[Link, ...] = ()

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """The fields as JSON values.

        Args:
            classes: The names of the classes, in the order of the labels.

        Returns:
            A dict with labels as class names, None for an image without a label.
        """
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
    """All findings of one kind, the worst first. `note`: how they were searched, or why they were not."""

    kind: str
    findings: tuple[Finding, ...]
    note: str

    @property
    def title(self) -> str:
        """The heading of the section."""
        return KINDS[self.kind]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of an audit of one layer of one cache.

    `counts`: the number of images by split and class, "" for unlabelled images. `seconds`: the duration of the audit.
    """

    cache: str
    layer: str
    classes: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    sections: tuple[Section, ...]
    seconds: float

    def section(self, kind: str) -> Section:
        """The section of one kind.

        Args:
            kind: A key of `records.KINDS`, such as "leak".

        Raises:
            KeyError: There is no section of this kind.
        """
        return {one.kind: one for one in self.sections}[kind]

    def to_json(self) -> dict[str, Any]:
        """The whole audit as JSON values, with labels as class names."""
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
    """The name of a label's class, None for an unlabelled image."""
    return None if label == UNLABELLED else classes[label]
