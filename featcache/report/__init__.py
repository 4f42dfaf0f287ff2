"""report: runs go in, one HTML page comes out that opens from disk and asks the network for nothing.

    written = write_report([run], "report.html")

The way of the data: `subjects` reads the records of runs; `albums` puts runs that judged the same images together and
finds these images in the cache; `thumbnails` makes little pictures of them, `plane` a map of their features; `charts`
says what is drawn, `drawing` draws it; `content` and `page` make the page, `writing` joins them all. Only records and
tables are read: a page is made anew where there is neither a network's weights nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.report.writing import WrittenReport, write_report

__all__ = ["WrittenReport", "write_report"]

_HOMES = {"WrittenReport": "writing", "write_report": "writing"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
