"""Training on augmented views: on all of them in every epoch, or on one that is drawn for each image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_caches import LAYER, Blobs, blobs, write_cache

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, InvalidOption
from featcache.heads.config import HeadConfig
from featcache.rows import batches
from featcache.rows.batches import Batches, ResidentBatches, StreamedBatches
from featcache.rows.cuts import cut_cache
from featcache.rows.features import FeatureRows
from featcache.rows.views import DEFAULT_TRAIN_VIEWS, TRAIN_VIEWS, TrainViews
from featcache.runs.fit import fit_head, train_head
from featcache.runs.run import Run
from featcache.sweeps.api import sweep
from featcache.sweeps.grid import combinations, parse_grid
from featcache.sweeps.options import SweepOptions
from featcache.sweeps.plan import SweepPlan, rounds_of
from featcache.training.checkpoints import rows_digest
from featcache.training.fitting import standardisation
from featcache.training.preparation import prepare
from featcache.training.reading import read_batches

CPU = torch.device("cpu")
IMAGES, VIEWS, DIM = 120, 3, 16
KINDS = (ResidentBatches, StreamedBatches)
QUICK = HeadConfig(head="mlp:8", max_epochs=4, val_seed=1)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 rows and windows of 32, for rows of 32 bytes: a small set is streamed like a large one."""
    monkeypatch.setattr(batches, "BLOCK_BYTES", 4 * 32)
    monkeypatch.setattr(batches, "WINDOW_BYTES", 32 * 32)
    monkeypatch.setattr(batches, "WHOLE_BYTES", 32 * 32)
    monkeypatch.setattr(batches, "PIECE_BYTES", 10 * 32)
    monkeypatch.setattr(batches, "TAKEN_BYTES", 3 * 32)


def blobs_with_numbers(images: int = IMAGES) -> Blobs:
    """Features that contain the numbers of their image and view."""
    one = blobs(images)
    views = [np.full((images, DIM), view, np.float16) for view in range(VIEWS)]
    for view in views:
        view[:, 0] = np.arange(images)
    return replace(one, features=views[0], augmented=tuple(views[1:]))


def make_batches(
    cache: FeatureCache, kind: type[Batches], *, draw: bool, seed: int = 0, batch_size: int = 8
) -> Batches:
    """All train rows in all views."""
    train = cut_cache(cache, val_fraction=0.2, val_seed=1).train
    rows = FeatureRows.of(cache, train, (LAYER,), views=VIEWS)
    return kind(rows, batch_size=batch_size, seed=seed, device=CPU, draw=draw)


def views_of_epoch(rows: Batches, epoch: int) -> list[tuple[int, int]]:
    """(image, view) of each row of an epoch, after a check that its label is that of the image."""
    found = []
    for features, labels in rows.epoch(epoch):
        images = features[:, 0].long()
        assert torch.equal(labels, torch.from_numpy(blobs(IMAGES).labels)[images])
        found += list(zip(images.tolist(), features[:, 1].long().tolist(), strict=True))
    return found


# --- batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [8, 100], ids=["batches in windows", "batches in pieces"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_has_every_view_of_every_image_once_per_epoch(
    tmp_path: Path, small_windows: None, kind: type[Batches], batch_size: int
) -> None:
    train = make_batches(
        write_cache(tmp_path, {"train": blobs_with_numbers()}), kind, draw=False, batch_size=batch_size
    )
    images = train.rows.chosen.rows.tolist()
    for epoch in range(3):
        assert sorted(views_of_epoch(train, epoch)) == [(image, view) for image in images for view in range(VIEWS)]
    assert len(train) == len(list(train.epoch(0))) and train.epoch_rows == VIEWS * len(images)
    assert views_of_epoch(train, 0) != views_of_epoch(train, 1)


@pytest.mark.parametrize("batch_size", [8, 100], ids=["batches in windows", "batches in pieces"])
@pytest.mark.parametrize("kind", KINDS)
def test_draw_has_every_image_once_per_epoch_in_a_changing_view(
    tmp_path: Path, small_windows: None, kind: type[Batches], batch_size: int
) -> None:
    train = make_batches(write_cache(tmp_path, {"train": blobs_with_numbers()}), kind, draw=True, batch_size=batch_size)
    images = train.rows.chosen.rows.tolist()
    views = [dict(views_of_epoch(train, epoch)) for epoch in range(40)]
    for epoch, drawn in enumerate(views):
        assert sorted(image for image, _ in views_of_epoch(train, epoch)) == images == sorted(drawn)
    assert len(train) == len(list(train.epoch(0))) and train.epoch_rows == len(images)
    shares = np.bincount([view for drawn in views for view in drawn.values()]) / (40 * len(images))
    assert shares == pytest.approx([1 / VIEWS] * VIEWS, abs=0.03)
    # Every image occurs in each of its views, and every epoch has all views.
    assert all({drawn[image] for drawn in views} == set(range(VIEWS)) for image in images)
    assert all(set(drawn.values()) == set(range(VIEWS)) for drawn in views)


