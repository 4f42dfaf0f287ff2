"""Groups in several splits, targets with one value and far numbers are found, in caches of any targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_caches import clouds, write_cache

from featcache.analysis.audit import audit_cache
from featcache.analysis.directions import directions
from featcache.analysis.label_errors import label_errors
from featcache.analysis.split_checks import missing_labels_section
from featcache.analysis.table import ImageTable
from featcache.analysis.target_checks import target_sections
from featcache.cache.targets import Target, encode


def table_with(tmp_path: Path, *targets: Target) -> ImageTable:
    """40 images of train and 20 of test with these targets, each of 60 values."""
    cache = write_cache(tmp_path, {"train": clouds(40), "test": clouds(20, seed=1)})
    return replace(ImageTable.of(cache), targets={target.name: target for target in targets})


def reasons(table: ImageTable, kind: str) -> list[str]:
    (section,) = [section for section in target_sections(table) if section.kind == kind]
    return [finding.reason for finding in section.findings]


def test_a_group_in_two_splits_is_a_leak_and_images_without_a_group_are_not(tmp_path: Path) -> None:
    cells = [f"p{n // 10}" for n in range(60)]
    cells[45] = "p0"
    cells[5] = cells[50] = "nan"
    table = table_with(tmp_path, encode("patient", cells))
    assert reasons(table, "group_leak") == ["patient p0: 10 images, 9 in train and 1 in test"]
    assert "2 images without one" in target_sections(table)[0].note


@pytest.mark.parametrize("cells", [["cow"] * 60, ["3"] * 60, ["a;b"] * 60, ["cow", ""] * 30])
def test_a_target_with_one_value_is_found(cells: list[str], tmp_path: Path) -> None:
    (reason,) = reasons(table_with(tmp_path, encode("what", cells)), "constant_target")
    assert reason.startswith("what is ")
    assert (
        reasons(table_with(tmp_path / "b", encode("what", [*cells[:-2], "9;x", "9;x"], kind="text")), "far_number")
        == []
    )


def test_far_numbers_are_found_and_missing_ones_are_not(tmp_path: Path) -> None:
    cells: list[object] = [str(n % 7) for n in range(60)]
    cells[3], cells[4], cells[5] = "900", None, "-50"
    table = table_with(tmp_path, encode("age", cells))
    assert [text.split(";")[0] for text in reasons(table, "far_number")] == ["age is 900", "age is -50"]
    few = encode("age", [*cells[:8], *[None] * 52])
    (section,) = [one for one in target_sections(table_with(tmp_path / "b", few)) if one.kind == "far_number"]
    assert section.withheld == "age: too few, 7 numbers; it takes 20"


def test_copies_with_long_numbers_that_differ_in_their_last_digit_contradict_each_other(tmp_path: Path) -> None:
    table = table_with(tmp_path, encode("day", ["20240101", "20240102"] * 30), encode("age", ["0.1", "0.1"] * 30))
    assert table.different_values(np.array([0, 1])) == {"day": ("20240101", "20240102")}


def test_images_without_labels_are_found_only_where_heads_have_nothing_else_to_learn(tmp_path: Path) -> None:
    missing = encode("label", [None] * 60, kind="classes")
    ages = encode("age", [None if n in (3, 4, 50) else str(n) for n in range(60)])
    days = encode("day", [None if n in (3, 50) else str(n) for n in range(60)])

    def messages_of(*targets: Target) -> list[str]:
        folder = tmp_path / str(len(targets))
        return [one.reason for one in missing_labels_section(table_with(folder, *targets)).findings]

    assert messages_of(missing) == ["40 of 40 images of train have no label", "20 of 20 images of test have no label"]
    assert messages_of(missing, ages, days) == [
        "1 of 40 images of train have no value of age or day",
        "1 of 20 images of test have no value of age or day",
    ]


def test_labels_are_not_doubted_where_the_features_know_nothing(tmp_path: Path) -> None:
    features, labels = clouds(300, distance=0.0)
    table = ImageTable.of(write_cache(tmp_path, {"train": (features, labels)}))
    section = label_errors(table, directions(table), groups=np.arange(300))
    assert section.findings == ()
    assert "cannot tell which are wrong" in (section.withheld or "")


def test_a_cache_of_one_class_is_audited(tmp_path: Path) -> None:
    features, _ = clouds(80)
    audit = audit_cache(write_cache(tmp_path, {"train": (features, np.zeros(80, np.int64))}, classes=("ant",)))
    assert (
        audit.withheld["label_error"] == "too few: 80 labelled images of 1 class; it takes 50 images, and two classes"
    )
    assert [one.reason for one in audit.section("constant_target").findings] == [
        "label is ant for all 80 images that have a value: nothing can be learned"
    ]
