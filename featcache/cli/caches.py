"""The shelf: `ls`, `info`, `verify`, `why`, `rm`, `gc`. `ls`, `info`, `rm` and `gc` never import torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.backbones.options import BackboneOptions
from featcache.cli import completion
from featcache.cli.commands import command
from featcache.cli.options import Common, requested
from featcache.cli.printing import (
    human_rows,
    human_seconds,
    print_json,
    print_line,
    print_pairs,
    print_table,
)
from featcache.cli.terminal import Terminal
from featcache.errors import CacheDamaged
from featcache.extraction.reporting import human_bytes
from featcache.extraction.request import StorageOptions
from featcache.images.options import ImageOptions

if TYPE_CHECKING:
    from featcache.cache.catalog import CacheEntry
    from featcache.cache.reader import FeatureCache
    from featcache.cache.verification import Verification
    from featcache.extraction.why import Why

SECTION = "The caches"
CACHE = typer.Argument(
    autocompletion=completion.caches, help="Its path, its name from `featcache ls`, or how that begins."
)
_MOST_LISTED = 10


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "ls", section=SECTION)
    def ls(common: Common) -> None:
        """List the caches: complete, unfinished, damaged."""
        from featcache.cache.catalog import list_caches

        entries = list_caches(common.features_dir)
        if common.json:
            print_json({"caches": [_entry_json(entry) for entry in entries]})
        elif entries:
            print_table([_entry_row(entry) for entry in entries], header=_HEADER)
        else:
            print_line(f"no caches in {common.features_dir}; `featcache extract` makes one")

    @command(app, "info", section=SECTION)
    def info(cache: Annotated[str, CACHE], *, common: Common) -> None:
        """Show what a cache holds and what it was computed from.

        A file that is no sound cache ends with exit 1.
        """
        from featcache.cache.catalog import COMPLETE, UNFINISHED, find

        entry = find(common.features_dir, cache)
        details = _details(entry)
        if common.json:
            print_json(_entry_json(entry) | details)
        else:
            targets = [(f"target {one['name']}", target_in_words(**one)) for one in details.pop("targets", ())]
            print_pairs([*_entry_pairs(entry), *targets, *_flat(details)])
        if entry.state not in (COMPLETE, UNFINISHED):
            raise typer.Exit(1)

    @command(app, "verify", section=SECTION)
    def verify(
        cache: Annotated[str, CACHE],
        full: Annotated[bool, typer.Option("--full", help="Read and check every row.")] = False,
        recompute: Annotated[
            int, typer.Option(help="Run so many random rows through the backbone again.", metavar="<rows>", min=0)
        ] = 0,
        seed: Annotated[int, typer.Option(help="Which rows --recompute takes.", metavar="<seed>", min=0)] = 0,
        device: Annotated[str, typer.Option(help="Where --recompute computes.", metavar="<device>")] = "auto",
        *,
        common: Common,
    ) -> None:
        """Check a cache against its checksums or a new computation.

        Without options: the file's size, its header and its tables. A cache that is not sound ends with exit 1.
        """
        from featcache.cache.catalog import UNFINISHED, find
        from featcache.cache.verification import verify

        entry = find(common.features_dir, cache)
        if entry.state == UNFINISHED:
            entry.require_complete()
        with Terminal(quiet=common.quiet) as terminal:
            checked = verify(
                entry.path, full=full, progress=lambda done, total: terminal.advance("verifying", done, total)
            )
            again = _recomputed(entry, recompute, seed, device, common) if recompute and checked.sound else None
        report = _verification(checked) | ({"recomputed": again} if again is not None else {})
        if common.json:
            print_json(report)
        else:
            print_pairs(_flat(report))
        if not checked.sound:
            raise CacheDamaged(
                f"{entry.path} is not sound: {checked.findings[0].what}",
                hint="extract again: sound rows are kept, the others computed",
            )

    @command(app, "why", section=SECTION)
    def why(what: BackboneOptions, storage: StorageOptions, images: ImageOptions, common: Common) -> None:
        """Say why `extract` would find its rows, or would not.

        Takes the options of `featcache extract` and computes nothing: hit (all rows are there), partial (which are
        new, changed or gone), or miss, with the fields in which the nearest caches differ.
        """
        from featcache.extraction.why import why

        with Terminal(quiet=common.quiet) as terminal:
            told = why(requested(what, storage, images, common), reporter=terminal)
        if common.json:
            print_json(told.to_json())
        else:
            _show_why(told)

    @command(app, "rm", section=SECTION)
    def rm(cache: Annotated[str, CACHE], *, common: Common) -> None:
        """Remove a cache, or what an unfinished one has so far."""
        from featcache.cache.catalog import find, remove

        entry = find(common.features_dir, cache)
        freed = remove(entry.path)
        if common.json:
            print_json({"removed": str(entry.path), "bytes": freed})
        else:
            print_line(f"removed {entry.path} ({human_bytes(freed)})")

    @command(app, "gc", section=SECTION)
    def gc(
        delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this, only list it.")] = False,
        *,
        common: Common,
    ) -> None:
        """List what no run uses, or remove it.

        That is: caches that no run in --runs-dir was trained on, and what dead processes left behind, also among runs
        and digests. A run that cannot be read is named and passed over.
        """
        from featcache.cache.catalog import discard, garbage, list_abandoned
        from featcache.runs.run import used_caches

        now = time.time()
        with Terminal(quiet=common.quiet) as terminal:
            used = used_caches(common.runs_dir, terminal.warn)
        found = garbage(common.features_dir, used=used, now=now)
        for folder in (common.data_dir / "digests", common.runs_dir, *common.runs_dir.glob("*/")):
            found += list_abandoned(folder, now)
        if delete:
            for piece in found:
                discard(piece)
        freed = sum(piece.nbytes for piece in found)
        if common.json:
            pieces = [{"path": str(piece.path), "bytes": piece.nbytes, "reason": piece.reason} for piece in found]
            print_json({"deleted": delete, "garbage": pieces, "bytes": freed})
        elif found:
            rows = [(str(piece.path), human_bytes(piece.nbytes), piece.reason) for piece in found]
            print_table(rows, header=("path", "size", "reason"))
            print_line(f"\n{human_bytes(freed)} " + ("removed" if delete else "to remove: --delete does it"))
        else:
            print_line("nothing to remove")


_HEADER = ("name", "layers", "rows", "views", "size", "age", "used", "state")


def _entry_row(entry: CacheEntry) -> Sequence[str]:
    return (
        entry.name,
        ", ".join(entry.spec.layer_names) if entry.spec else "-",
        human_rows(entry.rows or {}) or "-",
        str(entry.spec.views) if entry.spec else "-",
        human_bytes(entry.nbytes),
        _age(_seconds(entry.created)),
        _age(entry.used),
        _state(entry),
    )


def _state(entry: CacheEntry) -> str:
    if entry.state == "unfinished" and entry.rows_total:
        return f"unfinished, {100 * entry.rows_done // entry.rows_total} %"
    return entry.state


def _seconds(created: str | None) -> float | None:
    from datetime import datetime

    try:
        return datetime.fromisoformat(created).timestamp() if created else None
    except ValueError:
        return None


def _age(then: float | None) -> str:
    if then is None:
        return "-"
    passed = max(0.0, time.time() - then)
    if passed < 48 * 3600:
        return human_seconds(passed) if passed >= 60 else "now"
    return f"{passed / 86400:.0f} days"


def _entry_json(entry: CacheEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "path": str(entry.path),
        "state": entry.state,
        "dataset": entry.set_name,
        "backbone": entry.spec.backbone if entry.spec else None,
        "layers": list(entry.spec.layer_names) if entry.spec else [],
        "rows": dict(entry.rows or {}),
        "rows_done": entry.rows_done,
        "views": entry.spec.views if entry.spec else None,
        "skipped": entry.skipped,
        "bytes": entry.nbytes,
        "created": entry.created,
        "used": entry.used,
        "problem": entry.problem,
    }


def _entry_pairs(entry: CacheEntry) -> list[tuple[str, str]]:
    pairs = [
        ("name", entry.name),
        ("path", str(entry.path)),
        ("state", _state(entry)),
        ("problem", entry.problem or ""),
        ("dataset", entry.set_name or ""),
        ("rows", human_rows(entry.rows or {})),
        ("views", entry.spec.views_told if entry.spec else ""),
        ("skipped", str(entry.skipped or "")),
        ("size", human_bytes(entry.nbytes)),
        ("created", entry.created or ""),
        ("used", _age(entry.used)),
    ]
    return [(name, value) for name, value in pairs if value]


def _details(entry: CacheEntry) -> dict[str, Any]:
    from featcache.cache.reader import FeatureCache

    if entry.spec is None or entry.selection is None:
        return {}
    details: dict[str, Any] = {
        "fingerprint": entry.spec.fingerprint,
        "spec": json.loads(entry.spec.to_json()),
        "selection": json.loads(entry.selection.to_json()),
    }
    if entry.complete:
        with FeatureCache.open(entry.path) as cache:
            details["targets"] = [_target(cache, name) for name in cache.targets]
            details["provenance"] = dict(cache.provenance)
            details["skipped_images"] = [{"id": one.id, "reason": one.reason} for one in cache.skipped]
    return details


def _target(cache: FeatureCache, name: str) -> dict[str, Any]:
    """What `info` says of a target."""
    from featcache.cache.presentation import unlabelled_rows

    column = cache.targets[name]
    return {
        "name": name,
        "kind": column.kind,
        "names": list(column.names),
        "unlabelled": unlabelled_rows(cache, name),
        "origin": column.origin,
    }


def target_in_words(*, kind: str, names: Sequence[str], unlabelled: int, origin: str, **_: object) -> str:
    """A target in a line: its kind, names, rows without a value, and where it came from."""
    named = f" ({_listed(names)})" if names else ""
    return f"{kind}{named}, {unlabelled:,} rows without a value, from {origin}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, str]]:
    """{"spec": {"pool": "avg"}} -> [("spec.pool", "avg")]; what is None or empty is left out."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            rows += _flat(item, f"{prefix}{key}.")
        elif isinstance(item, list | tuple) and item and isinstance(item[0], Mapping):
            for number, one in enumerate(item):
                rows += _flat(one, f"{prefix}{key}.{number}.")
        elif isinstance(item, list | tuple):
            rows += [(prefix + key, _listed(list(map(str, item))))] if item else []
        elif item is not None:
            rows.append((prefix + key, str(item)))
    return rows


