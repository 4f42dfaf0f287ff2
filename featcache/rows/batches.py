"""Batches of cached features, whether the features fit on the device or are streamed from the cache.

    rows = FeatureRows.of(cache, cut.train, layers=("avgpool",))
    batches = open_batches(rows, batch_size=64, seed=0, device=device)
    for features, targets in batches.epoch(0):    # float32 (B, D), and int64 (B,) or float32 (B, C), on the device
        ...

The order of an epoch is a pure function of its number, the seed, the batch size and the size of a row; it is the same
for resident and for streamed features. Small sets are permuted as a whole. Larger ones are permuted by blocks of
neighbouring rows, and then row by row within windows that fit in memory, so that a disk reads contiguous ranges instead
of single rows. The order is computed one window at a time, so the first batch of ten million rows comes at once. While
one window is used, a thread reads the next.

Train rows with augmented views are numbered view after view: row v * n + i is view v of image i of n. An epoch has all
of them, or with `draw` every image once, in a view that is drawn from the seed and the epoch's number.
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
# A batch that is larger than a window is read in pieces of this size; two of them are in memory.
PIECE_BYTES = 8 << 20
# Stored values that are converted together on the way into a batch: few enough to stay in the processor's cache.
TAKEN_BYTES = 1 << 20


class Buffers:
    """Buffers for batches: a fresh tensor each time, or with `reuse` one tensor per name that is used again."""

    def __init__(self, *, reuse: bool) -> None:
        self._reuse = reuse
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, wide: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor (rows, wide); buffers that are needed at the same time need different names."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < rows:
            if self._reuse and device.type == "cpu":
                buffer = _allocate_mapped(rows, wide, dtype)
            else:
                buffer = torch.empty((rows, wide), dtype=dtype, device=device)
            if self._reuse:
                self._buffers[name] = buffer
        return buffer[:rows]


class Epochs(Protocol):
    """Batches to train and evaluate a head on, wherever the features come from."""

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        ...

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        """The rows of epoch `number` in its order. With `reuse`, a batch may overwrite the one before."""
        ...

    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        """All rows once, in the order of the cache."""
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
        # One per image: all its views have the same target.
        self._targets = _target_tensor(rows.chosen.targets).to(device)

    def __len__(self) -> int:
        """Number of batches of an epoch; the last may be short."""
        return -(-self.epoch_rows // self.batch_size)

    @property
    def epoch_rows(self) -> int:
        """Number of rows of an epoch."""
        return self.rows.images if self.draw else len(self.rows)

    def __iter__(self) -> Iterator[Batch]:
        """The next epoch; the first time epoch 0."""
        # Counted when the first batch is taken: Lightning creates iterators that it does not use.
        number, self._iterated = self._iterated, self._iterated + 1
        yield from self.epoch(number)

    @property
    def feature_dim(self) -> int:
        """Number of features D of a row."""
        return self.rows.feature_dim

    @property
    def targets(self) -> Tensor:
        """Targets of all rows in the order of the cache, view after view, on the device.

        int64 (N,) for classes; float32 (N, C) for several classes and for numbers.
        """
        return self._targets if self.rows.views == 1 else torch.cat([self._targets] * self.rows.views)

    @property
    def resident_bytes(self) -> int:
        """Bytes of features that stay on the device."""
        return 0

    def with_order(self, *, seed: int, batch_size: int, draw: bool) -> Self:
        """A copy with another seed, batch size and `draw`; it shares the features that are already loaded."""
        other = copy.copy(self)
        other.seed, other.batch_size, other.draw = seed, batch_size, draw
        return other

    @abstractmethod
    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        """The rows of epoch `number` in its order: features and targets.

        `reuse`: every batch of features overwrites the one before, because allocating memory for large batches costs
        more than all that is done with it.
        """

    @abstractmethod
    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        """All rows once, in the order of the cache, in batches of a size that suits evaluation."""

    @abstractmethod
    def features_of(self, positions: Tensor, *, reuse: bool = False) -> Iterator[Tensor]:
        """The features of the rows at ascending `positions`, int64 (n,) on the CPU, in batches: float32 (B, D)."""

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
        return draw_views(windows, images=self.rows.images, views=self.rows.views, seed=self.seed, epoch=number)

    def _targets_of(self, chosen: Tensor) -> Tensor:
        # The targets of the rows `chosen`, int64 (n,), on the device.
        return self._targets.index_select(0, chosen if self.rows.views == 1 else chosen % self.rows.images)

    def _values(self, stored: Sequence[Tensor], buffers: Buffers) -> Tensor:
        # One tensor (B, d) per layer, as stored -> float32 (B, D).
        values = buffers.take("values", len(stored[0]), self.feature_dim, torch.float32, self.device)
        return self._fill(values, stored)

    def _select(self, stored: Sequence[Tensor], chosen: Tensor, buffers: Buffers) -> Tensor:
        # The same for the rows `chosen`, a few at a time.
        values = buffers.take("values", len(chosen), self.feature_dim, torch.float32, self.device)
        for part in self._small_slices(len(chosen)):
            taken = []
            for number, tensor in enumerate(stored):
                some = chosen[part]
                buffer = buffers.take(f"taken {number}", len(some), tensor.shape[1], tensor.dtype, self.device)
                taken.append(torch.index_select(tensor, 0, some, out=buffer))
            self._fill(values[part], taken)
        return values

    def _fill(self, values: Tensor, stored: Sequence[Tensor]) -> Tensor:
        start = 0
        for tensor, array in zip(stored, self.rows.arrays, strict=True):
            part = values[:, start : start + tensor.shape[1]]
            scale_stored(part.copy_(tensor), float(array.scale), float(array.offset))
            start += tensor.shape[1]
        return values

    def _small_slices(self, rows: int) -> Iterator[slice]:
        return slices(rows, max(1, TAKEN_BYTES // self.rows.row_bytes))


class ResidentBatches(Batches):
    """Batches of features that all lie on the device, in the dtype of the cache; each batch is converted to float32."""

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
        buffers = Buffers(reuse=reuse)
        for window in self._order(number):
            # A window is a whole number of batches, so these are the batches of the whole order.
            for chosen in torch.split(window.to(self.device), self.batch_size):
                yield self._select(self._stored, chosen, buffers), self._targets_of(chosen)

    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        buffers = Buffers(reuse=reuse)
        for part in slices(len(self.rows), self.rows.block_rows):
            chosen = torch.arange(part.start, part.stop, device=self.device)
            yield self._values([tensor[part] for tensor in self._stored], buffers), self._targets_of(chosen)

    def features_of(self, positions: Tensor, *, reuse: bool = False) -> Iterator[Tensor]:
        buffers = Buffers(reuse=reuse)
        for chosen in torch.split(positions, self.rows.block_rows):
            yield self._select(self._stored, chosen.to(self.device), buffers)


class StreamedBatches(Batches):
    """Batches read from the cache: while one window of rows is used, a thread reads the next.

    A batch that is larger than a window is assembled from pieces, so that it is held in memory as float32 only.
    """

    def __init__(
        self, rows: FeatureRows, *, batch_size: int, seed: int, device: torch.device, draw: bool = False
    ) -> None:
        super().__init__(rows, batch_size=batch_size, seed=seed, device=device, draw=draw)
        # Buffers that windows are read into and that are not in use: allocating memory costs as much as reading.
        self._spare_buffers: list[list[Tensor]] = []

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        buffers = Buffers(reuse=reuse)
        window = window_rows(self.epoch_rows, self.batch_size, self.rows.row_bytes)
        if window == self.batch_size and window * self.rows.row_bytes > WINDOW_BYTES:
            yield from self._large_batches(number, buffers)
            return
        for chosen, stored, place in self._windows(self._order(number), window):
            for part in slices(len(chosen), self.batch_size):
                yield self._select(stored, place[part], buffers), self._targets_of(chosen[part])

    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        buffers = Buffers(reuse=reuse)
        window = self.rows.block_rows
        parts = slices(len(self.rows), window)
        for chosen, stored, _ in self._windows((torch.arange(part.start, part.stop) for part in parts), window):
            yield self._values(stored, buffers), self._targets_of(chosen)

    def features_of(self, positions: Tensor, *, reuse: bool = False) -> Iterator[Tensor]:
        buffers = Buffers(reuse=reuse)
        window = self.rows.block_rows
        for _, stored, _ in self._windows(torch.split(positions, window), window):
            yield self._values(stored, buffers)

    def _large_batches(self, number: int, buffers: Buffers) -> Iterator[Batch]:
        # Every window is one batch. Its rows are read in the file's order, so that a disk reads contiguous ranges.
        most = max(1, PIECE_BYTES // self.rows.row_bytes)
        batches, ahead = tee(self._order(number))
        pieces = self._windows((piece for batch in ahead for piece in torch.split(batch.sort().values, most)), most)
        for batch in batches:
            values = buffers.take("values", len(batch), self.feature_dim, torch.float32, self.device)
            for place in torch.split(batch.argsort().to(self.device), most):
                _, stored, _ = next(pieces)
                self._put(values, place, stored, buffers)
            yield values, self._targets_of(batch.to(self.device))

    def _put(self, values: Tensor, place: Tensor, stored: Sequence[Tensor], buffers: Buffers) -> None:
        # One tensor (n, d) per layer, as stored -> the rows `place` of `values`, float32 (B, D), a few at a time.
        for part in self._small_slices(len(place)):
            some = buffers.take("put", len(place[part]), self.feature_dim, torch.float32, self.device)
            values.index_copy_(0, place[part], self._fill(some, [tensor[part] for tensor in stored]))

    def _windows(self, wanted: Iterable[Tensor], largest: int) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
        """For each window: its rows, their stored values in the file's order, and the place of each row in these."""
        pair = [self._take_buffers(min(largest, len(self.rows))) for _ in range(2)]
        turns = cycle(pair)

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
            self._spare_buffers += pair

    def _take_buffers(self, rows: int) -> list[Tensor]:
        # Removed from the list, so that two iterations at the same time do not overwrite each other's rows.
        for number, buffers in enumerate(self._spare_buffers):
            if len(buffers[0]) >= rows:
                return self._spare_buffers.pop(number)
        self._spare_buffers.clear()
        return [_allocate_mapped(rows, one.shape[1], torch.from_numpy(one).dtype) for one in self.rows.empty(0)]


