"""The work of a process that is killed while it extracts."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from tiny import tiny_backbone

from featcache.backbones.program import Program
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract

# Runs once, in the server that forks the children. One thread, because a thread pool does not survive a fork.
torch.set_num_threads(1)
_BACKBONE = tiny_backbone()


def main(images: str, data_dir: str) -> None:
    """Extract two views with a slow tiny backbone, in segments of two batches."""
    original = Program.features

    def slow(program: Program, batch: np.ndarray) -> dict[str, torch.Tensor]:
        time.sleep(0.003)
        return original(program, batch)

    setattr(Program, "features", slow)  # noqa: B010 - in this process alone
    request = Request(dataset=images, backbone=_BACKBONE, data_dir=Path(data_dir), views=2)
    extract(request, Execution(segment_rows=16, batch_size=8))
