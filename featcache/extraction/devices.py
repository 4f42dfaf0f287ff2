"""Which device computes, in which precision, and what both are called in the provenance."""

from __future__ import annotations

import platform
from typing import Any

from featcache.errors import InvalidOption

PRECISIONS = ("fp32", "bf16", "fp16")


def resolve_device(said: str) -> str:
    """The device that `auto` means here (CUDA, then MPS, then CPU), or the one named, if it is there.

    Raises InvalidOption for a device that this machine does not have.
    """
    import torch

    if said == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(said)
    except RuntimeError as error:
        raise InvalidOption(f"unknown device {said!r}", hint="use auto, cpu, mps, cuda or cuda:N") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False) or (device.type == "cuda" and (device.index or 0) >= _gpus()):
        raise InvalidOption(
            f"device {said!r} is not on this machine, which has {', '.join(k for k, v in present.items() if v)}",
            hint="leave --device out to use the best there is",
        )
    return said


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def unused_gpu(device: str) -> str | None:
    """A sentence about a GPU that is there and not used; None where nothing is wasted."""
    import torch

    if device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return f"computing on {device} although {torch.cuda.get_device_name()} is there; leave --device out to use it"


def resolve_precision(said: str, device: str) -> str:
    """The precision that `auto` means on `device`: bf16 where the hardware multiplies it, else fp32.

    Raises InvalidOption for anything but auto, fp32, bf16 and fp16, and for fp16 on a CPU.
    """
    if said == "auto":
        return "bf16" if _multiplies_bf16(device) else "fp32"
    if said not in PRECISIONS:
        raise InvalidOption(f"expected --precision auto, {', '.join(PRECISIONS)}, got {said!r}")
    if said == "fp16" and device == "cpu":
        raise InvalidOption("fp16 is not computed on a CPU", hint="use --precision bf16 or fp32")
    return said


def _multiplies_bf16(device: str) -> bool:
    import torch

    if device.startswith("cuda"):
        # Before Ampere bf16 is emulated, slower than fp32.
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def provenance(device: str) -> dict[str, Any]:
    """Versions and hardware: recorded and shown, no part of a cache's identity."""
    from importlib.metadata import version

    import torch

    packages = ("featcache", "torch", "torchvision", "numpy", "h5py", "pillow")
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processor": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: version(package) for package in packages},
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - a pseudo-file of Linux
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
