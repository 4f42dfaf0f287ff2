"""Errors for ambiguous folder layouts: each names the problem, the possible readings, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featcache.errors import SourceError
from featcache.images.folder_tree import SetFolder
from featcache.images.image_paths import EXTENSIONS
from featcache.images.omissions import and_more
from featcache.images.splits import FLAG, NO_SPLITS, split_word, splits_in, values_for

EXPECTED = (
    "expected class/image, split/class/image or class/split/image (splits: train, val, test; a flat folder is "
    "unlabelled); image extensions are " + ", ".join(sorted(EXTENSIONS))
)

_NONE = f"{FLAG} {NO_SPLITS}"


def refuse_loose(here: SetFolder) -> None:
    """Refuse an image next to folders: it is in no class, or in no split."""
    if here.folder.image is not None and here.names:
        raise SourceError(
            f"{here.where}: the image {here.prefix}{here.folder.image} is next to the folders "
            f"{and_more(here.names)}, not in one of them",
            hint=EXPECTED,
        )


def refuse_odd(here: SetFolder) -> None:
    """Refuse a folder whose name is no split, or two splits, next to folders named like splits."""
    splits = [(name, splits_in(name)[0]) for name in here.names if len(splits_in(name)) == 1]
    odd = next(name for name in here.names if len(splits_in(name)) != 1)
    two = f" (it names {' and '.join(splits_in(odd))})" if splits_in(odd) else ""
    raise SourceError(
        f"{here.where}: the folder {here.prefix}{odd} is no split{two}, but is next to "
        f"{and_more(name for name, _ in splits)}",
        hint=f"{values_for(splits)} leaves it out; {_NONE} if all are classes; {EXPECTED}",
    )


def refuse_mixed(here: SetFolder, splits: Mapping[str, str]) -> None:
    """Refuse folders that could be splits next to others that could not."""
    other = next(name for name in here.names if name not in splits)
    raise SourceError(
        f"{here.where}: either the folders {and_more(here.prefix + name for name in splits)} are splits "
        f"({and_more(splits.values())}) and {here.prefix}{other} is not; or all {len(here.names):,} are classes",
        hint=f"{values_for(splits.items())} if they are splits (leaves out other folders); {_NONE} if all are classes",
    )


def refuse_same_split(here: SetFolder, splits: Mapping[str, str]) -> None:
    """Refuse two top folders that name the same split."""
    twice = _same_split(splits)
    if twice is not None:
        one, other, split = twice
        raise SourceError(
            f"{here.where}: both {here.prefix}{one} and {here.prefix}{other} would be the split {split}",
            hint=f"{values_for([(one, split), (other, split)])} reads both, one option alone leaves the other out; "
            f"{_NONE} if they are classes",
        )


def refuse_same_split_in_class(here: SetFolder) -> None:
    """Refuse two folders in a class that name the same split."""
    twice = _same_split({name: split for name in here.names if (split := split_word(name))})
    if twice is not None:
        one, other, split = twice
        raise SourceError(
            f"{here.where}: both {here.prefix}{one} and {here.prefix}{other} would be the split {split} of a class",
            hint=f"move the images into one of them; {_NONE} if all in {here.shown} is one class without splits",
        )


def _same_split(splits: Mapping[str, str]) -> tuple[str, str, str] | None:
    seen: dict[str, str] = {}
    for name, split in splits.items():
        other = seen.setdefault(split, name)
        if other != name:
            return other, name, split
    return None


def refuse_inner_splits(branches: Mapping[str, tuple[str, SetFolder]]) -> None:
    """Refuse a split folder that contains only split folders: it may be a wrapper around them, or a split itself."""
    for name, (split, inside) in branches.items():
        if inside.names and all(map(split_word, inside.names)):
            raise SourceError(
                f"{inside.where}: the split folder {inside.prefix}{inside.names[0]} lies inside {name}, "
                f"which would be the split {split}",
                hint=f"give the path of {name} if the splits are inside it, or {values_for([(name, split)])} "
                f"if {and_more(inside.names)} are classes",
            )


def refuse_split_below_class(here: SetFolder) -> None:
    """Refuse classes of which some contain folders named like splits, and others do not."""
    for name in here.names:
        inner = next((inner for inner in here.inner(name).names if split_word(inner)), None)
        if inner is not None:
            raise SourceError(
                f"{here.where}: the split folder {here.prefix}{name}/{inner} lies inside a folder that is no split",
                hint=f"put the splits at the top, split/class/image, or in every class, class/split/image, and "
                f"nothing else next to them; {_NONE} if {name} is a class with all of its subfolders",
            )


def refuse_two_around(here: SetFolder) -> None:
    """Refuse a second wrapper folder around everything."""
    if here.only is not None and here.inner(here.only).folder.folders_only:
        raise SourceError(
            f"{here.where}: two nested folders, {here.prefix}{here.only}, hold everything; only one can be a wrapper",
            hint=f"give the path of the inner one, or pack the archive from there; {_NONE} if {here.only} is a class",
        )


def refuse_doubtful_classes(here: SetFolder) -> None:
    """Refuse classes that all contain the same folders: these may be the classes, the outer ones sites or splits."""
    inner = doubtful_classes(here)
    if inner:
        example = values_for(zip(here.names, ("train", "test"), strict=False))
        raise SourceError(
            _two_readings(here, inner),
            hint=f"{example} if the folders inside are the classes; {_NONE} if {and_more(here.names)} are",
        )


def refuse_copy(here: SetFolder) -> None:
    """Refuse a class folder that contains folders named like all other classes: a copy of the set inside the set."""
    for name in here.names:
        others = [one for one in here.names if one != name]
        if len(others) > 1 and set(others) <= set(here.inner(name).names):
            raise SourceError(
                f"{here.where}: {here.prefix}{name} contains the folders {and_more(others)} again",
                hint=f"if it is a copy of the set, give its path or move it away; {_NONE} if {name} is a class",
            )


def refuse_doubtful_in_splits(branches: Mapping[str, tuple[str, SetFolder]]) -> None:
    """Refuse the same within splits, unless another split has images directly in the classes."""
    doubtful = {name: inner for name, (_, inside) in branches.items() if (inner := doubtful_classes(inside))}
    sure = {one for name, (_, inside) in branches.items() if name not in doubtful for one in inside.names}
    for name, inner in doubtful.items():
        inside = branches[name][1]
        if not sure.issuperset(inside.names):
            folders = values_for((folder, split) for folder, (split, _) in branches.items())
            raise SourceError(
                _two_readings(inside, inner),
                hint=f"{folders} if {and_more(inside.names)} are the classes; "
                "else move the folders inside them up, to split/class/image",
            )


def doubtful_classes(here: SetFolder) -> Sequence[str]:
    """The inner folders (those inside the folders of `here`) if they may be the classes as well; else none.

    They may be if every folder contains folders, two or more different ones in all, and one of them is in every
    folder: `siteA/cat`, `siteA/dog`, `siteB/cat`. A single inner folder that is the same everywhere, such as `images`,
    does not count; a single folder that also contains images is a class.
    """
    inner = [here.folder.inner[name].inner.keys() for name in here.names]
    alone_with_images = here.only is not None and here.inner(here.only).folder.image is not None
    if not inner or not all(inner) or alone_with_images:
        return []
    every, everywhere = set().union(*inner), set(inner[0]).intersection(*inner[1:])
    return sorted(every) if len(every) > 1 and everywhere else []


def _two_readings(here: SetFolder, inner: Sequence[str]) -> str:
    place = f" in {here.shown}" if here.prefix else ""
    return (
        f"{here.where}: the folders{place} can be read in two ways: as the classes {and_more(here.names)}; "
        f"or as the classes {and_more(inner)} within each of {and_more(here.names)}"
    )
