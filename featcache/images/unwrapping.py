"""Skips wrapper folders: one around the whole set, a split repeated inside itself, `images` around the classes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from featcache.errors import SourceError, nearest
from featcache.images.folder_tree import SetFolder
from featcache.images.layout_refusals import EXPECTED
from featcache.images.omissions import and_more
from featcache.images.splits import SplitFolders, same_name, split_word, splits_in

IMAGE_FOLDERS = frozenset(("images", "imgs", "image", "img", "jpg", "jpeg", "png", "jpegimages", "data"))
"""Names of folders, in lower case, that only say that they contain images."""

_MOST_AROUND = 4


@dataclass(frozen=True, kw_only=True)
class Unwrapped:
    """The folder inside the wrappers.

    Attributes:
        inside: The folder whose subfolders are classes or splits, or whose images are unlabelled.
        notes: A sentence for each wrapper that was skipped without being the folder around the whole set.
    """

    inside: SetFolder
    notes: tuple[str, ...] = ()


def unwrap_set(outer: SetFolder, splits: SplitFolders) -> Unwrapped:
    """Find the folder that contains the splits or classes: `outer`, or the folder inside one wrapper around everything.

    A second folder is a wrapper as well if it repeats the name of the first, or is named like `images`.
    Raises SourceError if a wrapper contains images directly, or a folder that the user names is missing.
    """
    if splits.named:
        return Unwrapped(inside=_unwrap_to_named(outer, [folder for folder, _ in splits.named]))
    inside = _without_wrapper(outer, splits)
    second = inside.only
    if inside is outer or second is None or not _is_uninformative(second, outer=inside.shown):
        return Unwrapped(inside=inside)
    inner = inside.inner(second)
    if inner.folder.images_only or not inner.folder.folders_only:
        return Unwrapped(inside=inside)
    return Unwrapped(inside=inner, notes=(_note_on_wrapper(inner),))


def unwrap_split(inside: SetFolder, split: str, classes_elsewhere: Collection[str] = ()) -> Unwrapped:
    """Skip the wrappers inside a split folder: the split's name once more, then a folder such as `images`.

    `classes_elsewhere`: the classes of other splits; a folder named like one of them is that class, not a wrapper.
    """
    name, inner = inside.shown.rpartition("/")[2], inside.only
    notes: tuple[str, ...] = ()
    if inner is not None and (same_name(inner) == same_name(name) or split_word(inner) == split):
        inside = inside.inner(inner)
        notes = (_note_on_wrapper(inside),)
    if inside.only in classes_elsewhere:
        return Unwrapped(inside=inside, notes=notes)
    unwrapped = unwrap_images(inside)
    return Unwrapped(inside=unwrapped.inside, notes=(*notes, *unwrapped.notes))


def unwrap_images(inside: SetFolder) -> Unwrapped:
    """The folder inside one named like `images`, if there is nothing else; else `inside` itself."""
    if inside.only is None or inside.only.lower() not in IMAGE_FOLDERS:
        return Unwrapped(inside=inside)
    inner = inside.inner(inside.only)
    note = _note_on_unlabelled(inner) if inner.folder.images_only else _note_on_wrapper(inner)
    return Unwrapped(inside=inner, notes=(note,))


def _without_wrapper(outer: SetFolder, splits: SplitFolders) -> SetFolder:
    name = outer.only
    if name is None:
        return outer
    inner = outer.inner(name)
    if inner.folder.images_only or (splits.automatic and _is_split(name, inner)):
        return outer
    if inner.folder.image is not None:
        raise SourceError(
            f"{outer.where}: {name!r} contains an image ({inner.folder.image}) next to folders of images "
            f"({and_more(inner.names)}), so it is neither a class nor a wrapper around the set",
            hint=EXPECTED,
        )
    return inner


def _is_split(name: str, inner: SetFolder) -> bool:
    """Whether the only folder is a split, and not a wrapper around splits with such a name: `test_data/train`."""
    if split_word(name):
        return True
    found = splits_in(name)
    if len(found) != 1:
        return False
    nested = inner.only is not None and (inner.only == name or split_word(inner.only) == found[0])
    return nested or not _are_splits(inner.names)


def _are_splits(names: Sequence[str]) -> bool:
    return any(map(split_word, names)) or (len(names) > 0 and all(len(splits_in(name)) == 1 for name in names))


def _is_uninformative(name: str, outer: str) -> bool:
    return name.lower() in IMAGE_FOLDERS or same_name(name) == same_name(outer.rpartition("/")[2])


def _note_on_wrapper(inside: SetFolder) -> str:
    return f"the folder {inside.shown} is treated as a wrapper: it is the only folder there"


def _note_on_unlabelled(inside: SetFolder) -> str:
    return f"the images in {inside.shown} are unlabelled: the folder's name is not a class"


def _unwrap_to_named(outer: SetFolder, named: Sequence[str]) -> SetFolder:
    chain = list(_chain(outer))
    for inside in chain:
        if all(name_in(inside, folder) is not None for folder in named):
            return inside
    missing = next(folder for folder in named if name_in(chain[-1], folder) is None)
    tops = [inside.prefix + name for inside in chain for name in inside.names]
    shown = "; ".join(and_more(inside.prefix + name for name in inside.names) for inside in chain)
    raise SourceError(
        f"{outer.where}: expected images in the folder {missing!r}, got the folders {shown or '(none)'}",
        hint=nearest(missing, tops),
    )


def name_in(inside: SetFolder, folder: str) -> str | None:
    """The name of the subfolder of `inside` that the user means by `folder`, a path with or without `inside.prefix`."""
    known = {same_name(name): name for name in inside.names}
    requested, prefix = same_name(folder), same_name(inside.prefix)
    return known.get(requested) or (known.get(requested.removeprefix(prefix)) if requested.startswith(prefix) else None)


def _chain(outer: SetFolder) -> Iterator[SetFolder]:
    """`outer`, then its only subfolder, and so on, while that contains folders."""
    inside = outer
    for _ in range(_MOST_AROUND):
        yield inside
        name = inside.only
        if name is None or inside.inner(name).folder.images_only:
            return
        inside = inside.inner(name)
