"""Find the cache that a set of options refers to, without loading backbone, weights or images.

What was left out means its definite default; `auto` matches any value. A backbone's stored description says what the
options mean; where there is none, because its weights are not here, the options that a cache recorded are compared.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featcache.backbones import describe as descriptions
from featcache.backbones.describe import Choice
from featcache.backbones.spec import BackboneSpec
from featcache.cache.catalog import CacheEntry, candidates
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import Spec
from featcache.config import command_words
from featcache.errors import CacheError, CacheIncomplete, CacheNotFound, FeatcacheError
from featcache.extraction.named import Found
from featcache.extraction.request import Request
from featcache.extraction.resolve import described_augmentation, differs_in_auto_alone, spec_of


def by_request(request: Request) -> Found:
    """The complete cache that these options describe.

    Raises CacheNotFound, with the command that makes it, or CacheIncomplete where its extraction has not ended.
    """
    entries = candidates(request.features_dir)
    fitting = _fitting(request)
    found = [one for one in entries if one.selection == request.selection and fitting(one)]
    ranked = sorted(found, key=lambda one: (one.complete, one.created or ""))
    if not ranked:
        raise CacheNotFound(
            f"there is no cache of {request.origin} with {request.backbone_name} and these options"
            + (f"; there are {', '.join(entry.name for entry in entries)}" if entries else ""),
            hint=f"make it with `{as_command(request)}`" + (", or name one of those" if entries else ""),
        )
    try:
        return Found(path=ranked[-1].require_complete(), layers=_layers(request, ranked[-1]))
    except CacheIncomplete as error:
        hint = f"finish it with `{as_command(request)}`: it goes on where it stopped"
        raise CacheIncomplete(error.message, hint=hint) from error


def _fitting(request: Request) -> Callable[[CacheEntry], bool]:
    """Whether a cache is the one that the options describe."""
    backbone = _description(request)
    if backbone is None:
        return lambda entry: _recorded_alike(entry, request)
    wanted = spec_of(backbone, request, "fp32", "eager")
    return lambda entry: (
        entry.spec is not None
        and entry.spec.views == request.views
        and differs_in_auto_alone(entry.spec, wanted, request)
    )


def _description(request: Request) -> BackboneSpec | None:
    """What the options mean where that can be told here; None where it takes weights that are not here."""
    if not isinstance(request.backbone, str):
        return request.backbone.spec
    options = request.backbone_options
    if options.backbone == "pixels":
        return descriptions.describe(options, data_dir=request.data_dir) if options.image_size else None
    known = descriptions.stored(options, data_dir=request.data_dir, without_files=True)
    if known is not None or not Path(str(options.weights)).expanduser().is_file():
        return known
    try:
        return descriptions.describe(options, data_dir=request.data_dir)
    except FeatcacheError:
        return None


def _recorded_alike(entry: CacheEntry, request: Request) -> bool:
    """Whether a complete cache recorded the options that the request gives."""
    spec = entry.spec
    if spec is None or not entry.complete or not _same_storage(spec, request):
        return False
    try:
        with FeatureCache.open(entry.path) as cache:
            recorded: Any = cache.provenance.get("choice")
            source = cache.provenance.get("weights")
        asked = Choice.of(request.backbone_options)
        same_layers = set(asked.layers) <= set(spec.layer_names) if asked.layers else not recorded["layers"]
        size = asked.image_size is None and (recorded["image_size"] is None or asked.backbone == "pixels")
        return (
            recorded["backbone"] == asked.backbone
            and same_layers
            and recorded["pool"] == asked.pool
            and (size or spec.transform["image_size"] == asked.image_size)
            and spec.transform["resize"] == asked.resize
            and (recorded["normalize"] or "weights") == (asked.normalize or "weights")
            and (recorded["weights"] == asked.weights or source == f"file:{asked.weights}")
        )
    except (CacheError, TypeError, KeyError):
        return False


def _same_storage(spec: Spec, request: Request) -> bool:
    dtype = "uint8" if spec.precision == "uint8" else request.dtype or "float16"
    asked = (dtype, request.views, request.spec_view_seed)
    if (spec.dtype, spec.views, spec.view_seed) != asked:
        return False
    if spec.transform.get("augmentation") != described_augmentation(request):
        return False
    computed = spec.precision != "uint8"
    return not computed or all(
        getattr(request, name) in ("auto", getattr(spec, name)) for name in ("precision", "runner")
    )


def _layers(request: Request, entry: CacheEntry) -> tuple[str, ...] | None:
    """The layers that the options name; None where they name none and the cache has one."""
    if request.layers and entry.spec is not None:
        backbone = _description(request)
        return backbone.layer_names if backbone is not None else request.layers
    backbone = _description(request)
    return None if backbone is None else backbone.layer_names


def as_command(request: Request) -> str:
    """The `featcache extract` that makes this cache; for images that were handed over from Python the call."""
    if request.location.is_object:
        return f"featcache.extract(images, {request.backbone_name!r}, ...)"
    words = ["featcache", "extract", "--backbone", request.backbone_name, "--dataset", request.origin]
    words += command_words(request, without=("backbone", "dataset", "split_by_folder"))
    if request.data_dir != Request().data_dir:
        words += ["--data-dir", str(request.data_dir)]
    return shlex.join(words)
