"""How paths become splits and classes: the same rules for a folder, a zip and a tar.

    class/image              one split, train
    split/class/image        splits where the top folders are all split names
    image                    unlabelled
    split/image              unlabelled within that split

Split names are train, val (also valid, validation) and test, in any case. One folder around all of it is looked
through and is no part of the ids. Deeper folders belong to their class folder: `cat/indoor/1.jpg` is a cat.
What could be read in two ways is an error that names the folder; no image is left out silently.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from featcache.errors import SourceError
from featcache.images.source import UNLABELLED, Listing

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

EXTENSIONS = frozenset(
    (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)

EXPECTED = (
    "expected class/image or split/class/image (splits: train, val, test; a flat folder is unlabelled), "
    "images being " + ", ".join(sorted(EXTENSIONS))
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`prefix`: the wrapping folder with its slash, or ""; a sample's path in the set is prefix + id."""

    prefix: str
    listing: Listing


def is_image(path: str) -> bool:
    """Whether a POSIX path inside a set names an image: by its extension, and no part of it hidden.

    Left out are names that begin with a dot, `__MACOSX` and whatever lacks an image's extension.
    """
    folders, _, name = path.rpartition("/")
    dot = name.rfind(".")
    if dot < 0 or name.startswith(".") or name[dot:].lower() not in EXTENSIONS:
        return False
    return "/." not in f"/{folders}" and "__MACOSX" not in folders.split("/")


def arrange(paths: Iterable[str], where: str) -> Layout:
    """Splits and classes of the images at `paths` (POSIX, relative, already filtered by `is_image`).

    Raises SourceError, naming `where` and the odd path, for no images at all and for ambiguous layouts.
    """
    found = sorted(paths)
    if not found:
        raise SourceError(f"{where}: no images found", hint=EXPECTED)
    prefix = _wrapping_folder(found, where)
    inside = [path[len(prefix) :] for path in found]
    tops = _folders(inside)
    _refuse_loose(inside, tops, prefix, where)
    if any(top.lower() in SPLIT_NAMES for top in tops):
        rows = _by_split(inside, tops, prefix, where)
    else:
        _refuse_deep_splits(inside, tops, prefix, where)
        rows = [("train", path, _class_in(path)) for path in inside]
    return Layout(prefix=prefix, listing=_label(rows))


def _wrapping_folder(paths: list[str], where: str) -> str:
    tops = _folders(paths)
    if len(tops) != 1 or any("/" not in path for path in paths) or tops[0].lower() in SPLIT_NAMES:
        return ""
    prefix = f"{tops[0]}/"
    inside = [path[len(prefix) :] for path in paths]
    if not _folders(inside):
        return ""
    loose = next((path for path in inside if "/" not in path), None)
    if loose is not None:
        raise SourceError(
            f"{where}: {tops[0]!r} holds an image of its own ({loose}) beside folders of images "
            f"({', '.join(_folders(inside)[:3])}), so it is neither a class nor a folder around the set",
            hint=EXPECTED,
        )
    return prefix


def _folders(paths: list[str]) -> list[str]:
    return sorted({path.partition("/")[0] for path in paths if "/" in path})


def _refuse_loose(paths: list[str], tops: list[str], prefix: str, where: str) -> None:
    loose = next((path for path in paths if "/" not in path), None)
    if tops and loose is not None:
        raise SourceError(
            f"{where}: the image {prefix}{loose} lies beside the folders {', '.join(tops[:3])}, in none of them",
            hint=EXPECTED,
        )


def _refuse_deep_splits(paths: list[str], tops: list[str], prefix: str, where: str) -> None:
    for path in paths:
        parts = path.split("/")
        if len(parts) > 2 and parts[1].lower() in SPLIT_NAMES:
            raise SourceError(
                f"{where}: the split folder {prefix}{parts[0]}/{parts[1]} lies inside a folder that is no split",
                hint="put the splits at the top: split/class/image",
            )
    if prefix and len(tops) == 1 and all(path.count("/") > 1 for path in paths):
        raise SourceError(
            f"{where}: two folders, {prefix}{tops[0]}, lie around everything; one is looked through",
            hint="give the path of the inner one, or pack the archive from there",
        )


def _by_split(paths: list[str], tops: list[str], prefix: str, where: str) -> list[tuple[str, str, str | None]]:
    _refuse_odd_tops(tops, prefix, where)
    labelled = {top: _is_labelled(top, paths, prefix, where) for top in tops}
    rows = []
    for path in paths:
        top, _, rest = path.partition("/")
        rows.append((SPLIT_NAMES[top.lower()], path, _class_in(rest) if labelled[top] else None))
    return rows


def _refuse_odd_tops(tops: list[str], prefix: str, where: str) -> None:
    odd = [top for top in tops if top.lower() not in SPLIT_NAMES]
    if odd:
        splits = ", ".join(top for top in tops if top not in odd)
        raise SourceError(
            f"{where}: the folder {prefix}{odd[0]} is no split, but stands beside {splits}",
            hint="move it away if the others are splits, or rename them if they are classes; " + EXPECTED,
        )
    seen: dict[str, str] = {}
    for top in tops:
        split = SPLIT_NAMES[top.lower()]
        if split in seen:
            raise SourceError(f"{where}: both {prefix}{seen[split]} and {prefix}{top} would be the split {split}")
        seen[split] = top


def _is_labelled(top: str, paths: list[str], prefix: str, where: str) -> bool:
    inside = [path[len(top) + 1 :] for path in paths if path.startswith(f"{top}/")]
    _refuse_loose(inside, _folders(inside), f"{prefix}{top}/", where)
    return "/" in inside[0]


def _class_in(path: str) -> str | None:
    folder, slash, _ = path.partition("/")
    return folder if slash else None


def _label(rows: list[tuple[str, str, str | None]]) -> Listing:
    classes = sorted({name for _, _, name in rows if name is not None})
    numbers = {name: number for number, name in enumerate(classes)}
    return Listing(
        ((split, path, UNLABELLED if name is None else numbers[name]) for split, path, name in rows),
        classes,
    )
