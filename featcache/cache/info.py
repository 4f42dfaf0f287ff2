"""What a cache says of itself as a whole: the root attributes of a file, and the copy of them in a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from featcache.cache.spec import Json, Selection, Spec, canonical_json

if TYPE_CHECKING:
    from featcache.cache.tables import Skipped


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """What a cache says of itself beside its arrays.

    Args:
        spec: What the rows were computed under.
        selection: Which images of which set they show.
        set_name: The set's short name.
        classes: A label is an index into them.
        provenance: Versions, device, date: what is no part of the identity.
        skipped: Images that were left out.
    """

    spec: Spec
    selection: Selection
    set_name: str
    classes: Sequence[str]
    provenance: Mapping[str, Json] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()

    def texts(self) -> dict[str, str]:
        """The root attributes of a file."""
        return {
            "set_name": self.set_name,
            "spec": self.spec.to_json(),
            "selection": self.selection.to_json(),
            "classes": json.dumps(list(self.classes)),
            "provenance": canonical_json(dict(self.provenance)),
            "skipped": json.dumps([one.as_json() for one in self.skipped]),
        }

    def about(self, rows: Mapping[str, int]) -> dict[str, Json]:
        """What a trailer repeats for `ls`. `rows`: by split."""
        return {
            "set_name": self.set_name,
            "spec": json.loads(self.spec.to_json()),
            "selection": json.loads(self.selection.to_json()),
            "rows": dict(rows),
            "skipped": len(self.skipped),
            "created": self.provenance.get("created"),
        }
