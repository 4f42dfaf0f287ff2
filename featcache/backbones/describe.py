"""Descriptions of backbones: stored as JSON files, so that a backbone can be identified without torch.

Descriptions are files in the data folder. A description is valid as long as the options, the versions of torch
and the libraries of networks, and the stamps of the weights files have not changed; otherwise the network is loaded,
checked and described again.
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

#: Increased when the meaning of older descriptions changes.
_FORMAT = 1
_STAMP = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The options of a backbone with full names: the key by which descriptions and caches are found.

    `weights`: a file as its absolute path.
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
        """The choice for some options; no file is opened."""
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
    """The description of the backbone that the options select, if possible without loading weights.

    Args:
        options: The network, layers, pooling, image size, normalisation and weights.
        data_dir: The folder of descriptions and downloaded weights.

    Returns:
        The stored description if it is still valid; otherwise a new one, for which the network is loaded once.

    Raises:
        What `open_network` raises.
    """
    options = _in_full(options)
    if options.name == PIXELS:
        return pixels_spec(options)
    return read_description(options, data_dir=data_dir) or open_network(options, data_dir=data_dir).spec


def read_description(options: BackboneOptions, *, data_dir: Path) -> BackboneSpec | None:
    """Read a stored description; None if there is none or it is no longer valid.

    Args:
        options: The network, layers, pooling, image size, normalisation and weights.
        data_dir: The folder of descriptions.
    """
    options = _in_full(options)
    try:
        content = json.loads(_path(options, data_dir).read_bytes())
        if content["versions"] != versions() or content["format"] != _FORMAT:
            return None
        if any(_stamp(Path(path)) != stamp for path, stamp in content["files"].items()):
            return None
        return BackboneSpec.from_json(json.dumps(content["spec"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FeatcacheError):
        # An unreadable description is made again.
        return None


def open_network(
    options: BackboneOptions,
    *,
    data_dir: Path,
    transform: Transform | None = None,
    pools: Mapping[str, str] | None = None,
) -> Network:
    """Load the backbone that the options select, on the CPU, and store its description.

    Args:
        options: The network, layers, pooling, image size, normalisation and weights.
        data_dir: The folder of descriptions and downloaded weights.
        transform: A complete transform, in place of the options' image size, resize and normalisation; then no
            description is stored.
        pools: The pooling of each layer, in place of the options' one.

    Raises:
        UnknownName, InvalidOption, MissingExtra: The options do not select an available network.
        WeightsError, DownloadError: The weights are missing, incomplete or of the wrong shape.
        ExtractionError: The features of an image depend on other images in the batch or on chance.
    """
    options = _in_full(options)
    if options.name == PIXELS:
        return pixels_network(pixels_spec(options, transform))
    from featcache.backbones.loading import load

    keep = transform is None and pools is None
    before = None if not keep else read_description(options, data_dir=data_dir)
    network = load(options, weights_dir=data_dir / "weights", transform=transform, known=before, pools=pools)
    network.options = options
    if keep and network.spec != before:
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
        # If the folder is not writable, the next call simply loads the network again.
        return


def _path(options: BackboneOptions, data_dir: Path) -> Path:
    """The path of the description of these options."""
    text = json.dumps(Choice.of(options).to_json(), sort_keys=True)
    return data_dir / "backbones" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _stamp(path: Path) -> list[int] | None:
    """Values that change whenever a file changes: size, mtime, ctime and inode; None for a missing file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [getattr(status, name) for name in _STAMP]
