"""Detect layers whose features are the same for all images, which is worth a warning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt


class Variation:
    """Compares all rows with the first one, layer by layer, until one differs.

    Args:
        layers: The layers' names.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self._first: dict[str, npt.NDArray[np.generic]] = {}
        self._undecided = list(layers)
        self._rows = 0

    def add(self, features: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Add rows of further images: {layer: (n, D)}."""
        for layer in list(self._undecided):
            rows = features.get(layer)
            if rows is None or not len(rows):
                continue
            first = self._first.setdefault(layer, rows[0].copy())
            if (rows != first).any():
                self._undecided.remove(layer)
        self._rows += max((len(rows) for rows in features.values()), default=0)

    def constant(self) -> tuple[str, ...]:
        """The layers in which all rows are equal; none where fewer than two rows were added."""
        return tuple(self._undecided) if self._rows > 1 else ()