@pytest.mark.parametrize("draw", [False, True])
def test_resident_and_streamed_views_are_the_same(tmp_path: Path, small_windows: None, draw: bool) -> None:
    cache = write_cache(tmp_path, {"train": blobs_with_numbers()})
    resident, streamed = (make_batches(cache, kind, draw=draw, seed=5) for kind in KINDS)
    assert views_of_epoch(resident, 2) == views_of_epoch(streamed, 2)
    assert [labels.tolist() for _, labels in resident.in_order()] == [
        labels.tolist() for _, labels in streamed.in_order()
    ]


def test_a_draw_depends_on_the_seed_only(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": blobs_with_numbers()})
    first, again, other = (
        dict(views_of_epoch(make_batches(cache, KINDS[0], draw=True, seed=seed), 0)) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_rows_are_ordered_view_after_view_with_their_labels(tmp_path: Path) -> None:
    for kind in KINDS:
        train = make_batches(write_cache(tmp_path, {"train": blobs_with_numbers()}), kind, draw=True)
        features, labels = (torch.cat(parts) for parts in zip(*train.in_order(), strict=True))
        images = train.rows.chosen.rows.tolist()
        assert features[:, :2].tolist() == [[image, view] for view in range(VIEWS) for image in images]
        assert torch.equal(labels, train.targets)
        assert np.array_equal(train.rows.targets, labels.numpy())


def test_features_are_standardised_by_all_views(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": blobs(IMAGES, views=VIEWS)})
    for kind in KINDS:
        train = make_batches(cache, kind, draw=True)
        rows = train.rows.chosen.rows
        every = np.concatenate([cache["train"].gather(LAYER, rows, view) for view in range(VIEWS)]).astype(np.float64)
        found = standardisation(train)
        assert found.mean == pytest.approx(every.mean(axis=0), abs=1e-6)
        assert found.deviation == pytest.approx(every.std(axis=0), rel=1e-6)


def test_a_view_that_is_not_finite_is_named(tmp_path: Path) -> None:
    train = blobs_with_numbers()
    train.augmented[1][17, 3] = np.nan
    for kind in KINDS:
        with pytest.raises(HeadError, match=r"layer avgpool, view 2, train rows 17 \(first: train/00017\)"):
            list(make_batches(write_cache(tmp_path, {"train": train}), kind, draw=False).in_order())


@pytest.mark.parametrize("train_views", [None, *TRAIN_VIEWS])
def test_read_batches_reads_the_rows_of_train_head(tmp_path: Path, train_views: TrainViews | None) -> None:
    cache = write_cache(tmp_path, {"train": blobs_with_numbers(), "test": blobs(9)})
    train = read_batches(cache, "train", val_seed=1, train_views=train_views)
    own = views_of_epoch(train, 1)
    assert len(own) == (96 if (train_views or DEFAULT_TRAIN_VIEWS) == "draw" else VIEWS * 96)
    for part, images in (("val", 24), ("test", 9)):
        assert read_batches(cache, part, val_seed=1, train_views=train_views).epoch_rows == images  # type: ignore[arg-type]  # the parts are literals


# --- heads ------------------------------------------------------------------------------------------------


def fit_run(cache: FeatureCache, config: HeadConfig, runs_dir: Path, resident_bytes: int | None = None) -> Run:
    return fit_head(cache, config, runs_dir=runs_dir, resident_bytes=resident_bytes)


def with_equal_views(one: Blobs) -> Blobs:
    return replace(one, augmented=(one.features,) * (VIEWS - 1))


def repeat_images(one: Blobs) -> Blobs:
    """A plain split that has every image as many times as there are views."""
    return Blobs(features=np.tile(one.features, (VIEWS, 1)), labels=np.tile(one.labels, VIEWS))


@pytest.mark.parametrize("resident_bytes", [None, 0], ids=["resident", "streamed"])
@pytest.mark.parametrize("head", ["mlp:8", "linear", "logreg", "ridge", "centroid", "knn"])
def test_equal_views_train_the_same_head_as_repeated_images(
    tmp_path: Path, small_windows: None, head: str, resident_bytes: int | None
) -> None:
    train, val = blobs(IMAGES), blobs(30, seed=1)
    viewed = write_cache(tmp_path / "viewed", {"train": with_equal_views(train), "val": val})
    plain = write_cache(tmp_path / "plain", {"train": repeat_images(train), "val": val})
    solved = HeadConfig(head=head).architecture.solved
    config = HeadConfig(head=head) if solved else HeadConfig(head=head, max_epochs=3)
    every = config if solved else replace(config, train_views="all")
    one = fit_run(viewed, every, tmp_path / "runs", resident_bytes)
    other = fit_run(plain, config, tmp_path / "runs", resident_bytes)
    assert one.weights_sha256 == other.weights_sha256
    assert (one.training.images["train"], other.training.images["train"]) == (IMAGES, VIEWS * IMAGES)


@pytest.mark.parametrize("resident_bytes", [None, 0], ids=["resident", "streamed"])
def test_drawing_from_equal_views_trains_the_same_head_as_plain_images(
    tmp_path: Path, small_windows: None, resident_bytes: int | None
) -> None:
    viewed = write_cache(tmp_path / "viewed", {"train": with_equal_views(blobs(IMAGES))})
    plain = write_cache(tmp_path / "plain", {"train": blobs(IMAGES)})
    # Not standardised: the mean of three times as many rows may differ in its last bits.
    config = replace(QUICK, standardize=False)
    one = fit_run(viewed, replace(config, train_views="draw"), tmp_path / "runs", resident_bytes)
    assert one.weights_sha256 == fit_run(plain, config, tmp_path / "runs", resident_bytes).weights_sha256


@pytest.mark.parametrize("train_views", TRAIN_VIEWS)
def test_a_head_learns_from_views_and_is_the_same_again(tmp_path: Path, train_views: TrainViews) -> None:
    splits = {"train": blobs(IMAGES, views=VIEWS), "test": blobs(60, seed=1)}
    cache = write_cache(tmp_path, splits)
    config = replace(QUICK, train_views=train_views, max_epochs=20, lr=1e-2)
    run, again, streamed, other = (
        fit_run(cache, one, tmp_path / "runs", memory)
        for one, memory in ((config, None), (config, None), (config, 0), (replace(config, seed=1), None))
    )
    assert run.training.test is not None and run.training.test.accuracy > 0.9
    assert run.weights_sha256 == again.weights_sha256 == streamed.weights_sha256 != other.weights_sha256


def test_a_head_learns_from_the_augmented_views(tmp_path: Path) -> None:
    # Plain train images have no information; only their views have features like the test images.
    real = blobs(IMAGES, views=2)
    train = replace(real, features=np.zeros_like(real.features), augmented=(real.features, *real.augmented))
    cache = write_cache(tmp_path, {"train": train, "val": blobs(30, seed=2), "test": blobs(60, seed=1)})
    for config in (*(replace(QUICK, train_views=how, max_epochs=30, lr=1e-2) for how in TRAIN_VIEWS),
                   HeadConfig(head="logreg"), HeadConfig(head="knn")):  # fmt: skip
        run = fit_run(cache, config, tmp_path / "runs")
        assert run.training.test is not None and run.training.test.accuracy > 0.9


@pytest.mark.parametrize("views", [1, VIEWS])
def test_val_and_test_are_the_same_plain_images_whatever_train_has(tmp_path: Path, views: int) -> None:
    train = blobs(IMAGES, views=views)
    cache = write_cache(tmp_path, {"train": train, "test": blobs(60, seed=1)})
    run = fit_run(cache, QUICK, tmp_path / "runs")
    plain = fit_run(write_cache(tmp_path / "plain", {"train": blobs(IMAGES)}), QUICK, tmp_path / "runs")
    assert run.predictions("val").ids == plain.predictions("val").ids and len(run.predictions("val").ids) == 24
    assert run.training.images == {"train": 96, "val": 24, "test": 60}
    rows = [int(name.rpartition("/")[2]) for name in run.predictions("val").ids]
    assert np.array_equal(run.predict(train.features[rows]), run.predictions("val").outputs)


def test_the_default_is_stored_in_the_run(tmp_path: Path) -> None:
    viewed = write_cache(tmp_path / "viewed", {"train": blobs(IMAGES, views=VIEWS)})
    plain = write_cache(tmp_path / "plain", {"train": blobs(IMAGES)})

    def train_views_of(cache: FeatureCache, head: str) -> str | None:
        return Run.load(train_head(cache, head, val_seed=1, runs_dir=tmp_path / "runs").folder).config.train_views

    assert train_views_of(viewed, "linear") == DEFAULT_TRAIN_VIEWS
    assert train_views_of(plain, "linear") is None and train_views_of(viewed, "ridge") is None


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (replace(QUICK, train_views="all"), "augmented with seed 0, all of them in every epoch; val and test are"),
        (replace(QUICK, train_views="draw"), "seed 0, one of them drawn for each image in every epoch; val and test"),
        (HeadConfig(head="ridge", val_seed=1), "augmented with seed 0; val and test are evaluated on plain images"),
    ],
)
def test_the_views_of_train_are_reported_and_stored(tmp_path: Path, config: HeadConfig, text: str) -> None:
    cache = write_cache(tmp_path, {"train": blobs(IMAGES, views=VIEWS)})
    messages: list[str] = []
    run = fit_head(cache, config, runs_dir=tmp_path / "runs", report=messages.append)
    for notes in (messages, run.training.notes):
        assert [note for note in notes if note.startswith("train sees 3 views of each train image") and text in note]


@pytest.mark.parametrize("train_views", TRAIN_VIEWS)
def test_views_of_a_cache_that_has_none_are_refused(tmp_path: Path, train_views: TrainViews) -> None:
    cache = write_cache(tmp_path, {"train": blobs(IMAGES)})
    for refused in (
        lambda: train_head(cache, "linear", train_views=train_views, runs_dir=tmp_path / "runs"),
        lambda: sweep(cache, grid={"train_views": [train_views]}, runs_dir=tmp_path / "runs"),
        lambda: read_batches(cache, train_views=train_views),
    ):
        with pytest.raises(InvalidOption, match=f"--train-views {train_views} has no effect") as raised:
            refused()
        assert "--views" in str(raised.value.hint)


def test_a_head_without_epochs_sees_all_views_and_refuses_the_option() -> None:
    for train_views in TRAIN_VIEWS:
        with pytest.raises(InvalidOption, match=r"the head knn is solved.*--train-views would do nothing"):
            HeadConfig(head="knn", train_views=train_views)
    assert not HeadConfig(head="knn").for_views(VIEWS).draws_views
    with pytest.raises(InvalidOption) as raised:
        HeadConfig(train_views="drawn")  # type: ignore[arg-type]  # the point of the test
    assert "draw" in str(raised.value.hint)


def test_other_views_have_another_digest(tmp_path: Path) -> None:
    train = blobs(IMAGES, views=2)
    digests = []
    for name, augmented in (("one", train.augmented), ("other", (train.augmented[0] + 1,))):
        cache = write_cache(tmp_path / name, {"train": replace(train, augmented=augmented)})
        digests.append(rows_digest(prepare(cache, QUICK, device=CPU)))
    assert digests[0] != digests[1]


# --- many heads -------------------------------------------------------------------------------------------


def test_heads_of_a_sweep_are_trained_on_the_same_views_as_single_heads(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": blobs(IMAGES, views=VIEWS)})
    grid: dict[str, list[Any]] = {"train_views": ["all", "draw"], "lr": [1e-3, 1e-2]}
    found = sweep(cache, "linear", grid=grid, seeds=2, max_epochs=3, val_seed=1, runs_dir=tmp_path / "runs")
    assert sum(found.stacks) == 8 and max(found.stacks) > 1
    assert {row.values["train_views"] for row in found.rows} == {"all", "draw"}
    for row in found.rows:
        for head in row.heads:
            alone = fit_run(cache, replace(row.config, seed=head.seed), tmp_path / "runs")
            assert head.val is not None and head.val.loss == pytest.approx(alone.training.val.loss, rel=1e-3)
    assert [note for note in found.notes if note.startswith("train sees 3 views") and "every epoch" not in note]


def test_train_views_can_be_varied_in_a_grid() -> None:
    found = combinations({}, parse_grid(["train-views=all,draw", "head=linear,knn"]))
    assert [(one.config.head, one.config.train_views) for one in found] == [
        ("linear", "all"),
        ("knn", None),
        ("linear", "draw"),
    ]


PLANS: dict[str, dict[str, Any]] = {"folds": {"folds": 3}, "shots": {"shots": [2], "draws": 2}}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("train_views", TRAIN_VIEWS)
def test_folds_and_shots_have_all_views_of_their_images(tmp_path: Path, train_views: TrainViews, plan: str) -> None:
    cache = write_cache(tmp_path, {"train": blobs(IMAGES, views=VIEWS), "val": blobs(30, seed=2)})
    planned = SweepPlan.of({"head": "linear", "train_views": train_views}, {}, SweepOptions(**PLANS[plan]))
    for case in (case for round_ in rounds_of(cache, planned) for case in round_.cases):
        rows = prepare(cache, planned.first, device=CPU, cut=case.cut).rows
        assert (len(rows["train"]), len(rows["val"])) == (VIEWS * len(case.cut.train), 30)
        assert case.held is None or len(case.held) == IMAGES // 3
    found = sweep(cache, "linear", max_epochs=2, runs_dir=tmp_path / "runs", train_views=train_views, **PLANS[plan])
    assert found.best.complete and found.best.config.train_views == train_views
