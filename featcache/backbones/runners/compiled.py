"""The runner `compiled`: torch.compile with frozen weights; on a CPU it needs a C++ compiler."""

from __future__ import annotations

import os
import shutil
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from featcache.backbones.runners.eager import module_on
from featcache.errors import InvalidOption

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featcache.backbones.feature_module import FeatureModule
    from featcache.backbones.program import Compute

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Compiled:
    one_shape = True
    alone = False
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    devices: tuple[str, ...] = ("cpu", "cuda")

    def require(self) -> None:
        """Raises InvalidOption if there is no C++ compiler."""
        if compiler() is None:
            raise InvalidOption("--runner compiled needs a C++ compiler: none is installed", hint="leave --runner out")

    def compute(self, rows: FeatureModule, *, device: str, precision: str, batch_size: int) -> Compute:
        """See Runner. The first call compiles, which takes seconds to minutes."""
        owner = _Owner(module_on(rows, device), torch.device(device).type, _AUTOCAST.get(precision))
        # torch.compile caches programs per code object, regardless of `self`, and at most eight of them: the ninth
        # network of a process would run uncompiled, with only a warning. So each network has its own code object.
        own = types.FunctionType(_Owner.rows.__code__.replace(), globals())
        program: Compute = torch.compile(types.MethodType(own, owner), dynamic=False, options={"freezing": True})
        return program


class _Owner:
    """A module and its autocast settings."""

    def __init__(self, module: nn.Module, kind: str, dtype: torch.dtype | None) -> None:
        self.module, self.kind, self.dtype = module, kind, dtype

    def rows(self, batch: Tensor) -> Mapping[str, Tensor]:
        """uint8 (N, 3, S, S) -> {layer: (N, D)}."""
        with torch.autocast(self.kind, dtype=self.dtype, enabled=self.dtype is not None):
            features: Mapping[str, Tensor] = self.module(batch)
            return features


def compiler() -> str | None:
    """The C++ compiler that torch would call; None if there is none."""
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


RUNNER = _Compiled()
