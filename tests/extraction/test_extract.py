"""images + backbone -> cache: which rows are computed, which are reused, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLASSES, Forward, count_batches, every_forward, jpeg, tiny_backbone, write_images

import featcache
from featcache.cache.reader import FeatureCache
from featcache.errors import (
    CacheBusy,
    CacheUnreadable,
    CacheUnwritable,
    ExtractionError,
    FeatcacheError,
    ImageError,
    InvalidOption,
    SourceError,
)
from featcache.extraction.request import Request
from featcache.extraction.result import Extraction
from featcache.extraction.run import Execution, extract
from featcache.images import decode
from featcache.images.samples import Sample
from featcache.images.sources.folder import FolderSource


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "pictures")


@pytest.fixture
def request_(images: Path, tmp_path: Path) -> Request:
    return Request(dataset=images, backbone=tiny_backbone(), data_dir=tmp_path / "data")


def open_cache(extraction: Extraction) -> FeatureCache:
    return FeatureCache.open(extraction.cache)


def arrays(cache: Path) -> dict[str, bytes]:
    """The bytes of every array, which must not depend on how the cache was made."""
    found: dict[str, bytes] = {}
    with h5py.File(cache) as file:
        file.visititems(lambda name, it: found.update({name: it[()].tobytes()}) if hasattr(it, "shape") else None)
    return found


def test_the_rows_are_those_of_the_set_in_source_order(request_: Request) -> None:
    extraction = extract(request_)
    cache = open_cache(extraction)
    assert extraction.rows == {"train": 30, "test": 12}
    assert cache.classes == CLASSES
    assert cache["train"].ids[:2] == ("train/cat/00.jpg", "train/cat/01.jpg")
    assert list(cache["train"].ids) == sorted(cache["train"].ids)
    assert cache["train"].labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert (extraction.computed, extraction.reused, extraction.skipped) == (42, 0, ())


def test_features_equal_an_independent_computation(request_: Request, images: Path) -> None:
    cache = open_cache(extract(replace(request_, dtype="float32", precision="fp32")))
    from tiny import TinyNetwork

    for row in (0, 17, 29):
        picture = Image.open(images / cache["train"].ids[row]).resize((16, 16), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        with torch.inference_mode():
            expected = TinyNetwork()((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))[0].numpy()
        assert np.allclose(cache["train"].features[row], expected, rtol=1e-4, atol=1e-6)


def test_on_a_hit_nothing_is_computed_and_the_file_stays(request_: Request) -> None:
    first = extract(request_)
    before = first.cache.stat()
    again = extract(request_)
    assert (again.computed, again.reused, again.images_per_s) == (0, 42, None)
    assert again.cache.stat().st_mtime_ns == before.st_mtime_ns


def test_no_segments_are_left_behind(request_: Request) -> None:
    extraction = extract(request_, Execution(segment_rows=8))
    assert [path.suffix for path in extraction.cache.parent.iterdir() if path.suffix != ".lock"] == [".h5"]


@pytest.mark.parametrize(
    "execution", [{"segment_rows": 5, "batch_size": 8}, {"batch_size": 16, "workers": 1}, {"workers": 5}]
)
def test_rows_do_not_depend_on_segments_batches_or_workers(
    execution: dict[str, int], request_: Request, tmp_path: Path
) -> None:
    reference = arrays(extract(request_).cache)
    other = extract(replace(request_, data_dir=tmp_path / "other"), Execution(**execution))  # type: ignore[arg-type]
    assert arrays(other.cache) == reference


def test_a_limit_takes_the_same_images_and_reuses_them_for_a_larger_one(request_: Request) -> None:
    small = extract(replace(request_, limit=6))
    assert small.rows == {"train": 6, "test": 6}
    assert np.bincount(open_cache(small)["train"].labels).tolist() == [2, 2, 2]
    large = extract(request_)
    assert (large.computed, large.reused) == (42 - 12, 12)
    kept = dict(zip(open_cache(small)["train"].ids, open_cache(small)["train"].features[:], strict=True))
    for name, row in zip(open_cache(large)["train"].ids, open_cache(large)["train"].features[:], strict=True):
        assert name not in kept or np.array_equal(kept[name], row)


def test_only_new_and_changed_images_are_computed(request_: Request, images: Path, tmp_path: Path) -> None:
    extract(request_)
    (images / "train/cat/00.jpg").write_bytes(jpeg(1000))
    (images / "train/dog/99.jpg").write_bytes(jpeg(1001))
    (images / "test/eel/03.jpg").unlink()
    after = extract(request_)
    assert (after.computed, after.reused) == (2, 40)
    fresh = extract(replace(request_, data_dir=tmp_path / "fresh"))
    assert arrays(after.cache) == arrays(fresh.cache)


def test_relabelling_and_moving_costs_nothing(request_: Request, images: Path, tmp_path: Path) -> None:
    first = extract(request_)
    (images / "train/cat/00.jpg").rename(images / "train/dog/00-was-a-cat.jpg")
    os.utime(images / "train/cat/01.jpg")
    relabelled = extract(request_)
    assert (relabelled.computed, relabelled.fingerprint) == (0, first.fingerprint)
    cache = open_cache(relabelled)
    row = cache["train"].ids.index("train/dog/00-was-a-cat.jpg")
    assert cache.classes[cache["train"].labels[row]] == "dog"
    copied = extract(replace(request_, dataset=shutil.copytree(images, tmp_path / "copy")))
    assert copied.computed == 0
    assert arrays(copied.cache) == arrays(relabelled.cache)


def test_a_zip_and_a_folder_of_the_same_images_share_rows(request_: Request, images: Path, tmp_path: Path) -> None:
    extract(request_)
    archive = shutil.make_archive(str(tmp_path / "pictures-zipped"), "zip", images)
    zipped = extract(replace(request_, dataset=archive))
    assert (zipped.computed, zipped.rows) == (0, {"train": 30, "test": 12})


def test_repeated_images_are_computed_once(request_: Request, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (images / "train/cat/00.jpg").read_bytes()
    (images / "train/cat/zz.jpg").write_bytes(content)
    calls = count_batches(monkeypatch)
    extraction = extract(replace(request_, precision="fp32"))
    cache = open_cache(extraction)
    rows = [cache["train"].ids.index(f"train/cat/{name}.jpg") for name in ("00", "zz")]
    first, second = cache["train"].features[rows]
    assert np.array_equal(first, second)
    assert extraction.computed == 43
    assert sum(calls) == 64  # 42 different images in two batches of 32, the second one padded


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"precision": "fp32"},
        {"backbone": tiny_backbone(seed=1)},
        {"backbone": tiny_backbone(image_size=18)},
    ],
)
def test_options_that_change_features_give_another_cache(change: dict[str, object], request_: Request) -> None:
    first = extract(replace(request_, precision="bf16"))
    other = extract(replace(replace(request_, precision="bf16"), **change))  # type: ignore[arg-type]
    assert other.fingerprint != first.fingerprint
    assert other.cache != first.cache
    assert other.computed == 42


def test_auto_precision_is_that_of_the_existing_cache(request_: Request) -> None:
    for precision in ("fp32", "bf16"):
        first = extract(replace(request_, precision=precision))
        assert extract(request_).fingerprint == first.fingerprint
        first.cache.unlink()


# --- images that cannot be read ----------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no image at all", jpeg(5)[:300]], ids=["empty", "text", "truncated"])
def test_a_bad_image_fails_the_run_before_a_cache_is_written(content: bytes, request_: Request, images: Path) -> None:
    (images / "train/dog/05.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"train/dog/05\.jpg"):
        extract(request_)
    assert not list(request_.features_dir.glob("*.h5*"))


def test_a_bad_image_can_be_skipped_and_is_listed(request_: Request, images: Path) -> None:
    (images / "train/dog/05.jpg").write_bytes(b"no image at all")
    extraction = extract(request_, Execution(on_error="skip"))
    assert [one.id for one in extraction.skipped] == ["train/dog/05.jpg"]
    assert "train/dog/05.jpg" not in open_cache(extraction)["train"].ids
    assert (extraction.rows["train"], extraction.computed) == (29, 41)
    again = extract(request_, Execution(on_error="skip"))
    assert (again.computed, again.reused, len(again.skipped)) == (0, 41, 1)


def test_a_cache_with_skipped_images_is_no_hit_for_fail(request_: Request, images: Path) -> None:
    (images / "train/dog/05.jpg").write_bytes(b"no image at all")
    skipped = extract(request_, Execution(on_error="skip"))
    before = skipped.cache.read_bytes()
    with pytest.raises(ImageError, match=r"05\.jpg"):
        extract(request_)
    assert skipped.cache.read_bytes() == before
    (images / "train/dog/05.jpg").write_bytes(jpeg(77))
    repaired = extract(request_)
    assert (repaired.computed, repaired.reused, repaired.skipped) == (1, 41, ())


def test_a_skipped_image_that_was_repaired_is_computed(request_: Request, images: Path) -> None:
    (images / "train/dog/05.jpg").write_bytes(b"no image at all")
    extract(request_, Execution(on_error="skip"))
    (images / "train/dog/05.jpg").write_bytes(jpeg(77))
    repaired = extract(request_, Execution(on_error="skip"))
    assert (repaired.computed, repaired.skipped) == (1, ())


def test_skipping_everything_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "bad" / "cat"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"text")
    with pytest.raises(SourceError, match="every image"):
        extract(
            Request(dataset=tmp_path / "bad", backbone=tiny_backbone(), data_dir=tmp_path / "data"),
            Execution(on_error="skip"),
        )


@pytest.mark.parametrize(("edited", "computed_again"), [("test/eel/02.jpg", 0), ("train/cat/00.jpg", 1)])
def test_an_image_edited_during_the_run_has_the_row_of_the_bytes_that_were_read(
    edited: str, computed_again: int, request_: Request, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = FolderSource.read, []
    for path in images.rglob("*.jpg"):
        # Files younger than two seconds are always read again.
        os.utime(path, (time.time() - 60,) * 2)

    def editing(source: FolderSource, sample: Sample) -> object:
        payload = original(source, sample)
        seen.append(sample.id)
        if len(seen) == 10:
            # One of the edited images is read later, the other has been read already.
            (images / edited).write_bytes(jpeg(4242))
        return payload

    with monkeypatch.context() as patched:
        patched.setattr(FolderSource, "read", editing)
        cache = FeatureCache.open(extract(request_, Execution(workers=1)).cache)
    split, row = edited.split("/")[0], cache[edited.split("/")[0]].ids.index(edited)
    is_new = cache[split].digests[row].tobytes() == hashlib.sha256(jpeg(4242)).digest()
    assert is_new is (computed_again == 0)
    assert extract(request_).computed == computed_again
    again = FeatureCache.open(extract(request_).cache)
    assert again[split].digests[row].tobytes() == hashlib.sha256(jpeg(4242)).digest()


# --- features that cannot be stored ------------------------------------------------------------------------


def _spoil_features(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    def spoil(forward: Forward, images: np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
        rows = forward(images)["output"].clone()
        rows[2, 5] = value
        return {"output": rows}

    every_forward(monkeypatch, spoil)


def test_infinity_in_float16_names_layer_and_image_with_a_hint(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil_features(monkeypatch, 1e6)
    with pytest.raises(ExtractionError, match=r"layer output gives infinity for train/cat/02\.jpg") as caught:
        extract(request_)
    assert "--dtype float32" in str(caught.value.hint)
    assert extract(replace(request_, dtype="float32")).computed == 42


def test_nan_is_an_error_in_any_dtype(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    _spoil_features(monkeypatch, float("nan"))
    with pytest.raises(ExtractionError, match="NaN"):
        extract(replace(request_, dtype="float32"))


def test_a_batch_that_does_not_fit_is_halved(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = arrays(extract(request_).cache)
    tried: list[int] = []

    def narrow(forward: Forward, images: np.ndarray | torch.Tensor) -> object:
        tried.append(len(images))
        if len(images) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return forward(images)

    every_forward(monkeypatch, narrow)
    again = extract(replace(request_, data_dir=tmp_path / "other"), Execution(batch_size=64))
    assert {64, 32, 16, 8} <= {*tried}
    assert arrays(again.cache) == reference


def test_memory_that_never_suffices_is_a_clear_error(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(forward: Forward, images: np.ndarray | torch.Tensor) -> object:
        raise torch.OutOfMemoryError("out of memory")

    every_forward(monkeypatch, never)
    with pytest.raises(ExtractionError, match="does not fit into the device's memory"):
        extract(replace(request_, precision="fp32"))


def test_too_little_disk_space_is_an_error_before_the_first_forward_pass(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_batches(monkeypatch)
    monkeypatch.setattr("featcache.extraction.compute.free_bytes", lambda _: 10)
    with pytest.raises(ExtractionError, match="has 10 B free"):
        extract(request_)
    assert calls == []


# --- interruption and other processes ----------------------------------------------------------------------


def test_after_ctrl_c_the_same_call_continues(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_ = replace(request_, precision="fp32")
    reference = arrays(extract(replace(request_, data_dir=tmp_path / "other")).cache)
    seen = 0

    def interrupt(forward: Forward, images: np.ndarray | torch.Tensor) -> object:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise KeyboardInterrupt
        return forward(images)

    with monkeypatch.context() as patched:
        every_forward(patched, interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(request_, Execution(batch_size=8, segment_rows=8))
    assert not list(request_.features_dir.glob("*.h5"))
    after = extract(request_, Execution(batch_size=8, segment_rows=8))
    assert (after.computed, after.reused) == (42 - 24, 24)
    assert arrays(after.cache) == reference


@pytest.mark.parametrize("pack", [True, False])
def test_a_relative_data_folder_is_treated_as_an_absolute_one(
    images: Path, tmp_path: Path, pack: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    request, execution = Request(dataset=images, backbone=tiny_backbone(), data_dir=Path("data")), Execution(pack=pack)
    first = extract(request, execution)
    next(images.rglob("*.jpg")).unlink()
    again = extract(request, execution)
    assert (again.computed, again.reused) == (0, first.computed - 1)
    assert again.cache == first.cache and not again.cache.is_absolute()
    left = {path.name for path in Path("data/features").iterdir() if not path.name.startswith(".")}
    assert left == {again.cache.name}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert extract(request, execution).computed == 0


def test_damaged_rows_count_as_absent(request_: Request, caplog: pytest.LogCaptureFixture) -> None:
    first = extract(request_)
    reference = arrays(first.cache)
    data = bytearray(first.cache.read_bytes())
    with h5py.File(first.cache) as file:
        place = file["train/features/output"].id.get_offset()
    data[place + 3] ^= 0x10
    first.cache.write_bytes(data)
    # Only the checksum of this row is wrong, so only this row is computed again.
    replaced = request_.dataset
    assert isinstance(replaced, Path)
    (replaced / "train/eel/new.jpg").write_bytes(jpeg(555))
    repaired = extract(request_)
    assert (repaired.computed, repaired.reused) == (2, 41)
    (replaced / "train/eel/new.jpg").unlink()
    assert arrays(extract(request_).cache) == reference


def test_a_truncated_cache_is_replaced_with_a_warning(request_: Request, caplog: pytest.LogCaptureFixture) -> None:
    first = extract(request_)
    first.cache.write_bytes(first.cache.read_bytes()[:-100])
    damaged = first.cache.read_bytes()
    again = extract(request_)
    assert again.computed == 42
    # The damaged file is kept.
    (kept,) = request_.features_dir.glob("*.damaged*")
    assert kept.read_bytes() == damaged
    assert any(record.levelname == "WARNING" and "counts as absent" in record.message for record in caplog.records)


def test_without_waiting_a_busy_cache_is_an_error(request_: Request) -> None:
    from featcache.cache.locks import lock_cache

    first = extract(request_)
    with lock_cache(request_.features_dir, first.cache.stem):
        assert extract(request_, Execution(wait=False)).computed == 0
        first.cache.unlink()
        with pytest.raises(CacheBusy, match="is being written by process"):
            extract(request_, Execution(wait=False))


def test_a_hit_needs_no_folder_that_can_be_written(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(request_)

    def read_only(*_: object, **__: object) -> None:
        raise CacheUnwritable("the folder is read-only")

    monkeypatch.setattr("featcache.extraction.run.lock_cache", read_only)
    monkeypatch.setattr("featcache.files.begin_draft", read_only)
    assert extract(request_).reused == 42


@pytest.mark.parametrize("failure", [errno.EACCES, errno.EMFILE, errno.EIO], ids=errno.errorcode.get)
def test_a_cache_that_cannot_be_opened_now_is_an_error_and_is_kept(
    failure: int, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract(request_)
    before = first.cache.read_bytes()
    opens = os.open

    def failing(path: str | Path, *args: int, **options: int) -> int:
        if Path(path).suffix == ".h5":
            raise OSError(failure, os.strerror(failure))
        return opens(path, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        with pytest.raises(CacheUnreadable, match="cannot be read now") as caught:
            extract(request_)
        assert caught.value.hint
    assert first.cache.read_bytes() == before
    assert extract(request_).computed == 0
    assert not list(request_.features_dir.glob("*damaged*"))


# --- options and Python ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 0},
        {"dtype": "float64"},
        {"resize": "stretch"},
        {"image_size": -1},
    ],
)
def test_invalid_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOption):
        Request(**options)  # type: ignore[arg-type]


def test_a_missing_split_is_refused(request_: Request) -> None:
    with pytest.raises(InvalidOption, match="has no split val: it has train, test"):
        extract(replace(request_, splits=("val",)))


def test_one_split_can_be_extracted_alone(request_: Request) -> None:
    assert extract(replace(request_, splits=("test",))).rows == {"test": 12}


def test_extraction_from_python(images: Path, tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    cache = featcache.extract(
        images,
        tiny_backbone(),
        data_dir=tmp_path / "data",
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )
    assert cache["train"].features.shape == (30, 12)
    assert cache["train"].features.dtype == np.float16
    assert stages[-1] == ("packing", 42 * 12 * 2, 42 * 12 * 2)  # bytes
    assert ("extracting", 42, 42) in stages
    values, label = cache.dataset("test")[3]
    assert values.shape == (12,)
    assert values.dtype == np.float32
    assert label == 0


def test_arrays_and_pixels_from_python(tmp_path: Path) -> None:
    from featcache.images import ArraySource

    pictures = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 3), dtype=np.uint8)
    source = ArraySource({"train": (pictures, np.array([0, 1, 0, 1, 0, 1]))}, name="mine")
    cache = featcache.extract(source, "pixels", data_dir=tmp_path)
    stored = cache["train"].features[:]
    assert stored.dtype == np.uint8
    assert np.array_equal(stored.reshape(6, 3, 9, 9), pictures.transpose(0, 3, 1, 2))
    assert cache["train"].features.scale == pytest.approx(1 / 127.5)
    assert cache["train"].features.offset == -1.0


def test_decoding_is_what_pillow_does(images: Path) -> None:
    payload = (images / "train/cat/00.jpg").read_bytes()
    assert np.array_equal(decode(payload, "x"), np.asarray(Image.open(images / "train/cat/00.jpg").convert("RGB")))


def test_every_error_of_an_extraction_is_a_featcache_error() -> None:
    assert issubclass(ExtractionError, FeatcacheError)
