"""Files and folders that somebody else's library writes: built beside their place, and there whole or not at all.

Where the size is known beforehand, `files.publishing` reserves it; here it is not.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featcache.files import fsync_folder, system, tmp_name, unwritable


@contextmanager
def file_aside(path: Path) -> Iterator[Path]:
    """Where to write what will be the file `path`: it takes that name when the block ends, or is removed.

    Raises CacheUnwritable where the disk refuses.
    """
    building = path.with_name(tmp_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield building
        fsync_file(building)
        system.replace(building, path)
        fsync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            building.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A new folder that will be called `folder` when the block ends, or is removed with all in it.

    Its files are made durable by whoever writes them. Raises OSError, also where `folder` is there already.
    """
    building = folder.with_name(tmp_name(folder.name))
    building.mkdir(parents=True)
    try:
        yield building
        fsync_folder(building)
        building.rename(folder)
        fsync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def fsync_file(path: Path) -> None:
    """Wait until the disk has a file that somebody else wrote. Raises OSError."""
    with path.open("rb+") as file:
        system.fsync(file.fileno())
