"""The file formats of an exported network: how to write a file, and how to run it.

    onnx    one file, for onnxruntime and other programs that read ONNX
    pt2     torch.export's own archive, only for torch
    torch   a folder with the backbone and the head as one nn.Module, to train both together (`finetuning`)

onnx and pt2 take `images` (N, H, W, 3) uint8 with any N, H and W, and return float32 (N, C): `probabilities`, or
`values` where a head predicts numbers.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from featcache.backbones.loading import Plain, plain
from featcache.backbones.pooling import Pooling
from featcache.backbones.probing import ProbedLayer
from featcache.backbones.zoos import timm, torchvision, zoo_of
from featcache.backbones.zoos.pixels import NAME as PIXELS
from featcache.errors import ExportError, MissingExtra
from featcache.files import atomic_file, atomic_folder, fsync_file
from featcache.inference import finetuning
from featcache.inference.array_files import require_new_folder
from featcache.inference.classifier import Branch, Classifier
from featcache.inference.network import WholeNetwork
from featcache.rows.target import HeadTarget

PredictFile = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

# Not 1, because torch.export treats a dimension of 1 as constant, and not the size that a backbone needs.
_EXAMPLE = (2, 37, 41, 3)
_DYNAMIC = {"images": {0: "batch", 1: "height", 2: "width"}}
# protobuf is limited to 2 GiB; the graph itself is small.
_ONNX_BYTES = 2_000_000_000
# The version of ONNX operators that torch.onnx produces without a conversion.
_OPSET = 18
METADATA = "featcache"
_TENSORS = "model.safetensors"


class NetworkFormat(ABC):
    """A file format for networks."""

    name: ClassVar[str]

    @abstractmethod
    def require(self) -> None:
        """Raise MissingExtra where a package is missing. Called before anything is computed."""

    def atomic(self, path: Path) -> AbstractContextManager[Path]:
        """A temporary path to write to, which becomes `path`. Raises InvalidOption where it cannot."""
        return atomic_file(path)

    @abstractmethod
    def write(self, classifier: Classifier, path: Path, metadata: Mapping[str, Any], weights_dir: Path) -> None:
        """Write the network, with its metadata as JSON under the name `featcache`.

        Args:
            classifier: The run with its backbones.
            path: The file to write.
            metadata: Facts about the run.
            weights_dir: The folder of downloaded weights.

        Raises:
            ExportError: The network cannot be exported.
        """

    @abstractmethod
    def open(self, path: Path) -> PredictFile:
        """Load a file as a function: (N, H, W, 3) uint8 -> float32 (N, C), on the CPU."""


def output_name(target: HeadTarget) -> str:
    """The name of the output of an exported network."""
    return "values" if target.kind == "numbers" else "probabilities"


class Onnx(NetworkFormat):
    """One ONNX file, weights inside, metadata in its metadata_props."""

    name = "onnx"

    def require(self) -> None:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _import(package)

    def write(self, classifier: Classifier, path: Path, metadata: Mapping[str, Any], weights_dir: Path) -> None:
        network = WholeNetwork(classifier)
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
                output_names=[output_name(classifier.run.target)],
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

    def write(self, classifier: Classifier, path: Path, metadata: Mapping[str, Any], weights_dir: Path) -> None:
        with _quiet(), path.open("wb") as file:
            torch.export.save(
                _trace(WholeNetwork(classifier)), file, extra_files={f"{METADATA}.json": json.dumps(metadata)}
            )

    def open(self, path: Path) -> PredictFile:
        with _quiet(), path.open("rb") as file:
            network = torch.export.load(file).module()

        def predict_file(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                outputs: NDArray[np.float32] = network(torch.tensor(images)).numpy()
            return outputs

        return predict_file


class TorchModule(NetworkFormat):
    """A folder: model.py, which is the source of `finetuning`, config.json and model.safetensors."""

    name = "torch"

    def require(self) -> None:
        """Nothing to check: torch and torchvision are always installed."""

    def atomic(self, path: Path) -> AbstractContextManager[Path]:
        require_new_folder(self.name, path)
        return atomic_folder(path)

    def write(self, classifier: Classifier, path: Path, metadata: Mapping[str, Any], weights_dir: Path) -> None:
        parts = [_BackbonePart.of(branch, weights_dir) for branch in classifier.images.branches]
        config = {
            METADATA: metadata,
            "target": classifier.run.target.to_json(),
            "image": _common_image(classifier),
            "backbones": [part.config for part in parts],
            "head": _head_layers(classifier),
        }
        tensors = {f"head.{name}": tensor for name, tensor in _head_of(classifier).state_dict().items()}
        for number, part in enumerate(parts):
            tensors |= {f"backbones.{number}.network.{name}": tensor for name, tensor in part.tensors.items()}
        # Copies, because tensors must not share memory.
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path / _TENSORS)
        (path / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        source = Path(finetuning.__file__).read_text(encoding="utf-8")
        (path / "model.py").write_text(source, encoding="utf-8")
        for file in path.iterdir():
            fsync_file(file)

    def open(self, path: Path) -> PredictFile:
        # The file that was written is run, not the module of featcache; `runpy` writes no bytecode beside it.
        model = runpy.run_path(str(path / "model.py"))["load"](path)

        def predict_file(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            batch = torch.stack([model.transform(Image.fromarray(image)) for image in images])
            outputs: NDArray[np.float32] = model.predict(batch).numpy()
            return outputs

        return predict_file


@dataclass(frozen=True, kw_only=True, eq=False)
class _BackbonePart:
    """A backbone in the folder: what `finetuning.Backbone` is made from, and the tensors of its network."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, branch: Branch, weights_dir: Path) -> _BackbonePart:
        """Load the network unchanged, as its library builds it. Raises ExportError for one that cannot be named."""
        spec = branch.backbone.spec
        options = branch.backbone.options
        scale = {layer.name: {"scale": layer.scale, "offset": layer.offset} for layer in branch.layers}
        config: dict[str, Any] = {"mean": spec.transform.mean, "std": spec.transform.std}
        if spec.name == PIXELS:
            layer = {"name": PIXELS, "pooling": asdict(Pooling()), **scale[PIXELS]}
            return cls(config={**config, "library": PIXELS, "layers": [layer], "unused": []}, tensors={})
        if options is None or spec.is_own_module or zoo_of(spec.name).prefix not in ("", timm.PREFIX):
            raise ExportError(
                f"--format torch builds the backbone from torchvision or timm, and {spec.name} is of neither",
                hint="--format pt2 or onnx",
            )
        pools = {layer.name: layer.pooling.name for layer in spec.layers}
        network = plain(options, weights_dir=weights_dir, transform=spec.transform, pools=pools)
        unused = _find_unneeded(network, spec.transform.image_size)
        tensors = {
            name.removeprefix(network.inside): tensor
            for name, tensor in network.root.state_dict().items()
            if not any(name.removeprefix(network.inside).startswith(f"{path}.") for path in unused)
        }
        pooling = {layer.name: asdict(layer.pooling) for layer in network.layers}
        layers = [
            {**_place(network.probed[name], network.inside), "pooling": pooling[name], **scale[name]} for name in scale
        ]
        library, name, arguments = _constructor(spec.name, spec.transform.image_size)
        config |= {"library": library, "name": name, "arguments": arguments, "layers": layers, "unused": unused}
        return cls(config=config, tensors=tensors)


