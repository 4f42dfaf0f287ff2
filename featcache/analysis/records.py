"""The results of an audit as records, and as JSON and CSV.

An audit has one section per kind of finding, the most serious kind first. A section has findings, the worst first, and
the reason why some or all of its checks were withheld, if they were. A finding lists the images that it is about, if
any.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from featcache.display import Shown, Summary, Table
from featcache.errors import InvalidOption
from featcache.files import publish_bytes
from featcache.images.samples import UNLABELLED, Sample

KINDS: Final = {
    "leak": "Leaks: the same image in several splits",
    "group_leak": "Groups with images in several splits",
    "label_question": "The same or a similar image with different labels",
    "split": "Splits that do not match each other or their names",
    "label_error": "Labels that are likely wrong",
    "duplicate": "The same image several times in a split",
    "look_alike": "Images that look alike: likely copies",
    "unlabelled": "Images without a label",
    "constant_target": "Targets with a single value",
    "far_number": "Numbers far from all others",
    "balance": "Class balance",
    "outlier": "Outliers: far from everything else",
}
"""Kinds of findings and the titles of their sections, the most serious first."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Two images of a finding that are the same, or look alike.

    `first` and `second`: their indices in the finding's samples. `how`: certain are "bytes" (the same bytes), "pixels"
    (other bytes, equal pixels) and "mirrored_pixels" (equal if one is mirrored); likely are "outlines" (they agree),
    "mirrored_outlines" (they agree if one is mirrored) and "features" (their features are equal, and the pixels were
    not compared). `score`: the strength of the evidence, 1.0 for what is certain. `cosine`: of their centred features;
    None if it was not needed. `outlines`: the correlation of their outlines, -1 to 1; None if they were not compared.
    """

    first: int
    second: int
    how: str
    score: float
    cosine: float | None = None
    outlines: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, numbers rounded to 4 digits."""
        return {
            "first": self.first,
            "second": self.second,
            "how": self.how,
            "score": round(self.score, 4),
            "cosine": None if self.cosine is None else round(self.cosine, 4),
            "outlines": None if self.outlines is None else round(self.outlines, 4),
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class Finding(Shown):
    """One possible problem of a cache, to be checked by a person.

    `kind`: a key of KINDS. `samples`: the images it is about, as the cache names them; empty if it is about a split or
    a class. `score`: the strength of the evidence, 0 to 1, comparable within a kind. `reason`: a short explanation.
    `suggested`: for a label_error, the label that the features support, an index into the classes. `links`: which
    samples are the same or look alike; each link joins the first sample to one of the others.
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


@dataclass(frozen=True, kw_only=True, repr=False)
class Section(Shown):
    """All findings of one kind, the worst first.

    `note`: how they were searched. `withheld`: what was not searched, or what was found and is not listed, because the
    check cannot tell; None if nothing was withheld.
    """

    kind: str
    findings: tuple[Finding, ...] = ()
    note: str
    withheld: str | None = None

    @property
    def title(self) -> str:
        """The heading of the section."""
        return KINDS[self.kind]


@dataclass(frozen=True, kw_only=True, repr=False)
class Audit(Shown):
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

    @property
    def withheld(self) -> dict[str, str]:
        """The kinds of findings of which some or all were withheld, each with the reason."""
        return {one.kind: one.withheld for one in self.sections if one.withheld is not None}

    def summary(self) -> Summary:
        """What a prompt and a notebook show: the number of findings of each kind, the worst, and what was withheld."""
        found = [section for section in self.sections if section.findings]
        return Summary(
            title=self.cache,
            about=f"layer {self.layer}",
            facts=[
                *([(section.kind, len(section.findings)) for section in found] or [("findings", 0)]),
                *([("withheld", list(self.withheld))] if self.withheld else []),
            ],
            tables=[
                Table(
                    header=("findings", "count", "the worst", "withheld"),
                    rows=[
                        (
                            one.title,
                            len(one.findings),
                            one.findings[0].reason if one.findings else "",
                            one.withheld or "",
                        )
                        for one in self.sections
                    ],
                )
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """The whole audit as JSON values, with labels as class names."""
        return {
            "cache": self.cache,
            "layer": self.layer,
            "classes": list(self.classes),
            "rows": {split: sum(of_class.values()) for split, of_class in self.counts.items()},
            "counts": {split: dict(of_class) for split, of_class in self.counts.items()},
            "withheld": [{"kind": kind, "reason": reason} for kind, reason in self.withheld.items()],
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


# --- files -----------------------------------------------------------------------------------------------

SUFFIXES: Final = (".json", ".csv")
HEADER: Final = ("kind", "finding", "score", "id", "split", "label", "suggested", "reason")


def check_name(path: Path) -> None:
    """Raises InvalidOption unless the name ends in .json or .csv."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidOption(f"expected a .json or .csv file, got {path.name!r}")


def write_audit(path: Path, audit: Audit) -> None:
    """Write all findings atomically. Raises InvalidOption, CacheUnwritable."""
    check_name(path)
    text = as_csv(audit) if path.suffix.lower() == ".csv" else json.dumps(audit.to_json(), indent=1, allow_nan=False)
    publish_bytes(path, text.encode("utf-8", "surrogateescape"))


def as_csv(audit: Audit) -> str:
    """CSV text: HEADER, then one line per image of each finding; a finding without images has one line.

    What was withheld has a line before the findings of its kind, with "withheld" in the column `finding`.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(HEADER)
    for section in audit.sections:
        if section.withheld is not None:
            writer.writerow((section.kind, "withheld", "", "", "", "", "", section.withheld))
        for number, finding in enumerate(section.findings, start=1):
            suggested = "" if finding.suggested is None else class_name(finding.suggested, audit.classes)
            named = [(one.id, one.split, class_name(one.label, audit.classes) or "") for one in finding.samples]
            for image in named or [("", "", "")]:
                writer.writerow((section.kind, number, f"{finding.score:.4f}", *image, suggested, finding.reason))
    return lines.getvalue()
