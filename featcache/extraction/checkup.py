"""Describe this machine and estimate how fast it will extract: it takes seconds, before a run of hours.

Nothing is downloaded, and temporary files are removed. Images/s are an estimate: the speed of a convolution like the
backbone's own, divided by the arithmetic that the backbone needs for one image.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featcache.backbones import devices
from featcache.backbones.runners import RUNNERS
from featcache.backbones.runners.compiled import compiler
from featcache.backbones.transforms import Transform
from featcache.display import Shown
from featcache.extraction.computing import decoding_threads_with_network
from featcache.images.decoding import decode

_MIB = 1 << 20
_DISK_BYTES = 64 * _MIB
_JPEG_SIZE = (640, 480)


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """A convolution that stands for a backbone: channels in and out, its input's side, its kernel."""

    flops_per_image: float
    channels: int
    side: int
    kernel: tuple[int, int]


# Two thirds of VGG16's arithmetic and half of Inception v3's are convolutions of about this shape. The flops are
# those of the default layers at 224 and 299 pixels.
_PROBES = {
    "vgg16": _Probe(flops_per_image=30.7e9, channels=256, side=56, kernel=(3, 3)),
    "inception_v3": _Probe(flops_per_image=11.4e9, channels=192, side=17, kernel=(1, 7)),
}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The expected speed of a backbone on this machine; an estimate, not a measurement of the backbone."""

    gflops: float
    images_per_s: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Checkup(Shown):
    """This machine and its speeds. `expected` is by backbone; speeds are None where they could not be measured.

    `decode_images_per_s` is for one thread and JPEGs of 640x480, decoded and resized to 224; `disk_mb_per_s` is for
    writing to the data folder's disk, until the data are on the disk (fsync).
    """

    device: str
    device_name: str
    precision: str
    precisions: dict[str, bool]
    cores: int
    threads: int
    decoding_threads: int
    blas: str
    compiler: str | None
    versions: dict[str, str]
    decode_images_per_s: float
    disk_mb_per_s: float | None
    disk_free_gb: float
    expected: dict[str, Speed]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `featcache doctor --json`."""
        expected = {
            name: {"gflops": round(speed.gflops, 1), "images_per_s": round(speed.images_per_s, 1), "estimate": True}
            for name, speed in self.expected.items()
        }
        return asdict(self) | {"expected": expected, "warnings": list(self.warnings)}


def examine(data_dir: Path, *, moment_s: float = 1.0) -> Checkup:
    """Examine this machine.

    Args:
        data_dir: The speed and the free space of its disk are measured. It need not exist.
        moment_s: Seconds to measure each speed.

    Returns:
        The device, the versions and the speeds. A device or a disk with a fault raises no error.
    """
    device = devices.resolve_device("auto")
    precision = devices.resolve_precision("auto", device)
    details = devices.provenance(device, *(name for name in RUNNERS if find_spec(name) is not None))
    home = _existing(data_dir)
    return Checkup(
        device=device,
        device_name=details["device"] if device.startswith("cuda") else details["processor"],
        precision=precision,
        precisions=devices.precisions_of(device),
        cores=devices.cores(),
        threads=details["threads"],
        decoding_threads=decoding_threads_with_network(device),
        blas=_blas(),
        compiler=compiler(),
        versions={"python": platform.python_version(), **details["versions"]},
        decode_images_per_s=round(_decode_speed(moment_s), 1),
        disk_mb_per_s=_disk_speed(home),
        disk_free_gb=round(shutil.disk_usage(home).free / 1e9, 1),
        expected={name: _speed(probe, device, precision, moment_s) for name, probe in _PROBES.items()},
        warnings=tuple(
            one for one in (devices.gpu_warning(device), devices.idle_cores_warning(device)) if one is not None
        ),
    )


def _blas() -> str:
    import torch

    libraries: dict[str, Any] = {"oneDNN": torch.backends.mkldnn, "MKL": torch.backends.mkl}
    there = [name for name, library in libraries.items() if library.is_available()]
    return ", ".join(there) or "neither oneDNN nor MKL"


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists: it lies on the same disk."""
    return next((one for one in [folder.absolute(), *folder.absolute().parents] if one.is_dir()), Path.cwd())


def _rate(work: Callable[[], None], moment_s: float) -> float:
    """Calls of `work` per second; the first call, a warm-up, does not count."""
    work()
    began, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < moment_s or not done:
        work()
        done += 1
    return done / passed


def _decode_speed(moment_s: float) -> float:
    width, height = _JPEG_SIZE
    # A smooth picture with some noise compresses about as a photograph does.
    slope = np.add.outer(np.linspace(0, 150, height), np.linspace(0, 60, width))[..., None]
    noise = np.random.default_rng(0).integers(0, 30, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray((slope + noise).astype(np.uint8)).save(file, "JPEG", quality=85)
    payload, transform = file.getvalue(), Transform(image_size=224)
    return _rate(lambda: _discard(transform.resize_image(decode(payload, "a picture"))), moment_s)


def _discard(_: object) -> None:
    return None


def _disk_speed(folder: Path) -> float | None:
    block = np.random.default_rng(0).bytes(_MIB)
    with suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(_DISK_BYTES // _MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return round(_DISK_BYTES / 1e6 / (time.perf_counter() - began), 1)
    return None


def _speed(probe: _Probe, device: str, precision: str, moment_s: float) -> Speed:
    import torch
    from torch import nn

    batch = 16 if device == "cpu" else 256
    padding = (probe.kernel[0] // 2, probe.kernel[1] // 2)
    convolution = nn.Conv2d(probe.channels, probe.channels, probe.kernel, padding=padding)
    convolution = convolution.to(device).to(memory_format=torch.channels_last).eval()
    images = torch.rand(batch, probe.channels, probe.side, probe.side, device=device)
    images = images.to(memory_format=torch.channels_last)
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def work() -> None:
        convolution(images)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    kind = torch.device(device).type
    with torch.inference_mode(), torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
        rate = _rate(work, moment_s)
    flops = 2 * batch * probe.channels**2 * probe.side**2 * probe.kernel[0] * probe.kernel[1]
    return Speed(gflops=rate * flops / 1e9, images_per_s=rate * flops / probe.flops_per_image)
