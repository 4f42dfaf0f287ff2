"""A cache in several files is read like a single file, and never with a segment of another cache."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from cache_samples import (
    ROWS,
    a_spec,
    a_table,
    an_info,
    flip,
    make_cache,
    make_segments,
    rows_for,
    tables,
    write_segment,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.cache.catalog import DAMAGED, describe, find, garbage, list_caches, mark_used, remove, remove_garbage
from featcache.cache.donors import Donors
from featcache.cache.manifest import MANIFEST_NAME, MOST_SEGMENTS, TARGETS_FILES, Manifest, Segment
from featcache.cache.reader import FeatureCache
from featcache.cache.segment_draft import SegmentDraft
from featcache.cache.segments import complete_manifest, open_segments
from featcache.cache.verification import verify
from featcache.columns import LABEL
from featcache.errors import CacheDamaged, CacheError, CacheForeign, CacheIncomplete


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_segments(tmp_path / "set", segment_rows=15)


@pytest.fixture
def single(tmp_path: Path) -> FeatureCache:
    return FeatureCache.open(make_cache(tmp_path / "single" / "one.h5"))


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("t*-?????????.h5"), key=lambda path: (path.name.startswith("test"), path.name))


@pytest.mark.parametrize("segment_rows", [1, 7, 12, 15, 40, 1000])
def test_a_cache_in_segments_reads_like_a_single_file(tmp_path: Path, segment_rows: int) -> None:
    single = FeatureCache.open(make_cache(tmp_path / "single.h5"))
    with FeatureCache.open(make_segments(tmp_path / "set", segment_rows=segment_rows)) as cache:
        assert (cache.splits, cache.layers, cache.classes) == (single.splits, single.layers, single.classes)
        assert cache.spec == single.spec and cache.selection == single.selection
        for split in cache.splits:
            ours, expected = cache[split], single[split]
            assert ours.ids == expected.ids
            assert np.array_equal(ours.labels, expected.labels) and np.array_equal(ours.digests, expected.digests)
            for layer in cache.layers:
                assert np.array_equal(ours.layer(layer)[:], expected.layer(layer)[:])
                assert ours.layer(layer).shape == expected.layer(layer).shape
                rows = np.arange(len(ours))
                assert np.array_equal(ours.checksums(layer, rows), expected.checksums(layer, rows))
    assert len(segments(tmp_path / "set")) == sum(-(-rows // segment_rows) for rows in ROWS.values())


@given(rows=st.lists(st.integers(-ROWS["train"], ROWS["train"] - 1), max_size=60))
@settings(max_examples=60, deadline=None)
def test_rows_are_read_in_any_order_across_segments(tmp_path_factory: pytest.TempPathFactory, rows: list[int]) -> None:
    base = tmp_path_factory.getbasetemp() / "any-order"
    if not base.exists():
        make_segments(base / "set", segment_rows=7)
    array = FeatureCache.open(base / "set")["train"].features
    assert np.array_equal(array.gather(rows), array[:][np.array(rows, np.int64)])


def test_a_segment_is_a_cache_file_that_is_not_mistaken_for_the_whole_cache(folder: Path) -> None:
    with FeatureCache.open(segments(folder)[0]) as segment, FeatureCache.open(folder) as cache:
        assert np.array_equal(segment["train"].features[:], cache["train"].features[: len(segment["train"])])
        assert segment.spec.fingerprint == cache.spec.fingerprint
        assert segment.selection != cache.selection


def test_a_cache_in_segments_can_be_pickled_and_its_rows_reused(folder: Path, single: FeatureCache) -> None:
    cache = pickle.loads(pickle.dumps(FeatureCache.open(folder)))
    donors = Donors([cache[split] for split in cache.splits])
    located = donors.locate(single["test"].digests)
    assert np.array_equal(donors.gather(cache.layers[0], located), single["test"].features[:])


def _missing(path: Path) -> None:
    path.unlink()


def _short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def _append_bytes(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0" * 8)


def _swap(path: Path) -> None:
    other = segments(path.parent)[1]
    shutil.copy(other, path)


def _of_another_spec(path: Path) -> None:
    elsewhere = make_segments(path.parent.parent / "other", a_spec(precision="bf16"), segment_rows=15)
    shutil.copy(segments(elsewhere)[0], path)


def _no_file(path: Path) -> None:
    path.write_bytes(b"")


def open_files(folder: Path) -> set[str]:
    """The names of the files in a folder that this process has open; empty where the system does not tell."""
    links = Path("/proc/self/fd").iterdir() if Path("/proc").exists() else ()
    paths = [link.readlink() for link in links if link.is_symlink()]
    return {path.name for path in paths if path.parent == folder}


@pytest.mark.parametrize("fault", [_missing, _short, _append_bytes, _swap, _of_another_spec, _no_file])
def test_a_segment_of_another_cache_is_named(folder: Path, fault: Callable[[Path], None]) -> None:
    victim = segments(folder)[0]
    fault(victim)
    with pytest.raises(CacheDamaged, match=victim.name) as raised:
        FeatureCache.open(folder)
    assert raised.value.hint
    assert open_files(folder) == set()
    assert not verify(folder).sound


def test_a_targets_file_of_another_cache_is_named(folder: Path, tmp_path: Path) -> None:
    turned = {name: replace(table, targets={LABEL: table.targets[LABEL][::-1]}) for name, table in tables().items()}
    other = make_segments(tmp_path / "other", split_tables=turned, segment_rows=15)
    shutil.copy(other / TARGETS_FILES[0], folder)
    with pytest.raises(CacheDamaged, match=TARGETS_FILES[0]):
        FeatureCache.open(folder)
    assert open_files(folder) == set()


def test_a_closed_cache_has_no_open_file_and_opens_its_files_again(folder: Path) -> None:
    cache = FeatureCache.open(folder)
    rows = cache["train"].features[:]
    if Path("/proc").exists():
        assert open_files(folder) == {path.name for path in folder.glob("*.h5")}
    cache.close()
    assert open_files(folder) == set()
    assert np.array_equal(cache["train"].features[:], rows)


def test_small_arrays_that_several_readers_share_cannot_be_changed(folder: Path) -> None:
    split = FeatureCache.open(folder)["train"]
    for shared in (split.encoded_ids, split.digests, split.labels):
        with pytest.raises(ValueError, match="read-only"):
            shared[0] = shared[1]


def _other_spec(manifest: Manifest) -> Manifest:
    return replace(manifest, texts={**manifest.texts, "spec": a_spec(precision="bf16").to_json()})


def _other_rows(manifest: Manifest) -> Manifest:
    first, second, *more = manifest.segments
    return replace(manifest, segments=(replace(first, rows=14), replace(second, rows=16), *more))


def _other_size(manifest: Manifest) -> Manifest:
    first, *more = manifest.segments
    return replace(manifest, segments=(replace(first, nbytes=(first.nbytes or 0) + 8), *more))


def _other_segment(manifest: Manifest) -> Manifest:
    first, *more = manifest.segments
    return replace(manifest, segments=(replace(first, trailer=more[0].trailer), *more))


def _other_targets(manifest: Manifest) -> Manifest:
    return replace(manifest, texts=an_info(classes=("cat", "dog", "newt")).texts())


def _other_targets_file(manifest: Manifest) -> Manifest:
    assert manifest.targets is not None
    return replace(manifest, targets=replace(manifest.targets, nbytes=manifest.targets.nbytes + 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_spec, "segment train-000000000.h5 was computed under another spec"),
        (_other_rows, r"segment train-000000000.h5 has rows {'train': 15}, expected 14"),
        (_other_size, r"segment train-000000000.h5: expected \d+ bytes"),
        (_other_segment, "segment train-000000000.h5 is another file"),
        (_other_targets, "targets-1.h5 has other targets"),
        (_other_targets_file, r"targets-1.h5: expected \d+ bytes"),
    ],
)
def test_a_valid_manifest_of_other_files_is_refused(
    folder: Path, change: Callable[[Manifest], Manifest], message: str
) -> None:
    change(Manifest.read(folder)).write(folder)
    with pytest.raises(CacheError, match=message):
        FeatureCache.open(folder)
    assert open_files(folder) == set()


def test_a_whole_cache_is_no_segment_because_it_has_targets(tmp_path: Path) -> None:
    some = {"train": a_table("train", 9)}
    folder = make_segments(tmp_path / "set", split_tables=some, written=0)
    make_cache(folder / "train-000000000.h5", split_tables=some)
    complete_manifest(folder, Manifest.read(folder), an_info(), some).write(folder)
    with pytest.raises(CacheForeign, match="holds targets"):
        FeatureCache.open(folder)


def test_segments_that_are_scaled_differently_are_refused(tmp_path: Path) -> None:
    some, spec = {"train": a_table("train", 9)}, a_spec(dtype="uint8", precision="uint8")
    folder = make_segments(tmp_path / "set", spec, split_tables=some, segment_rows=5, written=0)
    manifest = Manifest.read(folder)
    for number, segment in enumerate(manifest.segments):
        table = some["train"].take(slice(5 * number, 5 * number + 5))
        scaling = {layer: (0.5, float(number)) for layer in spec.layer_names}
        draft = SegmentDraft(folder / segment.file, an_info(spec), split="train", ids=table.ids, scaling=scaling)
        draft.put(np.arange(len(table)), rows_for(spec, table.digests))
        draft.publish(table.digests)
    complete_manifest(folder, manifest, an_info(spec), some).write(folder)
    with pytest.raises(CacheForeign, match="another scale or offset"):
        FeatureCache.open(folder)


def test_a_segment_swapped_after_opening_raises_instead_of_giving_its_rows(folder: Path) -> None:
    cache = FeatureCache.open(folder)
    cache.close()
    first, second = segments(folder)[:2]
    shutil.copy(second, first)
    with pytest.raises(CacheError):
        cache["train"].features[:3]


def test_a_flipped_bit_in_a_row_of_a_segment_is_found_with_its_row(folder: Path) -> None:
    third = segments(folder)[2]
    with FeatureCache.open(third) as segment:
        place = segment.file.place("train/features/avgpool")
    flip(third, place.offset + 2 * segment["train"].features.shape[1] * 2)
    cache = FeatureCache.open(folder)
    with pytest.raises(CacheDamaged, match="row 32"):
        cache["train"].features[:]
    (finding,) = verify(folder, full=True).findings
    assert finding.rows == (32,)


def test_a_sound_cache_in_segments_verifies_in_full(folder: Path) -> None:
    verification = verify(folder, full=True)
    assert verification.sound
    assert verification.rows == sum(ROWS.values()) * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["segments"].reverse(),
        lambda values: values["segments"].pop(),
        lambda values: values.update(version=3),
        lambda values: values["texts"].update(targets="[]"),
        lambda values: values["segments"][0].update(file="../elsewhere.h5"),
        lambda values: values.update(format="something"),
        lambda values: values.update(complete="yes"),
        lambda values: values["segments"][0].update(rows=float("nan")),
        lambda values: values["segments"][0].update(rows=3),
        lambda values: values["texts"].pop("spec"),
    ],
)
def test_a_manifest_that_was_edited_is_refused(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / MANIFEST_NAME
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(CacheError, match=MANIFEST_NAME):
        FeatureCache.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["segments"][0].update(rows=float("nan")),
        lambda values: values["segments"][0].update(rows=-1),
        lambda values: values["segments"][0].update(file="../elsewhere.h5"),
        lambda values: values["segments"].append(values["segments"][0]),
        lambda values: values["texts"].pop("spec"),
        lambda values: values["texts"].update(spec="\ud800"),
        lambda values: values.update(complete=1),
        lambda values: values.update(segment_rows=None),
        lambda values: values.pop("command"),
        lambda values: values.update(targets=None),
        lambda values: values.pop("targets"),
        lambda values: values["targets"].update(file="../targets-1.h5"),
        lambda values: values["targets"].update(bytes=-1),
        lambda values: values["segments"][0].update(file="targets-2.h5"),
    ],
)
def test_an_invalid_manifest_with_a_correct_digest_is_refused(
    folder: Path, change: Callable[[dict[str, object]], object]
) -> None:
    path = folder / MANIFEST_NAME
    values = json.loads(path.read_text())
    values.pop("xxh3_128")
    change(values)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    values["xxh3_128"] = xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))
    path.write_text(json.dumps(values))
    with pytest.raises(CacheError):
        FeatureCache.open(folder)
    assert describe(folder).state in ("foreign", "damaged")


@pytest.mark.parametrize("split", ["train", "test"])
def test_segments_may_be_empty_and_then_the_cache_lacks_their_split(tmp_path: Path, split: str) -> None:
    some = {"train": a_table("train", 9), "test": a_table("test", 9)}
    folder = make_segments(tmp_path / "set", split_tables=some, segment_rows=5, written=0)
    manifest = Manifest.read(folder)
    for segment in manifest.segments:
        first = int(segment.file[-12:-3])
        rows = slice(first, first + 5) if segment.split == split else slice(0, 0)
        write_segment(folder, an_info(), segment, some[segment.split].take(rows))
    complete_manifest(folder, manifest, an_info(), {split: some[split]}).write(folder)
    with FeatureCache.open(folder) as cache:
        assert cache.splits == (split,) and len(cache[split]) == 9
        assert cache[split].ids == some[split].ids
        assert len(cache[split].features[:]) == 9
    assert describe(folder).rows == {split: 9}


def test_an_unfinished_cache_is_refused_with_how_much_is_missing_and_the_command(tmp_path: Path) -> None:
    folder = make_segments(tmp_path / "set", segment_rows=15, written=2)
    for use in (FeatureCache.open, verify, lambda path: describe(path).require_complete()):
        with pytest.raises(CacheIncomplete, match="30 of 52 rows are written") as raised:
            use(folder)
        assert "featcache extract -b vgg16" in str(raised.value.hint)


def test_rows_of_an_unfinished_cache_can_be_reused(tmp_path: Path, single: FeatureCache) -> None:
    folder = make_segments(tmp_path / "set", segment_rows=15, written=2)
    second = segments(folder)[1]
    with second.open("r+b") as file:
        file.truncate(1000)
    reported: list[str] = []
    ((segment, split),) = open_segments(folder, Manifest.read(folder), reported.append)
    assert segment == Segment.plan("train", 0, 15)
    assert np.array_equal(split.gather(split.spec.layer_names[0], slice(None)), single["train"].features[:15])
    assert second.name in reported[0]


def test_a_file_of_another_split_is_no_segment_of_an_unfinished_cache(tmp_path: Path) -> None:
    folder = make_segments(tmp_path / "set", segment_rows=15, written=4)
    shutil.copy(folder / "test-000000000.h5", folder / "train-000000015.h5")
    found = open_segments(folder, Manifest.read(folder))
    assert [segment.file for segment, _ in found] == [
        "train-000000000.h5",
        "train-000000030.h5",
        "test-000000000.h5",
    ]


def test_more_segments_than_may_be_open_are_refused(tmp_path: Path) -> None:
    rows = MOST_SEGMENTS + 1
    folder = make_segments(tmp_path / "set", split_tables={"train": a_table("train", rows)}, segment_rows=1, written=0)
    with pytest.raises(CacheForeign, match=f"{rows} segments"):
        Manifest.read(folder)


# --- in a folder of caches ------------------------------------------------------------------------------------------


def test_a_cache_in_segments_is_listed_once(folder: Path) -> None:
    (entry,) = list_caches(folder.parent)
    assert entry.complete and entry.name == "set" and entry.rows == ROWS
    assert entry.nbytes == sum(path.stat().st_size for path in folder.glob("*.h5"))
    assert find(folder.parent, "se").path == folder
    assert describe(folder).spec == a_spec()


def test_a_missing_segment_is_listed_as_damage(folder: Path) -> None:
    segments(folder)[1].unlink()
    entry = describe(folder)
    assert entry.state == DAMAGED and segments(folder)[0].name not in str(entry.problem)
    with pytest.raises(CacheDamaged):
        entry.require_complete()


def test_a_cache_in_segments_is_removed_whole(folder: Path) -> None:
    mark_used(folder, now=1.0)
    assert (folder.parent / "set.used").exists()
    assert remove(folder) > 0
    assert not folder.exists() and not (folder.parent / "set.used").exists()


def test_gc_lists_segments_without_a_manifest_and_caches_that_no_run_uses(folder: Path) -> None:
    assert garbage(folder.parent, used=[folder], now=0.0) == []
    # A project that was moved still uses its caches.
    assert garbage(folder.parent, used=[Path("/elsewhere") / folder.name], now=0.0) == []
    (unused,) = garbage(folder.parent, used=[], now=0.0)
    assert unused.reason == "no run uses it"
    (folder / MANIFEST_NAME).unlink()
    (left,) = garbage(folder.parent, used=[folder], now=0.0)
    assert left.reason == "segments without a manifest"
    remove_garbage(left)
    assert not folder.exists()


def test_a_folder_of_the_user_is_no_garbage(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.h5").write_text("")
    (tmp_path / "mine" / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    assert garbage(tmp_path, used=[], now=0.0) == []
    assert list_caches(tmp_path) == []
