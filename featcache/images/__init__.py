"""Images in: from a name, a folder, an archive or arrays to encoded images, their labels, digests and pixels.

    source = open_source("cifar10", datasets_dir=Path("data/datasets"))
    for sample in select(source.samples("train"), limit=1000):
        payload = source.read(sample)              # an encoded file, or uint8 pixels
        row = digest(payload), decode(payload, sample.id)   # over the very same bytes

`sources` says what a source promises; `layout` how paths become splits and classes; `folder`, `archive`, `arrays`,
`torch_dataset` and `named` are the sources; `decoding` turns a payload to RGB; `selection` is `--limit`.
Importing this package costs next to nothing, and nothing in it imports torch before a torchvision set is opened.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.images.decoding import DECODER, decode
    from featcache.images.opening import open_source
    from featcache.images.selection import select
    from featcache.images.source import SPLITS, UNLABELLED, ImageSource, Payload, Sample, digest
    from featcache.images.sources.arrays import ArraySource
    from featcache.images.sources.named import dataset_names, describe
    from featcache.images.sources.torch_dataset import TorchDatasetSource
    from featcache.images.sources.torchvision_sets import NamedSet

__all__ = [
    "DECODER",
    "SPLITS",
    "UNLABELLED",
    "ArraySource",
    "ImageSource",
    "NamedSet",
    "Payload",
    "Sample",
    "TorchDatasetSource",
    "dataset_names",
    "decode",
    "describe",
    "digest",
    "open_source",
    "select",
]

_HOMES = {
    "sources.arrays": ("ArraySource",),
    "decoding": ("DECODER", "decode"),
    "sources.named": ("dataset_names", "describe"),
    "opening": ("open_source",),
    "selection": ("select",),
    "source": ("SPLITS", "UNLABELLED", "ImageSource", "Payload", "Sample", "digest"),
    "sources.torch_dataset": ("TorchDatasetSource",),
    "sources.torchvision_sets": ("NamedSet",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
