"""Cached features as batches: one iterable, whether the features sit in memory or are read as they are needed.

    rows = FeatureRows.of(cache, cut.train, layers=("avgpool",))
    batches = open_batches(rows, batch_size=64, seed=0, device=device)
    for features, targets in batches.epoch(0):    # float32 (B, D), and int64 (B,) or float32 (B, C), on the device
        ...

The order of an epoch is a pure function of its number, the seed, the batch size and the width of a row; where the
features lie does not change it. Small sets are permuted whole. Larger ones are permuted by blocks of neighbouring
rows, and then row by row within windows that fit in memory: so a disk reads runs instead of single rows. Windows are
made one at a time, so the first batch of ten million rows does not wait for the order of the last. While one window
is used, a thread reads the next.

Rows of a train part with augmented views are counted view after view: row v * n + i is view v of image i of n. An
epoch is all of them, or with `draw` every image once, in a view that is drawn from the seed and the epoch's number.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, tee
from mmap import ACCESS_COPY, mmap
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.rows.devices import RESIDENT_SHARE, free_bytes
from featcache.rows.features import FeatureRows, slices
from featcache.rows.prefetch import read_ahead
from featcache.rows.scaling import scale_stored

# Features float32 (B, D), and targets: int64 (B,) for classes, float32 (B, C) for several classes and for numbers.
Batch = tuple[Tensor, Tensor]

# Neighbouring rows that stay together when a large set is shuffled: long enough to read at full speed.
BLOCK_BYTES = 64 << 10
# Rows that are shuffled among each other; streaming holds two such windows in memory.
WINDOW_BYTES = 32 << 20
# A set of this size is one window.
WHOLE_BYTES = 128 << 20
# What is read at a time of a batch that is larger than a window; again there are two.
PIECE_BYTES = 8 << 20
# As stored, taken together on the way into a batch: it stays in the processor's cache.
TAKEN_BYTES = 1 << 20


class Memory:
    """Where a batch's features are put: always elsewhere, or with `reuse` always in the same place."""

    def __init__(self, *, reuse: bool) -> None:
        self._reuse = reuse
        self._rooms: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, wide: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room of shape (rows, wide); `name` tells apart what is needed at the same time."""
        room = self._rooms.get(name)
        if room is None or len(room) < rows:
            if self._reuse and device.type == "cpu":
                room = _mapped(rows, wide, dtype)
            else:
                room = torch.empty((rows, wide), dtype=dtype, device=device)
            if self._reuse:
                self._rooms[name] = room
        return room[:rows]


class Epochs(Protocol):
    """What a head is trained and judged on, wherever its features come from."""

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""
        ...

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        """The rows of epoch `number` in its order. With `reuse` a batch may be written over the one before."""
        ...

    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        """All rows once, as they stand."""
        ...


class Batches(ABC):
    """Batches of features and targets on one device.

    `draw`: an epoch has every image once, in one of its views, instead of all views of all images.
    """

    def __init__(
        self, rows: FeatureRows, *, batch_size: int, seed: int, device: torch.device, draw: bool = False
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.draw = draw
        self.device = device
        self._iterated = 0
        # Of the images: their views have the same.
        self._targets = _target_tensor(rows.chosen.targets).to(device)

    def __len__(self) -> int:
        """Batches an epoch has; the last may be short."""
        return -(-self.epoch_rows // self.batch_size)

    @property
    def epoch_rows(self) -> int:
        """Rows an epoch has."""
        return self.rows.images if self.draw else len(self.rows)

    def __iter__(self) -> Iterator[Batch]:
        """The next epoch, the first time epoch 0."""
        # Counted when the first batch is taken: Lightning asks for iterators that it does not use.
        number, self._iterated = self._iterated, self._iterated + 1
        yield from self.epoch(number)

    @property
    def feature_dim(self) -> int:
        """Width D of a batch."""
        return self.rows.feature_dim

    @property
    def targets(self) -> Tensor:
        """Targets of all rows as they stand in the cache, view after view, on the device.

        int64 (N,) for classes; float32 (N, C) for several classes and for numbers.
        """
        return self._targets if self.rows.views == 1 else torch.cat([self._targets] * self.rows.views)

    @property
    def resident_bytes(self) -> int:
        """Bytes of features that stay on the device."""
        return 0

    def reordered(self, *, seed: int, batch_size: int, draw: bool) -> Self:
        """The same rows, wherever they lie already, in the order of another seed, batch size and kind of epoch."""
        other = copy.copy(self)
        other.seed, other.batch_size, other.draw = seed, batch_size, draw
        return other

    @abstractmethod
    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        """The rows of epoch `number` in its order: features and targets.

        `reuse`: every batch of features is written over the one before. Fresh memory for large batches costs more
        than all that is done with it.
        """

    @abstractmethod
    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        """All rows once, as they stand in the cache, in batches of a size that suits evaluation."""

    @abstractmethod
    def features_of(self, positions: Tensor, *, reuse: bool = False) -> Iterator[Tensor]:
        """The features of some rows, at ascending `positions` int64 (n,) on the CPU, in batches: float32 (B, D)."""

    def _order(self, number: int) -> Iterator[Tensor]:
        windows = epoch_windows(
            self.epoch_rows,
            batch_size=self.batch_size,
            row_bytes=self.rows.row_bytes,
            seed=self.seed,
            epoch=number,
        )
        if not self.draw or self.rows.views == 1:
            return windows
        return drawn_views(windows, images=self.rows.images, views=self.rows.views, seed=self.seed, epoch=number)

    def _targets_of(self, chosen: Tensor) -> Tensor:
        # Of rows int64 (n,), on the device.
        return self._targets.index_select(0, chosen if self.rows.views == 1 else chosen % self.rows.images)

    def _values(self, stored: Sequence[Tensor], memory: Memory) -> Tensor:
        # (B, d) a layer, as stored -> float32 (B, D).
        values = memory.take("values", len(stored[0]), self.feature_dim, torch.float32, self.device)
        return self._fill(values, stored)

    def _selected(self, stored: Sequence[Tensor], chosen: Tensor, memory: Memory) -> Tensor:
        # The same for the rows `chosen`, a few at a time.
        values = memory.take("values", len(chosen), self.feature_dim, torch.float32, self.device)
        for part in self._taken(len(chosen)):
            taken = []
            for number, tensor in enumerate(stored):
                some = chosen[part]
                room = memory.take(f"taken {number}", len(some), tensor.shape[1], tensor.dtype, self.device)
                taken.append(torch.index_select(tensor, 0, some, out=room))
            self._fill(values[part], taken)
        return values

    def _fill(self, values: Tensor, stored: Sequence[Tensor]) -> Tensor:
        start = 0
        for tensor, array in zip(stored, self.rows.arrays, strict=True):
            part = values[:, start : start + tensor.shape[1]]
            scale_stored(part.copy_(tensor), float(array.scale), float(array.offset))
            start += tensor.shape[1]
        return values

    def _taken(self, rows: int) -> Iterator[slice]:
        return slices(rows, max(1, TAKEN_BYTES // self.rows.row_bytes))


class ResidentBatches(Batches):
    """All features lie on the device, in the dtype of the cache; a batch is converted when it is taken."""

    def __init__(
        self, rows: FeatureRows, *, batch_size: int, seed: int, device: torch.device, draw: bool = False
    ) -> None:
        super().__init__(rows, batch_size=batch_size, seed=seed, device=device, draw=draw)
        self._stored = load_rows(rows, device)

    @property
    def resident_bytes(self) -> int:
        """Bytes of features that stay on the device: all of them."""
        return len(self.rows) * self.rows.row_bytes

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        memory = Memory(reuse=reuse)
        for window in self._order(number):
            # Windows are whole batches, so these are the same as of the whole order.
            for chosen in torch.split(window.to(self.device), self.batch_size):
                yield self._selected(self._stored, chosen, memory), self._targets_of(chosen)

    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        memory = Memory(reuse=reuse)
        for part in slices(len(self.rows), self.rows.block_rows):
            chosen = torch.arange(part.start, part.stop, device=self.device)
            yield self._values([tensor[part] for tensor in self._stored], memory), self._targets_of(chosen)

    def features_of(self, positions: Tensor, *, reuse: bool = False) -> Iterator[Tensor]:
        memory = Memory(reuse=reuse)
        for chosen in torch.split(positions, self.rows.block_rows):
            yield self._selected(self._stored, chosen.to(self.device), memory)


class StreamedBatches(Batches):
    """Features stay in the cache: one window of rows is in use, and a thread reads the next.

    A batch that is larger than a window is put together from pieces, and lies in memory as float32 only.
    """

    def __init__(
        self, rows: FeatureRows, *, batch_size: int, seed: int, device: torch.device, draw: bool = False
    ) -> None:
        super().__init__(rows, batch_size=batch_size, seed=seed, device=device, draw=draw)
        # What windows are read into, while it is not used: fresh memory costs as much as reading.
        self._rooms: list[list[Tensor]] = []

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        memory = Memory(reuse=reuse)
        window = window_rows(self.epoch_rows, self.batch_size, self.rows.row_bytes)
        if window == self.batch_size and window * self.rows.row_bytes > WINDOW_BYTES:
            yield from self._large_batches(number, memory)
            return
        for chosen, stored, place in self._windows(self._order(number), window):
            for part in slices(len(chosen), self.batch_size):
                yield self._selected(stored, place[part], memory), self._targets_of(chosen[part])

    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        memory = Memory(reuse=reuse)
        window = self.rows.block_rows
        parts = slices(len(self.rows), window)
        for chosen, stored, _ in self._windows((torch.arange(part.start, part.stop) for part in parts), window):
            yield self._values(stored, memory), self._targets_of(chosen)

    def features_of(self, positions: Tensor, *, reuse: bool = False) -> Iterator[Tensor]:
        memory = Memory(reuse=reuse)
        window = self.rows.block_rows
        for _, stored, _ in self._windows(torch.split(positions, window), window):
            yield self._values(stored, memory)

    def _large_batches(self, number: int, memory: Memory) -> Iterator[Batch]:
        # Every window is one batch. Its pieces follow each other in the file, not in the batch: a disk reads runs.
        most = max(1, PIECE_BYTES // self.rows.row_bytes)
        batches, ahead = tee(self._order(number))
        pieces = self._windows((piece for batch in ahead for piece in torch.split(batch.sort().values, most)), most)
        for batch in batches:
            values = memory.take("values", len(batch), self.feature_dim, torch.float32, self.device)
            for place in torch.split(batch.argsort().to(self.device), most):
                _, stored, _ = next(pieces)
                self._put(values, place, stored, memory)
            yield values, self._targets_of(batch.to(self.device))

    def _put(self, values: Tensor, place: Tensor, stored: Sequence[Tensor], memory: Memory) -> None:
        # (n, d) a layer, as stored -> the rows at `place` of float32 (B, D), a few at a time.
        for part in self._taken(len(place)):
            some = memory.take("put", len(place[part]), self.feature_dim, torch.float32, self.device)
            values.index_copy_(0, place[part], self._fill(some, [tensor[part] for tensor in stored]))

    def _windows(self, wanted: Iterable[Tensor], largest: int) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
        """For each window: its rows, what is stored of them in the file's order, and where each then lies."""
        rooms = [self._room(min(largest, len(self.rows))) for _ in range(2)]
        turns = cycle(rooms)

        def read(chosen: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
            stored = [tensor[: len(chosen)] for tensor in next(turns)]
            order = np.argsort(chosen.numpy())
            self.rows.read(chosen.numpy()[order], [tensor.numpy() for tensor in stored])
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            return chosen, stored, torch.from_numpy(place)

        try:
            for chosen, stored, place in read_ahead(read, wanted):
                yield chosen.to(self.device), [tensor.to(self.device) for tensor in stored], place.to(self.device)
        finally:
            self._rooms += rooms

    def _room(self, rows: int) -> list[Tensor]:
        # Taken away, so that two who read at the same time do not write over each other.
        for number, room in enumerate(self._rooms):
            if len(room[0]) >= rows:
                return self._rooms.pop(number)
        self._rooms.clear()
        return [_mapped(rows, one.shape[1], torch.from_numpy(one).dtype) for one in self.rows.empty(0)]


def open_batches(
    rows: FeatureRows,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    resident_bytes: int | None = None,
    draw: bool = False,
) -> Batches:
    """Resident batches if the rows fit, else streamed ones, with the same batches in the same order.

    `draw`: as Batches have it. `resident_bytes`: the most that features may take on the device; None for a share of
    what is free.
    """
    budget = int(free_bytes(device) * RESIDENT_SHARE) if resident_bytes is None else resident_bytes
    kind = ResidentBatches if len(rows) * rows.row_bytes <= budget else StreamedBatches
    return kind(rows, batch_size=batch_size, seed=seed, device=device, draw=draw)


def epoch_order(rows: int, *, batch_size: int, row_bytes: int, seed: int, epoch: int) -> Tensor:
    """The order of `rows` rows in one epoch: int64 (rows,), a permutation. All `epoch_windows` together."""
    return torch.cat(
        list(epoch_windows(rows, batch_size=batch_size, row_bytes=row_bytes, seed=seed, epoch=epoch)),
    )


def epoch_windows(rows: int, *, batch_size: int, row_bytes: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The order of `rows` rows in one epoch, a window at a time: int64 (n,), together a permutation.

    A set of one window is permuted whole. A larger one: blocks of neighbours are permuted, the result is cut into
    windows of `window_rows`, and each window is permuted when it is asked for.
    """
    generator = torch.Generator().manual_seed(_epoch_seed("order", seed, epoch))
    window = window_rows(rows, batch_size, row_bytes)
    if rows <= window:
        yield torch.randperm(rows, generator=generator)
        return
    block = max(1, BLOCK_BYTES // row_bytes)
    blocks = torch.randperm(-(-rows // block), generator=generator)
    for part in slices(rows, window):
        piece = _rows_of_blocks(blocks, block, rows, part)
        yield piece[torch.randperm(len(piece), generator=generator)]


def drawn_views(windows: Iterable[Tensor], *, images: int, views: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """One row for each image in `windows`, int64 (n,) each, in a view that is drawn: the plain one among them.

    The order of the images is not touched: with one view, or equal ones, an epoch is that of plain images.
    """
    generator = torch.Generator().manual_seed(_epoch_seed("views", seed, epoch))
    for chosen in windows:
        yield torch.randint(views, (len(chosen),), generator=generator).mul_(images).add_(chosen)


def _rows_of_blocks(blocks: Tensor, block: int, rows: int, part: slice) -> Tensor:
    """Those at `part` of all `rows` rows, block after block in the order of `blocks`."""
    lacking = len(blocks) * block - rows
    # The last block of the set may be short, and lies anywhere: what follows it moves up.
    follows = (int(blocks.argmax()) + 1) * block - lacking
    place = torch.arange(part.start, part.stop)
    place += lacking * (place >= follows)
    return blocks[place // block] * block + place % block


def window_rows(rows: int, batch_size: int, row_bytes: int) -> int:
    """Rows of a window of a set of `rows`: all of a small one, else whole batches, so that none spans two windows."""
    if rows * row_bytes <= WHOLE_BYTES:
        return rows
    return max(1, WINDOW_BYTES // row_bytes // batch_size) * batch_size


def _epoch_seed(what: str, seed: int, epoch: int) -> int:
    # Torch's CPU generator keeps 32 bits of a seed, so both numbers have to be mixed into those.
    return int.from_bytes(hashlib.sha256(f"{what} of epoch {epoch}, seed {seed}".encode()).digest()[:4])


def load_rows(rows: FeatureRows, device: torch.device) -> list[Tensor]:
    """All rows on `device`: one tensor (N, D) a layer, as stored. Raises what `FeatureRows.read` raises."""
    if device.type == "cpu":
        return [torch.from_numpy(one) for one in rows.stored()]
    step = max(1, WINDOW_BYTES // rows.row_bytes)
    room = rows.empty(min(step, len(rows)))
    stored = [torch.empty((len(rows), one.shape[1]), dtype=torch.from_numpy(one).dtype, device=device) for one in room]
    for part in slices(len(rows), step):
        piece = [one[: part.stop - part.start] for one in room]
        rows.read(np.arange(part.start, part.stop), piece)
        for tensor, read in zip(stored, piece, strict=True):
            tensor[part] = torch.from_numpy(read).to(device)
    return stored


def _target_tensor(targets: NDArray[Any]) -> Tensor:
    """int64 (n,) of classes as they are; what a loss compares outputs with, float32 (n, C), else."""
    tensor = torch.from_numpy(targets)
    return tensor if targets.ndim == 1 and targets.dtype.kind == "i" else tensor.float()


def _mapped(rows: int, wide: int, dtype: torch.dtype) -> Tensor:
    """Room of shape (rows, wide) straight from the system, where it goes back to whole.

    Of memory that malloc hands out it keeps some: a head's gradients come and go between, and leave holes.
    """
    count = rows * wide
    if not count:
        return torch.empty((rows, wide), dtype=dtype)
    # A child that is forked has its own.
    mapped = mmap(-1, count * dtype.itemsize, access=ACCESS_COPY)
    return torch.frombuffer(mapped, dtype=dtype, count=count).reshape(rows, wide)
