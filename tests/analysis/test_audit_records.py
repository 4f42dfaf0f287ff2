"""An audit becomes JSON that names images and classes."""

from __future__ import annotations

import csv
import io
import json

from featcache.analysis import Audit, Finding, Link, Section
from featcache.analysis.records import HEADER, KINDS, as_csv
from featcache.images import Sample

LEAK = Finding(
    kind="leak",
    samples=(Sample(id="test/1", split="test", label=1), Sample(id="train/7", split="train", label=-1)),
    score=0.98765,
    reason="the same picture in test and train",
    links=(Link(first=0, second=1, how="mirrored_pixels", score=1.0),),
)
AUDIT = Audit(
    cache="set-vgg16",
    layer="avgpool",
    classes=("ant", "bee"),
    counts={"train": {"ant": 3, "bee": 2}, "test": {"bee": 1, "": 1}},
    sections=(
        Section(kind="leak", findings=(LEAK,), note="certain"),
        Section(kind="look_alike", note="by outlines", withheld="all images are tiny"),
    ),
    seconds=1.2345,
)


def test_an_audit_becomes_json_with_classes_by_name() -> None:
    values = AUDIT.to_json()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["rows"] == {"train": 5, "test": 2}
    section, _ = values["sections"]
    assert (section["kind"], section["title"], section["count"]) == ("leak", KINDS["leak"], 1)
    (finding,) = section["findings"]
    assert finding["samples"] == [
        {"id": "test/1", "split": "test", "label": "bee"},
        {"id": "train/7", "split": "train", "label": None},
    ]
    assert finding["links"] == [
        {"first": 0, "second": 1, "how": "mirrored_pixels", "score": 1.0, "cosine": None, "outlines": None}
    ]
    assert finding["suggested"] is None


def test_a_section_is_found_by_its_kind() -> None:
    assert AUDIT.section("leak").findings == (LEAK,)


def test_what_was_withheld_is_in_json_and_csv() -> None:
    assert AUDIT.to_json()["withheld"] == [{"kind": "look_alike", "reason": "all images are tiny"}]
    header, *rows = csv.reader(io.StringIO(as_csv(AUDIT)))
    assert tuple(header) == HEADER
    assert rows[-1] == ["look_alike", "withheld", "", "", "", "", "", "all images are tiny"]
    assert len(rows) == 3
