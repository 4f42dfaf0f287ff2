"""Events during an extraction: images that change, tables that are damaged, shares that run twice."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import jpeg, tiny_backbone, write_images

from featcache.cache import FeatureCache
from featcache.cache.locks import lock_cache
from featcache.cache.segment_draft import SegmentDraft
from featcache.cache.stored import StoredFile
from featcache.cache.verification import verify
from featcache.errors import CacheBusy, SourceError
from featcache.extraction import complete, compute, cut, images
from featcache.extraction.pipeline import Pipeline
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract, extract_each
from featcache.extraction.segment_writer import SegmentWriter
from featcache.extraction.units import Shard


def request(folder: Path, data_dir: Path, **options: Any) -> Request:
    given: dict[str, Any] = {"backbone": tiny_backbone(), "precision": "fp32"} | options
    return Request(dataset=folder, data_dir=data_dir, **given)


def share(text: str, **options: Any) -> Execution:
    return Execution(shard=Shard.parse(text), segment_rows=8, **options)


def set_old_times(folder: Path) -> None:
    for path in folder.rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))


def test_a_set_whose_images_are_all_skipped_is_an_error_each_time(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", train=1, test=1)
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(SourceError, match="was skipped"):
            extract(request(folder, tmp_path), Execution(on_error="skip"))


def test_a_segment_whose_images_were_all_skipped_is_not_computed_again(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", train=3, test=1)
    (folder / "train" / "cat" / "01.jpg").write_bytes(b"no image")
    execution = Execution(on_error="skip", segment_rows=1, pack=False)
    extract(request(folder, tmp_path), execution)
    (folder / "train" / "dog" / "01.jpg").write_bytes(jpeg(99))
    done = extract(request(folder, tmp_path), execution)
    assert (done.computed, done.reused, len(done.skipped)) == (1, 10, 1)


def test_images_of_the_trial_batch_do_not_count_as_existing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_images(tmp_path / "images", train=20, test=2)
    with caplog.at_level("INFO", "featcache"):
        done = extract(request(folder, tmp_path), Execution(batch_size=8))
    assert done.computed == 66
    assert any(record.message.startswith("66 images to extract with") for record in caplog.records)
    assert not any("exist already" in record.message for record in caplog.records)


def test_an_image_that_changes_while_the_trial_batch_is_computed_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(tmp_path / "images", train=20, test=2)
    set_old_times(folder)
    victim, original = folder / "train" / "cat" / "00.jpg", Pipeline.decode

    def decode(self: Pipeline, *arguments: Any) -> object:
        batch = original(self, *arguments)
        victim.write_bytes(jpeg(12345))
        # Older than the two seconds in which a stamp is not trusted.
        os.utime(victim, (1.2e9, 1.2e9))
        return batch

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "decode", decode)
        extract(request(folder, tmp_path), Execution(batch_size=8))
    assert extract(request(folder, tmp_path), Execution(batch_size=8)).computed == 1


def test_a_reused_row_keeps_its_digest_if_another_backbone_reads_a_changed_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(tmp_path / "images", train=6, test=2)
    first, victim = folder / "train" / "cat" / "00.jpg", folder / "train" / "eel" / "05.jpg"
    content = first.read_bytes()
    first.unlink()
    set_old_times(folder)
    one = request(folder, tmp_path, backbone=tiny_backbone(1, name="one"))
    two = request(folder, tmp_path, backbone=tiny_backbone(2, name="two"))
    before = extract(one).cache
    with FeatureCache.open(before) as cache:
        row = cache["train"].features[16]
    first.write_bytes(content)
    original = SegmentWriter.open_unit

    def open_unit(self: SegmentWriter, number: int) -> object:
        found = original(self, number)
        victim.write_bytes(jpeg(4242))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(SegmentWriter, "open_unit", open_unit)
        done, _ = extract_each([one, two], Execution(pack=False))
    with FeatureCache.open(done.cache) as cache:
        assert cache["train"].ids[17] == "train/eel/05.jpg"
        is_new = cache["train"].digests[17].tobytes() == hashlib.sha256(jpeg(4242)).digest()
        assert np.array_equal(cache["train"].features[17], row) != is_new


def test_images_that_are_only_looked_up_are_kept_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(tmp_path / "images", train=20, test=2)
    extract(request(folder, tmp_path))
    kept: list[int] = []
    original = compute.compute

    def noting(cuts: Any) -> Any:
        kept.append(sum(map(len, cuts[0].inventory.job.images.payloads.values())))
        return original(cuts)

    monkeypatch.setattr(complete, "compute", noting)
    monkeypatch.setattr(images, "_KEPT_BYTES", 10_000)
    monkeypatch.setattr(cut, "_LOOKED_UP_AT_ONCE", 4)
    done = extract(request(folder, tmp_path, limit=60), Execution(rehash=True))
    assert done.computed == 0 and 0 < kept[0] <= 10_000


def test_a_repaired_image_is_no_longer_listed_by_shards_that_replace_a_packed_cache(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", train=8, test=4)
    bad = folder / "train" / "cat" / "00.jpg"
    content = bad.read_bytes()
    bad.write_bytes(b"no image")
    extract(request(folder, tmp_path), Execution(on_error="skip"))
    bad.write_bytes(content)
    for text in ("0/2", "1/2"):
        done = extract(request(folder, tmp_path), share(text, pack=False))
    assert done.complete and done.rows == {"train": 24, "test": 12}
    assert done.skipped == ()
    with FeatureCache.open(done.cache) as cache:
        assert cache["train"].labels[0] == 0


def test_an_image_that_a_share_skipped_is_not_reused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", train=8, test=4)
    (folder / "train" / "cat" / "00.jpg").write_bytes(b"no image")
    done = extract(request(folder, tmp_path), share("0/2", on_error="skip"))
    assert (len(done.skipped), done.reused) == (1, 0)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("table", ["digests", "ids", "targets/label"])
def test_a_damaged_table_is_repaired_by_the_next_extraction(table: str, pack: bool, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", train=4, test=1)
    execution = Execution(pack=pack, segment_rows=6)
    done = extract(request(folder, tmp_path), execution)
    path = done.cache if pack else done.cache / "train-000000000.h5"
    file = StoredFile.open(path)
    if f"train/{table}" not in file.contents.arrays:
        pytest.skip("segments contain only rows")
    content = bytearray(path.read_bytes())
    content[file.place(f"train/{table}").offset + 1] ^= 1
    file.close()
    path.write_bytes(content)
    # For another selection the file is a donor, for its own it is the cache.
    extract(request(folder, tmp_path, limit=2), execution)
    again = extract(request(folder, tmp_path), execution)
    assert verify(again.cache, full=True).sound and again.rows == done.rows


def test_other_segment_rows_keep_written_rows_even_if_the_extraction_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(tmp_path / "images", train=8, test=4)
    extract(request(folder, tmp_path), Execution(segment_rows=4, pack=False))
    (folder / "train" / "cat" / "00.jpg").write_bytes(jpeg(77))

    def stop(*_: object) -> None:
        raise RuntimeError("stop")

    with monkeypatch.context() as patched:
        patched.setattr(SegmentDraft, "publish", stop)
        with pytest.raises(RuntimeError):
            extract(request(folder, tmp_path), Execution(segment_rows=16, pack=False))
    assert extract(request(folder, tmp_path), Execution(pack=False)).computed == 1


def test_a_shard_that_runs_twice_at_once_succeeds_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "images", train=8, test=4)
    extract(request(folder, tmp_path), share("0/2"))
    runs: list[bool] = []
    original = SegmentDraft.publish

    def publish(self: SegmentDraft, *arguments: Any) -> Path:
        if not runs:
            runs.append(True)
            assert extract(request(folder, tmp_path), share("1/2")).complete
        return original(self, *arguments)

    monkeypatch.setattr(SegmentDraft, "publish", publish)
    assert extract(request(folder, tmp_path), share("1/2")).complete


def test_shards_that_begin_at_once_without_waiting_do_not_find_the_cache_busy(tmp_path: Path) -> None:
    busy: list[CacheBusy] = []

    def shard() -> None:
        for _ in range(10):
            try:
                with lock_cache(tmp_path, "cache", shared=True, wait=False):
                    pass
            except CacheBusy as error:
                busy.append(error)

    threads = [threading.Thread(target=shard) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not busy
