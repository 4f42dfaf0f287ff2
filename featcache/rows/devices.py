"""Choose the device that a head is trained on, and find its free memory. Torch is imported only if it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import InvalidOption

if TYPE_CHECKING:
    import torch

# The share of the free memory that features may take; the rest is for batches, the head and other processes.
RESIDENT_SHARE = 0.6
# Used where the system does not report its free memory.
ASSUMED_FREE_BYTES = 2 << 30
_UNLIMITED = 1 << 62


def choose_device(name: str) -> torch.device:
    """The device for `auto` (cuda, else mps, else cpu) or for a name that torch knows.

    Raises InvalidOption for an unknown name or a device that this machine does not have.
    """
    import torch

    if name == "auto":
        return torch.device(_best_device())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidOption(f"expected --device auto, cpu, cuda, cuda:N or mps, got {name!r}") from error
    if not _is_there(device):
        raise InvalidOption(f"the device {name} is not there", hint="--device auto takes what there is")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def resolve_device_name(name: str, *, solved: bool) -> str:
    """The torch name of a head's device: `cpu`, `cuda:0`, `mps`.

    For a head with a closed-form solver (`solved`), `auto` is the CPU: looking for another device imports torch, which
    takes longer than solving most of these heads.
    Raises what `choose_device` raises.
    """
    if name == "cpu" or (solved and name == "auto"):
        return "cpu"
    return str(choose_device(name))


def free_bytes(device: torch.device | str) -> int:
    """Bytes that can still be allocated on a device, as far as the system reports them."""
    if str(device).startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return min(_system_free(), _container_free())


@contextmanager
def seed_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the `with` block, and restore their states afterwards."""
    import torch

    cuda = [device.index or 0] if device.type == "cuda" else []
    mps_state = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed: that would also reach generators of devices that are not restored here.
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        if mps_state is not None:
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            if mps_state is not None:
                torch.mps.set_rng_state(mps_state)


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_there(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def _system_free() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return ASSUMED_FREE_BYTES


def _container_free() -> int:
    # A container's limit does not show in /proc/meminfo, and a process that exceeds it is killed.
    for folder, limit, used in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            allowed = (folder / limit).read_text().strip()
            taken = int((folder / used).read_text())
            reclaimable = _inactive_file_bytes((folder / "memory.stat").read_text())
        except (OSError, ValueError):
            continue
        return _UNLIMITED if allowed == "max" else max(0, int(allowed) - taken + reclaimable)
    return _UNLIMITED


def _inactive_file_bytes(statistics: str) -> int:
    # Cached file pages count as used, but are freed when memory is needed: a new cache file alone could fill the limit.
    for line in statistics.splitlines():
        if line.startswith(("inactive_file ", "total_inactive_file ")):
            return int(line.split()[1])
    return 0
