"""`--output`: a folder that a command fills with files, checked before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from featcache.errors import CacheUnwritable, InvalidOption


def prepare_folder(folder: Path) -> None:
    """Makes sure, before anything is computed, that files can be written there. Raises InvalidOption."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidOption(f"{folder} cannot be a folder: {error.strerror}", hint="another --output") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidOption(f"{folder} is not writable", hint="another --output")


def publish(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes files by name, each whole or not at all. Raises CacheUnwritable."""
    from featcache.files import publish_bytes

    try:
        for name, content in files.items():
            publish_bytes(folder / name, content)
    except CacheUnwritable as error:
        raise CacheUnwritable(error.message, hint="free space, or another --output") from error
