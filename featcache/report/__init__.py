"""Writes an HTML report about runs: one self-contained file that makes no network requests.

    written = write_report([run], "report.html")

`run_results` reads the records of runs; `image_sets` groups runs that were evaluated on the same images and finds these
images in the caches; `thumbnails` makes small pictures of them, `embedding` projects their features to two dimensions;
`charts` describes the charts, `drawing` draws them; `content` and `page` make the page, and `writing` joins all steps.
Only records and tables are read: neither a network's weights nor torch are needed.
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
