"""Which existing cache is the one somebody means, told from what was said.

Training needs neither the backbone, nor its weights, nor the images: what was left out means its definite
default, `auto` matches any value, a weights file is digested where it exists and else matched by its recorded
path.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache.backbones import load_backbone, networks
from featcache.backbones.backbone import Backbone
from featcache.backbones.weights import source_of
from featcache.cache.catalog import CacheEntry, candidates, find, list_caches
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import Spec
from featcache.cache.writer import serves
from featcache.config import command_words
from featcache.errors import CacheIncomplete, CacheNotFound, FeatcacheError
from featcache.extraction import devices
from featcache.extraction.plan import described_augmentation, spec_of
from featcache.extraction.request import Request


@dataclass(frozen=True, kw_only=True)
class Found:
    """A complete cache and, of its layers, those that were asked for (None: all it has)."""

    path: Path
    layers: tuple[str, ...] | None = None


def settled_spec(backbone: Backbone, request: Request, precision: str, runner: str = "eager") -> Spec:
    """The spec to extract under: `precision` and `runner` are what `auto` means here.

    What was left to auto is settled once, when a cache is begun: where a cache or an unfinished extraction of
    the same selection exists with another precision or runner, that one is obeyed; of several, the newest. Where
    there is none, one with another number of views counts, for it has rows to give.
    """
    here = spec_of(backbone, request, precision, runner)
    if "auto" not in (request.precision, request.runner):
        return here
    shelf = candidates(request.features_dir)
    relatives = [one for one in shelf if one.selection == request.selection and _but_for_auto(one.spec, here, request)]
    existing = [one for one in relatives if one.spec is not None and one.spec.views == here.views] or relatives
    if not existing and (request.runner, here.runner) == ("auto", "eager"):
        # Few images are not worth compiling for, but a large cache of the same source may have their rows.
        compiled = replace(here, runner="compiled")
        existing = [one for one in shelf if _is_of(one, request) and _but_for_auto(one.spec, compiled, request)]
    return _settled(existing, here.precision, here)


def _but_for_auto(spec: Spec | None, wanted: Spec, request: Request) -> bool:
    if spec is None:
        return False
    free: dict[str, Any] = {
        name: getattr(wanted, name) for name in ("precision", "runner") if getattr(request, name) == "auto"
    }
    return serves(replace(spec, **free), wanted)


def _settled(existing: list[CacheEntry], precision: str, here: Spec) -> Spec:
    chosen = _preferred(existing, precision)
    if chosen is None or chosen.spec is None:
        return here
    return replace(here, precision=chosen.spec.precision, runner=chosen.spec.runner)


def _is_of(entry: CacheEntry, request: Request) -> bool:
    return entry.selection is not None and entry.selection.source == request.origin


def _preferred(entries: list[CacheEntry], precision: str) -> CacheEntry | None:
    """The one with the precision that auto gives here, else the newest; a complete one before an unfinished."""
    ranked = sorted(
        entries,
        key=lambda entry: (entry.spec is not None and entry.spec.precision == precision, entry.complete, entry.created),
    )
    return ranked[-1] if ranked else None


def by_name(features_dir: Path, name: str) -> Found:
    """The complete cache of that path, name or unique beginning of a name. Raises CacheError."""
    return Found(path=find(features_dir, name).require_complete())


def only_cache(features_dir: Path, backbone: str | None = None) -> Found | None:
    """The only complete cache there is (of `backbone`, if that is said); None where there are none or several."""
    complete = [
        entry
        for entry in list_caches(features_dir)
        if entry.complete and (backbone is None or (entry.spec is not None and entry.spec.backbone == backbone))
    ]
    return Found(path=complete[0].path) if len(complete) == 1 else None


def by_request(request: Request) -> Found:
    """The complete cache that these options describe.

    Raises CacheNotFound, with the command that makes it, or CacheIncomplete where its extraction has not ended.
    """
    shelf = candidates(request.features_dir)
    asked = _asked(request)
    entries = [entry for entry in shelf if entry.selection == request.selection and _fits(entry, request, asked)]
    chosen = _preferred(entries, devices.resolve_precision("auto", devices.resolve_device("auto")))
    if chosen is None:
        raise CacheNotFound(
            f"there is no cache of {request.origin} with {request.backbone_name} and these options"
            + (f"; there are {', '.join(entry.name for entry in shelf)}" if shelf else ""),
            hint=f"make it with `{as_command(request)}`" + (", or name one of those" if shelf else ""),
        )
    try:
        return Found(path=chosen.require_complete(), layers=asked.layers)
    except CacheIncomplete as error:
        hint = f"finish it with `{as_command(request)}`: it goes on where it stopped"
        raise CacheIncomplete(error.message, hint=hint) from error


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the options mean, as far as it can be told without weights."""

    layers: tuple[str, ...]
    pool: str
    image_size: int | None  # None: any, for `pixels` whose size is the set's own
    normalize: str


