"""Continues an interrupted or killed training from its last checkpoint, with the same final weights.

run = resume_head("latest")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divide_options, options_of
from featcache.errors import HeadError, InvalidOption
from featcache.heads.config import HeadConfig
from featcache.heads.own import own_loss, remember
from featcache.heads.records import Progress
from featcache.progress import call_bar
from featcache.rows.devices import resolve_device_name
from featcache.rows.notes import Report, report_notes
from featcache.runs.fit import RUNS_DIR, epoch_progress, fit_and_write
from featcache.runs.run import Run, prepare_runs_dir, run_name
from featcache.training.checkpoint_file import CHECKPOINT_FILE, UNFINISHED_SUFFIX, read_checkpoint_metadata
from featcache.training.checkpoints import EVERY_S, Checkpoint, Unfinished, rows_digest
from featcache.training.options import TrainingOptions
from featcache.training.preparation import Prepared, prepare

LATEST = "latest"
# An older word for it.
_LAST = "last"


# A resumed training takes these from its checkpoint; only `resident_bytes` may be given anew.
FIXED_OPTIONS = tuple(field.name for field in options_of(TrainingOptions) if field.name != "resident_bytes")


@accepts(TrainingOptions, without=FIXED_OPTIONS)
def resume_head(
    run: str | Path = LATEST,
    *,
    head: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    runs_dir: Path | str = RUNS_DIR,
    progress: Progress | bool | None = None,
    report: Report | None = None,
    checkpoint_every_s: float = EVERY_S,
    **options: Any,
) -> Run:
    """Continue a training that was killed or ended by Ctrl-C, from its last checkpoint.

    All other options keep their first values: head, caches, device and number of threads. The resulting head is
    bit for bit the one that an uninterrupted training gives. A run that Ctrl-C ended is not changed; the continued
    training writes a new run.

    Args:
        run: "latest", a folder, or the name of a folder in `runs_dir` or the beginning of one name.
        head: Builds your own head, if it cannot be imported by its path.
        loss: Your own loss, if the training was begun by another process.
        runs_dir: The folder that holds runs.
        progress: As in `train_head`; of the new epochs.
        report: Called with a sentence about anything that was left out.
        checkpoint_every_s: Least time between two checkpoints, in seconds.
        {options}

    Returns:
        The run, written into its own folder in `runs_dir`.

    Raises:
        HeadError: There is no checkpoint, another process is continuing it already, or the caches now hold other rows.
        CacheError: A cache that cannot be used.
    """
    (given,) = divide_options(options, "resume_head", TrainingOptions, without=FIXED_OPTIONS)
    resident_bytes = TrainingOptions(**given).resident_bytes
    runs_dir = Path(runs_dir)
    prepare_runs_dir(runs_dir)
    folder = find_checkpoint(runs_dir, run, sweeps=False)
    checkpoint = Checkpoint.load(folder / CHECKPOINT_FILE)
    about = checkpoint.about
    config = HeadConfig.from_json(about["options"])
    _take_own(config, head, loss)
    with call_bar(progress) as bar, ExitStack() as opened:
        first, *beside = (opened.enter_context(FeatureCache.open(path)) for path in about["caches"])
        prepared = prepare(
            first, config, beside=beside, device=resolve_device_name(about["device"], solved=False), report=report
        )
        if rows_digest(prepared) != about["rows"]:
            raise HeadError(
                f"the caches of {folder.name} hold other rows or labels than when its training began",
                hint="train again",
            )
        unfinished = _place(runs_dir, folder, prepared, config, about, checkpoint_every_s)
        unfinished.claim()
        report_notes(report, [f"resuming after epoch {len(checkpoint.history)} of at most {config.max_epochs}"])
        return fit_and_write(
            prepared,
            config,
            unfinished,
            progress=epoch_progress(progress, bar.advance),
            report=report,
            resident_bytes=resident_bytes,
            resumed=checkpoint,
        )


def find_checkpoint(runs_dir: Path, run: str | Path, *, sweeps: bool) -> Path:
    """Find the folder of a checkpoint: of a sweep if `sweeps`, else of a single training.

    `run`: "latest", a folder, or the name of a folder in `runs_dir` or the beginning of one name. Raises HeadError
    unless exactly one matches.
    """
    found = _find_checkpoint(runs_dir, run, sweeps)
    if _is_sweep(found) is not sweeps:
        what, command = ("a sweep", "sweep") if _is_sweep(found) else ("a single training", "train-head")
        raise HeadError(f"{found.name} is {what}", hint=f"featcache {command} --resume {run}")
    return found


def _find_checkpoint(runs_dir: Path, run: str | Path, sweeps: bool) -> Path:
    there = sorted((path.parent for path in runs_dir.glob(f"*/{CHECKPOINT_FILE}")), key=_checkpoint_time)
    if str(run) in (LATEST, _LAST):
        there = [folder for folder in there if _is_sweep(folder) is sweeps]
        if not there:
            what, command = ("sweep", "sweep") if sweeps else ("training", "train-head")
            raise HeadError(f"no {what} in {runs_dir} can be resumed", hint=f"{command} starts one")
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
        f"expected one training named {run} that can be resumed, got {len(found)} in {runs_dir}",
        hint=f"resumable: {names}" if names else "train-head starts one",
    )


def _is_sweep(folder: Path) -> bool:
    about, _ = read_checkpoint_metadata(folder / CHECKPOINT_FILE)
    return "sweep" in about


def _with_checkpoint(folder: Path) -> Path:
    if not (folder / CHECKPOINT_FILE).exists():
        raise HeadError(
            f"{folder} has no checkpoint: its training is complete, or ended within its first seconds",
            hint="train again",
        )
    return folder


def _take_own(config: HeadConfig, head: Callable[..., Any] | None, loss: Callable[..., Any] | None) -> None:
    """Register the given head and loss under the import paths in the checkpoint.

    Raises InvalidOption for a head or loss that the training does not use, HeadError for one that is needed and
    missing; the checkpoint is not changed.
    """
    if head is not None:
        config.own_by(head)
        remember("head", config.architecture.path, head)
    if loss is not None:
        if config.own_loss is None:
            raise InvalidOption("expected no loss: this training uses no loss of your own")
        remember("loss", config.own_loss, loss)
    if config.own is not None:
        config.own.resolve()
    if config.own_loss is not None:
        own_loss(config.own_loss)


def _checkpoint_time(folder: Path) -> int:
    return (folder / CHECKPOINT_FILE).stat().st_mtime_ns


def _place(
    runs_dir: Path, folder: Path, prepared: Prepared, config: HeadConfig, about: Mapping[str, Any], every_s: float
) -> Unfinished:
    """Where it continues: in its own folder, or in a new one if Ctrl-C had ended it and a run was written."""
    if folder.name.endswith(UNFINISHED_SUFFIX):
        return Unfinished(folder=folder, about=about, every_s=every_s)
    created = datetime.now(UTC)
    name = run_name(created, prepared.origins, config)
    return Unfinished.of(runs_dir, name, about={**about, "created": created.isoformat()}, every_s=every_s)
