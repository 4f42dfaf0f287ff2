"""Which runner is the fastest for a network and a number of images on this processor: measured once, and kept.

Speeds lie in one JSON file beside the descriptions. A small job is not worth a measurement and runs eagerly; what is
left to `auto` is chosen before a cache is begun, and stored with it.
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

# A guess at the speed of any runner, only to tell jobs of seconds from jobs of minutes.
_GFLOPS_PER_CORE = {"fp32": 30.0, "bf16": 90.0, "fp16": 90.0}
_WORTH_MEASURING_S = 30.0
# What torch's compiler takes before its first image: tried where that is a small part of the job.
_WORTH_COMPILING_S = 600.0
_IMAGES = 8


class Report(Protocol):
    """Where sentences go."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A runner's seconds before its first image, and images a second after."""

    start_s: float
    images_per_s: float

    def seconds(self, images: int) -> float:
        """What so many images take."""
        return self.start_s + images / self.images_per_s


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What computes, and in which precision."""

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
    """What the options mean for a network on this machine.

    Args:
        network: In memory, on the CPU.
        runner, precision: As asked; "auto" leaves it to this function.
        device: Where it computes.
        images: How many there are; asked only where it matters.
        data_dir: Holds the speeds that were measured before.
        report: Hears of measurements, and of runners that cannot compute the network.

    Raises:
        InvalidOption, RunnerUnsuitable, MissingExtra: The runner that was named cannot compute here.
    """
    usual = devices.resolve_precision(precision, device)
    if network.spec.stores_bytes:
        return Chosen(runner="eager", precision="uint8")
    if runner != "auto":
        return _named(network, runner, precision, usual, device)
    # One's own module may do what no runner can convert; a GPU's compiled speed was never measured.
    if device != "cpu" or network.spec.is_own_module:
        return Chosen(runner="eager", precision=usual)
    guessed_s = images() * network.spec.flops_per_image / (devices.cores() * _GFLOPS_PER_CORE[usual] * 1e9)
    if guessed_s < _WORTH_MEASURING_S:
        return Chosen(runner="eager", precision=usual)
    speeds = _speeds(network, precision, usual, guessed_s, data_dir, report)
    return min(speeds, key=lambda chosen: speeds[chosen].seconds(images()))


def _named(network: Network, runner: str, precision: str, usual: str, device: str) -> Chosen:
    chosen = Chosen(runner=runner, precision=usual)
    if precision == "auto" and obstacle(runner, device, usual) is not None:
        chosen = Chosen(runner=runner, precision="fp32")
    require_usable(runner, device, chosen.precision)
    return chosen


def _speeds(
    network: Network, precision: str, usual: str, guessed_s: float, data_dir: Path, report: Report
) -> Mapping[Chosen, Speed]:
    """The speed of every runner that is worth trying, from the file or measured now."""
    path = data_dir / "speeds.json"
    key = _circumstances(network)
    known = _load(path).get(key, {})
    found: dict[Chosen, Speed] = {}
    new: dict[str, dict[str, float]] = {}
    for candidate in _candidates(precision, usual, guessed_s):
        name = f"{candidate.runner} {candidate.precision}"
        if name not in known:
            speed = _tried(network, candidate, report)
            if speed is None:
                continue
            new[name] = asdict(speed)
        found[candidate] = Speed(**(known | new)[name])
    if new:
        report.say(f"speeds of {network.name} here: {_listed(found)} (kept in {path.name})")
        _keep(path, key, known | new, report)
    return found


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


def _listed(speeds: Mapping[Chosen, Speed]) -> str:
    return ", ".join(f"{one.runner} {one.precision} {speed.images_per_s:.1f} images/s" for one, speed in speeds.items())


def _tried(network: Network, candidate: Chosen, report: Report) -> Speed | None:
    """A runner's speed; None, with a warning, where it cannot compute this network, or computes other features."""
    if candidate.runner == "eager":
        # It remains where no other can: what it raises is the network's own error, and its drift is measured later.
        return _measured(network, candidate)
    try:
        return _measured(network, candidate)
    except RunnerUnsuitable as error:
        report.warn(f"{error.message}; the next runner is taken")
    except FeatcacheError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        report.warn(f"--runner {candidate.runner} cannot compute {network.name}: {reason}; the next runner is taken")
    return None


def _measured(network: Network, candidate: Chosen) -> Speed:
    batch = _batch(network)
    began = time.perf_counter()
    program = network.on("cpu", candidate.precision, candidate.runner, batch_size=_IMAGES)
    rows = beside(lambda: program.features(batch))
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
    """Raises RunnerUnsuitable where the features of the probe images are not those of fp32."""
    assert network.spec.probe is not None
    for layer, exact in network.spec.probe.sketches.items():
        cosine = checks.least_cosine([checks.sketch(row) for row in rows[layer]], exact)
        if cosine < checks.OTHER_COSINE:
            raise RunnerUnsuitable(
                candidate.runner, network.name, f"layer {layer} has a cosine of {cosine:.5f} to fp32"
            )


def beside(work: Callable[[], Any]) -> Any:
    """Does `work` in a thread of its own, and gives its result or raises its exception.

    A compiler that is at work swallows Ctrl-C, or takes a minute to notice; waiting for a thread does not.
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

    # It does not keep the program from ending.
    threading.Thread(target=do, name="compile", daemon=True).start()
    return done.result()


# --- the file ------------------------------------------------------------------------------------------------


def _circumstances(network: Network) -> str:
    """All that speed depends on, as one line: the machine and what it computes."""
    here = devices.environment()
    layers = ", ".join(network.spec.layer_names)
    size = network.spec.transform.image_size
    machine = f"{here['processor']}, {devices.cores()} cores, {here['threads']} threads, torch {here['torch']}"
    return f"{machine}: {network.name} {size} ({layers})"


def _load(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What was measured before; nothing where the file is absent or cannot be understood: it is measured again."""
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
    # Of two that write at once the later one wins, and the other measures again.
    content = {**_load(path), key: speeds}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    except (CacheUnwritable, OSError) as error:
        report.warn(f"{error}; the speeds of runners are measured anew the next time")
