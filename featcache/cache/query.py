"""Find one cache in a folder by a query: its name, its path or how its name begins, and what it must hold."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.cache.catalog import COMPLETE, UNFINISHED, CacheEntry, find, find_all, is_path
from featcache.errors import CacheNotFound

_MOST_LISTED = 8
# Where `extract` puts caches without --data-dir.
_DEFAULT_FOLDER = Path("data") / "features"


@dataclass(frozen=True, kw_only=True)
class CacheQuery:
    """What a cache must have to be the one that is looked for.

    Args:
        name: Its path, its name, or how its name begins; None for any.
        backbone: The backbone's name; None for any.
        dataset: The data set as the user wrote it; None for any.
        origin: The same as an absolute path or full name, as caches record it; None where it is not known.
        layers: Names of layers that it must hold; BACKBONE/LAYER for one of that backbone.
        targets: Names of targets that choose among several caches.
        image_size: Pixels a side that choose among several caches; None for any.
        unfinished_first: Whether unfinished caches are preferred; else neither kind is, so that an older complete cache
            never stands in for an extraction that was interrupted.
    """

    name: str | None = None
    backbone: str | None = None
    dataset: str | None = None
    origin: str | None = None
    layers: Sequence[str] = ()
    targets: Sequence[str] = ()
    image_size: int | None = None
    unfinished_first: bool = False

    @property
    def filters(self) -> dict[str, str]:
        """What the cache must have besides its name, for messages."""
        found = {
            "backbone": self.backbone or "",
            "dataset": self.dataset or "",
            "layer": ", ".join(self.layers),
        }
        return {name: value for name, value in found.items() if value}

    def extract_command(self, features_dir: Path) -> str:
        """The `featcache extract` that makes such a cache in this folder of caches."""
        words = ["featcache", "extract"]
        words += [] if self.dataset is None else ["--dataset", self.dataset]
        words += [] if self.backbone is None else ["--backbone", self.backbone]
        for layer in self.layers:
            words += ["--layer", layer.rpartition("/")[2]]
        words += [] if self.image_size is None else ["--image-size", str(self.image_size)]
        words += [] if features_dir == _DEFAULT_FOLDER else ["--data-dir", str(features_dir.parent)]
        return shlex.join(words)


def find_cache(features_dir: Path, query: CacheQuery) -> CacheEntry:
    """The one cache that fits a query; it may be unfinished or damaged where it is named in full.

    Raises:
        CacheNotFound: No cache fits, with the command that makes it; or several do, with the fields in which they
            differ.
        CacheForeign: What the name stands for is no cache.
    """
    if query.name is not None and (not query.name or is_path(query.name)):
        return _require_fit(find(features_dir, query.name), features_dir, query)
    named = find_all(features_dir, query.name or "")
    if query.name is not None and len(named) == 1:
        return _require_fit(named[0], features_dir, query)
    named = [entry for entry in named if entry.state in (COMPLETE, UNFINISHED)]
    fitting = [entry for entry in named if _fits(entry, query)]
    if query.unfinished_first:
        fitting = [entry for entry in fitting if not entry.complete] or fitting
    if len(fitting) > 1 and query.image_size is not None:
        fitting = [entry for entry in fitting if _image_size(entry) == query.image_size] or fitting
    if len(fitting) > 1 and query.targets:
        # A target can be added to any cache.
        fitting = [entry for entry in fitting if set(query.targets) <= _targets_of(entry)] or fitting
    if len(fitting) != 1:
        raise _several(fitting) if fitting else _none(features_dir, query, named)
    return fitting[0]


def _require_fit(entry: CacheEntry, features_dir: Path, query: CacheQuery) -> CacheEntry:
    """The cache that is named, whatever its state. Raises CacheNotFound where it contradicts a filter."""
    if entry.spec is None or _fits(entry, query):
        return entry
    fields = _fields_of(entry)
    found = {name: fields.get(name, "-") for name in query.filters}
    raise CacheNotFound(
        f"{entry.name} does not have {_in_words(query.filters)}: it has {_in_words(found)}",
        hint=f"leave the options out, or make the cache with `{query.extract_command(features_dir)}`",
    )


def _fits(entry: CacheEntry, query: CacheQuery) -> bool:
    spec = entry.spec
    if spec is None or entry.selection is None:
        return False
    layers = {*spec.layer_names, *(f"{spec.backbone}/{name}" for name in spec.layer_names)}
    return (
        query.backbone in (None, spec.backbone)
        and (query.dataset is None or _is_of(entry, query.dataset, query.origin))
        and set(query.layers) <= layers
    )


def _is_of(entry: CacheEntry, dataset: str, origin: str | None) -> bool:
    """Whether a cache's images are of a data set; options of the set, as for its splits, do not matter.

    Where the text stands for a path, the path decides: two folders of one name are two data sets.
    """
    source = "" if entry.selection is None else entry.selection.source
    if origin not in (None, dataset):
        return origin in (source, source.partition("?")[0])
    return dataset in (entry.set_name, source, source.partition("?")[0])


def _image_size(entry: CacheEntry) -> object:
    return None if entry.spec is None else entry.spec.transform.get("image_size")


def _targets_of(entry: CacheEntry) -> set[str]:
    """The names of a cache's targets; none for a cache that is not complete."""
    from featcache.cache.reader import FeatureCache

    if not entry.complete:
        return set()
    with FeatureCache.open(entry.path) as cache:
        return set(cache.targets)


