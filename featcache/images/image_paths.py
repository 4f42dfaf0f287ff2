"""Which paths name images, and why the others do not: by names alone, nothing is opened."""

from __future__ import annotations

import functools

from featcache.images.omissions import BY_SYSTEM, HIDDEN, NO_IMAGE

EXTENSIONS = frozenset(
    (
        *(
            ".avif",
            ".avifs",
            ".bmp",
            ".gif",
            ".heic",
            ".heif",
            ".hif",
            ".j2c",
            ".j2k",
            ".jfif",
            ".jp2",
            ".jpe",
            ".jpeg",
        ),
        *(".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)

# In lower case. Thumbnails of NAS servers and macOS's second halves of files are called like the images themselves, and
# what was deleted still lies in bins.
_SYSTEM_FOLDERS = frozenset(
    ("@eadir", "__macosx", "$recycle.bin", "@recycle", "#recycle", "lost+found", "system volume information")
)
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"))


def is_image(path: str) -> bool:
    """Whether a POSIX path inside a set names an image: by its extension, and no part of it hidden.

    Left out are names that begin with a dot, what an operating system puts there (`__MACOSX`, `@eaDir`, `Thumbs.db`)
    and whatever lacks an image's extension.
    """
    folders, _, name = path.rpartition("/")
    return _has_extension(name) and not name.startswith(".") and _above_left_out(folders) is None


def reason_left_out(path: str) -> str | None:
    """Why `path` names no image, as a reason for `Omissions`; None for an image."""
    folders, _, name = path.rpartition("/")
    above = _above_left_out(folders)
    if above is not None:
        return above
    if name.lower() in _SYSTEM_FILES or name.startswith("._"):
        return BY_SYSTEM
    if name.startswith("."):
        return HIDDEN
    return None if _has_extension(name) else NO_IMAGE


def folder_left_out(name: str) -> str | None:
    """Why nothing below a folder of this name is an image of the set; None where images may lie there."""
    if name.lower() in _SYSTEM_FOLDERS:
        return BY_SYSTEM
    return HIDDEN if name.startswith(".") else None


def _has_extension(name: str) -> bool:
    dot = name.rfind(".")
    return dot >= 0 and name[dot:].lower() in EXTENSIONS


# Files of one folder come one after the other.
@functools.lru_cache(maxsize=1024)
def _above_left_out(folders: str) -> str | None:
    reasons = map(folder_left_out, folders.split("/"))
    return next((reason for reason in reasons if reason is not None), None)
