"""From a cache to a trained head in a run folder.

    run = train_head("data/features/digits-vgg16-....h5", head="mlp:128,64")
    run.training.test.accuracy

Train teaches, val chooses the epoch, test is looked at once, after everything has been decided.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from featcache.cache.catalog import mark_used
from featcache.cache.reader import FeatureCache
from featcache.heads.architectures import HeadShape, build_head
from featcache.heads.batches import Batches, FeatureRows, StreamedBatches, open_batches
from featcache.heads.calibration import sharpness
from featcache.heads.config import HeadConfig
from featcache.heads.cuts import Cut, cut_cache
from featcache.heads.joining import CacheLayers, choose_columns, joined_rows, require_same_images
from featcache.heads.lightning import HeadModule, balanced_weights, fit
from featcache.heads.metrics import Outcome, evaluate, measure
from featcache.heads.placement import choose_device, seeded
from featcache.heads.records import (
    EpochRecord,
    FeatureLayer,
    FeatureOrigin,
    Metrics,
    Predictions,
    Progress,
    Report,
    Score,
    Training,
)
from featcache.heads.runs import Run, prepare_runs_dir, write_run
from featcache.heads.solvers import solve
from featcache.heads.standardisation import Standardisation, StandardisedHead
from featcache.heads.stopping import Interruption


def train_head(
    cache: FeatureCache | str | Path,
    head: str = "mlp:128,64",
    *,
    beside: Sequence[FeatureCache | str | Path] = (),
    layer: str | Sequence[str] | None = None,
    activation: str = "relu",
    dropout: float = 0.0,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    l1: float = 0.0,
    optimizer: str = "adam",
    momentum: float = 0.9,
    schedule: str = "constant",
    label_smoothing: float = 0.0,
    class_weights: str = "none",
    standardize: bool = True,
    head_batch_size: int = 64,
    max_epochs: int = 50,
    patience: int = 5,
    min_delta: float = 0.001,
    val_fraction: float = 0.2,
    val_seed: int = 42,
    seed: int = 0,
    runs_dir: Path | str = Path("runs"),
    device: str = "auto",
    progress: Progress | None = None,
    report: Report | None = None,
) -> Run:
    """Train a head on cached features and write it, with all that belongs to it, into a run folder.

    `cache`: an open cache or the path of one. `head`: `linear`, `mlp:` with hidden sizes, or one that
    is solved instead of trained by steps: `logreg`, `ridge`, `centroid`, `knn`. `layer`: one name, or
    several whose features are put side by side; None where the cache has only one. `beside`: further caches of the
    same images (other backbones), whose features stand beside those of `cache`, image by image; a layer's name then
    means that of every cache that has one, and `backbone/layer` one of them. The other options are those of
    HeadConfig. `device`: `auto`, `cpu`, `cuda`, `cuda:N`, `mps`. `progress` is called with an EpochRecord after
    every epoch, `report` with a sentence about whatever was left out.

    Ctrl-C ends the training; the best epoch so far is kept, evaluated and written, marked as interrupted. Before
    the first epoch is finished it is a KeyboardInterrupt, and nothing is written.

    Raises InvalidOption and UnknownName for options, HeadError where no head can be trained (no labels, a class
    missing, NaN in the features, a loss that diverges), CacheError for a cache that cannot be used.
    """
    layers = None if layer is None else (layer,) if isinstance(layer, str) else tuple(layer)
    config = HeadConfig(
        head=head,
        layers=layers,
        activation=activation,
        dropout=dropout,
        lr=lr,
        weight_decay=weight_decay,
        l1=l1,
        optimizer=optimizer,
        momentum=momentum,
        schedule=schedule,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        standardize=standardize,
        head_batch_size=head_batch_size,
        max_epochs=max_epochs,
        patience=patience,
        min_delta=min_delta,
        val_fraction=val_fraction,
        val_seed=val_seed,
        seed=seed,
    )
    with ExitStack() as opened:
        first, *others = (
            one if isinstance(one, FeatureCache) else opened.enter_context(FeatureCache.open(Path(one)))
            for one in (cache, *beside)
        )
        return fit_head(
            first, config, beside=others, runs_dir=runs_dir, device=device, progress=progress, report=report
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
    resident_bytes: int | None = None,
    created: datetime | None = None,
) -> Run:
    """`train_head` for options that are a HeadConfig already, as recipes are.

    `resident_bytes`: the most that features may take on the device before they are streamed; None for a share of
    what is free. `created`: the time in UTC that names the run; None for now.
    """
    runs_dir = Path(runs_dir)
    prepare_runs_dir(runs_dir)
    prepared = prepare(cache, config, beside=beside, place=choose_device(device), report=report)
    fitted = fit_prepared(prepared, config, progress=progress, report=report, resident_bytes=resident_bytes)
    return conclude(prepared, config, fitted, runs_dir=runs_dir, created=created)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """The rows that one or many heads learn from, choose on and are tested on, and where that happens.

    `columns`: the caches and layers that are read; the first cache is `cache`, which says what the rows are.
    `rows`: of "train", "val" and, where there are labelled test images, "test".
    """

    columns: tuple[CacheLayers, ...]
    cut: Cut
    rows: Mapping[str, FeatureRows]
    place: torch.device

    @property
    def cache(self) -> FeatureCache:
        """The cache that says which images there are."""
        return self.columns[0].cache

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.cache.classes)


def prepare(
    cache: FeatureCache,
    config: HeadConfig,
    *,
    beside: Sequence[FeatureCache] = (),
    place: torch.device,
    report: Report | None = None,
    cut: Cut | None = None,
) -> Prepared:
    """Choose layers and rows, and read none of them yet. `cut`: which rows, if not those that `config` says."""
    caches = (cache, *beside)
    require_same_images(caches)
    columns = choose_columns(caches, config.layers)
    cut = cut or cut_cache(cache, val_fraction=config.val_fraction, val_seed=config.val_seed)
    _tell(report, cut.notes)
    rows = {
        part: joined_rows(columns, chosen)
        for part, chosen in (("train", cut.train), ("val", cut.val), ("test", cut.test))
        if chosen is not None
    }
    return Prepared(columns=columns, cut=cut, rows=rows, place=place)


def fit_prepared(
    prepared: Prepared,
    config: HeadConfig,
    *,
    progress: Progress | None = None,
    report: Report | None = None,
    resident_bytes: int | None = None,
) -> Fitted:
    """Train or solve a head on train and val; the test rows are not touched."""
    if config.architecture.solved:
        return fit_solved(prepared, config, progress=progress, report=report)
    began = time.perf_counter()
    train, val = open_prepared(prepared, config, report=report, resident_bytes=resident_bytes)
    reading = time.perf_counter() - began
    fitted = fit_batches(train, val, prepared.classes, config, progress=progress)
    return replace(fitted, seconds=reading + fitted.seconds)


def conclude(
    prepared: Prepared, config: HeadConfig, fitted: Fitted, *, runs_dir: Path, created: datetime | None = None
) -> Run:
    """Look at test, now that everything has been decided, and write the run. `created` as in `fit_head`."""
    rows, place = prepared.rows, prepared.place
    outcomes = {"val": fitted.val}
    if "test" in rows:
        outcomes["test"] = evaluate(fitted.head, _streamed(rows["test"], config, place))
    created = created or datetime.now(UTC)
    for column in prepared.columns:
        mark_used(column.cache.path, now=created.timestamp())
    return write_run(
        runs_dir,
        created=created,
        config=config,
        features=_origins(prepared.columns),
        classes=prepared.cache.classes,
        training=_training(prepared, fitted, outcomes),
        versions=_versions(),
        weights={name: tensor.cpu().numpy() for name, tensor in fitted.head.state_dict().items()},
        history=fitted.history,
        metrics=_measured(outcomes, config.seed),
        predictions={part: _predictions(rows[part], outcome) for part, outcome in outcomes.items()},
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """The head of the best epoch (or candidate), what it says of val, and how the fit went."""

    head: nn.Module
    val: Outcome
    last: Score
    history: tuple[EpochRecord, ...]
    best_epoch: int
    interrupted: bool
    seconds: float
    notes: tuple[str, ...] = ()


def fit_solved(
    prepared: Prepared, config: HeadConfig, *, progress: Progress | None = None, report: Report | None = None
) -> Fitted:
    """The best candidate of a head that is solved at once."""
    train, val, place = prepared.rows["train"], prepared.rows["val"], prepared.place
    began = time.perf_counter()
    kind = config.architecture.kind
    choice = solve(kind, train, val, prepared.classes, device=place, interruption=Interruption(), progress=progress)
    head = choice.candidate.build().to(place)
    seconds = time.perf_counter() - began
    _tell(report, choice.notes())
    outcome = evaluate(head, _streamed(val, config, place))
    return Fitted(
        head=head,
        val=outcome,
        last=outcome.score(),
        history=choice.history,
        best_epoch=choice.number,
        interrupted=choice.interrupted,
        seconds=seconds,
        notes=choice.notes(),
    )


def open_prepared(
    prepared: Prepared, config: HeadConfig, *, report: Report | None = None, resident_bytes: int | None = None
) -> tuple[Batches, Batches]:
    """Train and val as batches, on the device where they fit."""
    train, val, place = prepared.rows["train"], prepared.rows["val"], prepared.place
    options = {"batch_size": config.head_batch_size, "seed": config.seed}
    train_batches = open_batches(train, device=place, resident_bytes=resident_bytes, **options)
    if not train_batches.resident_bytes:
        size = len(train) * train.row_bytes
        _tell(report, [f"the train features ({size / 1e9:.1f} GB) do not fit in memory and are streamed"])
    left = None if resident_bytes is None else resident_bytes - train_batches.resident_bytes
    return train_batches, open_batches(val, device=place, resident_bytes=left, **options)


def fit_batches(
    train: Batches, val: Batches, classes: int, config: HeadConfig, *, progress: Progress | None = None
) -> Fitted:
    """Train a head by steps, in the order that `train` has; the best epoch on val is kept."""
    began = time.perf_counter()
    place = train.device
    interruption = Interruption()
    standard = standardisation(train) if config.standardize else None
    weights = balanced_weights(train.labels, classes) if config.class_weights == "balanced" else None
    with seeded(config.seed, place):
        head = build_head(config.architecture, head_shape(config, train.feature_dim, classes))
        trained = head if standard is None else StandardisedHead(head, standard)
        module = HeadModule(trained, config, interruption=interruption, progress=progress, class_weights=weights)
        interrupted = fit(module, train, val, interruption)
    # The Trainer leaves the head on the CPU.
    module.head.to(place)
    if isinstance(trained, StandardisedHead):
        trained.folded()
    seconds = time.perf_counter() - began
    last = module.history[-1]
    return Fitted(
        head=head,
        val=evaluate(head, val),
        last=Score(accuracy=last.val_accuracy, loss=last.val_loss),
        history=tuple(module.history),
        best_epoch=module.best_epoch,
        interrupted=interrupted,
        seconds=seconds,
    )


def standardisation(batches: Batches) -> Standardisation:
    """Mean and deviation of all rows of `batches`."""
    return Standardisation.over(lambda: (features for features, _ in batches.in_order()), wide=batches.feature_dim)


def head_shape(config: HeadConfig, in_features: int, classes: int) -> HeadShape:
    """What building the head of `config` needs."""
    return HeadShape(
        in_features=in_features,
        classes=classes,
        hidden=config.architecture.hidden,
        activation=config.activation,
        dropout=config.dropout,
    )


def _streamed(rows: FeatureRows, config: HeadConfig, place: torch.device) -> StreamedBatches:
    # Read once and in order: nothing is gained by holding it.
    return StreamedBatches(rows, batch_size=config.head_batch_size, seed=config.seed, device=place)


def _training(prepared: Prepared, fitted: Fitted, outcomes: Mapping[str, Outcome]) -> Training:
    return Training(
        trainable=sum(parameter.numel() for parameter in fitted.head.parameters() if parameter.requires_grad),
        frozen=_frozen(prepared.columns),
        images=prepared.cut.images(),
        epochs=len(fitted.history),
        best_epoch=fitted.best_epoch,
        interrupted=fitted.interrupted,
        seconds=fitted.seconds,
        val=fitted.val.score(),
        last=fitted.last,
        test=outcomes["test"].score() if "test" in outcomes else None,
        device=str(prepared.place),
        notes=prepared.cut.notes + fitted.notes,
    )


def _measured(outcomes: Mapping[str, Outcome], seed: int) -> dict[str, Metrics]:
    temperature = 1 / sharpness(outcomes["val"].logits, outcomes["val"].labels)
    return {part: measure(outcome, temperature=temperature, seed=seed) for part, outcome in outcomes.items()}


def _frozen(columns: Sequence[CacheLayers]) -> int | None:
    """Parameters of all backbones; None where one of the caches does not say."""
    counts = [column.cache.provenance.get("parameters") for column in columns]
    known = [count for count in counts if isinstance(count, int)]
    return sum(known) if len(known) == len(counts) else None


def _origins(columns: Sequence[CacheLayers]) -> FeatureOrigin:
    first, *others = (_origin(column) for column in columns)
    return replace(first, beside=tuple(others))


def _origin(column: CacheLayers) -> FeatureOrigin:
    cache = column.cache
    return FeatureOrigin(
        cache=str(cache.path),
        cache_name=cache.name,
        backbone=cache.spec.backbone,
        fingerprint=cache.spec.fingerprint,
        spec=cache.spec.to_json(),
        layers=tuple(
            FeatureLayer(
                name=array.name,
                dim=int(array.shape[1]),
                dtype=str(array.dtype),
                scale=float(array.scale),
                offset=float(array.offset),
            )
            for array in map(cache["train"].layer, column.layers)
        ),
    )


def _predictions(rows: FeatureRows, outcome: Outcome) -> Predictions:
    return Predictions(
        ids=rows.ids(),
        labels=outcome.labels.cpu().numpy(),
        probabilities=outcome.logits.softmax(dim=1).cpu().numpy(),
    )


def _tell(report: Report | None, notes: Sequence[str]) -> None:
    if report is not None:
        for note in notes:
            report(note)


def _versions() -> dict[str, str]:
    packages = ("featcache", "torch", "pytorch-lightning", "torchmetrics", "scikit-learn", "numpy", "safetensors")
    return {"python": platform.python_version()} | {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
