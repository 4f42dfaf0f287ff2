from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_caches import Blobs, blobs, write_cache
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from featcache.cache.reader import FeatureArray, FeatureCache
from featcache.errors import HeadError, InvalidOption, UnknownName
from featcache.heads.config import HeadConfig
from featcache.rows import batches as batches_module
from featcache.rows.batches import (
    Batch,
    Batches,
    ResidentBatches,
    StreamedBatches,
    epoch_order,
    epoch_windows,
    open_batches,
    window_rows,
)
from featcache.rows.cuts import SplitRows, cut_cache
from featcache.rows.features import FeatureRows, choose_layers
from featcache.rows.prefetch import read_ahead
from featcache.training.preparation import open_prepared, prepare

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cow")


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 rows and windows of 32, for rows of 32 bytes: a small set is streamed like a large one."""
    monkeypatch.setattr(batches_module, "BLOCK_BYTES", 4 * 32)
    monkeypatch.setattr(batches_module, "WINDOW_BYTES", 32 * 32)
    monkeypatch.setattr(batches_module, "WHOLE_BYTES", 32 * 32)
    monkeypatch.setattr(batches_module, "TAKEN_BYTES", 3 * 32)


def train_rows(cache: FeatureCache, layers: tuple[str, ...] = ("avgpool",)) -> FeatureRows:
    return FeatureRows.of(cache, cut_cache(cache, val_fraction=0.2, val_seed=42).train, layers)


def make_batches(
    kind: type[ResidentBatches] | type[StreamedBatches], rows: FeatureRows, seed: int = 0
) -> ResidentBatches | StreamedBatches:
    return kind(rows, batch_size=8, seed=seed, device=CPU)


def assert_same(one: Sequence[Batch], other: Sequence[Batch]) -> None:
    assert len(one) == len(other)
    for (features, labels), (other_features, other_labels) in zip(one, other, strict=True):
        assert torch.equal(features, other_features) and torch.equal(labels, other_labels)


@given(
    rows=st.integers(1, 400),
    batch_size=st.integers(1, 50),
    row_bytes=st.integers(1, 40 << 20),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
)
def test_every_epoch_is_a_permutation(rows: int, batch_size: int, row_bytes: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, batch_size=batch_size, row_bytes=row_bytes, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(rows))
    window = window_rows(rows, batch_size, row_bytes)
    assert window == rows or window % batch_size == 0


@given(
    rows=st.integers(1, 5000),
    batch_size=st.integers(1, 50),
    # Blocks of 1 to 64 rows, windows of 32 and more.
    row_bytes=st.integers(1 << 10, 1 << 20),
    epoch=st.integers(0, 3),
)
def test_windows_are_those_of_the_whole_order(rows: int, batch_size: int, row_bytes: int, epoch: int) -> None:
    order = {"batch_size": batch_size, "row_bytes": row_bytes, "seed": 3, "epoch": epoch}
    window = window_rows(rows, batch_size, row_bytes)
    # The whole order at once, by a simple implementation.
    generator = torch.Generator().manual_seed(batches_module._epoch_seed("order", 3, epoch))
    whole = torch.arange(rows)
    if rows > window:
        block = max(1, (64 << 10) // row_bytes)
        blocks = torch.randperm(-(-rows // block), generator=generator)
        whole = torch.cat([whole[number * block : (number + 1) * block] for number in blocks.tolist()])
    pieces = [some[torch.randperm(len(some), generator=generator)] for some in torch.split(whole, window)]
    windows = list(epoch_windows(rows, **order))
    assert [some.tolist() for some in windows] == [some.tolist() for some in pieces]
    assert torch.equal(epoch_order(rows, **order), torch.cat(windows))


def test_the_first_window_of_many_rows_is_computed_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    permuted: list[int] = []
    randperm = torch.randperm

    def spy(count: int, *, generator: torch.Generator) -> torch.Tensor:
        permuted.append(count)
        return randperm(count, generator=generator)

    monkeypatch.setattr(torch, "randperm", spy)
    windows = epoch_windows(10_000_000, batch_size=64, row_bytes=4096, seed=0, epoch=0)
    assert len(next(windows)) == 8192
    assert permuted == [10_000_000 // 16, 8192]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("kind", [ResidentBatches, StreamedBatches])
def test_the_features_of_some_rows_are_those_of_all(
    tmp_path: Path, kind: type[ResidentBatches] | type[StreamedBatches]
) -> None:
    batches = make_batches(kind, train_rows(write_cache(tmp_path, {"train": blobs(133)}, classes=CLASSES)))
    everything = torch.cat([features for features, _ in batches.in_order()])
    positions = torch.arange(3, 100, 7)
    for reuse in (False, True):
        some = torch.cat([features.clone() for features in batches.features_of(positions, reuse=reuse)])
        assert torch.equal(some, everything[positions])


@pytest.mark.usefixtures("small_windows")
def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {
        (seed, epoch): tuple(epoch_order(100, batch_size=8, row_bytes=32, seed=seed, epoch=epoch).tolist())
        for seed in (0, 1, 2**31)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 6
    torch.manual_seed(99)
    again = epoch_order(100, batch_size=8, row_bytes=32, seed=1, epoch=1)
    assert tuple(again.tolist()) == orders[1, 1]


@pytest.mark.usefixtures("small_windows")
def test_windows_of_a_large_set_hold_runs_of_neighbours() -> None:
    order = epoch_order(128, batch_size=8, row_bytes=32, seed=0, epoch=0)
    for window in torch.split(order, 32):
        blocks, sizes = np.unique(window.numpy() // 4, return_counts=True)
        assert len(blocks) == 8 and set(sizes) == {4}


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_resident_and_streamed_give_the_same_batches(tmp_path: Path, epoch: int) -> None:
    rows = train_rows(write_cache(tmp_path, {"train": blobs(133)}, classes=CLASSES))
    resident, streamed = make_batches(ResidentBatches, rows, seed=5), make_batches(StreamedBatches, rows, seed=5)
    assert_same(list(resident.epoch(epoch)), list(streamed.epoch(epoch)))
    assert_same(list(resident.in_order()), list(streamed.in_order()))


@pytest.mark.usefixtures("small_windows")
def test_batches_larger_than_a_window_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = blobs(333), blobs(333, seed=1, dim=5)
    train = Blobs(features=one.features, labels=one.labels, more={"late": two.features})
    rows = train_rows(write_cache(tmp_path, {"train": train}, classes=CLASSES), ("avgpool", "late"))
    monkeypatch.setattr(batches_module, "PIECE_BYTES", 10 * rows.row_bytes)
    resident, streamed = (kind(rows, batch_size=64, seed=5, device=CPU) for kind in (ResidentBatches, StreamedBatches))
    requested: list[int] = []
    read = FeatureRows.read

    def spy(self: FeatureRows, positions: NDArray[np.int64], out: Sequence[NDArray[Any]]) -> None:
        requested.append(len(positions))
        assert np.all(np.diff(positions) > 0)
        read(self, positions, out)

    expected = list(resident.epoch(3))
    monkeypatch.setattr(FeatureRows, "read", spy)
    for reuse in (False, True):
        assert_same(expected, [(features.clone(), labels) for features, labels in streamed.epoch(3, reuse=reuse)])
    assert max(requested) == 10


def test_batches_are_the_rows_of_the_cache(tmp_path: Path) -> None:
    train = blobs(50)
    rows = train_rows(write_cache(tmp_path, {"train": train}, classes=CLASSES))
    batches = make_batches(ResidentBatches, rows)
    assert len(batches) == 5 == len(list(batches.epoch(0)))
    order = epoch_order(40, batch_size=8, row_bytes=32, seed=0, epoch=3).numpy()
    features = torch.cat([features for features, _ in batches.epoch(3)])
    labels = torch.cat([labels for _, labels in batches.epoch(3)])
    chosen = rows.chosen.rows[order]
    assert features.dtype == torch.float32 and labels.dtype == torch.int64
    assert np.array_equal(features.numpy(), train.features[chosen].astype(np.float32))
    assert np.array_equal(labels.numpy(), train.labels[chosen])


@pytest.mark.usefixtures("small_windows")
def test_streaming_holds_one_window_and_reads_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = train_rows(write_cache(tmp_path, {"train": blobs(200)}, classes=CLASSES))
    requested: list[NDArray[np.int64]] = []
    second = threading.Event()
    gather = FeatureArray.gather

    def spy(self: FeatureArray, rows: NDArray[np.int64], out: NDArray[np.generic] | None = None) -> NDArray[np.generic]:
        requested.append(rows)
        if len(requested) == 2:
            second.set()
        return gather(self, rows, out)

    monkeypatch.setattr(FeatureArray, "gather", spy)
    batches = iter(make_batches(StreamedBatches, rows).epoch(0))
    next(batches)
    assert second.wait(10) and len(requested) == 2
    list(batches)
    assert [len(window) for window in requested] == [32] * 5
    assert all(np.all(np.diff(window) > 0) for window in requested)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("kind", [ResidentBatches, StreamedBatches])
def test_batches_in_a_reused_buffer_have_the_same_values(
    tmp_path: Path, kind: type[ResidentBatches] | type[StreamedBatches]
) -> None:
    one, two = blobs(133), blobs(133, seed=1, dim=5)
    train = Blobs(features=one.features, labels=one.labels, more={"late": two.features})
    rows = train_rows(write_cache(tmp_path, {"train": train}, classes=CLASSES), ("avgpool", "late"))
    batches = make_batches(kind, rows)
    for fresh, reused in (
        (batches.epoch(2), batches.epoch(2, reuse=True)),
        (batches.in_order(), batches.in_order(reuse=True)),
    ):
        assert_same(list(fresh), [(features.clone(), labels) for features, labels in reused])
    places = {features.data_ptr() for features, _ in batches.epoch(0, reuse=True)}
    assert len(places) == 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
@pytest.mark.parametrize("kind", [ResidentBatches, StreamedBatches])
def test_a_batch_may_be_written_to(
    tmp_path: Path, kind: type[ResidentBatches] | type[StreamedBatches], dtype: str
) -> None:
    train = Blobs(features=np.abs(blobs(50).features).astype(dtype), labels=blobs(50).labels)
    batches = make_batches(kind, train_rows(write_cache(tmp_path, {"train": train}, classes=CLASSES)))
    before = list(batches.in_order())
    for read in (batches.in_order, partial(batches.epoch, 0)):
        for features, _ in read():
            features.zero_()
    assert_same(list(batches.in_order()), before)


def test_the_next_item_is_read_while_one_is_used() -> None:
    began = [threading.Event() for _ in range(4)]

    def read(number: int) -> int:
        began[number].set()
        return number

    got = []
    for number in read_ahead(read, range(4)):
        got.append(number)
        assert number == 3 or began[number + 1].wait(10)
        assert number >= 2 or not began[number + 2].is_set()
    assert got == [0, 1, 2, 3]
    assert list(read_ahead(read, ())) == []


@pytest.mark.usefixtures("small_windows")
def test_the_same_rows_can_be_streamed_twice_at_the_same_time(tmp_path: Path) -> None:
    batches = make_batches(StreamedBatches, train_rows(write_cache(tmp_path, {"train": blobs(200)}, classes=CLASSES)))
    alone = list(batches.epoch(0)), list(batches.epoch(1)), list(batches.in_order())
    for _ in range(2):
        together = list(zip(batches.epoch(0), batches.epoch(1), strict=True))
        assert_same([one for one, _ in together], alone[0])
        assert_same([other for _, other in together], alone[1])
        assert_same(list(batches.in_order()), alone[2])


def test_an_error_in_reading_is_raised_in_its_turn() -> None:
    def read(number: int) -> int:
        if number == 2:
            raise HeadError("two")
        return number

    got: list[int] = []
    with pytest.raises(HeadError, match="two"):
        got.extend(read_ahead(read, range(4)))
    assert got == [0, 1]


def test_the_reading_thread_ends_with_the_iteration() -> None:
    def readers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("featcache-ahead")]

    reading = read_ahead(lambda number: number, range(1000))
    assert isinstance(reading, Generator)
    assert next(reading) == 0 and len(readers()) == 1
    reading.close()
    assert readers() == []


def test_features_are_resident_when_they_fit_and_streamed_when_not(tmp_path: Path) -> None:
    rows = train_rows(write_cache(tmp_path, {"train": blobs(50)}, classes=CLASSES))
    size = 40 * 16 * 2
    kinds = [
        type(open_batches(rows, batch_size=8, seed=0, device=CPU, resident_bytes=budget))
        for budget in (size, size - 1, None)
    ]
    assert kinds == [ResidentBatches, StreamedBatches, ResidentBatches]


@pytest.mark.parametrize(
    ("resident_bytes", "whole_bytes", "kinds"),
    [
        (160 * 32 + 40 * 32, 0, (ResidentBatches, ResidentBatches)),
        (160 * 32, 1 << 20, (ResidentBatches, StreamedBatches)),
        (160 * 32 - 1, 1 << 20, (StreamedBatches, ResidentBatches)),
        # Memory is scarce: as if val had 8 GB and train 32 GB.
        (160 * 32 - 1, 40 * 32 - 1, (StreamedBatches, StreamedBatches)),
    ],
)
def test_a_large_val_is_streamed_where_train_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resident_bytes: int,
    whole_bytes: int,
    kinds: tuple[type[Batches], type[Batches]],
) -> None:
    monkeypatch.setattr(batches_module, "WHOLE_BYTES", whole_bytes)
    config = HeadConfig(head="linear")
    prepared = prepare(write_cache(tmp_path, {"train": blobs(200)}), config, device=CPU)
    train, val = open_prepared(prepared, config, resident_bytes=resident_bytes)
    assert (type(train), type(val)) == kinds


def test_resident_features_keep_the_caches_dtype(tmp_path: Path) -> None:
    rows = train_rows(write_cache(tmp_path, {"train": blobs(50)}, classes=CLASSES))
    batches = ResidentBatches(rows, batch_size=8, seed=0, device=CPU)
    assert batches.resident_bytes == 40 * 16 * 2
    assert [tensor.dtype for tensor in batches._stored] == [torch.float16]


def test_pixels_are_scaled(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 12), dtype=np.uint8)
    train = Blobs(features=pixels, labels=np.arange(60) % 3)
    scaling = {"avgpool": (1 / 127.5, -1.0)}
    rows = train_rows(write_cache(tmp_path, {"train": train}, classes=CLASSES, scaling=scaling))
    expected = (pixels[rows.chosen.rows] / 255 - 0.5) / 0.5
    for kind in (ResidentBatches, StreamedBatches):
        features = torch.cat([features for features, _ in make_batches(kind, rows).in_order()])
        assert features.numpy() == pytest.approx(expected, abs=1e-6)


def test_layers_are_concatenated_in_the_requested_order(tmp_path: Path) -> None:
    one, two = blobs(50), blobs(50, seed=1, dim=5)
    train = Blobs(features=one.features, labels=one.labels, more={"late": two.features})
    cache = write_cache(tmp_path, {"train": train}, classes=CLASSES)
    rows = train_rows(cache, ("late", "avgpool"))
    assert rows.feature_dim == 21
    chosen = rows.chosen.rows
    expected = np.concatenate([two.features[chosen], one.features[chosen]], axis=1).astype(np.float32)
    for kind in (ResidentBatches, StreamedBatches):
        features = torch.cat([features for features, _ in make_batches(kind, rows).in_order()])
        assert np.array_equal(features.numpy(), expected)


def test_layer_is_never_guessed(tmp_path: Path) -> None:
    one = blobs(50)
    train = Blobs(features=one.features, labels=one.labels, more={"late": blobs(50, dim=5).features})
    cache = write_cache(tmp_path, {"train": train}, classes=CLASSES)
    assert choose_layers(cache, ("late",)) == ("late",)
    with pytest.raises(InvalidOption, match="2 layers"):
        choose_layers(cache, None)
    with pytest.raises(UnknownName, match="layer") as raised:
        choose_layers(cache, ("avgpol",))
    assert "avgpool" in str(raised.value.hint)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_that_are_not_finite_are_named(tmp_path: Path, value: float, dtype: str) -> None:
    train = blobs(50)
    features = train.features.astype(dtype)
    features[17, 3] = features[31, 0] = value
    cache = write_cache(tmp_path, {"train": Blobs(features=features, labels=train.labels)}, classes=CLASSES)
    chosen = SplitRows(source="train", rows=np.arange(50), targets=train.labels)
    rows = FeatureRows.of(cache, chosen, ("avgpool",))
    for kind in (ResidentBatches, StreamedBatches):
        with pytest.raises(HeadError, match=r"layer avgpool, train rows 17, 31 \(first: train/00017\)"):
            list(make_batches(kind, rows).epoch(0))


def test_rows_of_huge_values_are_finite_all_the_same(tmp_path: Path) -> None:
    features = np.full((30, 8), 3e38, np.float32)
    cache = write_cache(tmp_path, {"train": Blobs(features=features, labels=np.arange(30) % 3)}, classes=CLASSES)
    assert len(list(make_batches(ResidentBatches, train_rows(cache)).epoch(0))) == 3
