"""The shelf: `ls`, `info`, `verify`, `why`, `rm`, `gc`. `ls`, `info`, `rm` and `gc` never import torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli.options import (
    BackboneOptions,
    Common,
    ImageOptions,
    backbone_defaults,
    command,
    image_defaults,
)
from featcache.cli.terminal import Terminal, human_bytes, human_seconds, print_json, print_table

if TYPE_CHECKING:
    from featcache.cache.catalog import CacheEntry
    from featcache.extraction.why import Why

_CACHE = typer.Argument(help="A cache's path, its name from `featcache ls`, or the beginning of one.")
_MOST_LISTED = 10


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "ls")
    def ls(common: Common) -> None:
        """List the caches: complete, unfinished, damaged."""
        from featcache.cache.catalog import list_caches

        entries = list_caches(common.data_dir / "features")
        if common.json:
            print_json({"caches": [_entry_json(entry) for entry in entries]})
        elif entries:
            print_table([_entry_row(entry) for entry in entries], header=_HEADER)
        else:
            print(f"no caches in {common.data_dir / 'features'}; `featcache extract` makes one")

    @command(app, "info")
    def info(cache: Annotated[str, _CACHE], *, common: Common) -> None:
        """Show what a cache holds and what it was computed from."""
        from featcache.cache.catalog import find

        entry = find(common.data_dir / "features", cache)
        details = _entry_json(entry) | _details(entry)
        if common.json:
            print_json(details)
        else:
            print_table([(key, value) for key, value in _flat(details)])

    @command(app, "verify")
    def verify(
        cache: Annotated[str, _CACHE],
        full: Annotated[bool, typer.Option("--full", help="Read and check every row.")] = False,
        recompute: Annotated[int, typer.Option(help="Run so many random rows through the backbone again.", min=0)] = 0,
        seed: Annotated[int, typer.Option(help="Which rows --recompute takes.")] = 0,
        device: Annotated[str, typer.Option(help="Where --recompute computes.")] = "auto",
        *,
        common: Common,
    ) -> None:
        """Check a cache file against its own checksums, and on request against a new computation."""
        from featcache.cache.catalog import find
        from featcache.cache.verification import verify

        path = find(common.data_dir / "features", cache).path
        with Terminal(quiet=common.quiet) as terminal:
            checked = verify(path, full=full, progress=lambda done, total: terminal.advance("verifying", done, total))
            again = _recomputed(cache, recompute, seed, device, common) if recompute and checked.sound else None
        report = _verification(checked) | ({"recomputed": again} if again is not None else {})
        if common.json:
            print_json(report)
        else:
            print_table([(key, value) for key, value in _flat(report)])
        if not checked.sound:
            raise typer.Exit(1)

    @command(app, "why")
    def why(what: BackboneOptions, images: ImageOptions, common: Common) -> None:
        """Say, field by field, whether `extract` with the same options finds its rows already there."""
        from featcache.extraction.request import Request
        from featcache.extraction.why import why

        request = Request(**backbone_defaults(what), **image_defaults(images), data_dir=common.data_dir)
        with Terminal(quiet=common.quiet) as terminal:
            told = why(request, reporter=terminal)
        if common.json:
            print_json(told.to_json())
        else:
            _show_why(told)

    @command(app, "rm")
    def rm(cache: Annotated[str, _CACHE], *, common: Common) -> None:
        """Remove a cache, or the parts of an unfinished one."""
        from featcache.cache.catalog import find, remove

        entry = find(common.data_dir / "features", cache)
        freed = remove(entry.path)
        if common.json:
            print_json({"removed": str(entry.path), "bytes": freed})
        else:
            print(f"removed {entry.path} ({human_bytes(freed)})")

    @command(app, "gc")
    def gc(
        delete: Annotated[bool, typer.Option("--delete", help="Really remove; without it, only list.")] = False,
        *,
        common: Common,
    ) -> None:
        """List what no run uses: files of dead processes, left-over parts, unused caches."""
        from featcache.cache.catalog import discard, garbage
        from featcache.heads.runs import used_caches

        found = garbage(common.data_dir / "features", used=used_caches(common.runs_dir), now=time.time())
        if delete:
            for piece in found:
                discard(piece)
        if common.json:
            pieces = [{"path": str(one.path), "bytes": one.nbytes, "reason": one.reason} for one in found]
            print_json({"deleted": delete, "garbage": pieces, "bytes": sum(one.nbytes for one in found)})
            return
        if found:
            print_table([(str(one.path), human_bytes(one.nbytes), one.reason) for one in found])
        total = human_bytes(sum(one.nbytes for one in found))
        print(f"{'removed' if delete else 'would remove (--delete does)'}: {total}")


_HEADER = ("name", "layers", "rows", "size", "age", "used", "state")


def _entry_row(entry: CacheEntry) -> Sequence[str]:
    rows = " ".join(f"{split} {count:,}" for split, count in (entry.rows or {}).items())
    state = entry.state
    if entry.state == "unfinished" and entry.rows_total:
        state = f"unfinished, {100 * entry.rows_done // entry.rows_total} %"
    layers = ", ".join(entry.spec.layer_names) if entry.spec else "-"
    return (
        entry.name,
        layers,
        rows or "-",
        human_bytes(entry.nbytes),
        _age(_seconds(entry.created)),
        _age(entry.used),
        state,
    )


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
        "skipped": entry.skipped,
        "bytes": entry.nbytes,
        "created": entry.created,
        "used": entry.used,
        "problem": entry.problem,
    }


def _details(entry: CacheEntry) -> dict[str, Any]:
    import json

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
            details["classes"] = list(cache.classes)
            details["provenance"] = dict(cache.provenance)
            details["skipped_images"] = [{"id": one.id, "reason": one.reason} for one in cache.skipped]
    return details


def _flat(value: dict[str, Any], prefix: str = "") -> Sequence[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, dict):
            rows += _flat(item, f"{prefix}{key}.")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            for number, one in enumerate(item):
                rows += _flat(one, f"{prefix}{key}.{number}.")
        elif isinstance(item, list | tuple):
            shown = ", ".join(map(str, item[:_MOST_LISTED]))
            rows.append((prefix + key, shown + (f", ... ({len(item)})" if len(item) > _MOST_LISTED else "")))
        elif item is not None:
            rows.append((prefix + key, str(item)))
    return rows


def _verification(checked: Any) -> dict[str, Any]:
    return {
        "path": str(checked.path),
        "sound": checked.sound,
        "full": checked.full,
        "tables": checked.tables,
        "rows": checked.rows,
        "findings": [asdict(finding) for finding in checked.findings],
    }


def _recomputed(cache: str, rows: int, seed: int, device: str, common: Common) -> dict[str, Any]:
    from featcache.cache.catalog import find
    from featcache.cache.reader import FeatureCache
    from featcache.extraction.devices import resolve_device
    from featcache.extraction.rebuild import recompute

    path = find(common.data_dir / "features", cache).require_complete()
    with FeatureCache.open(path) as opened:
        again = recompute(opened, rows, seed=seed, data_dir=common.data_dir, device=resolve_device(device))
    return again.to_json()


def _show_why(told: Why) -> None:
    print(f"{told.state}: {told.rows - told.to_compute} of {told.rows} rows are there ({told.cache.name})")
    for what, ids in (("new", told.new), ("changed", told.changed), ("gone", told.gone)):
        if ids:
            more = f", ... ({len(ids)})" if len(ids) > _MOST_LISTED else ""
            print(f"{what}: {', '.join(ids[:_MOST_LISTED])}{more}")
    for neighbour in told.nearest:
        print(f"{neighbour.name} differs:")
        for difference in neighbour.differences:
            print(f"  {difference.field}: {_short(difference.that)}, asked {_short(difference.this)}")


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return f"{text[:10]}.." if len(text) == 64 else text
