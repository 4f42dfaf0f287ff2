"""The runners that compute networks, with one common interface: eager, compiled, openvino, ncnn.

A cache's spec records the runner. Each runner converts a `FeatureModule` (uint8 images in, rows of features out) to a
function of a batch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

from featcache.errors import InvalidOption, UnknownName

if TYPE_CHECKING:
    from featcache.backbones.feature_module import FeatureModule
    from featcache.backbones.program import Compute

RUNNERS = ("eager", "compiled", "openvino", "ncnn")


class Runner(Protocol):
    """A way to compute networks.

    `one_shape`: its programs accept one batch size only. `alone`: it computes each image separately. `precisions` and
    `devices`: the precisions and the types of devices that it supports.
    """

    one_shape: bool
    alone: bool
    precisions: tuple[str, ...]
    devices: tuple[str, ...]

    def require(self) -> None:
        """Raises MissingExtra if a package is missing, InvalidOption if this machine lacks anything else it needs."""
        ...

    def compute(self, rows: FeatureModule, *, device: str, precision: str, batch_size: int) -> Compute:
        """The function of a batch. A slow compilation may be delayed until its first call. `rows` is not changed.

        Raises RunnerUnsuitable if this network cannot be computed.
        """
        ...


def runner_of(name: str) -> Runner:
    """The runner with this name. Raises UnknownName."""
    if name not in RUNNERS:
        raise UnknownName("runner", name, RUNNERS)
    runner: Runner = importlib.import_module(f"featcache.backbones.runners.{name}").RUNNER
    return runner


def obstacle(name: str, device: str, precision: str) -> str | None:
    """Why a runner does not support a precision or a device, in one line; None if it supports both."""
    runner, kind = runner_of(name), device.partition(":")[0]
    if kind not in runner.devices:
        return f"--runner {name} computes on {' or '.join(runner.devices)}, got --device {device}"
    if precision not in runner.precisions:
        return f"--runner {name} computes in {' or '.join(runner.precisions)}, got --precision {precision}"
    return None


def require_usable(name: str, device: str, precision: str) -> None:
    """Raises InvalidOption if a runner does not support device or precision, MissingExtra without its package."""
    if (reason := obstacle(name, device, precision)) is not None:
        raise InvalidOption(reason, hint="leave --runner out")
    runner_of(name).require()
