"""Which cache is meant: found by its name or by filters, without images, weights or backbone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tiny import jpeg, random_squeezenet

from featcache.cache.catalog import describe, find
from featcache.cache.query import CacheQuery, find_cache
from featcache.cli.finding import CacheOptions
from featcache.config import from_command_words
from featcache.errors import CacheIncomplete, CacheNotFound, InvalidOption
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, assemble_cache, extract
from featcache.extraction.units import Shard


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a weights file, a cache of two layers and one of pixels."""
    root = tmp_path_factory.mktemp("project")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number}.jpg").write_bytes(jpeg(hash((split, name, number)) % 1000))
    save_file(random_squeezenet(), root / "w.safetensors")
    extract(squeezenet(root, layers=("features.5", "features"), precision="bf16"))
    extract(Request(dataset=root / "pets", backbone="pixels", image_size=8, data_dir=root / "data"))
    return root


def squeezenet(root: Path, **options: object) -> Request:
    values: dict[str, object] = {
        "dataset": root / "pets",
        "backbone": "squeezenet1_1",
        "weights": str(root / "w.safetensors"),
        "image_size": 64,
        "data_dir": root / "data",
    }
    return Request(**(values | options))  # type: ignore[arg-type]


def find_backbone(root: Path, name: str | None = None, **filters: object) -> str:
    """The backbone of the cache that is found."""
    entry = find_cache(root / "data" / "features", CacheQuery(name=name, **filters))  # type: ignore[arg-type]
    assert entry.spec is not None
    return entry.spec.backbone


@pytest.mark.parametrize(
    "filters",
    [
        {"backbone": "pixels"},
        {"layers": ("pixels",)},
        {"image_size": 8},
        {"name": "pets-pixels"},
        {"backbone": "pixels", "dataset": "pets"},
    ],
)
def test_one_filter_that_one_cache_has_is_enough(filters: dict[str, object], project: Path) -> None:
    assert find_backbone(project, **filters) == "pixels"  # type: ignore[arg-type]


def test_layers_are_found_in_any_order_and_with_their_backbone(project: Path) -> None:
    assert find_backbone(project, layers=("features", "features.5")) == "squeezenet1_1"
    assert find_backbone(project, layers=("squeezenet1_1/features",)) == "squeezenet1_1"


def test_several_are_listed_with_what_differs_and_with_nothing_else(project: Path) -> None:
    with pytest.raises(CacheNotFound, match="2 caches fit") as caught:
        find_backbone(project)
    hint = caught.value.hint or ""
    assert hint.startswith("name one of them:\n")
    assert "backbone pixels, layer pixels" in hint
    assert "backbone squeezenet1_1, layer features.5+features" in hint
    assert "image size 8" in hint
    assert "dataset" not in hint


@pytest.mark.parametrize(
    "filters",
    [
        {"backbone": "resnet18"},
        {"layers": ("features.3",)},
        {"dataset": "cifar10"},
        {"backbone": "pixels", "layers": ("features",)},
    ],
)
def test_where_none_fits_the_command_that_makes_it_is_offered(filters: dict[str, object], project: Path) -> None:
    with pytest.raises(CacheNotFound, match=r"no cache in .* has .*; there are") as caught:
        find_backbone(project, **filters)  # type: ignore[arg-type]
    hint = caught.value.hint or ""
    assert "featcache extract" in hint
    for value in filters.values():
        assert str(value[0] if isinstance(value, tuple) else value) in hint


def test_a_named_cache_that_contradicts_a_filter_is_refused(project: Path) -> None:
    with pytest.raises(CacheNotFound, match="does not have backbone vgg16: it has backbone pixels"):
        find_backbone(project, name="pets-pixels", backbone="vgg16")


def test_an_image_size_chooses_among_several_and_excludes_none_alone(project: Path) -> None:
    assert find_backbone(project, backbone="pixels", image_size=65) == "pixels"
    with pytest.raises(CacheNotFound, match="2 caches fit"):
        find_backbone(project, image_size=65)


def test_a_target_chooses_among_several_and_excludes_none_alone(project: Path) -> None:
    assert find_backbone(project, backbone="pixels", targets=("species",)) == "pixels"
    with pytest.raises(CacheNotFound, match="2 caches fit"):
        find_backbone(project, targets=("species",))


def test_an_empty_folder_offers_to_extract(tmp_path: Path) -> None:
    with pytest.raises(CacheNotFound, match="there is no cache") as caught:
        find_cache(tmp_path, CacheQuery())
    assert "featcache extract" in (caught.value.hint or "")


def test_a_name_that_is_nearly_right_offers_the_nearest(project: Path) -> None:
    with pytest.raises(CacheNotFound, match="is called 'pet-pixels'") as caught:
        find_backbone(project, name="pet-pixels")
    assert "pets-pixels" in (caught.value.hint or "")


