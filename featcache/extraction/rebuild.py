"""Open the backbone that a spec describes, and check that it computes the same features."""

from __future__ import annotations

from pathlib import Path

from featcache.backbones.checks import same_function
from featcache.backbones.describe import open_network
from featcache.backbones.network import Network
from featcache.backbones.options import BackboneOptions
from featcache.backbones.spec import ProbeOutputs
from featcache.backbones.transforms import Transform
from featcache.cache.spec import Spec
from featcache.errors import InvalidOption, WeightsError

_WEIGHTS_HINT = "name their new place with --weights PATH (predict, export and verify)"


def rebuild(
    spec: Spec,
    source: str | None,
    *,
    what: str,
    probe: ProbeOutputs | None,
    weights: str | Path | None = None,
    data_dir: Path,
) -> Network:
    """Open the backbone that `spec` describes, with the same weights, on the CPU.

    Args:
        spec: The spec of the features.
        source: The recorded source of the weights.
        what: The name of the cache or run, for messages.
        probe: The recorded outputs of the network on the probe images.
        weights: Where the weights are now, if not at `source`.
        data_dir: The folder with downloaded weights.

    Raises:
        WeightsError: The weights are missing or differ, or the network computes something else with them.
        DownloadError: The weights cannot be downloaded.
        InvalidOption: `weights` is given, and the features are pixels.
    """
    pixels = spec.backbone == "pixels"
    if pixels and weights is not None:
        raise InvalidOption(f"{what} was made of pixels, which have no weights: got {weights}", hint="leave it out")
    options = BackboneOptions(
        backbone=spec.backbone,
        layers=() if pixels else spec.layer_names,
        weights=str(weights) if weights is not None else weights_option(spec, source, what),
    )
    pools = {layer.name: layer.pool for layer in spec.layers}
    network = open_network(options, data_dir=data_dir, transform=_transform(spec), pools=pools)
    require_same(network, spec, what, probe)
    return network


def weights_option(spec: Spec, source: str | None, what: str) -> str:
    """The value of `--weights` for a recorded source of weights.

    `file:/w.safetensors` -> `/w.safetensors`, `torchvision:VGG16_Weights.X` -> `VGG16_Weights.X`, ...

    Args:
        spec: The spec of the features.
        source: The recorded source.
        what: The name of the cache or run, for messages.

    Raises:
        WeightsError: There is no record, or no longer a file.
    """
    if spec.backbone == "pixels":
        return "default"
    if source is None:
        raise WeightsError(f"{what} has no record of where its weights came from", hint=_WEIGHTS_HINT)
    kind, _, rest = source.partition(":")
    if kind == "module":
        raise WeightsError(
            f"{what} was made with a module of your own ({spec.backbone}), which cannot be named here",
            hint="give the backbone from Python",
        )
    if kind == "hf" or (spec.backbone.startswith("hf:") and Path(rest).is_dir()):
        # The backbone's name is enough to find them; their digests are compared afterwards.
        return "default"
    if kind == "file" and not Path(rest).is_file():
        raise WeightsError(f"the weights that {what} was made with are no longer at {rest}", hint=_WEIGHTS_HINT)
    # open_clip:ViT-B-32/openai
    known = {"file": rest, "torchvision": rest, "pypi": "pypi", "timm": "default", "open_clip": rest.rpartition("/")[2]}
    return known.get(kind, source)


def require_same(network: Network, spec: Spec, what: str, probe: ProbeOutputs | None) -> None:
    """Raise WeightsError unless a network computes the features that `spec` describes.

    Args:
        network: The network to check.
        spec: The spec of the features.
        what: The name of the cache or run, for messages.
        probe: The recorded outputs of the network on the probe images; None where there are none.
    """
    found = {layer.name: layer for layer in network.spec.layers}
    source = network.spec.source or network.name
    for layer in spec.layers:
        mine = found.get(layer.name)
        if mine is None or mine.weights != layer.weights:
            raise WeightsError(
                f"the weights of {source} are not those {what} was made with: layer {layer.name} expected sha256 "
                f"{_short(layer.weights)}, got {_short(mine.weights if mine else None)}",
                hint=f"put the old weights back, or {_WEIGHTS_HINT}; to use new ones, extract and train again",
            )
        if mine.pooling.name != layer.pool:
            raise WeightsError(f"layer {layer.name} of {what} is pooled by {layer.pool}, got {mine.pooling.name}")
    if (network.name, network.spec.transform) != (spec.backbone, _transform(spec)):
        raise WeightsError(
            f"the backbone {network.name} is not that of {what}: {_difference(network, spec)}",
            hint="make it with the same transform, or extract and train again",
        )
    if probe is not None and network.spec.probe is not None:
        same, sentence = same_function(network.spec.probe, probe, spec.layer_names)
        if not same:
            raise WeightsError(
                f"{network.name} does not compute what it computed for {what}: {sentence}",
                hint="bring back the code or the versions it was made with, or extract and train again",
            )


def _difference(network: Network, spec: Spec) -> str:
    """The name, or else the numbers of the transform, in which a network differs from a spec."""
    if network.name != spec.backbone:
        return f"expected {spec.backbone}"
    wanted, found = _transform(spec).to_json(), network.spec.transform.to_json()
    names = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    return "; ".join(f"{name}: expected {wanted.get(name)}, got {found.get(name)}" for name in names)


def _transform(spec: Spec) -> Transform:
    """The transform of plain images, without the augmentation of views."""
    return Transform.from_json(spec.without_views().transform)


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:12]}.."
