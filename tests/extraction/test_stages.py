"""The time of an extraction is measured by stage, and the slowest stage is named."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_backbone, write_images

from featcache.backbones.program import Program
from featcache.backbones.transforms import Transform
from featcache.cache.segment_draft import SegmentDraft
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.extraction.stages import Stages


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    images = write_images(tmp_path / "pictures", train=6, test=2)
    return Request(dataset=images, backbone=tiny_backbone(), precision="fp32", data_dir=tmp_path / "data")


def test_shares_are_of_the_measured_time() -> None:
    now = iter([0.0, 1.0, 5.0, 8.0, 10.0, 10.0])
    stages = Stages(clock=lambda: next(now))
    assert (stages.shares, stages.bound) == (None, None)
    for stage in ("decode", "compute", "write"):
        with stages.measure(stage):
            pass
    assert stages.shares == {"decode": 0.25, "compute": 0.75, "write": 0.0}
    assert stages.bound == "compute"


def test_time_counts_also_if_it_ends_in_an_error() -> None:
    now = iter([0.0, 2.0])
    stages = Stages(clock=lambda: next(now))
    with pytest.raises(KeyboardInterrupt), stages.measure("compute"):
        raise KeyboardInterrupt
    assert stages.bound == "compute"


@pytest.mark.parametrize("slow", ["decode", "compute", "write"])
def test_the_slow_stage_is_the_bound(slow: str, request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    resize, features, publish = Transform.resize_image, Program.features, SegmentDraft.publish

    def slow_resize(transform: Transform, image: np.ndarray, *, cropped: bool = False) -> np.ndarray:
        time.sleep(0.03 * (slow == "decode"))
        return resize(transform, image, cropped=cropped)

    def slow_features(program: Program, images: np.ndarray) -> dict[str, torch.Tensor]:
        time.sleep(0.15 * (slow == "compute"))
        return features(program, images)

    def slow_publish(draft: SegmentDraft, *args: object) -> Path:
        time.sleep(0.15 * (slow == "write"))
        return publish(draft, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Transform, "resize_image", slow_resize)
    monkeypatch.setattr(Program, "features", slow_features)
    monkeypatch.setattr(SegmentDraft, "publish", slow_publish)
    done = extract(request_, Execution(batch_size=8, segment_rows=8, workers=1))
    assert done.bound == slow
    assert done.shares is not None
    assert done.shares[slow] > 0.5
    assert sum(done.shares.values()) == pytest.approx(1)


def test_on_a_hit_there_is_no_bound(request_: Request) -> None:
    extract(request_)
    again = extract(request_)
    assert (again.shares, again.bound) == (None, None)
