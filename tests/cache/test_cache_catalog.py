"""Caches in a folder are listed quickly and completely, found by any unambiguous name, and removed safely."""

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
    caches_with_spec,
    find,
    garbage,
    list_caches,
    mark_used,
    remove,
    remove_garbage,
)
from featcache.cache.locks import lock_cache
from featcache.cache.manifest import MANIFEST_NAME
from featcache.cache.spec import cache_name
from featcache.cache.tables import Skipped
from featcache.errors import CacheDamaged, CacheForeign, CacheIncomplete, CacheNotFound
from featcache.files import tmp_name

DONE = cache_name("cifar10", a_spec(), a_selection())
HALF = cache_name("cifar10", a_spec(precision="bf16"), a_selection())


def write_unfinished(folder: Path) -> Path:
    tables = {"train": a_table("train", 40), "test": a_table("test", 12)}
    provenance = {"created": "2026-11-24T07:00:00+00:00"}
    spec = a_spec(precision="bf16")
    return make_segments(folder, spec, tables, segment_rows=10, written=2, provenance=provenance)


@pytest.fixture
def features_dir(tmp_path: Path) -> Path:
    """A folder with a complete, an unfinished, a damaged and a foreign cache."""
    features = tmp_path / "features"
    skipped = [Skipped(id="x", split="train", reason="truncated")]
    make_cache(features / f"{DONE}.h5", skipped=skipped)
    write_unfinished(features / HALF)
    damaged = features / "damaged-vgg16-11111111-11111111.h5"
    shutil.copy(features / f"{DONE}.h5", damaged)
    os.truncate(damaged, 30_000)
    (features / "foreign.h5").write_text("no cache")
    (features / "notes.txt").write_text("a note")
    return features


def test_every_cache_in_a_folder_is_listed_with_its_state(features_dir: Path) -> None:
    entries = {entry.name: entry for entry in list_caches(features_dir)}
    assert {name: entry.state for name, entry in entries.items()} == {
        DONE: "complete",
        HALF: "unfinished",
        "damaged-vgg16-11111111-11111111": "damaged",
        "foreign": "foreign",
    }
    done = entries[DONE]
    assert done == CacheEntry(
        path=features_dir / f"{DONE}.h5",
        state="complete",
        nbytes=(features_dir / f"{DONE}.h5").stat().st_size,
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
    assert [entry.name for entry in caches_with_spec(features_dir)] == sorted([DONE, HALF])


def test_only_a_complete_cache_may_be_used(features_dir: Path) -> None:
    assert find(features_dir, DONE).require_complete() == features_dir / f"{DONE}.h5"
    with pytest.raises(CacheIncomplete, match="20 of 52") as caught:
        find(features_dir, HALF).require_complete()
    assert "featcache extract" in str(caught.value.hint)
    with pytest.raises(CacheDamaged) as damage:
        find(features_dir, "damaged").require_complete()
    assert "featcache verify" in str(damage.value.hint)
    with pytest.raises(CacheForeign):
        find(features_dir, "foreign").require_complete()


def test_a_missing_folder_has_no_caches_and_a_file_is_an_error(tmp_path: Path) -> None:
    assert list_caches(tmp_path / "absent") == []
    (tmp_path / "dangling").symlink_to("nowhere")
    assert list_caches(tmp_path / "dangling") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheForeign, match="expected a folder"):
        list_caches(tmp_path / "file")


@pytest.mark.parametrize("damage", ["manifest", "trailer", "empty", "folder", "dangling"])
def test_no_damage_stops_the_listing(features_dir: Path, damage: str) -> None:
    done = features_dir / f"{DONE}.h5"
    if damage == "manifest":
        (features_dir / HALF / MANIFEST_NAME).write_text("{")
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
    states = [entry.state for entry in list_caches(features_dir)]
    assert "complete" not in states or damage == "manifest"
    assert len(states) == (3 if damage == "dangling" else 4)


def test_an_invalid_manifest_is_listed_as_damaged_and_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / MANIFEST_NAME).write_text("{")
    (entry,) = list_caches(tmp_path)
    assert entry.state == "damaged"
    remove(entry.path)
    assert list_caches(tmp_path) == []


def test_a_cache_is_found_by_name_prefix_and_path(features_dir: Path) -> None:
    path = features_dir / f"{DONE}.h5"
    for ref in (DONE, f"{DONE}.h5", DONE[:-3], path, str(path)):
        assert find(features_dir, ref).path == path
    assert find(features_dir, HALF[: len(HALF) - 9]).path == features_dir / HALF
    assert find(features_dir, "damaged").state == "damaged"


