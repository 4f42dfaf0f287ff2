"""Whether a network still computes what it computed when rows were stored: by its outputs on two probe images.

Identical weights do not guarantee identical features: a changed `forward` method, or another version of a library,
may compute something else with them. The outputs are recorded in the provenance of every cache and segment. Where they
do not agree, the rows are not used; what is computed now gets a fingerprint of its own, so that both caches can exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.backbones.checks import same_function
from featcache.backbones.spec import BackboneSpec, ProbeOutputs, outputs_in
from featcache.cache.catalog import CacheEntry, caches_with_spec
from featcache.cache.manifest import Manifest
from featcache.cache.reader import FeatureCache
from featcache.cache.segments import open_segments
from featcache.cache.spec import Json, Spec
from featcache.cache.writer import serves
from featcache.errors import CacheError
from featcache.extraction.reporting import Reporter

#: Key in a spec's architecture: identifies what the network computes, where names and weights do not determine it.
BEHAVIOUR = "behaviour"


def without_behaviour(spec: Spec) -> Spec:
    """The spec without its behaviour mark: what names and weights alone determine."""
    if BEHAVIOUR not in spec.architecture:
        return spec
    return replace(spec, architecture={key: spec.architecture[key] for key in spec.architecture if key != BEHAVIOUR})


def resolve_behaviour(spec: Spec, backbone: BackboneSpec, features_dir: Path, reporter: Reporter) -> Spec:
    """The spec, with a mark of what the network computes where weights and names do not determine it.

    A mark is needed for a module of the caller's own, and where a cache with the same weights was computed by another
    function. The mark of an existing cache is reused if its outputs on the probe images agree.
    """
    if backbone.probe is None:
        return spec
    known = [
        one
        for one in caches_with_spec(features_dir)
        if one.spec is not None and _same_but_for_behaviour(one.spec, spec)
    ]
    refused: str | None = None
    for entry in sorted(known, key=lambda one: (one.complete, one.created or ""), reverse=True):
        for before in _probes(entry):
            same, sentence = same_function(backbone.probe, before, spec.layer_names)
            if same and entry.spec is not None:
                if sentence is not None:
                    reporter.warn(f"{entry.name}: {sentence}")
                return replace(spec, architecture={**spec.architecture, **_mark_of(entry.spec)})
            refused = refused or f"{entry.name}: {sentence}"
            break
    if refused is not None:
        reporter.warn(refused)
    if refused is None and not backbone.is_own_module:
        return spec
    return replace(spec, architecture={**spec.architecture, BEHAVIOUR: behaviour_of(backbone.probe)})


def _same_but_for_behaviour(other: Spec, spec: Spec) -> bool:
    return serves(without_behaviour(other), without_behaviour(spec))


def _mark_of(spec: Spec) -> Mapping[str, Json]:
    return {BEHAVIOUR: spec.architecture[BEHAVIOUR]} if BEHAVIOUR in spec.architecture else {}


def behaviour_of(outputs: ProbeOutputs) -> str:
    """The mark of a network's outputs on the probe images: 16 hexadecimal digits."""
    text = json.dumps(outputs.to_json()["sketches"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _probes(entry: CacheEntry) -> Iterator[ProbeOutputs]:
    """The outputs that a cache, or the segments of an unfinished one, recorded."""
    for provenance in _provenances(entry):
        found = outputs_in(provenance)
        if found is not None:
            yield found


def _provenances(entry: CacheEntry) -> Iterator[Mapping[str, Any]]:
    try:
        if entry.complete:
            with FeatureCache.open(entry.path) as cache:
                yield cache.provenance
        else:
            yield from (split.provenance for _, split in open_segments(entry.path, Manifest.read(entry.path)))
    except CacheError:
        # The error is reported where the rows are read.
        return


def computes_the_same(backbone: BackboneSpec, provenance: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    """Whether rows with this provenance are rows of the backbone as it computes now."""
    before = outputs_in(provenance)
    if backbone.probe is None or before is None:
        return backbone.probe is None
    return same_function(backbone.probe, before, names)[0]
