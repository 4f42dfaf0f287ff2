"""Whether compiling the network pays: seconds or a minute first, some per cent less for every image after."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from featcache.backbones import openvino_runner
from featcache.backbones.backbone import Backbone
from featcache.errors import InvalidOption
from featcache.extraction import devices
from featcache.extraction.reporting import Reporter


@dataclass(frozen=True, kw_only=True)
class _Gain:
    """Seconds before the first batch, and the share of eager VGG16's time in bf16 on a CPU that is saved after."""

    start_s: float
    saved: float


# VGG16 took 44 s to compile on two busy cores; other networks save more.
_GAINS = {"compiled": _Gain(start_s=40.0, saved=0.08), "openvino": _Gain(start_s=4.0, saved=0.22)}
_GFLOPS_PER_CORE = {"bf16": 190.0, "fp32": 95.0}


def compiler() -> str | None:
    """The C++ compiler that torch would call; None where there is none."""
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def beside(work: Callable[[], object]) -> None:
    """Does `work` in a thread of its own, and raises what it raises.

    A compiler that is at work swallows Ctrl-C, or takes a minute to notice; whoever waits for a thread does not.
    """
    import torch

    threads, done = torch.get_num_threads(), Future[None]()

    def do() -> None:
        torch.set_num_threads(threads)
        try:
            work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    # Nobody waits for it when the program ends.
    threading.Thread(target=do, name="compile", daemon=True).start()
    done.result()


def break_even(runner: str, backbone: Backbone, precision: str) -> int:
    """From how many images on compiling with `runner` pays on this machine's CPU; an estimate."""
    gain = _GAINS[runner]
    speed = devices.cores() * _GFLOPS_PER_CORE.get(precision, 95.0) * 1e9
    return round(gain.start_s / (gain.saved * max(backbone.flops_per_image, 1) / speed))


def resolve_runner(
    said: str, backbone: Backbone, *, device: str, precision: str, images: Callable[[], int], reporter: Reporter
) -> str:
    """The runner: what was said, or what pays for so many `images`; eager where torch cannot compile.

    Only CPUs are decided for by themselves: what compiling gains on a GPU has not been measured.
    Raises InvalidOption and MissingExtra where OpenVINO was asked for and cannot compute.
    """
    if said == "eager" or not backbone.compiles:
        return "eager"
    runner = _fastest(backbone, device, precision, images) if said == "auto" else said
    if runner == "openvino":
        _require_openvino(device, precision)
    if runner == "ncnn":
        raise InvalidOption("networks are not computed with ncnn yet", hint="leave --runner out")
    if runner == "compiled" and device == "cpu" and compiler() is None:
        reporter.warn("there is no C++ compiler, so the network is not compiled: some per cent slower")
        return "eager"
    return runner


def _fastest(backbone: Backbone, device: str, precision: str, images: Callable[[], int]) -> str:
    named = backbone.weights is not None and not backbone.weights.source.startswith("module:")
    # One's own module may do what cannot be compiled: it is only tried when asked.
    if device != "cpu" or not named:
        return "eager"
    count = images()
    # In fp32 OpenVINO's gain has not been measured.
    if precision == "bf16" and openvino_runner.installed() and count >= break_even("openvino", backbone, precision):
        return "openvino"
    return "compiled" if count >= break_even("compiled", backbone, precision) else "eager"


def _require_openvino(device: str, precision: str) -> None:
    if device != "cpu":
        raise InvalidOption(f"OpenVINO computes on the CPU here, got --device {device}", hint="leave --runner out")
    if precision not in openvino_runner.PRECISIONS:
        raise InvalidOption(
            f"expected --precision {' or '.join(openvino_runner.PRECISIONS)} with --runner openvino, got {precision}",
            hint="leave --runner out",
        )
    openvino_runner.require()
