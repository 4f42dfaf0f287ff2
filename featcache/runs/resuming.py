"""A training goes on where it was cut off, and ends with the weights it would have had.

run = resume_head("last")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divided, options_of
from featcache.errors import HeadError, InvalidOption
from featcache.heads.config import HeadConfig
from featcache.heads.own import own_loss, remember
from featcache.heads.records import Progress
from featcache.rows.devices import place_of
from featcache.rows.notes import Report, tell
from featcache.runs.fit import RUNS_DIR, fit_and_write
from featcache.runs.run import Run, prepare_runs_dir, run_name
from featcache.training.checkpoint_file import CHECKPOINT_FILE, UNFINISHED_SUFFIX, read_checkpoint_metadata
from featcache.training.checkpoints import EVERY_S, Checkpoint, Unfinished, rows_digest
from featcache.training.options import TrainingOptions
from featcache.training.preparation import Prepared, prepare

LAST = "last"


# All other options are those that the training began with.
SETTLED = tuple(field.name for field in options_of(TrainingOptions) if field.name != "resident_bytes")


@accepts(TrainingOptions, without=SETTLED)
def resume_head(
    run: str | Path = LAST,
    *,
    head: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    runs_dir: Path | str = RUNS_DIR,
    progress: Progress | None = None,
    report: Report | None = None,
    checkpoint_every_s: float = EVERY_S,
    **options: Any,
) -> Run:
    """Go on with a training that was killed, or that Ctrl-C ended, from its last checkpoint.

    All options but those below are as they were at first: the same head, caches, device and number of threads, and so
    bit for bit the same head as if it had never stopped. A run that Ctrl-C had ended stays as it is, and becomes
    another.

    Args:
        run: "last", a folder, or the name of one in `runs_dir` or how that begins.
        head: What makes a head of one's own, where it cannot be imported by its path.
        loss: The loss of one's own, where this process did not begin the training.
        runs_dir: The folder that holds runs.
        progress: Called with an EpochRecord after every new epoch.
        report: Called with a sentence about whatever was left out.
        checkpoint_every_s: Seconds between two checkpoints, at least.
        {options}

    Raises:
        HeadError: There is nothing to go on with, another process is doing so already, or the caches hold other rows
            now.
        CacheError: A cache that cannot be used.
    """
    (given,) = divided(options, "resume_head", TrainingOptions, without=SETTLED)
    resident_bytes = TrainingOptions(**given).resident_bytes
    runs_dir = Path(runs_dir)
    prepare_runs_dir(runs_dir)
    folder = find_checkpoint(runs_dir, run, sweeps=False)
    checkpoint = Checkpoint.load(folder / CHECKPOINT_FILE)
    about = checkpoint.about
    config = HeadConfig.from_json(about["options"])
    _take_own(config, head, loss)
    with ExitStack() as opened:
        first, *beside = (opened.enter_context(FeatureCache.open(path)) for path in about["caches"])
        prepared = prepare(first, config, beside=beside, place=place_of(about["device"], solved=False), report=report)
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


def find_checkpoint(runs_dir: Path, run: str | Path, *, sweeps: bool) -> Path:
    """The folder with the checkpoint that is meant, of a sweep or of a single head.

    Raises HeadError where there is none, or several.
    """
    found = _find_checkpoint(runs_dir, run, sweeps)
    if _is_sweep(found) is not sweeps:
        what, command = ("a sweep", "sweep") if _is_sweep(found) else ("a single training", "train-head")
        raise HeadError(f"{found.name} is {what}", hint=f"featcache {command} --resume {run}")
    return found


def _find_checkpoint(runs_dir: Path, run: str | Path, sweeps: bool) -> Path:
    there = sorted((path.parent for path in runs_dir.glob(f"*/{CHECKPOINT_FILE}")), key=_written)
    if str(run) == LAST:
        there = [folder for folder in there if _is_sweep(folder) is sweeps]
        if not there:
            what, command = ("sweep", "sweep") if sweeps else ("training", "train-head")
            raise HeadError(f"no {what} in {runs_dir} can go on", hint=f"{command} begins one")
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


def _is_sweep(folder: Path) -> bool:
    about, _ = read_checkpoint_metadata(folder / CHECKPOINT_FILE)
    return "sweep" in about


def _with_checkpoint(folder: Path) -> Path:
    if not (folder / CHECKPOINT_FILE).exists():
        raise HeadError(
            f"{folder} has no checkpoint: its training was done, or ended within its first seconds", hint="train again"
        )
    return folder


def _take_own(config: HeadConfig, head: Callable[..., Any] | None, loss: Callable[..., Any] | None) -> None:
    """Know what is given by the paths that the training began with.

    Raises InvalidOption for what it has none of, HeadError for what is missing, before the checkpoint is touched.
    """
    if head is not None:
        config.own_by(head)
        remember("head", config.architecture.path, head)
    if loss is not None:
        if config.own_loss is None:
            raise InvalidOption("expected no loss: this training has none of one's own")
        remember("loss", config.own_loss, loss)
    if config.own is not None:
        config.own.found()
    if config.own_loss is not None:
        own_loss(config.own_loss)


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
