"""`featcache benchmark --scenario bigger-than-memory`: the limit is enforced, and only streaming fits."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.benchmark.processes import run_apart
from featcache.benchmark.scenarios import scenario
from featcache.benchmark.streaming import Limited, limited
from featcache.benchmark.ways import Task
from featcache.cache import Donors, LayerSpec, Part, Selection, Spec, SplitTable, assemble, write_part
from featcache.extraction.reporting import LogReporter

ROWS, WIDE = 20_000, 8192


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """328 MB of features: the same block of them again and again."""
    layer = LayerSpec(name="avgpool", weights="0" * 64, shape=(WIDE,))
    spec = Spec(
        backbone="wide",
        layers=(layer,),
        pool="none",
        transform={},
        decoder="none",
        precision="fp32",
        runner="eager",
        dtype="float16",
    )
    block = np.random.default_rng(0).standard_normal((1000, WIDE), np.float32).astype(np.float16)
    digests = np.stack([np.frombuffer(hashlib.sha256(b"%d" % row).digest(), np.uint8) for row in range(ROWS)])
    parts = [
        write_part(
            tmp_path / "parts",
            fingerprint=spec.fingerprint,
            first_row=first,
            digests=digests[first : first + 1000],
            features={"avgpool": block},
        )
        for first in range(0, ROWS, 1000)
    ]
    return assemble(
        tmp_path / "wide.h5",
        spec=spec,
        selection=Selection(source="wide", splits=None, limit=None, select_seed=0),
        set_name="wide",
        classes=("a", "b"),
        provenance={},
        tables={
            "train": SplitTable(ids=[f"{row}" for row in range(ROWS)], labels=np.arange(ROWS) % 2, digests=digests)
        },
        donors=Donors([Part.open(path) for path in parts]),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_under_the_limit_only_streaming_fits_and_gives_the_same_head(cache: Path, tmp_path: Path) -> None:
    chosen = scenario("bigger-than-memory")
    task = Task(scenario=replace(chosen, epochs=2, head=replace(chosen.head, head="linear")), data_dir=tmp_path)
    within = Limited(task=task, cache=cache, limit_bytes=160_000_000, streams=True)
    resident = run_apart(limited, replace(within, limit_bytes=None, streams=False), LogReporter())
    streamed = run_apart(limited, within, LogReporter())
    assert streamed.result.curve == resident.result.curve
    assert streamed.peak_bytes - streamed.libraries_bytes < 160_000_000
    assert resident.peak_bytes - resident.libraries_bytes > ROWS * WIDE * 2 * 0.8
    with pytest.raises(MemoryError):
        run_apart(limited, replace(within, streams=False), LogReporter())
