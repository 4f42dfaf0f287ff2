"""The network as a program of OpenVINO, on CPUs: compiled in a second or two, and faster than torch's."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featcache.backbones.stem import in_one_precision
from featcache.backbones.tapping import in_order
from featcache.errors import MissingExtra, RunnerUnsuitable, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from featcache.backbones.normalised import Rows
    from featcache.backbones.program import Compute

# Precisions, in OpenVINO's words.
_PRECISIONS = {"bf16": "bf16", "fp32": "f32"}


class _OpenVino:
    one_shape = True
    alone = False
    precisions: tuple[str, ...] = tuple(_PRECISIONS)
    devices: tuple[str, ...] = ("cpu",)

    def require(self) -> None:
        """Raises MissingExtra."""
        if not installed():
            raise MissingExtra("--runner openvino", package="openvino", extra="openvino")

    def compute(self, rows: Rows, *, device: str, precision: str, batch_size: int) -> Compute:
        """See Runner. It is converted when it first runs, which takes seconds."""
        from featcache.backbones.normalised import Rows

        part = in_one_precision(rows.part, precision)
        network = Rows(part, rows.transform, rows.layers).eval()
        return Program(network, batch_size=batch_size, image_size=rows.transform.image_size, precision=precision)


def installed() -> bool:
    """Whether the package is there; nothing is imported."""
    return importlib.util.find_spec("openvino") is not None


class Program:
    """A network for batches of one size; it is made when it first runs.

    Args:
        network: (N, 3, S, S) uint8 -> {layer: (N, D)} float32; it computes everything in one precision.
    """

    def __init__(self, network: Rows, *, batch_size: int, image_size: int, precision: str) -> None:
        self._network: Rows | None = network
        self._layers = tuple(layer.name for layer in network.layers)
        self._shape = (batch_size, image_size, image_size, 3)
        self._precision = _PRECISIONS[precision]
        self._compiled: Any = None

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """(N, 3, S, S) uint8 in channels-last -> {layer: (N, D)} float32."""
        if self._compiled is None:
            try:
                self._compiled, self._network = self._made(), None
            except Exception as error:
                # Whatever the conversion raises.
                raise RunnerUnsuitable("openvino", "this network", one_line(error)) from error
        # As it lies in memory: no copy.
        values = self._compiled(batch.permute(0, 2, 3, 1).contiguous().numpy())
        return {name: torch.from_numpy(values[number]) for number, name in enumerate(self._layers)}

    def _made(self) -> Any:
        openvino = _openvino()
        assert self._network is not None
        ordered = in_order(_ChannelsLast(self._network), self._layers)
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


class _ChannelsLast(nn.Module):
    """(N, S, S, 3) uint8, as images lie in memory -> the layers' rows as a mapping."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images.permute(0, 3, 1, 2))


def _openvino() -> Any:
    # Without this package OpenVINO uses a stub of its own in its place, and reports nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # marks it as absent
    import openvino

    return openvino


RUNNER = _OpenVino()
