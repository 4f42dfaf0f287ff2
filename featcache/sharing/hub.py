"""A repository of the Hugging Face Hub as the place of a shared run or cache, through huggingface_hub.

A run is a repository of models, a cache one of data sets. A push is one commit; a pull takes all files from one commit.
The login is that of huggingface_hub (`hf auth login`, or HF_TOKEN).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from featcache.errors import FeatcacheError, HubError, HubNotFound, MissingExtra, SharingError, one_line
from featcache.files import fsync_file, unwritable
from featcache.sharing.content import Content
from featcache.sharing.manifest import CARD_FILE, MANIFEST_FILE, MOST_MANIFEST_BYTES, SharedManifest
from featcache.sharing.places import PREFIX, Advance, Listing, Published, Repository

# What the Hub itself puts into a new repository.
HUBS_FILES = (".gitattributes",)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class HubRepository:
    """A repository of the Hub.

    Args:
        repository: Its id and revision.
        is_dataset: Whether it is one of data sets, else of models.
        private: Whether only its owner can see it, where it is created.

    Raises:
        MissingExtra: huggingface_hub is not installed.
    """

    def __init__(self, repository: Repository, *, is_dataset: bool, private: bool = False) -> None:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise MissingExtra("hf:ORG/NAME", package="huggingface-hub", extra="hub") from error
        self._api = HfApi(library_name="featcache")
        self._id, self._revision, self._private = repository.id, repository.revision, private
        self._type = "dataset" if is_dataset else "model"
        self.text = f"{PREFIX}{repository.id}" + (f"@{repository.revision}" if repository.revision else "")
        self.address = f"{PREFIX}{'datasets/' if is_dataset else ''}{repository.id}"

    def read(self) -> Listing:
        """What lies there. Raises HubError."""
        sizes = {one.rfilename: int(one.size or 0) for one in self._info.siblings or ()}
        if not 0 < sizes.get(MANIFEST_FILE, 0) <= MOST_MANIFEST_BYTES:
            return Listing(manifest=None, sizes=sizes)
        with self._errors(), _quiet():
            # The library keeps this small file in its own cache, by its commit.
            path = self._api.hf_hub_download(self._id, MANIFEST_FILE, repo_type=self._type, revision=self._info.sha)
            return Listing(manifest=Path(path).read_bytes(), sizes=sizes)

    def fetch(self, name: str, nbytes: int, to: Path, advance: Advance) -> None:
        """Download a file. Raises SharingError for another size, HubError, CacheUnwritable."""
        size = next((one.size for one in self._info.siblings or () if one.rfilename == name), None)
        if size != nbytes:
            raise SharingError(f"{self.text}: {name} has {size} bytes, expected {nbytes}", hint="push it again")
        with self._errors(to), _quiet():
            # In this folder the file gets its own name, which is that of `to`.
            self._api.hf_hub_download(
                self._id, name, repo_type=self._type, revision=self._info.sha, local_dir=to.parent
            )
            fsync_file(to)
        advance(nbytes)

    def put(self, content: Content, manifest: SharedManifest, card: str, advance: Advance) -> Published:
        """Create the repository where there is none, and commit the files.

        Raises:
            SharingError: The repository holds something else, or is public where a private one is expected.
            HubError: The Hub refuses it, or cannot be reached.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with self._errors(), _quiet():
            self._api.create_repo(self._id, repo_type=self._type, private=self._private or None, exist_ok=True)
        if self._private and not self._info.private:
            raise SharingError(
                f"{self.text} exists and is public, expected a private repository: nothing was uploaded",
                hint="make it private on its page, or push to another name",
            )
        there = self.read()
        before = self._before(there)
        additions = [CommitOperationAdd(one.name, content.paths[one.name]) for one in manifest.files]
        texts = [CommitOperationAdd(CARD_FILE, card.encode()), CommitOperationAdd(MANIFEST_FILE, manifest.to_bytes())]
        for file, addition in zip(manifest.files, additions, strict=True):
            # Computed by the library, which commits these digests.
            if addition.upload_info.sha256.hex() != file.sha256:
                raise SharingError(f"{file.name} was changed while it was pushed", hint="push again")
        kept = {one.name for one in manifest.files}
        old = {one.name for one in before.files if one.name in there.sizes} - kept if before else set()
        operations: list[Any] = [*additions, *texts, *(CommitOperationDelete(name) for name in sorted(old))]
        with self._errors(), _quiet():
            self._api.create_commit(
                self._id,
                operations,
                commit_message=f"featcache push: {content.kind} {content.name}",
                repo_type=self._type,
                parent_commit=self._info.sha,
            )
        advance(manifest.nbytes)
        return Published(
            copied=before is None or before.files != manifest.files,
            url=f"{self._api.endpoint}/{'datasets/' if self._type == 'dataset' else ''}{self._id}",
            notes=self._replacement_notes(before, manifest),
        )

    def _before(self, there: Listing) -> SharedManifest | None:
        """What was pushed there before. Raises SharingError where the repository holds something else."""
        others = [name for name in there.sizes if name not in HUBS_FILES]
        if there.manifest is not None:
            return SharedManifest.from_bytes(there.manifest, self.text)
        if others:
            raise SharingError(
                f"{self.text} holds files that featcache push did not write: {', '.join(others[:5])}",
                hint="push to a new repository",
            )
        return None

    def _replacement_notes(self, before: SharedManifest | None, manifest: SharedManifest) -> tuple[str, ...]:
        if before is None or before.files == manifest.files:
            return ()
        return (f"{self.text} held the {before.kind} {before.name}: its history keeps it, the newest commit does not",)

    @cached_property
    def _info(self) -> Any:
        with self._errors():
            return self._api.repo_info(self._id, repo_type=self._type, revision=self._revision, files_metadata=True)

    @contextmanager
    def _errors(self, to: Path | None = None) -> Iterator[None]:
        """Translate the errors of the library, which may be of any type. `to`: the file that is written."""
        try:
            yield
        except FeatcacheError:
            raise
        except Exception as error:
            if to is not None and isinstance(error, OSError) and error.errno in _FULL:
                raise unwritable(to, error) from error
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> HubError:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"{type(error).__name__}: {one_line(error)}" if status is None else f"HTTP {status}"
        if status in (401, 403):
            found = HubNotFound if status == 401 else HubError
            return found(
                f"the Hugging Face Hub refuses access to {self.text} ({reason})",
                hint="check the name, and log in with `hf auth login` with a token that may do this; "
                "the licence of a gated repository is accepted on its page",
            )
        if status == 404:
            return HubNotFound(
                f"the Hugging Face Hub has no {self._type} {self.text} ({reason})",
                hint="check the name and the revision; a private one needs `hf auth login`",
            )
        if status is not None:
            return HubError(f"the Hugging Face Hub failed for {self.text} ({reason})", hint="try again later")
        # The library's HTTP client has errors of its own for connections.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            return HubError(
                f"huggingface_hub failed for {self.text} ({reason})",
                hint="`pip install -U huggingface-hub`; featcache --debug shows where it happened",
            )
        return HubError(
            f"the Hugging Face Hub cannot be reached for {self.text} ({reason})",
            hint="check the network, a proxy and HF_HUB_OFFLINE; without a network, push to a folder and carry it over",
        )


def open_repository(repository: Repository) -> tuple[HubRepository, Listing]:
    """The repository to pull from: one of models or, where there is none, of data sets.

    Raises HubError, MissingExtra.
    """
    kinds = (True,) if repository.is_dataset else (False, True)
    refused: HubNotFound | None = None
    for is_dataset in kinds:
        place = HubRepository(repository, is_dataset=is_dataset)
        try:
            return place, place.read()
        except HubNotFound as error:
            refused = refused or error
    assert refused is not None
    raise refused


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own progress bars."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()
