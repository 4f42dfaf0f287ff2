"""The network as a program of OpenVINO, on CPUs: compiled in a second or two, and faster than torch's."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featcache.errors import MissingExtra

if TYPE_CHECKING:
    from torch import Tensor

#: Precisions that a program can be made for, in OpenVINO's words.
PRECISIONS = {"bf16": "bf16", "fp32": "f32"}


def installed() -> bool:
    """Whether the package is there; nothing is imported."""
    return importlib.util.find_spec("openvino") is not None


def require() -> None:
    """Raises MissingExtra."""
    if not installed():
        raise MissingExtra("--runner openvino", package="openvino", extra="openvino")


class Program:
    """A network for so many images at once; it is made when it first runs.

    `network`: (N, 3, S, S) uint8 -> {layer: (N, D)} float32, which computes everything in one precision; `layers`:
    their names. Raises MissingExtra.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[str], *, batch_size: int, image_size: int, precision: str
    ) -> None:
        require()
        self._network: nn.Module | None = network
        self._layers = tuple(layers)
        self._shape = (batch_size, image_size, image_size, 3)
        self._precision = PRECISIONS[precision]
        self._compiled: Any = None

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """(N, 3, S, S) uint8 in channels-last -> {layer: (N, D)} float32."""
        if self._compiled is None:
            self._compiled, self._network = self._made(), None
        # As it lies in memory: no copy.
        values = self._compiled(batch.permute(0, 2, 3, 1).contiguous().numpy())
        return {name: torch.from_numpy(values[number]) for number, name in enumerate(self._layers)}

    def _made(self) -> Any:
        openvino = _openvino()
        assert self._network is not None
        ordered = _Ordered(self._network, self._layers).eval()
        with warnings.catch_warnings(), torch.no_grad(), torch.inference_mode(False):
            # The transform's numbers are constants, which is what tracing warns of.
            warnings.simplefilter("ignore")
            # One image: tracing runs the network several times, in fp32.
            example = torch.zeros((1, *self._shape[1:]), dtype=torch.uint8)
            model = openvino.convert_model(ordered, example_input=example, input=[self._shape])
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        return openvino.Core().compile_model(model, "CPU", settings)


class _Ordered(nn.Module):
    """(N, S, S, 3) uint8 -> the layers, one behind the other."""

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.network(images.permute(0, 3, 1, 2))
        return tuple(features[name] for name in self.layers)


def _openvino() -> Any:
    # Without this package OpenVINO takes a stub of its own, and tells nobody that it is used.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # how Python is told: not there
    import openvino

    return openvino
