"""Pooling: how a layer's output becomes one row per image.

A feature map `(N, C, H, W)` or `(N, H, W, C)` has positions; a token sequence `(N, T, D)` has prefix tokens (a class
token, registers) and one token per patch. `avg` never includes prefix tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featcache.errors import InvalidOption

if TYPE_CHECKING:
    from torch import Tensor

    from featcache.backbones.zoos import TokenLayout

POOLINGS = ("none", "avg", "cls", "cls+avg")


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How the output of one layer becomes a row.

    Args:
        name: One of POOLINGS.
        positions: The dimensions of the batched output that are positions or tokens; "avg" averages over them.
        prefix: How many tokens at the start are left out of an average.
    """

    name: str = "none"
    positions: tuple[int, ...] = ()
    prefix: int = 0

    def shape(self, output: Sequence[int]) -> tuple[int, ...]:
        """The shape of one image's row before it is flattened; `output`: the shape of the batched output."""
        if self.name == "none":
            return tuple(output[1:])
        kept = tuple(size for dim, size in enumerate(output) if dim > 0 and dim not in self.positions)
        return (2 * math.prod(kept),) if self.name == "cls+avg" else kept

    def rows(self, output: Tensor) -> Tensor:
        """Pool and flatten: (N, ...) -> (N, D), in the network's own order of dimensions."""
        if self.name == "none":
            return output.flatten(start_dim=1)
        import torch

        parts = []
        if self.name in ("cls", "cls+avg"):
            parts.append(output[:, 0])
        if self.name in ("avg", "cls+avg"):
            parts.append((output[:, self.prefix :] if self.prefix else output).mean(dim=self.positions))
        return torch.cat(parts, dim=1).flatten(start_dim=1)


def pooling_of(
    requested: str | None,
    layer: str,
    output: Sequence[int],
    positions: tuple[int, ...] | None,
    tokens: TokenLayout | None,
) -> Pooling:
    """The pooling of a layer whose batched output has the shape `output`.

    Args:
        requested: One of POOLINGS; None for no pooling.
        layer: The layer's name, for messages.
        output: The shape of the batched output, (N, ...).
        positions: The dimensions that are positions or tokens; None if they cannot be distinguished from channels.
        tokens: The token layout if the output is a token sequence with the network's prefix tokens; else None.

    Raises:
        InvalidOption: The layer has no such pooling.
    """
    if requested not in (None, *POOLINGS):
        raise InvalidOption(f"expected --pool {', '.join(POOLINGS)}, got {requested!r}")
    if len(output) == 2 or requested == "none":
        # One vector per image has nothing to pool.
        _require_no_class_token(requested, layer, output)
        return Pooling()
    if requested in ("cls", "cls+avg"):
        if tokens is None or not tokens.class_token:
            raise InvalidOption(
                f"layer {layer} has no class token (its output is {tuple(output[1:])}), got --pool {requested}",
                hint="use --pool avg or none",
            )
        return Pooling(name=requested, positions=(1,), prefix=tokens.prefix)
    if requested is None:
        return Pooling()
    if positions is None:
        raise InvalidOption(
            f"layer {layer}: channels and positions cannot be distinguished in its output {tuple(output[1:])}",
            hint="use --pool none for this layer",
        )
    return Pooling(name="avg", positions=positions, prefix=tokens.prefix if tokens else 0)


def _require_no_class_token(requested: str | None, layer: str, output: Sequence[int]) -> None:
    if requested in ("cls", "cls+avg"):
        raise InvalidOption(
            f"layer {layer} is one vector per image ({output[1]} values) and has no tokens, got --pool {requested}",
            hint="use --layer tokens, or leave --pool out",
        )
