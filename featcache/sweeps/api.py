"""Trains many heads with one call: grids of options, several seeds, folds, and few-shot draws.

found = sweep(cache, "mlp:128,64", grid={"dropout": [0, 0.5], "weight_decay": [0, 1e-4]}, seeds=3)
found = sweep([vgg, dinov2], grid={"head": ["linear", "knn"]})
found.best.values, found.run, found.test
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divide_options
from featcache.errors import InvalidOption
from featcache.heads.config import HeadConfig
from featcache.progress import ProgressBar, call_bar
from featcache.rows.notes import Report, report_notes
from featcache.runs.fit import RUNS_DIR, open_cache
from featcache.runs.resuming import FIXED_OPTIONS, LATEST, find_checkpoint
from featcache.sweeps.grid import Grid
from featcache.sweeps.options import SweepOptions
from featcache.sweeps.plan import SweepPlan, cache_names
from featcache.sweeps.records import Sweep
from featcache.sweeps.sweeping import SweepProgress, sweep_heads
from featcache.training.checkpoint_file import CHECKPOINT_FILE, UNFINISHED_SUFFIX
from featcache.training.checkpoints import EVERY_S, Checkpoint
from featcache.training.options import TrainingOptions

AnyCache = FeatureCache | str | Path


@accepts(HeadConfig, SweepOptions, TrainingOptions, without=("head", "logger", "trainer"))
def sweep(
    cache: AnyCache | Sequence[AnyCache],
    head: str | Callable[..., Any] | None = None,
    *,
    head_arguments: Mapping[str, Any] | None = None,
    grid: Grid | None = None,
    beside: Sequence[AnyCache] = (),
    runs_dir: Path | str = RUNS_DIR,
    progress: SweepProgress | bool | None = None,
    report: Report | None = None,
    **options: Any,
) -> Sweep:
    """Train a head for every combination of `grid`, rank the combinations, and write the best head as a run.

    The score on val ranks the heads (with folds, the score on the held-out images); only the selected head is
    evaluated on test. Heads of the same shape are trained as one batch where that is faster. Each equals, within
    rounding, the head that `train_head` gives, except that dropout draws other random numbers. A head that diverges
    is marked and ranks last.

    Ctrl-C stops the sweep: finished heads are ranked, the best so far is written, and the record is marked
    interrupted. Before any head has finished an epoch, Ctrl-C raises KeyboardInterrupt, and nothing is written.

    Args:
        cache: An open cache or the path of one; or several of the same images, each a value of the grid.
        head: The head, if the grid does not vary it. May be your own head, as in `train_head`, here and in the grid.
        head_arguments: Arguments for all of your own heads.
        grid: Lists of values by option name: `{"dropout": [0, 0.5], "layer": ["a", ("a", "b")]}`.
        beside: Further caches of the same images. Their features are joined to those of each `cache`.
        runs_dir: The folder that holds runs.
        progress: None or True: a progress bar, in a terminal or a notebook. False: no bar. Or a function, called with
            (epochs done, epochs in total); a head that stops early counts as having done all of its epochs.
        report: Called with a sentence about anything that was left out.
        {options}

    Returns:
        The sweep: one row per combination, the best first, and the run of the best head.

    Raises:
        InvalidOption, UnknownName: An unknown option, a value that cannot be used, or an option without effect.
        HeadError: No head can be trained: too few images for the folds or shots, no labels, every head diverged.
        CacheError: A cache that cannot be used.
    """
    own = ("cache", "head", "head_arguments", "grid", "beside", "runs_dir", "progress", "report")
    left_out = ("head", "logger", "trainer")
    records = (HeadConfig, SweepOptions, TrainingOptions)
    given, which, how = divide_options(options, "sweep", *records, without=left_out, also=own)
    if head is not None:
        given["head"] = head
    if head_arguments:
        given["head_arguments"] = head_arguments
    several: Sequence[AnyCache] = [cache] if isinstance(cache, FeatureCache | str | Path) else cache
    if not several:
        raise InvalidOption("expected a cache, or a list of them, got an empty list")
    with call_bar(progress) as bar, ExitStack() as opened:
        caches = [opened.enter_context(open_cache(one)) for one in several]
        others = [opened.enter_context(open_cache(one)) for one in beside]
        plan = SweepPlan.of(given, grid or {}, SweepOptions(**which), caches=cache_names(caches))
        return sweep_heads(
            caches,
            plan,
            TrainingOptions(**how),
            beside=others,
            runs_dir=runs_dir,
            progress=_epochs_progress(progress, bar),
            report=report,
        )


@accepts(TrainingOptions, without=FIXED_OPTIONS)
def resume_sweep(
    run: str | Path = LATEST,
    *,
    runs_dir: Path | str = RUNS_DIR,
    progress: SweepProgress | bool | None = None,
    report: Report | None = None,
    checkpoint_every_s: float = EVERY_S,
    **options: Any,
) -> Sweep:
    """Continue a sweep that was killed or ended by Ctrl-C, from its last checkpoint.

    All other options keep their first values, also caches, device and threads. The heads trained by steps are bit for
    bit those that an uninterrupted sweep gives.

    Args:
        run: "latest", a folder, or the name of a folder in `runs_dir` or the beginning of one name.
        runs_dir: The folder that holds runs.
        progress: As in `sweep`.
        report: Called with a sentence about anything that was left out.
        checkpoint_every_s: Least time between two checkpoints, in seconds.
        {options}

    Returns:
        The sweep, as `sweep` returns it.

    Raises:
        HeadError: There is no checkpoint, another process is continuing it already, or the caches now hold other rows.
        CacheError: A cache that cannot be used.
    """
    (given,) = divide_options(options, "resume_sweep", TrainingOptions, without=FIXED_OPTIONS)
    runs_dir = Path(runs_dir)
    folder = find_checkpoint(runs_dir, run, sweeps=True)
    checkpoint = Checkpoint.load(folder / CHECKPOINT_FILE)
    about = checkpoint.about
    created = datetime.fromisoformat(about["created"]) if folder.name.endswith(UNFINISHED_SUFFIX) else datetime.now(UTC)
    with call_bar(progress) as bar, ExitStack() as opened:
        caches, others = (
            [opened.enter_context(FeatureCache.open(Path(path))) for path in about[name]]
            for name in ("alternatives", "beside")
        )
        report_notes(report, [f"resuming with {len(checkpoint.progress['finished'])} heads finished"])
        return sweep_heads(
            caches,
            SweepPlan.from_json(about["sweep"]),
            TrainingOptions(device=about["device"], threads=about["threads"], **given),
            beside=others,
            runs_dir=runs_dir,
            progress=_epochs_progress(progress, bar),
            report=report,
            created=created,
            name=folder.name.removesuffix(UNFINISHED_SUFFIX) if folder.name.endswith(UNFINISHED_SUFFIX) else None,
            checkpoint_every_s=checkpoint_every_s,
            resumed=checkpoint,
        )


def _epochs_progress(progress: SweepProgress | bool | None, bar: ProgressBar) -> SweepProgress:
    """The function to call with the epochs: the caller's own, or one that draws them on `bar`."""
    return progress if callable(progress) else lambda epochs, total: bar.advance("sweeping", epochs, total)
