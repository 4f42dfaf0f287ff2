"""A folder as the place of a shared run or cache: on a network disk, on a stick, or in a repository of one's own."""

from __future__ import annotations

import contextlib
from pathlib import Path

from featcache.errors import SharingError
from featcache.files import atomic_folder, publish_bytes, unwritable
from featcache.sharing.content import Content
from featcache.sharing.manifest import CARD_FILE, MANIFEST_FILE, MOST_MANIFEST_BYTES, SharedManifest
from featcache.sharing.places import Advance, Listing, Published, copy_file, digest_file


class Folder:
    """A folder that holds one shared run or cache.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = str(path)
        # Where it lies on this machine does not concern others.
        self.address = path.absolute().name or self.text

    def read(self) -> Listing:
        """What lies there. Raises SharingError where it is no folder."""
        try:
            paths = sorted(self.path.iterdir())
            # The size of a link is that of its text: a link is no file here, and is not followed.
            sizes = {path.name: path.lstat().st_size for path in paths if path.is_file() and not path.is_symlink()}
            manifest = None
            if MANIFEST_FILE in sizes:
                with (self.path / MANIFEST_FILE).open("rb") as file:
                    manifest = file.read(MOST_MANIFEST_BYTES + 1)
        except OSError as error:
            raise SharingError(
                f"expected a folder that featcache push wrote, got {self.path}: {error.strerror}",
                hint="give the folder, or hf:ORG/NAME",
            ) from error
        return Listing(manifest=manifest, sizes=sizes)

    def fetch(self, name: str, nbytes: int, to: Path, advance: Advance) -> None:
        """Copy a file. Raises SharingError for a link, CacheUnwritable, CacheUnreadable, CacheDamaged."""
        source = self.path / name
        if source.is_symlink():
            raise SharingError(f"{source} is a link, expected a file", hint="ask for a copy that `featcache push` made")
        copy_file(source, to, nbytes, advance)

    def put(self, content: Content, manifest: SharedManifest, card: str, advance: Advance) -> Published:
        """Write the folder: complete or not at all.

        The same run or cache there is not written again, only its manifest and card where these are different.

        Raises:
            SharingError: The folder holds something else.
            CacheUnwritable: It cannot be written.
        """
        texts = {CARD_FILE: card.encode(), MANIFEST_FILE: manifest.to_bytes()}
        there = self.read() if self.path.exists() else Listing(manifest=None, sizes={})
        if there.sizes or (self.path.is_dir() and any(self.path.iterdir())):
            self._require_same(there, manifest, advance)
            for name, text in texts.items():
                if (self.path / name).is_symlink() or not self._holds(name, text):
                    publish_bytes(self.path / name, text)
            return Published(copied=False)
        try:
            with contextlib.suppress(FileNotFoundError):
                self.path.rmdir()
            with atomic_folder(self.path) as building:
                for file in manifest.files:
                    copy_file(content.paths[file.name], building / file.name, file.nbytes, advance)
                    if digest_file(building / file.name, advance) != (file.nbytes, file.sha256):
                        raise SharingError(f"{file.name} was changed while it was copied", hint="push again")
                for name, text in texts.items():
                    publish_bytes(building / name, text)
        except OSError as error:
            raise unwritable(self.path, error) from error
        return Published(copied=True)

    def _require_same(self, there: Listing, manifest: SharedManifest, advance: Advance) -> None:
        """Raises SharingError unless the folder holds the files of the manifest, byte by byte."""
        hint = "push to a new folder, or remove this one first"
        if there.manifest is None:
            raise SharingError(f"{self.path} holds files that featcache push did not write", hint=hint)
        before = SharedManifest.from_bytes(there.manifest, self.text)
        if (before.kind, before.name) != (manifest.kind, manifest.name):
            raise SharingError(f"{self.path} holds the {before.kind} {before.name}", hint=hint)
        for file in manifest.files:
            path = self.path / file.name
            if path.is_symlink() or not path.is_file() or digest_file(path, advance) != (file.nbytes, file.sha256):
                raise SharingError(
                    f"{self.path} holds another version of the {before.kind} {before.name}: {file.name} differs",
                    hint=hint,
                )

    def _holds(self, name: str, text: bytes) -> bool:
        path = self.path / name
        return path.is_file() and path.stat().st_size == len(text) and path.read_bytes() == text
