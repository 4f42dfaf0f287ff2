"""Splits, classes and ids from paths."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import SourceError
from featcache.images.layout import Layout, arrange
from featcache.images.listing import Listing, ListingBuilder

Rows = list[tuple[str, str, int]]


def listing(layout: Layout) -> Listing:
    builder = ListingBuilder()
    for row in layout.rows:
        builder.add(*row)
    return builder.listing("set", by_value=False)


def rows(layout: Layout) -> Rows:
    listed = listing(layout).samples
    return [(split, sample.id, sample.label) for split, samples in listed.items() for sample in samples]


@pytest.mark.parametrize(
    ("paths", "prefix", "classes", "expected"),
    [
        pytest.param(
            ["dog/1.jpg", "cat/2.jpg"],
            "",
            ("cat", "dog"),
            [("train", "cat/2.jpg", 0), ("train", "dog/1.jpg", 1)],
            id="class/image",
        ),
        pytest.param(
            ["train/cat/1.jpg", "test/dog/1.jpg"],
            "",
            ("cat", "dog"),
            [("train", "train/cat/1.jpg", 0), ("test", "test/dog/1.jpg", 1)],
            id="split/class/image, classes are the union",
        ),
        pytest.param(
            ["cifar10/train/cat/1.jpg", "cifar10/test/cat/1.jpg"],
            "cifar10/",
            ("cat",),
            [("train", "train/cat/1.jpg", 0), ("test", "test/cat/1.jpg", 0)],
            id="one wrapper folder is skipped",
        ),
        pytest.param(
            ["pets/cat/1.jpg", "pets/dog/1.jpg"],
            "pets/",
            ("cat", "dog"),
            [("train", "cat/1.jpg", 0), ("train", "dog/1.jpg", 1)],
            id="wrapping folder around classes",
        ),
        pytest.param(
            ["Train/a/1.jpg", "validation/a/1.jpg", "TEST/a/1.jpg"],
            "",
            ("a",),
            [("train", "Train/a/1.jpg", 0), ("val", "validation/a/1.jpg", 0), ("test", "TEST/a/1.jpg", 0)],
            id="split names in any case, validation is val",
        ),
        pytest.param(["2.jpg", "1.jpg"], "", (), [("train", "1.jpg", -1), ("train", "2.jpg", -1)], id="flat"),
        pytest.param(["cat/1.jpg"], "", ("cat",), [("train", "cat/1.jpg", 0)], id="a single class"),
        pytest.param(
            ["train/a/1.jpg", "test/1.jpg"],
            "",
            ("a",),
            [("train", "train/a/1.jpg", 0), ("test", "test/1.jpg", -1)],
            id="a flat split is unlabelled",
        ),
        pytest.param(["train/1.jpg"], "", (), [("train", "train/1.jpg", -1)], id="one flat split"),
        pytest.param(["test/a/1.jpg"], "", ("a",), [("test", "test/a/1.jpg", 0)], id="one split"),
        pytest.param(
            ["cat/1.jpg", "cat/in/side/2.jpg", "dog/3.jpg"],
            "",
            ("cat", "dog"),
            [("train", "cat/1.jpg", 0), ("train", "cat/in/side/2.jpg", 0), ("train", "dog/3.jpg", 1)],
            id="deeper folders belong to their class",
        ),
        pytest.param(
            ["train/cat/x/1.jpg", "train/dog/2.jpg"],
            "",
            ("cat", "dog"),
            [("train", "train/cat/x/1.jpg", 0), ("train", "train/dog/2.jpg", 1)],
            id="deeper folders within a split",
        ),
        pytest.param(
            ["b/1.jpg", "B/1.jpg", "é/1.jpg", "a b/1.jpg"],
            "",
            ("B", "a b", "b", "é"),
            [
                ("train", "B/1.jpg", 0),
                ("train", "a b/1.jpg", 1),
                ("train", "b/1.jpg", 2),
                ("train", "é/1.jpg", 3),
            ],
            id="classes and ids by code points",
        ),
        pytest.param(["10/1.jpg", "9/1.jpg"], "", ("10", "9"), [("train", "10/1.jpg", 0), ("train", "9/1.jpg", 1)]),
        pytest.param(
            ["cat/1.jpg", "cat /2.jpg"], "", ("cat",), [("train", "cat /2.jpg", 0), ("train", "cat/1.jpg", 0)]
        ),
    ],
)
def test_layout(paths: list[str], prefix: str, classes: tuple[str, ...], expected: Rows) -> None:
    layout = arrange(paths, "set")
    assert layout.prefix == prefix
    assert listing(layout).classes == classes
    assert rows(layout) == expected


@pytest.mark.parametrize(
    ("paths", "complaint"),
    [
        ([], "no images found"),
        (["train/a/1.jpg", "extra/a/1.jpg", "test/a/1.jpg"], r"the folder extra is no split, but is next to test"),
        (["s/train/a/1.jpg", "s/extra/a/1.jpg"], r"the folder s/extra is no split"),
        (["a/1.jpg", "2.jpg"], r"the image 2.jpg is next to the folders a"),
        (["s/train/a/1.jpg", "s/train/2.jpg"], r"the image s/train/2.jpg is next to the folders a"),
        (["val/a/1.jpg", "valid/a/2.jpg"], r"both val and valid would be the split val"),
        (["cat/train/1.jpg", "dog/2.jpg"], r"the split folder cat/train lies inside a folder that is no split"),
        (["a/b/train/c/1.jpg"], "two nested folders, a/b, hold everything"),
        (["a/b/cat/1.jpg", "a/b/dog/1.jpg"], r"two nested folders, a/b, hold everything"),
        (["pets/1.jpg", "pets/cat/2.jpg"], r"'pets' contains an image \(1.jpg\) next to folders"),
    ],
)
def test_what_can_be_read_in_two_ways_is_an_error(paths: list[str], complaint: str) -> None:
    with pytest.raises(SourceError, match=complaint) as caught:
        arrange(paths, "set")
    assert caught.value.message.startswith("set: ")


def test_the_error_for_an_empty_set_names_the_expected_layouts() -> None:
    with pytest.raises(SourceError) as caught:
        arrange([], "set")
    assert "split/class/image" in (caught.value.hint or "")


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["1", "x/2", "ü", "Z z"])), min_size=1, unique=True),
    st.randoms(use_true_random=False),
)
def test_no_image_is_lost_and_order_does_not_matter(found: list[tuple[str, str]], order: random.Random) -> None:
    paths = ["train/d/1.jpg", *(f"train/{label}/{name}.jpg" for label, name in found)]
    shuffled = order.sample(paths, len(paths))
    assert rows(arrange(shuffled, "set")) == rows(arrange(paths, "set"))
    assert [path for _, path, _ in rows(arrange(shuffled, "set"))] == sorted(paths)
