"""A training goes on where it was cut off, and ends with the weights it would have had.

run = resume_head("last")
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.records import Progress
from featcache.rows.devices import choose_device
from featcache.rows.notes import Report, tell
from featcache.runs.fit import fit_and_write
from featcache.runs.run import Run, prepare_runs_dir, run_name
from featcache.training.checkpoint_file import CHECKPOINT_FILE, UNFINISHED_SUFFIX
from featcache.training.checkpoints import EVERY_S, Checkpoint, Unfinished, rows_digest
from featcache.training.preparation import Prepared, prepare

LAST = "last"


def resume_head(
    run: str | Path = LAST,
    *,
    runs_dir: Path | str = Path("runs"),
    progress: Progress | None = None,
    report: Report | None = None,
    resident_bytes: int | None = None,
    checkpoint_every_s: float = EVERY_S,
) -> Run:
    """Go on with a training that was killed, or that Ctrl-C ended, from its last checkpoint.

    `run`: "last", a folder, or the name of one in `runs_dir` or how that begins. Everything else is as it was said at
    first: the same options, caches, device and number of threads, and so bit for bit the same head as if it had never
    stopped. `progress` is called for the new epochs. A run that Ctrl-C had ended stays as it is, and becomes another.

    Raises HeadError where there is nothing to go on with, or somebody is doing so already, or the caches hold other
    rows now; CacheError for caches that cannot be used.
    """
    runs_dir = Path(runs_dir)
    prepare_runs_dir(runs_dir)
    folder = find_checkpoint(runs_dir, run)
    checkpoint = Checkpoint.load(folder / CHECKPOINT_FILE)
    about = checkpoint.about
    config = HeadConfig.from_json(about["options"])
    with ExitStack() as opened:
        first, *beside = (opened.enter_context(FeatureCache.open(path)) for path in about["caches"])
        prepared = prepare(first, config, beside=beside, place=choose_device(about["device"]), report=report)
        if rows_digest(prepared) != about["rows"]:
            raise HeadError(
                f"the caches of {folder.name} hold other rows or labels than when its training began",
                hint="train again",
            )
        unfinished = _place(runs_dir, folder, prepared, config, about, checkpoint_every_s)
        unfinished.claim()
        tell(report, [f"going on after epoch {len(checkpoint.history)} of at most {config.max_epochs}"])
        return fit_and_write(
            prepared,
            config,
            unfinished,
            progress=progress,
            report=report,
            resident_bytes=resident_bytes,
            resumed=checkpoint,
        )


def find_checkpoint(runs_dir: Path, run: str | Path) -> Path:
    """The folder with the checkpoint that is meant. Raises HeadError where there is none, or several."""
    there = sorted((path.parent for path in runs_dir.glob(f"*/{CHECKPOINT_FILE}")), key=_written)
    if str(run) == LAST:
        if not there:
            raise HeadError(f"no training in {runs_dir} can go on", hint="train-head begins one")
        return there[-1]
    if Path(run).is_dir():
        return _with_checkpoint(Path(run))
    named = [folder for folder in there if folder.name in (str(run), f"{run}{UNFINISHED_SUFFIX}")]
    found = named or [folder for folder in there if folder.name.startswith(str(run))]
    if len(found) == 1:
        return found[0]
    if not found and (runs_dir / run).is_dir():
        return _with_checkpoint(runs_dir / run)
    names = ", ".join(folder.name for folder in found or there)
    raise HeadError(
        f"expected one training called {run} that can go on, got {len(found)} in {runs_dir}",
        hint=f"there is {names}" if names else "train-head begins one",
    )


def _with_checkpoint(folder: Path) -> Path:
    if not (folder / CHECKPOINT_FILE).exists():
        raise HeadError(
            f"{folder} has no checkpoint: its training was done, or ended within its first seconds", hint="train again"
        )
    return folder


def _written(folder: Path) -> int:
    return (folder / CHECKPOINT_FILE).stat().st_mtime_ns


def _place(
    runs_dir: Path, folder: Path, prepared: Prepared, config: HeadConfig, about: Mapping[str, Any], every_s: float
) -> Unfinished:
    """Where it goes on: in its own folder, or beside the run that Ctrl-C had made of it."""
    if folder.name.endswith(UNFINISHED_SUFFIX):
        return Unfinished(folder=folder, about=about, every_s=every_s)
    created = datetime.now(UTC)
    name = run_name(created, prepared.origins, config)
    return Unfinished.of(runs_dir, name, about={**about, "created": created.isoformat()}, every_s=every_s)
