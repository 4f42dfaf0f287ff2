"""Image sources: find, list, read and decode the images of a data set, folder, archive, table or array.

    source = open_images("cifar10", datasets_dir=Path("data/datasets"))
    for sample in select(source.samples("train"), limit=1000):
        payload = source.read(sample)              # an encoded file, or uint8 pixels
        row = digest(payload), decode(payload, sample.id)   # both from the same bytes

`location` parses the images argument; `source` has the base class of all sources, `sources` one file for each kind;
`layout` derives splits and classes from paths, `roles` assigns the columns of a table; `decoding` decodes to RGB;
`selection` implements `--limit`.
Importing this package is fast, and nothing in it imports torch before a torchvision set is opened.
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

_NAMES_IN = {
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
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
