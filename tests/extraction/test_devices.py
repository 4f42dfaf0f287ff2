"""Warnings about unused GPUs and cores, and the forecast of the time a run will take."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_backbone, write_images

from featcache.backbones import devices
from featcache.extraction.forecast import Forecast
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract


@pytest.mark.parametrize(("cuda", "reason"), [(None, "for the CPU alone"), ("13.0", "for CUDA 13.0")])
def test_a_gpu_that_torch_cannot_use_is_reported(
    cuda: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(devices, "_NVIDIA_DRIVER", tmp_path / "version")
    assert devices.gpu_warning("cpu") is None
    (tmp_path / "version").write_text("NVRM")
    assert reason in str(devices.gpu_warning("cpu"))


def test_a_gpu_that_is_not_used_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a quick one")
    assert "although a quick one is there" in str(devices.gpu_warning("cpu"))
    assert devices.gpu_warning("cuda:0") is None


@pytest.mark.parametrize(
    ("text", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 1 << 20), ("", 1 << 20)],
)
def test_a_containers_quota_counts_as_cores(text: str, cores: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert devices._quota(tmp_path / "cpu.max") == cores


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert devices._quota(tmp_path / "nothing") == 1 << 20


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system knows no affinity")
def test_affinity_limits_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert devices.cores() == 1


@pytest.mark.parametrize(
    ("threads", "cores", "warned"), [(1, 1, False), (1, 2, False), (1, 16, True), (8, 16, False), (7, 16, True)]
)
def test_far_fewer_threads_than_cores_are_reported(
    threads: int, cores: int, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(devices, "cores", lambda: cores)
    assert (devices.idle_cores_warning("cpu") is not None) == warned
    assert devices.idle_cores_warning("cuda") is None


def test_the_variable_that_limits_threads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(devices, "cores", lambda: 64)
    assert (
        devices.idle_cores_warning("cpu")
        == "computing with 1 thread on 64 cores because of OMP_NUM_THREADS=1; unset it"
    )


def test_it_is_a_warning_before_the_first_forward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "cores", lambda: 1000)
    images = write_images(tmp_path / "pictures", train=2, test=1)
    request = Request(dataset=images, backbone=tiny_backbone(), data_dir=tmp_path / "data")
    extract(request, Execution(device="cpu"))
    assert "on 1000 cores" in caplog.text
    caplog.clear()
    # Storing bytes needs no threads of torch.
    extract(replace(request, backbone="pixels", image_size=8))
    assert "cores" not in caplog.text


# --- how long it will take ---------------------------------------------------------------------------------


def forecasts_of(times: list[tuple[float, int]], total: int, bound: str | None = "compute") -> list[str]:
    now = iter([seconds for seconds, _ in times])
    forecast = Forecast(total=total, clock=lambda: next(now))
    sentences = [forecast.sentence(done, bound) for _, done in times]
    return [sentence for sentence in sentences if sentence is not None]


def test_the_time_left_is_reported_once() -> None:
    times = [(float(10 * second), 32 * second) for second in range(1, 6)]
    assert forecasts_of(times, 10_000) == ["3.2 images/s, about 52 min to go; the forward pass bounds it"]


def test_the_first_batch_does_not_count() -> None:
    assert forecasts_of([(100.0, 10), (110.0, 110)], 10_000, None) == ["10.0 images/s, about 16 min to go"]


def test_long_times_are_in_hours() -> None:
    assert forecasts_of([(0.0, 0), (10.0, 100)], 60_000) == [
        "10.0 images/s, about 1 h 40 min to go; the forward pass bounds it"
    ]


def test_a_short_run_has_no_forecast() -> None:
    assert forecasts_of([(0.0, 0), (10.0, 100), (20.0, 200)], 300) == []
