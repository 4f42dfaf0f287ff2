"""Several views of each train image: their rows, what determines them, and when they are reused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Forward, every_forward, jpeg, tiny_backbone, write_images

import featcache
from featcache.backbones.augmentation import Augmentation
from featcache.cache.reader import CachedSplit, FeatureCache
from featcache.cache.verification import verify
from featcache.errors import InvalidOption
from featcache.extraction.recomputation import recompute
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.extraction.resolve import augmentation_of
from featcache.extraction.run import Execution, extract
from featcache.extraction.why import why
from featcache.images import decode
from featcache.images.source import digest

VIEWS = 3


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "pictures", train=4, test=2)


@pytest.fixture
def request_(images: Path, tmp_path: Path) -> Request:
    return Request(
        dataset=images, backbone=tiny_backbone(), data_dir=tmp_path / "data", precision="fp32", views=VIEWS, view_seed=7
    )


def open_cache(request: Request, execution: Execution | None = None) -> FeatureCache:
    return FeatureCache.open(extract(request, execution).cache)


def views_of(split: CachedSplit) -> np.ndarray:
    """All views of all images: (images, views, D)."""
    return np.stack([split.layer(view=view)[:] for view in range(split.views)], axis=1)


def arrays(cache: FeatureCache) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with h5py.File(cache.path) as file:
        file.visititems(lambda name, it: found.update({name: it[()].tobytes()}) if hasattr(it, "shape") else None)
    return found


def test_a_row_is_one_image_and_train_images_have_further_arrays_of_views(request_: Request) -> None:
    extraction = extract(request_)
    cache = FeatureCache.open(extraction.cache)
    assert extraction.rows == {"train": 12, "test": 6} and extraction.computed == 18
    train = cache["train"]
    assert (train.views, cache["test"].views) == (3, 1)
    assert train.ids == tuple(sorted(set(train.ids)))
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(np.unique(views_of(train).reshape(36, -1), axis=0)) == 36
    with h5py.File(cache.path) as file:
        assert sorted(file["train/views"]) == ["1", "2"]
        assert np.array_equal(file["train/views/2/features/output"][()], train.layer(view=2)[:])
    assert (cache.spec.views, cache.spec.view_seed) == (3, 7)
    assert cache.spec.transform["augmentation"] == Augmentation().to_json()


def test_each_row_is_the_view_of_its_image(images: Path, tmp_path: Path) -> None:
    cache = featcache.extract(images, "pixels", image_size=8, views=3, view_seed=5, data_dir=tmp_path / "data")
    train = cache["train"]
    for row, number in [(0, 0), (0, 2), (3, 1), (7, 2), (11, 1)]:
        payload = (images / train.ids[row]).read_bytes()
        decoded = np.asarray(Image.open(images / train.ids[row]).convert("RGB"))
        view = Augmentation().view(decoded, digest=digest(payload), number=number, seed=5)
        expected = np.asarray(Image.fromarray(view).resize((8, 8), Image.Resampling.BILINEAR))
        assert np.array_equal(train.layer(view=number)[row].reshape(3, 8, 8).transpose(1, 2, 0), expected)


def test_views_are_squashed_also_where_plain_images_are_cropped(images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 8, "data_dir": tmp_path / "data"}
    cropped = featcache.extract(images, "pixels", resize="crop", views=2, **options)["train"]
    squashed = featcache.extract(images, "pixels", views=2, **options)["train"]
    assert np.array_equal(cropped.layer(view=1)[:], squashed.layer(view=1)[:])


@pytest.mark.parametrize("execution", [Execution(segment_rows=5), Execution(batch_size=8, workers=1, segment_rows=1)])
def test_views_do_not_depend_on_segments_batches_or_workers(
    execution: Execution, request_: Request, tmp_path: Path
) -> None:
    assert arrays(open_cache(request_, execution)) == arrays(open_cache(replace(request_, data_dir=tmp_path / "other")))


def test_a_view_is_the_same_in_any_set_and_at_any_place(request_: Request, images: Path, tmp_path: Path) -> None:
    whole = open_cache(request_)["train"]
    few = tmp_path / "few"
    for number, name in enumerate(("train/eel/03.jpg", "train/cat/01.jpg")):
        (few / "train" / "all").mkdir(parents=True, exist_ok=True)
        shutil.copy(images / name, few / "train" / "all" / f"{number}.jpg")
    other = open_cache(replace(request_, dataset=few, data_dir=tmp_path / "elsewhere"))["train"]
    for place, name in enumerate(("train/eel/03.jpg", "train/cat/01.jpg")):
        assert np.array_equal(views_of(whole)[whole.ids.index(name)], views_of(other)[place])


def test_another_seed_and_another_number_are_other_caches(request_: Request) -> None:
    first = open_cache(request_)
    seeded = open_cache(replace(request_, view_seed=8))
    assert first.name != seeded.name
    same = views_of(first["train"]) == views_of(seeded["train"])
    assert same.all(axis=2).tolist() == [[True, False, False]] * 12


def test_views_that_are_not_mirrored_are_another_cache(request_: Request) -> None:
    first = open_cache(request_)
    other = extract(replace(request_, view_flip=False))
    assert other.fingerprint != first.spec.fingerprint
    # The plain views are the same with any augmentation, but the caches do not record that: all rows are computed.
    assert other.computed == 18
    assert extract(replace(request_, view_flip=False)).computed == 0
    assert FeatureCache.open(other.cache).spec.views_description.endswith("augmented with seed 7, none mirrored")
    reason = why(replace(request_, view_flip=False, view_seed=1), reporter=LogReporter())
    fields = {difference.field for one in reason.nearest for difference in one.differences}
    assert "transform.augmentation.flip" in fields


def test_without_mirroring_a_view_is_the_same_or_the_mirror_image(images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 8, "views": 4, "data_dir": tmp_path / "data"}
    one, other = (
        views_of(featcache.extract(images, "pixels", view_flip=flip, **options)["train"]).reshape(-1, 3, 8, 8)
        for flip in (True, False)
    )
    same = (one == other).all(axis=(1, 2, 3))
    # Colours and resized columns are rounded, so a mirror image may differ by one.
    mirrored = (np.abs(one[..., ::-1].astype(int) - other) <= 1).all(axis=(1, 2, 3))
    assert (same | mirrored).all()
    assert same[::4].all() and 0 < (~same).sum() < 36


def test_edited_images_cost_only_their_own_views(request_: Request, images: Path, tmp_path: Path) -> None:
    extract(request_)
    for number in range(3):
        (images / f"train/dog/0{number}.jpg").write_bytes(jpeg(900 + number))
    (images / "test/dog/00.jpg").write_bytes(jpeg(950))
    again = extract(request_)
    assert (again.computed, again.reused) == (3 + 1, 14)
    assert arrays(FeatureCache.open(again.cache)) == arrays(open_cache(replace(request_, data_dir=tmp_path / "fresh")))


def test_a_plain_cache_gives_the_first_views_and_takes_them(request_: Request, tmp_path: Path) -> None:
    plain, other = replace(request_, views=1, view_seed=0), replace(request_, data_dir=tmp_path / "other")
    extract(plain)
    grown = extract(request_)
    assert (grown.computed, grown.reused) == (12, 6)
    assert arrays(FeatureCache.open(grown.cache)) == arrays(open_cache(other))
    back = extract(replace(plain, data_dir=tmp_path / "other"))
    assert (back.computed, back.reused) == (0, 18)


def test_more_views_cost_only_those_that_are_new(request_: Request) -> None:
    extract(request_)
    more = extract(replace(request_, views=5))
    assert (more.computed, more.reused) == (12, 6)
    fewer = extract(replace(request_, views=2))
    assert (fewer.computed, fewer.reused) == (0, 18)


def test_auto_takes_the_precision_of_a_cache_with_other_views(request_: Request) -> None:
    extract(replace(request_, views=1, view_seed=0))
    assert extract(replace(request_, precision="auto")).computed == 12


def test_an_extraction_interrupted_between_views_continues(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0

    def interrupt(forward: Forward, images: np.ndarray | torch.Tensor) -> object:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise KeyboardInterrupt
        return forward(images)

    with monkeypatch.context() as patched:
        every_forward(patched, interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(request_, Execution(batch_size=8, segment_rows=2))
    after = extract(request_, Execution(batch_size=8, segment_rows=2))
    # 16 is not a multiple of 3: the sixth image had one of its views, and the fifth was alone in its segment.
    assert (after.computed, after.reused) == (18 - 4, 4)
    assert arrays(FeatureCache.open(after.cache)) == arrays(open_cache(replace(request_, data_dir=tmp_path / "other")))


def test_an_image_that_is_in_train_twice_and_in_test_is_computed_once(request_: Request, images: Path) -> None:
    content = (images / "train/cat/00.jpg").read_bytes()
    for name in ("train/cat/zz.jpg", "test/dog/zz.jpg"):
        (images / name).write_bytes(content)
    extraction = extract(request_)
    train, test = (FeatureCache.open(extraction.cache)[split] for split in ("train", "test"))
    first, second = train.ids.index("train/cat/00.jpg"), train.ids.index("train/cat/zz.jpg")
    tested = test.ids.index("test/dog/zz.jpg")
    assert np.array_equal(views_of(train)[first], views_of(train)[second])
    assert np.array_equal(train.features[first], test.features[tested])
    assert not np.array_equal(train.layer(view=1)[first], test.features[tested])


def test_a_skipped_image_is_left_out_with_all_its_views(request_: Request, images: Path) -> None:
    (images / "train/cat/02.jpg").write_bytes(b"no image at all")
    extraction = extract(request_, Execution(on_error="skip"))
    assert extraction.rows == {"train": 11, "test": 6}
    assert [one.id for one in extraction.skipped] == ["train/cat/02.jpg"]
    assert extract(request_, Execution(on_error="skip")).computed == 0
    (images / "train/cat/02.jpg").write_bytes(jpeg(77))
    repaired = extract(request_, Execution(on_error="skip"))
    assert (repaired.rows["train"], repaired.computed) == (12, 1)


def test_an_image_is_decoded_once_for_all_its_views(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def count(payload: Any, name: str) -> np.ndarray:
        decoded.append(name)
        return decode(payload, name)

    monkeypatch.setattr("featcache.extraction.pipeline.decode", count)
    extract(request_, Execution(batch_size=64))
    assert len(decoded) == len(set(decoded)) == 18


@pytest.mark.parametrize("spoil", [None, "row"])
def test_full_verification_covers_every_view(spoil: str | None, request_: Request) -> None:
    cache = open_cache(request_)
    if spoil:
        place = cache.file.place("train/views/2/features/output")
        content = bytearray(cache.path.read_bytes())
        content[place.offset + 4 * place.nbytes // 12] ^= 1
        cache.path.write_bytes(content)
    checked = verify(cache.path, full=True)
    assert checked.sound is (spoil is None)


def test_views_computed_again_are_equal(images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 8, "data_dir": tmp_path / "data"}
    cache = featcache.extract(images, "pixels", views=4, view_seed=3, **options)
    again = recompute(cache, 54, seed=0, data_dir=tmp_path / "data", device="cpu")
    assert (again.rows, again.equal) == (18, 18)
    some = recompute(cache, 7, seed=1, data_dir=tmp_path / "data", device="cpu")
    assert (some.rows, some.equal) == (7, 7)


def test_views_are_computed_again_with_the_numbers_they_were_made_with(images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 8, "data_dir": tmp_path / "data"}
    cache = featcache.extract(images, "pixels", views=3, view_flip=False, **options)
    again = recompute(cache, 42, seed=0, data_dir=tmp_path / "data", device="cpu")
    assert (again.rows, again.equal) == (18, 18)


def test_views_made_in_an_unknown_way_cannot_be_computed_again(request_: Request) -> None:
    spec = open_cache(request_).spec
    strange = {**Augmentation().to_json(), "hue": 0.1}
    with pytest.raises(InvalidOption, match="no augmentation of this version"):
        augmentation_of(replace(spec, transform={**spec.transform, "augmentation": strange}))


def test_why_counts_rows_and_names_the_views(request_: Request) -> None:
    extract(replace(request_, views=1, view_seed=0))
    reason = why(request_, reporter=LogReporter())
    assert (reason.state, reason.rows, reason.to_compute) == ("partial", 18, 12)
    extract(request_)
    reason = why(request_, reporter=LogReporter())
    assert (reason.state, reason.to_compute, reason.new, reason.changed, reason.gone) == ("hit", 0, (), (), ())
    reason = why(replace(request_, view_seed=9), reporter=LogReporter())
    fields = {difference.field for one in reason.nearest for difference in one.differences}
    assert "view_seed" in fields


def test_the_suggested_command_contains_the_views(request_: Request) -> None:
    assert "--views 3 --view-seed 7" in request_.command
    assert "flip" not in request_.command
    assert "--no-view-flip" in replace(request_, view_flip=False).command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 0, "view_seed": 0}, "--views of at least 1"),
        ({"views": 1, "view_seed": 3}, "--view-seed has no effect without --views"),
        ({"views": 1, "view_seed": 0, "view_flip": False}, "--no-view-flip has no effect without --views"),
        ({"splits": ("test",)}, "only train images have views"),
    ],
)
def test_invalid_views_are_refused(options: dict[str, Any], message: str, request_: Request) -> None:
    with pytest.raises(InvalidOption, match=message):
        replace(request_, **options)


def test_a_set_without_train_has_no_views(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "set" / "test" / name).mkdir(parents=True)
        (tmp_path / "set" / "test" / name / "0.jpg").write_bytes(jpeg(1))
    with pytest.raises(InvalidOption, match="only train images have views"):
        extract(Request(dataset=tmp_path / "set", backbone=tiny_backbone(), data_dir=tmp_path / "data", views=2))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda request: replace(request, views=1, view_seed=0), id="plain"),
        pytest.param(lambda request: replace(request, views=2), id="fewer"),
    ],
)
def test_rows_of_a_view_are_the_same_whatever_other_views_there_are(
    changed: Callable[[Request], Request], request_: Request, tmp_path: Path
) -> None:
    many = open_cache(request_)["train"]
    other = open_cache(replace(changed(request_), data_dir=tmp_path / "other"))["train"]
    assert np.array_equal(views_of(other), views_of(many)[:, : other.views])
    assert np.array_equal(other.digests, many.digests)


def test_a_head_trains_on_all_views_and_is_evaluated_on_plain_images(tmp_path: Path) -> None:
    images = write_images(tmp_path / "more", train=10, test=2)
    cache = featcache.extract(images, tiny_backbone(), views=3, precision="fp32", data_dir=tmp_path / "data")
    notes: list[str] = []
    run = featcache.train_head(cache, "linear", max_epochs=1, runs_dir=tmp_path / "runs", report=notes.append)
    assert run.training.images == {"train": 24, "val": 6, "test": 6}
    assert len(run.predictions("val").ids) == len(set(run.predictions("val").ids)) == 6
    assert any("2 augmented" in note and "plain images" in note for note in notes)
    assert run.features.views_description == "3 views of each train image: plain, and 2 augmented with seed 0"
