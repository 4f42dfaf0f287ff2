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

WEIGHTS_FILE = "head.safetensors"
METRICS_FILE = "metrics.json"
HISTORY_FILE = "history.csv"
SWEEP_FILE = "sweep.json"
# File names that are no UTF-8 keep their bytes, in ids and paths.
_UTF8 = ("utf-8", "surrogateescape")
_HISTORY_COLUMNS = ("epoch", "train_loss", "val_loss", "val_score", "seconds")
# Of trained heads, and of solved ones.
_MORE_COLUMNS = ("lr", "candidate")


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


def history_bytes(history: Sequence[EpochRecord]) -> bytes:
    """A CSV with a line an epoch, and the column `lr`, or `candidate` where a solver tried some."""
    more = [name for name in _MORE_COLUMNS if any(getattr(record, name) for record in history)]
    columns = (*_HISTORY_COLUMNS, *more)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([getattr(record, name) for name in columns] for record in history)
    return text.getvalue().encode()


def read_history(path: Path, max_epochs: int) -> tuple[EpochRecord, ...]:
    """The epochs of such a CSV. Raises HeadError if it is missing or damaged."""
    try:
        with path.open(newline="") as file:
            return tuple(_epoch(row, max_epochs) for row in csv.DictReader(file))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise HeadError(f"cannot read {path}: {error}", hint="train again") from error


def predictions_file(part: str) -> str:
    """The name of the file with the predictions on `val` or `test`."""
    return f"predictions_{part}.npz"


def predictions_bytes(said: Predictions) -> bytes:
    """An .npz with `ids` (fixed-length UTF-8, so that reading needs no pickle), `labels` and `probabilities`."""
    content = io.BytesIO()
    ids = np.array([sample.encode(*_UTF8) for sample in said.ids], dtype=np.bytes_)
    np.savez(content, ids=ids, labels=said.labels, probabilities=said.probabilities)
    return content.getvalue()


def read_predictions(path: Path) -> Predictions:
    """The predictions in such an .npz. Raises HeadError if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Predictions(
                ids=tuple(sample.decode(*_UTF8) for sample in arrays["ids"].tolist()),
                labels=arrays["labels"],
                probabilities=arrays["probabilities"],
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise HeadError(f"cannot read the predictions in {path}: {error}", hint="train again") from error


def _epoch(row: Mapping[str, str], max_epochs: int) -> EpochRecord:
    return EpochRecord(
        epoch=int(row["epoch"]),
        max_epochs=max_epochs,
        train_loss=float(row["train_loss"]),
        val_loss=float(row["val_loss"]),
        val_score=float(row["val_score"]),
        seconds=float(row["seconds"]),
        candidate=row.get("candidate") or "",
        lr=float(row.get("lr") or 0),
    )
