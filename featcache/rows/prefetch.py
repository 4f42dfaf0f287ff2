"""Prefetching: a thread reads the next item while the current one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Wanted = TypeVar("Wanted")
Read = TypeVar("Read")


def read_ahead(read: Callable[[Wanted], Read], wanted: Iterable[Wanted]) -> Iterator[Read]:
    """Yield `read(item)` for each item of `wanted`, in order; the next one is read while the current one is used.

    Two results are in use at a time, so `read` may overwrite the result of two calls before. An exception of `read` is
    raised where its result would have been yielded. One thread calls `read`, and ends with the iteration.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="featcache-ahead") as reader:
        coming: Future[Read] | None = None
        for item in wanted:
            following = reader.submit(read, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
