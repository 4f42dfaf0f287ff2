"""Chooses devices and precisions, and records hardware and versions for the provenance."""

from __future__ import annotations

import math
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

from featcache.errors import InvalidOption

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
PRECISIONS = ("fp32", "bf16", "fp16")


def resolve_device(name: str) -> str:
    """The device for "auto" (CUDA, then MPS, then CPU), or the given device if this machine has it.

    Raises InvalidOption for a device that this machine does not have.
    """
    if name == "cpu":
        return name
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidOption(f"unknown device {name!r}", hint="use auto, cpu, mps, cuda or cuda:N") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False) or (device.type == "cuda" and (device.index or 0) >= _gpus()):
        raise InvalidOption(
            f"device {name!r} is not on this machine, which has {', '.join(k for k, v in present.items() if v)}",
            hint="leave --device out to use the best device",
        )
    return name


def all_gpus() -> tuple[str, ...]:
    """The names of all GPUs: "cuda:0", ... Raises InvalidOption if there is none."""
    if not _gpus():
        resolve_device("cuda")
    return tuple(f"cuda:{number}" for number in range(_gpus()))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def gpu_warning(device: str) -> str | None:
    """A message if this machine has a GPU that is not used; else None."""
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
    """The number of cores that this process may use, by its CPU affinity and its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _quota(path: Path) -> int:
    """The cores that a control group's file grants ("200000 100000": two), rounded up; 2^20 without a limit."""
    try:
        granted, period = path.read_text().split()
        return math.ceil(int(granted) / int(period))
    except (OSError, ValueError):
        return 1 << 20


def idle_cores_warning(device: str) -> str | None:
    """A message if torch uses less than half of the cores on the CPU; else None."""
    import torch

    threads, there = torch.get_num_threads(), cores()
    # With hyper-threading torch uses half of the logical cores, which is right.
    if device != "cpu" or 2 * threads >= there:
        return None
    limit = os.environ.get("OMP_NUM_THREADS")
    reason = f" because of OMP_NUM_THREADS={limit}; unset it" if limit else "; torch.set_num_threads raises the number"
    return f"computing with {threads} thread{'s' if threads > 1 else ''} on {there} cores{reason}"


def resolve_precision(name: str, device: str) -> str:
    """The precision for "auto" on `device` (bf16 if the hardware supports it, else fp32), or the given precision.

    Raises InvalidOption for anything but auto, fp32, bf16 and fp16, and for fp16 on a CPU.
    """
    if name == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    if name not in PRECISIONS:
        raise InvalidOption(f"expected --precision auto, {', '.join(PRECISIONS)}, got {name!r}")
    if name == "fp16" and device == "cpu":
        raise InvalidOption("fp16 is not supported on a CPU", hint="use --precision bf16 or fp32")
    return name


def precisions_of(device: str) -> dict[str, bool]:
    """Whether the hardware of `device` supports each precision, by name."""
    return {
        "fp32": True,
        "bf16": multiplies_bf16(device),
        "fp16": device.partition(":")[0] in ("cuda", "mps"),
    }


def multiplies_bf16(device: str) -> bool:
    """Whether a device has instructions that multiply bf16."""
    import torch

    if device.startswith("cuda"):
        # Before Ampere bf16 is emulated, slower than fp32.
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def provenance(device: str, *also: str) -> dict[str, Any]:
    """Hardware and versions (also of the packages `also`) to record; they are not part of a cache's identity."""
    import torch

    packages = ("featcache", "torch", "torchvision", "numpy", "h5py", "pillow", *also)
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processor": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: _version(package) for package in packages},
    }


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Everything that influences rounding on the CPU: versions, processor, threads."""
    import torch

    return {**versions(), "processor": _cpu_name(), "threads": torch.get_num_threads()}


@cache
def _version(package: str) -> str:
    """The installed version, read once in a process: a library that is imported does not change."""
    from importlib.metadata import version

    return version(package)


def versions() -> dict[str, str]:
    """The versions of torch and the libraries of networks, as far as installed; nothing is imported."""
    from importlib.metadata import PackageNotFoundError

    installed = {}
    for package in ("torch", "torchvision", "timm", "transformers", "open_clip_torch"):
        try:
            installed[package] = _version(package)
        except PackageNotFoundError:
            continue
    return installed
