"""Files that are left out of a source are counted, and reported in sentences."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.images.omissions import BY_SYSTEM, HIDDEN, NO_IMAGE, NO_SPLIT, Omissions, extension_of


def omit(*files: tuple[str, str]) -> Omissions:
    omissions = Omissions()
    for path, reason in files:
        omissions.add(path, reason)
    return omissions


def test_without_omissions_there_are_no_sentences() -> None:
    omissions = Omissions()
    assert not omissions
    assert len(omissions) == 0
    assert omissions.sentences() == []


def test_files_are_counted_by_reason_and_extension() -> None:
    omissions = omit(*((f"cat/{n}.TXT", NO_IMAGE) for n in range(5)), ("b", NO_IMAGE), ("a/c", NO_IMAGE))
    assert omissions.sentences() == [
        "left out: 7 files that are no images by their extension (5 .txt, 2 without), the first is a/c"
    ]
    assert len(omissions) == 7


def test_one_file_is_named() -> None:
    assert omit(("a/.DS_Store", BY_SYSTEM)).sentences() == [
        "left out: 1 file that an operating system made: a/.DS_Store"
    ]


def test_the_most_frequent_reason_comes_first_and_rare_extensions_are_summed() -> None:
    files = [(f"x.{kind}", NO_IMAGE) for kind in ("aa", "aa", "bb", "bb", "cc", "dd", "ee")]
    omissions = omit((".a", HIDDEN), *files, *((f"e/{n}.jpg", NO_SPLIT) for n in range(1000)))
    assert omissions.sentences() == [
        "left out: 1,000 files in folders that are no split (1,000 .jpg), the first is e/0.jpg",
        "left out: 7 files that are no images by their extension (2 .aa, 2 .bb, 1 .cc, 2 others), the first is x.aa",
        "left out: 1 file that is hidden: .a",
    ]


def test_a_reason_in_other_words_follows_the_files() -> None:
    omissions = omit(("a.jpg", "with a broken link"), ("b.jpg", "with a broken link"))
    assert omissions.sentences() == ["left out: 2 files with a broken link (2 .jpg), the first is a.jpg"]


def test_empty_folders_are_named_and_the_rest_counted() -> None:
    omissions = Omissions()
    omissions.add_empty_folder("zebra")
    assert omissions.sentences() == ["no images in 1 class folder: zebra"]
    for name in ("d", "a", "c", "a", "b"):
        omissions.add_empty_folder(name)
    assert omissions.empty_folders == ["a", "b", "c", "d", "zebra"]
    assert omissions.sentences() == ["no images in 5 class folders: a, b, c and 2 more"]


def test_notes_are_last_and_not_repeated() -> None:
    omissions = omit(("a.txt", NO_IMAGE))
    for text in ("first", "second", "first"):
        omissions.note(text)
    assert omissions.notes == ("first", "second")
    assert omissions.sentences()[1:] == ["first", "second"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=5), st.sampled_from([HIDDEN, NO_IMAGE]))), st.integers(0, 10))
def test_merged_parts_equal_one_count(files: list[tuple[str, str]], cut: int) -> None:
    whole, part = omit(*files), omit(*files[cut:])
    part.merge(omit(*files[:cut]))
    assert part.to_json() == whole.to_json()
    assert part.sentences() == whole.sentences()
    assert len(part) == len(files)


def test_merging_takes_notes_and_empty_folders() -> None:
    one, other = Omissions(), Omissions()
    other.note("odd")
    other.add_empty_folder("cat")
    one.merge(other)
    assert one.to_json() == {"left_out": [], "empty_folders": ["cat"], "notes": ["odd"]}


def test_json_has_every_count_with_an_example() -> None:
    found = omit(("b.txt", NO_IMAGE), ("a.txt", NO_IMAGE)).to_json()
    assert json.loads(json.dumps(found))["left_out"] == [
        {"reason": NO_IMAGE, "extension": ".txt", "files": 2, "first": "a.txt"}
    ]


@pytest.mark.parametrize(
    ("path", "extension"),
    [
        ("a/b.TXT", ".txt"),
        ("a.b/c", ""),
        (".DS_Store", ""),
        ("a/.hidden.json", ".json"),
        ("notes.3", ""),
        ("a.tar.gz", ".gz"),
        ("Dr. Miller", ""),
        ("a.", ""),
        ("a.averyveryverylongending", ""),
        ("song.mp3", ".mp3"),
    ],
)
def test_an_extension_is_a_short_word(path: str, extension: str) -> None:
    assert extension_of(path) == extension


def test_many_files_take_little_time_and_one_count() -> None:
    omissions = Omissions()
    began = time.process_time()
    for number in range(300_000):
        omissions.add(f"labels/{number}.txt", NO_IMAGE)
    assert time.process_time() - began < 5
    assert len(omissions.to_json()["left_out"]) == 1
