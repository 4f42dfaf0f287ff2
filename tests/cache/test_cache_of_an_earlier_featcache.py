"""Caches of an earlier featcache are recognised by their version and not changed; they are never called damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cache_samples import a_spec, make_cache, make_segments

from featcache.cache.catalog import FOREIGN, caches_with_spec, describe, garbage, remove
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import SPEC_VERSION
from featcache.cache.verification import verify
from featcache.errors import CacheForeign, CacheOutdated

GOLDEN = Path(__file__).parent / "golden"
EARLIER = a_spec(version=SPEC_VERSION - 1)


def one_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_cache(folder / "old.h5", EARLIER)


def several_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Its writer reads what it has written, as the writer of that version did.
    monkeypatch.setattr("featcache.cache.spec.SPEC_VERSION", EARLIER.version)
    return make_segments(folder / "old", EARLIER)


def a_file_of_format_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with labels instead of targets."""
    return Path(shutil.copy(GOLDEN / "cache-1.h5", folder))


def segments_of_format_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return shutil.copytree(GOLDEN / "segments-1", folder / "segments-1")


def an_earlier_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of a featcache that kept unfinished rows in other files."""
    (folder / "old.parts").mkdir()
    (folder / "old.parts" / "plan.json").write_text("{}")
    return folder / "old.parts"


@pytest.fixture(params=[one_file, several_files, a_file_of_format_1, segments_of_format_1, an_earlier_folder])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make: Callable[[Path, pytest.MonkeyPatch], Path] = request.param
    with pytest.MonkeyPatch.context() as monkeypatch:
        return make(tmp_path, monkeypatch)


def test_it_is_listed_as_made_by_an_earlier_featcache(path: Path) -> None:
    entry = describe(path)
    assert (entry.state, entry.spec, entry.complete) == (FOREIGN, None, False)
    assert entry.problem == f"{path} was made by an earlier featcache; extract again"
    assert path not in [one.path for one in caches_with_spec(path.parent)]


@pytest.mark.parametrize("use", [FeatureCache.open, verify, partial(verify, full=True)])
def test_opening_or_verifying_it_is_an_error_with_its_version(path: Path, use: Callable[[Path], object]) -> None:
    if path.suffix != ".parts":
        with pytest.raises(CacheOutdated, match="made by an earlier featcache; extract again"):
            use(path)


def test_it_is_not_changed(path: Path) -> None:
    before = sorted(path.parent.rglob("*"))
    assert path not in [one.path for one in garbage(path.parent, used=(), now=1e12)]
    with pytest.raises(CacheForeign, match="is not removed"):
        remove(path)
    assert sorted(path.parent.rglob("*")) == before
