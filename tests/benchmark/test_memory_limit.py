"""Training on a cache larger than the memory allowed: the limit is enforced, and only streaming fits."""

from __future__ import annotations

import sys
from pathlib import Path

import limited_memory
import pytest
from benchmark_files import benchmark_module

ROWS, WIDE = 20_000, 8192
# A streamed training needs 147 MB, and more address space than it uses.
LIMIT = 200_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_under_the_limit_only_streaming_fits_and_gives_the_same_head(tmp_path: Path) -> None:
    # 328 MB.
    cache = benchmark_module("storage").make_cache(tmp_path, {"train": ROWS}, WIDE).packed
    found = limited_memory.compare(cache, LIMIT)
    assert found["streamed"]["val_loss"] == found["resident"]["val_loss"]
    assert found["streamed"]["beyond_libraries_bytes"] < LIMIT
    assert found["resident"]["beyond_libraries_bytes"] > ROWS * WIDE * 2 * 0.8
    assert found["resident_limited"]["error"].startswith("MemoryError")
