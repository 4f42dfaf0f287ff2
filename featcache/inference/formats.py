"""The formats of an exported network: how a file of each is written, and how it is asked.

    onnx    for onnxruntime and whatever else reads ONNX; one file
    pt2     torch.export's own archive, for torch alone

Both take `images` (N, H, W, 3) uint8 with any N, H and W, and give float32 (N, C): `probabilities`, or
`values` where a head gives numbers.
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

Ask = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

# Neither 1, which would be taken for a constant, nor the size that a backbone wants.
_EXAMPLE = (2, 37, 41, 3)
_DYNAMIC = {"images": {0: "batch", 1: "height", 2: "width"}}
# What protobuf can hold is 2 GiB; the graph itself needs little.
_ONNX_BYTES = 2_000_000_000
# torch.onnx itself translates to this one.
_OPSET = 18
METADATA = "featcache"


class NetworkFormat(ABC):
    """How a network becomes a file."""

    name: ClassVar[str]

    @abstractmethod
    def require(self) -> None:
        """Raises MissingExtra where a package is missing, before anything is computed."""

    @abstractmethod
    def write(self, network: nn.Module, path: Path, metadata: Mapping[str, Any], output: str) -> None:
        """Write the network, and what is known of it as JSON under the name `featcache`. Raises ExportError.

        `output`: what the file calls what it gives.
        """

    @abstractmethod
    def open(self, path: Path) -> Ask:
        """The file as a function: (N, H, W, 3) uint8 -> float32 (N, C), on the CPU."""


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
                _traced(network),
                input_names=["images"],
                output_names=[output],
                dynamic_shapes=_DYNAMIC,
                opset_version=_OPSET,
                verbose=False,
            )
        if program is None:
            raise ExportError("torch gave no ONNX program")
        program.model.metadata_props[METADATA] = json.dumps(metadata)
        program.save(str(path), external_data=False)

    def open(self, path: Path) -> Ask:
        session = _import("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def ask(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            (outputs,) = session.run(None, {"images": images})
            return np.asarray(outputs)

        return ask


class Pt2(NetworkFormat):
    """torch.export's archive, metadata in its extra file `featcache.json`."""

    name = "pt2"

    def require(self) -> None:
        """Torch is always there."""

    def write(self, network: nn.Module, path: Path, metadata: Mapping[str, Any], output: str) -> None:
        with _quiet(), path.open("wb") as file:
            torch.export.save(_traced(network), file, extra_files={f"{METADATA}.json": json.dumps(metadata)})

    def open(self, path: Path) -> Ask:
        with _quiet(), path.open("rb") as file:
            network = torch.export.load(file).module()

        def ask(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                outputs: NDArray[np.float32] = network(torch.tensor(images)).numpy()
            return outputs

        return ask


NETWORK_FORMATS: Mapping[str, NetworkFormat] = {kind.name: kind for kind in (Onnx(), Pt2())}


def _traced(network: nn.Module) -> ExportedProgram:
    sizes = {"images": {number: Dim(name, min=1, max=1 << 20) for number, name in _DYNAMIC["images"].items()}}
    example = torch.zeros(_EXAMPLE, dtype=torch.uint8)
    try:
        with torch.no_grad():
            return torch.export.export(network, (example,), dynamic_shapes=sizes, strict=False)
    except Exception as error:
        # Whatever tracing may raise about a module of one's own.
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"torch cannot export this network: {type(error).__name__}: {reason}") from error


def _import(package: str) -> Any:
    # Before onnxruntime is loaded: it would report home otherwise.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra("--format onnx", package=package, extra="export") from error


def _quiet() -> warnings.catch_warnings[None]:
    """Silences what exporters say about themselves; what they write is checked anyway."""
    return warnings.catch_warnings(action="ignore")
