"""Memory does not grow with the number of images, except for their names and digests.

Peaks are measured in a new process, because the peak of a process never falls.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CLASSES, write_images

from featcache.cache.checksums import leading_numbers
from featcache.cache.donors import Donors
from featcache.cache.reader import FeatureCache
from featcache.extraction.images import Images
from featcache.extraction.processes import peak_bytes, run_in_new_process
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.images.listing import Listing
from featcache.images.samples import Sample, Samples
from featcache.images.source import ImageSource, Stamp

SIDE = 80
FEW, MANY = 100, 1000  # of each class


@dataclass(frozen=True, kw_only=True)
class Task:
    sets: list[Path]
    data_dir: Path


def measure_peaks(task: Task, _: Reporter) -> tuple[list[int], int]:
    """The peak after each of the sets, and after all features of the last were read; then their bytes."""
    torch.set_num_threads(1)
    peaks = []
    for images in task.sets:
        request = Request(dataset=images, backbone="pixels", image_size=SIDE, data_dir=task.data_dir)
        # With large batches, few images would not fill the queues between reading and writing.
        done = extract(request, Execution(segment_rows=64, batch_size=8, workers=2))
        peaks.append(peak_bytes())
    with FeatureCache.open(done.cache) as cache:
        everything = cache["train"].features[:]
        peaks.append(peak_bytes())
    return peaks, everything.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    sets = [write_images(tmp_path / f"{count}", train=count, test=1) for count in (FEW, MANY)]
    found = run_in_new_process(measure_peaks, Task(sets=sets, data_dir=tmp_path / "data"), LogReporter())
    (few, many, held), features_bytes = found.result
    assert features_bytes == MANY * len(CLASSES) * 3 * SIDE * SIDE
    assert many - few < features_bytes / 3
    # Features that are held in memory are visible in the peak.
    assert held - many > features_bytes / 3


# --- lists of very many images ------------------------------------------------------------------------------

IMAGES = 100_000


class Numbered(ImageSource):
    """Images whose content is their id, of 20 bytes, half of them train."""

    def __init__(self) -> None:
        half = IMAGES // 2
        splits = {split: self._samples(split, half) for split in ("train", "test")}
        super().__init__(name="named", origin="named", listing=Listing(samples=splits, classes=("a", "b")))

    @staticmethod
    def _samples(split: str, count: int) -> Samples:
        text = "".join(f"{split}/{number:0{19 - len(split)}d}" for number in range(count)).encode()
        return Samples(split, text, np.arange(count + 1) * 20, np.arange(count) % 2)

    def read(self, sample: Sample) -> bytes:
        return sample.id.encode()

    def stamp(self, sample: Sample) -> Stamp:
        return ("named", 1)


def peak_per_image(work: Callable[[], object]) -> float:
    """The peak of traced memory during `work`, in bytes per image."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / IMAGES
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Images]:
    request = Request(dataset=Numbered(), backbone="pixels", data_dir=tmp_path_factory.mktemp("data"))
    return lambda: Images(Numbered(), request, workers=2, skip_unreadable=False, rehash=False, reporter=LogReporter())


def read(images: Images) -> Images:
    """Read all images and keep none."""
    images.read_unknown(images.numbers)
    images.save()
    images.payloads.clear()
    return images


# An image's name and label take 36 bytes, its digest 32, the key of its stamp 16.
def test_images_take_little_more_than_names_digests_and_stamps(
    listed: Callable[[], Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.extraction.images._KEPT_BYTES", 0)
    assert peak_per_image(lambda: read(listed())) < 190, "read for the first time"
    assert peak_per_image(lambda: read(listed())) < 190, "found in the index"


class Digests:
    """A donor that has only digests."""

    fingerprint = ""
    views = 1

    def __init__(self, digests: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
        self.digests = digests


def test_rows_are_found_in_little_memory(listed: Callable[[], Images]) -> None:
    digests = read(listed()).digests[: IMAGES // 2]
    donors = Donors([Digests(digests[::-1].copy())])  # type: ignore[list-item]
    found = []
    assert peak_per_image(lambda: found.append(donors.locate(digests))) < 45
    assert np.array_equal(found[0].row, np.arange(len(digests))[::-1])
    assert len(np.unique(leading_numbers(digests))) == len(digests)
