"""The images of an extraction: listed, read, hashed and decoded once, for however many backbones."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from featcache.extraction.decoder import Decoder
from featcache.extraction.plan import Plan, plan_rows, selected
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Request
from featcache.images.sources import ImageSource


@dataclass(kw_only=True, eq=False)
class SharedImages:
    """Those that `request` selects of `source`. `workers` threads read them.

    `skip_unreadable`: what cannot be read is listed, not raised. `rehash`: read those too that look unchanged.
    """

    source: ImageSource
    request: Request
    workers: int
    skip_unreadable: bool
    rehash: bool
    reporter: Reporter
    decoder: Decoder = field(init=False)

    def __post_init__(self) -> None:
        self.decoder = Decoder(source=self.source)

    @cached_property
    def count(self) -> int:
        """How many images are selected; none is read."""
        return sum(map(len, selected(self.source, self.request).values()))

    @cached_property
    def plan(self) -> Plan:
        """The rows, after every selected image has been read and hashed once."""
        return plan_rows(
            self.source,
            self.request,
            workers=self.workers,
            skip_unreadable=self.skip_unreadable,
            rehash=self.rehash,
            reporter=self.reporter,
        )
