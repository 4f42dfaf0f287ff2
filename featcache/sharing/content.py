"""What can be pushed: a run or a cache of this machine, and the files that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath

from featcache.cache.catalog import CacheEntry, describe, find, is_cache, name_of
from featcache.cache.manifest import MANIFEST_NAME, Manifest
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import Spec
from featcache.cache.verification import Progress, verify
from featcache.errors import CacheDamaged, InvalidOption, SharingError
from featcache.runs.catalog import find_run, is_run
from featcache.runs.run import Run
from featcache.sharing.manifest import MANIFEST_FILE, SUFFIXES, Kind


@dataclass(frozen=True, kw_only=True)
class Content:
    """A run or a cache with the files that are shared.

    Attributes:
        of: The run, or the entry of the cache.
        paths: The shared files by name.
        left_out: The names of files that are not shared.
    """

    of: Run | CacheEntry
    paths: Mapping[str, Path]
    left_out: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """ "run" or "cache"."""
        return "run" if isinstance(self.of, Run) else "cache"

    @property
    def name(self) -> str:
        """The name of the run or the cache."""
        return self.of.folder.name if isinstance(self.of, Run) else self.of.name

    @property
    def specs(self) -> tuple[Spec, ...]:
        """How the features are computed: one spec for each cache, with the layers in use."""
        if isinstance(self.of, Run):
            return tuple(origin.layers_spec for origin in self.of.features.origins)
        return () if self.of.spec is None else (self.of.spec,)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The fingerprints of `specs`."""
        return tuple(spec.fingerprint for spec in self.specs)

    @property
    def weights(self) -> dict[str, str | None]:
        """SHA-256 over the tensors that each layer depends on, by BACKBONE/LAYER; None for pixels."""
        return {f"{spec.backbone}/{layer.name}": layer.weights for spec in self.specs for layer in spec.layers}

    @property
    def places(self) -> tuple[str, ...]:
        """The absolute paths of this machine that the shared records contain."""
        if isinstance(self.of, Run):
            origins = self.of.features.origins
            named = [text for one in origins for text in (one.cache, one.images, one.weights)]
        else:
            named = [self.of.selection.source if self.of.selection else None]
        paths = [(text or "").removeprefix("file:") for text in named]
        return tuple(dict.fromkeys(path for path in paths if _is_absolute(path)))


def find_content(what: Run | FeatureCache | str | Path, *, runs_dir: Path, features_dir: Path) -> Content:
    """The run or the cache that a name, a path or an object stands for.

    Raises:
        InvalidOption: A run and a cache have this name.
        SharingError: Neither a run nor a cache has it.
        CacheIncomplete, CacheDamaged, HeadError: It cannot be shared as it is.
    """
    if isinstance(what, Run):
        return content_of_run(what.folder)
    if isinstance(what, FeatureCache):
        return content_of_cache(what.path)
    run, cache = is_run(runs_dir, what), is_cache(features_dir, what)
    if run and cache:
        raise InvalidOption(f"both a run and a cache are called {what}", hint="give the path of the one that you mean")
    if run:
        return content_of_run(find_run(runs_dir, what))
    if cache:
        return content_of_cache(find(features_dir, what).path)
    raise SharingError(
        f"no run in {runs_dir} and no cache in {features_dir} is called {str(what)!r}",
        hint="`featcache ls` lists the caches; latest and best are runs",
    )


def content_of_run(folder: Path) -> Content:
    """The content of a run's folder. Raises HeadError where it is no run."""
    folder = folder.absolute()
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    shared = {path.name: path for path in files if path.suffix in SUFFIXES and path.name != MANIFEST_FILE}
    return Content(
        of=Run.load(folder), paths=shared, left_out=tuple(one.name for one in files if one.name not in shared)
    )


def content_of_cache(path: Path) -> Content:
    """The content of a packed cache or of one in segments. Raises CacheIncomplete, CacheDamaged, CacheForeign."""
    entry = describe(path)
    entry.require_complete()
    if not path.is_dir():
        return Content(of=entry, paths={path.name: path})
    names = (MANIFEST_NAME, *Manifest.read(path).sizes)
    return Content(of=entry, paths={name: path / name for name in names})


def require_sound(path: Path, progress: Progress) -> None:
    """Reads every row of a cache. Raises CacheDamaged where one does not match its checksum."""
    found = verify(path, full=True, progress=progress).findings
    if found:
        raise CacheDamaged(
            f"{name_of(path)} is damaged: {found[0].where}: {found[0].what}",
            hint="extract again: sound rows are kept, the others computed",
        )


def _is_absolute(text: str) -> bool:
    return PurePath(text).is_absolute() or PureWindowsPath(text).is_absolute()
