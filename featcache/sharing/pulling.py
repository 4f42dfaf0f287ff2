"""`featcache.pull`: take over a shared run or cache, with its digests checked.

Nothing is executed and nothing is unpickled: only safetensors, HDF5 and JSON files are taken, each is compared with its
size and SHA-256 in `featcache.json`, a cache with its own checksums too, and only then the whole gets its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from safetensors import SafetensorError, safe_open

from featcache.cache.catalog import segments_path, single_file_path
from featcache.cache.locks import lock_cache
from featcache.errors import DownloadError, HeadError, SharingError
from featcache.extraction.reporting import ProgressReporter, Reporter
from featcache.files import fsync_folder, system, tmp_name, unwritable
from featcache.progress import StageProgress
from featcache.runs.files import WEIGHTS_FILE
from featcache.runs.run import Run
from featcache.sharing.content import Content, content_of_cache, content_of_run, require_sound
from featcache.sharing.folder import Folder
from featcache.sharing.manifest import CARD_FILE, MANIFEST_FILE, SharedManifest
from featcache.sharing.places import Advance, Listing, Place, digest_file, naming_place, repository_in
from featcache.sharing.pushing import counting
from featcache.sharing.records import Pulled

_MOST_NAMED = 5
_FILES_OF_PLACES = (MANIFEST_FILE, CARD_FILE)


def pull(
    source: str | Path,
    *,
    data_dir: str | Path = "data",
    runs_dir: str | Path = "runs",
    progress: StageProgress | bool | None = None,
    reporter: Reporter | None = None,
) -> Pulled:
    """Take over a run or a cache that `featcache.push` has shared.

    Where the same one is here already, nothing is copied; a different one of that name is never overwritten.

    Args:
        source: A folder, or a repository of the Hugging Face Hub: `hf:ORG/NAME`, `hf:ORG/NAME@REVISION`, or
            `hf:datasets/ORG/NAME` where a repository of models has the same name.
        data_dir: A cache gets into its folder `features`.
        runs_dir: The folder that a run gets into.
        progress: None or True for a progress bar, in a terminal or a notebook; False for none; or a function, called
            with (stage, bytes done, bytes in all).
        reporter: Receives messages and progress, in place of the logger "featcache" and of `progress`.

    Returns:
        What was pulled, and where it is now: `pulled.path`.

    Raises:
        SharingError: The source holds no shared run or cache, or one that must not be trusted; or a different one of
            this name is here.
        DownloadError: A file does not match its size or digest.
        HubError: The Hub refuses it, or cannot be reached.
        MissingExtra: `hf:` is used and huggingface_hub is not installed.
        CacheDamaged, CacheForeign, CacheBusy, CacheUnwritable: The cache is damaged, or cannot be written.
    """
    place, listing = _open(str(source))
    manifest = _read_manifest(place, listing)
    destination = _destination(manifest, Path(data_dir) / "features", Path(runs_dir))
    option = "--runs-dir" if manifest.kind == "run" else "--data-dir"
    with ProgressReporter(progress) as bar, naming_place(option), _lock(manifest, destination):
        report = reporter or bar
        copied = not _is_here(manifest, destination, counting(report, "comparing", manifest.nbytes))
        if copied:
            _copy(place, manifest, destination, report)
        notes = (*_notes_on_files(listing, manifest), *_notes_on_content(manifest, destination))
        for note in notes:
            report.warn(note)
    return Pulled(
        kind=manifest.kind,
        name=manifest.name,
        source=place.text,
        path=destination,
        files=len(manifest.files),
        nbytes=manifest.nbytes,
        copied=copied,
        licence=manifest.licence,
        notes=notes,
    )


def _open(source: str) -> tuple[Place, Listing]:
    repository = repository_in(source)
    if repository is None:
        folder = Folder(Path(source))
        return folder, folder.read()
    from featcache.sharing.hub import open_repository

    return open_repository(repository)


def _read_manifest(place: Place, listing: Listing) -> SharedManifest:
    if listing.manifest is None:
        raise SharingError(
            f"{place.text} holds no run or cache of featcache: it has no {MANIFEST_FILE}",
            hint="`featcache push` writes one",
        )
    manifest = SharedManifest.from_bytes(listing.manifest, place.text)
    for file in manifest.files:
        found = listing.sizes.get(file.name)
        if found is None:
            raise SharingError(f"{place.text} has no file {file.name}, or a link in its place", hint="push it again")
        if found != file.nbytes:
            raise DownloadError(
                f"{place.text}: {file.name} has {found:,} bytes, expected {file.nbytes:,}", hint="push it again"
            )
    return manifest


def _destination(manifest: SharedManifest, features_dir: Path, runs_dir: Path) -> Path:
    if manifest.kind == "run":
        return runs_dir / manifest.name
    return features_dir / (manifest.packed or manifest.name)


def _lock(manifest: SharedManifest, destination: Path) -> AbstractContextManager[None]:
    # Only caches are written by several processes under one name.
    return lock_cache(destination.parent, manifest.name, wait=False) if manifest.kind == "cache" else nullcontext()


def _is_here(manifest: SharedManifest, destination: Path, advance: Advance) -> bool:
    """Whether the same run or cache is here. Raises SharingError where a different one of that name is."""
    folder = destination.parent if manifest.packed else destination
    hint = f"remove {destination} first, or pull into another folder: --data-dir, --runs-dir"
    if manifest.kind == "cache":
        other = segments_path(destination) if manifest.packed else single_file_path(destination)
        if other.exists():
            raise SharingError(f"a cache called {manifest.name} is here in another form: {other}", hint=hint)
    if not destination.exists() and not destination.is_symlink():
        return False
    for file in manifest.files:
        path = folder / file.name
        # Most differences show without reading.
        same = path.is_file() and path.stat().st_size == file.nbytes
        if not same or digest_file(path, advance)[1] != file.sha256:
            raise SharingError(
                f"a different {manifest.kind} called {manifest.name} is here: {file.name} differs from the shared one",
                hint=hint,
            )
    return True


def _copy(place: Place, manifest: SharedManifest, destination: Path, report: Reporter) -> None:
    advance = counting(report, "copying", manifest.nbytes)
    with _building(destination) as building:
        for file in manifest.files:
            place.fetch(file.name, file.nbytes, building / file.name, advance)
            size, digest = digest_file(building / file.name, advance)
            if (size, digest) != (file.nbytes, file.sha256):
                raise DownloadError(
                    f"{place.text}: {file.name} does not match its digest: expected SHA-256 {file.sha256[:12]}.. of "
                    f"{file.nbytes:,} bytes, got {digest[:12]}.. of {size:,}",
                    hint="pull again; if that fails too, the shared file is damaged: push it again",
                )
        _require_content(manifest, building, report)
        _publish(manifest, building, destination)


@contextmanager
def _building(destination: Path) -> Iterator[Path]:
    """A temporary folder next to the destination, which is removed at the end unless it was renamed."""
    building = destination.with_name(tmp_name(destination.name))
    try:
        building.mkdir(parents=True)
    except OSError as error:
        raise unwritable(destination, error) from error
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _publish(manifest: SharedManifest, building: Path, destination: Path) -> None:
    """Give what was built its final name."""
    # The Hub's library leaves its notes there.
    shutil.rmtree(building / ".cache", ignore_errors=True)
    try:
        if manifest.packed:
            system.replace(building / manifest.packed, destination)
        else:
            fsync_folder(building)
            building.rename(destination)
        fsync_folder(destination.parent)
    except OSError as error:
        raise unwritable(destination, error) from error


def _require_content(manifest: SharedManifest, building: Path, report: Reporter) -> None:
    """Raises SharingError, HeadError or CacheDamaged unless the files are the run or cache that the manifest states."""
    if manifest.kind == "run":
        content = content_of_run(building)
        _require_weights(manifest, content.of, building)
    else:
        path = building / manifest.packed if manifest.packed else building
        require_sound(path, lambda done, total: report.advance("verifying", done, total))
        content = content_of_cache(path)
    _require_stated(manifest, content)


def _require_weights(manifest: SharedManifest, run: object, building: Path) -> None:
    assert isinstance(run, Run)
    if run.weights_sha256 != manifest.file(WEIGHTS_FILE).sha256:
        raise HeadError(f"{WEIGHTS_FILE} of {manifest.name} is not the head that its record describes")
    try:
        with safe_open(building / WEIGHTS_FILE, framework="numpy"):
            pass
    except SafetensorError as error:
        raise HeadError(f"{WEIGHTS_FILE} of {manifest.name} is no safetensors file: {error}") from error


def _require_stated(manifest: SharedManifest, content: Content) -> None:
    stated = {"fingerprints": manifest.fingerprints, "weights": dict(manifest.weights)}
    found = {"fingerprints": content.fingerprints, "weights": content.weights}
    for name, value in found.items():
        if stated[name] != value:
            raise SharingError(
                f"{MANIFEST_FILE} of {manifest.name} states other {name} than its files have: {stated[name]}, {value}",
                hint="ask for a copy that `featcache push` made",
            )
    if set(content.paths) != {file.name for file in manifest.files}:
        raise SharingError(f"{MANIFEST_FILE} of {manifest.name} lists other files than the {manifest.kind} has")


def _notes_on_files(listing: Listing, manifest: SharedManifest) -> Iterator[str]:
    known = {*_FILES_OF_PLACES, ".gitattributes", *(file.name for file in manifest.files)}
    if others := [name for name in listing.sizes if name not in known]:
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        yield f"not taken, because {MANIFEST_FILE} does not list them: {', '.join(others[:_MOST_NAMED])}{more}"


def _notes_on_content(manifest: SharedManifest, destination: Path) -> Iterator[str]:
    if manifest.licence is None:
        yield "its licence is not stated"
    if manifest.kind == "run":
        yield from _notes_on_head(Run.load(destination))


def _notes_on_head(run: Run) -> Iterator[str]:
    if run.config.architecture.own:
        yield f"its head is {run.config.head}: featcache predict imports that module from your Python path"
