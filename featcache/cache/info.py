"""What a file says of itself as a whole: its root attributes, and the copy of them in a manifest and a trailer."""

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
    """What a file says of itself, and which arrays it has."""

    @property
    def format(self) -> str:
        """The root attribute of that name."""

    def texts(self) -> dict[str, str]:
        """The other root attributes."""

    def about(self, rows: Mapping[str, int]) -> dict[str, Json]:
        """What the trailer repeats. `rows`: by split."""

    def arrays(self, rows: Mapping[str, int], text_bytes: Mapping[str, int]) -> list[ArrayPlace]:
        """Its arrays, in order. `text_bytes`: of the longest text of each array of texts."""

    def attributes(
        self, rows: Mapping[str, int], scaling: Mapping[str, tuple[float, float]]
    ) -> dict[str, FeatureAttributes]:
        """What stands beside its feature arrays. `scaling`: (scale, offset) by layer."""


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """What a cache says of itself beside its arrays.

    Args:
        spec: What the rows were computed under.
        selection: Which images of which set they show.
        set_name: The set's short name.
        columns: The targets; of a segment none.
        provenance: Versions, device, date: what is no part of the identity.
        skipped: Images that were left out.
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
        """When it was made: an ISO 8601 time."""
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
        """What a trailer repeats for `ls`. `rows`: by split."""
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
    """What the file of targets beside segments says of itself.

    Args:
        set_name: The set's short name.
        columns: The targets.
        provenance: When it was made.
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
        """What its trailer repeats."""
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
        """It has no features."""
        return {}
