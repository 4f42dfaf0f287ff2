"""A cache in several files reads like one, and never with a shard that is not its own."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cache_samples import CLASSES, ROWS, a_selection, a_spec, flip, make_cache, tables, write_parts
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.cache.catalog import DAMAGED, describe, discard, find, garbage, list_caches, mark_used, remove
from featcache.cache.donors import Donors
from featcache.cache.manifest import MANIFEST_NAME
from featcache.cache.parts import open_parts
from featcache.cache.reader import FeatureCache
from featcache.cache.sharded import MOST_SHARDS, assemble_sharded
from featcache.cache.spec import Spec
from featcache.cache.verification import verify
from featcache.errors import CacheDamaged, CacheError, CacheNotFound, CacheUnwritable, InvalidOption
from featcache.files import system


def sharded(folder: Path, rows_per_shard: int = 15, spec: Spec | None = None, name: str = "set") -> Path:
    """A sharded cache of the samples' rows: its folder."""
    spec = spec or a_spec()
    parts = folder / f"{name}.parts"
    write_parts(parts, spec, tables())
    return assemble_sharded(
        folder / f"{name}.sharded",
        rows_per_shard=rows_per_shard,
        spec=spec,
        selection=a_selection(),
        set_name="cifar10",
        classes=CLASSES,
        provenance={"created": "2026-11-24T00:00:00+00:00"},
        tables=tables(),
        donors=Donors(open_parts(parts)),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sharded(tmp_path)


@pytest.fixture
def single(tmp_path: Path) -> FeatureCache:
    return FeatureCache.open(make_cache(tmp_path / "single"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.h5"))


@pytest.mark.parametrize("rows_per_shard", [1, 7, 12, 15, 40, 1000])
def test_a_sharded_cache_reads_like_a_single_file(tmp_path: Path, rows_per_shard: int) -> None:
    single = FeatureCache.open(make_cache(tmp_path / "single"))
    with FeatureCache.open(sharded(tmp_path, rows_per_shard)) as cache:
        assert (cache.splits, cache.layers, cache.classes) == (single.splits, single.layers, single.classes)
        assert cache.spec == single.spec and cache.selection == single.selection
        for split in cache.splits:
            ours, theirs = cache[split], single[split]
            assert ours.ids == theirs.ids
            assert np.array_equal(ours.labels, theirs.labels) and np.array_equal(ours.digests, theirs.digests)
            for layer in cache.layers:
                assert np.array_equal(ours.layer(layer)[:], theirs.layer(layer)[:])
                assert ours.layer(layer).shape == theirs.layer(layer).shape
                rows = np.arange(len(ours))
                assert np.array_equal(ours.checksums(layer, rows), theirs.checksums(layer, rows))
    assert len(shards(tmp_path / "set.sharded")) == sum(-(-rows // rows_per_shard) for rows in ROWS.values())


@given(rows=st.lists(st.integers(-ROWS["train"], ROWS["train"] - 1), max_size=60))
@settings(max_examples=60, deadline=None)
def test_rows_come_in_any_order_across_shards(tmp_path_factory: pytest.TempPathFactory, rows: list[int]) -> None:
    base = tmp_path_factory.getbasetemp() / "any-order"
    if not base.exists():
        sharded(base, 7)
    array = FeatureCache.open(base / "set.sharded")["train"].features
    assert np.array_equal(array.gather(rows), array[:][np.array(rows, np.int64)])


def test_a_shard_is_a_cache_of_its_own_that_does_not_pass_for_the_whole(folder: Path) -> None:
    with FeatureCache.open(shards(folder)[0]) as shard, FeatureCache.open(folder) as cache:
        assert np.array_equal(shard["train"].features[:], cache["train"].features[: len(shard["train"])])
        assert shard.spec.fingerprint == cache.spec.fingerprint
        assert shard.selection != cache.selection


def test_a_sharded_cache_pickles_and_gives_rows_to_others(folder: Path, single: FeatureCache) -> None:
    cache = pickle.loads(pickle.dumps(FeatureCache.open(folder)))
    donors = Donors([cache[split] for split in cache.splits])
    located = donors.locate(single["test"].digests)
    assert np.array_equal(donors.gather(cache.layers[0], located), single["test"].features[:])


def _missing(path: Path) -> None:
    path.unlink()


def _short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def _longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0" * 8)


def _swapped(path: Path) -> None:
    other = shards(path.parent)[1]
    shutil.copy(other, path)


def _of_another_spec(path: Path) -> None:
    elsewhere = sharded(path.parent.parent / "other", spec=a_spec(precision="bf16"))
    shutil.copy(shards(elsewhere)[0], path)


def _no_file(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("fault", [_missing, _short, _longer, _swapped, _of_another_spec, _no_file])
def test_a_shard_that_is_not_its_own_is_named(folder: Path, fault: Callable[[Path], None]) -> None:
    victim = shards(folder)[0]
    fault(victim)
    with pytest.raises(CacheDamaged, match=victim.name) as raised:
        FeatureCache.open(folder)
    assert raised.value.hint
    assert not verify(folder).sound


def test_a_shard_swapped_after_opening_raises_instead_of_giving_its_rows(folder: Path) -> None:
    cache = FeatureCache.open(folder)
    cache.close()
    first, second = shards(folder)[:2]
    shutil.copy(second, first)
    with pytest.raises(CacheError):
        cache["train"].features[:3]


def test_a_flipped_bit_in_a_row_of_a_shard_is_found_with_its_row(folder: Path) -> None:
    third = shards(folder)[2]
    with FeatureCache.open(third) as shard:
        place = shard.file.place("train/features/avgpool")
    flip(third, place.offset + 2 * shard["train"].features.shape[1] * 2)
    cache = FeatureCache.open(folder)
    with pytest.raises(CacheDamaged, match="row 32"):
        cache["train"].features[:]
    (finding,) = verify(folder, full=True).findings
    assert finding.rows == (32,)


def test_a_sound_sharded_cache_verifies_in_full(folder: Path) -> None:
    verification = verify(folder, full=True)
    assert verification.sound
    assert verification.rows == sum(ROWS.values()) * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["shards"].reverse(),
        lambda values: values["shards"].pop(),
        lambda values: values.update(version=2),
        lambda values: values["texts"].update(classes='["a"]'),
        lambda values: values["shards"][0].update(file="../elsewhere.h5"),
        lambda values: values.update(format="something"),
    ],
)
def test_a_manifest_that_was_edited_is_refused(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / MANIFEST_NAME
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(CacheError, match=MANIFEST_NAME):
        FeatureCache.open(folder)


def test_views_of_one_image_stand_in_one_shard(tmp_path: Path) -> None:
    spec = a_spec(views=4, view_seed=1)
    cache = FeatureCache.open(sharded(tmp_path, 7, spec))
    rows = [FeatureCache.open(path) for path in shards(tmp_path / "set.sharded")]
    assert [len(one["train"]) for one in rows if "train" in one] == [4] * 10
    assert len(cache["train"]) == 40
    with pytest.raises(InvalidOption, match="views"):
        sharded(tmp_path / "fewer", 3, spec)


def test_too_many_shards_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.cache.sharded.MOST_SHARDS", 5)
    with pytest.raises(InvalidOption, match="at most 5") as raised:
        sharded(tmp_path, 2)
    assert "--shard-rows" in str(raised.value.hint)
    assert not (tmp_path / "set.sharded").exists()
    assert MOST_SHARDS > 5


def test_an_assembly_that_failed_goes_on_with_the_shards_that_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, renamed = system.replace, []

    def fails_at_the_third(source: str | Path, target: str | Path) -> None:
        if str(target).endswith(".h5"):
            renamed.append(target)
            if len(renamed) == 3:
                raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(system, "replace", fails_at_the_third)
    with pytest.raises(CacheUnwritable):
        sharded(tmp_path)
    folder = tmp_path / "set.sharded"
    with pytest.raises(CacheNotFound):
        FeatureCache.open(folder)
    before = {path: path.stat().st_mtime_ns for path in shards(folder)}
    assert len(before) == 2
    renamed.clear()
    monkeypatch.setattr(system, "replace", replace)
    sharded(tmp_path)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert verify(folder, full=True).sound


def test_another_cut_replaces_the_shards_in_one_step(folder: Path, tmp_path: Path) -> None:
    old = set(shards(folder))
    sharded(tmp_path, 20)
    assert len(shards(folder)) == 3 and not old & set(shards(folder))
    assert verify(folder, full=True).sound


# --- on the shelf ------------------------------------------------------------------------------------------


def test_the_shelf_lists_a_sharded_cache_once(folder: Path) -> None:
    shutil.rmtree(folder.parent / "set.parts")
    (entry,) = list_caches(folder.parent)
    assert entry.complete and entry.name == "set" and entry.rows == ROWS
    assert entry.nbytes == sum(path.stat().st_size for path in shards(folder))
    assert find(folder.parent, "se").path == folder
    assert describe(folder).spec == a_spec()


def test_the_shelf_says_that_a_shard_is_missing(folder: Path) -> None:
    shards(folder)[1].unlink()
    entry = describe(folder)
    assert entry.state == DAMAGED and shards(folder)[0].name not in str(entry.problem)
    with pytest.raises(CacheDamaged):
        entry.require_complete()


def test_a_sharded_cache_is_removed_whole(folder: Path) -> None:
    mark_used(folder, now=1.0)
    assert (folder.parent / "set.used").exists()
    assert remove(folder) > 0
    assert not folder.exists() and not (folder.parent / "set.used").exists()


def test_gc_takes_shards_without_a_manifest_and_caches_nobody_uses(folder: Path) -> None:
    shutil.rmtree(folder.parent / "set.parts")
    assert garbage(folder.parent, used=[folder], now=0.0) == []
    (unused,) = garbage(folder.parent, used=[], now=0.0)
    assert unused.reason == "no run uses it"
    (folder / MANIFEST_NAME).unlink()
    (left,) = garbage(folder.parent, used=[folder], now=0.0)
    assert "never put together" in left.reason
    discard(left)
    assert not folder.exists()
