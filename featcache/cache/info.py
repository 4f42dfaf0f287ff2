"""The metadata of a file as a whole: its root attributes, and their copy in a manifest and a trailer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from featcache.cache.layout import ArrayPlace, FeatureAttributes, arrays_of, arrays_of_targets, features_name, views_in
from featcache.cache.spec import Json, Selection, Spec, canonical_json
from featcache.cache.targets import Column, columns_to_json
from featcache.cache.trailer import FORMAT, TARGETS_FORMAT
from featcache.errors import InvalidOption

if TYPE_CHECKING:
    from featcache.cache.tables import Skipped


class FileInfo(Protocol):
    """The metadata of a file, and which arrays it has."""

    @property
    def format(self) -> str:
        """The root attribute of that name."""

    def texts(self) -> dict[str, str]:
        """The other root attributes."""

    def about(self, rows: Mapping[str, int]) -> dict[str, Json]:
        """The part that the trailer repeats. `rows`: the number of rows by split."""

    def arrays(self, rows: Mapping[str, int], text_bytes: Mapping[str, int]) -> list[ArrayPlace]:
        """Its arrays, in order. `text_bytes`: the length of the longest text of each text array."""

    def attributes(
        self, rows: Mapping[str, int], scaling: Mapping[str, tuple[float, float]]
    ) -> dict[str, FeatureAttributes]:
        """The attributes of its feature arrays. `scaling`: (scale, offset) by layer."""


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """The metadata of a cache.

    Args:
        spec: How the rows were computed.
        selection: The data set and the images chosen from it.
        set_name: The set's short name.
        columns: The targets; none for a segment.
        provenance: Versions, device, date: recorded, but not part of the identity.
        skipped: Images that were skipped.
    """

    format: ClassVar[str] = FORMAT

    spec: Spec
    selection: Selection
    set_name: str
    columns: Sequence[Column] = ()
    provenance: Mapping[str, Json] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()

    @property
    def created(self) -> Json:
        """The time of its creation, ISO 8601."""
        return self.provenance.get("created")

    def texts(self) -> dict[str, str]:
        """The root attributes of a file."""
        return {
            "set_name": self.set_name,
            "spec": self.spec.to_json(),
            "selection": self.selection.to_json(),
            "targets": columns_to_json(self.columns),
            "provenance": canonical_json(dict(self.provenance)),
            "skipped": json.dumps([one.as_json() for one in self.skipped]),
        }

    def about(self, rows: Mapping[str, int]) -> dict[str, Json]:
        """The part that a trailer repeats for `ls`. `rows`: the number of rows by split."""
        return {
            "format": self.format,
            "set_name": self.set_name,
            "spec": json.loads(self.spec.to_json()),
            "selection": json.loads(self.selection.to_json()),
            "rows": dict(rows),
            "skipped": len(self.skipped),
            "created": self.created,
        }

    def arrays(self, rows: Mapping[str, int], text_bytes: Mapping[str, int]) -> list[ArrayPlace]:
        """The arrays of a file."""
        return arrays_of(self.spec, rows, text_bytes, self.columns)

    def attributes(
        self, rows: Mapping[str, int], scaling: Mapping[str, tuple[float, float]]
    ) -> dict[str, FeatureAttributes]:
        """The shape, scale and offset of each feature array. Raises InvalidOption for a layer that is not stored."""
        unknown = set(scaling) - set(self.spec.layer_names)
        if unknown:
            raise InvalidOption(f"scale and offset were given for layers that are not stored: {sorted(unknown)}")
        features: dict[str, FeatureAttributes] = {}
        for layer in self.spec.layers:
            scale, offset = scaling.get(layer.name, (1.0, 0.0))
            attributes = FeatureAttributes(shape=layer.shape, scale=float(scale), offset=float(offset))
            for split in rows:
                views = range(views_in(self.spec, split))
                features |= {features_name(split, layer.name, view): attributes for view in views}
        return features


@dataclass(frozen=True, kw_only=True)
class TargetsInfo:
    """The metadata of the targets file of a cache in segments.

    Args:
        set_name: The set's short name.
        columns: The targets.
        provenance: The time of its creation.
    """

    format: ClassVar[str] = TARGETS_FORMAT

    set_name: str
    columns: Sequence[Column]
    provenance: Mapping[str, Json] = field(default_factory=dict)

    def texts(self) -> dict[str, str]:
        """The root attributes of the file."""
        return {
            "set_name": self.set_name,
            "targets": columns_to_json(self.columns),
            "provenance": canonical_json(dict(self.provenance)),
        }

    def about(self, rows: Mapping[str, int]) -> dict[str, Json]:
        """The part that its trailer repeats."""
        return {
            "format": self.format,
            "set_name": self.set_name,
            "rows": dict(rows),
            "created": self.provenance.get("created"),
        }

    def arrays(self, rows: Mapping[str, int], text_bytes: Mapping[str, int]) -> list[ArrayPlace]:
        """The arrays of the file."""
        return arrays_of_targets(rows, text_bytes, self.columns)

    def attributes(
        self, rows: Mapping[str, int], scaling: Mapping[str, tuple[float, float]]
    ) -> dict[str, FeatureAttributes]:
        """Empty: the file has no features."""
        return {}
