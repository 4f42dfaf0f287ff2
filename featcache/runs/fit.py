"""Trains a head on a cache and writes it into a run folder.

    run = train_head("data/features/digits-vgg16-....h5", head="mlp:128,64")
    run.training.test.accuracy

The head is fitted on train, val selects the epoch, and test is evaluated once, after everything has been decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divide_options
from featcache.errors import HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.doubts import worse_than_constant
from featcache.heads.records import Progress
from featcache.heads.stopping import Interruption
from featcache.progress import StageProgress, call_bar
from featcache.rows.devices import resolve_device_name
from featcache.rows.notes import Report, report_notes
from featcache.runs.run import Run, prepare_runs_dir, run_name
from featcache.runs.saving import evaluate_and_save
from featcache.training.checkpoint_file import CHECKPOINT_FILE
from featcache.training.checkpoints import EVERY_S, Checkpoint, Unfinished, about_training
from featcache.training.fit import fit
from featcache.training.loggers import RunLogger
from featcache.training.options import TrainingOptions
from featcache.training.preparation import Prepared, prepare

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

RUNS_DIR = Path("runs")


@accepts(HeadConfig, TrainingOptions, without=("head",))
def train_head(
    cache: FeatureCache | str | Path,
    head: str | Callable[..., Any] = HeadConfig.head,
    *,
    head_arguments: Mapping[str, Any] | None = None,
    beside: Sequence[FeatureCache | str | Path] = (),
    runs_dir: Path | str = RUNS_DIR,
    progress: Progress | bool | None = None,
    report: Report | None = None,
    **options: Any,
) -> Run:
    """Train a head on cached features and write it into a run folder.

    Ctrl-C stops the training; the best epoch so far is evaluated and written as a run marked interrupted. A Ctrl-C
    before the end of the first epoch, or a second Ctrl-C, raises KeyboardInterrupt, and nothing is written. A training
    that is killed leaves its last checkpoint, usually a few seconds old; `resume_head` continues from it.

    Args:
        cache: An open cache, which stays open, or the path of a cache.
        head: `linear`; `mlp:` and the sizes of the hidden layers; or a head that is solved instead of trained by
            steps: `logreg`, `ridge`, `centroid`, `knn`. On a cache of a backbone `open_clip:NAME` also `text:TEMPLATE`,
            which is made of the class names alone ({} in the template), and `text+linear:TEMPLATE`, a linear head that
            begins there. Or your own head: a class of torch modules, or a function
            f(in_features, outputs, **head_arguments) -> nn.Module, that maps float32 (B, D) to (B, C). The option
            `loss` of any head trained by steps may be a function f(outputs, targets) -> tensor with one number;
            targets are int64 (B,) for classes, else float32 (B, C).
        head_arguments: Arguments of your own head: numbers, text, and lists and mappings of these.
        beside: Further caches of the same images (other backbones). Their features are joined to those of `cache`,
            image by image. A layer's name then selects it in every cache that has it; `backbone/layer` in one cache.
        runs_dir: The folder that holds runs.
        progress: None or True: a progress bar, in a terminal or a notebook. False: no bar. Or a function, called with
            an EpochRecord after every epoch.
        report: Called with a sentence about anything that was left out.
        {options}

    Returns:
        The run, written into its own folder in `runs_dir`.

    Raises:
        InvalidOption, UnknownName: An unknown option, a value that cannot be used, or an option without effect.
        HeadError: No head can be trained: no labels, a class missing, NaN in the features, a diverging loss.
        CacheError: A cache that cannot be used.
    """
    own = ("cache", "head", "head_arguments", "beside", "runs_dir", "progress", "report")
    given, how = divide_options(options, "train_head", HeadConfig, TrainingOptions, without=("head",), also=own)
    config = HeadConfig.of({"head": head, "head_arguments": head_arguments or {}, **given})
    TrainingOptions(**how).require_steps(config)
    with call_bar(progress) as bar:
        shown = epoch_progress(progress, bar.advance)
        return fit_head(cache, config, beside=beside, runs_dir=runs_dir, progress=shown, report=report, **how)


def epoch_progress(progress: Progress | bool | None, advance: StageProgress) -> Progress:
    """The function to call with every epoch: the caller's own, or one that counts the epochs by `advance`."""
    if callable(progress):
        return progress
    return lambda epoch: advance("solving" if epoch.candidate else "training", epoch.epoch, epoch.max_epochs)


