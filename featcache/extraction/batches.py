"""How many images go through the backbone at once, and how many threads decode: a table by device.

A size that does not fit into the device's memory is halved where it is used (`extraction.pipeline`).
"""

from __future__ import annotations

from featcache.backbones.backbone import Backbone
from featcache.extraction import devices

_IMAGES = {"cpu": 32, "mps": 64, "cuda": 256}
_IMAGES_OF_BYTES = 512
# A backbone on the CPU needs the cores itself; a single thread would make it wait for every slow image.
_THREADS_BESIDE_A_NETWORK = (2, 4)


def batch_size_for(backbone: Backbone, device: str) -> int:
    """Images per forward pass where `--batch-size` is left out."""
    return _IMAGES_OF_BYTES if backbone.stores_bytes else _IMAGES[_kind(device)]


def decoding_threads_for(backbone: Backbone, device: str) -> int:
    """Threads that decode where `--workers` is left out."""
    return devices.cores() if backbone.stores_bytes else decoding_threads_beside_a_network(device)


def decoding_threads_beside_a_network(device: str) -> int:
    """The same for any backbone that computes."""
    if _kind(device) != "cpu":
        return devices.cores()
    least, most = _THREADS_BESIDE_A_NETWORK
    return max(least, min(devices.cores(), most))


def _kind(device: str) -> str:
    """`cuda:1` -> `cuda`."""
    return device.partition(":")[0]
