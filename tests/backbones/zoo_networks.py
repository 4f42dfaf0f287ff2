"""Tests whether a network of a zoo can be extracted; `python benchmarks/measure.py zoo` tests all of them.

With random weights, two images, and the first of `SIZES` that the network accepts, `pre_logits` must have the width
given in torchvision's facts table or by timm's `head_hidden_size` (else `num_features`), must be finite, differ between
the two images, and differ from the logits. A network with more than `MOST_PARAMETERS` is only cut on the meta device;
its features are not computed.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.backbones import checks
from featcache.backbones.cutting import build_on_meta, cut
from featcache.backbones.loading import load
from featcache.backbones.network import Network
from featcache.backbones.options import BackboneOptions
from featcache.backbones.zoos import LOGITS, PRE_LOGITS, zoo_of
from featcache.backbones.zoos.torchvision_facts import TORCHVISION
from featcache.errors import FeatcacheError, InvalidOption

#: float32 (N, D).
Rows = npt.NDArray[np.float32]
#: Pixels a side, in the order in which they are tried, before the network's own size.
SIZES = (64, 56, 96, 112, 128, 160, 192, 224, 256)
#: Larger networks are not computed: their weights alone take gigabytes.
MOST_PARAMETERS = 400_000_000


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome for one network.

    Args:
        name: The backbone's name.
        file: timm's model file; "torchvision" for torchvision's networks.
        image_size: Pixels a side: the accepted size, or the last size that was tried.
        feature_dim: Width D of `pre_logits`; 0 if the network was refused.
        parameters: Number of parameters of the whole network; 0 if it could not be built.
        computed: Whether features were computed; False if it was only cut on the meta device.
        seconds: Time for all sizes that were tried.
        refusal: Why it cannot be extracted, in one line; None if it can.
    """

    name: str
    file: str
    image_size: int
    feature_dim: int = 0
    parameters: int = 0
    computed: bool = False
    seconds: float = 0.0
    refusal: str | None = None

    def line(self) -> str:
        """The outcome as one line of text."""
        if self.refusal is not None:
            return f"{self.name:<46} REFUSED at {self.image_size}: {self.refusal}"
        how = "" if self.computed else "  (cut on the meta device, nothing computed: too large)"
        return (
            f"{self.name:<46} {self.image_size:>4} px {self.feature_dim:>6} wide "
            f"{self.parameters / 1e6:>7.1f} M parameters {self.seconds:>6.1f} s{how}"
        )


class WrongFeatures(Exception):
    """A network can be extracted, but its features are wrong."""


def try_network(name: str, file: str = "torchvision", sizes: Sequence[int] = SIZES) -> Outcome:
    """Extract two images with a network at the first size that it accepts.

    Args:
        name: The backbone's name.
        file: The model file, for the outcome.
        sizes: Pixels a side, in the order in which they are tried; the network's own size is the last.

    Returns:
        The outcome.
    """
    began, size, refusal = time.perf_counter(), 0, "no size was tried"
    for size in _sizes(name, sizes):
        try:
            found = check_features(name, file, size)
            return Outcome(**{**asdict(found), "seconds": round(time.perf_counter() - began, 1)})
        except InvalidOption as error:
            refusal = error.message
        except (FeatcacheError, WrongFeatures) as error:
            refusal = str(error)
            break
        except Exception as error:
            # Any error that is not featcache's own is a fault of featcache.
            refusal = f"a fault of featcache: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            break
        finally:
            gc.collect()
    seconds = round(time.perf_counter() - began, 1)
    return Outcome(name=name, file=file, image_size=size, seconds=seconds, refusal=refusal)


def _sizes(name: str, sizes: Sequence[int]) -> Iterator[int]:
    yield from sizes
    try:
        own = zoo_of(name).transform(name).image_size
    except InvalidOption:
        return
    if own not in sizes:
        yield own


def check_features(name: str, file: str, size: int) -> Outcome:
    """Compute `pre_logits` of two images, and check it.

    Raises:
        FeatcacheError: The network cannot be extracted at this size.
        WrongFeatures: The features are not the input of its classifier.
    """
    build = partial(zoo_of(name).build, name)
    root: Any = build_on_meta(build, size).root
    parameters = sum(parameter.numel() for parameter in root.parameters())
    computed = parameters <= MOST_PARAMETERS
    network = _load(name, size, ()) if computed else None
    (layer,) = network.spec.layers if network else cut(name, build, size, (), None).layers
    _require(layer.name == PRE_LOGITS, f"the default layer is {layer.name}")
    expected = _width_of(name, root.network)
    _require(layer.feature_dim == expected, f"pre_logits is {layer.feature_dim} wide, expected {expected}")
    if network is not None:
        features = features_of_two_images(network)
        _require_sound(features, layer.feature_dim)
        # The logits of a network without a classifier are its features.
        classes = 1000 if name in TORCHVISION else int(root.network.num_classes)
        if classes == layer.feature_dim:
            require_no_logits(features, features_of_two_images(_load(name, size, (LOGITS,))))
    return Outcome(
        name=name, file=file, image_size=size, feature_dim=expected, parameters=parameters, computed=computed
    )


def _width_of(name: str, network: Any) -> int:
    if name in TORCHVISION:
        return TORCHVISION[name].costs.feature_dim
    return int(getattr(network, "head_hidden_size", None) or network.num_features)


def _load(name: str, size: int, layers: tuple[str, ...]) -> Network:
    options = BackboneOptions(backbone=name, layers=layers, image_size=size, weights="random:0")
    return load(options, weights_dir=Path(tempfile.gettempdir()))


def features_of_two_images(network: Network) -> Rows:
    (rows,) = network.on().features(checks.probe_images(network.spec.transform.image_size)).values()
    return rows.numpy()


def _require_sound(features: Rows, width: int) -> None:
    _require(features.shape == (2, width), f"the features of two images have the shape {features.shape}")
    _require(bool(np.isfinite(features).all()), "features are not finite")
    difference = checks.relative_difference(features[:1], features[1:])
    _require(difference > checks.TWICE_TOLERANCE, "two different images have the same features")


def require_no_logits(features: Rows, logits: Rows) -> None:
    _require(checks.relative_difference(features, logits) > checks.ALONE_TOLERANCE, "pre_logits is the logits")


def _require(right: bool, otherwise: str) -> None:
    if not right:
        raise WrongFeatures(otherwise)


def smallest_of_each_file(stored: Path) -> dict[str, str]:
    """timm's model files, each with its network with the fewest parameters; files without networks are left out.

    Counting takes minutes, so the choice of a stored result is used if it was made with the same version of timm.
    """
    import timm

    result = json.loads(stored.read_text()) if stored.is_file() else {"machine": {"versions": {}}}
    if result["machine"]["versions"].get("timm") == timm.__version__:
        return dict(result["smallest"])
    counted: dict[str, str] = {}
    for file in timm.list_modules():
        counts = {name: parameters_of(f"timm:{name}") for name in timm.list_models(module=file)}
        sizes = [(count, name) for name, count in counts.items() if count is not None]
        counted |= {file: min(sizes)[1]} if sizes else {}
    return counted


def parameters_of(name: str) -> int | None:
    """The number of parameters; None for a network that cannot be built at its own size, or takes no square images."""
    try:
        size = zoo_of(name).transform(name).image_size
        root: Any = build_on_meta(partial(zoo_of(name).build, name), size).root
    except Exception:
        return None
    return sum(int(parameter.numel()) for parameter in root.parameters())
