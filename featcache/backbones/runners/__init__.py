"""What computes a network, behind one seam: eager, compiled, openvino, ncnn.

A spec names the runner; nothing else knows them. Each turns `Rows` (uint8 images in, rows of features out) into a
function of a batch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

from featcache.errors import InvalidOption, UnknownName

if TYPE_CHECKING:
    from featcache.backbones.normalised import Rows
    from featcache.backbones.program import Compute

RUNNERS = ("eager", "compiled", "openvino", "ncnn")


class Runner(Protocol):
    """One way to compute.

    `one_shape`: its programs take batches of one size alone. `alone`: it computes each image by itself.
    `precisions`: those that it computes; `devices`: the kinds of device.
    """

    one_shape: bool
    alone: bool
    precisions: tuple[str, ...]
    devices: tuple[str, ...]

    def require(self) -> None:
        """Raises MissingExtra, or InvalidOption where this machine lacks what it needs."""
        ...

    def compute(self, rows: Rows, *, device: str, precision: str, batch_size: int) -> Compute:
        """The function of a batch; what takes long may wait for its first call. `rows` stays as it is.

        Raises RunnerUnsuitable where this network cannot be computed.
        """
        ...


def runner_of(name: str) -> Runner:
    """The runner of that name. Raises UnknownName."""
    if name not in RUNNERS:
        raise UnknownName("runner", name, RUNNERS)
    found: Runner = importlib.import_module(f"featcache.backbones.runners.{name}").RUNNER
    return found


def obstacle(name: str, device: str, precision: str) -> str | None:
    """Why a runner cannot compute in a precision on a device, in one line; None where it can."""
    runner, kind = runner_of(name), device.partition(":")[0]
    if kind not in runner.devices:
        return f"--runner {name} computes on {' or '.join(runner.devices)}, got --device {device}"
    if precision not in runner.precisions:
        return f"--runner {name} computes in {' or '.join(runner.precisions)}, got --precision {precision}"
    return None


def require_usable(name: str, device: str, precision: str) -> None:
    """Raises InvalidOption where a runner cannot compute there, MissingExtra where its package is not installed."""
    if (reason := obstacle(name, device, precision)) is not None:
        raise InvalidOption(reason, hint="leave --runner out")
    runner_of(name).require()
