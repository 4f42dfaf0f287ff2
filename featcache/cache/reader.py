"""Open a finished cache and read its splits: it is checked when it is opened, and rows are read by offset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from featcache.cache.layout import SPLITS, ids_name, read_json
from featcache.cache.spec import Json, Selection, Spec
from featcache.cache.splits import CachedDataset, CachedSplit, FeatureArray
from featcache.cache.stored import StoredArrays, StoredFile, foreign_error, read_skipped
from featcache.cache.targets import Column, columns_of, label_in
from featcache.display import Shown, Summary
from featcache.errors import CacheForeign, UnknownKey

__all__ = ["CachedDataset", "CachedSplit", "FeatureArray", "FeatureCache"]


class FeatureCache(Shown, Mapping[str, CachedSplit]):
    """A finished cache, open for reading: a mapping from the names of its splits to the splits.

    `cache["train"]` is a split, `cache["train"].features` its rows. Two open caches are equal only if they are the
    same object. Use a cache as a context manager, or `close` it. It can be pickled (the file is opened again when it
    is unpickled) and used after a fork.
    """

    def __init__(self, file: StoredArrays) -> None:
        texts = file.contents.texts
        self.file = file
        self.spec = Spec.from_json(texts["spec"])
        self.selection = Selection.from_json(texts["selection"])
        self.set_name = texts["set_name"]
        self.targets: Mapping[str, Column] = {column.name: column for column in columns_of(texts)}
        self.provenance: Mapping[str, Json] = read_json(texts, "provenance", dict)
        self.skipped = read_skipped(texts)
        self._splits = {
            name: CachedSplit(file, self.spec, name) for name in SPLITS if ids_name(name) in file.contents.arrays
        }

    @classmethod
    def open(cls, path: str | Path) -> FeatureCache:
        """Open a cache.

        Args:
            path: A cache file, or a folder of segments.

        Returns:
            The open cache.

        Raises:
            CacheNotFound: There is no cache at `path`.
            CacheIncomplete: Its extraction has not been finished.
            CacheForeign: It is another kind of file, or one that must not be trusted.
            CacheDamaged: It is truncated or changed.
            CacheUnreadable: It cannot be opened now.
        """
        file = _open_stored(Path(path).absolute())
        try:
            return cls(file)
        except CacheForeign as error:
            file.close()
            raise foreign_error(file.path, error) from error

    @property
    def path(self) -> Path:
        """The path of the file or the folder."""
        return self.file.path

    @property
    def name(self) -> str:
        """The file's name without its ending, as `featcache ls` shows it."""
        return self.path.name.removesuffix(".h5")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; the `labels` of a split are indices into them.

        They are those of the target `label`. Empty where there is no such target.

        Raises:
            InvalidOption: The target `label` does not hold classes.
        """
        column = label_in(tuple(self.targets.values()))
        return () if column is None else column.names

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its splits, in the order train, val, test."""
        return tuple(self._splits)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of its layers; `features` reads the first one."""
        return self.spec.layer_names

    def __getitem__(self, split: str) -> CachedSplit:
        if split not in self._splits:
            raise UnknownKey("split", str(split), self.splits)
        return self._splits[split]

    def __contains__(self, split: object) -> bool:
        return split in self._splits

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)

    # Mapping's own `__eq__` would compare all splits, and remove `__hash__`.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return object.__hash__(self)

    def dataset(self, split: str, layer: str | None = None) -> CachedDataset:
        """A map-style dataset for PyTorch's DataLoader.

        Args:
            split: The name of a split.
            layer: The name of a layer; None for the first.

        Returns:
            A dataset of (features float32 (D,), label int).

        Raises:
            UnknownName: The cache has no such split or layer.
        """
        return CachedDataset(self[split].layer(layer))

    def close(self) -> None:
        """Close the file. A later read opens it again."""
        self.file.close()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {len(split):,}" for name, split in self._splits.items())
        layers = ", ".join(f"{layer.name} {list(layer.shape)}" for layer in self.spec.layers)
        return f"<FeatureCache {self.name}: {rows}; {layers} {self.spec.dtype}>"

    def summary(self) -> Summary:
        """What a notebook shows: splits, targets and layers."""
        from featcache.cache.presentation import summary_of

        return summary_of(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.file,))


def _open_stored(path: Path) -> StoredArrays:
    if path.is_dir() and path.suffix != ".h5":
        from featcache.cache.segments import SegmentedFile

        return SegmentedFile.open(path)
    return StoredFile.open(path)
