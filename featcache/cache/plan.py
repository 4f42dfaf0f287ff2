"""The folder of an unfinished extraction: what it set out to do, and how far it is.

`<cache name>.parts/` holds `plan.json` and one file per part. Reading the plan needs no NumPy, so `ls` may do it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featcache.cache.spec import Json, Selection, Spec, canonical_json
from featcache.errors import CacheDamaged, CacheForeign, CacheNotFound, CacheOutdated
from featcache.files import publish_bytes

PLAN_NAME = "plan.json"
PLAN_FORMAT = "featcache-plan"
PARTS_SUFFIX = ".parts"
_MARK = "begun-"


@dataclass(frozen=True, kw_only=True)
class PartsPlan:
    """What an unfinished extraction set out to do: kept beside its parts, obeyed by every resume and shard.

    `rows` are the rows of each split, `created` an ISO 8601 time.
    """

    spec: Spec
    selection: Selection
    set_name: str
    classes: tuple[str, ...]
    rows: Mapping[str, int]
    created: str


def write_plan(folder: Path, plan: PartsPlan) -> Path:
    """Begin an extraction: publish `plan.json` in `folder`. Raises CacheUnwritable."""
    path = folder / PLAN_NAME
    values: dict[str, Json] = {
        "format": PLAN_FORMAT,
        "spec": json.loads(plan.spec.to_json()),
        "selection": json.loads(plan.selection.to_json()),
        "set_name": plan.set_name,
        "classes": list(plan.classes),
        "rows": dict(plan.rows),
        "created": plan.created,
    }
    publish_bytes(path, json.dumps(values, indent=1).encode())
    return path


def read_plan(folder: Path) -> PartsPlan:
    """The plan in a folder of parts.

    Raises CacheNotFound where there is none, CacheOutdated for one of an earlier featcache, CacheDamaged for anything
    else.
    """
    path = folder / PLAN_NAME
    try:
        values = json.loads(path.read_bytes())
        return PartsPlan(
            spec=Spec.from_json(canonical_json(values["spec"])),
            selection=Selection.from_json(canonical_json(values["selection"])),
            set_name=str(values["set_name"]),
            classes=tuple(str(name) for name in values["classes"]),
            rows={str(split): int(rows) for split, rows in values["rows"].items()},
            created=str(values["created"]),
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheNotFound(f"{folder} has no {PLAN_NAME}") from error
    except CacheOutdated as error:
        raise CacheOutdated(str(folder)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, CacheForeign) as error:
        raise CacheDamaged(f"{path} is no plan: {error}", hint=f"`featcache rm {folder}` and begin again") from error


def part_paths(folder: Path) -> list[Path]:
    """The published part files in a folder, sorted by name."""
    return sorted(folder.glob("part-*.safetensors"))


def mark_path(folder: Path, name: str) -> Path:
    """An empty file by which somebody far away tells that he has begun something."""
    return folder / f"{_MARK}{name}"


def discard_marks(folder: Path, name: str) -> None:
    """Remove the marks whose names begin with `name`."""
    for path in folder.glob(f"{_MARK}{name}*"):
        path.unlink(missing_ok=True)


def covered_rows(path: Path) -> int:
    """How many rows of the plan a part stands for (stored and skipped), told by its name; 0 for another name."""
    pieces = path.stem.split("-")
    return int(pieces[2]) if len(pieces) == 4 and pieces[2].isdecimal() else 0


def discard_parts(folder: Path) -> None:
    """Remove the parts, the plan and what else featcache left in `folder`, and the folder if it is empty then."""
    with contextlib.suppress(OSError):
        for path in [*part_paths(folder), *folder.glob("*.tmp-*"), *folder.glob(f"{_MARK}*"), folder / PLAN_NAME]:
            path.unlink(missing_ok=True)
        folder.rmdir()
