"""Batch size and decoding threads: a table by device, changed only by options, or where memory does not suffice."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_backbone, write_images

from featcache.backbones import devices
from featcache.backbones.options import BackboneOptions
from featcache.backbones.zoos.pixels import pixels_spec
from featcache.extraction.computing import batch_size_for, decoding_threads_for
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.extraction.resolve import resolve
from featcache.extraction.run import Execution

PIXELS = pixels_spec(BackboneOptions(backbone="pixels", image_size=8))
NETWORK = tiny_backbone().spec


@pytest.mark.parametrize(("device", "images"), [("cpu", 32), ("mps", 64), ("cuda", 256), ("cuda:1", 256)])
def test_the_batch_size_depends_on_the_device(device: str, images: int) -> None:
    assert batch_size_for(NETWORK, device) == images
    assert batch_size_for(PIXELS, device) == 512


@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (2, 2), (3, 3), (4, 4), (64, 4)])
def test_a_network_on_the_cpu_leaves_most_cores_to_its_own_arithmetic(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cores", lambda: cores)
    assert decoding_threads_for(NETWORK, "cpu") == threads
    assert decoding_threads_for(NETWORK, "cuda:0") == cores
    assert decoding_threads_for(PIXELS, "cpu") == cores


@pytest.mark.parametrize(
    ("execution", "expected"),
    [(Execution(), (32, 3)), (Execution(batch_size=5), (5, 3)), (Execution(workers=7), (32, 7))],
)
def test_options_override_the_table(
    execution: Execution, expected: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cores", lambda: 3)
    images = write_images(tmp_path / "pictures", train=2, test=2)
    request = Request(dataset=images, backbone=tiny_backbone(), precision="fp32", data_dir=tmp_path / "data")
    with resolve([request], execution, LogReporter()) as (job,):
        assert (job.computer.batch_size, job.computer.workers) == expected
