"""Class names are normalised and numbered; two that look alike are refused."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import SourceError
from featcache.images.names import ClassNames, clean, refuse_lookalikes


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("cat", "cat"),
        (" cat\t", "cat"),
        ("cat\u200b", "cat"),
        ("\ufeffcat", "cat"),
        ("cat\u00a0", "cat"),
        ("\u200e \u00adcat \u2060 ", "cat"),
        ("cafe\u0301", "caf\u00e9"),
        ("hot  dog", "hot  dog"),
        ("\u0646\u200c\u0627", "\u0646\u200c\u0627"),
        (" \u200b", ""),
        # The emoji flag of England ends in characters without width, which distinguish it from other flags.
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001f3f4\U000e0067\U000e0062\U000e007f"),
    ],
)
def test_a_name_is_composed_and_stripped(written: str, name: str) -> None:
    assert clean(written) == name


@settings(deadline=None)
@given(st.text(st.sampled_from("aB \u200b\u0301\ufeff\u00e9\t-"), max_size=8))
def test_a_clean_name_stays_as_it_is(text: str) -> None:
    once = clean(text)
    assert clean(once) == once == unicodedata.normalize("NFC", once)
    assert once == once.strip()


def test_names_are_numbered_in_the_order_of_occurrence() -> None:
    names = ClassNames()
    assert [names.number(name) for name in ("dog", "cat", "dog", None, "", " ", "ant")] == [0, 1, 0, -1, -1, -1, 2]
    classes, place = names.in_order()
    assert classes == ("ant", "cat", "dog")
    assert place.tolist() == [2, 1, 0]


def test_numbers_are_sorted_by_value_by_default() -> None:
    names = ClassNames()
    for name in ("10", "9", "2"):
        names.number(name)
    assert names.in_order()[0] == ("2", "9", "10")
    assert names.in_order(by_value=False)[0] == ("10", "2", "9")


def test_a_number_longer_than_python_reads_is_a_name() -> None:
    names = ClassNames()
    for name in ("9" * 5000, "2"):
        names.number(name)
    assert names.in_order()[0][0] == "2"


def test_names_that_cleaning_makes_equal_are_one_class_and_reported() -> None:
    names = ClassNames()
    assert [names.number(name) for name in ("cat", "cat ", "dog", "cat ", "\u200bcat", "dog")] == [0, 0, 1, 0, 0, 1]
    assert names.merged == [("cat", "cat "), ("cat", "\u200bcat")]
    assert names.in_order()[0] == ("cat", "dog")


def test_a_name_that_is_only_cleaned_is_not_reported() -> None:
    names = ClassNames()
    names.number("cat ")
    names.number("  ")
    names.number("\t")
    assert names.merged == []
    assert names.in_order()[0] == ("cat",)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat", "cat"),
        ("hot dog", "hot_dog"),
        ("hot-dog", "hot dog"),
        ("hotdog", "hot dog"),
        ("hot  dog", "hot dog"),
        ("Stra\u00dfe", "STRASSE"),
        ("ca\u200bt", "cat"),
        ("cat ", "cat"),
        ("\uff43\uff41\uff54", "cat"),
        ("caf\u00e9", "cafe\u0301"),
        ("1", "01"),
        ("1.0", "1"),
        ("+7", "7"),
        ("0", "-0.0"),
        ("\u0661", "1"),
        ("1-2", "1 2"),
        ("_cat", "cat"),
    ],
)
def test_names_that_look_alike_are_refused(one: str, other: str) -> None:
    for names in ([one, "zebra", other], [other, one]):
        with pytest.raises(SourceError, match=r"^set: the classes .* look alike") as caught:
            refuse_lookalikes(names, "set")
        for name in (one, other):
            assert repr(name) in caught.value.message


@pytest.mark.parametrize(
    "names",
    [
        ["A", "a"],
        ["A", "a_"],
        ["1-2", "12"],
        ["1", "10", "100"],
        ["-1", "1"],
        ["1.5", "15"],
        ["-", "_", "+"],
        ["--", "__"],
        ["C", "C++", "C#"],
        ["cat", "cats"],
        ["cat", "cat"],
        ["cafe", "caf\u00e9"],
        ["", "0"],
        ["9" * 40, "9" * 39 + "8"],
    ],
)
def test_names_that_look_different_are_different_classes(names: list[str]) -> None:
    refuse_lookalikes(names, "set")


def test_escapes_show_invisible_characters() -> None:
    with pytest.raises(SourceError, match=r"\\u200b"):
        refuse_lookalikes(["cat", "ca\u200bt"], "set")


@settings(deadline=None)
@given(st.lists(st.text(max_size=6)))
def test_any_names_are_taken_or_refused(names: list[str]) -> None:
    try:
        refuse_lookalikes(names, "set")
    except SourceError:
        assert len(set(names)) > 1


def test_a_hundred_thousand_names_take_little_time() -> None:
    names = [f"Kingdom_{number}_sp\u00e9cies {number}" for number in range(100_000)]
    began = time.process_time()
    refuse_lookalikes(names, "set")
    assert time.process_time() - began < 5
