"""Reading ahead: while one piece is used, a thread reads the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Wanted = TypeVar("Wanted")
Read = TypeVar("Read")


def read_ahead(read: Callable[[Wanted], Read], wanted: Iterable[Wanted]) -> Iterator[Read]:
    """`read` of each, in order: the next one is read while the last one is used.

    So two pieces are in use at a time, and `read` may write over what it gave two calls before. What it raises is
    raised where its piece would have come. It is called by one thread, which ends with the iteration.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="featcache-ahead") as reader:
        coming: Future[Read] | None = None
        for one in wanted:
            following = reader.submit(read, one)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