def _listed(items: Sequence[str]) -> str:
    more = f", ... ({len(items):,})" if len(items) > _MOST_LISTED else ""
    return ", ".join(items[:_MOST_LISTED]) + more


def _verification(checked: Verification) -> dict[str, Any]:
    return {
        "path": str(checked.path),
        "sound": checked.sound,
        "full": checked.full,
        "tables": checked.tables,
        "rows": checked.rows,
        "findings": [asdict(finding) for finding in checked.findings],
    }


def _recomputed(entry: CacheEntry, rows: int, seed: int, device: str, common: Common) -> dict[str, Any]:
    from featcache.backbones.devices import resolve_device
    from featcache.cache.reader import FeatureCache
    from featcache.extraction.recomputation import recompute

    with FeatureCache.open(entry.require_complete()) as opened:
        again = recompute(opened, rows, seed=seed, data_dir=common.data_dir, device=resolve_device(device))
    return again.to_json()


def _show_why(told: Why) -> None:
    print_line(f"{told.state}: {told.rows - told.to_compute:,} of {told.rows:,} rows are there ({told.cache.name})")
    for what, ids in (("new", told.new), ("changed", told.changed), ("gone", told.gone)):
        if ids:
            print_line(f"{what}: {_listed(ids)}")
    for neighbour in told.nearest:
        print_line(f"{neighbour.name} differs:")
        for difference in neighbour.differences:
            print_line(f"  {difference.field}: {_short(difference.that)}, asked {_short(difference.this)}")


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    text = "nothing" if value is None else str(value)
    return f"{text[:10]}.." if len(text) == 64 else text
