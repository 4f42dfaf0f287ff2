"""What records show of themselves: one short line, and small tables with every text escaped."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featcache
from featcache.analysis.records import Audit, Finding, Section
from featcache.display import Shown, Summary, Table, as_html, short_text
from featcache.heads.records import Predictions
from featcache.images.samples import Sample
from featcache.inference.records import Guess, ImagePrediction, Predicted
from featcache.rows.target import class_target

# Results of commands whose records stay inside the command line, and records that are written into files and compared:
# their repr is whole.
WHOLE = {
    "BenchmarkOptions",
    "Augmentation",
    "BackboneSpec",
    "Choice",
    "Column",
    "Drift",
    "Estimate",
    "HeadConfig",
    "Link",
    "Listed",
    "ProbeOutputs",
    "Recipe",
    "Scenario",
    "Score",
    "Selection",
    "Spec",
    "Summary",
    "SweepPlan",
    "Transform",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Tea(Shown):
    name: str = "green"
    cups: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    heat: float = 80.0
    pot: Any = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Named(Shown):
    name: str

    def summary(self) -> Summary:
        return Summary(
            title=self.name, about="<i>", facts=[("<b>", "<u>")], notes=["<s>"], tables=[Table(rows=[("<p>",)])]
        )


def test_fields_are_shown_but_empty_ones() -> None:
    assert repr(Tea(cups=(1, 2))) == "<Tea: name green, cups 1, 2, heat 80>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_234_567, "1,234,567"),
        (0.123456, "0.1235"),
        (float("nan"), "nan"),
        (True, "True"),
        (Path("a") / "b", "a/b"),
        ("two\nlines\x1b[31m", "two lines\\x1b[31m"),
        ("long " * 100, f"{('long ' * 100)[:98]}.."),
        (tuple(range(2000)), "2,000 items, the first 0"),
        ({"train": 1200, "test": 3}, "train 1,200, test 3"),
        ([["a"] * 7, {"b": 1}], "[7], [1]"),
        (np.zeros((2, 3), np.float32), "float32 (2, 3)"),
        (Table(rows=()), "Table"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_a_short_text(value: object, text: str) -> None:
    assert short_text(value) == text


def test_a_long_table_shows_its_first_rows_and_how_many_follow() -> None:
    html = as_html(Summary(tables=[Table(header=("n",), rows=[(number,) for number in range(100)])]))
    assert html.count("<tr>") == 11
    assert "and 90 more" in html


def test_every_text_is_escaped() -> None:
    html = Named(name="<h1>")._repr_html_()
    assert not [tag for tag in ("<h1>", "<i>", "<b>", "<u>", "<s>", "<p></p>", '"row"><p>') if tag in html]
    assert "&lt;h1&gt;" in html


def finding(number: int) -> Finding:
    samples = tuple(Sample(id=f"{name}/{number}", split="train", label=0) for name in "abc")
    return Finding(kind="leak", samples=samples, score=1.0, reason="the same bytes")


def audit() -> Audit:
    sections = [Section(kind=kind, findings=tuple(map(finding, range(2000))), note="") for kind in ("leak", "outlier")]
    return Audit(
        cache="digits", layer="flat", classes=("a",), counts={"train": {"a": 2}}, sections=tuple(sections), seconds=1.0
    )


def predictions_of_images() -> Predicted:
    images = tuple(ImagePrediction(path=f"{n}.png", top=(Guess(label="a", probability=0.5),)) for n in range(2000))
    return Predicted(run="runs/one", target=class_target("ab"), images=images, outputs=np.zeros((2000, 2), np.float32))


def predictions() -> Predictions:
    return Predictions(ids=("image",) * 10_000, targets=np.zeros(10_000), outputs=np.zeros((10_000, 2), np.float32))


@pytest.mark.parametrize(
    "record",
    [
        audit(),
        audit().sections[0],
        finding(1),
        predictions_of_images(),
        predictions_of_images().images[0],
        predictions(),
        class_target("ab" * 500),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_large_result_is_one_line_and_little_html(record: Any) -> None:
    assert len(repr(record)) <= 302 and "\n" not in repr(record)
    assert len(record._repr_html_()) < 4_000


def test_an_audit_shows_how_many_findings_there_are_of_each_kind() -> None:
    assert repr(audit()) == "<Audit digits layer flat: leak 2,000, outlier 2,000>"
    assert "the same bytes" in audit()._repr_html_()


def records() -> Iterator[ast.ClassDef]:
    """All dataclasses of featcache."""
    for path in Path(featcache.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any("dataclass(" in ast.unparse(one) for one in node.decorator_list):
                yield node


def test_every_result_has_a_short_repr() -> None:
    wrong = set()
    for record in records():
        is_result = any(isinstance(one, ast.FunctionDef) and one.name == "to_json" for one in record.body)
        shown = "Shown" in map(ast.unparse, record.bases)
        # A dataclass without repr=False has a long repr of its own.
        short = shown and any("repr=False" in ast.unparse(one) for one in record.decorator_list)
        if (shown or (is_result and record.name not in WHOLE)) and not short:
            wrong.add(record.name)
    assert wrong == set()
