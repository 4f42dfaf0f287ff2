"""What was found to be fastest on this machine, kept beside the caches: the next extraction begins with it.

A convenience: whatever is wrong with the file, it counts as empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featcache.backbones.backbone import Backbone
from featcache.files import publish_bytes
from featcache.cache.spec import Spec
from featcache.errors import CacheUnwritable
from featcache.extraction import devices
from featcache.extraction.tuning import Tuned, Tuner

_FORMAT = "featcache-tuning-1"
# Images per forward pass, to begin with and in question.
_USUAL = {"cpu": 32, "mps": 64, "cuda": 256}
_SIZES = {"cpu": (16, 32, 64), "mps": (32, 64, 128), "cuda": (64, 128, 256, 512)}
_USUAL_BYTES = 512


def tuner_for(
    batch_size: int | None,
    workers: int | None,
    *,
    backbone: Backbone,
    spec: Spec,
    device: str,
    data_dir: Path,
    warn: Callable[[str], None],
) -> Tuner:
    """What was said stays (None: nothing was); else what was found here before; else it is found on the way."""
    said = batch_size is not None or workers is not None
    known = recall(data_dir, circumstances(backbone, spec, device), warn) if None in (batch_size, workers) else None
    if known is not None:
        batch_size, workers = batch_size or known.batch_size, workers or known.workers
    kind = device.partition(":")[0]
    usual = batch_size or usual_batch(backbone, device)
    # A compiled program is made for one size, and a larger one may round differently.
    tried = () if batch_size or backbone.stores_bytes or spec.runner != "eager" else _SIZES[kind]
    most = workers or max(2, devices.cores())
    # Beside a backbone that computes on the same cores, one thread may be enough.
    least = 1 if kind == "cpu" and not backbone.stores_bytes else most
    learns = known is None and not said
    return Tuner(sizes=tried, usual=usual, workers=workers or least, most_workers=most, learns=learns)


def usual_batch(backbone: Backbone, device: str) -> int:
    """Images per forward pass where nothing was said and nothing is tried."""
    return _USUAL_BYTES if backbone.stores_bytes else _USUAL[device.partition(":")[0]]


def memory_path(data_dir: Path) -> Path:
    """Where the file lies."""
    return data_dir / "tuning.json"


def circumstances(backbone: Backbone, spec: Spec, device: str) -> str:
    """All that speed depends on, as one line: the machine, what it computes, and with what."""
    told = devices.provenance(device)
    machine = [told["processor"], f"{devices.cores()} cores", f"{told['threads']} threads", told["device"]]
    computed = [spec.backbone, *spec.layer_names, spec.pool, str(backbone.transform.image_size)]
    return ", ".join([*machine, *computed, spec.precision, spec.runner, f"torch {told['versions']['torch']}"])


def recall(data_dir: Path, key: str, warn: Callable[[str], None]) -> Tuned | None:
    """What was found under these circumstances; None where nothing was. A damaged file is said, and counts as none."""
    return _load(memory_path(data_dir), warn).get(key)


def remember(data_dir: Path, key: str, found: Tuned, warn: Callable[[str], None]) -> None:
    """Keeps it for the next time; a folder that cannot be written to is said, and no harm."""
    path = memory_path(data_dir)
    known = _load(path, warn) | {key: found}
    # Two at once: the later one wins, and the other's machine measures again.
    content = {"format": _FORMAT, "found": {key: asdict(one) for key, one in sorted(known.items())}}
    try:
        publish_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
    except CacheUnwritable as error:
        warn(f"{error.message}; batch size and threads are found anew the next time")


def _load(path: Path, warn: Callable[[str], None]) -> dict[str, Tuned]:
    try:
        return _parsed(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        warn(f"{path} cannot be read; batch size and threads are found anew")
        return {}


def _parsed(content: Any) -> dict[str, Tuned]:
    if content["format"] != _FORMAT:
        raise ValueError(content["format"])
    found = {str(key): Tuned(**one) for key, one in content["found"].items()}
    if not all(type(value) is int and 0 < value <= 1 << 20 for one in found.values() for value in asdict(one).values()):
        raise ValueError("no number of images or threads")
    return found
