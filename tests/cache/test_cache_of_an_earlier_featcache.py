"""What an earlier featcache made is recognised by its version and left alone; it is never called damaged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cache_samples import CLASSES, a_selection, a_spec, make_cache, tables, write_parts

from featcache.cache.catalog import FOREIGN, candidates, describe, garbage, remove
from featcache.cache.donors import Donors
from featcache.cache.plan import PartsPlan, write_plan
from featcache.cache.reader import FeatureCache
from featcache.cache.sharded import assemble_sharded
from featcache.cache.spec import SPEC_VERSION
from featcache.cache.verification import verify
from featcache.errors import CacheForeign, CacheOutdated

EARLIER = a_spec(version=SPEC_VERSION - 1)


def one_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_cache(folder / "old.h5", EARLIER)


def several_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "old.sharded"
    # Its writer reads back what it has written, as the writer of the time did.
    monkeypatch.setattr("featcache.cache.spec.SPEC_VERSION", EARLIER.version)
    return make_cache_of_several_files(path)


def make_cache_of_several_files(path: Path) -> Path:
    parts = write_parts(path.with_name("made.parts"), EARLIER, tables())
    return assemble_sharded(
        path,
        spec=EARLIER,
        selection=a_selection(),
        set_name="cifar10",
        classes=CLASSES,
        provenance={"created": "2026-11-24T06:00:00+00:00"},
        tables=tables(),
        donors=Donors(parts),
        rows_per_shard=20,
    )


def unfinished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "old.parts"
    rows = {split: len(table) for split, table in tables().items()}
    created = "2026-11-24T06:00:00+00:00"
    plan = PartsPlan(
        spec=EARLIER, selection=a_selection(), set_name="cifar10", classes=CLASSES, rows=rows, created=created
    )
    write_plan(path, plan)
    write_parts(path, EARLIER, tables())
    return path


@pytest.fixture(params=[one_file, several_files, unfinished])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make: Callable[[Path, pytest.MonkeyPatch], Path] = request.param
    with pytest.MonkeyPatch.context() as monkeypatch:
        return make(tmp_path, monkeypatch)


def test_it_is_listed_as_made_by_an_earlier_featcache(path: Path) -> None:
    entry = describe(path)
    assert (entry.state, entry.spec, entry.complete) == (FOREIGN, None, False)
    assert entry.problem == f"{path} was made by an earlier featcache; extract again"
    assert path not in [one.path for one in candidates(path.parent)]


@pytest.mark.parametrize("use", [FeatureCache.open, verify, partial(verify, full=True)])
def test_opening_or_verifying_it_says_so(path: Path, use: Callable[[Path], object]) -> None:
    if path.suffix != ".parts":
        with pytest.raises(CacheOutdated, match="made by an earlier featcache; extract again"):
            use(path)


def test_it_is_left_alone(path: Path) -> None:
    before = sorted(path.parent.rglob("*"))
    assert path not in [one.path for one in garbage(path.parent, used=(), now=1e12)]
    with pytest.raises(CacheForeign, match="is left alone"):
        remove(path)
    assert sorted(path.parent.rglob("*")) == before
