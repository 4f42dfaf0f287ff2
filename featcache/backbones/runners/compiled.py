"""A program made by torch's compiler, with the weights frozen into it; on a CPU it needs a C++ compiler."""

from __future__ import annotations

import os
import shutil
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from featcache.backbones.runners.eager import placed
from featcache.errors import InvalidOption

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featcache.backbones.normalised import Rows
    from featcache.backbones.program import Compute

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Compiled:
    one_shape = True
    alone = False
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    devices: tuple[str, ...] = ("cpu", "cuda")

    def require(self) -> None:
        """Raises InvalidOption where there is no C++ compiler."""
        if compiler() is None:
            raise InvalidOption("--runner compiled needs a C++ compiler, and there is none", hint="leave --runner out")

    def compute(self, rows: Rows, *, device: str, precision: str, batch_size: int) -> Compute:
        """See Runner. It is compiled when it first runs, which takes from seconds to minutes."""
        owner = _Owner(placed(rows, device), torch.device(device).type, _AUTOCAST.get(precision))
        # torch.compile keeps its programs with the code, whatever `self` is, and no more than eight of them: the ninth
        # network of a process would compute without being compiled, and only a warning would tell.
        own = types.FunctionType(_Owner.rows.__code__.replace(), globals())
        program: Compute = torch.compile(types.MethodType(own, owner), dynamic=False, options={"freezing": True})
        return program


class _Owner:
    """A module and its autocast."""

    def __init__(self, module: nn.Module, kind: str, dtype: torch.dtype | None) -> None:
        self.module, self.kind, self.dtype = module, kind, dtype

    def rows(self, batch: Tensor) -> Mapping[str, Tensor]:
        """uint8 (N, 3, S, S) -> {layer: (N, D)}."""
        with torch.autocast(self.kind, dtype=self.dtype, enabled=self.dtype is not None):
            found: Mapping[str, Tensor] = self.module(batch)
            return found


def compiler() -> str | None:
    """The C++ compiler that torch would call; None where there is none."""
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


RUNNER = _Compiled()
