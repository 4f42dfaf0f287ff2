"""Checks that a backbone's features depend on one image only, and that they have not changed since they were cached.

The network computes two probe images alone, together and twice. It is refused if the features of an image depend on
the rest of the batch or on chance; the error names the module where this begins. The outputs are stored as sketches and
compared before stored rows are reused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from featcache.backbones.spec import ProbeOutputs

_SKETCH = 64
# Rounding may differ between a batch of one image and a larger batch, but not between two equal batches.
ALONE_TOLERANCE, TWICE_TOLERANCE = 1e-4, 1e-6
#: The least cosine between two versions or devices, as for a precision below fp32.
OTHER_COSINE = 0.999


def probe_images(side: int) -> npt.NDArray[np.uint8]:
    """The two fixed probe images: uint8 (2, side, side, 3). Smooth slopes with noise, similar to photographs."""
    slope = np.linspace(0.0, 1.0, side)
    random = np.random.Generator(np.random.PCG64(20261128))
    first = 160 * slope[:, None, None] * np.array([1.0, 0.6, 0.3]) + 40
    second = 160 * np.abs(np.subtract.outer(slope, slope))[..., None] * np.array([0.3, 1.0, 0.7]) + 20
    smooth = np.stack([np.broadcast_to(first, (side, side, 3)), second])
    noise = random.integers(0, 50, smooth.shape)
    return (smooth + noise).astype(np.uint8)


def sketch(row: npt.NDArray[Any]) -> list[float]:
    """A count sketch of a row (D,): at most 64 sums that approximately preserve lengths and angles.

    Each value is added, with a fixed sign, to one of the sums. Source: M. Charikar, K. Chen, M. Farach-Colton,
    "Finding frequent items in data streams" (2002).
    """
    values = np.asarray(row, np.float64)
    if len(values) <= _SKETCH:
        return [float(f"{value:.9g}") for value in values]
    random = np.random.Generator(np.random.PCG64(len(values)))
    bucket, sign = random.integers(0, _SKETCH, len(values)), random.integers(0, 2, len(values)) * 2 - 1
    sums = np.bincount(bucket, weights=values * sign, minlength=_SKETCH)
    return [float(f"{value:.9g}") for value in sums]


def relative_difference(these: npt.ArrayLike, those: npt.ArrayLike) -> float:
    """The greatest |a - b| / |b| over rows, in Euclidean norms.

    NaN, and infinities of one sign, count as equal to each other at the same position; where only one array has them,
    and for other shapes, the difference is infinite.
    """
    a, b = np.asarray(these, np.float64), np.asarray(those, np.float64)
    if a.shape != b.shape:
        return float("inf")
    special = [np.where(np.isfinite(values), 0.0, values) for values in (a, b)]
    if not np.array_equal(special[0], special[1], equal_nan=True):
        return float("inf")
    a, b = (np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) for values in (a, b))
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(b, axis=-1)
        differences = np.linalg.norm(a - b, axis=-1) / np.where(norms > 0, norms, 1.0)
    return float(np.max(np.nan_to_num(differences, nan=np.inf, posinf=np.inf), initial=0.0))


def least_cosine(these: npt.ArrayLike, those: npt.ArrayLike) -> float:
    """The least cosine between row i of one array and row i of the other, both (n, D).

    Two rows of zeros count as 1, one row of zeros as 0. A row with NaN or infinity counts as -1, as do arrays of
    different shapes.
    """
    a, b = np.asarray(these, np.float64), np.asarray(those, np.float64)
    if a.shape != b.shape:
        return -1.0
    with np.errstate(all="ignore"):
        first, second = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
        products = (a * b).sum(axis=-1) / np.where((first == 0) | (second == 0), 1.0, first * second)
    finite = np.isfinite(first) & np.isfinite(second) & np.isfinite(products)
    cosines = np.where((first == 0) & (second == 0), 1.0, products)
    return float(np.min(np.where(finite, cosines, -1.0), initial=1.0))


# --- the same function as before -----------------------------------------------------------------------------


def same_function(now: ProbeOutputs, before: ProbeOutputs, names: Sequence[str]) -> tuple[bool, str | None]:
    """Whether a network computes the same features as before, and a message if there is any difference.

    With the same versions, processor and threads, rows must be equal to 1e-6 relative; otherwise their cosine must be
    at least 0.999, as for a precision below fp32.
    """
    difference = max(
        (relative_difference(now.sketches[name], before.sketches.get(name, ())) for name in names), default=0.0
    )
    if difference <= TWICE_TOLERANCE:
        return True, None
    changed = _differences(now.environment, before.environment)
    cosine = min(least_cosine(now.sketches[name], before.sketches.get(name, ())) for name in names)
    if changed and cosine >= OTHER_COSINE:
        return True, (
            f"the network's outputs on two probe images differ by {difference:.1g} (relative) from those stored with "
            f"the rows, which were computed with {changed}; the rows are used"
        )
    other = f"the rows were computed with {changed}" if changed else "with the same versions and device"
    return False, (
        f"the network no longer computes what it computed for the stored rows: on two probe images it differs by "
        f"{difference:.2g} (relative, cosine {cosine:.5f}), {other}; the rows are computed again"
    )


def _differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """The differences as text: `torch 2.13.0 (now 2.14.1), threads 4 (now 2)`."""
    different = [name for name in sorted({*now, *before}) if now.get(name) != before.get(name)]
    return ", ".join(f"{name} {before.get(name, 'unknown')} (now {now.get(name, 'unknown')})" for name in different)


# --- a function of one image ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Dependence:
    """A dependence of a layer on something other than its image: on the rest of the "batch", or on "chance"."""

    layer: str
    on: Literal["batch", "chance"]


def dependence(part: nn.Module, images: Tensor, together: Mapping[str, Tensor]) -> Dependence | None:
    """Compare two images in one batch with a second run of the same batch, and with each image alone.

    Args:
        part: float32 (N, 3, S, S) -> {layer: (N, ...)}, in eval mode.
        images: float32 (2, 3, S, S).
        together: The outputs for both images in one batch.
    """
    import torch

    with torch.inference_mode():
        again = part(images)
        for layer, rows in together.items():
            if _differs(again[layer], rows, TWICE_TOLERANCE):
                return Dependence(layer=layer, on="chance")
        alone = [part(images[:1]), part(images[1:])]
        for layer, rows in together.items():
            if _differs(torch.cat([one[layer] for one in alone]), rows, ALONE_TOLERANCE):
                return Dependence(layer=layer, on="batch")
    return None


def _differs(these: Tensor, those: Tensor, tolerance: float) -> bool:
    flat = [rows.flatten(start_dim=1).float().numpy() for rows in (these, those)]
    return relative_difference(flat[0], flat[1]) > tolerance


def first_dependent_module(root: nn.Module, images: Tensor, dependence: Dependence) -> str | None:
    """The path of the first module, in the order of computation, whose output has this dependence."""
    by_chance = dependence.on == "chance"
    whole = _outputs(root, images)
    other = _outputs(root, images) if by_chance else _join(_outputs(root, images[:1]), _outputs(root, images[1:]))
    for (path, rows), (_, others) in zip(whole, other, strict=False):
        comparable = rows.shape == others.shape and rows.dim() > 1
        if comparable and _differs(others, rows, TWICE_TOLERANCE if by_chance else ALONE_TOLERANCE):
            return path
    return None


def _outputs(root: nn.Module, images: Tensor) -> list[tuple[str, Tensor]]:
    import torch

    from featcache.backbones.probing import first_tensor

    outputs: list[tuple[str, Tensor]] = []

    def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.is_floating_point():
                outputs.append((path, tensor.detach().clone()))

        return hook

    handles = [module.register_forward_hook(note(path)) for path, module in root.named_modules() if path]
    try:
        with torch.inference_mode():
            root(images)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _join(first: list[tuple[str, Tensor]], second: list[tuple[str, Tensor]]) -> list[tuple[str, torch.Tensor]]:
    import torch

    return [(path, torch.cat([a, b])) for (path, a), (_, b) in zip(first, second, strict=False)]