@accepts(TrainingOptions)
def fit_head(
    cache: FeatureCache | str | Path,
    config: HeadConfig,
    *,
    beside: Sequence[FeatureCache | str | Path] = (),
    runs_dir: Path | str = RUNS_DIR,
    progress: Progress | None = None,
    report: Report | None = None,
    created: datetime | None = None,
    checkpoint_every_s: float = EVERY_S,
    **options: Any,
) -> Run:
    """Like `train_head`, for head options that are a HeadConfig already, as in a recipe.

    A head that is solved ignores the options that belong to training by steps.

    Args:
        cache: An open cache, which stays open, or the path of a cache.
        config: The head's options.
        beside: Further caches of the same images, as in `train_head`.
        runs_dir: The folder that holds runs.
        progress: Called with an EpochRecord after every epoch.
        report: Called with a sentence about anything that was left out.
        created: The time in UTC that names the run; None for now.
        checkpoint_every_s: Seconds between two checkpoints, at least.
        {options}
    """
    (given,) = divide_options(options, "fit_head", TrainingOptions)
    how = TrainingOptions(**given)
    runs_dir = Path(runs_dir)
    prepare_runs_dir(runs_dir)
    with ExitStack() as opened:
        first, *others = (opened.enter_context(one) for one in map(open_cache, (cache, *beside)))
        config = config.for_views(first.spec.views)
        prepared = prepare(
            first,
            config,
            beside=others,
            device=resolve_device_name(how.device, solved=config.architecture.solved),
            report=report,
        )
        created = created or datetime.now(UTC)
        about = about_training(prepared, config, created=created, threads=how.threads, logger=how.logger)
        return fit_and_write(
            prepared,
            config,
            Unfinished.of(
                runs_dir, run_name(created, prepared.origins, config), about=about, every_s=checkpoint_every_s
            ),
            progress=progress,
            report=report,
            resident_bytes=how.resident_bytes,
            trainer=how.trainer,
        )


def open_cache(cache: FeatureCache | str | Path) -> AbstractContextManager[FeatureCache]:
    """A context that gives the cache, and closes it only if it was opened here. Raises CacheError."""
    return nullcontext(cache) if isinstance(cache, FeatureCache) else FeatureCache.open(Path(cache))


def fit_and_write(
    prepared: Prepared,
    config: HeadConfig,
    unfinished: Unfinished,
    *,
    progress: Progress | None = None,
    report: Report | None = None,
    resident_bytes: int | None = None,
    resumed: Checkpoint | None = None,
    trainer: Literal["featcache", "lightning"] | Trainer = "featcache",
) -> Run:
    """Fit a head, evaluate it on test and write the run. `resumed`: the checkpoint to continue from."""
    with unfinished, Interruption() as interruption, ExitStack() as opened:
        run_logger = None
        if unfinished.about["logger"]:
            past = () if resumed is None else resumed.history
            run_logger = opened.enter_context(
                RunLogger(unfinished.about["logger"], unfinished, metric=prepared.target.metric, past=past)
            )
        try:
            fitted = fit(
                prepared,
                config,
                progress=progress if run_logger is None else run_logger.wrap_progress(progress),
                report=report,
                resident_bytes=resident_bytes,
                interruption=interruption,
                threads=unfinished.about["threads"],
                unfinished=unfinished,
                resumed=resumed,
                trainer=trainer,
            )
        except HeadError:
            # Resuming from the checkpoint would fail in the same way.
            unfinished.discard()
            raise
        doubts = worse_than_constant(fitted.val.score(), outputs=prepared.target.outputs, config=config)
        fitted = replace(fitted, notes=(*fitted.notes, *doubts))
        report_notes(report, [f"warning: {doubt}" for doubt in doubts])
        if fitted.interrupted:
            report_notes(
                report, ["interrupted: the best epoch so far is tested and written; Ctrl-C again ends at once"]
            )
        run = evaluate_and_save(
            prepared,
            config,
            fitted,
            runs_dir=unfinished.folder.parent,
            created=datetime.fromisoformat(unfinished.about["created"]),
            name=unfinished.name,
            interruption=interruption,
            trainer=trainer,
            logger=unfinished.about["logger"],
            more=_extra_files(unfinished, run_logger, interrupted=fitted.interrupted),
        )
        if interruption.requested and not run.training.interrupted:
            # Ctrl-C came while the run was written: the run is complete, and the caller has to stop.
            raise KeyboardInterrupt
    return run


def _extra_files(unfinished: Unfinished, run_logger: RunLogger | None, *, interrupted: bool) -> dict[str, bytes]:
    """Further files of a run: the checkpoint of an interrupted training, and the files of a logger."""
    files = {} if run_logger is None else run_logger.files()
    checkpoint = unfinished.checkpoint if interrupted else None
    return files if checkpoint is None else files | {CHECKPOINT_FILE: checkpoint}
