"""Images in: from a name, a folder, an archive or arrays to encoded images, their labels, digests and pixels.

    source = open_images("cifar10", datasets_dir=Path("data/datasets"))
    for sample in select(source.samples("train"), limit=1000):
        payload = source.read(sample)              # an encoded file, or uint8 pixels
        row = digest(payload), decode(payload, sample.id)   # over the very same bytes

`location` parses the images argument; `source` says what a source promises, `sources` has one file for each kind;
`layout` says how paths become splits and classes, `roles` what the columns of a table are for; `decoding` turns a
payload to RGB; `selection` is `--limit`.
Importing this package costs next to nothing, and nothing in it imports torch before a torchvision set is opened.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.images.decoding import decode
    from featcache.images.location import Location, locate, open_images
    from featcache.images.options import SPLITS
    from featcache.images.pixels import DECODER
    from featcache.images.samples import UNLABELLED, Sample
    from featcache.images.selection import select
    from featcache.images.source import ImageSource, Payload, digest
    from featcache.images.sources.arrays import ArraySource
    from featcache.images.sources.torch_dataset import TorchDatasetSource
    from featcache.images.sources.torchvision_sets import NamedSet, dataset_names, describe

__all__ = [
    "DECODER",
    "SPLITS",
    "UNLABELLED",
    "ArraySource",
    "ImageSource",
    "Location",
    "NamedSet",
    "Payload",
    "Sample",
    "TorchDatasetSource",
    "dataset_names",
    "decode",
    "describe",
    "digest",
    "locate",
    "open_images",
    "select",
]

_HOMES = {
    "sources.arrays": ("ArraySource",),
    "decoding": ("decode",),
    "pixels": ("DECODER",),
    "sources.torchvision_sets": ("NamedSet", "dataset_names", "describe"),
    "location": ("Location", "locate", "open_images"),
    "selection": ("select",),
    "options": ("SPLITS",),
    "samples": ("UNLABELLED", "Sample"),
    "source": ("ImageSource", "Payload", "digest"),
    "sources.torch_dataset": ("TorchDatasetSource",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
