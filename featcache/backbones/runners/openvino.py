"""The runner `openvino`: OpenVINO on CPUs, which compiles in about two seconds and is faster than torch."""

from __future__ import annotations

import functools
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

    from featcache.backbones.feature_module import FeatureModule
    from featcache.backbones.program import Compute

# OpenVINO's names of precisions.
_PRECISIONS = {"bf16": "bf16", "fp32": "f32"}


class _OpenVino:
    one_shape = True
    alone = False
    precisions: tuple[str, ...] = tuple(_PRECISIONS)
    devices: tuple[str, ...] = ("cpu",)

    def require(self) -> None:
        """Raises MissingExtra if the package is not installed."""
        if not installed():
            raise MissingExtra("--runner openvino", package="openvino", extra="openvino")

    def compute(self, rows: FeatureModule, *, device: str, precision: str, batch_size: int) -> Compute:
        """See Runner. The first call converts the network, which takes seconds."""
        from featcache.backbones.feature_module import FeatureModule

        part = in_one_precision(rows.part, precision)
        network = FeatureModule(part, rows.transform, rows.layers).eval()
        return Program(network, batch_size=batch_size, image_size=rows.transform.image_size, precision=precision)


def installed() -> bool:
    """Whether the package is installed; nothing is imported."""
    return importlib.util.find_spec("openvino") is not None


class Program:
    """A network for one batch size; it is compiled at the first call.

    Args:
        network: uint8 (N, 3, S, S) -> {layer: float32 (N, D)}, without autocast.
    """

    def __init__(self, network: FeatureModule, *, batch_size: int, image_size: int, precision: str) -> None:
        self._network: FeatureModule | None = network
        self._layers = tuple(layer.name for layer in network.layers)
        self._shape = (batch_size, image_size, image_size, 3)
        self._precision = _PRECISIONS[precision]
        self._compiled: Any = None

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """uint8 (N, 3, S, S) in channels-last -> {layer: float32 (N, D)}."""
        if self._compiled is None:
            try:
                self._compiled, self._network = self._compile(), None
            except Exception as error:
                # The conversion may raise any exception.
                raise RunnerUnsuitable("openvino", "this network", one_line(error)) from error
        # The order in memory stays the same: no copy.
        values = self._compiled(batch.permute(0, 2, 3, 1).contiguous().numpy())
        return {name: torch.from_numpy(values[number]) for number, name in enumerate(self._layers)}

    def _compile(self) -> Any:
        openvino, core = _openvino(), _core()
        assert self._network is not None
        ordered = in_order(_ChannelsLast(self._network), self._layers)
        with warnings.catch_warnings(), torch.no_grad(), torch.inference_mode(False):
            # Tracing warns that the transform's numbers become constants, which is intended.
            warnings.simplefilter("ignore")
            # One image, because tracing runs the network several times, in fp32.
            example = torch.zeros((1, *self._shape[1:]), dtype=torch.uint8)
            model = openvino.convert_model(ordered, example_input=example, input=[self._shape])
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        return core.compile_model(model, "CPU", settings)


class _ChannelsLast(nn.Module):
    """The network with channels-last input: uint8 (N, S, S, 3) -> {layer: (N, D)}."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images.permute(0, 3, 1, 2))


@functools.cache
def _core() -> Any:
    # One for the process. Each `Core` that compiles for the CPU gives its thread another stack for signal handlers, and
    # puts the stack that it found back when it is freed. Of several, that may be one that was freed before: the next
    # Ctrl-C would end the process with a segmentation fault.
    return _openvino().Core()


def _openvino() -> Any:
    # If this package is absent, OpenVINO uses its own stub and sends no telemetry.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # marks it as absent
    import openvino

    return openvino


RUNNER = _OpenVino()
