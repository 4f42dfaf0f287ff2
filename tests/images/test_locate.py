"""Locations: text and objects are parsed once, and an origin opens the same images from everywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from image_files import encode

import featcache
from featcache.cli.finding import CacheOptions
from featcache.columns import ColumnOptions
from featcache.errors import SourceError, UnknownName
from featcache.images import ArraySource, locate, open_images
from featcache.images.location import Location
from featcache.images.sources.folder import FolderSource


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog", "cat", "dog")):
        path = tmp_path / "photos" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number))
    return tmp_path / "photos"


def test_a_home_folder_is_an_absolute_origin(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    assert locate("~/photos").origin == locate(photos).origin == str(photos)


def test_a_cache_is_found_after_its_images_were_deleted(photos: Path, tmp_path: Path) -> None:
    cache = featcache.extract(photos, "pixels", image_size=8, data_dir=tmp_path / "data")
    photos.rename(tmp_path / "moved")
    assert CacheOptions(dataset=str(photos)).find(tmp_path / "data" / "features", None).path == cache.path
    with pytest.raises(SourceError, match="photos: no such file or folder"):
        open_images(photos, datasets_dir=tmp_path)


def test_a_cache_of_named_split_folders_is_found_after_its_images_were_deleted(photos: Path, tmp_path: Path) -> None:
    arguments = {"split_by_folder": ("cat=train", "dog=test"), "image_size": 8, "data_dir": tmp_path / "data"}
    cache = featcache.extract(photos, "pixels", **arguments)  # type: ignore[call-overload]
    photos.rename(tmp_path / "moved")
    assert CacheOptions(dataset=str(photos)).find(tmp_path / "data" / "features", None).path == cache.path


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        locate("cifar11")
    assert "cifar10" in (caught.value.hint or "")


def test_which_folders_are_splits_is_a_part_of_the_origin(photos: Path, tmp_path: Path) -> None:
    place = locate(photos, split_by_folder=["cat=train", "dog=test"])
    assert place.origin.startswith(f"{photos}?split-by-folder=")
    for one in (place, locate(place.origin)):
        with one.open_and_close(datasets_dir=tmp_path) as source:
            assert source.splits() == ("train", "test")
            assert source.origin == place.origin


def test_folders_of_an_archive_can_be_splits(photos: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", photos)
    place = locate(packed, split_by_folder=["cat=train", "dog=test"])
    with place.open_and_close(datasets_dir=tmp_path) as source:
        assert source.splits() == ("train", "test")


def test_options_that_a_kind_does_not_have_are_refused(photos: Path) -> None:
    with pytest.raises(SourceError, match="unknown option 'label'") as caught:
        locate(f"{photos}?label=x")
    assert "split-by-folder" in (caught.value.hint or "")
    with pytest.raises(SourceError, match="unknown option 'label'") as caught:
        locate("digits?label=x")
    assert "no options" in (caught.value.hint or "")


def test_the_options_of_a_location_are_read_by_name() -> None:
    place = Location(kind="table", place="a.csv", options=(("kind", "x=groups"), ("label", "y"), ("kind", "z=text")))
    assert place.values("kind") == ("x=groups", "z=text") and place.values("split") == ()
    assert (place.option("kind"), place.option("label"), place.option("split")) == ("x=groups", "y", None)


@pytest.mark.parametrize("text", ["gone/photos", "./gone", "~/gone", "gone.zip", ".gone", "~gone"])
def test_a_path_at_which_nothing_exists_has_an_origin_and_only_opening_it_fails(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    place = locate(text)
    assert place.origin == str(tmp_path / text.removeprefix("~/"))
    assert locate(place.origin) == place
    with pytest.raises(SourceError, match="no such file or folder"):
        place.open(datasets_dir=tmp_path)


def test_an_option_without_a_value_is_kept() -> None:
    assert locate("./gone.csv?label=&split=x").options == (("label", ""), ("split", "x"))


def test_a_misspelt_path_offers_the_folder_or_archive_beside_it(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photozz").write_text("neither a folder nor an archive")
    with pytest.raises(SourceError) as caught:
        open_images(tmp_path / "photoz", datasets_dir=tmp_path)
    assert f"did you mean {photos}?" in (caught.value.hint or "")
    with pytest.raises(SourceError) as caught:
        open_images(tmp_path / "music", datasets_dir=tmp_path)
    assert "did you mean" not in (caught.value.hint or "")


def test_a_misspelt_name_offers_a_folder_here(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    with pytest.raises(UnknownName) as caught:
        locate("photoz")
    assert "photos" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["x" * 300, "/" + "x" * 300, "y/" * 3000])
def test_a_path_that_the_system_refuses_is_a_source_error(name: str) -> None:
    with pytest.raises(SourceError, match="cannot be opened"):
        locate(name)


@pytest.mark.parametrize("value", [42, None, object()])
def test_what_contains_no_images_is_refused_with_its_type(value: object) -> None:
    with pytest.raises(SourceError, match=f"expected images, got {type(value).__name__}"):
        locate(value)


def test_labels_and_splits_that_an_argument_cannot_have_are_refused(photos: Path) -> None:
    for labels in ({"labels": ["a"]}, {"classes": ["a"]}):
        with pytest.raises(SourceError, match="has its own labels"):
            locate(photos, **labels)
    for images in ("digits", np.zeros((3, 8, 8, 3), np.uint8)):
        with pytest.raises(SourceError, match="no folders that could be splits"):
            locate(images, split_by_folder=["cat=train"])


@pytest.mark.parametrize("columns", [ColumnOptions(columns=("size",)), ColumnOptions(kinds=("label=text",))])
def test_columns_of_images_that_have_only_the_label_are_refused(columns: ColumnOptions, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="digits has no columns but the label"):
        open_images("digits", datasets_dir=tmp_path, columns=columns)
    with open_images("digits", datasets_dir=tmp_path, columns=ColumnOptions()) as source:
        assert source.splits() == ("train", "test")


def test_a_question_mark_in_a_file_name_begins_no_options(photos: Path) -> None:
    turned = photos.rename(photos.with_name("which?is=cat"))
    place = locate(turned)
    assert (place.place, place.options) == (str(turned), ())
    shards = turned / "shards?a=0.tar"
    shards.write_bytes(b"")
    place = locate(f"wds:{shards}")
    assert (place.place, place.options) == (str(shards), ())


def test_different_arrays_have_different_origins_and_the_same_one_keeps_its_own() -> None:
    first, second = np.zeros((3, 8, 8, 3), np.uint8), np.ones((3, 8, 8, 3), np.uint8)
    assert locate(first).origin == locate(first.copy()).origin != locate(second).origin
    assert locate(first) == locate(first.copy()) != locate(second)
    assert len(repr(locate(first))) < 300
    # Caches of arrays are found by this text.
    assert locate(first).origin == "array:d4af99503026"


def test_lists_of_paths_with_the_same_characters_have_different_origins() -> None:
    assert locate(["/a/b", "/c"]).origin != locate(["/a", "/b/c"]).origin
    assert locate(["/a", "/b"]).origin == locate(("/a", "/b")).origin == "paths:148c32fbefbb"


def test_images_from_python_cannot_be_opened_by_their_origin() -> None:
    origin = locate(np.zeros((3, 8, 8, 3), np.uint8)).origin
    with pytest.raises(SourceError, match="passed from Python") as caught:
        locate(origin)
    assert "featcache.extract" in (caught.value.hint or "")


def test_one_image_is_no_set() -> None:
    with pytest.raises(SourceError, match="is one image") as caught:
        locate(np.zeros((32, 32, 3), np.uint8))
    assert "images[None]" in (caught.value.hint or "")


def test_images_are_closed_after_a_block(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(FolderSource, "close", lambda self: closed.append(self.origin))
    with locate(photos).open_and_close(datasets_dir=tmp_path) as source:
        assert closed == []
    assert closed == [source.origin] == [str(photos)]


def test_a_source_that_is_given_stays_open_also_where_extract_fails(tmp_path: Path) -> None:
    class Counting(ArraySource):
        closed = 0

        def close(self) -> None:
            Counting.closed += 1

    source = Counting(np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1])
    featcache.extract(source, "pixels", image_size=8, data_dir=tmp_path)
    with pytest.raises(featcache.FeatcacheError):
        featcache.extract(source, "pixels", image_size=8, splits=("test",), data_dir=tmp_path)
    featcache.extract(source, "pixels", image_size=8, data_dir=tmp_path)
    assert Counting.closed == 0


@pytest.mark.parametrize("key", ["training", "Train", "train"])
def test_a_mapping_takes_splits_as_people_write_them(key: str, photos: Path, tmp_path: Path) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    source = open_images({key: photos, "dev": (images, ["dog", "bird"])}, datasets_dir=tmp_path)
    assert source.splits() == ("train", "val")
    assert source.classes == ("bird", "cat", "dog")
    assert [source.classes[one.label] for one in source.samples("val")] == ["dog", "bird"]


def test_columns_of_objects_are_chosen_and_unknown_ones_refused(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
    labels = {"label": ["a", "b", "a", None], "weight": [1.5, None, 2.0, 3.0], "patient": ["p", "q", "p", "q"]}
    arguments = {"labels": labels, "image_size": 8, "data_dir": tmp_path}
    cache = featcache.extract(images, "pixels", **arguments)  # type: ignore[call-overload]
    assert {name: column.kind for name, column in cache.targets.items()} == {
        "label": "classes", "weight": "numbers", "patient": "groups",
    }  # fmt: skip
    assert cache["train"].target("weight").decode() == [1.5, None, 2.0, 3.0]
    assert cache["train"].labels.tolist() == [0, 1, 0, -1]
    with pytest.raises(UnknownName, match="wieght"):
        featcache.extract(images, "pixels", columns=["wieght"], **arguments)  # type: ignore[call-overload]
