"""The folders that hold images, as a tree: what the rules of the layout look at instead of a million paths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

# A folder around all, one more, split, split again, images, class, and what lies below a class: 7.
_DEEPEST = 8


class Folder:
    """A folder with images in it or below it.

    Attributes:
        image: The name of an image directly in it, the first one; None where there is none.
        inner: Its folders by name.
    """

    __slots__ = ("image", "inner")

    def __init__(self) -> None:
        self.image: str | None = None
        self.inner: dict[str, Folder] = {}

    @property
    def images_only(self) -> bool:
        """Whether it holds images and no folder."""
        return not self.inner

    @property
    def folders_only(self) -> bool:
        """Whether it holds folders and no image of its own."""
        return self.image is None


def tree_of(paths: Iterable[str]) -> Folder:
    """The folders of `paths` (POSIX, sorted). Below the depth that the rules look at there is no more of it."""
    root = Folder()
    last: str | None = None
    folder = root
    for path in paths:
        above, slash, name = path.rpartition("/")
        # Without a slash it lies in the root; "/x" lies in a folder without a name.
        if (above if slash else None) != last:
            last = above if slash else None
            folder = _reached(root, last)
        if folder.image is None:
            folder.image = name
    return root


def _reached(root: Folder, above: str | None) -> Folder:
    folder = root
    for part in [] if above is None else above.split("/", _DEEPEST)[:_DEEPEST]:
        folder = folder.inner.setdefault(part, Folder())
    return folder


@dataclass(frozen=True, kw_only=True)
class Inside:
    """A folder of a set, and where it lies.

    Attributes:
        where: What names the set in an error.
        prefix: The folder's path in the set with its slash; "" for the set itself.
        folder: What it holds.
    """

    where: str
    prefix: str
    folder: Folder

    @cached_property
    def names(self) -> list[str]:
        """The names of its folders, sorted."""
        return sorted(self.folder.inner)

    @property
    def only(self) -> str | None:
        """The name of the one folder that is all it holds, else None."""
        return self.names[0] if self.folder.folders_only and len(self.folder.inner) == 1 else None

    def inner(self, name: str) -> Inside:
        """One of its folders."""
        return Inside(where=self.where, prefix=f"{self.prefix}{name}/", folder=self.folder.inner[name])

    @property
    def shown(self) -> str:
        """Its path without the slash."""
        return self.prefix.removesuffix("/")

    def find(self, path: str) -> Folder | None:
        """The folder at a path inside it, None where no image lies."""
        folder: Folder | None = self.folder
        for part in path.split("/", _DEEPEST)[:_DEEPEST]:
            folder = folder.inner.get(part) if folder is not None else None
        return folder
