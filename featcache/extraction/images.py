"""The images of an extraction, listed once, with their SHA-256 digests as far as they are known.

The digest of an image is known once it has been read, or if its stamp shows that it is unchanged since an earlier run.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from featcache.cache.tables import Skipped, SplitTable
from featcache.cache.targets import Column, Target, encode, label_column
from featcache.columns import LABEL, choose
from featcache.errors import InvalidOption, SourceError
from featcache.extraction.index import Index, index_path
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Request
from featcache.images.listing import SourceColumn
from featcache.images.options import SPLITS
from featcache.images.samples import SampleIds, SampleRows, Samples
from featcache.images.selection import select
from featcache.images.source import ImageSource, Payload, digest

Numbers = npt.NDArray[np.int64]
_CHUNK = 256
# Images that were read to find their digest are kept in memory, up to this many bytes, until they are decoded.
_KEPT_BYTES = 256 << 20


def select_samples(source: ImageSource, request: Request) -> dict[str, Samples]:
    """The samples that the request's splits and limit select, by split. Raises InvalidOption for a missing split."""
    present = source.splits()
    for split in request.splits or ():
        if split not in present:
            raise InvalidOption(
                f"{request.origin} has no split {split}: it has {', '.join(present)}", hint="leave --split out"
            )
    wanted = [split for split in SPLITS if split in present and split in (request.splits or present)]
    if request.views > 1 and "train" not in wanted:
        raise InvalidOption(
            f"only train images have views, and {request.origin} has {', '.join(wanted)}", hint="leave --views out"
        )
    chosen = {
        split: Samples.of(split, select(source.samples(split), request.limit, request.select_seed)) for split in wanted
    }
    return {split: samples for split, samples in chosen.items() if samples}


