"""Caches in a folder: listed quickly and completely, found by any unambiguous name, tidied without harm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_samples import a_selection, a_spec, a_table, flip, make_cache, make_segments

from featcache.cache.catalog import (
    CacheEntry,
    candidates,
    discard,
    find,
    garbage,
    list_caches,
    mark_used,
    remove,
)
from featcache.cache.locks import locked
from featcache.cache.manifest import MANIFEST_NAME
from featcache.cache.spec import cache_name
from featcache.cache.tables import Skipped
from featcache.errors import CacheDamaged, CacheForeign, CacheIncomplete, CacheNotFound
from featcache.files import tmp_name

DONE = cache_name("cifar10", a_spec(), a_selection())
HALF = cache_name("cifar10", a_spec(precision="bf16"), a_selection())


def unfinished(folder: Path) -> Path:
    tables = {"train": a_table("train", 40), "test": a_table("test", 12)}
    provenance = {"created": "2026-11-24T07:00:00+00:00"}
    spec = a_spec(precision="bf16")
    return make_segments(folder, spec, tables, segment_rows=10, written=2, provenance=provenance)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A complete, an unfinished, a damaged and a foreign one."""
    features = tmp_path / "features"
    skipped = [Skipped(id="x", split="train", reason="truncated")]
    make_cache(features / f"{DONE}.h5", skipped=skipped)
    unfinished(features / HALF)
    damaged = features / "damaged-vgg16-11111111-11111111.h5"
    shutil.copy(features / f"{DONE}.h5", damaged)
    os.truncate(damaged, 30_000)
    (features / "foreign.h5").write_text("no cache")
    (features / "notes.txt").write_text("somebody's own")
    return features


def test_everything_on_the_shelf_is_listed_with_its_state(shelf: Path) -> None:
    entries = {entry.name: entry for entry in list_caches(shelf)}
    assert {name: entry.state for name, entry in entries.items()} == {
        DONE: "complete",
        HALF: "unfinished",
        "damaged-vgg16-11111111-11111111": "damaged",
        "foreign": "foreign",
    }
    done = entries[DONE]
    assert done == CacheEntry(
        path=shelf / f"{DONE}.h5",
        state="complete",
        nbytes=(shelf / f"{DONE}.h5").stat().st_size,
        set_name="cifar10",
        spec=a_spec(),
        selection=a_selection(),
        rows={"train": 40, "test": 12},
        rows_done=52,
        skipped=1,
        created="2026-11-24T06:00:00+00:00",
    )
    half = entries[HALF]
    assert (half.rows_done, half.rows_total, half.created) == (20, 52, "2026-11-24T07:00:00+00:00")
    assert half.spec == a_spec(precision="bf16")
    assert "damaged" in str(entries["damaged-vgg16-11111111-11111111"].problem)
    assert [entry.name for entry in candidates(shelf)] == sorted([DONE, HALF])


def test_only_a_complete_cache_may_be_used(shelf: Path) -> None:
    assert find(shelf, DONE).require_complete() == shelf / f"{DONE}.h5"
    with pytest.raises(CacheIncomplete, match="20 of 52") as caught:
        find(shelf, HALF).require_complete()
    assert "featcache extract" in str(caught.value.hint)
    with pytest.raises(CacheDamaged) as damage:
        find(shelf, "damaged").require_complete()
    assert "featcache verify" in str(damage.value.hint)
    with pytest.raises(CacheForeign):
        find(shelf, "foreign").require_complete()


def test_a_folder_that_is_absent_is_an_empty_shelf_and_a_file_an_error(tmp_path: Path) -> None:
    assert list_caches(tmp_path / "absent") == []
    (tmp_path / "dangling").symlink_to("nowhere")
    assert list_caches(tmp_path / "dangling") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheForeign, match="expected a folder"):
        list_caches(tmp_path / "file")


@pytest.mark.parametrize("damage", ["manifest", "trailer", "empty", "folder", "dangling"])
def test_nothing_on_the_shelf_raises_out_of_the_listing(shelf: Path, damage: str) -> None:
    done = shelf / f"{DONE}.h5"
    if damage == "manifest":
        (shelf / HALF / MANIFEST_NAME).write_text("{")
    elif damage == "trailer":
        flip(done, done.stat().st_size - 100)
    elif damage == "empty":
        os.truncate(done, 0)
    elif damage == "folder":
        done.unlink()
        done.mkdir()
    else:
        done.unlink()
        done.symlink_to("nowhere")
    states = [entry.state for entry in list_caches(shelf)]
    assert "complete" not in states or damage == "manifest"
    assert len(states) == (3 if damage == "dangling" else 4)


def test_a_manifest_that_is_none_is_listed_as_damaged_and_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / MANIFEST_NAME).write_text("{")
    (entry,) = list_caches(tmp_path)
    assert entry.state == "damaged"
    remove(entry.path)
    assert list_caches(tmp_path) == []


