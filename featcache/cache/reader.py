"""Reading a finished cache: opened in milliseconds, checked before it is trusted, rows by offset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from featcache.cache.layout import SPLITS, ids_name, read_json
from featcache.cache.spec import Json, Selection, Spec
from featcache.cache.splits import CachedDataset, CachedSplit, FeatureArray
from featcache.cache.stored import StoredArrays, StoredFile, skipped_of, untrusted
from featcache.cache.targets import Column, columns_of, label_in
from featcache.errors import CacheForeign, UnknownName

__all__ = ["CachedDataset", "CachedSplit", "FeatureArray", "FeatureCache"]


class FeatureCache:
    """A finished cache, open for reading.

    `cache["train"]` is a split, `cache["train"].features` its rows. Use it as a context manager, or `close` it; it
    pickles (the file is opened again where it is unpickled) and survives a fork.
    """

    def __init__(self, file: StoredArrays) -> None:
        texts = file.contents.texts
        self.file = file
        self.spec = Spec.from_json(texts["spec"])
        self.selection = Selection.from_json(texts["selection"])
        self.set_name = texts["set_name"]
        self.targets: Mapping[str, Column] = {column.name: column for column in columns_of(texts)}
        self.provenance: Mapping[str, Json] = read_json(texts, "provenance", dict)
        self.skipped = skipped_of(texts)
        self._splits = {
            name: CachedSplit(file, self.spec, name) for name in SPLITS if ids_name(name) in file.contents.arrays
        }

    @classmethod
    def open(cls, path: str | Path) -> FeatureCache:
        """Open a cache: a file, or a folder of segments.

        Raises:
            CacheNotFound: There is none.
            CacheIncomplete: Its extraction has not been finished.
            CacheForeign: It is another kind of file, or one that must not be trusted.
            CacheDamaged: It is cut short or changed.
        """
        file = _stored(Path(path).absolute())
        try:
            return cls(file)
        except CacheForeign as error:
            file.close()
            raise untrusted(file.path, error) from error

    @property
    def path(self) -> Path:
        """Where the file or the folder is."""
        return self.file.path

    @property
    def name(self) -> str:
        """The file's name without its ending: what `ls` shows and commands take."""
        return self.path.name.removesuffix(".h5")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that `labels` are indices into: those of the target `label`.

        Raises InvalidOption where that holds something else than classes.
        """
        column = label_in(tuple(self.targets.values()))
        return () if column is None else column.names

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits it holds, in the order train, val, test."""
        return tuple(self._splits)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers it holds; the first is the one that `features` means."""
        return self.spec.layer_names

    def __getitem__(self, split: str) -> CachedSplit:
        if split not in self._splits:
            raise UnknownName("split", split, self.splits)
        return self._splits[split]

    def __contains__(self, split: object) -> bool:
        return split in self._splits

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)

    def dataset(self, split: str, layer: str | None = None) -> CachedDataset:
        """A map-style dataset of (features float32 (D,), label) for PyTorch's DataLoader."""
        return CachedDataset(self[split].layer(layer))

    def close(self) -> None:
        """Give the file back. Reading again opens it again."""
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

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        from featcache.cache.presentation import as_html

        return as_html(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.file,))


def _stored(path: Path) -> StoredArrays:
    if path.is_dir() and path.suffix != ".h5":
        from featcache.cache.segments import SegmentedFile

        return SegmentedFile.open(path)
    return StoredFile.open(path)
