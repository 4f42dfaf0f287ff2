"""A backbone described once: the description is kept, and torch is not needed to read it.

Descriptions lie as JSON under the data folder. One is used while the options, the versions of torch, torchvision, timm
and transformers, and the stamps of the weights' files are those it was made with; else the network is loaded, checked
and described again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones import weights as weights_of
from featcache.backbones.devices import versions
from featcache.backbones.options import BackboneOptions
from featcache.backbones.spec import BackboneSpec
from featcache.backbones.zoos.names import full_name
from featcache.backbones.zoos.pixels import NAME as PIXELS
from featcache.backbones.zoos.pixels import pixels_network, pixels_spec
from featcache.errors import CacheUnwritable, FeatcacheError
from featcache.files import publish_bytes

if TYPE_CHECKING:
    from featcache.backbones.network import Network
    from featcache.backbones.transforms import Transform

#: Rises when descriptions of before mean something else.
_FORMAT = 1
_STAMP = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The options of a backbone with every name in full, as descriptions and caches are found by.

    `weights`: as an absolute path where it is a file.
    """

    backbone: str
    layers: tuple[str, ...]
    pool: str | None
    image_size: int | None
    resize: str
    normalize: str | None
    weights: str

    @classmethod
    def of(cls, options: BackboneOptions) -> Choice:
        """The choice that options mean; nothing is opened."""
        text = str(options.weights)
        path = weights_of.is_path(text) and text != "pypi" and not weights_of.is_random(text)
        return cls(
            backbone=full_name(options.name),
            layers=tuple(options.layers),
            pool=options.pool,
            image_size=options.image_size,
            resize=options.resize,
            normalize=options.normalize,
            weights=str(Path(text).expanduser().resolve()) if path else text,
        )

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "layers": list(self.layers)}


def describe(options: BackboneOptions, *, data_dir: Path) -> BackboneSpec:
    """What the options mean, without a weight in memory.

    Args:
        options: Which network, layers, pooling, image size, normalisation and weights.
        data_dir: Holds the descriptions that were made before, and downloaded weights.

    Returns:
        The stored description where nothing it rests on has changed; else one made now, for which the network is
        loaded once.

    Raises:
        What `open_network` raises.
    """
    options = _in_full(options)
    if options.name == PIXELS:
        return pixels_spec(options)
    return stored(options, data_dir=data_dir) or open_network(options, data_dir=data_dir).spec


def stored(options: BackboneOptions, *, data_dir: Path, without_files: bool = False) -> BackboneSpec | None:
    """The description that was made before; None where there is none, or what it rests on has changed.

    Args:
        without_files: Take it also where the weights' files are gone: to find a cache, not to compute.
    """
    options = _in_full(options)
    try:
        content = json.loads(_path(options, data_dir).read_bytes())
        if content["versions"] != versions() or content["format"] != _FORMAT:
            return None
        if any(_stamp(Path(path)) != stamp for path, stamp in content["files"].items() if _counts(path, without_files)):
            return None
        return BackboneSpec.from_json(json.dumps(content["spec"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FeatcacheError):
        # It is made again from what it describes.
        return None


def _counts(path: str, without_files: bool) -> bool:
    return not without_files or Path(path).exists()


def open_network(
    options: BackboneOptions,
    *,
    data_dir: Path,
    transform: Transform | None = None,
    pools: Mapping[str, str] | None = None,
) -> Network:
    """The backbone that options mean, with its weights in memory, on the CPU; its description is kept.

    Args:
        options: Which network, layers, pooling, image size, normalisation and weights.
        data_dir: Holds descriptions and downloaded weights.
        transform: Resolved numbers, in place of the options' image size, resize and normalisation; then nothing is
            kept.
        pools: The pooling of each layer, in place of the options' one.

    Raises:
        UnknownName, InvalidOption, MissingExtra: The options name nothing that can be had.
        WeightsError, DownloadError: The weights are absent, incomplete or of the wrong shape.
        ExtractionError: The network is no function of one image.
    """
    options = _in_full(options)
    if options.name == PIXELS:
        return pixels_network(pixels_spec(options, transform))
    from featcache.backbones.loading import load

    kept = transform is None and pools is None
    before = None if not kept else stored(options, data_dir=data_dir)
    network = load(options, weights_dir=data_dir / "weights", transform=transform, known=before, pools=pools)
    network.options = options
    if kept and network.spec != before:
        _keep(options, network.spec, network.files, data_dir)
    return network


def _in_full(options: BackboneOptions) -> BackboneOptions:
    return replace(options, backbone=full_name(options.name))


def _keep(options: BackboneOptions, spec: BackboneSpec, files: Sequence[Path], data_dir: Path) -> None:
    content: Mapping[str, Any] = {
        "format": _FORMAT,
        "choice": Choice.of(options).to_json(),
        "versions": versions(),
        "files": {str(path): _stamp(path) for path in files},
        "spec": json.loads(spec.to_json()),
    }
    path = _path(options, data_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
    except (CacheUnwritable, OSError):
        # In a folder that cannot be written the next call loads the network again, as this one did.
        return


def _path(options: BackboneOptions, data_dir: Path) -> Path:
    """Where the description of these options lies."""
    text = json.dumps(Choice.of(options).to_json(), sort_keys=True)
    return data_dir / "backbones" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _stamp(path: Path) -> list[int] | None:
    """What tells that a file is unchanged: size, times of change of its bytes and of its entry, and its number."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [getattr(found, name) for name in _STAMP]
