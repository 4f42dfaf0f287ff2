"""A backbone must be a function of one image, and the same function tomorrow.

Two probe images go through the network alone, together and twice. What depends on the company or on chance is refused,
with the layer where it begins. The outputs are kept as sketches, and compared before stored rows are used again.
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
# A row alone and in company may be rounded differently; the same batch twice may not.
ALONE_TOLERANCE, TWICE_TOLERANCE = 1e-4, 1e-6
#: Between two versions or devices: as much as a precision below fp32 may drift.
OTHER_COSINE = 0.999


def probe_images(side: int) -> npt.NDArray[np.uint8]:
    """The two probe images, the same for ever: uint8 (2, side, side, 3). Smooth slopes with noise, as photographs."""
    slope = np.linspace(0.0, 1.0, side)
    random = np.random.Generator(np.random.PCG64(20261128))
    first = 160 * slope[:, None, None] * np.array([1.0, 0.6, 0.3]) + 40
    second = 160 * np.abs(np.subtract.outer(slope, slope))[..., None] * np.array([0.3, 1.0, 0.7]) + 20
    smooth = np.stack([np.broadcast_to(first, (side, side, 3)), second])
    noise = random.integers(0, 50, smooth.shape)
    return (smooth + noise).astype(np.uint8)


def sketch(row: npt.NDArray[Any]) -> list[float]:
    """At most 64 sums that stand for a row (D,): lengths and angles of sketches are about those of the rows.

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
    """The greatest |a - b| / |b| over rows, in Euclidean norms; infinity where shapes, or places of NaN, differ."""
    a, b = np.asarray(these, np.float64), np.asarray(those, np.float64)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    a, b = (np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) for values in (a, b))
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(b, axis=-1)
        found = np.linalg.norm(a - b, axis=-1) / np.where(norms > 0, norms, 1.0)
    return float(np.max(found, initial=0.0))


def least_cosine(these: npt.ArrayLike, those: npt.ArrayLike) -> float:
    """The least cosine between rows of the same number; two rows of zeros have 1, a row that is no number -1."""
    a, b = np.asarray(these, np.float64), np.asarray(those, np.float64)
    if a.shape != b.shape:
        return -1.0
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        cosines = np.where(lengths > 0, (a * b).sum(axis=-1) / np.where(lengths > 0, lengths, 1.0), 1.0)
    zero = (np.linalg.norm(a, axis=-1) == 0) != (np.linalg.norm(b, axis=-1) == 0)
    cosines = np.where(zero, 0.0, np.nan_to_num(cosines, nan=-1.0))
    return float(np.min(cosines, initial=1.0))


# --- the same function as before -----------------------------------------------------------------------------


def same_function(now: ProbeOutputs, before: ProbeOutputs, names: Sequence[str]) -> tuple[bool, str | None]:
    """Whether a network computes what it computed before, and a sentence where that is only nearly so.

    With the same versions, processor and threads rows are equal to 1e-6 relative; else as near as a precision below
    fp32 may be (cosine 0.999).
    """
    difference = max(
        (relative_difference(now.sketches[name], before.sketches.get(name, ())) for name in names), default=0.0
    )
    if difference <= TWICE_TOLERANCE:
        return True, None
    changed = _changed(now.environment, before.environment)
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


def _changed(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """What was different before: `torch 2.13.0 (now 2.14.1), 4 threads (now 2)`."""
    different = [name for name in sorted({*now, *before}) if now.get(name) != before.get(name)]
    return ", ".join(f"{name} {before.get(name, 'unknown')} (now {now.get(name, 'unknown')})" for name in different)


# --- a function of one image ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Dependence:
    """What else than the image a layer depends on: its "company" in the batch, or "chance"."""

    layer: str
    on: Literal["company", "chance"]


def dependence(part: nn.Module, images: Tensor, together: Mapping[str, Tensor]) -> Dependence | None:
    """Run two images a second time, and each alone, and compare.

    Args:
        part: float32 (N, 3, S, S) -> {layer: (N, ...)}, in eval mode.
        images: float32 (2, 3, S, S).
        together: What the part gave for both.
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
                return Dependence(layer=layer, on="company")
    return None


def _differs(these: Tensor, those: Tensor, tolerance: float) -> bool:
    flat = [rows.flatten(start_dim=1).float().numpy() for rows in (these, those)]
    return relative_difference(flat[0], flat[1]) > tolerance


def begins_at(root: nn.Module, images: Tensor, found: Dependence) -> str | None:
    """The module, in the order of computing, whose output first depends on the company or on chance."""
    by_chance = found.on == "chance"
    whole = _outputs(root, images)
    other = _outputs(root, images) if by_chance else _joined(_outputs(root, images[:1]), _outputs(root, images[1:]))
    for (path, rows), (_, others) in zip(whole, other, strict=False):
        comparable = rows.shape == others.shape and rows.dim() > 1
        if comparable and _differs(others, rows, TWICE_TOLERANCE if by_chance else ALONE_TOLERANCE):
            return path
    return None


def _outputs(root: nn.Module, images: Tensor) -> list[tuple[str, Tensor]]:
    import torch

    from featcache.backbones.probing import first_tensor

    found: list[tuple[str, Tensor]] = []

    def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.is_floating_point():
                found.append((path, tensor.detach().clone()))

        return hook

    handles = [module.register_forward_hook(note(path)) for path, module in root.named_modules() if path]
    try:
        with torch.inference_mode():
            root(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _joined(first: list[tuple[str, Tensor]], second: list[tuple[str, Tensor]]) -> list[tuple[str, torch.Tensor]]:
    import torch

    return [(path, torch.cat([a, b])) for (path, a), (_, b) in zip(first, second, strict=False)]
