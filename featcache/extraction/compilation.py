"""Whether compiling the network pays: a minute first, a few per cent less for every image after."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future

from featcache.backbones.backbone import Backbone
from featcache.extraction import devices
from featcache.extraction.reporting import Reporter

# VGG16 took 44 s to compile on two busy cores.
_COMPILE_S = 40.0
# The share of the time that compiled VGG16 saves in bf16 on a CPU (12.3 to 13.4 images/s); other networks save more.
_SAVED = 0.08
_GFLOPS_PER_CORE = {"int8": 330.0, "bf16": 190.0, "fp32": 95.0}


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


def break_even(backbone: Backbone, precision: str) -> int:
    """From how many images on compiling pays on this machine's CPU; an estimate."""
    speed = devices.cores() * _GFLOPS_PER_CORE.get(precision, 95.0) * 1e9
    saved_s = _SAVED * max(backbone.flops_per_image, 1) / speed
    return round(_COMPILE_S / saved_s)


def resolve_runner(
    said: str, backbone: Backbone, *, device: str, precision: str, images: Callable[[], int], reporter: Reporter
) -> str:
    """ "eager" or "compiled": what was said, or what pays for so many `images`; eager where nothing can compile.

    Only CPUs are decided for by themselves: what compiling gains on a GPU has not been measured.
    """
    if said == "eager" or not backbone.compiles:
        return "eager"
    if said == "auto" and not _pays(backbone, device, precision, images):
        return "eager"
    if device == "cpu" and compiler() is None:
        reporter.warn("there is no C++ compiler, so the network is not compiled: some per cent slower")
        return "eager"
    return "compiled"


def _pays(backbone: Backbone, device: str, precision: str, images: Callable[[], int]) -> bool:
    named = backbone.weights is not None and not backbone.weights.source.startswith("module:")
    # One's own module may do what cannot be compiled: it is only tried when asked.
    return device == "cpu" and named and images() >= break_even(backbone, precision)
