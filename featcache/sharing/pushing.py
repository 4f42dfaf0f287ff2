"""`featcache.push`: share a run or a cache in a folder or on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featcache.cache.catalog import CacheEntry
from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divide_options
from featcache.errors import InvalidOption
from featcache.extraction.reporting import ProgressReporter, Reporter
from featcache.progress import StageProgress
from featcache.runs.run import Run
from featcache.sharing.card import card_of
from featcache.sharing.content import Content, find_content, require_sound
from featcache.sharing.folder import Folder
from featcache.sharing.manifest import SharedFile, SharedManifest
from featcache.sharing.places import Advance, Place, digest_file, naming_place, repository_in
from featcache.sharing.records import Pushed, PushOptions


@accepts(PushOptions)
def push(
    what: Run | FeatureCache | str | Path,
    target: str | Path,
    *,
    data_dir: str | Path = "data",
    runs_dir: str | Path = "runs",
    progress: StageProgress | bool | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Pushed:
    """Share a run or a cache in a folder or on the Hugging Face Hub.

    The safetensors, HDF5 and JSON files are copied as they are, with a card (README.md) and a list of their SHA-256
    (featcache.json).

    Args:
        what: A run or a cache: the object, its path, its name, or how that begins; of runs also "latest" and "best".
        target: A folder, new or empty; or `hf:ORG/NAME`, a repository of the Hub, which is created where it does not
            exist: one of models for a run, one of data sets for a cache. The login is that of huggingface_hub.
        data_dir: The folder of caches.
        runs_dir: The folder of runs.
        progress: None or True for a progress bar, in a terminal or a notebook; False for none; or a function, called
            with (stage, bytes done, bytes in all).
        reporter: Receives messages and progress, in place of the logger "featcache" and of `progress`.
        {options}

    Returns:
        What was shared, and where.

    Raises:
        SharingError: There is no such run or cache, or the target holds something else.
        HubError: The Hub refuses it, or cannot be reached.
        MissingExtra: `hf:` is used and huggingface_hub is not installed.
        CacheIncomplete, CacheDamaged, HeadError: It cannot be shared as it is.
        CacheUnwritable: The folder cannot be written.
        InvalidOption: An unknown option, or a value that cannot be used.
    """
    own = ("what", "target", "data_dir", "runs_dir", "progress", "reporter")
    (given,) = divide_options(options, "push", PushOptions, also=own)
    how = PushOptions(**given)
    content = find_content(what, runs_dir=Path(runs_dir), features_dir=Path(data_dir) / "features")
    place = _place(str(target), content, how)
    with ProgressReporter(progress) as bar:
        report = reporter or bar
        if isinstance(content.of, CacheEntry):
            require_sound(content.of.path, lambda done, total: report.advance("verifying", done, total))
        manifest = _manifest(content, how, report)
        card = card_of(content, manifest, place.address)
        with naming_place("TARGET"):
            done = place.put(content, manifest, card, counting(report, "copying", manifest.nbytes))
        notes = (*done.notes, *_notes(content, manifest))
        for note in notes:
            report.warn(note)
    return Pushed(
        kind=content.kind,
        name=content.name,
        target=place.text,
        url=done.url,
        files=len(manifest.files),
        nbytes=manifest.nbytes,
        copied=done.copied,
        licence=how.licence,
        left_out=content.left_out,
        notes=notes,
    )


def counting(report: Reporter, stage: str, total: int) -> Advance:
    """A function that adds up the bytes it is called with, and reports them as progress."""
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        # Files are read once to copy and once to check them.
        done = min(total, done + nbytes)
        report.advance(stage, done, total)

    return advance


def _place(target: str, content: Content, how: PushOptions) -> Place:
    """The place that a target names. Raises InvalidOption where it does not fit what is pushed, MissingExtra."""
    repository = repository_in(target)
    if repository is None:
        if how.private:
            raise InvalidOption(f"--private belongs to hf:ORG/NAME, got the folder {target}", hint="leave it out")
        return Folder(Path(target))
    if repository.revision is not None:
        raise InvalidOption(f"expected hf:ORG/NAME without a revision, got {target}", hint="each push is a new commit")
    if repository.is_dataset and content.kind == "run":
        raise InvalidOption(f"{content.name} is a run, and {target} a repository of data sets", hint="hf:ORG/NAME")
    from featcache.sharing.hub import HubRepository

    return HubRepository(repository, is_dataset=content.kind == "cache", private=how.private)


def _manifest(content: Content, how: PushOptions, report: Reporter) -> SharedManifest:
    advance = counting(report, "digesting", sum(path.stat().st_size for path in content.paths.values()))
    digests = {name: digest_file(path, advance) for name, path in content.paths.items()}
    return SharedManifest(
        kind=content.kind,
        name=content.name,
        fingerprints=content.fingerprints,
        weights=content.weights,
        licence=how.licence,
        files=tuple(SharedFile(name=name, nbytes=size, sha256=digest) for name, (size, digest) in digests.items()),
    )


def _notes(content: Content, manifest: SharedManifest) -> list[str]:
    notes = []
    if manifest.licence is None:
        notes.append("the card states no licence, so what others may do with it is unknown: --license states one")
    if content.left_out:
        notes.append(f"not shared, because only safetensors, HDF5 and JSON are: {', '.join(content.left_out)}")
    if content.places:
        notes.append(f"the shared records contain paths of this machine: {', '.join(content.places)}")
    return notes
