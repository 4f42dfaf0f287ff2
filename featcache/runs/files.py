"""The files of a run: how each is written as bytes and read back, and how a folder of them appears at once."""

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
from featcache.files import folder_aside
from featcache.heads.records import EpochRecord, Predictions
from featcache.rows.target import TargetKind

WEIGHTS_FILE = "head.safetensors"
HISTORY_FILE = "history.csv"
SWEEP_FILE = "sweep.json"
# File names that are no UTF-8 keep their bytes, in ids and paths.
_UTF8 = ("utf-8", "surrogateescape")
# Of trained heads, and of solved ones.
_MORE_COLUMNS = ("rate", "candidate")


def publish_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files, whole or not at all, also after Ctrl-C or on a full disk. Raises OSError."""
    with folder_aside(folder) as building:
        for name, content in files.items():
            write_durably(building / name, content)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON object, for people and programs. Raises ValueError for NaN."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(*_UTF8)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises HeadError if there is none."""
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
    """A CSV with a line an epoch: the score on val is called after its `metric`, `val_accuracy`.

    It has the column `rate`, or `candidate` where a solver tried some.
    """
    more = {name: name for name in _MORE_COLUMNS if any(getattr(record, name) for record in history)}
    columns = _history_columns(metric) | more
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([getattr(record, field) for field in columns.values()] for record in history)
    return text.getvalue().encode()


def read_history(path: Path, max_epochs: int, metric: str) -> tuple[EpochRecord, ...]:
    """The epochs of such a CSV. Raises HeadError if it is missing or damaged."""
    try:
        with path.open(newline="") as file:
            return tuple(_epoch(row, max_epochs, metric) for row in csv.DictReader(file))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise HeadError(f"cannot read {path}: {error}", hint="train again") from error


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
    """The predictions in such an .npz, of targets of a `kind`. Raises HeadError if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Predictions(
                ids=tuple(sample.decode(*_UTF8) for sample in arrays["ids"].tolist()),
                targets=arrays["targets"],
                outputs=arrays["outputs"],
                kind=kind,
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise HeadError(f"cannot read the predictions in {path}: {error}", hint="train again") from error


def _history_columns(metric: str) -> dict[str, str]:
    """The columns that every history has, and the field of a record that each holds."""
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
