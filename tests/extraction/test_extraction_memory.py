"""Ten times the images take no more memory; in a process of its own, for a peak never falls."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny import CLASSES, write_images

from featcache.benchmark.processes import peak_bytes, run_apart
from featcache.cache.reader import FeatureCache
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract

SIDE = 80
FEW, MANY = 200, 2000  # of each class


@dataclass(frozen=True, kw_only=True)
class Task:
    sets: list[Path]
    data_dir: Path


def extracted(task: Task, _: Reporter) -> tuple[list[int], int]:
    """The peak after each of the sets, and after all features of the last were read; then their bytes."""
    torch.set_num_threads(1)
    peaks = []
    for images in task.sets:
        request = Request(dataset=images, backbone="pixels", image_size=SIDE, data_dir=task.data_dir)
        # Small batches, or little waits between reading and writing while there are few images.
        done = extract(request, Execution(part_rows=64, batch_size=8, workers=2))
        peaks.append(peak_bytes())
    with FeatureCache.open(done.cache) as cache:
        everything = cache["train"].features[:]
        peaks.append(peak_bytes())
    return peaks, everything.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is the kernel's")
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    sets = [write_images(tmp_path / f"{count}", train=count, test=1) for count in (FEW, MANY)]
    found = run_apart(extracted, Task(sets=sets, data_dir=tmp_path / "data"), LogReporter())
    (few, many, held), features_bytes = found.result
    assert features_bytes == MANY * len(CLASSES) * 3 * SIDE * SIDE
    assert many - few < features_bytes / 3
    # And it would show.
    assert held - many > features_bytes / 3
