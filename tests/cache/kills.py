"""Kills extractions with SIGKILL at random moments; `python benchmarks/measure.py kills` kills many.

    extract    an extraction that ends in one packed file
    segments   the same with --no-pack
    shards     three shards, one after another, each killed until it is complete
    packing    `assemble --pack` of a cache in segments

Children are forked from a process that has imported everything; the backbone is `pixels` at 8 px. Each child is killed
and started again until it ends by itself; then the next kind begins with an empty folder. After each kill, every file
with a final name must be complete, and no published segment may be missing; at the end the rows must equal those of an
extraction that was never killed.
"""

from __future__ import annotations

import functools
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from system_faults import KILLED, OK, WrongEnd, import_everything, in_child, make_images, require_whole, rows_of

from featcache.cache.catalog import list_caches
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, assemble, extract
from featcache.extraction.units import Shard

KINDS = ("extract", "segments", "shards", "packing")
_SEGMENT_ROWS = 4


def run(kills: int, seed: int, scratch: Path) -> dict[str, Any]:
    """Kill as many times, a quarter of them at each kind of work. Raises WrongEnd at the first failed check."""
    images, draws = make_images(scratch / "images"), random.Random(seed)
    import_everything(images, scratch / "first")
    found: dict[str, Any] = {}
    for kind in KINDS:
        standing: list[int] = []
        runs = 0
        while len(standing) < kills // len(KINDS):
            work_through(kind, images, scratch, standing, draws, kills // len(KINDS))
            runs += 1
        found[kind] = {"kills": len(standing), "runs": runs, "most_rows_standing_at_a_kill": max(standing, default=0)}
    return {"kills": sum(one["kills"] for one in found.values()), **found}


def steps(kind: str, images: Path, data_dir: Path) -> Sequence[Callable[[], object]]:
    """The commands of one kind of work, in order."""
    request = Request(dataset=images, backbone="pixels", image_size=8, data_dir=data_dir)
    quick: dict[str, Any] = {"segment_rows": _SEGMENT_ROWS, "batch_size": 4, "workers": 1}
    if kind == "extract":
        return [lambda: extract(request, Execution(**quick))]
    if kind == "segments":
        return [lambda: extract(request, Execution(pack=False, **quick))]
    if kind == "shards":
        shares = [Execution(shard=Shard(number=number, of=3), **quick) for number in range(3)]
        return [functools.partial(extract, request, share) for share in shares]
    in_child(lambda: extract(request, Execution(pack=False, **quick)))
    return [lambda: assemble(request, Execution(pack=True))]


def work_through(kind: str, images: Path, scratch: Path, standing: list[int], draws: random.Random, kills: int) -> None:
    """Do one kind of work once, with repeated kills; adds the published rows after each kill to `standing`."""
    reference, data_dir = scratch / "reference", scratch / "killed"
    for folder in (reference, data_dir):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    for whole, step in zip(steps(kind, images, reference), steps(kind, images, data_dir), strict=True):
        began, before = time.monotonic(), segments(data_dir)
        require_ok(in_child(whole))
        whole_s, ended = time.monotonic() - began, False
        while not ended and len(standing) < kills:
            ended = require_ok(in_child(step, kill_after_s=draws.uniform(0, whole_s)))
            if not ended:
                require_whole(data_dir)
                now = segments(data_dir)
                if not (before <= now or any(one.complete for one in list_caches(data_dir / "features"))):
                    raise WrongEnd(f"segments are missing: {sorted(before - now)}")
                standing.append(_SEGMENT_ROWS * len(before := now))
        if not ended:
            require_ok(in_child(step))
    if rows_of(data_dir) != rows_of(reference):
        raise WrongEnd("the rows differ from those without kills")
    if kind == "extract" and (left := [path.name for path in (data_dir / "features").iterdir() if path.is_dir()]):
        raise WrongEnd(f"folders of an unfinished cache are left: {left}")


def require_ok(ended: tuple[int, Any]) -> bool:
    """Whether a child ended by itself; False if it was killed. Raises WrongEnd for an error."""
    if ended[0] not in (OK, KILLED):
        raise WrongEnd(f"a child ended with {ended}")
    return ended[0] == OK


def segments(data_dir: Path) -> set[str]:
    """The files of segments that have been published."""
    return {path.name for path in data_dir.glob("features/*/*.h5")}
