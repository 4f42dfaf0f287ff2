"""A tree of the folders that contain images: the layout rules read it instead of a million paths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

# Wrapper folder, a second one, split, split again, images, class, and one level below a class: 7.
_DEEPEST = 8


class Folder:
    """A folder that contains images, directly or in its subfolders.

    Attributes:
        image: The name of the first image directly in it; None if there is none.
        inner: Its subfolders by name.
    """

    __slots__ = ("image", "inner")

    def __init__(self) -> None:
        self.image: str | None = None
        self.inner: dict[str, Folder] = {}

    @property
    def images_only(self) -> bool:
        """Whether it contains images and no subfolder."""
        return not self.inner

    @property
    def folders_only(self) -> bool:
        """Whether it contains subfolders and no image directly."""
        return self.image is None


def tree_of(paths: Iterable[str]) -> Folder:
    """The folders of `paths` (POSIX, sorted), down to the depth that the layout rules need."""
    root = Folder()
    last: str | None = None
    folder = root
    for path in paths:
        above, slash, name = path.rpartition("/")
        # Without a slash the image is in the root; "/x" is in a folder whose name is empty.
        if (above if slash else None) != last:
            last = above if slash else None
            folder = _folder_at(root, last)
        if folder.image is None:
            folder.image = name
    return root


def _folder_at(root: Folder, above: str | None) -> Folder:
    folder = root
    for part in [] if above is None else above.split("/", _DEEPEST)[:_DEEPEST]:
        folder = folder.inner.setdefault(part, Folder())
    return folder


@dataclass(frozen=True, kw_only=True)
class SetFolder:
    """A folder of an image set, with its path.

    Attributes:
        where: The name of the set in error messages.
        prefix: The folder's path in the set with a slash at the end; "" for the set itself.
        folder: Its content.
    """

    where: str
    prefix: str
    folder: Folder

    @cached_property
    def names(self) -> list[str]:
        """The names of its subfolders, sorted."""
        return sorted(self.folder.inner)

    @property
    def only(self) -> str | None:
        """The name of its only subfolder, if it contains nothing else; else None."""
        return self.names[0] if self.folder.folders_only and len(self.folder.inner) == 1 else None

    def inner(self, name: str) -> SetFolder:
        """One of its subfolders."""
        return SetFolder(where=self.where, prefix=f"{self.prefix}{name}/", folder=self.folder.inner[name])

    @property
    def shown(self) -> str:
        """Its path without the slash at the end."""
        return self.prefix.removesuffix("/")

    def find(self, path: str) -> Folder | None:
        """The folder at a path inside it; None if that contains no image."""
        folder: Folder | None = self.folder
        for part in path.split("/", _DEEPEST)[:_DEEPEST]:
            folder = folder.inner.get(part) if folder is not None else None
        return folder