def test_an_ambiguous_or_unknown_name_lists_the_candidates(features_dir: Path) -> None:
    with pytest.raises(CacheNotFound) as several:
        find(features_dir, "cifar10-vgg16")
    assert DONE in str(several.value.hint)
    assert HALF in str(several.value.hint)
    with pytest.raises(CacheNotFound) as near:
        find(features_dir, DONE.replace("cifar10", "cifar100"))
    assert DONE in str(near.value.hint)
    with pytest.raises(CacheNotFound) as nothing:
        find(features_dir / "absent", "x")
    assert "featcache extract" in str(nothing.value.hint)
    for ref in (features_dir / "none.h5", "none.h5", "elsewhere/none"):
        with pytest.raises(CacheNotFound):
            find(features_dir, ref)


def test_a_packed_cache_is_preferred_to_segments_of_the_same_name(features_dir: Path) -> None:
    write_unfinished(features_dir / DONE)
    assert find(features_dir, DONE).path == features_dir / f"{DONE}.h5"
    assert [entry.state for entry in list_caches(features_dir) if entry.name == DONE] == ["complete"]


def test_the_last_use_is_recorded_next_to_the_cache(features_dir: Path) -> None:
    path = features_dir / f"{DONE}.h5"
    before = path.read_bytes()
    assert find(features_dir, DONE).used is None
    mark_used(path, now=1_800_000_000.0)
    assert find(features_dir, DONE).used == 1_800_000_000.0
    assert path.read_bytes() == before
    mark_used(features_dir / "absent" / "c.h5", now=1.0)


def test_removing_a_cache_removes_its_mark_of_last_use_too(features_dir: Path) -> None:
    path = features_dir / f"{DONE}.h5"
    mark_used(path, now=1.0)
    size = path.stat().st_size
    assert remove(path) == size
    assert not path.exists()
    assert remove(features_dir / HALF) > 0
    assert remove(features_dir / "damaged-vgg16-11111111-11111111.h5") == 30_000
    with pytest.raises(CacheForeign):
        remove(features_dir / "foreign.h5")
    with pytest.raises(CacheForeign):
        remove(features_dir / "notes.txt")
    with pytest.raises(CacheNotFound):
        remove(path)
    assert sorted(one.name for one in features_dir.iterdir()) == ["foreign.h5", "notes.txt"]


def test_garbage_is_what_is_not_needed_and_nothing_else(features_dir: Path) -> None:
    now = time.time()
    other = features_dir / "other-vgg16-22222222-22222222.h5"
    shutil.copy(features_dir / f"{DONE}.h5", other)
    write_unfinished(features_dir / DONE)
    (features_dir / "gone-vgg16-33333333-33333333.used").touch()
    pid = os.fork()
    if pid == 0:
        (features_dir / tmp_name("c.h5")).write_text("half")
        (features_dir / HALF / tmp_name("train-0")).write_text("half")
        os._exit(0)
    os.waitpid(pid, 0)
    (features_dir / tmp_name("alive.h5")).write_text("half")
    found = {(one.path.name.split(".tmp-")[0], one.reason) for one in garbage(features_dir, used=[other], now=now)}
    assert found == {
        ("c.h5", "left by a process that has ended"),
        ("train-0", "left by a process that has ended"),
        (DONE, "segments of a packed cache"),
        (f"{DONE}.h5", "no run uses it"),
        ("gone-vgg16-33333333-33333333.used", "belongs to no cache"),
    }
    with lock_cache(features_dir, DONE):
        assert DONE not in {one.path.stem for one in garbage(features_dir, used=[other], now=now)}
    for one in garbage(features_dir, used=[other], now=now):
        remove_garbage(one)
    assert garbage(features_dir, used=[other], now=now) == []
    states = sorted(entry.state for entry in list_caches(features_dir))
    assert states == ["complete", "damaged", "foreign", "unfinished"]
    assert find(features_dir, HALF).rows_done == 20


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


def test_every_public_name_of_the_package_can_be_imported() -> None:
    import featcache.cache

    for name in featcache.cache.__all__:
        assert getattr(featcache.cache, name).__module__.startswith("featcache.cache.")
    with pytest.raises(AttributeError):
        _ = featcache.cache.surprise
