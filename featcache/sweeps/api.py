"""Many heads from one call: which options are best, how much seeds scatter, what few images or other folds would give.

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
from featcache.config import accepts, divided
from featcache.errors import InvalidOption
from featcache.heads.config import HeadConfig
from featcache.rows.notes import Report, tell
from featcache.runs.fit import RUNS_DIR, opened_cache
from featcache.runs.resuming import LAST, SETTLED, find_checkpoint
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
    progress: SweepProgress | None = None,
    report: Report | None = None,
    **options: Any,
) -> Sweep:
    """Train a head for every combination of `grid`, rank them, and write the best one as a run.

    Val ranks (with folds, the images that were held out); test is looked at for the chosen head alone. Heads of one
    shape train as one, as far as that is measured to be faster; each is, within rounding, the head that `train_head`
    gives, but for dropout, whose random numbers differ. A head that diverges is marked, and ranks last.

    Ctrl-C ends it: what was finished is ranked, the best so far written, and the record marked as interrupted. Before
    any head has finished an epoch it is a KeyboardInterrupt, and nothing is written.

    Args:
        cache: An open cache or the path of one; or several of the same images, each a value of the grid.
        head: The head, where the grid does not vary it. As in `train_head` it may be one's own, here and in the grid.
        head_arguments: For all heads of one's own.
        grid: Lists of values by the name of an option: `{"dropout": [0, 0.5], "layer": ["a", ("a", "b")]}`.
        beside: Further caches of the same images, whose features stand beside those of each `cache`.
        runs_dir: The folder that holds runs.
        progress: Called with (epochs done, epochs in all); a head that stops early has done all of its own.
        report: Called with a sentence about whatever was left out.
        {options}

    Returns:
        What was found: a row a combination, the best first, and the run that was written of the best head.

    Raises:
        InvalidOption, UnknownName: An option that there is not, a value that cannot be used, or one that would do
            nothing.
        HeadError: No head can be trained: too few images for the folds or shots, no labels, every head diverged.
        CacheError: A cache that cannot be used.
    """
    own = ("cache", "head", "head_arguments", "grid", "beside", "runs_dir", "progress", "report")
    left_out = ("head", "logger", "trainer")
    records = (HeadConfig, SweepOptions, TrainingOptions)
    given, which, how = divided(options, "sweep", *records, without=left_out, also=own)
    if head is not None:
        given["head"] = head
    if head_arguments:
        given["head_arguments"] = head_arguments
    several: Sequence[AnyCache] = [cache] if isinstance(cache, FeatureCache | str | Path) else cache
    if not several:
        raise InvalidOption("expected a cache, or a list of them, got an empty list")
    with ExitStack() as opened:
        caches = [opened.enter_context(opened_cache(one)) for one in several]
        others = [opened.enter_context(opened_cache(one)) for one in beside]
        plan = SweepPlan.of(given, grid or {}, SweepOptions(**which), caches=cache_names(caches))
        return sweep_heads(
            caches, plan, TrainingOptions(**how), beside=others, runs_dir=runs_dir, progress=progress, report=report
        )


@accepts(TrainingOptions, without=SETTLED)
def resume_sweep(
    run: str | Path = LAST,
    *,
    runs_dir: Path | str = RUNS_DIR,
    progress: SweepProgress | None = None,
    report: Report | None = None,
    checkpoint_every_s: float = EVERY_S,
    **options: Any,
) -> Sweep:
    """Go on with a sweep that was killed, or that Ctrl-C ended, from its last checkpoint.

    Everything else is as it was at first: the same options, caches, device and threads, and so bit for bit the same
    heads trained by steps as if it had never stopped.

    Args:
        run: "last", a folder, or the name of one in `runs_dir` or how that begins.
        runs_dir: The folder that holds runs.
        progress: Called with (epochs done, epochs in all).
        report: Called with a sentence about whatever was left out.
        checkpoint_every_s: Seconds between two checkpoints, at least.
        {options}

    Raises:
        HeadError: There is nothing to go on with, or it is in training, or the caches hold other rows now.
        CacheError: A cache that cannot be used.
    """
    (given,) = divided(options, "resume_sweep", TrainingOptions, without=SETTLED)
    runs_dir = Path(runs_dir)
    folder = find_checkpoint(runs_dir, run, sweeps=True)
    checkpoint = Checkpoint.load(folder / CHECKPOINT_FILE)
    about = checkpoint.about
    created = datetime.fromisoformat(about["created"]) if folder.name.endswith(UNFINISHED_SUFFIX) else datetime.now(UTC)
    with ExitStack() as opened:
        caches, others = (
            [opened.enter_context(FeatureCache.open(Path(path))) for path in about[name]]
            for name in ("alternatives", "beside")
        )
        tell(report, [f"going on with {len(checkpoint.progress['finished'])} heads finished"])
        return sweep_heads(
            caches,
            SweepPlan.from_json(about["sweep"]),
            TrainingOptions(device=about["device"], threads=about["threads"], **given),
            beside=others,
            runs_dir=runs_dir,
            progress=progress,
            report=report,
            created=created,
            name=folder.name.removesuffix(UNFINISHED_SUFFIX) if folder.name.endswith(UNFINISHED_SUFFIX) else None,
            checkpoint_every_s=checkpoint_every_s,
            resumed=checkpoint,
        )