def _asked(request: Request) -> _Asked:
    if isinstance(request.backbone, Backbone):
        backbone = request.backbone
        return _Asked(
            layers=tuple(backbone.feature_dims),
            pool=backbone.pool,
            image_size=backbone.transform.image_size,
            normalize=request.normalize or "weights",
        )
    if request.backbone == "pixels":
        return _Asked(layers=("pixels",), pool="none", image_size=request.image_size, normalize="half")
    family = networks.family_of(request.backbone)
    return _Asked(
        layers=request.layers or (family.layer,),
        pool=request.pool or (family.pool if not request.layers else "none"),
        image_size=request.image_size or networks.preset(request.backbone).image_size,
        normalize=request.normalize or "weights",
    )


def _fits(entry: CacheEntry, request: Request, asked: _Asked) -> bool:
    spec = entry.spec
    if spec is None or spec.backbone != request.backbone_name or not set(asked.layers) <= set(spec.layer_names):
        return False
    dtype = "uint8" if request.backbone_name == "pixels" else request.dtype or "float16"
    said = (asked.pool, request.resize, dtype, request.views, request.spec_view_seed)
    if (spec.pool, spec.transform["resize"], spec.dtype, spec.views, spec.view_seed) != said:
        return False
    if spec.transform.get("augmentation") != described_augmentation(request):
        return False
    if asked.image_size is not None and spec.transform["image_size"] != asked.image_size:
        return False
    if request.precision not in ("auto", spec.precision) and spec.precision != "uint8":
        return False
    if request.runner not in ("auto", spec.runner) and spec.precision != "uint8":
        return False
    return request.backbone_name == "pixels" or _same_weights(entry, spec, request, asked)


def _same_weights(entry: CacheEntry, spec: Spec, request: Request, asked: _Asked) -> bool:
    if isinstance(request.backbone, Backbone):
        return _computes(request.backbone, request, spec, asked)
    if Path(request.weights).is_file():
        try:
            backbone = _loaded(request)
        except FeatcacheError:
            return False
        return _computes(backbone, request, spec, asked)
    weights, normalize = _recorded(entry)
    return (weights, normalize) == (source_of(request.backbone_name, request.weights), asked.normalize)


def _computes(backbone: Backbone, request: Request, spec: Spec, asked: _Asked) -> bool:
    return spec_of(backbone, request, spec.precision, spec.runner) == spec.restricted_to(asked.layers)


def _loaded(request: Request) -> Backbone:
    return load_backbone(
        request.backbone_name,
        weights=request.weights,
        layers=request.layers,
        pool=request.pool,
        image_size=request.image_size,
        resize=request.resize,
        normalize=request.normalize,
        weights_dir=request.weights_dir,
    )


def _recorded(entry: CacheEntry) -> tuple[object, object]:
    if not entry.complete:
        # Which weights an unfinished extraction uses is known by digest only: its own command finishes it.
        return None, None
    with FeatureCache.open(entry.path) as cache:
        return cache.provenance.get("weights"), cache.provenance.get("normalize")


def as_command(request: Request) -> str:
    """The `featcache extract` that makes this cache."""
    words = ["featcache", "extract", "--backbone", request.backbone_name, "--dataset", request.origin]
    words += command_words(request, without=("backbone", "dataset"))
    if request.data_dir != Request().data_dir:
        words += ["--data-dir", str(request.data_dir)]
    return shlex.join(words)
