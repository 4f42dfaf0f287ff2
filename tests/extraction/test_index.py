"""The index of digests: unchanged images are not read again, changed ones always are."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import jpeg, tiny_backbone, write_images

from featcache.extraction.index import Index, index_path
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.images.samples import Sample, SampleRows, Samples
from featcache.images.source import ImageSource
from featcache.images.sources.folder import FolderSource


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    request = Request(dataset=write_images(tmp_path / "pictures"), backbone=tiny_backbone(), data_dir=tmp_path / "data")
    _age(tmp_path / "pictures")
    return request


def _age(root: Path) -> None:
    """Set the times of the files back by a minute."""
    then = time.time() - 60
    for path in root.rglob("*.jpg"):
        os.utime(path, (then, then))


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    original = FolderSource.read

    def count(source: FolderSource, sample: Sample) -> object:
        seen.append(sample.id)
        return original(source, sample)

    monkeypatch.setattr(FolderSource, "read", count)
    return seen


def test_a_hit_reads_no_image(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(request_)
    seen = reads(monkeypatch)
    assert extract(request_).computed == 0
    assert seen == []


def test_rehash_reads_all(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(request_)
    seen = reads(monkeypatch)
    extract(request_, Execution(rehash=True))
    assert len(seen) == 42


@pytest.mark.parametrize("change", ["content", "size", "replaced", "touched"])
def test_a_changed_image_is_read_again(change: str, request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(request_)
    assert isinstance(request_.dataset, Path)
    path = request_.dataset / "train/dog/04.jpg"
    before = path.stat()
    if change == "replaced":
        (request_.dataset / "new").write_bytes(jpeg(900))
        os.utime(request_.dataset / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
        (request_.dataset / "new").rename(path)
    elif change == "touched":
        os.utime(path)
    else:
        path.write_bytes(jpeg(900) + (b"" if change == "content" else b"\0"))
    seen = reads(monkeypatch)
    after = extract(request_)
    assert "train/dog/04.jpg" in seen
    assert after.computed == (0 if change == "touched" else 1)


def test_an_image_as_new_as_the_index_is_read_again(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(request_.dataset, Path)
    os.utime(request_.dataset / "train/dog/04.jpg")
    extract(request_)
    seen = reads(monkeypatch)
    extract(request_)
    assert seen == ["train/dog/04.jpg"]


def test_zip_members_are_identified_by_their_checksum(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(request_.dataset, Path)
    archive = shutil.make_archive(str(tmp_path / "z"), "zip", request_.dataset)
    zipped = replace(request_, dataset=archive)
    extract(zipped)
    os.utime(archive)
    seen = reads(monkeypatch)
    assert extract(zipped).computed == 0
    assert seen == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_index_is_ignored(damage: str, request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(request_)
    path = index_path(request_.data_dir, request_.origin)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"flip": bytes(content), "cut": bytes(content[:-5]), "empty": b"", "foreign": b"x" * 500}
    path.write_bytes(damaged[damage])
    seen = reads(monkeypatch)
    assert extract(request_).computed == 0
    assert len(seen) == 42


def test_an_index_that_cannot_be_written_is_no_error(request_: Request) -> None:
    request_.data_dir.mkdir()
    (request_.data_dir / "digests").write_text("a file where the folder should be")
    assert extract(request_).computed == 42


class _Numbers(ImageSource):
    def __init__(self, stamps: list[int]) -> None:
        self.stamps = stamps

    def stamp(self, sample: Sample) -> tuple[int | str, ...] | None:
        return ("test", self.stamps[int(sample.id)])

    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def samples(self, split: str) -> list[Sample]:
        return [Sample(id=str(row), split="train", label=0) for row in range(len(self.stamps))]

    def read(self, sample: Sample) -> bytes:
        raise NotImplementedError


@given(
    stamps=st.lists(st.integers(0, 50), min_size=1, max_size=30, unique=True),
    piece=st.integers(1, 8),
    halves=st.lists(st.booleans(), min_size=30, max_size=30),
    data=st.data(),
)
def test_what_was_saved_is_found_and_nothing_else(
    stamps: list[int], piece: int, halves: list[bool], data: st.DataObject
) -> None:
    source = _Numbers(stamps)
    samples = SampleRows([Samples.of("train", source.samples("train"))])
    digests = np.random.default_rng(0).integers(0, 256, (len(stamps), 32), dtype=np.uint8)
    changed = data.draw(st.integers(0, len(stamps) - 1))
    requested = data.draw(st.permutations(range(len(stamps))))
    rows = np.array(requested[: data.draw(st.integers(0, len(requested)))], np.int64)
    mine = np.array(halves[: len(stamps)])
    with tempfile.TemporaryDirectory() as folder, mock.patch("featcache.extraction.index._ROWS_AT_ONCE", piece):
        path = Path(folder) / "i"
        for share in (mine, ~mine):
            index = Index(path, source, samples, reads=True)
            index.look_up(np.flatnonzero(share), np.zeros_like(digests), np.zeros(len(stamps), np.bool_))
            index.save(digests, share)
        found, known = np.zeros_like(digests), np.zeros(len(stamps), np.bool_)
        Index(path, source, samples, reads=True).look_up(rows, found, known)
        assert np.flatnonzero(known).tolist() == sorted(rows.tolist())
        assert np.array_equal(found[rows], digests[rows])
        source.stamps = [stamp + 100 * (row == changed) for row, stamp in enumerate(stamps)]
        known[:] = False
        Index(path, source, samples, reads=True).look_up(rows, found, known)
        assert known[rows].tolist() == [row != changed for row in rows]
