"""Features of several caches are concatenated; rows are matched by image, never by position."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_caches import Blobs, blobs, write_cache
from numpy.typing import NDArray

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, InvalidOption, UnknownName
from featcache.heads.config import HeadConfig
from featcache.rows.joining import choose_columns
from featcache.rows.views import TRAIN_VIEWS
from featcache.runs.fit import fit_head, train_head
from featcache.runs.run import Run, caches_in_use


def shuffle(rows: Blobs, split: str, seed: int = 7) -> tuple[Blobs, NDArray[np.int64]]:
    """The same images in another order, and that order."""
    order = np.random.default_rng(seed).permutation(len(rows.labels))
    ids = tuple(f"{split}/{row:05d}" for row in order)
    views = tuple(view[order] for view in rows.augmented)
    mixed = replace(rows, features=rows.features[order], labels=rows.labels[order], ids=ids, augmented=views)
    return mixed, order


@pytest.fixture
def first(tmp_path: Path) -> FeatureCache:
    splits = {"train": blobs(120), "test": blobs(60, seed=1)}
    return write_cache(tmp_path, splits, backbone="one", provenance={"parameters": 100})


@pytest.fixture
def second(tmp_path: Path) -> FeatureCache:
    """The same images through another backbone, in another order, and two images more."""
    mixed, _ = shuffle(blobs(120, dim=5, seed=3), "train")
    more = Blobs(
        features=np.concatenate([mixed.features, np.ones((2, 5), np.float16)]),
        labels=np.concatenate([mixed.labels, np.array([0, 1])]),
        ids=(*(mixed.ids or ()), "train/extra1", "train/extra2"),
    )
    splits = {"train": more, "test": shuffle(blobs(60, dim=5, seed=4), "test")[0]}
    return write_cache(tmp_path, splits, backbone="two", provenance={"parameters": 11})


def side_by_side(folder: Path) -> FeatureCache:
    """The features of both caches, as one cache of one layer."""
    train = np.concatenate([blobs(120).features, blobs(120, dim=5, seed=3).features], axis=1)
    test = np.concatenate([blobs(60, seed=1).features, blobs(60, dim=5, seed=4).features], axis=1)
    splits = {
        "train": Blobs(features=train, labels=blobs(120).labels),
        "test": Blobs(features=test, labels=blobs(60).labels),
    }
    return write_cache(folder, splits, backbone="both")


@pytest.mark.parametrize("resident_bytes", [None, 0])
@pytest.mark.parametrize("head", ["mlp:8", "ridge", "knn"])
def test_two_caches_train_the_same_head_as_one_with_both(
    first: FeatureCache, second: FeatureCache, tmp_path: Path, head: str, resident_bytes: int | None
) -> None:
    config = HeadConfig(head=head) if head != "mlp:8" else HeadConfig(head=head, max_epochs=4)
    runs = tmp_path / "runs"
    memory: dict[str, Any] = {} if config.architecture.solved else {"resident_bytes": resident_bytes}
    joined = fit_head(first, config, beside=[second], runs_dir=runs, **memory)
    whole = fit_head(side_by_side(tmp_path), config, runs_dir=runs)
    assert joined.training.val == whole.training.val
    assert joined.training.test == whole.training.test
    assert joined.weights_sha256 == whole.weights_sha256


def test_a_run_names_every_cache_it_read(first: FeatureCache, second: FeatureCache, tmp_path: Path) -> None:
    run = train_head(first, "linear", beside=[second.path], max_epochs=1, runs_dir=tmp_path / "runs")
    loaded = Run.load(run.folder)
    assert loaded == run
    assert [origin.cache for origin in loaded.features.origins] == [str(first.path), str(second.path)]
    assert [origin.spec for origin in loaded.features.origins] == [first.spec.to_json(), second.spec.to_json()]
    assert loaded.features.label == "one/avgpool + two/avgpool" and loaded.features.feature_dim == 21
    assert "one-two" in run.folder.name
    assert run.to_json()["beside"] == [str(second.path)]
    assert run.training.frozen == 111
    assert caches_in_use(tmp_path / "runs", pytest.fail) == {first.path, second.path}


def test_a_run_of_two_caches_predicts_from_both(first: FeatureCache, second: FeatureCache, tmp_path: Path) -> None:
    run = train_head(first, "mlp:8", beside=[second], max_epochs=2, runs_dir=tmp_path / "runs")
    place = {sample: row for row, sample in enumerate(second["test"].ids)}
    rows = [place[sample] for sample in first["test"].ids]
    columns = [first["test"].features[:], second["test"].features[rows]]
    expected = run.predictions("test").outputs
    assert np.array_equal(run.predict(columns), expected)
    assert np.array_equal(run.predict(np.concatenate(columns, axis=1)), expected)
    with pytest.raises(HeadError, match=r"expected features \(N, 21\) of one/avgpool \+ two/avgpool"):
        run.predict(columns[::-1])


def test_pixels_joined_to_features_are_scaled(first: FeatureCache, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (180, 6), dtype=np.uint8)
    splits = {
        "train": Blobs(features=stored[:120], labels=blobs(120).labels),
        "test": Blobs(features=stored[120:], labels=blobs(60).labels),
    }
    pixels = write_cache(tmp_path, splits, backbone="pixels", scaling={"avgpool": (1 / 127.5, -1.0)})
    for head in ("linear", "knn"):
        run = train_head(first, head, beside=[pixels], runs_dir=tmp_path / "runs")
        columns = [first["test"].features[:], pixels["test"].features[:]]
        assert np.array_equal(run.predict(columns), run.predictions("test").outputs)


@pytest.mark.parametrize("resident_bytes", [None, 0])
@pytest.mark.parametrize(
    "config",
    [HeadConfig(head="knn"), *(HeadConfig(head="linear", max_epochs=2, train_views=how) for how in TRAIN_VIEWS)],
)
def test_a_view_is_joined_to_the_same_view_of_the_same_image(
    tmp_path: Path, config: HeadConfig, resident_bytes: int | None
) -> None:
    config = replace(config, val_seed=1)
    here, there = blobs(60, views=3), blobs(60, dim=4, seed=5, views=3)
    one = write_cache(tmp_path, {"train": here}, backbone="one")
    two = write_cache(tmp_path, {"train": shuffle(there, "train")[0]}, backbone="two")
    whole = replace(
        here,
        features=np.concatenate([here.features, there.features], axis=1),
        augmented=tuple(np.concatenate(pair, axis=1) for pair in zip(here.augmented, there.augmented, strict=True)),
    )
    both = write_cache(tmp_path, {"train": whole}, backbone="both")
    memory: dict[str, Any] = {} if config.architecture.solved else {"resident_bytes": resident_bytes}
    joined = fit_head(one, config, beside=[two], runs_dir=tmp_path / "runs", **memory)
    assert joined.weights_sha256 == fit_head(both, config, runs_dir=tmp_path / "runs").weights_sha256


def test_caches_with_other_views_are_not_joined(tmp_path: Path) -> None:
    one = write_cache(tmp_path, {"train": blobs(60, views=2)}, backbone="one")
    single = write_cache(tmp_path, {"train": blobs(60)}, backbone="single")
    with pytest.raises(HeadError, match="views per image: 2 and 1"):
        fit_head(one, HeadConfig(head="linear"), beside=[single], runs_dir=tmp_path / "runs")


# --- which layers -----------------------------------------------------------------------------------------


def test_a_layer_is_named_in_all_caches_or_in_one(tmp_path: Path) -> None:
    more = {"late": blobs(60, dim=3).features}
    one = write_cache(tmp_path, {"train": replace(blobs(60), more=more)}, backbone="one")
    two = write_cache(tmp_path, {"train": replace(blobs(60), more=more)}, backbone="two")
    single = write_cache(tmp_path, {"train": blobs(60)}, backbone="single")

    def layers_of(*requested: str) -> list[tuple[str, ...]]:
        return [column.layers for column in choose_columns((one, two), requested)]

    assert layers_of("late") == [("late",), ("late",)]
    assert layers_of("one/late", "two/avgpool") == [("late",), ("avgpool",)]
    assert layers_of("late", "avgpool") == [("late", "avgpool"), ("late", "avgpool")]
    assert layers_of("late", "one/late", "two/avgpool") == [("late",), ("late", "avgpool")]
    assert [column.layers for column in choose_columns((single, one), ("late",))] == [("avgpool",), ("late",)]
    with pytest.raises(UnknownName, match="three/late"):
        layers_of("three/late")
    with pytest.raises(InvalidOption, match="two holds 2 layers"):
        layers_of("one/late")


# --- caches that are not of the same images ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": tuple(f"train/{row:05d}" for row in range(1, 61))}, "1 train images are missing.*train/00000"),
        ({"edited": (3, 5)}, "2 train images have other image bytes in two: train/00003, train/00005"),
        ({"labels": np.roll(blobs(60).labels, 1)}, "3 train images have other labels in two: train/00000, train/00020"),
    ],
    ids=["missing", "edited", "relabelled"],
)
def test_images_that_differ_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    one = write_cache(tmp_path, {"train": blobs(60), "val": blobs(30)}, backbone="one")
    splits = {"train": replace(blobs(60, dim=4), **change), "val": blobs(30, dim=4)}
    two = write_cache(tmp_path, splits, backbone="two")
    with pytest.raises(HeadError, match=message) as raised:
        fit_head(one, HeadConfig(head="linear"), beside=[two], runs_dir=tmp_path / "runs")
    assert "--limit" in str(raised.value.hint)


def test_a_split_that_another_cache_lacks_is_named(first: FeatureCache, tmp_path: Path) -> None:
    other = write_cache(tmp_path, {"train": blobs(120)}, backbone="other")
    with pytest.raises(HeadError, match="other has no test split"):
        train_head(first, "linear", beside=[other], runs_dir=tmp_path / "runs")


def test_other_classes_are_refused(first: FeatureCache, tmp_path: Path) -> None:
    other = write_cache(tmp_path, {"train": blobs(120)}, classes=("ant", "bee", "cat"), backbone="other")
    with pytest.raises(HeadError, match="differ in classes: ant, bee, cow and ant, bee, cat"):
        train_head(first, "linear", beside=[other], runs_dir=tmp_path / "runs")


def test_rows_that_are_not_finite_are_named_in_the_cache_that_has_them(first: FeatureCache, tmp_path: Path) -> None:
    wrong, order = shuffle(blobs(120, dim=4), "train")
    wrong.features[11, 2] = np.nan
    splits = {"train": wrong, "test": blobs(60, dim=4)}
    other = write_cache(tmp_path, splits, backbone="other")
    with pytest.raises(HeadError, match=rf"train rows 11 \(first: train/{order[11]:05d}\)"):
        train_head(first, "linear", beside=[other], val_seed=1, runs_dir=tmp_path / "runs")
