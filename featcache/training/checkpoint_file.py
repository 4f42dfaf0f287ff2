"""The name and the metadata of a checkpoint file, which are read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from featcache.errors import HeadError

CHECKPOINT_FILE = "checkpoint.safetensors"
CHECKPOINT_FORMAT = 2
# Suffix of the folder of an unfinished training.
UNFINISHED_SUFFIX = ".unfinished"
_CHECKPOINT_KEY = "featcache"


def other_version(found: object, known: int, again: str) -> str:
    """A hint for a file of another format version than the known one. `again`: the action that writes a new file."""
    if isinstance(found, int) and found < known:
        return f"an earlier featcache wrote it: {again}"
    return f"a newer featcache wrote it: upgrade, or {again}"


def checkpoint_metadata(about: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a checkpoint (training/checkpoints.py), for a safetensors file."""
    content = {"format": CHECKPOINT_FORMAT, "about": dict(about), "progress": dict(progress)}
    return {_CHECKPOINT_KEY: json.dumps(content, allow_nan=False)}


def read_checkpoint_metadata(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read `about` and `progress` of a checkpoint, but no tensors. Raises HeadError if it is no checkpoint file."""
    try:
        with safe_open(path, framework="np") as file:
            content = json.loads((file.metadata() or {})[_CHECKPOINT_KEY])
        if content["format"] == CHECKPOINT_FORMAT:
            return content["about"], content["progress"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise HeadError(f"{path} is no checkpoint of a training: {error}", hint="train again") from error
    raise HeadError(
        f"expected a checkpoint of format {CHECKPOINT_FORMAT} in {path}, got {content['format']!r}",
        hint=other_version(content["format"], CHECKPOINT_FORMAT, "train again"),
    )
