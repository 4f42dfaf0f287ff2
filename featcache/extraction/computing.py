"""Device, network and program that compute missing rows, opened only when a row is missing.

An extraction with nothing to do needs none of them, and does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from featcache.backbones import devices
from featcache.backbones.describe import describe, open_network, read_description
from featcache.backbones.spec import BackboneSpec
from featcache.backbones.zoos.pixels import NAME as PIXELS
from featcache.extraction.reporting import Reporter

if TYPE_CHECKING:
    from featcache.backbones.network import Network
    from featcache.backbones.program import Program
    from featcache.backbones.runners.choosing import Chosen
    from featcache.cache.spec import Spec
    from featcache.extraction.execution import Execution
    from featcache.extraction.request import Request
    from featcache.extraction.resizing import Resizing

_IMAGES = {"cpu": 32, "mps": 64, "cuda": 256}
_IMAGES_OF_BYTES = 512
# A backbone on the CPU needs the cores itself; with a single thread it would wait for every slow image.
_LEAST_AND_MOST_THREADS = (2, 4)


@dataclass(kw_only=True, eq=False)
class Computer:
    """Opens device, network and programs on first use, each once.

    Args:
        request, execution: The options of the extraction.
        images: Returns the number of images; called only where it is needed.
        reporter: Receives messages about the device, the weights and the choice of a runner.
        given: A network of the caller's own.
    """

    request: Request
    execution: Execution
    images: Callable[[], int]
    reporter: Reporter
    given: Network | None = None
    _programs: dict[tuple[str, str, int], Program] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def device(self) -> str:
        """The device that computes, with `auto` resolved for this machine. Raises InvalidOption."""
        device = devices.resolve_device(self.execution.device)
        if (waste := devices.gpu_warning(device)) is not None:
            self.reporter.warn(waste)
        return device

    @cached_property
    def backbone(self) -> BackboneSpec:
        """The backbone's description: the stored one, else that of the network as loaded now.

        Raises what `network` raises.
        """
        if self.given is not None:
            return self.given.spec
        options, data_dir = self.request.backbone_options, self.request.data_dir
        if options.backbone == PIXELS:
            return describe(options, data_dir=data_dir)
        if (known := read_description(options, data_dir=data_dir)) is not None:
            return known
        # An unsupported device or precision is refused before weights are downloaded.
        self.choose_eager()
        return self.network.spec

    @cached_property
    def network(self) -> Network:
        """The backbone with its weights in memory. Raises what `open_network` raises."""
        network = self.given or open_network(self.request.backbone_options, data_dir=self.request.data_dir)
        for note in network.spec.notes:
            self.reporter.info(note)
        if not network.spec.stores_bytes and (waste := devices.idle_cores_warning(self.device)) is not None:
            self.reporter.warn(waste)
        return network

    def choose(self) -> Chosen:
        """The runner and the precision of the request, with `auto` resolved for this machine."""
        from featcache.backbones.runners.choosing import choose

        eager = self.choose_eager()
        if self.request.runner == "eager":
            return eager
        return choose(
            self.network,
            runner=self.request.runner,
            precision=self.request.precision,
            device=self.device,
            images=self.images,
            data_dir=self.request.data_dir,
            report=self.reporter,
        )

    def choose_eager(self) -> Chosen:
        """The same without loading or measuring anything: `auto` becomes the eager runner."""
        from featcache.backbones.runners.choosing import Chosen

        runner = "eager" if self.request.runner == "auto" else self.request.runner
        return Chosen(runner=runner, precision=devices.resolve_precision(self.request.precision, self.device))

    def program(self, spec: Spec, batch_size: int) -> Program:
        """The program that computes rows of this spec; compiled now, where its runner compiles."""
        from featcache.backbones.runners import runner_of

        key = spec.precision, spec.runner, batch_size
        if key not in self._programs:
            program = self.network.on(self.device, spec.precision, spec.runner, batch_size=batch_size)
            if runner_of(spec.runner).one_shape:
                self._compile(program)
            self._programs[key] = program
        return self._programs[key]

    def _compile(self, program: Program) -> None:
        import time

        import numpy as np

        from featcache.backbones.runners.choosing import run_in_thread
        from featcache.errors import ExtractionError, FeatcacheError

        name, side, began = self.network.name, self.network.spec.transform.image_size, time.monotonic()
        self.reporter.info(f"compiling {name} with {program.runner} (--runner eager does not compile)")
        assert program.batch_size is not None
        blank = np.zeros((program.batch_size, side, side, 3), np.uint8)
        try:
            run_in_thread(lambda: program.features(blank))
        except FeatcacheError:
            raise
        except Exception as error:
            # A compiler may raise any exception.
            raise ExtractionError(
                f"{name} cannot be compiled: {str(error).strip().splitlines()[0]}",
                hint="extract with --runner eager",
            ) from error
        self.reporter.info(f"compiled in {time.monotonic() - began:.0f} s")

    @property
    def batch_size(self) -> int:
        """Images per forward pass: as requested, else by device. It is halved later where memory does not suffice."""
        return self.execution.batch_size or batch_size_for(self.network.spec, self.device)

    @property
    def workers(self) -> int:
        """Threads that decode images."""
        return self.execution.workers or decoding_threads_for(self.network.spec, self.device)

    @cached_property
    def resizing(self) -> Resizing:
        """Where images are resized."""
        from featcache.extraction.resizing import resolve_resizing

        return resolve_resizing(self.execution.resize_on, self.network.spec, self.device, self.reporter)


def batch_size_for(spec: BackboneSpec, device: str) -> int:
    """Images per forward pass where `--batch-size` is left out."""
    return _IMAGES_OF_BYTES if spec.stores_bytes else _IMAGES[_kind(device)]


def decoding_threads_for(spec: BackboneSpec, device: str) -> int:
    """Threads that decode where `--workers` is left out."""
    return devices.cores() if spec.stores_bytes else decoding_threads_with_network(device)


def decoding_threads_with_network(device: str) -> int:
    """The same next to a backbone that computes (any but `pixels`)."""
    if _kind(device) != "cpu":
        return devices.cores()
    least, most = _LEAST_AND_MOST_THREADS
    return max(least, min(devices.cores(), most))


def _kind(device: str) -> str:
    """`cuda:1` -> `cuda`."""
    return device.partition(":")[0]
