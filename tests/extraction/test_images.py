"""The images of an extraction: which digests are known, which images are read, and what is saved."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.cache.tables import Skipped
from featcache.errors import SourceError
from featcache.extraction import images as module
from featcache.extraction.images import Images
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.images.listing import Listing
from featcache.images.samples import Sample
from featcache.images.source import ImageSource, Stamp, digest


class Source(ImageSource):
    """Images whose bytes are derived from their ids; counts reads."""

    def __init__(self, sizes: dict[str, int], unreadable: frozenset[str] = frozenset()) -> None:
        rows = [(split, f"{split}/{row:03d}", row % 2) for split, count in sizes.items() for row in range(count)]
        super().__init__(name="set", origin="set", listing=Listing.of_rows(rows, ["a", "b"]))
        self.reads: Counter[str] = Counter()
        self.unreadable = unreadable
        self.version = 0

    def read(self, sample: Sample) -> bytes:
        self.reads[sample.id] += 1
        if sample.id in self.unreadable:
            raise SourceError(f"{sample.id}: no permission")
        return f"{sample.id} {self.version}".encode()

    def stamp(self, sample: Sample) -> Stamp:
        return ("set", self.version)


def of(source: Source, folder: Path, *, skip: bool = False, rehash: bool = False) -> Images:
    request = Request(dataset=source, backbone="pixels", data_dir=folder)
    return Images(source, request, workers=2, skip_unreadable=skip, rehash=rehash, reporter=LogReporter())


def test_nothing_is_read_before_it_is_needed(tmp_path: Path) -> None:
    source = Source({"train": 5, "test": 3})
    images = of(source, tmp_path)
    images.look_up(images.numbers)
    assert not source.reads
    assert (len(images), images.rows_of_splits) == (8, {"train": 5, "test": 3})
    assert not images.known.any()


@settings(max_examples=25, deadline=None)
@given(requested=st.lists(st.lists(st.integers(0, 7), unique=True), max_size=4))
def test_each_image_is_read_once_and_has_the_digest_of_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, requested: list[list[int]]
) -> None:
    source = Source({"train": 5, "test": 3})
    images = of(source, tmp_path_factory.mktemp("set"))
    for numbers in requested:
        images.read_unknown(np.array(sorted(numbers), np.int64))
    wanted = {number for numbers in requested for number in numbers}
    assert set(np.flatnonzero(images.known).tolist()) == wanted
    assert set(source.reads.values()) <= {1}
    for number in wanted:
        assert images.digests[number].tobytes() == digest(source.read(images.samples[number]))


def test_images_that_were_read_are_kept_for_decoding_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT_BYTES", 30)
    images = of(Source({"train": 5}), tmp_path)
    images.read_unknown(images.numbers)
    assert images.known.all()
    assert images.payloads == {0: b"train/000 0", 1: b"train/001 0"}


def test_digests_of_shares_are_saved_in_one_index(tmp_path: Path) -> None:
    for share in ([0, 2], [1, 3, 4]):
        images = of(Source({"train": 5}), tmp_path)
        images.read_unknown(np.array(share))
        images.save()
    source = Source({"train": 5})
    images = of(source, tmp_path)
    images.look_up(images.numbers)
    assert images.known.all() and not source.reads
    assert images.digests[3].tobytes() == digest(b"train/003 0")


def test_saving_a_small_selection_keeps_the_other_digests(tmp_path: Path) -> None:
    whole = of(Source({"train": 50}), tmp_path)
    whole.read_unknown(whole.numbers[:-1])
    whole.save()
    source = Source({"train": 50})
    request = Request(dataset=source, backbone="pixels", data_dir=tmp_path, limit=50)
    last = Images(source, request, workers=1, skip_unreadable=False, rehash=False, reporter=LogReporter())
    last.read_unknown(last.numbers[-1:])
    last.save()
    assert source.reads == {"train/049": 1}
    again = of(Source({"train": 50}), tmp_path)
    again.look_up(again.numbers)
    assert again.known.all()


def test_the_index_does_not_grow_without_limit(tmp_path: Path) -> None:
    sizes = []
    for version in range(6):
        source = Source({"train": 50})
        source.version = version
        images = of(source, tmp_path)
        images.read_unknown(images.numbers)
        images.save()
        (index,) = (tmp_path / "digests").iterdir()
        sizes.append(index.stat().st_size)
    assert max(sizes) < 2.2 * sizes[0]


def test_the_stamp_is_the_one_from_before_the_reading(tmp_path: Path) -> None:
    class Changing(Source):
        def read(self, sample: Sample) -> bytes:
            payload = super().read(sample)
            self.version = 1
            return payload

    source = Changing({"train": 1})
    images = of(source, tmp_path)
    images.read_unknown(images.numbers)
    images.save()
    fresh = Source({"train": 1})
    fresh.version = 1
    again = of(fresh, tmp_path)
    again.look_up(again.numbers)
    assert not again.known.any(), "the digest of version 0 was used for version 1"


def test_rehash_reads_everything_again(tmp_path: Path) -> None:
    first = of(Source({"train": 4}), tmp_path)
    first.read_unknown(first.numbers)
    first.save()
    source = Source({"train": 4})
    images = of(source, tmp_path, rehash=True)
    images.read_unknown(images.numbers)
    assert sum(source.reads.values()) == 4


def test_an_image_that_cannot_be_read_stops_or_is_listed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="train/001: no permission"):
        images = of(Source({"train": 3}, frozenset({"train/001"})), tmp_path)
        images.read_unknown(images.numbers)
    images = of(Source({"train": 3}, frozenset({"train/001"})), tmp_path, skip=True)
    images.read_unknown(images.numbers)
    assert images.unreadable == {1: "train/001: no permission"}
    assert images.known.tolist() == [True, False, True]


def test_a_skipped_image_counts_again_once_its_bytes_have_changed(tmp_path: Path) -> None:
    images = of(Source({"train": 3, "test": 2}), tmp_path)
    images.read_unknown(images.numbers)
    skipped = [
        Skipped(id="train/001", split="train", reason="truncated", digest=images.digests[1].tobytes().hex()),
        Skipped(id="train/002", split="train", reason="truncated", digest="00" * 32),
        Skipped(id="train/000", split="test", reason="another split", digest=None),
    ]
    assert images.without_skipped(images.numbers_of("train"), skipped[:2]).tolist() == [0, 2]
    assert images.still_skipped(skipped) == skipped[:1]


def test_nothing_is_saved_if_remembers_is_off(tmp_path: Path) -> None:
    images = of(Source({"train": 3}), tmp_path)
    images.remembers = False
    images.read_unknown(images.numbers)
    images.save()
    assert not list(tmp_path.iterdir())


def test_images_that_are_looked_up_in_parts_are_saved_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writings: list[int] = []
    monkeypatch.setattr("featcache.extraction.index.Index.save", lambda *_: writings.append(1))
    images = of(Source({"train": 50}), tmp_path)
    for start in range(0, 50, 5):
        images.read_unknown(np.arange(start, start + 5))
    assert writings == []
    images.save()
    assert writings == [1]
