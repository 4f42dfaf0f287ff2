"""Which device computes, in which precision, and what both are called in the provenance."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Any

from featcache.errors import InvalidOption

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
PRECISIONS = ("fp32", "bf16", "fp16")


def resolve_device(said: str) -> str:
    """The device that `auto` means here (CUDA, then MPS, then CPU), or the one named, if it is there.

    Raises InvalidOption for a device that this machine does not have.
    """
    if said == "cpu":
        return said
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


def all_gpus() -> tuple[str, ...]:
    """The names of all GPUs. Raises InvalidOption where there is none."""
    if not _gpus():
        resolve_device("cuda")
    return tuple(f"cuda:{number}" for number in range(_gpus()))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def unused_gpu(device: str) -> str | None:
    """A sentence about a GPU that is there and not used; None where nothing is wasted."""
    import torch

    if device.startswith("cuda"):
        return None
    if not torch.cuda.is_available():
        if not _NVIDIA_DRIVER.exists():
            return None
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for the CPU alone"
        return f"computing on {device}: this machine has an NVIDIA driver, but torch {torch.__version__} {build}"
    return f"computing on {device} although {torch.cuda.get_device_name()} is there; leave --device out to use it"


def cores() -> int:
    """How many cores this process may use: what its affinity and its container's quota leave of the machine's."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _quota(path: Path) -> int:
    """The cores that a control group's file grants ("200000 100000": two), rounded up; a great many without one."""
    try:
        granted, period = path.read_text().split()
        return math.ceil(int(granted) / int(period))
    except (OSError, ValueError):
        return 1 << 20


def idle_cores(device: str) -> str | None:
    """A sentence about cores that torch will not use on the CPU; None where it uses half of them or more."""
    import torch

    threads, there = torch.get_num_threads(), cores()
    # Where every core is shown twice, torch takes half of them, and rightly.
    if device != "cpu" or 2 * threads >= there:
        return None
    said = os.environ.get("OMP_NUM_THREADS")
    reason = f": OMP_NUM_THREADS={said} says so; unset it" if said else "; torch.set_num_threads gives it more"
    return f"computing with {threads} thread{'s' if threads > 1 else ''} on {there} cores{reason}"


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


def supported_precisions(device: str) -> dict[str, bool]:
    """Which precisions the hardware of `device` computes by itself, by name."""
    return {
        "fp32": True,
        "bf16": _multiplies_bf16(device),
        "fp16": device.partition(":")[0] in ("cuda", "mps"),
    }


def _multiplies_bf16(device: str) -> bool:
    import torch

    if device.startswith("cuda"):
        # Before Ampere bf16 is emulated, slower than fp32.
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def provenance(device: str, *also: str) -> dict[str, Any]:
    """Versions (of packages `also`) and hardware: recorded and shown, no part of a cache's identity."""
    from importlib.metadata import version

    import torch

    packages = ("featcache", "torch", "torchvision", "numpy", "h5py", "pillow", *also)
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
        with Path("/proc/cpuinfo").open() as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """What the last bits of a number computed on the CPU depend on: versions, processor, threads."""
    import torch

    return {**versions(), "processor": _cpu_name(), "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    """The versions of the packages that networks come from and compute with; nothing is imported."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "torchvision", "timm", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
