"""`--device cuda:all`: a share of the images on every GPU. Without a GPU, the CPU takes the place of two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import write_images

from featcache.backbones import devices
from featcache.cache.reader import FeatureCache
from featcache.errors import ImageError, InvalidOption
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract, extract_each
from featcache.extraction.units import Shard


class RecordingReporter:
    """Records what is reported."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.done: dict[str, tuple[int, int]] = {}

    def info(self, text: str) -> None:
        self.sentences.append(text)

    def warn(self, text: str) -> None:
        self.sentences.append(text)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        self.done[stage] = done, total


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    images = write_images(tmp_path / "images", train=11, test=5)
    return Request(dataset=images, backbone="pixels", image_size=8, data_dir=tmp_path / "data")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "all_gpus", lambda: ("cpu", "cpu"))


@pytest.mark.usefixtures("two_gpus")
def test_the_cache_equals_that_of_one_process_and_every_share_reports(request_: Request, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    execution = Execution(device="cuda:all", segment_rows=5)
    (done,) = extract_each([request_], execution, reporter=reporter)
    assert (done.complete, done.computed, done.reused) == (True, 48, 0)
    assert sum("in this share of 48" in text for text in reporter.sentences) >= 1
    alone = extract(replace(request_, data_dir=tmp_path / "alone"), Execution(segment_rows=5))
    with FeatureCache.open(done.cache) as cache, FeatureCache.open(alone.cache) as other:
        for split in cache.splits:
            assert cache[split].features[:].tobytes() == other[split].features[:].tobytes()
            assert cache[split].ids == other[split].ids
    again = extract(request_, execution)
    assert (again.computed, again.reused) == (0, 48)


@pytest.mark.usefixtures("two_gpus")
def test_an_error_in_a_share_is_raised_and_finished_segments_are_kept(request_: Request) -> None:
    assert isinstance(request_.dataset, Path)
    (request_.dataset / "test" / "eel" / "04.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"eel/04\.jpg"):
        extract(request_, Execution(device="cuda:all", segment_rows=5))
    done = extract(request_, Execution(segment_rows=5, on_error="skip"))
    assert done.reused > 0


def test_without_a_gpu_it_is_refused(request_: Request) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InvalidOption, match="not on this machine"):
        extract(request_, Execution(device="cuda:all"))


@pytest.mark.usefixtures("two_gpus")
def test_a_share_cannot_be_divided_again(request_: Request) -> None:
    with pytest.raises(InvalidOption, match="leave --shard or --device out"):
        extract(request_, Execution(device="cuda:all", shard=Shard(number=0, of=2)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_real_gpus_each_has_a_share(request_: Request) -> None:
    assert extract(request_, Execution(device="cuda:all", segment_rows=5)).computed == 48
