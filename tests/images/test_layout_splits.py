"""Names of split folders, wrapper folders, and the option --split-by-folder."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import SourceError
from featcache.images.layout import Layout, arrange
from featcache.images.omissions import NO_SPLIT
from featcache.images.splits import SplitFolders

Classes = dict[str, str | None]


def images_in(*folders: str) -> list[str]:
    """Two images in each folder."""
    return [f"{folder}/{number}.jpg" for folder in folders for number in (1, 2)]


def splits_and_classes(layout: Layout) -> set[tuple[str, str | None]]:
    return {(split, name) for split, _, name in layout.rows}


def split_folders(*values: str) -> SplitFolders:
    return SplitFolders.parse(values)


@pytest.mark.parametrize(
    ("folders", "prefix", "expected"),
    [
        pytest.param(
            ["x_train/cat", "x_test/cat"], "", {("train", "cat"), ("test", "cat")}, id="words at the end of a name"
        ),
        pytest.param(
            ["coco/train2017", "coco/val2017"],
            "coco/",
            {("train", None), ("val", None)},
            id="years, around it a folder",
        ),
        pytest.param(
            ["TrainImages/a", "TestImages/b", "dev/a"],
            "",
            {("train", "a"), ("test", "b"), ("val", "a")},
            id="capitals, and a whole word beside them",
        ),
        pytest.param(["cifar10-train/cat", "cifar10-train/dog"], "", {("train", "cat"), ("train", "dog")}, id="one"),
        pytest.param(
            ["train_station/a", "test_tube/b"], "", {("train", "a"), ("test", "b")}, id="all names count, if all do"
        ),
        pytest.param(
            ["train_station", "bus_stop"], "", {("train", "train_station"), ("train", "bus_stop")}, id="one does not"
        ),
        pytest.param(
            ["train_station", "train_track", "bus"],
            "",
            {("train", "train_station"), ("train", "train_track"), ("train", "bus")},
            id="two of the same split beside another are classes",
        ),
        pytest.param(["train_val/a", "train_val/b"], "train_val/", {("train", "a"), ("train", "b")}, id="two in one"),
        pytest.param(
            ["test_data/train/a", "test_data/val/a"], "test_data/", {("train", "a"), ("val", "a")}, id="wrapper"
        ),
        pytest.param(
            ["eval-set/x_train/a", "eval-set/x_test/a"], "eval-set/", {("train", "a"), ("test", "a")}, id="wrapper too"
        ),
    ],
)
def test_split_forms(folders: list[str], prefix: str, expected: set[tuple[str, str | None]]) -> None:
    layout = arrange(images_in(*folders), "set")
    assert layout.prefix == prefix
    assert splits_and_classes(layout) == expected


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["cat/train", "dog/train", "cat/test"], {("train", "cat"), ("train", "dog"), ("test", "cat")}),
        (["pets/cat/Training", "pets/dog/dev"], {("train", "cat"), ("val", "dog")}),
        (["a/valid", "b/validation/images"], {("val", "a"), ("val", "b")}),
    ],
)
def test_splits_within_every_class(folders: list[str], expected: set[tuple[str, str | None]]) -> None:
    layout = arrange(images_in(*folders), "set")
    assert splits_and_classes(layout) == expected


@pytest.mark.parametrize(
    ("folders", "expected", "noted"),
    [
        (["x_train/x_train/cat", "x_test/x_test/cat"], {("train", "cat"), ("test", "cat")}, "x_train/x_train"),
        (["train/train/cat", "test/cat"], {("train", "cat"), ("test", "cat")}, "train/train"),
        (["seg_train/training/cat", "seg_train/training/dog"], {("train", "cat"), ("train", "dog")}, "/training"),
        (["archive/seg_train/seg_train/a", "archive/seg_test/a"], {("train", "a"), ("test", "a")}, "seg_train/seg"),
        (["train/train", "test/test"], {("train", None), ("test", None)}, "test/test"),
        (["train/images/cat", "train/images/dog"], {("train", "cat"), ("train", "dog")}, "train/images"),
        (["train/train/imgs/cat", "val/cat"], {("train", "cat"), ("val", "cat")}, "train/train/imgs"),
        (["train/images", "val/images"], {("train", None), ("val", None)}, "train/images are unlabelled"),
        (["s/train/jpg", "s/val/data"], {("train", None), ("val", None)}, "s/val/data are unlabelled"),
        (
            ["train/n1/images", "train/n2/images", "val/images"],
            {("train", "n1"), ("train", "n2"), ("val", None)},
            "val",
        ),
        (["images"], {("train", None)}, "images are unlabelled"),
        (["flowers/JPG"], {("train", None)}, "flowers/JPG are unlabelled"),
        (["flowers/jpg/a", "flowers/jpg/b"], {("train", "a"), ("train", "b")}, "flowers/jpg"),
        (["pets/pets/cat", "pets/pets/dog"], {("train", "cat"), ("train", "dog")}, "pets/pets"),
        (["coco/images/train2017", "coco/images/val2017"], {("train", None), ("val", None)}, "coco/images"),
    ],
)
def test_wrapper_folders_are_skipped_with_a_note(
    folders: list[str], expected: set[tuple[str, str | None]], noted: str
) -> None:
    layout = arrange(images_in(*folders), "set")
    assert splits_and_classes(layout) == expected
    assert any(noted in note for note in layout.notes)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train/images", "train/cat", "test/images"], {("train", "images"), ("train", "cat"), ("test", "images")}),
        (["images", "cat"], {("train", "images"), ("train", "cat")}),
        (["n1/images", "n2/images"], {("train", "n1"), ("train", "n2")}),
        (["train/cat/x", "train/dog"], {("train", "cat"), ("train", "dog")}),
        (["cat/cat"], {("train", "cat")}),
        (["cat/indoor", "cat/night", "dog/outdoor"], {("train", "cat"), ("train", "dog")}),
        (["val/cat/a", "val/dog/b"], {("val", "cat"), ("val", "dog")}),
    ],
)
def test_an_unambiguous_layout_is_read_without_a_note(
    folders: list[str], expected: set[tuple[str, str | None]]
) -> None:
    layout = arrange(images_in(*folders), "set")
    assert splits_and_classes(layout) == expected
    assert layout.notes == ()


def test_forms_that_are_no_whole_words_are_noted() -> None:
    assert arrange(images_in("x_train/a", "test/a"), "set").notes == ("folders are read as splits: x_train as train",)
    assert arrange(images_in("train/a", "test/a"), "set").notes == ()


def test_an_id_is_relative_to_the_folder_around_the_set_alone() -> None:
    layout = arrange(["archive/seg_train/seg_train/a/1.jpg"], "set")
    assert list(layout.rows) == [("train", "seg_train/seg_train/a/1.jpg", "a")]


@pytest.mark.parametrize(
    ("folders", "complaint", "advice"),
    [
        (["x_train/a", "seg-train/a"], "both seg-train and x_train would be the split train", "seg-train=train"),
        (["s/val2017", "s/dev"], "both s/dev and s/val2017 would be the split val", "--split-by-folder none"),
        (["seg_train/a", "seg_test/a", "seg_pred"], "seg_test, seg_train are splits .*seg_pred is not; or", "none"),
        (["train_station", "test_tube", "car"], "test_tube, train_station are splits .*all 3 are", "test_tube=test"),
        (["train/a", "x_test/a", "extra/a"], "the folder extra is no split, but", "x_test=test"),
        (["train_val/a", "test/a"], r"train_val is no split \(it names train and val\), but", "test=test"),
        (["cat/val", "cat/valid", "dog/val"], "both cat/val and cat/valid would be the split val of a class", "move"),
        (["cat/train", "dog/train", "dog/more"], "the split folder cat/train lies inside", "class/split/image"),
        (["images/train", "masks/train"], "the split folder images/train lies inside", "split/class/image"),
        (["Imgs/val", "depth/val"], "the split folder Imgs/val lies inside", "split/class/image"),
        (["siteA/train/cat", "siteB/train/dog"], "the split folder siteA/train lies inside", "none"),
        (["test/train/a", "test/val/a"], "the split folder test/train lies inside test, which would", "path of test"),
        (["train/val"], "the split folder train/val lies inside train", "train=train"),
        (
            ["siteA/cat", "siteA/dog", "siteB/cat", "siteB/dog"],
            "classes siteA, siteB; or as the classes cat, dog",
            "none",
        ),
        (["s/p1/ok", "s/p2/ok", "s/p2/bad"], "p1, p2; or as the classes bad, ok", "p1=train --split-by-folder p2=test"),
        (["train/siteA/cat", "train/siteA/dog", "train/siteB/dog"], "in train can be read in two ways", "train=train"),
        (["train/photos/cat", "train/photos/dog"], "the classes photos; or as the classes cat, dog", "train=train"),
    ],
)
def test_what_can_be_read_in_two_ways_shows_both(folders: list[str], complaint: str, advice: str) -> None:
    with pytest.raises(SourceError, match=complaint) as caught:
        arrange(images_in(*folders), "set")
    assert advice in (caught.value.hint or "")


@pytest.mark.parametrize(
    "paths",
    [
        ["train/images/1.jpg", "train/images/cat/2.jpg"],
        ["train/train/1.jpg", "train/train/cat/2.jpg"],
        ["pets/images/1.jpg", "pets/images/cat/2.jpg"],
        ["/cat/2.jpg", "1.jpg", "cat/2.jpg"],
    ],
)
def test_an_image_beside_classes_is_refused_wherever_they_begin(paths: list[str]) -> None:
    with pytest.raises(SourceError, match=r"the image .*1\.jpg is next to the folders .*cat"):
        arrange(paths, "set")


def test_classes_that_are_clear_in_another_split_are_unambiguous() -> None:
    layout = arrange(images_in("train/cat/a", "train/cat/b", "train/dog/a", "test/cat", "test/dog"), "set")
    assert splits_and_classes(layout) == {(split, name) for split in ("train", "test") for name in ("cat", "dog")}


# --- --split-by-folder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "values", "expected", "left_out"),
    [
        (["a/cat", "b/cat", "c/cat"], ["a=train", "b=test"], {("train", "cat"), ("test", "cat")}, 2),
        (["seg_train/x", "seg_pred/seg_pred"], ["seg_pred=test"], {("test", None)}, 2),
        (["w/a/cat", "w/b/cat"], ["w/a=train", "b=val"], {("train", "cat"), ("val", "cat")}, 0),
        (["w/a/cat"], ["w=val"], {("val", "a")}, 0),
        (["train/cat", "test/cat"], ["train=val"], {("val", "cat")}, 2),
        (["p1/cat", "p2/dog"], ["p1=train", "p2=train"], {("train", "cat"), ("train", "dog")}, 0),
        (["siteA/cat", "siteA/dog", "siteB/cat"], ["siteA=train"], {("train", "cat"), ("train", "dog")}, 2),
        (["train/p1/x", "train/p1/y", "train/p2/x"], ["train=train"], {("train", "p1"), ("train", "p2")}, 0),
        (["test/train", "test/val"], ["test=test"], {("test", "train"), ("test", "val")}, 0),
        (["cafe\u0301/a"], ["caf\u00e9=test"], {("test", "a")}, 0),
    ],
)
def test_folders_that_are_named_are_splits_and_others_left_out(
    folders: list[str], values: list[str], expected: set[tuple[str, str | None]], left_out: int
) -> None:
    layout = arrange(images_in(*folders), "set", splits=split_folders(*values))
    assert splits_and_classes(layout) == expected
    assert len(layout.omissions) == left_out
    assert all(entry["reason"] == NO_SPLIT for entry in layout.omissions.to_json()["left_out"])


def test_an_image_beside_the_named_folders_is_left_out() -> None:
    layout = arrange(["preview.jpg", "a/cat/1.jpg"], "set", splits=split_folders("a=train"))
    assert list(layout.rows) == [("train", "a/cat/1.jpg", "cat")]
    assert "preview.jpg" in layout.omissions.sentences()[0]


@pytest.mark.parametrize(
    ("folders", "prefix", "expected"),
    [
        (["siteA/cat", "siteA/dog", "siteB/cat"], "", {("train", "siteA"), ("train", "siteB")}),
        (["train/x", "test/y", "extra/z"], "", {("train", "train"), ("train", "test"), ("train", "extra")}),
        (["train/cat", "train/dog"], "train/", {("train", "cat"), ("train", "dog")}),
        (["cat/train", "dog/train"], "", {("train", "cat"), ("train", "dog")}),
        (["a/b/cat", "a/b/dog"], "a/", {("train", "b")}),
        (["images"], "", {("train", "images")}),
    ],
)
def test_with_none_the_top_folders_are_classes(
    folders: list[str], prefix: str, expected: set[tuple[str, str | None]]
) -> None:
    layout = arrange(images_in(*folders), "set", splits=split_folders("none"))
    assert layout.prefix == prefix
    assert splits_and_classes(layout) == expected


@pytest.mark.parametrize(
    ("folders", "values", "complaint", "advice"),
    [
        (
            ["seg_train/a", "seg_test/a"],
            ["seg_tran=train"],
            "'seg_tran', got the folders seg_test, seg_train",
            "seg_train",
        ),
        (["w/a/x", "w/b/x"], ["c=train"], "'c', got the folders w; w/a, w/b", ""),
        (["a/x", "b/x"], ["a=train", "d=test"], "'d', got the folders a, b", ""),
        (["w/a/x", "w/b/x"], ["a=train", "w/a=test"], "the folder w/a is given twice", "once"),
    ],
)
def test_a_named_folder_that_is_not_there_is_refused(
    folders: list[str], values: list[str], complaint: str, advice: str
) -> None:
    with pytest.raises(SourceError, match=complaint) as caught:
        arrange(images_in(*folders), "set", splits=split_folders(*values))
    assert advice in (caught.value.hint or "")


def test_a_named_folder_in_a_flat_set_is_refused() -> None:
    with pytest.raises(SourceError, match=r"got the folders \(none\)"):
        arrange(["1.jpg"], "set", splits=split_folders("a=train"))


def test_an_image_in_a_folder_without_a_name_does_not_hide_its_neighbours() -> None:
    with pytest.raises(SourceError, match=r"the image 1\.jpg is next to"):
        arrange(["/1.jpg", "1.jpg"], "set")


# --- class folders without images ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "others", "expected"),
    [
        (["cat"], ["dog", "cat", "cat/deep"], ["dog"]),
        (["s/train/cat", "s/test/dog"], ["s/test/cat", "s/train", "other", "s/train/cat"], ["s/test/cat"]),
        (["train/images/cat", "train/images/dog"], ["train/images/ant", "train/labels"], ["train/images/ant"]),
        (["cat/train", "dog/train"], ["ant", "cat/test", "ant/train"], ["ant"]),
        (["train", "test"], ["train/cat"], []),
        (["train/cat"], ["extra/cat", "val"], []),
    ],
)
def test_class_folders_without_images_are_found(folders: list[str], others: list[str], expected: list[str]) -> None:
    assert arrange(images_in(*folders), "set").without_images(others) == expected


# --- for any paths ---------------------------------------------------------------------------------------------

NAMES = ["train", "test", "val", "x_train", "train_val", "images", "cat", "dog", "a", "cat ", "data", ""]
PATHS = st.lists(
    st.builds("/".join, st.lists(st.sampled_from(NAMES), max_size=4).map(lambda parts: [*parts, "1.jpg"])),
    min_size=1,
    max_size=6,
)
VALUES = st.sampled_from([[], [], ["none"], ["train=val"], ["cat=train", "a=test"], ["a/x_train=test"]])


@settings(deadline=None, max_examples=400)
@given(PATHS, VALUES, st.randoms(use_true_random=False))
def test_every_path_ends_in_one_row_or_is_left_out_in_any_order(
    paths: list[str], values: list[str], order: random.Random
) -> None:
    shuffled = order.sample(paths, len(paths))
    try:
        layout = arrange(paths, "set", splits=split_folders(*values))
    except SourceError as error:
        with pytest.raises(SourceError) as caught:
            arrange(shuffled, "set", splits=split_folders(*values))
        assert caught.value.message == error.message
        return
    rows = list(layout.rows)
    assert len(rows) + len(layout.omissions) == len(paths)
    assert {layout.prefix + sample_id for _, sample_id, _ in rows} <= set(paths)
    assert len(layout.omissions) == 0 or values not in ([], ["none"])
    again = arrange(shuffled, "set", splits=split_folders(*values))
    assert (list(again.rows), again.notes, again.prefix) == (rows, layout.notes, layout.prefix)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text(st.sampled_from("ab/ .\u0301_\ud800T"), max_size=9)), VALUES)
def test_any_texts_have_a_layout_or_are_refused(paths: list[str], values: list[str]) -> None:
    try:
        layout = arrange(paths, "set", splits=split_folders(*values))
    except SourceError:
        return
    assert len(list(layout.rows)) + len(layout.omissions) == len(paths)
