"""Folders that say nothing: one around a whole set, a split's inside one of its name, `images` around classes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from featcache.errors import SourceError, nearest
from featcache.images.folder_tree import Inside
from featcache.images.layout_refusals import EXPECTED
from featcache.images.omissions import and_more
from featcache.images.splits import SplitFolders, same_name, split_word, splits_in

IMAGE_FOLDERS = frozenset(("images", "imgs", "image", "img", "jpg", "jpeg", "png", "jpegimages", "data"))
"""Names of folders, in lower case, that say only that images lie there."""

_MOST_AROUND = 4


@dataclass(frozen=True, kw_only=True)
class LookedThrough:
    """The folder whose folders are classes, or whose images are unlabelled, and what was passed on the way to it."""

    inside: Inside
    notes: tuple[str, ...] = ()


def start_of(outer: Inside, splits: SplitFolders) -> LookedThrough:
    """The folder at which splits or classes begin: `outer`, or what lies in one folder around all of it.

    A second folder is looked through as well where it repeats the name of the first, or is called `images`.
    Raises SourceError where a folder around all holds images of its own, or a folder that the user names is missing.
    """
    if splits.named:
        return LookedThrough(inside=_start_of_named(outer, [folder for folder, _ in splits.named]))
    inside = _without_wrapper(outer, splits)
    second = inside.only
    if inside is outer or second is None or not _says_nothing(second, beside=inside.shown):
        return LookedThrough(inside=inside)
    inner = inside.inner(second)
    if inner.folder.images_only or not inner.folder.folders_only:
        return LookedThrough(inside=inside)
    return LookedThrough(inside=inner, notes=(_passed(inner),))


def in_split(inside: Inside, split: str, classes_elsewhere: Collection[str] = ()) -> LookedThrough:
    """What lies in a split: the split's folder is looked through once more where it is nested, then `images`.

    `classes_elsewhere`: the classes of other splits; a folder that is called like one of them is that class.
    """
    name, inner = inside.shown.rpartition("/")[2], inside.only
    notes: tuple[str, ...] = ()
    if inner is not None and (same_name(inner) == same_name(name) or split_word(inner) == split):
        inside = inside.inner(inner)
        notes = (_passed(inside),)
    if inside.only in classes_elsewhere:
        return LookedThrough(inside=inside, notes=notes)
    passed = in_images(inside)
    return LookedThrough(inside=passed.inside, notes=(*notes, *passed.notes))


def in_images(inside: Inside) -> LookedThrough:
    """What lies in a folder called `images` or alike where that is all there is; else `inside` itself."""
    if inside.only is None or inside.only.lower() not in IMAGE_FOLDERS:
        return LookedThrough(inside=inside)
    inner = inside.inner(inside.only)
    return LookedThrough(inside=inner, notes=(_unlabelled(inner) if inner.folder.images_only else _passed(inner),))


def _without_wrapper(outer: Inside, splits: SplitFolders) -> Inside:
    name = outer.only
    if name is None:
        return outer
    inner = outer.inner(name)
    if inner.folder.images_only or (splits.automatic and _is_split(name, inner)):
        return outer
    if inner.folder.image is not None:
        raise SourceError(
            f"{outer.where}: {name!r} holds an image of its own ({inner.folder.image}) beside folders of images "
            f"({and_more(inner.names)}), so it is neither a class nor a folder around the set",
            hint=EXPECTED,
        )
    return inner


def _is_split(name: str, inner: Inside) -> bool:
    """Whether the only folder is a split, and not a folder around splits that is called like one: `test_data/train`."""
    if split_word(name):
        return True
    found = splits_in(name)
    if len(found) != 1:
        return False
    nested = inner.only is not None and (inner.only == name or split_word(inner.only) == found[0])
    return nested or not _are_splits(inner.names)


def _are_splits(names: Sequence[str]) -> bool:
    return any(map(split_word, names)) or (len(names) > 0 and all(len(splits_in(name)) == 1 for name in names))


def _says_nothing(name: str, beside: str) -> bool:
    return name.lower() in IMAGE_FOLDERS or same_name(name) == same_name(beside.rpartition("/")[2])


def _passed(inside: Inside) -> str:
    return f"the folder {inside.shown} is looked through: it is all that lies there"


def _unlabelled(inside: Inside) -> str:
    return f"the images in {inside.shown} are unlabelled: the folder's name says no class"


def _start_of_named(outer: Inside, named: Sequence[str]) -> Inside:
    chain = list(_chain(outer))
    for inside in chain:
        if all(name_in(inside, folder) is not None for folder in named):
            return inside
    missing = next(folder for folder in named if name_in(chain[-1], folder) is None)
    tops = [inside.prefix + name for inside in chain for name in inside.names]
    shown = "; ".join(and_more(inside.prefix + name for name in inside.names) for inside in chain)
    raise SourceError(
        f"{outer.where}: expected images in the folder {missing!r}, got the folders {shown or 'none at all'}",
        hint=nearest(missing, tops),
    )


def name_in(inside: Inside, folder: str) -> str | None:
    """The name of the folder in `inside` that the user calls `folder`, with the folders around it or without them."""
    known = {same_name(name): name for name in inside.names}
    asked, prefix = same_name(folder), same_name(inside.prefix)
    return known.get(asked) or (known.get(asked.removeprefix(prefix)) if asked.startswith(prefix) else None)


def _chain(outer: Inside) -> Iterator[Inside]:
    """`outer`, and what lies in it as long as that is one folder of folders."""
    inside = outer
    for _ in range(_MOST_AROUND):
        yield inside
        name = inside.only
        if name is None or inside.inner(name).folder.images_only:
            return
        inside = inside.inner(name)
