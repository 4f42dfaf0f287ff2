"""Which network, cut where, with which weights (placeholder until the options mechanism is merged)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    backbone: str = "vgg16"
    layers: tuple[str, ...] = ()
    pool: str | None = None
    image_size: int | None = None
    resize: Literal["squash", "crop"] = "squash"
    normalize: str | None = None
    weights: str | Path = "default"