def _fields_of(entry: CacheEntry) -> dict[str, str]:
    """The fields in which caches may differ, in the order in which people choose."""
    spec, selection = entry.spec, entry.selection
    if spec is None or selection is None:
        return {}
    fields: Mapping[str, object] = {
        "state": entry.state,
        "backbone": spec.backbone,
        "layer": "+".join(spec.layer_names),
        "pool": "+".join(dict.fromkeys(layer.pool for layer in spec.layers)),
        "dataset": entry.set_name,
        "from": selection.source,
        "split": "+".join(selection.splits or ("all",)),
        "limit": selection.limit or "none",
        "select seed": selection.select_seed,
        "image size": _image_size(entry),
        "resize": spec.transform.get("resize"),
        "normalisation": _numbers_of(spec.transform),
        "precision": spec.precision,
        "runner": spec.runner,
        "dtype": spec.dtype,
        "views": spec.views,
        "view seed": spec.view_seed,
        "weights": "+".join((layer.weights or "none")[:8] for layer in spec.layers),
        "fingerprint": spec.fingerprint[:8],
    }
    return {name: str(value) for name, value in fields.items() if value is not None}


def _numbers_of(transform: Mapping[str, object]) -> str | None:
    mean, std = transform.get("mean"), transform.get("std")
    return None if mean is None else f"mean {mean}, std {std}"


def _several(entries: Sequence[CacheEntry]) -> CacheNotFound:
    fields = [_fields_of(entry) for entry in entries]
    names = list(dict.fromkeys(name for each in fields for name in each))
    differing = [name for name in names if len({each.get(name) for each in fields}) > 1]
    # What follows from other fields is left out where these tell the caches apart.
    derived = ("from", "normalisation", "weights", "fingerprint")
    chosen = [name for name in differing if name not in derived] or differing
    lines = [
        f"{entry.name}: {_in_words({name: each.get(name, '-') for name in chosen})}"
        for entry, each in zip(entries[:_MOST_LISTED], fields, strict=False)
    ]
    more = [f"and {len(entries) - _MOST_LISTED} more"] if len(entries) > _MOST_LISTED else []
    return CacheNotFound(f"{len(entries)} caches fit", hint="\n".join(["name one of them:", *lines, *more]))


def _none(features_dir: Path, query: CacheQuery, named: Sequence[CacheEntry]) -> CacheNotFound:
    wanted = _in_words(query.filters)
    make = f"make it with `{query.extract_command(features_dir)}`"
    if named and wanted:
        names = ", ".join(entry.name for entry in named[:_MOST_LISTED])
        return CacheNotFound(f"no cache in {features_dir} has {wanted}; there are {names}", hint=make)
    if query.name is not None:
        # Offers the nearest names.
        find(features_dir, query.name)
    return CacheNotFound(f"there is no cache in {features_dir}" + (f" with {wanted}" if wanted else ""), hint=make)


def _in_words(fields: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())