def test_a_cache_is_found_by_name_prefix_and_path(shelf: Path) -> None:
    path = shelf / f"{DONE}.h5"
    for ref in (DONE, f"{DONE}.h5", DONE[:-3], path, str(path)):
        assert find(shelf, ref).path == path
    assert find(shelf, HALF[: len(HALF) - 9]).path == shelf / HALF
    assert find(shelf, "damaged").state == "damaged"


def test_an_ambiguous_or_unknown_name_lists_what_was_meant(shelf: Path) -> None:
    with pytest.raises(CacheNotFound) as several:
        find(shelf, "cifar10-vgg16")
    assert DONE in str(several.value.hint)
    assert HALF in str(several.value.hint)
    with pytest.raises(CacheNotFound) as near:
        find(shelf, DONE.replace("cifar10", "cifar100"))
    assert DONE in str(near.value.hint)
    with pytest.raises(CacheNotFound) as nothing:
        find(shelf / "absent", "x")
    assert "featcache extract" in str(nothing.value.hint)
    for ref in (shelf / "none.h5", "none.h5", "elsewhere/none"):
        with pytest.raises(CacheNotFound):
            find(shelf, ref)


def test_a_packed_cache_goes_before_segments_of_the_same_name(shelf: Path) -> None:
    unfinished(shelf / DONE)
    assert find(shelf, DONE).path == shelf / f"{DONE}.h5"
    assert [entry.state for entry in list_caches(shelf) if entry.name == DONE] == ["complete"]


def test_use_is_noted_beside_the_cache(shelf: Path) -> None:
    path = shelf / f"{DONE}.h5"
    before = path.read_bytes()
    assert find(shelf, DONE).used is None
    mark_used(path, now=1_800_000_000.0)
    assert find(shelf, DONE).used == 1_800_000_000.0
    assert path.read_bytes() == before
    mark_used(shelf / "absent" / "c.h5", now=1.0)


def test_removing_takes_the_cache_and_what_lies_beside_it(shelf: Path) -> None:
    path = shelf / f"{DONE}.h5"
    mark_used(path, now=1.0)
    size = path.stat().st_size
    assert remove(path) == size
    assert not path.exists()
    assert remove(shelf / HALF) > 0
    assert remove(shelf / "damaged-vgg16-11111111-11111111.h5") == 30_000
    with pytest.raises(CacheForeign):
        remove(shelf / "foreign.h5")
    with pytest.raises(CacheForeign):
        remove(shelf / "notes.txt")
    with pytest.raises(CacheNotFound):
        remove(path)
    assert sorted(one.name for one in shelf.iterdir()) == ["foreign.h5", "notes.txt"]


def test_garbage_is_what_nobody_needs_and_nothing_else(shelf: Path) -> None:
    now = time.time()
    other = shelf / "other-vgg16-22222222-22222222.h5"
    shutil.copy(shelf / f"{DONE}.h5", other)
    unfinished(shelf / DONE)
    (shelf / "gone-vgg16-33333333-33333333.used").touch()
    pid = os.fork()
    if pid == 0:
        (shelf / tmp_name("c.h5")).write_text("half")
        (shelf / HALF / tmp_name("train-0")).write_text("half")
        os._exit(0)
    os.waitpid(pid, 0)
    (shelf / tmp_name("alive.h5")).write_text("half")
    found = {(one.path.name.split(".tmp-")[0], one.reason) for one in garbage(shelf, used=[other], now=now)}
    assert found == {
        ("c.h5", "left by a process that is gone"),
        ("train-0", "left by a process that is gone"),
        (DONE, "segments of a packed cache"),
        (f"{DONE}.h5", "no run uses it"),
        ("gone-vgg16-33333333-33333333.used", "belongs to no cache"),
    }
    with locked(shelf, DONE):
        assert DONE not in {one.path.stem for one in garbage(shelf, used=[other], now=now)}
    for one in garbage(shelf, used=[other], now=now):
        discard(one)
    assert garbage(shelf, used=[other], now=now) == []
    assert sorted(entry.state for entry in list_caches(shelf)) == ["complete", "damaged", "foreign", "unfinished"]
    assert find(shelf, HALF).rows_done == 20


def test_a_hundred_caches_are_listed_without_heavy_imports(tmp_path: Path) -> None:
    first = make_cache(tmp_path / "features" / "cache-000.h5")
    for number in range(1, 100):
        shutil.copy(first, first.with_name(f"cache-{number:03d}.h5"))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from featcache.cache import list_caches\n"
        "entries = list_caches(Path(sys.argv[1]))\n"
        "assert len(entries) == 100 and all(entry.complete for entry in entries)\n"
        "assert not {'torch', 'h5py', 'numpy'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(first.parent)], check=True)


def test_every_public_name_of_the_package_can_be_had() -> None:
    import featcache.cache

    for name in featcache.cache.__all__:
        assert getattr(featcache.cache, name).__module__.startswith("featcache.cache.")
    with pytest.raises(AttributeError):
        _ = featcache.cache.surprise
