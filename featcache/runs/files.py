"""The files of a run: converts each to bytes and back, and writes a whole folder atomically."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import HeadError
from featcache.files import atomic_folder, is_tmp
from featcache.heads.records import EpochRecord, Predictions
from featcache.rows.target import TargetKind

WEIGHTS_FILE = "head.safetensors"
HISTORY_FILE = "history.csv"
SWEEP_FILE = "sweep.json"
REPORT_FILE = "report.html"
# Ids and paths that are not valid UTF-8 keep their bytes.
_UTF8 = ("utf-8", "surrogateescape")
# `rate` for heads trained by steps, `candidate` for solved heads.
_MORE_COLUMNS = ("rate", "candidate")


def sweep_folders(runs_dir: Path) -> list[Path]:
    """The folders of sweeps, sorted by name; an empty list if `runs_dir` does not exist."""
    return sorted(path.parent for path in runs_dir.glob(f"*/{SWEEP_FILE}") if not is_tmp(path.parent))


def publish_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files atomically: complete or not at all, even on Ctrl-C or a full disk. Raises OSError."""
    with atomic_folder(folder) as building:
        for name, content in files.items():
            write_durably(building / name, content)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk (fsync). Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON object as indented UTF-8 text. Raises ValueError for NaN."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(*_UTF8)


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file. Raises HeadError if there is none."""
    try:
        content = json.loads(path.read_bytes().decode(*_UTF8))
    except FileNotFoundError as error:
        raise HeadError(f"no run in {path.parent}: {path.name} is missing", hint="a folder train-head wrote") from error
    except (OSError, ValueError, RecursionError) as error:
        raise HeadError(f"cannot read {path}: {error}", hint="train again") from error
    if not isinstance(content, dict):
        raise HeadError(f"expected a JSON object in {path}, got {type(content).__name__}", hint="train again")
    return content


def history_bytes(history: Sequence[EpochRecord], metric: str) -> bytes:
    """The history as CSV, one line per epoch; the column of the val score is named after the metric: `val_accuracy`.

    Has the column `rate` for heads trained by steps, or `candidate` for heads whose solver tried several.
    """
    more = {name: name for name in _MORE_COLUMNS if any(getattr(record, name) for record in history)}
    columns = _history_columns(metric) | more
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([getattr(record, field) for field in columns.values()] for record in history)
    return text.getvalue().encode()


def read_history(path: Path, max_epochs: int, metric: str) -> tuple[EpochRecord, ...]:
    """Read the epochs from a CSV of `history_bytes`. Raises HeadError if it is missing or damaged."""
    try:
        with path.open(newline="") as file:
            return tuple(_epoch(row, max_epochs, metric) for row in csv.DictReader(file))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise HeadError(f"cannot read {path}: {error}", hint=_hint(error)) from error


def predictions_file(part: str) -> str:
    """The name of the file with the predictions on `val` or `test`."""
    return f"predictions_{part}.npz"


def predictions_bytes(predictions: Predictions) -> bytes:
    """An .npz with `ids` (fixed-length UTF-8, so that reading needs no pickle), `targets` and `outputs`."""
    content = io.BytesIO()
    ids = np.array([sample.encode(*_UTF8) for sample in predictions.ids], dtype=np.bytes_)
    np.savez(content, ids=ids, targets=predictions.targets, outputs=predictions.outputs)
    return content.getvalue()


def read_predictions(path: Path, kind: TargetKind) -> Predictions:
    """Read an .npz of `predictions_bytes`, with targets of this `kind`. Raises HeadError if missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Predictions(
                ids=tuple(sample.decode(*_UTF8) for sample in arrays["ids"].tolist()),
                targets=arrays["targets"],
                outputs=arrays["outputs"],
                kind=kind,
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise HeadError(f"cannot read the predictions in {path}: {error}", hint=_hint(error)) from error


def _hint(error: Exception) -> str:
    """What to do about a history or predictions that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "a run that was pulled has neither history nor predictions: use the original, or train again"
    return "train again"


def _history_columns(metric: str) -> dict[str, str]:
    """The columns that every history has, each with the EpochRecord field that it holds."""
    names = {"epoch": "epoch", "train_loss": "train_loss", "val_loss": "val_loss"}
    return names | {f"val_{metric}": "val_score", "seconds": "seconds"}


def _epoch(row: Mapping[str, str], max_epochs: int, metric: str) -> EpochRecord:
    return EpochRecord(
        epoch=int(row["epoch"]),
        max_epochs=max_epochs,
        train_loss=float(row["train_loss"]),
        val_loss=float(row["val_loss"]),
        val_score=float(row[f"val_{metric}"]),
        seconds=float(row["seconds"]),
        candidate=row.get("candidate") or "",
        rate=float(row.get("rate") or 0),
    )
