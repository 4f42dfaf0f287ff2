"""The caches: `ls`, `info`, `verify`, `why`, `rm`, `gc`. `ls`, `info`, `rm` and `gc` never import torch."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.backbones.options import BackboneOptions
from featcache.cli.commands import FOUND, command
from featcache.cli.finding import CACHE, CacheOptions
from featcache.cli.groups import Only, names_of_given
from featcache.cli.options import Common
from featcache.cli.printing import (
    Bold,
    human_count,
    human_list,
    human_path,
    human_rows,
    print_json,
    print_line,
    print_next,
    print_pairs,
    print_table,
)
from featcache.cli.terminal import Terminal
from featcache.cli.usage import WrongUsage, usage_errors
from featcache.columns import LABEL, TARGET_KINDS, ColumnOptions
from featcache.config import Option, merge_fields
from featcache.errors import CacheDamaged
from featcache.extraction.execution import ComputeOptions
from featcache.extraction.request import Request, StorageOptions
from featcache.images.options import ImageOptions
from featcache.inference.options import MovedWeights
from featcache.text import human_bytes, human_seconds

if TYPE_CHECKING:
    from featcache.cache.catalog import CacheEntry
    from featcache.cache.reader import FeatureCache
    from featcache.cache.verification import Verification
    from featcache.extraction.why import Why

SECTION = "The caches"
_MOST_LISTED = 10


def register(app: typer.Typer) -> None:
    """Add `ls`, `info`, `verify`, `why`, `rm` and `gc` to the typer app."""

    @command(
        app,
        "ls",
        section=SECTION,
        examples=(
            "featcache ls",
            "featcache ls --data-dir /data/featcache --json",
        ),
    )
    def ls(common: Common) -> None:
        """List the caches: complete, unfinished, damaged."""
        from featcache.cache.catalog import list_caches

        entries = list_caches(common.features_dir)
        if common.json:
            print_json({"caches": [entry_json(entry) for entry in entries]})
        elif entries:
            _show_entries(entries, common)
        else:
            print_line(f"no caches in {human_path(common.features_dir)}")
            print_next(common, "extract", "--dataset", "digits", "--backbone", "pixels")

    @command(
        app,
        "info",
        section=SECTION,
        examples=(
            "featcache info cifar10-vgg16",
            "featcache info data/features/cifar10-vgg16.h5 --json",
        ),
    )
    def info(cache: Annotated[str | None, CACHE] = None, *, which: CacheOptions, common: Common) -> None:
        """Show what a cache holds and what it was computed from.

        A file that is no sound cache ends with exit 1.
        """
        from featcache.cache.catalog import COMPLETE, UNFINISHED

        entry = which.find(common.features_dir, cache)
        details = _details(entry)
        if common.json:
            print_json(entry_json(entry) | details)
        else:
            _show_info(entry, details, common)
        if entry.state not in (COMPLETE, UNFINISHED):
            raise typer.Exit(1)

    @command(
        app,
        "verify",
        section=SECTION,
        examples=(
            "featcache verify cifar10-vgg16 --full",
            "featcache verify cifar10-vgg16 --recompute 16",
        ),
    )
    def verify(
        cache: Annotated[str | None, CACHE] = None,
        full: Annotated[
            bool, Option(help="Read every row, and compare it with its checksum.", flags=("--full",))
        ] = False,
        recompute: Annotated[
            int, Option(help="Run so many random rows through the backbone again.", metavar="<rows>", least=0)
        ] = 0,
        *,
        context: typer.Context,
        which: CacheOptions,
        weights: MovedWeights,
        how: Annotated[ComputeOptions, Only("device")],
        common: Common,
    ) -> None:
        """Check a cache against its checksums or a new computation.

        Without options: the file's size, its header and its tables. A cache that is not sound ends with exit 1.
        --weights and --device belong to --recompute, which takes other rows each time.
        """
        from featcache.cache.catalog import UNFINISHED
        from featcache.cache.verification import verify

        if not recompute and (unused := names_of_given(context, ("weights", "device"))):
            raise WrongUsage(f"--{min(unused)} has no effect without --recompute", hint="--recompute 16")
        entry = which.find(common.features_dir, cache)
        if entry.state == UNFINISHED:
            entry.require_complete()
        # Before the rows are verified, which may take long.
        source = None if entry.spec is None else weights.of(entry.spec.backbone)
        with Terminal(quiet=common.quiet) as terminal:
            checked = verify(
                entry.path, full=full, progress=lambda done, total: terminal.advance("verifying", done, total)
            )
            again = _recompute(entry, recompute, source, how.device, common) if recompute and checked.sound else None
        report = _verification(checked) | ({"recomputed": again} if again is not None else {})
        if common.json:
            print_json(report)
        else:
            _show_verification(checked, again)
        if not checked.sound:
            raise CacheDamaged(
                f"{entry.path} is not sound: {checked.findings[0].what}",
                hint="extract again: sound rows are kept, the others computed",
            )

    @command(
        app,
        "why",
        section=SECTION,
        examples=(
            "featcache why --dataset photos/ --backbone vgg16",
            "featcache why -d photos/ -b vgg16 --exit-code || echo new images",
        ),
    )
    def why(
        backbones: list[BackboneOptions],
        storage: StorageOptions,
        images: ImageOptions,
        columns: ColumnOptions,
        exit_code: Annotated[
            bool,
            Option(help="End with exit code 3 unless every row is there.", flags=("--exit-code",), panel="The result"),
        ] = False,
        *,
        common: Common,
    ) -> None:
        """Say which rows `extract` would compute, and why.

        Takes the options of `featcache extract` and computes nothing. The result is hit (all rows are there), partial
        (which are new, changed or gone), or miss, with the fields in which the nearest caches differ.
        """
        from featcache.extraction.why import why

        if len(backbones) > 1:
            raise WrongUsage(f"expected one --backbone, got {len(backbones)}", hint="ask for each of them")
        with usage_errors():
            request = Request(**merge_fields(images, backbones[0], storage, columns), data_dir=common.data_dir)
        with Terminal(quiet=common.quiet) as terminal:
            found = why(request, reporter=terminal)
        if common.json:
            print_json(found.to_json())
        else:
            _show_why(found, request, common)
        if exit_code and found.state != "hit":
            raise typer.Exit(FOUND)

    @command(
        app,
        "rm",
        section=SECTION,
        examples=(
            "featcache rm cifar10-vgg16",
            "featcache rm data/features/old.h5",
        ),
    )
    def rm(cache: Annotated[str | None, CACHE] = None, *, which: CacheOptions, common: Common) -> None:
        """Remove a cache, or what an unfinished one has so far.

        Name it, or give filters that one cache alone fits.
        """
        from featcache.cache.catalog import remove

        if cache is None and which == CacheOptions():
            raise WrongUsage("expected a cache to remove, got none", hint="featcache ls lists the caches")
        entry = which.find(common.features_dir, cache)
        freed = remove(entry.path)
        if common.json:
            print_json({"removed": str(entry.path), "bytes": freed})
        else:
            print_line(f"removed {human_path(entry.path)}: ", Bold(human_bytes(freed)), " freed")

    @command(
        app,
        "gc",
        section=SECTION,
        examples=(
            "featcache gc",
            "featcache gc --delete",
        ),
    )
    def gc(
        delete: Annotated[bool, Option(help="Remove it; without this, only list it.", flags=("--delete",))] = False,
        *,
        common: Common,
    ) -> None:
        """List caches that no run uses and leftovers, or remove them.

        That is: caches that no run in --runs-dir was trained on, and what dead processes left behind, also among runs
        and digests. A run that cannot be read is named and passed over.
        """
        from featcache.cache.catalog import garbage, list_abandoned, remove_garbage
        from featcache.runs.run import caches_in_use

        now = time.time()
        with Terminal(quiet=common.quiet) as terminal:
            used = caches_in_use(common.runs_dir, terminal.warn)
        found = garbage(common.features_dir, used=used, now=now)
        for folder in (common.data_dir / "digests", common.runs_dir, *common.runs_dir.glob("*/")):
            found += list_abandoned(folder, now)
        if delete:
            for piece in found:
                remove_garbage(piece)
        freed = sum(piece.nbytes for piece in found)
        if common.json:
            pieces = [{"path": str(piece.path), "bytes": piece.nbytes, "reason": piece.reason} for piece in found]
            print_json({"deleted": delete, "garbage": pieces, "bytes": freed})
        elif found:
            print_line(Bold(human_bytes(freed)), " removed" if delete else " can be removed, nothing is yet")
            print_line()
            rows = [(human_path(piece.path), human_bytes(piece.nbytes), piece.reason) for piece in found]
            print_table(rows, header=("path", "size", "reason"), optional=1, shorten=(0,))
            print_next(common, "ls") if delete else print_next(common, "gc", "--delete")
        else:
            print_line("nothing to remove")


def _show_entries(entries: Sequence[CacheEntry], common: Common) -> None:
    """A table of caches with the columns in which there is something to see."""
    columns = {
        "name": [entry.name for entry in entries],
        "images": [f"{entry.rows_total:,}" if entry.rows else "-" for entry in entries],
        "size": [human_bytes(entry.nbytes) for entry in entries],
        "age": [_age(_seconds(entry.created)) for entry in entries],
        "used": [_age(entry.used) for entry in entries],
        "views": [str(entry.spec.views) if entry.spec and entry.spec.views > 1 else "-" for entry in entries],
        "state": ["-" if entry.complete else _state(entry) for entry in entries],
        "layers": [human_list(entry.spec.layer_names, 2) if entry.spec else "-" for entry in entries],
    }
    known = {name: cells for name, cells in columns.items() if name == "name" or {*cells} != {"-"}}
    print_table([*zip(*known.values(), strict=True)], header=[*known], optional="layers" in known, shorten=(0,))
    complete = [entry for entry in entries if entry.complete]
    if complete:
        print_next(common, "info", max(complete, key=lambda entry: entry.created or "").name)
    else:
        _show_command(next((entry.command for entry in entries if entry.command), None), common)


def _show_command(extract: str | None, common: Common) -> None:
    """As the next command a `featcache extract` that is at hand as text."""
    words = shlex.split(extract or "")
    # Images that were handed over from Python have none.
    if words[:2] == ["featcache", "extract"] and not (common.quiet or common.json):
        print_line(f"next: {extract}")


def _show_info(entry: CacheEntry, details: dict[str, Any], common: Common) -> None:
    targets = details.pop("targets", ())
    # It stands as an age among the pairs.
    details.get("provenance", {}).pop("created", None)
    described = [(f"target {one['name']}", describe_target(**one)) for one in targets]
    print_pairs([*_entry_pairs(entry), *described, *_flat(details)])
    kinds = {one["name"]: one["kind"] for one in targets}
    if kinds.get(LABEL) in TARGET_KINDS and "train" in (entry.rows or {}):
        print_next(common, "train-head", entry.name)
    else:
        _show_command(entry.command, common)


def _show_verification(checked: Verification, again: Mapping[str, Any] | None) -> None:
    rows = f", {human_count(checked.rows, 'row')}" if checked.rows else ""
    less = "" if checked.full or checked.findings else "; --full reads every row"
    print_line(
        Bold("sound" if checked.sound else "not sound"),
        f": {human_path(checked.path)} ({human_count(checked.tables, 'table')}{rows} checked{less})",
    )
    print_pairs(_flat({"findings": [asdict(finding) for finding in checked.findings], "recomputed": again}))


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


def _iso_time(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601, in UTC."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _age(then: float | None) -> str:
    if then is None:
        return "-"
    passed = max(0.0, time.time() - then)
    if passed < 48 * 3600:
        return human_seconds(passed) if passed >= 60 else "now"
    return f"{passed / 86400:.0f} days"


def _ago(then: float | None) -> str:
    age = _age(then)
    return {"-": "", "now": "just now"}.get(age, f"{age} ago")


def entry_json(entry: CacheEntry) -> dict[str, Any]:
    """What `ls --json` and `info --json` print about a cache."""
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
        "used": None if entry.used is None else _iso_time(entry.used),
        "problem": entry.problem,
    }


def _entry_pairs(entry: CacheEntry) -> list[tuple[str, str]]:
    pairs = [
        ("name", entry.name),
        ("path", human_path(entry.path)),
        ("state", _state(entry)),
        ("problem", entry.problem or ""),
        ("dataset", entry.set_name or ""),
        ("rows", human_rows(entry.rows or {})),
        ("views", entry.spec.views_description if entry.spec else ""),
        ("skipped", str(entry.skipped or "")),
        ("size", human_bytes(entry.nbytes)),
        ("created", _ago(_seconds(entry.created))),
        ("used", _ago(entry.used)),
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
    """A target as `info --json` has it."""
    from featcache.cache.presentation import count_unlabelled

    column = cache.targets[name]
    return {
        "name": name,
        "kind": column.kind,
        "names": list(column.names),
        "unlabelled": count_unlabelled(cache, name),
        "origin": column.origin,
    }


def describe_target(*, kind: str, names: Sequence[str], unlabelled: int, origin: str, **_: object) -> str:
    """A target in a line: its kind, names, rows without a value, and where it came from."""
    named = f" ({human_list(names, _MOST_LISTED)})" if names else ""
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
            rows += [(prefix + key, human_list([*map(str, item)], _MOST_LISTED))] if item else []
        elif item is not None:
            rows.append((prefix + key, str(item)))
    return rows


def _verification(checked: Verification) -> dict[str, Any]:
    return {
        "path": str(checked.path),
        "sound": checked.sound,
        "full": checked.full,
        "tables": checked.tables,
        "rows": checked.rows,
        "findings": [asdict(finding) for finding in checked.findings],
    }


def _recompute(entry: CacheEntry, rows: int, weights: str | Path | None, device: str, common: Common) -> dict[str, Any]:
    from featcache.backbones.devices import resolve_device
    from featcache.cache.reader import FeatureCache
    from featcache.extraction.recomputation import recompute

    with FeatureCache.open(entry.require_complete()) as opened:
        again = recompute(
            opened,
            rows,
            # Other rows each time, so that repeated checks see more of the cache.
            seed=secrets.randbits(32),
            data_dir=common.data_dir,
            device=resolve_device(device),
            weights=weights,
        )
    return again.to_json()


def _show_why(found: Why, request: Request, common: Common) -> None:
    from featcache.cache.catalog import name_of

    there = f"{found.state}: {found.rows - found.to_compute:,} of {found.rows:,} images"
    print_line(Bold(there), f" are cached ({name_of(found.cache)})")
    for what, ids in (("new", found.new), ("changed", found.changed), ("gone", found.gone)):
        if ids:
            print_line(f"{what}: {human_list(ids, _MOST_LISTED)}")
    for neighbour in found.nearest:
        print_line(f"{neighbour.name} differs:")
        for difference in neighbour.differences:
            print_line(f"  {difference.field}: cached {_short(difference.that)}, requested {_short(difference.this)}")
    if found.state == "hit":
        print_next(common, "info", name_of(found.cache))
    else:
        _show_command(request.command, common)


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    text = "nothing" if value is None else str(value)
    return f"{text[:10]}.." if len(text) == 64 else text
