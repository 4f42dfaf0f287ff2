"""The options of an audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from featcache.config import Option, check


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """Which features are audited, and what is drawn. Raises InvalidOption."""

    PANEL: ClassVar[str] = "What is looked for, and how"

    layer: Annotated[str | None, Option(help="Whose features are used.", default="the last", metavar="<name>")] = None
    seed: Annotated[int, Option(help="Of folds, samples and random projections.", least=0, python_only=True)] = 0

    def __post_init__(self) -> None:
        check(self)