def test_neither_weights_nor_images_need_to_be_there(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "laptop"
    shutil.copytree(project / "data", copy / "data")
    options = CacheOptions(dataset=str(project / "pets"), backbone="squeezenet1_1")
    (project / "w.safetensors").rename(project / "hidden")
    (project / "pets").rename(project / "gone")
    try:
        assert options.find(copy / "data" / "features", None, layers=("features",)).complete
    finally:
        (project / "hidden").rename(project / "w.safetensors")
        (project / "gone").rename(project / "pets")


def test_an_unfinished_extraction_is_found_and_refused_with_the_command_that_finishes_it(
    project: Path, tmp_path: Path
) -> None:
    request = squeezenet(project, layers=("features",), data_dir=tmp_path)
    (project / "pets/test/dog/9.jpg").write_bytes(b"no image")
    try:
        with pytest.raises(Exception, match=r"9\.jpg"):
            extract(request, Execution(segment_rows=4, batch_size=8))
    finally:
        (project / "pets/test/dog/9.jpg").unlink()
    entry = find_cache(tmp_path / "features", CacheQuery(backbone="squeezenet1_1"))
    with pytest.raises(CacheIncomplete, match="is not finished") as caught:
        entry.require_complete()
    assert request.command in (caught.value.hint or "")


# --- the same layers, extracted ----------------------------------------------------------------------------


def test_extracting_some_of_a_caches_layers_is_a_hit(project: Path) -> None:
    wide = find_cache(project / "data" / "features", CacheQuery(backbone="squeezenet1_1")).path
    narrow = extract(squeezenet(project, layers=("features",), precision="bf16"))
    assert (narrow.cache, narrow.computed) == (wide, 0)
    assert narrow.feature_dim.keys() == {"features"}


def test_a_wider_cache_gives_rows_to_a_narrower_selection(project: Path) -> None:
    narrow = extract(squeezenet(project, layers=("features.5",), precision="bf16", limit=2))
    assert (narrow.computed, narrow.reused) == (0, 4)
    narrow.cache.unlink()


# --- the command that makes a cache ------------------------------------------------------------------------


def test_the_command_names_what_differs_from_the_defaults(project: Path) -> None:
    command = squeezenet(project, layers=("features",), limit=2, splits=("train",), dtype="float32").command
    for piece in ("--layer features", "--limit 2", "--split train", "--dtype float32", "--image-size 64"):
        assert piece in command
    assert "--resize" not in command


def test_the_command_is_read_back_to_the_same_request(project: Path) -> None:
    request = squeezenet(project, layers=("features", "features.5"), views=3, view_flip=False, splits=("train",))
    words = request.command.split()
    read = from_command_words(Request, words[2:], data_dir=request.data_dir)
    assert (read.command, read.selection) == (request.command, request.selection)
    assert (read.layers, read.views, read.view_flip) == (request.layers, request.views, request.view_flip)


# --- no cache is taken by mistake --------------------------------------------------------------------------


def test_an_empty_name_is_no_beginning(project: Path) -> None:
    for name in ("", None):
        with pytest.raises(CacheNotFound):
            find_cache(project / "data" / "features", CacheQuery(name=name))
    with pytest.raises(CacheNotFound, match="empty text"):
        find(project / "data" / "features", "")


def test_two_folders_of_one_name_are_two_data_sets(project: Path, tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    with pytest.raises(CacheNotFound):
        CacheOptions(dataset=str(tmp_path / "pets"), backbone="pixels").find(project / "data" / "features", None)
    assert CacheOptions(dataset="pets", backbone="pixels").find(project / "data" / "features", None).complete


def test_a_complete_cache_does_not_stand_in_for_an_unfinished_one(project: Path, tmp_path: Path) -> None:
    small = Request(dataset=project / "pets", backbone="pixels", image_size=8, limit=2, data_dir=tmp_path)
    done = extract(small).cache
    whole = replace(small, limit=None)
    extract(whole, Execution(shard=Shard.parse("0/2"), segment_rows=2))
    features = tmp_path / "features"
    with pytest.raises(CacheNotFound, match="2 caches fit") as caught:
        find_cache(features, CacheQuery(backbone="pixels"))
    assert "state complete" in (caught.value.hint or "") and "state unfinished" in (caught.value.hint or "")
    unfinished = find_cache(features, CacheQuery(backbone="pixels", unfinished_first=True))
    assert unfinished.path != done and not unfinished.complete
    with pytest.raises(CacheIncomplete):
        assemble_cache(unfinished)
    extract(whole, Execution(shard=Shard.parse("1/2"), segment_rows=2))
    assert find(features, unfinished.name).complete


def test_a_cache_is_assembled_where_it_lies_or_refused(project: Path, tmp_path: Path) -> None:
    request = Request(dataset=project / "pets", backbone="pixels", image_size=8, data_dir=tmp_path / "here")
    extract(request, Execution(pack=False, segment_rows=4))
    (folder,) = (tmp_path / "here" / "features").iterdir()
    moved = shutil.copytree(tmp_path / "here", tmp_path / "there") / "features" / folder.name
    assert assemble_cache(describe(moved), Execution(pack=True)).cache == moved.with_suffix(".h5")
    assert folder.is_dir()
    renamed = folder.rename(folder.with_name("mine"))
    with pytest.raises(InvalidOption, match=f"mine was called {folder.name}"):
        assemble_cache(describe(renamed))
    elsewhere = shutil.copytree(renamed, tmp_path / folder.name)
    with pytest.raises(InvalidOption, match="not in a folder called features"):
        assemble_cache(describe(elsewhere))
