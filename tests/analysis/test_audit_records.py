"""An audit becomes JSON that names images and classes."""

from __future__ import annotations

import json

from featcache.analysis import Audit, Finding, Link, Section
from featcache.analysis.records import KINDS
from featcache.images import Sample

LEAK = Finding(
    kind="leak",
    samples=(Sample(id="test/1", split="test", label=1), Sample(id="train/7", split="train", label=-1)),
    score=0.98765,
    reason="the same picture in test and train",
    links=(Link(first=0, second=1, how="mirrored", cosine=0.98765, pixels=None),),
)
AUDIT = Audit(
    cache="set-vgg16",
    layer="avgpool",
    classes=("ant", "bee"),
    counts={"train": {"ant": 3, "bee": 2}, "test": {"bee": 1, "": 1}},
    sections=(Section(kind="leak", findings=(LEAK,), note="by cosine"),),
    seconds=1.2345,
)


def test_an_audit_becomes_json_with_classes_by_name() -> None:
    values = AUDIT.to_json()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["rows"] == {"train": 5, "test": 2}
    (section,) = values["sections"]
    assert (section["kind"], section["title"], section["count"]) == ("leak", KINDS["leak"], 1)
    (finding,) = section["findings"]
    assert finding["samples"] == [
        {"id": "test/1", "split": "test", "label": "bee"},
        {"id": "train/7", "split": "train", "label": None},
    ]
    assert finding["links"] == [{"first": 0, "second": 1, "how": "mirrored", "cosine": 0.9877, "pixels": None}]
    assert finding["suggested"] is None


def test_a_section_is_found_by_its_kind() -> None:
    assert AUDIT.section("leak").findings == (LEAK,)
