"""Decides by name alone which paths are images, and gives the reason for the others; no file is opened."""

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

# In lower case. Thumbnails of NAS servers and resource forks of macOS have the same names as the images, and recycle
# bins contain deleted images.
_SYSTEM_FOLDERS = frozenset(
    ("@eadir", "__macosx", "$recycle.bin", "@recycle", "#recycle", "lost+found", "system volume information")
)
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"))


def is_image(path: str) -> bool:
    """Whether a POSIX path inside a set names an image: it has an image extension, and no part of it is hidden.

    Names that begin with a dot, files and folders of the operating system (`__MACOSX`, `@eaDir`, `Thumbs.db`) and
    other extensions are left out.
    """
    folders, _, name = path.rpartition("/")
    return _has_extension(name) and not name.startswith(".") and _above_left_out(folders) is None


def reason_left_out(path: str) -> str | None:
    """The reason why `path` is not an image, as `Omissions` takes it; None for an image."""
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
    """The reason why everything below a folder of this name is left out; None if it may contain images."""
    if name.lower() in _SYSTEM_FOLDERS:
        return BY_SYSTEM
    return HIDDEN if name.startswith(".") else None


def _has_extension(name: str) -> bool:
    dot = name.rfind(".")
    return dot >= 0 and name[dot:].lower() in EXTENSIONS


# Cached: the files of one folder come one after the other.
@functools.lru_cache(maxsize=1024)
def _above_left_out(folders: str) -> str | None:
    reasons = map(folder_left_out, folders.split("/"))
    return next((reason for reason in reasons if reason is not None), None)
