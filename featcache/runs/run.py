"""Writes and reads runs. A run is one trained head in its own folder, with all that is needed to use and repeat it.

    <runs_dir>/<UTC time>-<backbone>-<head>-<unique>/
        head.safetensors        the weights of the best epoch, float32; knn: the train features as stored, and labels
        config.json             options, features, cache and its spec, target, versions
        metrics.json            the result of `Run.to_json`, and under "metrics" that of `Run.metrics` for each part
        history.csv             one line per epoch; for a head that is solved, one line per candidate
        predictions_val.npz     ids, targets, outputs; predictions_test.npz if there are test images
        experiment.toml         from which `featcache run` repeats it
        checkpoint.safetensors  only if Ctrl-C ended the training: where it can be resumed
        events.out.tfevents.*   only with the TensorBoard logger

The folder is built under a temporary name and renamed when it is complete. Reading a run needs no torch, except to
build a head that was trained by steps.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError

from featcache.display import Shown, Summary
from featcache.errors import FeatcacheError, HeadError
from featcache.heads.architectures import HeadShape
from featcache.heads.config import HeadConfig
from featcache.heads.metric_records import Metrics, metrics_from_json, metrics_to_json
from featcache.heads.metrics import to_predictions
from featcache.heads.records import EpochRecord, Predictions, Score
from featcache.heads.solved import SolvedHead
from featcache.heads.stored import build_head_module, build_solved_head
from featcache.rows.origins import FeatureOrigin
from featcache.rows.target import HeadTarget
from featcache.runs.catalog import CONFIG_FILE, METRICS_FILE, run_folders
from featcache.runs.files import (
    HISTORY_FILE,
    REPORT_FILE,
    SWEEP_FILE,
    WEIGHTS_FILE,
    history_bytes,
    json_bytes,
    predictions_bytes,
    predictions_file,
    publish_folder,
    read_history,
    read_json,
    read_predictions,
    sweep_folders,
)
from featcache.runs.presentation import summary_of
from featcache.runs.records import Training
from featcache.training.checkpoint_file import (
    CHECKPOINT_FILE,
    UNFINISHED_SUFFIX,
    other_version,
    read_checkpoint_metadata,
)

if TYPE_CHECKING:
    from torch import nn

    from featcache import WrittenReport

RUN_FORMAT = 2


@dataclass(frozen=True, kw_only=True, repr=False)
class Run(Shown):
    """A trained head and its record, returned by `train_head` and read by `Run.load`.

    Attributes:
        folder: The run's folder.
        created: When the training began, in UTC, as ISO 8601 text.
        config: The head's options.
        features: The caches and layers that it was trained on.
        target: What the head predicts.
        training: The outcome of the training: scores, epochs, seconds.
        versions: Versions of Python and the packages, by name.
        weights_sha256: SHA-256 of the file of weights, as hex digits.
    """

    folder: Path
    created: str
    config: HeadConfig
    features: FeatureOrigin
    target: HeadTarget
    training: Training
    versions: Mapping[str, str]
    weights_sha256: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty if the head predicts numbers."""
        return () if self.target.kind == "numbers" else self.target.names

    @classmethod
    def load(cls, folder: Path | str) -> Run:
        """Read a run folder.

        Args:
            folder: The run's folder.

        Returns:
            The run; the weights are read when the head is built.

        Raises:
            HeadError: The folder is not a run, has another format, or its records are damaged.
        """
        folder = Path(folder)
        config, metrics = read_json(folder / CONFIG_FILE), read_json(folder / METRICS_FILE)
        if config.get("format") != RUN_FORMAT:
            raise HeadError(
                f"expected a run of format {RUN_FORMAT} in {folder}, got {config.get('format')!r}",
                hint=other_version(config.get("format"), RUN_FORMAT, "train again"),
            )
        try:
            return _run_from_json(folder, config, metrics)
        except (KeyError, TypeError, ValueError, AttributeError, FeatcacheError) as error:
            raise HeadError(f"the records of the run {folder} are damaged: {error!r}", hint="train again") from error

    def to_json(self) -> dict[str, Any]:
        """The result of `featcache train-head --json`.

        Returns:
            JSON values, ready for `json.dumps`.
        """
        done = self.training
        return {
            "run": str(self.folder),
            "cache": self.features.cache,
            "head": self.config.head,
            "parameters": {"trainable": done.trainable, "frozen": done.frozen},
            "n": dict(done.images),
            "epochs": done.epochs,
            "seconds": done.seconds,
            "val": done.val.to_json(),
            "last": {"val": done.last.to_json()},
            "test": None if done.test is None else done.test.to_json(),
            "best_epoch": done.best_epoch,
            "interrupted": done.interrupted,
            "beside": [origin.cache for origin in self.features.beside],
        }

    def history(self) -> tuple[EpochRecord, ...]:
        """Read all finished epochs, or all candidates of a head that is solved.

        Returns:
            One record per epoch or candidate, in order.

        Raises:
            HeadError: The file is missing or damaged.
        """
        solved = self.config.architecture.solved
        return read_history(
            self.folder / HISTORY_FILE, self.training.epochs if solved else self.config.max_epochs, self.target.metric
        )

    def metrics(self, part: str) -> Metrics:
        """Read the detailed metrics of the head on one part.

        Args:
            part: "val" or "test".

        Returns:
            The metrics, in the record of the target's kind.

        Raises:
            HeadError: The run has no metrics of this part, or they are damaged.
        """
        kept = read_json(self.folder / METRICS_FILE).get("metrics")
        if not isinstance(kept, dict) or part not in kept:
            there = ", ".join(kept) if isinstance(kept, dict) else "none"
            raise HeadError(f"the run {self.folder} has no metrics of {part!r}, only of: {there}", hint="train again")
        try:
            return metrics_from_json(kept[part])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HeadError(
                f"the metrics of the run {self.folder} are damaged: {error!r}", hint="train again"
            ) from error

    def predictions(self, part: str) -> Predictions:
        """Read the head's predictions for one part.

        Args:
            part: "val" or "test".

        Returns:
            Ids, targets and outputs, image by image.

        Raises:
            HeadError: The file is missing or damaged.
        """
        return read_predictions(self.folder / predictions_file(part), self.target.kind)

    def head(self, own: Callable[..., Any] | None = None) -> nn.Module:
        """Build the trained head as a torch module.

        Args:
            own: Builds the module of your own head, if it cannot be imported by its path.

        Returns:
            The module, in eval mode on the CPU: features float32 (N, D) -> outputs float32 (N, C).

        Raises:
            HeadError: The weights are missing, were changed, or do not fit the head.
        """
        shape = HeadShape(
            in_features=self.features.feature_dim,
            classes=self.target.outputs,
            hidden=self.config.architecture.hidden,
            activation=self.config.activation,
            dropout=self.config.dropout,
            kind=self.target.kind,
            own=self.config.own_by(own),
        )
        try:
            return build_head_module(self.config.architecture, self._weights(), shape)
        except ValueError as error:
            raise self._weights_error(str(error)) from error

    def load_solved_head(self) -> SolvedHead:
        """Load a head of a solved kind (`logreg`, `ridge`, `centroid`, `knn`, `text`), without torch.

        Returns:
            The head; its `outputs` maps features float32 (N, D) to outputs float32 (N, C).

        Raises:
            HeadError: The head was trained by steps, or its weights are missing, were changed, or do not fit.
        """
        if not self.config.architecture.solved:
            raise HeadError(
                f"expected a head that is solved, got {self.config.head}", hint="Run.head builds a head of any kind"
            )
        try:
            return build_solved_head(
                self.config.architecture, self._weights(), in_features=self.features.feature_dim, target=self.target
            )
        except ValueError as error:
            raise self._weights_error(str(error)) from error

    def predict(
        self,
        features: ArrayLike | Sequence[NDArray[Any]],
        *,
        batch_rows: int = 4096,
        own: Callable[..., Any] | None = None,
    ) -> NDArray[np.float32]:
        """Predict from features.

        Args:
            features: Array (N, D); for a head of several layers also a list of arrays (N, d), in the order of
                `features.columns`. Floats are used as they are; uint8 is scaled like the cache of pixels it is from.
            batch_rows: Rows per batch.
            own: As in `head`.

        Returns:
            float32 (N, C): class probabilities, or numbers in the units of the target.

        Raises:
            HeadError: The features have another width, or the head is damaged.
        """
        columns = self._columns(features)
        outputs = self._outputs(own)
        parts = [np.empty((0, self.target.outputs), np.float32)]
        for start in range(0, len(columns[0]), batch_rows):
            values = self._values([column[start : start + batch_rows] for column in columns])
            parts.append(to_predictions(outputs(values), self.target))
        return np.concatenate(parts)

    def _outputs(self, own: Callable[..., Any] | None = None) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        if self.config.architecture.solved:
            return self.load_solved_head().outputs
        import torch

        head = self.head(own)

        def outputs(features: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                given: NDArray[np.float32] = head(torch.from_numpy(features)).numpy()
            return given

        return outputs

    def report(self, path: Path | str | None = None, **options: Any) -> WrittenReport:
        """Write a report on this run as one HTML page; a notebook shows the page.

        Args:
            path: The page's path; None for `report.html` in the run's folder.
            options: Options of `featcache.write_report`.

        Returns:
            The page's path, and what it shows.
        """
        # Imported here, through the public API: the package `runs` does not depend on `report`.
        import featcache

        return featcache.write_report(self, path or self.folder / REPORT_FILE, **options)

    def summary(self) -> Summary:
        """What a prompt and a notebook show: the scores, and where the run is."""
        return summary_of(self)

    def _columns(self, features: ArrayLike | Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """One array (N, d) per layer."""
        widths = [layer.dim for layer in self.features.columns]
        columns = _as_arrays(features)
        if len(columns) == 1 and columns[0].ndim == 2 and columns[0].shape[1] == sum(widths):
            columns = np.split(columns[0], np.cumsum(widths)[:-1], axis=1)
        if [column.shape for column in columns] != [(*columns[0].shape[:1], width) for width in widths]:
            raise HeadError(
                f"expected features (N, {self.features.feature_dim}) of {self.features.label}, "
                f"got {' and '.join(str(column.shape) for column in columns)}",
                hint="features of the layers the head was trained on",
            )
        return columns

    def _values(self, columns: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        parts = [
            layer.values(column) if column.dtype == np.uint8 else column.astype(np.float32)
            for column, layer in zip(columns, self.features.columns, strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _weights(self) -> dict[str, NDArray[Any]]:
        try:
            content = (self.folder / WEIGHTS_FILE).read_bytes()
        except OSError as error:
            raise self._weights_error(str(error)) from error
        if hashlib.sha256(content).hexdigest() != self.weights_sha256:
            raise self._weights_error(f"expected sha256 {self.weights_sha256[:12]}.., got other bytes")
        try:
            return dict(safetensors.numpy.load(content))
        except SafetensorError as error:
            raise self._weights_error(str(error)) from error

    def _weights_error(self, reason: str) -> HeadError:
        return HeadError(f"the head in {self.folder / WEIGHTS_FILE} cannot be used: {reason}", hint="train again")


def _as_arrays(features: ArrayLike | Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    if isinstance(features, list | tuple) and features:
        arrays = [one for one in features if isinstance(one, np.ndarray) and one.ndim == 2]
        if len(arrays) == len(features):
            return arrays
    return [np.asarray(features)]


def caches_in_use(runs_dir: Path, report: Callable[[str], None]) -> set[Path]:
    """The paths of the caches that the runs, sweeps and unfinished trainings in a folder have recorded.

    A run, sweep or training without a readable record is skipped, and `report` is called with a sentence about it.
    """
    readers: list[tuple[Callable[[Path], Iterable[Path]], list[Path]]] = [
        (_caches_of_run, run_folders(runs_dir)),
        (_caches_of_sweep, sweep_folders(runs_dir)),
        (_caches_of_checkpoint, sorted(runs_dir.glob(f"*{UNFINISHED_SUFFIX}/{CHECKPOINT_FILE}"))),
    ]
    used: set[Path] = set()
    for read, places in readers:
        for place in places:
            try:
                used |= set(read(place))
            except HeadError as error:
                report(f"{error.message}; the caches it used may be listed as unused")
    return used


def _caches_of_run(folder: Path) -> tuple[Path, ...]:
    try:
        origin = FeatureOrigin.from_json(read_json(folder / CONFIG_FILE)["features"])
    except (KeyError, TypeError, AttributeError) as error:
        raise HeadError(
            f"the run {folder} does not record which cache it used", hint="remove it, or train again"
        ) from error
    return tuple(Path(one.cache) for one in origin.origins)


def _caches_of_sweep(folder: Path) -> tuple[Path, ...]:
    caches = read_json(folder / SWEEP_FILE).get("caches")
    if not isinstance(caches, list) or not all(isinstance(cache, str) for cache in caches):
        raise HeadError(f"the sweep {folder} does not record which caches it used", hint="remove it, or sweep again")
    return tuple(map(Path, caches))


def _caches_of_checkpoint(checkpoint: Path) -> list[Path]:
    about, _ = read_checkpoint_metadata(checkpoint)
    try:
        return list(map(Path, about["caches"]))
    except (KeyError, TypeError) as error:
        raise HeadError(f"the checkpoint {checkpoint} does not record which caches it used") from error


def prepare_runs_dir(runs_dir: Path) -> None:
    """Create the folder of runs and check that it is writable, before training. Raises HeadError."""
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(runs_dir, os.W_OK | os.X_OK):
            raise PermissionError(f"{runs_dir} is not writable")
    except OSError as error:
        raise HeadError(f"cannot write runs: {error}", hint="another --runs-dir") from error


def write_run(
    runs_dir: Path,
    *,
    name: str,
    created: datetime,
    config: HeadConfig,
    features: FeatureOrigin,
    target: HeadTarget,
    training: Training,
    versions: Mapping[str, str],
    weights: Mapping[str, NDArray[Any]],
    history: Sequence[EpochRecord],
    metrics: Mapping[str, Metrics],
    predictions: Mapping[str, Predictions],
    more: Mapping[str, bytes],
) -> Run:
    """Write the run folder `name` atomically: complete or not at all.

    `created` is in UTC; `weights` are the head's tensors by name; `more` are further files by file name.
    Raises HeadError if it cannot be written.
    """
    content = safetensors.numpy.save({name: np.asarray(tensor, order="C") for name, tensor in weights.items()})
    run = Run(
        folder=runs_dir / name,
        created=created.isoformat(timespec="seconds"),
        config=config,
        features=features,
        target=target,
        training=training,
        versions=dict(versions),
        weights_sha256=hashlib.sha256(content).hexdigest(),
    )
    files = {
        WEIGHTS_FILE: content,
        CONFIG_FILE: json_bytes(_config_json(run)),
        METRICS_FILE: json_bytes(
            run.to_json()
            | {
                "target": run.target.to_json(),
                "metrics": {part: metrics_to_json(measured) for part, measured in metrics.items()},
            }
        ),
        HISTORY_FILE: history_bytes(history, target.metric),
        **{predictions_file(part): predictions_bytes(one) for part, one in predictions.items()},
        **more,
    }
    try:
        publish_folder(run.folder, files)
    except OSError as error:
        raise HeadError(
            f"cannot write the run {run.folder}: {error}", hint="free space, or another --runs-dir"
        ) from error
    return run


def run_name(created: datetime, features: FeatureOrigin, config: HeadConfig) -> str:
    """A unique name for a run: time, backbones, head."""
    return folder_name(created, [origin.backbone for origin in features.origins], str(config.architecture))


def folder_name(created: datetime, backbones: Sequence[str], what: str) -> str:
    """A unique name for a folder: the time in UTC, the backbones, what it holds."""
    words = (created.strftime("%Y%m%dT%H%M%SZ"), "-".join(dict.fromkeys(backbones)), what, secrets.token_hex(3))
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", word).strip("-.")[:60] for word in words)


def _config_json(run: Run) -> dict[str, Any]:
    return {
        "format": RUN_FORMAT,
        "created": run.created,
        "options": run.config.to_json(),
        "features": run.features.to_json(),
        "target": run.target.to_json(),
        "weights": {"file": WEIGHTS_FILE, "sha256": run.weights_sha256},
        "device": run.training.device,
        "threads": run.training.threads,
        "trainer": run.training.trainer,
        "logger": run.training.logger,
        "notes": list(run.training.notes),
        "versions": dict(run.versions),
    }


def _run_from_json(folder: Path, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> Run:
    test = metrics["test"]
    return Run(
        folder=folder,
        created=config["created"],
        config=HeadConfig.from_json(config["options"]),
        features=FeatureOrigin.from_json(config["features"]),
        target=HeadTarget.from_json(config["target"]),
        training=Training(
            trainable=metrics["parameters"]["trainable"],
            frozen=metrics["parameters"]["frozen"],
            images=metrics["n"],
            epochs=metrics["epochs"],
            best_epoch=metrics["best_epoch"],
            interrupted=metrics["interrupted"],
            seconds=metrics["seconds"],
            val=Score.from_json(metrics["val"]),
            last=Score.from_json(metrics["last"]["val"]),
            test=None if test is None else Score.from_json(test),
            device=config["device"],
            notes=tuple(config["notes"]),
            threads=config["threads"],
            trainer=config["trainer"],
            logger=config["logger"],
        ),
        versions=config["versions"],
        weights_sha256=config["weights"]["sha256"],
    )
