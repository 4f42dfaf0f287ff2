"""A run: one trained head in a folder of its own, with all that is needed to use it and to repeat it.

    <runs_dir>/<UTC time>-<backbone>-<head>-<unique>/
        head.safetensors        the best epoch's weights, float32; knn: the train features as stored, and their labels
        config.json             options, features, cache and its spec, target, versions
        metrics.json            what `Run.to_json` gives, and under "metrics" what `Run.metrics` gives, of each part
        history.csv             a line an epoch; of a head that is solved, a line a candidate
        predictions_val.npz     ids, targets, outputs; likewise for test where there is one
        checkpoint.safetensors  of a training that Ctrl-C ended: where it can go on
        events.out.tfevents.*   what TensorBoard shows, if that was asked for

The folder is built under another name and renamed when it is whole. Reading a run needs no torch, until its head
is asked for.
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

from featcache.errors import FeatcacheError, HeadError
from featcache.files import is_tmp
from featcache.heads.architectures import HeadShape
from featcache.heads.config import HeadConfig
from featcache.heads.metric_records import Metrics, metrics_from_json, metrics_to_json
from featcache.heads.metrics import readable
from featcache.heads.records import EpochRecord, Predictions, Score
from featcache.heads.solved import SolvedHead
from featcache.heads.stored import head_module, solved_head
from featcache.rows.origins import FeatureOrigin
from featcache.rows.target import HeadTarget
from featcache.runs.catalog import CONFIG_FILE, METRICS_FILE, run_folders
from featcache.runs.files import (
    HISTORY_FILE,
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
)
from featcache.runs.html import run_html
from featcache.runs.records import Training
from featcache.training.checkpoint_file import (
    CHECKPOINT_FILE,
    UNFINISHED_SUFFIX,
    other_version,
    read_checkpoint_metadata,
)

if TYPE_CHECKING:
    from torch import nn

RUN_FORMAT = 2
REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained head and its record, as `train_head` returns it and `Run.load` reads it back."""

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
        """The names of the classes, one or several of which an image has; none where the head gives numbers."""
        return () if self.target.kind == "numbers" else self.target.names

    @classmethod
    def load(cls, folder: Path | str) -> Run:
        """Read a run folder. Raises HeadError if it is none, or if its records are damaged."""
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
        """The result of `featcache train-head --json`, ready for `json.dumps`."""
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
        """All finished epochs, or all candidates of a head that is solved.

        Raises HeadError if the file is missing or damaged.
        """
        solved = self.config.architecture.solved
        return read_history(
            self.folder / HISTORY_FILE, self.training.epochs if solved else self.config.max_epochs, self.target.metric
        )

    def metrics(self, part: str) -> Metrics:
        """How good the head is on `val` or `test`, in detail. Raises HeadError if that was not written down."""
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
        """What the head predicted for `val` or `test`. Raises HeadError if the file is missing or damaged."""
        return read_predictions(self.folder / predictions_file(part), self.target.kind)

    def head(self, own: Callable[..., Any] | None = None) -> nn.Module:
        """The trained head as a torch module in eval mode on the CPU: float32 (N, D) -> outputs float32 (N, C).

        Args:
            own: What makes the module, for a head of one's own that cannot be imported by its path.

        Raises HeadError if the weights are missing, not those that were written, or do not fit the head.
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
            return head_module(self.config.architecture, self._weights(), shape)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def solved_head(self) -> SolvedHead:
        """The head of a kind that is solved, without torch.

        Raises HeadError for a head that was trained by steps, and what `head` raises.
        """
        if not self.config.architecture.solved:
            raise HeadError(f"expected a head that was solved, got {self.config.head}", hint="Run.head gives any")
        try:
            return solved_head(
                self.config.architecture, self._weights(), in_features=self.features.feature_dim, target=self.target
            )
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def predict(
        self,
        features: ArrayLike | Sequence[NDArray[Any]],
        *,
        batch_rows: int = 4096,
        own: Callable[..., Any] | None = None,
    ) -> NDArray[np.float32]:
        """What the head says of features (N, D): float32 (N, C), probabilities of classes, or numbers in their units.

        A head of several layers also takes a list of arrays, (N, d) each, in the order of `features.columns`.
        Floats are taken as values. uint8 is taken as stored by a cache of pixels, and scaled as its cache says.
        `own`: as `head` has it.
        Raises HeadError for another width, or a head that is damaged.
        """
        columns = self._columns(features)
        outputs = self._outputs(own)
        parts = [np.empty((0, self.target.outputs), np.float32)]
        for start in range(0, len(columns[0]), batch_rows):
            values = self._values([column[start : start + batch_rows] for column in columns])
            parts.append(readable(outputs(values), self.target))
        return np.concatenate(parts)

    def _outputs(self, own: Callable[..., Any] | None = None) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        if self.config.architecture.solved:
            return self.solved_head().outputs
        import torch

        head = self.head(own)

        def outputs(features: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                given: NDArray[np.float32] = head(torch.from_numpy(features)).numpy()
            return given

        return outputs

    def report(self, path: Path | str | None = None, **options: Any) -> Path:
        """Write this run as one HTML page, into its folder unless `path` says where; the page's path.

        `options`: those of `featcache.write_report`, which does it.
        """
        # The package's door, asked when it is needed: heads know nothing of pages.
        import featcache

        return featcache.write_report(self, path or self.folder / REPORT_FILE, **options).path

    def _repr_html_(self) -> str:
        return run_html(self)

    def _columns(self, features: ArrayLike | Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """One array (N, d) a layer."""
        widths = [layer.dim for layer in self.features.columns]
        columns = _given_arrays(features)
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
            raise self._damaged(str(error)) from error
        if hashlib.sha256(content).hexdigest() != self.weights_sha256:
            raise self._damaged(f"expected sha256 {self.weights_sha256[:12]}.., got other bytes")
        try:
            return dict(safetensors.numpy.load(content))
        except SafetensorError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> HeadError:
        return HeadError(f"the head in {self.folder / WEIGHTS_FILE} cannot be used: {reason}", hint="train again")


def _given_arrays(features: ArrayLike | Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    if isinstance(features, list | tuple) and features:
        arrays = [one for one in features if isinstance(one, np.ndarray) and one.ndim == 2]
        if len(arrays) == len(features):
            return arrays
    return [np.asarray(features)]


def used_caches(runs_dir: Path, report: Callable[[str], None]) -> set[Path]:
    """The caches that the runs, sweeps and unfinished trainings in a folder read, as they were called then.

    One that does not say which it read is passed over, and `report` is called.
    """
    readers: list[tuple[Callable[[Path], Iterable[Path]], list[Path]]] = [
        (_used_caches, run_folders(runs_dir)),
        (_swept_caches, [path.parent for path in sorted(runs_dir.glob(f"*/{SWEEP_FILE}")) if not is_tmp(path.parent)]),
        (_trained_caches, sorted(runs_dir.glob(f"*{UNFINISHED_SUFFIX}/{CHECKPOINT_FILE}"))),
    ]
    used: set[Path] = set()
    for read, places in readers:
        for place in places:
            try:
                used |= set(read(place))
            except HeadError as error:
                report(f"{error.message}; the caches it used may be listed as unused")
    return used


def _used_caches(folder: Path) -> tuple[Path, ...]:
    try:
        origin = FeatureOrigin.from_json(read_json(folder / CONFIG_FILE)["features"])
    except (KeyError, TypeError, AttributeError) as error:
        raise HeadError(
            f"the run {folder} does not say which cache it used", hint="remove it, or train again"
        ) from error
    return tuple(Path(one.cache) for one in origin.origins)


def _swept_caches(folder: Path) -> tuple[Path, ...]:
    caches = read_json(folder / SWEEP_FILE).get("caches")
    if not isinstance(caches, list) or not all(isinstance(cache, str) for cache in caches):
        raise HeadError(f"the sweep {folder} does not say which caches it used", hint="remove it, or sweep again")
    return tuple(map(Path, caches))


def _trained_caches(checkpoint: Path) -> list[Path]:
    about, _ = read_checkpoint_metadata(checkpoint)
    try:
        return list(map(Path, about["caches"]))
    except (KeyError, TypeError) as error:
        raise HeadError(f"the checkpoint {checkpoint} does not say which caches it used") from error


def prepare_runs_dir(runs_dir: Path) -> None:
    """Make sure, before anything is trained, that runs can be written. Raises HeadError."""
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
    """Write a run folder called `name`, whole or not at all.

    `created` is in UTC; `weights` are the head's tensors by name; `more` are further files.
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
    """A name for a run that no other has: when, on which backbone, which head."""
    return folder_name(created, [origin.backbone for origin in features.origins], str(config.architecture))


def folder_name(created: datetime, backbones: Sequence[str], what: str) -> str:
    """A name for a folder that no other has: the time in UTC, the backbones, what it holds."""
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
