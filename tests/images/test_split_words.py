"""The split in a word or a name, and the values of --split-by-folder."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import InvalidOption
from featcache.images.options import SPLITS
from featcache.images.splits import (
    SPLIT_WORDS,
    SplitAmbiguous,
    SplitFolders,
    split_in,
    split_word,
    splits_in,
    values_for,
)


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("VAL", "val"),
        ("valid", "val"),
        ("Validation", "val"),
        ("dev", "val"),
        ("test", "test"),
        ("testing", "test"),
        ("Eval", "test"),
        ("evaluation", "test"),
        (" test ", "test"),
        ("", None),
        ("trains", None),
        ("train1", None),
        ("x_train", None),
        ("unlabeled", None),
    ],
)
def test_a_split_is_one_whole_word_in_any_case(word: str, split: str | None) -> None:
    assert split_word(word) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("x_train", "train"),
        ("seg_train", "train"),
        ("train_images", "train"),
        ("TrainImages", "train"),
        ("myTestSet", "test"),
        ("HDTrain", "train"),
        ("TRAINImages", "train"),
        ("cifar10-train", "train"),
        ("train2017", "train"),
        ("val2017", "val"),
        ("test1", "test"),
        ("train-00000-of-00002", "train"),
        ("imagenet-val-0001", "val"),
        ("train_train", "train"),
        ("valid_validation", "val"),
        ("train_station", "train"),
        ("eVal", "test"),
        ("übung.test.ä", "test"),
        ("", None),
        ("unlabeled", None),
        ("training2", "train"),
        ("trainer", None),
        ("contest", None),
        ("Testament", None),
        ("trainval", None),
        ("evaluación", None),
        ("seg_pred", None),
    ],
)
def test_a_split_is_found_as_a_word_within_a_name(name: str, split: str | None) -> None:
    assert split_in(name) == split


@pytest.mark.parametrize(
    ("name", "splits"),
    [("train_val", ("train", "val")), ("TestOfTraining", ("train", "test")), ("dev-eval 1", ("val", "test"))],
)
def test_a_name_with_two_splits_is_ambiguous(name: str, splits: tuple[str, ...]) -> None:
    with pytest.raises(SplitAmbiguous) as caught:
        split_in(name)
    assert caught.value.splits == splits == splits_in(name)
    assert pickle.loads(pickle.dumps(caught.value)).splits == splits


@settings(deadline=None)
@given(st.text(max_size=12), st.sampled_from(sorted(SPLIT_WORDS)), st.text(max_size=12))
def test_a_word_between_signs_is_always_found(before: str, word: str, after: str) -> None:
    assert SPLIT_WORDS[word] in splits_in(f"{before}_{word}-{after}")
    assert set(splits_in(before)) <= set(SPLITS)


def test_without_values_the_names_of_folders_decide() -> None:
    assert SplitFolders.parse([]) == SplitFolders()
    assert SplitFolders().automatic


def test_folders_are_given_with_their_splits() -> None:
    folders = SplitFolders.parse(["seg_train=train", "./data/b=c/=Validation", "ä b = test"])
    assert folders.named == (("seg_train", "train"), ("data/b=c", "val"), ("ä b", "test"))
    assert not folders.automatic


def test_none_means_that_no_folder_is_a_split() -> None:
    folders = SplitFolders.parse(["none"])
    assert folders.none and not folders.automatic


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        (["seg_train"], "expected FOLDER=SPLIT", "seg_train=train"),
        (["=train"], "expected FOLDER=SPLIT", "seg_train=train"),
        (["/=train"], "expected FOLDER=SPLIT", "seg_train=train"),
        (["a=tran"], "expected a split .*'tran'", "did you mean train?"),
        (["a=other"], "expected a split .*'other'", "train, val, test"),
        (["a="], "expected a split .*''", "train, val, test"),
        (["a=train", "a=val"], "'a' is given twice", "each folder once"),
        (["a=train", "a/=val"], "'a/?' is given twice", "each folder once"),
        (["caf\u00e9=train", "cafe\u0301=val"], "given twice", "each folder once"),
        (["none", "a=val"], "`none` is given together with others", "alone"),
    ],
)
def test_invalid_values_are_refused(values: list[str], message: str, hint: str) -> None:
    with pytest.raises(InvalidOption, match=message) as caught:
        SplitFolders.parse(values)
    assert hint in (caught.value.hint or "")


def test_the_values_in_a_hint_are_valid_options() -> None:
    text = values_for([("x_train", "train"), ("a b", "test")])
    assert text == '--split-by-folder x_train=train --split-by-folder "a b"=test'
