"""From a cache to a trained head in a run folder.

    run = train_head("data/features/digits-vgg16-....h5", head="mlp:128,64")
    run.training.test.accuracy

Train teaches, val chooses the epoch, test is looked at once, after everything has been decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divided
from featcache.errors import HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.doubts import worse_than_constant
from featcache.heads.records import Progress
from featcache.heads.stopping import Interruption
from featcache.rows.devices import place_of
from featcache.rows.notes import Report, tell
from featcache.runs.conclusion import conclude
from featcache.runs.run import Run, prepare_runs_dir, run_name
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
    progress: Progress | None = None,
    report: Report | None = None,
    **options: Any,
) -> Run:
    """Train a head on cached features and write it, with all that belongs to it, into a run folder.

    Ctrl-C ends the training; the best epoch so far is kept, evaluated and written, marked as interrupted. Before
    the first epoch is finished, and when it comes twice, it is a KeyboardInterrupt, and nothing is written. What a
    killed training had reached a few seconds before stays, and `resume_head` goes on from there.

    Args:
        cache: An open cache, which stays open, or the path of one.
        head: `linear`; `mlp:` and the sizes of hidden layers; or one that is solved instead of trained by steps:
            `logreg`, `ridge`, `centroid`, `knn`. Or a head of one's own: a class of torch modules, or a function
            f(in_features, outputs, **head_arguments) -> nn.Module, that maps float32 (B, D) to (B, C). `loss` may then,
            as for any head that is trained by steps, be a function f(outputs, targets) -> a tensor of one number, with
            targets int64 (B,) for classes and float32 (B, C) else.
        head_arguments: For a head of one's own; numbers, text, lists and mappings of them.
        beside: Further caches of the same images (other backbones), whose features stand beside those of `cache`, image
            by image. A layer's name then means that of every cache that has one, and `backbone/layer` one of them.
        runs_dir: The folder that holds runs.
        progress: Called with an EpochRecord after every epoch.
        report: Called with a sentence about whatever was left out.
        {options}

    Returns:
        The run, which stands in a folder of its own in `runs_dir`.

    Raises:
        InvalidOption, UnknownName: An option that there is not, a value that cannot be used, or one that would do
            nothing.
        HeadError: No head can be trained: no labels, a class missing, NaN in the features, a loss that diverges.
        CacheError: A cache that cannot be used.
    """
    own = ("cache", "head", "head_arguments", "beside", "runs_dir", "progress", "report")
    given, how = divided(options, "train_head", HeadConfig, TrainingOptions, without=("head",), also=own)
    config = HeadConfig.of({"head": head, "head_arguments": head_arguments or {}, **given})
    TrainingOptions(**how).require_steps(config)
    return fit_head(cache, config, beside=beside, runs_dir=runs_dir, progress=progress, report=report, **how)


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
    """`train_head` for options that are a HeadConfig already, as recipes are.

    A head that is solved takes no notice of options that belong to training by steps.

    Args:
        created: The time in UTC that names the run; None for now.
        checkpoint_every_s: Seconds between two checkpoints, at least.
        {options}
    """
    (given,) = divided(options, "fit_head", TrainingOptions)
    how = TrainingOptions(**given)
    runs_dir = Path(runs_dir)
    prepare_runs_dir(runs_dir)
    with ExitStack() as opened:
        first, *others = (opened.enter_context(one) for one in map(opened_cache, (cache, *beside)))
        config = config.for_views(first.spec.views)
        prepared = prepare(
            first, config, beside=others, place=place_of(how.device, solved=config.architecture.solved), report=report
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


def opened_cache(cache: FeatureCache | str | Path) -> AbstractContextManager[FeatureCache]:
    """The cache as a context, which closes what it opened. Raises CacheError."""
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
    """Fit, test and write a run. `resumed`: the checkpoint from which the training goes on."""
    with unfinished, Interruption() as interruption, ExitStack() as opened:
        board = None
        if unfinished.about["logger"]:
            past = () if resumed is None else resumed.history
            board = opened.enter_context(
                RunLogger(unfinished.about["logger"], unfinished, metric=prepared.target.metric, past=past)
            )
        try:
            fitted = fit(
                prepared,
                config,
                progress=progress if board is None else board.joined(progress),
                report=report,
                resident_bytes=resident_bytes,
                interruption=interruption,
                threads=unfinished.about["threads"],
                unfinished=unfinished,
                resumed=resumed,
                trainer=trainer,
            )
        except HeadError:
            # It would end the same way again.
            unfinished.discard()
            raise
        doubts = worse_than_constant(fitted.val.score(), outputs=prepared.target.outputs, config=config)
        fitted = replace(fitted, notes=(*fitted.notes, *doubts))
        tell(report, [f"warning: {doubt}" for doubt in doubts])
        if fitted.interrupted:
            tell(report, ["interrupted: the best epoch so far is tested and written; Ctrl-C again ends at once"])
        run = conclude(
            prepared,
            config,
            fitted,
            runs_dir=unfinished.folder.parent,
            created=datetime.fromisoformat(unfinished.about["created"]),
            name=unfinished.name,
            interruption=interruption,
            trainer="featcache" if trainer == "featcache" else "lightning",
            logger=unfinished.about["logger"],
            more=_kept(unfinished, board, interrupted=fitted.interrupted),
        )
        if interruption.requested and not run.training.interrupted:
            # It came while the run was written: the run is whole, and the caller has to stop.
            raise KeyboardInterrupt
    return run


def _kept(unfinished: Unfinished, board: RunLogger | None, *, interrupted: bool) -> dict[str, bytes]:
    """What a training leaves in its run besides the head: where it can go on, what a logger has written."""
    files = {} if board is None else board.files()
    checkpoint = unfinished.checkpoint if interrupted else None
    return files if checkpoint is None else files | {CHECKPOINT_FILE: checkpoint}
