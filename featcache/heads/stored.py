"""Build heads from the tensors that a run stores: as torch modules, or, for solved heads, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.architectures import Architecture, HeadShape, build_head
from featcache.heads.neighbours import NeighbourHead, targets_name
from featcache.heads.solved import CosineHead, LinearHead, SolvedHead, Tensors
from featcache.rows.target import HeadTarget

if TYPE_CHECKING:
    from torch import nn

    from featcache.heads.neighbour_module import Neighbours

_TARGETS = {"classes": "int64", "lists": "int8", "numbers": "float32"}
# Expected shapes and dtypes of tensors, by name.
_Expected = Mapping[str, tuple[tuple[int, ...], str]]


def build_solved_head(
    architecture: Architecture, tensors: Tensors, *, in_features: int, target: HeadTarget
) -> SolvedHead:
    """Build a solved head from its tensors: float32 (n, in_features) -> float32 (n, C).

    Raises ValueError if the tensors do not fit the head.
    """
    rows, stored = _rows_held(tensors)
    if architecture.kind != "knn":
        wanted = _linear(in_features, target.outputs)
    else:
        wanted = _neighbours(in_features, rows, stored, target)
    tensors = _check_tensors(tensors, wanted)
    if architecture.kind == "knn":
        return NeighbourHead.of(tensors, target)
    return (CosineHead if architecture.templates else LinearHead).of(tensors)


def build_head_module(architecture: Architecture, tensors: Tensors, shape: HeadShape) -> nn.Module:
    """Build a head from its tensors, as a torch module in eval mode on the CPU: float32 (N, D) -> float32 (N, C).

    Raises ValueError if the tensors do not fit the head.
    """
    import torch

    if architecture.own:
        return _own_module(architecture, tensors, shape)
    rows, stored = _rows_held(tensors)
    # On the meta device: initial weights would be discarded, and drawn from the caller's random state.
    with torch.device("meta"):
        head = build_head(architecture, replace(shape, rows=rows, stored=stored))
    return _load_tensors(head, tensors)


def _own_module(architecture: Architecture, tensors: Tensors, shape: HeadShape) -> nn.Module:
    import torch

    from featcache.heads.own_module import OwnHead
    from featcache.rows.devices import seed_generators

    # Initial weights are drawn and discarded; the caller's random state does not change.
    with seed_generators(0, torch.device("cpu")):
        module = build_head(architecture, shape)
    return _load_tensors(OwnHead(module, shape.in_features, shape.classes), tensors)


def _load_tensors(head: nn.Module, tensors: Tensors) -> nn.Module:
    import torch

    wanted = {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in head.state_dict().items()
    }
    # Tensors read from a file are read-only, and torch needs writable ones.
    checked = {name: np.require(tensor, requirements="W") for name, tensor in _check_tensors(tensors, wanted).items()}
    state = {name: torch.from_numpy(tensor) for name, tensor in checked.items()}
    head.load_state_dict(state, assign=True)
    return head.eval()


def neighbour_module(head: NeighbourHead) -> Neighbours:
    """A knn head as a torch module, on the CPU."""
    from featcache.heads.neighbour_module import Neighbours

    shape = HeadShape(in_features=head.features.shape[1], classes=head.target.outputs, kind=head.target.kind)
    module = build_head_module(Architecture(kind="knn"), head.tensors(), shape)
    if not isinstance(module, Neighbours):
        raise TypeError(f"expected a module of neighbours, got {type(module).__name__}")
    return module


def _rows_held(tensors: Tensors) -> tuple[int, str]:
    """Number and dtype of the train rows that a head holds. Only knn holds any."""
    known = tensors.get("features", np.empty(0, np.float32))
    return (known.shape[0] if known.ndim else 0), str(known.dtype)


def _linear(wide: int, outputs: int) -> _Expected:
    return {"output.weight": ((outputs, wide), "float32"), "output.bias": ((outputs,), "float32")}


def _neighbours(wide: int, rows: int, stored: str, target: HeadTarget) -> _Expected:
    sizes = (rows,) if target.kind == "classes" else (rows, target.outputs)
    return {
        "features": ((rows, wide), stored),
        targets_name(target.kind): (sizes, _TARGETS[target.kind]),
        **dict.fromkeys(("scale", "offset", "centre"), ((wide,), "float32")),
        **{name: ((1,), kind) for name, kind in (("k", "int64"), ("cosine", "bool"), ("smoothing", "float32"))},
    }


def _check_tensors(tensors: Tensors, wanted: _Expected) -> dict[str, NDArray[Any]]:
    """The tensors, converted to the expected dtypes. Raises ValueError for other names or shapes."""
    for name in sorted(wanted.keys() | tensors.keys()):
        expected = wanted[name][0] if name in wanted else None
        got = tensors[name].shape if name in tensors else None
        if expected != got:
            raise ValueError(f"{name}: expected {expected}, got {got}")
    return {name: np.asarray(tensors[name], dtype=kind) for name, (_, kind) in wanted.items()}
