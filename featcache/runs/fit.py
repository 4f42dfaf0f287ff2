"""From a cache to a trained head in a run folder.

    run = train_head("data/features/digits-vgg16-....h5", head="mlp:128,64")
    run.training.test.accuracy

Train teaches, val chooses the epoch, test is looked at once, after everything has been decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, InvalidOption
from featcache.heads.config import HeadConfig
from featcache.heads.records import Progress
from featcache.heads.stopping import Interruption
from featcache.rows.devices import choose_device
from featcache.rows.notes import Report, tell
from featcache.runs.conclusion import conclude
from featcache.runs.run import Run, prepare_runs_dir, run_name
from featcache.training.board import Board
from featcache.training.checkpoint_file import CHECKPOINT_FILE
from featcache.training.checkpoints import EVERY_S, Checkpoint, Unfinished, about_training
from featcache.training.fitting import fit_prepared, head_shape
from featcache.training.preparation import Prepared, prepare
from featcache.training.threads import choose_threads


def train_head(
    cache: FeatureCache | str | Path,
    head: str = "mlp:128,64",
    *,
    beside: Sequence[FeatureCache | str | Path] = (),
    layer: str | Sequence[str] | None = None,
    activation: str = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
    mixup: float = 0.0,
    noise: float = 0.0,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    l1: float = 0.0,
    optimizer: str = "adam",
    momentum: float = 0.9,
    schedule: str = "constant",
    label_smoothing: float = 0.0,
    class_weights: str = "none",
    standardize: bool = True,
    train_views: str | None = None,
    head_batch_size: int = 64,
    max_epochs: int = 50,
    patience: int = 5,
    min_delta: float = 0.001,
    val_fraction: float = 0.2,
    val_seed: int = 42,
    seed: int = 0,
    target: str | Sequence[str] = "label",
    group: str | None = None,
    val_cut: str = "stratified",
    loss: str = "mse",
    runs_dir: Path | str = Path("runs"),
    device: str = "auto",
    threads: int | None = None,
    tensorboard: bool = False,
    resident_bytes: int | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Run:
    """Train a head on cached features and write it, with all that belongs to it, into a run folder.

    `cache`: an open cache or the path of one. `head`: `linear`, `mlp:` with hidden sizes, or one that
    is solved instead of trained by steps: `logreg`, `ridge`, `centroid`, `knn`. `layer`: one name, or
    several whose features are put side by side; None where the cache has only one. `beside`: further caches of the
    same images (other backbones), whose features stand beside those of `cache`, image by image; a layer's name then
    means that of every cache that has one, and `backbone/layer` one of them. The other options are those of
    HeadConfig. `device`: `auto`, `cpu`, `cuda`, `cuda:N`, `mps`. `threads`: torch's while a head is trained by steps
    on the CPU; None tries whether one is faster than all (training/threads.py). `tensorboard`: also write what TensorBoard
    shows. `resident_bytes`: the most that features may take on the device before they are streamed, in the same order;
    None for a share of what is free. `progress` is called with an EpochRecord after every epoch, `report` with a
    sentence about whatever was left out.

    Ctrl-C ends the training; the best epoch so far is kept, evaluated and written, marked as interrupted. Before
    the first epoch is finished, and when it comes twice, it is a KeyboardInterrupt, and nothing is written. What a
    killed training had reached a few seconds before stays, and `resume_head` goes on from there.

    Raises InvalidOption and UnknownName for options, HeadError where no head can be trained (no labels, a class
    missing, NaN in the features, a loss that diverges), CacheError for a cache that cannot be used.
    """
    layers = None if layer is None else (layer,) if isinstance(layer, str) else tuple(layer)
    config = HeadConfig(
        head=head,
        layers=layers,
        activation=activation,
        dropout=dropout,
        batch_norm=batch_norm,
        mixup=mixup,
        noise=noise,
        lr=lr,
        weight_decay=weight_decay,
        l1=l1,
        optimizer=optimizer,
        momentum=momentum,
        schedule=schedule,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        standardize=standardize,
        train_views=train_views,
        head_batch_size=head_batch_size,
        max_epochs=max_epochs,
        patience=patience,
        min_delta=min_delta,
        val_fraction=val_fraction,
        val_seed=val_seed,
        seed=seed,
        target=(target,) if isinstance(target, str) else tuple(target),
        group=group,
        val_cut=val_cut,
        loss=loss,
    )
    if resident_bytes is not None and config.architecture.solved:
        raise InvalidOption(
            f"expected --feature-memory for a head that is trained by steps, got {resident_bytes / 1e6:.0f} MB for "
            f"{config.head}, which holds all features",
            hint="leave it out",
        )
    with ExitStack() as opened:
        first, *others = (
            one if isinstance(one, FeatureCache) else opened.enter_context(FeatureCache.open(Path(one)))
            for one in (cache, *beside)
        )
        return fit_head(
            first,
            config,
            beside=others,
            runs_dir=runs_dir,
            device=device,
            threads=threads,
            tensorboard=tensorboard,
            resident_bytes=resident_bytes,
            progress=progress,
            report=report,
        )


def fit_head(
    cache: FeatureCache,
    config: HeadConfig,
    *,
    beside: Sequence[FeatureCache] = (),
    runs_dir: Path | str = Path("runs"),
    device: str = "auto",
    progress: Progress | None = None,
    report: Report | None = None,
    threads: int | None = None,
    tensorboard: bool = False,
    resident_bytes: int | None = None,
    created: datetime | None = None,
    checkpoint_every_s: float = EVERY_S,
) -> Run:
    """`train_head` for options that are a HeadConfig already, as recipes are.

    `resident_bytes`: as there; a head that is solved holds all features whatever it says. `created`: the time in UTC
    that names the run; None for now. `checkpoint_every_s`: seconds between two checkpoints, at least.
    """
    runs_dir = Path(runs_dir)
    prepare_runs_dir(runs_dir)
    config = config.for_views(cache.spec.views)
    prepared = prepare(cache, config, beside=beside, place=choose_device(device), report=report)
    created = created or datetime.now(UTC)
    count = _threads(prepared, config, threads)
    about = about_training(prepared, config, created=created, threads=count, tensorboard=tensorboard)
    name = run_name(created, prepared.origins, config)
    return fit_and_write(
        prepared,
        config,
        Unfinished.of(runs_dir, name, about=about, every_s=checkpoint_every_s),
        progress=progress,
        report=report,
        resident_bytes=resident_bytes,
    )


def fit_and_write(
    prepared: Prepared,
    config: HeadConfig,
    unfinished: Unfinished,
    *,
    progress: Progress | None = None,
    report: Report | None = None,
    resident_bytes: int | None = None,
    resumed: Checkpoint | None = None,
) -> Run:
    """Fit, test and write a run. `resumed`: the checkpoint from which the training goes on."""
    with unfinished, Interruption() as interruption, ExitStack() as opened:
        board = opened.enter_context(Board(unfinished, resumed)) if unfinished.about["tensorboard"] else None
        try:
            fitted = fit_prepared(
                prepared,
                config,
                progress=progress if board is None else board.joined(progress),
                report=report,
                resident_bytes=resident_bytes,
                interruption=interruption,
                threads=unfinished.about["threads"],
                unfinished=unfinished,
                resumed=resumed,
            )
        except HeadError:
            # It would end the same way again.
            unfinished.discard()
            raise
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
            more=_kept(unfinished, board, interrupted=fitted.interrupted),
        )
        if interruption.requested and not run.training.interrupted:
            # It came while the run was written: the run is whole, and whoever called has to stop.
            raise KeyboardInterrupt
    return run


def _threads(prepared: Prepared, config: HeadConfig, asked: int | None) -> int | None:
    if asked is not None and (config.architecture.solved or asked < 1):
        raise InvalidOption(
            f"expected --threads of at least 1, for a head that is trained by steps, got {asked} for {config.head}",
            hint="leave it out",
        )
    if asked is not None or config.architecture.solved:
        return asked
    shape = head_shape(config, prepared.rows["train"].feature_dim, prepared.classes)
    return choose_threads(config, shape, prepared.place)


def _kept(unfinished: Unfinished, board: Board | None, *, interrupted: bool) -> dict[str, bytes]:
    """What a training leaves in its run besides the head: where it can go on, what TensorBoard shows."""
    files = {} if board is None else board.files()
    checkpoint = unfinished.checkpoint if interrupted else None
    return files if checkpoint is None else files | {CHECKPOINT_FILE: checkpoint}
