"""Chooses the fastest runner for a network and a number of images on this processor, by stored measurements.

Speeds are stored in one JSON file in the data folder. A small job is not worth a measurement and runs eagerly. The
choice is made before a cache is created, and is stored with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from featcache.backbones import checks, devices
from featcache.backbones.runners import RUNNERS, obstacle, require_usable
from featcache.errors import CacheUnwritable, FeatcacheError, InvalidOption, MissingExtra, RunnerUnsuitable
from featcache.files import publish_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from featcache.backbones.network import Network

# A rough guess of the speed of any runner, only to distinguish jobs of seconds and of minutes.
_GFLOPS_PER_CORE = {"fp32": 30.0, "bf16": 90.0, "fp16": 90.0}
_WORTH_MEASURING_S = 30.0
# torch's compiler is slow before its first image, so it is only measured for longer jobs.
_WORTH_COMPILING_S = 600.0
_IMAGES = 8


class Report(Protocol):
    """Receives messages for the user."""

    def info(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed of a runner: seconds before its first image, and images per second afterwards."""

    start_s: float
    images_per_s: float

    def seconds(self, images: int) -> float:
        """The seconds for this number of images."""
        return self.start_s + images / self.images_per_s


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The chosen runner and precision."""

    runner: str
    precision: str


def choose(
    network: Network,
    *,
    runner: str,
    precision: str,
    device: str,
    images: Callable[[], int],
    data_dir: Path,
    report: Report,
) -> Chosen:
    """Choose the runner and the precision for a network on this machine.

    Args:
        network: The network, on the CPU.
        runner, precision: The requested values; "auto" leaves the choice to this function.
        device: The device that computes.
        images: Returns the number of images; called only if it matters.
        data_dir: The folder with the stored speeds.
        report: Receives messages about measurements, and about runners that cannot compute the network.

    Raises:
        InvalidOption, MissingExtra: The requested runner does not support this machine, device or precision.
    """
    usual = devices.resolve_precision(precision, device)
    if network.spec.stores_bytes:
        return Chosen(runner="eager", precision="uint8")
    if runner != "auto":
        return _explicit_choice(network, runner, precision, usual, device)
    # A module of the caller's own may be impossible to convert; compiled speed on GPUs was never measured.
    if device != "cpu" or network.spec.is_own_module:
        return Chosen(runner="eager", precision=usual)
    guessed_s = images() * network.spec.flops_per_image / (devices.cores() * _GFLOPS_PER_CORE[usual] * 1e9)
    if guessed_s < _WORTH_MEASURING_S:
        return Chosen(runner="eager", precision=usual)
    speeds = _speeds(network, precision, usual, guessed_s, data_dir, report)
    return min(speeds, key=lambda chosen: speeds[chosen].seconds(images()))


def _explicit_choice(network: Network, runner: str, precision: str, usual: str, device: str) -> Chosen:
    chosen = Chosen(runner=runner, precision=usual)
    if precision == "auto" and obstacle(runner, device, usual) is not None:
        chosen = Chosen(runner=runner, precision="fp32")
    require_usable(runner, device, chosen.precision)
    return chosen


def _speeds(
    network: Network, precision: str, usual: str, guessed_s: float, data_dir: Path, report: Report
) -> Mapping[Chosen, Speed]:
    """The speed of every candidate, from the file or measured now."""
    path = data_dir / "speeds.json"
    key = _circumstances(network)
    known = _load(path).get(key, {})
    speeds: dict[Chosen, Speed] = {}
    new: dict[str, dict[str, float]] = {}
    for candidate in _candidates(precision, usual, guessed_s):
        name = f"{candidate.runner} {candidate.precision}"
        if name not in known:
            speed = _try(network, candidate, report)
            if speed is None:
                continue
            new[name] = asdict(speed)
        speeds[candidate] = Speed(**(known | new)[name])
    if new:
        report.info(f"speeds of {network.name} here: {_speeds_text(speeds)} (kept in {path.name})")
        _keep(path, key, known | new, report)
    return speeds


def _candidates(precision: str, usual: str, guessed_s: float) -> Iterator[Chosen]:
    for runner in RUNNERS:
        if runner == "compiled" and guessed_s < _WORTH_COMPILING_S:
            continue
        wanted = Chosen(runner=runner, precision=usual)
        if precision == "auto" and obstacle(runner, "cpu", usual) is not None:
            wanted = Chosen(runner=runner, precision="fp32")
        try:
            require_usable(runner, "cpu", wanted.precision)
        except (MissingExtra, InvalidOption):
            continue
        yield wanted


def _speeds_text(speeds: Mapping[Chosen, Speed]) -> str:
    return ", ".join(f"{one.runner} {one.precision} {speed.images_per_s:.1f} images/s" for one, speed in speeds.items())


def _try(network: Network, candidate: Chosen, report: Report) -> Speed | None:
    """Measure a runner; None, with a warning, if it cannot compute this network or computes other features."""
    if candidate.runner == "eager":
        # Eager is the fallback, so its exceptions are the network's own, and its drift is measured later.
        return measure_speed(network, candidate)
    try:
        return measure_speed(network, candidate)
    except RunnerUnsuitable as error:
        report.warn(f"{error.message}; trying the next runner")
    except FeatcacheError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        report.warn(f"--runner {candidate.runner} cannot compute {network.name}: {reason}; trying the next runner")
    return None


def measure_speed(network: Network, candidate: Chosen) -> Speed:
    """Measure how long a runner takes to start, and its images per second, on images of noise."""
    batch = _batch(network)
    began = time.perf_counter()
    program = network.on("cpu", candidate.precision, candidate.runner, batch_size=_IMAGES)
    rows = run_in_thread(lambda: program.features(batch))
    start_s = time.perf_counter() - began
    if candidate.runner != "eager":
        _require_same(network, {name: value[:2].float().numpy() for name, value in rows.items()}, candidate)
    began = time.perf_counter()
    program.features(batch)
    seconds = time.perf_counter() - began
    return Speed(start_s=max(0.0, start_s - seconds), images_per_s=_IMAGES / max(seconds, 1e-9))


def _batch(network: Network) -> np.ndarray:
    import numpy as np

    pair = checks.probe_images(network.spec.transform.image_size)
    return np.concatenate([pair] * (_IMAGES // len(pair)))


def _require_same(network: Network, rows: Mapping[str, Any], candidate: Chosen) -> None:
    """Raises RunnerUnsuitable if the features of the probe images differ from those in fp32."""
    assert network.spec.probe is not None
    for layer, exact in network.spec.probe.sketches.items():
        cosine = checks.least_cosine([checks.sketch(row) for row in rows[layer]], exact)
        if cosine < checks.OTHER_COSINE:
            raise RunnerUnsuitable(
                candidate.runner, network.name, f"layer {layer} has a cosine of {cosine:.5f} to fp32"
            )


def run_in_thread(work: Callable[[], Any]) -> Any:
    """Run `work` in a new thread, and return its result or raise its exception.

    A running compiler ignores Ctrl-C or reacts a minute later; waiting for a thread can be interrupted at once.
    """
    import threading
    from concurrent.futures import Future

    import torch

    threads, done = torch.get_num_threads(), Future[Any]()

    def do() -> None:
        torch.set_num_threads(threads)
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    # A daemon thread does not keep the process alive.
    threading.Thread(target=do, name="compile", daemon=True).start()
    return done.result()


# --- the file ------------------------------------------------------------------------------------------------


def _circumstances(network: Network) -> str:
    """The key of the stored speeds: everything that speed depends on, as one line."""
    here = devices.environment()
    layers = ", ".join(network.spec.layer_names)
    size = network.spec.transform.image_size
    machine = f"{here['processor']}, {devices.cores()} cores, {here['threads']} threads, torch {here['torch']}"
    return f"{machine}: {network.name} {size} ({layers})"


def _load(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """The stored speeds; empty if the file is missing or invalid, so that they are measured again."""
    try:
        content = json.loads(path.read_bytes())
        for speeds in content.values():
            for speed in speeds.values():
                if Speed(**speed).images_per_s <= 0:
                    return {}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return dict(content)


def _keep(path: Path, key: str, speeds: Mapping[str, Mapping[str, float]], report: Report) -> None:
    # If two processes write at the same time, the later one wins, and the other measures again next time.
    content = {**_load(path), key: speeds}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    except (CacheUnwritable, OSError) as error:
        report.warn(f"{error}; the speeds of runners will be measured again next time")