def open_batches(
    rows: FeatureRows,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    resident_bytes: int | None = None,
    draw: bool = False,
) -> Batches:
    """Open resident batches if the rows fit on the device, else streamed ones: the same batches in the same order.

    Args:
        rows: The rows to read.
        batch_size: Rows per batch.
        seed: Seed of the order of the rows, and of the views that `draw` draws.
        device: Device of the batches.
        resident_bytes: The most that features may take on the device; None for a share of the free memory.
        draw: Whether an epoch has every image once, in one of its views.
    """
    budget = int(free_bytes(device) * RESIDENT_SHARE) if resident_bytes is None else resident_bytes
    kind = ResidentBatches if len(rows) * rows.row_bytes <= budget else StreamedBatches
    return kind(rows, batch_size=batch_size, seed=seed, device=device, draw=draw)


def epoch_order(rows: int, *, batch_size: int, row_bytes: int, seed: int, epoch: int) -> Tensor:
    """The order of `rows` rows in one epoch: a permutation, int64 (rows,). It is all `epoch_windows`, concatenated."""
    return torch.cat(
        list(epoch_windows(rows, batch_size=batch_size, row_bytes=row_bytes, seed=seed, epoch=epoch)),
    )


def epoch_windows(rows: int, *, batch_size: int, row_bytes: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The order of `rows` rows in one epoch, one window at a time: int64 (n,) each, together a permutation.

    A set of one window is permuted as a whole. Of a larger one, blocks of neighbouring rows are permuted, the result is
    cut into windows of `window_rows`, and each window is permuted when the iterator reaches it.
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


def draw_views(windows: Iterable[Tensor], *, images: int, views: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Draw one view of each image in `windows`, int64 (n,) each: the row numbers of these views.

    The plain view is one of those drawn from. The order of the images stays the same, so with equal views an epoch
    equals one of plain images.
    """
    generator = torch.Generator().manual_seed(_epoch_seed("views", seed, epoch))
    for chosen in windows:
        yield torch.randint(views, (len(chosen),), generator=generator).mul_(images).add_(chosen)


def _rows_of_blocks(blocks: Tensor, block: int, rows: int, part: slice) -> Tensor:
    """The slice `part` of all `rows` rows, arranged block after block in the order of `blocks`."""
    lacking = len(blocks) * block - rows
    # The last block of the set may be short, and can stand anywhere in the order: the rows after it move up.
    follows = (int(blocks.argmax()) + 1) * block - lacking
    place = torch.arange(part.start, part.stop)
    place += lacking * (place >= follows)
    return blocks[place // block] * block + place % block


def window_rows(rows: int, batch_size: int, row_bytes: int) -> int:
    """Rows per window of a set of `rows` rows: all of a small set, else a whole number of batches."""
    if rows * row_bytes <= WHOLE_BYTES:
        return rows
    return max(1, WINDOW_BYTES // row_bytes // batch_size) * batch_size


def _epoch_seed(what: str, seed: int, epoch: int) -> int:
    # Torch's CPU generator keeps 32 bits of a seed, so both numbers have to be mixed into those.
    return int.from_bytes(hashlib.sha256(f"{what} of epoch {epoch}, seed {seed}".encode()).digest()[:4])


def load_rows(rows: FeatureRows, device: torch.device) -> list[Tensor]:
    """All rows on `device`: one tensor (N, d) per layer, as stored. Raises what `FeatureRows.read` raises."""
    if device.type == "cpu":
        return [torch.from_numpy(one) for one in rows.read_stored()]
    step = max(1, WINDOW_BYTES // rows.row_bytes)
    arrays = rows.empty(min(step, len(rows)))
    stored = [
        torch.empty((len(rows), one.shape[1]), dtype=torch.from_numpy(one).dtype, device=device) for one in arrays
    ]
    for part in slices(len(rows), step):
        piece = [one[: part.stop - part.start] for one in arrays]
        rows.read(np.arange(part.start, part.stop), piece)
        for tensor, read in zip(stored, piece, strict=True):
            tensor[part] = torch.from_numpy(read).to(device)
    return stored


def _target_tensor(targets: NDArray[Any]) -> Tensor:
    """The targets as losses take them: int64 (n,) for classes, float32 (n, C) for the other kinds."""
    tensor = torch.from_numpy(targets)
    return tensor if targets.ndim == 1 and targets.dtype.kind == "i" else tensor.float()


def _allocate_mapped(rows: int, wide: int, dtype: torch.dtype) -> Tensor:
    """A tensor (rows, wide) in a memory map of its own, which is returned to the system as a whole.

    malloc would keep part of it: a head's gradients are allocated and freed in between, and fragment the heap.
    """
    count = rows * wide
    if not count:
        return torch.empty((rows, wide), dtype=dtype)
    # Copy on write: a forked process gets its own.
    mapped = mmap(-1, count * dtype.itemsize, access=ACCESS_COPY)
    return torch.frombuffer(mapped, dtype=dtype, count=count).reshape(rows, wide)
