"""Targets are read as they were written, from one file and from segments; invalid values are refused."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_samples import (
    a_spec,
    a_table,
    an_info,
    digests_of,
    flip,
    make_cache,
    make_segments,
    no_tmp_under,
    tables,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.cache.carrying import Targets, carry_over, rewrite, tables_of
from featcache.cache.catalog import FOREIGN, describe
from featcache.cache.manifest import TARGETS_FILES, Manifest
from featcache.cache.reader import FeatureCache
from featcache.cache.segments import with_targets
from featcache.cache.tables import SplitTable
from featcache.cache.targets import (
    IMAGES,
    MOST_COLUMNS,
    Column,
    Target,
    columns_of,
    columns_to_json,
    encode,
    label_column,
    rows_by_id,
)
from featcache.cache.verification import verify
from featcache.columns import FEW_CLASSES, KINDS, infer_kind
from featcache.errors import CacheDamaged, CacheForeign, CacheUnwritable, InvalidOption, UnknownName
from featcache.files import system

# As cells of a table are: without spaces around them, and nothing that means "no value".
words = st.text(st.characters(codec="utf-8", exclude_characters=";\0"), max_size=8).map(str.strip)
texts = words.filter(lambda text: text.lower() not in ("", "nan"))
columns_names = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="/"), min_size=1, max_size=30)
numbers = st.floats(allow_nan=False, allow_infinity=False)
CELLS: dict[str, st.SearchStrategy[Any]] = {
    "classes": texts,
    "groups": texts,
    "text": texts,
    "numbers": numbers,
    "lists": st.lists(texts, min_size=1, max_size=3, unique=True).map(lambda some: tuple(sorted(some))),
}


@st.composite
def a_target(draw: st.DrawFn, rows: int, kind: str | None = None) -> tuple[Target, list[Any]]:
    """A target, and the values that it was encoded from."""
    chosen = kind or draw(st.sampled_from(KINDS))
    values = draw(st.lists(st.none() | CELLS[chosen], min_size=rows, max_size=rows))
    cells = [";".join(one) if isinstance(one, tuple) else one for one in values]
    name = draw(columns_names.filter(lambda name: name.isprintable() and name not in (".", "..")))
    return encode(name, cells, kind=chosen, origin="t.csv"), values


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 12))
def test_what_was_encoded_is_decoded(data: st.DataObject, rows: int) -> None:
    target, values = data.draw(a_target(rows))
    assert target.decode() == values
    assert target.has_value.tolist() == [value is not None for value in values]
    assert target.unlabelled == values.count(None)
    order = np.array(data.draw(st.lists(st.integers(-1, rows - 1), max_size=8)), np.int64)
    assert target.at(order).decode() == [values[row] if row >= 0 else None for row in order.tolist()]


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(1, 20))
def test_any_targets_are_read_from_one_file_and_from_segments(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, segment_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("targets")
    made = {"train": a_table("train", 9), "test": a_table("test", 3)}
    some = data.draw(st.lists(a_target(12), max_size=4, unique_by=lambda one: one[0].name))
    columns = tuple(target.column for target, _ in some)
    for split, rows in (("train", slice(9)), ("test", slice(9, 12))):
        made[split] = replace(made[split], targets={target.name: target.values[rows] for target, _ in some})
    one = make_cache(folder / "one.h5", split_tables=made, columns=columns)
    several = make_segments(folder / "several", split_tables=made, columns=columns, segment_rows=segment_rows)
    for path in (one, several):
        assert verify(path, full=True).sound
        with FeatureCache.open(path) as cache:
            assert list(cache.targets.values()) == list(columns)
            for target, values in some:
                assert cache["train"].target(target.name).decode() == values[:9]
                assert cache["test"].target(target.name).decode() == values[9:]


# --- kinds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "-2.5e3", ".5", "", None, "NaN"], "numbers"),
        ([1, 2.5, math.nan], "numbers"),
        (["1", "2", "x"], "classes"),
        (["1e999", "2"], "classes"),
        (["inf", "2"], "classes"),
        (["a", "b;c"], "lists"),
        (["1;2", "3"], "lists"),
        ([str(row) + "x" for row in range(FEW_CLASSES)], "classes"),
        ([str(row) + "x" for row in range(FEW_CLASSES + 1)], "text"),
        ([f"{row % 50}x" for row in range(100)], "classes"),
        ([f"{row % 51}x" for row in range(100)], "text"),
        (["", None, "nan"], "classes"),
    ],
)
def test_a_kind_is_inferred_from_the_cells(cells: list[object], kind: str) -> None:
    assert infer_kind("x", cells) == kind
    assert encode("x", cells).kind == kind


def test_none_of_the_classes_is_a_value() -> None:
    target = encode("x", ["a;b", ";", None])
    assert target.values.tolist() == [[1, 1], [0, 0], [-1, -1]]
    assert target.decode() == [("a", "b"), (), None]


def test_a_list_without_any_class_in_the_whole_column_is_refused() -> None:
    with pytest.raises(InvalidOption, match="at least one class"):
        encode("x", [";", None])


def test_names_are_sorted_whatever_the_rows_order() -> None:
    assert encode("x", ["b", "a", "b"]).names == ("a", "b")


WRONG_VALUES: list[tuple[Column, Any]] = [
    (Column(name="x", kind="classes", names=("a",)), np.array([0, 1])),
    (Column(name="x", kind="classes", names=("a",)), np.array([-2])),
    (Column(name="x", kind="classes", names=("a",)), np.array([0.0])),
    (Column(name="x", kind="classes", names=("a",)), np.zeros((2, 1), np.int64)),
    (Column(name="x", kind="groups"), np.array([0])),
    (Column(name="x", kind="lists", names=("a", "b")), np.array([[0, 2]])),
    (Column(name="x", kind="lists", names=("a", "b")), np.array([[-1, 0]])),
    (Column(name="x", kind="lists", names=("a", "b")), np.array([0, 1])),
    (Column(name="x", kind="numbers"), np.array(["1"])),
    (Column(name="x", kind="numbers"), np.float64(1)),
    (Column(name="x", kind="text"), np.array(["a"])),
]


@pytest.mark.parametrize(("column", "values"), WRONG_VALUES)
def test_values_that_a_column_cannot_hold_are_refused(column: Column, values: Any) -> None:
    with pytest.raises(InvalidOption, match="target x: expected"):
        Target(column=column, values=values)


@pytest.mark.parametrize(
    "described",
    [
        {"name": "../x", "kind": "numbers"},
        {"name": "a/b", "kind": "numbers"},
        {"name": "..", "kind": "numbers"},
        {"name": "", "kind": "numbers"},
        {"name": "x\n", "kind": "numbers"},
        {"name": 3, "kind": "numbers"},
        {"name": "x", "kind": "colours"},
        {"name": "x", "kind": "numbers", "names": ("a",)},
        {"name": "x", "kind": "classes", "names": (1,)},
    ],
)
def test_an_invalid_column_is_refused(described: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        Column(**described)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[1]",
        '[{"name": "x"}]',
        '[{"name": "x", "kind": "numbers", "more": 1}]',
        '[{"name": "x", "kind": "colours"}]',
        '[{"name": "../x", "kind": "numbers"}]',
        '[{"name": "x", "kind": "numbers"}, {"name": "x", "kind": "text"}]',
        "[" * 100_000,
        columns_to_json([Column(name=f"c{number}", kind="numbers") for number in range(MOST_COLUMNS + 1)]),
    ],
)
def test_an_invalid_description_is_refused(text: str) -> None:
    with pytest.raises(CacheForeign):
        columns_of({"targets": text})


# --- in segments -------------------------------------------------------------------------------------------------


def with_ages(table: SplitTable) -> SplitTable:
    """The table with its row numbers as ages."""
    return replace(table, targets={**table.targets, "age": np.arange(len(table), dtype=np.float64)})


AGE = Column(name="age", kind="numbers", origin="ages.csv")
COLUMNS = (*an_info().columns, AGE)


def test_targets_are_joined_by_id_whatever_their_order(tmp_path: Path) -> None:
    folder = make_segments(tmp_path / "c")
    manifest, train = Manifest.read(folder), with_ages(tables()["train"])
    mixed = np.random.default_rng(0).permutation(40)[:30]
    changed = with_targets(folder, manifest, an_info(columns=COLUMNS), {"train": train.take(mixed)})
    # The earlier file stays: a reader may have it open.
    assert {one.targets.file for one in (manifest, changed) if one.targets} == set(TARGETS_FILES)
    changed.write(folder)
    with FeatureCache.open(folder) as cache:
        found = cache["train"].target("age").decode()
        assert found == [float(row) if row in mixed else None for row in range(40)]
        # The targets file does not have this split.
        assert cache["test"].target("age").decode() == [None] * 12
        assert cache["test"].labels.tolist() == [-1] * 12
    assert verify(folder, full=True).sound


@given(st.lists(st.text("ab", min_size=1, max_size=3)), st.lists(st.text("ab", min_size=1, max_size=4)))
def test_an_id_is_found_at_its_first_row_and_equal_ids_row_by_row(have: list[str], want: list[str]) -> None:
    found = rows_by_id(np.array([one.encode() for one in have], "|S3"), np.array([one.encode() for one in want], "|S4"))
    first = [have.index(one) if one in have else -1 for one in want]
    assert found.tolist() == (list(range(len(want))) if have == want else first)


def _missing(path: Path) -> None:
    path.unlink()


def _short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _header(path: Path) -> None:
    flip(path, 100)


def _another(path: Path) -> None:
    other = make_segments(path.parent.parent / "other", classes=("cat", "dog", "eel"))
    path.write_bytes((other / path.name).read_bytes())


def _a_segment(path: Path) -> None:
    path.write_bytes((path.parent / "train-000000000.h5").read_bytes())


@pytest.mark.parametrize("fault", [_missing, _short, _header, _another, _a_segment])
def test_a_replaced_targets_file_is_named(tmp_path: Path, fault: Callable[[Path], None]) -> None:
    folder = make_segments(tmp_path / "c")
    fault(folder / TARGETS_FILES[0])
    with pytest.raises(CacheDamaged, match=TARGETS_FILES[0]):
        FeatureCache.open(folder)
    assert not verify(folder).sound


def test_damaged_values_are_found_when_they_are_read_and_not_before(tmp_path: Path) -> None:
    folder = make_segments(tmp_path / "c")
    with FeatureCache.open(folder) as cache:
        place = cache.file.targets.place("train/targets/label")  # type: ignore[attr-defined]
    flip(folder / TARGETS_FILES[0], place.offset + 3)
    with FeatureCache.open(folder) as cache:
        assert cache["train"].features[:].shape == (40, 16)
        with pytest.raises(CacheDamaged, match="train/targets/label"):
            _ = cache["train"].labels
        assert len(cache["test"].labels) == 12
    (finding,) = verify(folder).findings
    assert finding.where == "train/targets/label"


def test_the_targets_file_alone_is_not_a_cache(tmp_path: Path) -> None:
    path = make_segments(tmp_path / "c") / TARGETS_FILES[0]
    assert describe(path).state == FOREIGN
    with pytest.raises(CacheForeign, match="featcache-targets"):
        FeatureCache.open(path)


def test_a_cache_with_targets_survives_pickling(tmp_path: Path) -> None:
    cache = FeatureCache.open(make_segments(tmp_path / "c"))
    again = pickle.loads(pickle.dumps(cache))
    assert again["train"].labels.tolist() == cache["train"].labels.tolist()
    assert again.targets == cache.targets


# --- rewriting ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=[make_cache, make_segments])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made: Path = request.param(tmp_path / "caches" / "c.h5" if request.param is make_cache else tmp_path / "caches/c")
    return made


def add_ages(path: Path) -> None:
    with FeatureCache.open(path) as cache:
        made = {split: with_ages(table) for split, table in tables_of(cache, tuple(cache.targets)).items()}
        rewrite(cache, COLUMNS, made)


def test_replacing_targets_changes_no_row(path: Path) -> None:
    with FeatureCache.open(path) as before:
        rows = before["train"].features[:]
        add_ages(path)
        # Files that are open are not affected.
        assert before["test"].labels.tolist() == [row % 3 for row in range(12)]
        assert list(before.targets) == ["label"]
    add_ages(path)
    with FeatureCache.open(path) as after:
        np.testing.assert_array_equal(after["train"].features[:], rows)
        assert after["train"].target("age").decode() == [float(row) for row in range(40)]
        assert after["train"].labels.tolist() == [row % 3 for row in range(40)]
    assert verify(path, full=True).sound
    assert no_tmp_under(path.parent)
    assert len(list(path.parent.rglob("targets-*.h5"))) == (0 if path.is_file() else 1)


def test_a_full_disk_leaves_the_targets_as_they_were(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(system, "fallocate", full)
        with pytest.raises(CacheUnwritable):
            add_ages(path)
    with FeatureCache.open(path) as cache:
        assert list(cache.targets) == ["label"]
    assert verify(path, full=True).sound
    assert no_tmp_under(path.parent)


def test_rewriting_a_packed_file_needs_space_for_a_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_cache(tmp_path / "c.h5")
    monkeypatch.setattr("featcache.cache.carrying.free_bytes", lambda folder: 10)
    with pytest.raises(CacheUnwritable, match="10 are free"):
        add_ages(path)


def test_an_unknown_target_is_an_error_with_the_known_ones(path: Path) -> None:
    with FeatureCache.open(path) as cache, pytest.raises(UnknownName) as raised:
        cache["train"].target("age")
    assert "label" in str(raised.value.hint)


def test_a_cache_without_a_label_has_no_classes_and_no_labelled_row(tmp_path: Path) -> None:
    made = {"train": replace(a_table("train", 3), targets={})}
    with FeatureCache.open(make_cache(tmp_path / "c.h5", split_tables=made, columns=())) as cache:
        assert cache.classes == ()
        assert cache["train"].labels.tolist() == [-1] * 3
        assert len(cache["train"]) == 3


# --- kept targets ------------------------------------------------------------------------------------------------


def test_columns_of_tables_are_kept_by_id_and_across_splits(path: Path) -> None:
    add_ages(path)
    with FeatureCache.open(path) as cache:
        before = Targets.of(cache.file)
    train, test = tables()["train"], tables()["test"]
    moved = {
        "train": train.take(slice(10)),
        # Two images have come from train, one is new.
        "test": SplitTable(
            ids=(*train.ids[10:12], "new.jpg"),
            digests=digests_of(["a", "b", "c"]),
            targets={"label": np.array([0, 1, 2])},
        ),
    }
    columns, whole, remarks = carry_over(before, moved, [label_column(("x", "y", "z"))])
    assert [column.name for column in columns] == ["label", "age"]
    assert columns[0] == label_column(("x", "y", "z"))
    np.testing.assert_array_equal(whole["train"].targets["age"], np.arange(10))
    np.testing.assert_array_equal(whole["test"].targets["age"], [10.0, 11.0, np.nan])
    assert whole["test"].targets["label"].tolist() == [0, 1, 2]
    (remark,) = remarks
    assert "1 rows of new images have no value of age (ages.csv)" in remark
    assert len(test) == 12


def test_columns_that_came_with_the_images_are_not_kept(path: Path) -> None:
    with FeatureCache.open(path) as cache:
        assert {column.origin for column in cache.targets.values()} == {IMAGES}
        before = Targets.of(cache.file)
    columns, whole, remarks = carry_over(before, tables(), [label_column(("a", "b", "c"))])
    assert (columns, remarks) == ((label_column(("a", "b", "c")),), [])
    assert whole == tables() or set(whole) == set(tables())


def test_targets_do_not_change_the_spec_or_the_fingerprint(path: Path) -> None:
    with FeatureCache.open(path) as cache:
        before = cache.spec.fingerprint
    add_ages(path)
    with FeatureCache.open(path) as cache:
        assert cache.spec.fingerprint == before == a_spec().fingerprint
