"""Columns of texts: they return the same texts, in the requested order."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.images.cells import Cells, CellsBuilder

# Any code point, also lone surrogates, which JSON can contain.
CELL = st.none() | st.text(st.characters(exclude_categories=()))


def column(*texts: str | None) -> Cells:
    builder = CellsBuilder()
    for text in texts:
        builder.append(text)
    return builder.cells()


@given(st.lists(CELL))
def test_appended_cells_are_returned_in_order(texts: list[str | None]) -> None:
    cells = column(*texts)
    assert list(cells) == texts
    assert [cells[row] for row in range(len(cells))] == texts
    assert list(pickle.loads(pickle.dumps(cells))) == texts


@given(st.lists(CELL, min_size=1), st.data())
def test_rows_are_taken_in_any_order_and_any_number_of_times(texts: list[str | None], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1)))
    taken = column(*texts).take(np.array(rows, np.int64))
    assert list(taken) == [texts[row] for row in rows]
    assert list(taken.take(np.arange(len(rows))[::-1])) == [texts[row] for row in reversed(rows)]


@given(st.dictionaries(st.integers(0, 30), st.text()), st.integers(0, 10))
def test_put_sets_a_row_and_the_others_are_missing(texts: dict[int, str], more: int) -> None:
    builder = CellsBuilder()
    for row, text in texts.items():
        builder.put(row, "first")
        builder.put(row, text)
    rows = max(texts, default=-1) + 1 + more
    assert list(builder.cells(rows)) == [texts.get(row) for row in range(rows)]


def test_an_empty_text_is_not_a_missing_one() -> None:
    assert list(column("", None, "")) == ["", None, ""]


def test_a_column_that_begins_late_has_missing_cells_before() -> None:
    builder = CellsBuilder(missing=2)
    builder.append("a")
    assert list(builder.cells()) == [None, None, "a"]


def test_a_slice_shares_the_buffer_and_a_row_beyond_the_end_is_an_error() -> None:
    cells = column("a", None, "ü")
    assert list(cells[1:]) == [None, "ü"] and cells[-1] == "ü"
    assert cells == ["a", None, "ü"] and cells != ["a", None] and cells != ["a", None, "u"]
    with pytest.raises(IndexError):
        cells[3]


def test_a_million_cells_need_sixteen_bytes_each_and_their_text() -> None:
    builder = CellsBuilder()
    for _ in range(100_000):
        builder.append("abcd")
    assert len(pickle.dumps(builder.cells())) < 100_000 * (16 + 4) + 2_000
