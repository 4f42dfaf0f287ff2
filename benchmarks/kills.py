"""Kills extractions with SIGKILL at random moments: `python benchmarks/kills.py --kills 500`.

    extract    an extraction that ends in one packed file
    segments   the same with --no-pack
    shards     three shards, one after another, each killed until it is complete
    packing    `assemble --pack` of a cache in segments

Children are forked from a process that has imported everything; the backbone is `pixels` at 8 px. Each child is killed
and started again until it ends by itself; then the next kind begins with an empty folder. After each kill, every file
with a final name must be complete, and no published segment may be missing; at the end the arrays must equal those of
an extraction that was never killed. The result goes to results/kills.json.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from faults import WrongEnd, import_everything, in_child, make_images, require_whole, rows_of
from machine import write

from featcache.cache.catalog import list_caches
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, assemble, extract
from featcache.extraction.units import Shard

SEGMENT_ROWS = 4
Step = Callable[[], object]


@dataclass(kw_only=True)
class Tally:
    """The counts of one kind of work; `rows_standing_at_kills`: the published rows after each kill."""

    kills: int = 0
    runs: int = 0
    rows_standing_at_kills: list[int] = field(default_factory=list)


def steps(kind: str, images: Path, data_dir: Path) -> Sequence[Step]:
    """The commands of one kind of work, in order."""
    request = Request(dataset=images, backbone="pixels", image_size=8, data_dir=data_dir)
    quick: dict[str, Any] = {"segment_rows": SEGMENT_ROWS, "batch_size": 4, "workers": 1}
    if kind == "extract":
        return [lambda: extract(request, Execution(**quick))]
    if kind == "segments":
        return [lambda: extract(request, Execution(pack=False, **quick))]
    if kind == "shards":
        shares = [Execution(shard=Shard(number=number, of=3), **quick) for number in range(3)]
        return [functools.partial(extract, request, share) for share in shares]
    in_child(lambda: extract(request, Execution(pack=False, **quick)))
    return [lambda: assemble(request, Execution(pack=True))]


def killed_after(step: Step, seconds: float) -> bool:
    """Run the step in a child and kill it after `seconds`; returns False if it had ended by itself."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            step()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise WrongEnd(f"a child ended with {os.waitstatus_to_exitcode(status)}")
            return False
        time.sleep(0.0005)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and status:
        raise WrongEnd(f"a child ended with {os.waitstatus_to_exitcode(status)}")
    return os.WIFSIGNALED(status)


def work_through(kind: str, images: Path, scratch: Path, tally: Tally, draws: random.Random, kills: int) -> None:
    """Do one kind of work once, with repeated kills, at most `kills` in total."""
    reference, data_dir = scratch / "reference", scratch / "killed"
    for folder in (reference, data_dir):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    took = []
    for step in steps(kind, images, reference):
        began = time.monotonic()
        code, answer = in_child(step)
        if code:
            raise WrongEnd(f"without a kill it ended with {code}: {answer}")
        took.append(time.monotonic() - began)
    for step, whole_s in zip(steps(kind, images, data_dir), took, strict=True):
        standing = segments(data_dir)
        while tally.kills < kills and killed_after(step, draws.uniform(0, whole_s)):
            tally.kills += 1
            require_whole(data_dir)
            now = segments(data_dir)
            complete = any(one.complete for one in list_caches(data_dir / "features"))
            if not (standing <= now or complete):
                raise WrongEnd(f"segments are missing: {sorted(standing - now)}")
            standing = now
            tally.rows_standing_at_kills.append(SEGMENT_ROWS * len(now))
        else:
            if tally.kills >= kills and (ended := in_child(step))[0]:
                raise WrongEnd(f"after the last kill it ended with {ended}")
    tally.runs += 1
    if rows_of(data_dir) != rows_of(reference):
        raise WrongEnd("the rows differ from those without kills")


def segments(data_dir: Path) -> set[str]:
    """The files of segments that have been published."""
    return {path.name for path in data_dir.glob("features/*/*.h5")}


def main(
    kills: Annotated[int, typer.Option(help="In total, over all kinds of work.")] = 500,
    seed: int = 0,
    keep: Annotated[bool, typer.Option(help="Whether the result is written.")] = True,
) -> None:
    """Kill, check and continue; write results/kills.json."""
    kinds = ("extract", "segments", "shards", "packing")
    draws, found, began = random.Random(seed), {}, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        images = make_images(Path(folder) / "images")
        import_everything(images, Path(folder) / "first")
        for kind in kinds:
            tally = found[kind] = Tally()
            while tally.kills < kills // len(kinds):
                work_through(kind, images, Path(folder), tally, draws, kills // len(kinds))
            print(f"{kind}: {tally.kills} kills over {tally.runs} runs, none lost a segment or a row", flush=True)
    counts = {
        kind: {
            "kills": tally.kills,
            "runs": tally.runs,
            "most_rows_standing_at_a_kill": max(tally.rows_standing_at_kills, default=0),
        }
        for kind, tally in found.items()
    }
    result = {"kills": sum(one.kills for one in found.values()), "seconds": round(time.monotonic() - began), **counts}
    print(result)
    if keep:
        write("kills", result)


if __name__ == "__main__":
    typer.run(main)
