"""The file formats of an exported network: how to write a file, and how to run it.

    onnx    one file, for onnxruntime and other programs that read ONNX
    pt2     torch.export's own archive, only for torch

Both take `images` (N, H, W, 3) uint8 with any N, H and W, and return float32 (N, C): `probabilities`, or
`values` where a head predicts numbers.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim, ExportedProgram

from featcache.errors import ExportError, MissingExtra

PredictFile = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

# Not 1, because torch.export treats a dimension of 1 as constant, and not the size that a backbone needs.
_EXAMPLE = (2, 37, 41, 3)
_DYNAMIC = {"images": {0: "batch", 1: "height", 2: "width"}}
# protobuf is limited to 2 GiB; the graph itself is small.
_ONNX_BYTES = 2_000_000_000
# The version of ONNX operators that torch.onnx produces without a conversion.
_OPSET = 18
METADATA = "featcache"


class NetworkFormat(ABC):
    """A file format for networks."""

    name: ClassVar[str]

    @abstractmethod
    def require(self) -> None:
        """Raise MissingExtra where a package is missing. Called before anything is computed."""

    @abstractmethod
    def write(self, network: nn.Module, path: Path, metadata: Mapping[str, Any], output: str) -> None:
        """Write the network, with its metadata as JSON under the name `featcache`.

        Args:
            network: (N, H, W, 3) uint8 -> (N, C).
            path: The file to write.
            metadata: Facts about the run.
            output: The name of the output in the file.

        Raises:
            ExportError: The network cannot be exported.
        """

    @abstractmethod
    def open(self, path: Path) -> PredictFile:
        """Load a file as a function: (N, H, W, 3) uint8 -> float32 (N, C), on the CPU."""


class Onnx(NetworkFormat):
    """One ONNX file, weights inside, metadata in its metadata_props."""

    name = "onnx"

    def require(self) -> None:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _import(package)

    def write(self, network: nn.Module, path: Path, metadata: Mapping[str, Any], output: str) -> None:
        size = sum(tensor.nbytes for tensor in network.state_dict().values())
        if size > _ONNX_BYTES:
            raise ExportError(
                f"the network has {size / 1e9:.1f} GB of weights, and one ONNX file holds at most 2 GB",
                hint="--format pt2 has no such limit; --pool avg makes features, and heads, smaller",
            )
        with _quiet():
            program = torch.onnx.export(
                _trace(network),
                input_names=["images"],
                output_names=[output],
                dynamic_shapes=_DYNAMIC,
                opset_version=_OPSET,
                verbose=False,
            )
        if program is None:
            raise ExportError("torch returned no ONNX program")
        program.model.metadata_props[METADATA] = json.dumps(metadata)
        program.save(str(path), external_data=False)

    def open(self, path: Path) -> PredictFile:
        session = _import("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def predict_file(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            (outputs,) = session.run(None, {"images": images})
            return np.asarray(outputs)

        return predict_file


class Pt2(NetworkFormat):
    """torch.export's archive, metadata in its extra file `featcache.json`."""

    name = "pt2"

    def require(self) -> None:
        """Nothing to check: torch is always installed."""

    def write(self, network: nn.Module, path: Path, metadata: Mapping[str, Any], output: str) -> None:
        with _quiet(), path.open("wb") as file:
            torch.export.save(_trace(network), file, extra_files={f"{METADATA}.json": json.dumps(metadata)})

    def open(self, path: Path) -> PredictFile:
        with _quiet(), path.open("rb") as file:
            network = torch.export.load(file).module()

        def predict_file(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                outputs: NDArray[np.float32] = network(torch.tensor(images)).numpy()
            return outputs

        return predict_file


NETWORK_FORMATS: Mapping[str, NetworkFormat] = {kind.name: kind for kind in (Onnx(), Pt2())}


def _trace(network: nn.Module) -> ExportedProgram:
    sizes = {"images": {number: Dim(name, min=1, max=1 << 20) for number, name in _DYNAMIC["images"].items()}}
    example = torch.zeros(_EXAMPLE, dtype=torch.uint8)
    try:
        with torch.no_grad():
            return torch.export.export(network, (example,), dynamic_shapes=sizes, strict=False)
    except Exception as error:
        # Tracing a module of the user's own may raise any exception.
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"torch cannot export this network: {type(error).__name__}: {reason}") from error


def _import(package: str) -> Any:
    # Set before onnxruntime is loaded: otherwise it sends usage data to its vendor.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra("--format onnx", package=package, extra="export") from error


def _quiet() -> warnings.catch_warnings[None]:
    """Suppress the warnings of the exporters; the files that they write are checked anyway."""
    return warnings.catch_warnings(action="ignore")