class _Chained(Sequence[str | None]):
    """The cells of several splits, one after the other."""

    def __init__(self, parts: Sequence[Sequence[str | None]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[str | None]:
        return itertools.chain.from_iterable(self._parts)

    def __getitem__(self, index: int) -> str | None:  # type: ignore[override]  # Only read one after the other.
        return next(itertools.islice(self, index, None))


def _target_columns(source: ImageSource, request: Request) -> tuple[SourceColumn, ...]:
    """The columns that become targets. For an object they are chosen here, else when the images are opened."""
    if not request.location.is_object:
        return source.columns
    options, names = request.column_options, [column.name for column in source.columns if column.name != LABEL]
    chosen = {one.name for one in choose(request.origin, names, options.without(LABEL), default=names)}
    kinds = options.kind_of
    return tuple(
        replace(column, kind=kinds.get(column.name, column.kind))
        for column in source.columns
        if column.name in {LABEL, *chosen}
    )


class Images:
    """The images of an extraction, numbered over all splits in the order of their rows.

    Args:
        source: Where the images are read.
        request: Which of them are selected.
        workers: Threads that read images to find their digests.
        skip_unreadable: List images that cannot be read, instead of raising their error.
        rehash: Read images again that look unchanged.
        reporter: Receives the progress of reading.

    Attributes:
        samples: By number.
        digests: uint8 (n, 32), zeros where the digest is not known.
        known: Whether each digest is known: bool (n,).
        unreadable: Why an image could not be read, by its number.
        payloads: Images that were read to find their digests, by number, until they are decoded.
        remembers: Whether digests are saved for the next run.
    """

    def __init__(
        self,
        source: ImageSource,
        request: Request,
        *,
        workers: int,
        skip_unreadable: bool,
        rehash: bool,
        reporter: Reporter,
    ) -> None:
        self.source, self.reporter = source, reporter
        self._source_columns = _target_columns(source, request)
        self._workers, self._skip = workers, skip_unreadable
        self.splits = select_samples(source, request)
        self.samples = SampleRows(list(self.splits.values()))
        if not len(self.samples):
            raise SourceError(f"no image of {request.origin} is left to extract")
        self._index = Index(index_path(request.data_dir, request.origin), source, self.samples, reads=not rehash)
        # Memory pages that are never written take no memory: a shard needs memory for its own images only.
        self.digests = np.zeros((len(self.samples), 32), np.uint8)
        self.known = np.zeros(len(self.samples), np.bool_)
        self.unreadable: dict[int, str] = {}
        self.payloads: dict[int, Payload] = {}
        self._payload_bytes = 0
        self.remembers = True

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def numbers(self) -> Numbers:
        """The numbers of all images, ascending: (n,)."""
        return np.arange(len(self.samples))

    @property
    def rows_of_splits(self) -> dict[str, int]:
        """How many images each split has."""
        return {split: len(samples) for split, samples in self.splits.items()}

    # --- digests --------------------------------------------------------------------------------------------

    def look_up(self, numbers: Numbers) -> None:
        """Record the stamps of these images, and take their digests from the index where they are unchanged."""
        fresh = numbers[~self._index.noted[numbers]]
        if len(fresh):
            self._index.look_up(fresh, self.digests, self.known)

    def read_unknown(self, numbers: Numbers) -> None:
        """Read those of the given images whose digest is not known. Some are kept in `payloads` until they are decoded.

        The digests are stored on disk by `save`, once at the end, since it writes the whole index.

        Raises:
            SourceError: An image cannot be read, and `skip_unreadable` is off.
        """
        self.look_up(numbers)
        unknown = numbers[~self.known[numbers]]
        for done, (number, payload) in enumerate(zip(unknown.tolist(), self._read(unknown), strict=True), start=1):
            if done % _CHUNK == 0 or done == len(unknown):
                self.reporter.advance("reading", done, len(unknown))
            if isinstance(payload, SourceError):
                if not self._skip:
                    raise payload
                self.unreadable[number] = payload.message
                continue
            content, found = payload
            self.learn(np.array([number]), np.frombuffer(found, np.uint8)[None])
            # The sum over all calls: many images are looked up in parts.
            self._payload_bytes += len(content) if isinstance(content, bytes) else content.nbytes
            if self._payload_bytes <= _KEPT_BYTES:
                self.payloads[number] = content

    def learn(self, numbers: Numbers, digests: npt.NDArray[np.uint8]) -> None:
        """Store the digests, uint8 (m, 32), of images that were read."""
        self.digests[numbers] = digests
        self.known[numbers] = True

    def save(self) -> None:
        """Save the known digests for the next run."""
        if self.remembers:
            self._index.save(self.digests, self.known)

    # --- tables ---------------------------------------------------------------------------------------------

    def ids(self, numbers: Numbers) -> SampleIds:
        """The ids of the given images, all of one split."""
        (samples,) = self.samples.take(numbers).by_split().values()
        return SampleIds(samples)

    def table(self, numbers: Numbers) -> SplitTable:
        """The table (ids and digests) of the given images, all of one split."""
        (samples,) = self.samples.take(numbers).by_split().values()
        # A slice avoids a copy: for ten million images it would take 320 MB.
        contiguous = len(numbers) == numbers[-1] - numbers[0] + 1
        digests = self.digests[numbers[0] : numbers[-1] + 1] if contiguous else self.digests[numbers]
        return SplitTable(ids=SampleIds(samples), digests=digests)

    def tables(self, skipped: Sequence[Skipped]) -> dict[str, SplitTable]:
        """The table of each split without the skipped images, with the targets from the source.

        A split without images is left out.
        """
        kept = {
            split: self.without_skipped(self.numbers_of(split), [one for one in skipped if one.split == split])
            for split in self.splits
        }
        return {
            split: replace(
                self.table(numbers),
                targets={one.name: one.values[self._place_in_targets(split, numbers)] for one in self._targets},
            )
            for split, numbers in kept.items()
            if len(numbers)
        }

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the targets that come with the images."""
        return tuple(target.column for target in self._targets)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets that come with the images, with a value for each selected image, split after split."""
        rows = np.concatenate([self._place_in_targets(split, self.numbers_of(split)) for split in self.splits])
        return tuple(target.at(rows) for target in self._targets)

    @functools.cached_property
    def _targets(self) -> tuple[Target, ...]:
        """Targets of all images of the source, split after split: so classes do not depend on the selection."""
        source = self.source
        cells = {
            column.name: _Chained([column.cells[split] for split in source.splits()]) for column in self._source_columns
        }
        found = [encode(one.name, cells[one.name], kind=one.kind) for one in self._source_columns]
        if LABEL in cells:
            return tuple(found)
        labels = [Samples.of(split, source.samples(split)).labels for split in source.splits()]
        return (Target(column=label_column(source.classes), values=np.concatenate(labels)), *found)

    def _place_in_targets(self, split: str, numbers: Numbers) -> Numbers:
        """The rows in `_targets` of the given images of one split."""
        every = Samples.of(split, self.source.samples(split))
        before = 0
        for name in self.source.splits():
            if name == split:
                break
            before += len(self.source.samples(name))
        chosen = self.splits[split]
        own: Numbers = numbers - self.numbers_of(split)[0]
        if len(chosen) != len(every):
            own = np.flatnonzero(np.isin(every.rows_in_listing, chosen.rows_in_listing))[own]
        return own + before

    def numbers_of(self, split: str) -> Numbers:
        """The numbers of the images of one split, ascending."""
        first = 0
        for name, samples in self.splits.items():
            if name == split:
                return np.arange(first, first + len(samples))
            first += len(samples)
        raise KeyError(split)

    def still_skipped(self, skipped: Sequence[Skipped]) -> list[Skipped]:
        """Those of `skipped` that are still in the set with the same bytes, each once, in the order of the images."""
        named = {(one.split, one.id): one for one in skipped}
        found = []
        for split in dict.fromkeys(one.split for one in named.values() if one.split in self.splits):
            for number, sample in zip(self.numbers_of(split).tolist(), self.splits[split], strict=True):
                one = named.get((split, sample.id))
                if one is not None and self._is_still(number, one.digest):
                    found.append((number, one))
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]

    def without_skipped(self, numbers: Numbers, skipped: Sequence[Skipped]) -> Numbers:
        """The given images of one split without the skipped ones.

        An image whose bytes have changed since it was skipped is not left out.
        """
        gone = {one.id: one.digest for one in skipped}
        if not gone:
            return numbers
        here = self.samples.take(numbers)
        left = [
            place
            for place, sample in enumerate(here)
            if sample.id in gone and self._is_still(int(numbers[place]), gone[sample.id])
        ]
        return np.delete(numbers, left)

    def _is_still(self, number: int, digest: str | None) -> bool:
        """Whether an image that was skipped with this digest would be skipped now."""
        return not self.known[number] or digest == self.digests[number].tobytes().hex()

    def _read(self, numbers: Numbers) -> Iterator[tuple[Payload, bytes] | SourceError]:
        stopped = threading.Event()

        def read_chunk(some: Numbers) -> list[tuple[Payload, bytes] | SourceError]:
            # Checked for each image: to stop must not wait for the rest of a chunk of large images.
            return [self._read_one(number) for number in some.tolist() if not stopped.is_set()]

        pending: deque[Future[list[tuple[Payload, bytes] | SourceError]]] = deque()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="read") as pool:
            try:
                # Not `pool.map`: it would hold all chunks at once.
                for start in range(0, len(numbers), _CHUNK):
                    pending.append(pool.submit(read_chunk, numbers[start : start + _CHUNK]))
                    if len(pending) > self._workers:
                        yield from pending.popleft().result()
                while pending:
                    yield from pending.popleft().result()
            finally:
                stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _read_one(self, number: int) -> tuple[Payload, bytes] | SourceError:
        try:
            payload = self.source.read(self.samples[number])
        except SourceError as error:
            return error
        return payload, digest(payload)