def _constructor(name: str, image_size: int) -> tuple[str, str, dict[str, Any]]:
    """The library of a backbone, its name there, and the arguments that build it."""
    if name.startswith(timm.PREFIX):
        return "timm", name.removeprefix(timm.PREFIX), dict(timm.arguments(name, image_size))
    arguments = torchvision.arguments(name, image_size)
    # Weights are loaded at once, so initial values are of no use.
    return "torchvision", name, arguments | dict.fromkeys(arguments.keys() & {"init_weights"}, False)


def _place(probed: ProbedLayer, inside: str) -> dict[str, Any]:
    """Where `finetuning` reads a layer; no module: its `standard` layers of timm."""
    path = f"{probed.tap.module}."
    module = path.removeprefix(inside).removesuffix(".") if path.startswith(inside) else None
    return {"name": probed.name, "module": module, "side": probed.tap.side, "calls": probed.calls}


def _find_unneeded(network: Plain, image_size: int) -> list[str]:
    """Paths of the largest modules that no layer needs: none of their parts is called, and no tensor is needed."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in network.root.named_modules()
    ]
    try:
        with torch.inference_mode():
            network.part(torch.zeros(1, 3, image_size, image_size))
    finally:
        for hook in hooks:
            hook.remove()
    needed = {*called, *(network.inside + name for name in network.tensors)}
    unused: list[str] = []
    for name, module in network.root.named_modules():
        path = name.removeprefix(network.inside)
        if not name.startswith(network.inside) or any(path.startswith(f"{outer}.") for outer in unused):
            continue
        is_needed = any(one == name or one.startswith(f"{name}.") for one in needed)
        if not is_needed and next(module.parameters(), None) is not None:
            unused.append(path)
    return unused


def _common_image(classifier: Classifier) -> dict[str, Any]:
    """How every backbone resizes. Raises ExportError where they differ."""
    found = [branch.backbone.spec.transform for branch in classifier.images.branches]
    sizes = {(one.image_size, one.resize, one.resize_size, one.interpolation) for one in found}
    if len(sizes) > 1:
        raise ExportError(
            f"--format torch has one size of images, and the backbones have {len(sizes)}: "
            + ", ".join(f"{size} ({resize}, {interpolation})" for size, resize, _, interpolation in sorted(sizes)),
            hint="--format pt2 or onnx; or extract them with the same --image-size",
        )
    first = found[0]
    shorter = (first.resize_size or first.image_size) if first.resize == "crop" else None
    return {"size": first.image_size, "shorter_side": shorter, "interpolation": first.interpolation}


def _head_of(classifier: Classifier) -> nn.Module:
    """The head as layers of torch. Raises ExportError for one that has none."""
    architecture = classifier.run.config.architecture
    if architecture.own or architecture.kind == "knn":
        why = "is a module of your own" if architecture.own else "has no weights to train"
        raise ExportError(
            f"--format torch is for heads of torch's own layers, and {architecture} {why}",
            hint="--format pt2 or onnx; or train another --head",
        )
    return classifier.run.head()


def _head_layers(classifier: Classifier) -> list[tuple[str, str, list[Any]]]:
    """The layers of a head: name, class in torch.nn, arguments."""
    layers: list[tuple[str, str, list[Any]]] = []
    for name, layer in _head_of(classifier).named_children():
        arguments: list[Any] = []
        if isinstance(layer, nn.Linear):
            arguments = [layer.in_features, layer.out_features]
        elif isinstance(layer, nn.Dropout):
            arguments = [layer.p]
        layers.append((name, type(layer).__name__, arguments))
    return layers


NETWORK_FORMATS: Mapping[str, NetworkFormat] = {kind.name: kind for kind in (Onnx(), Pt2(), TorchModule())}


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
