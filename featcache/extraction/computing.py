"""What computes missing rows: device, network and program, opened when the first row is missing and not before.

An extraction with nothing to do needs none of them, and so no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from featcache.backbones import devices
from featcache.backbones.describe import describe, open_network, stored
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
# A backbone on the CPU needs the cores itself; a single thread would make it wait for every slow image.
_THREADS_BESIDE_A_NETWORK = (2, 4)


@dataclass(kw_only=True, eq=False)
class Computer:
    """Opens what computes, once.

    Args:
        request, execution: What is asked, and how.
        images: How many images there are; asked only where it matters.
        reporter: Hears of the device, of weights and of the choice of a runner.
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
        """Where it computes: what `auto` means here. Raises InvalidOption."""
        device = devices.resolve_device(self.execution.device)
        if (waste := devices.unused_gpu(device)) is not None:
            self.reporter.warn(waste)
        return device

    @cached_property
    def backbone(self) -> BackboneSpec:
        """What the backbone is: as it was described before, else as it is loaded now. Raises what `network` raises."""
        if self.given is not None:
            return self.given.spec
        options, data_dir = self.request.backbone_options, self.request.data_dir
        if options.backbone == PIXELS:
            return describe(options, data_dir=data_dir)
        if (known := stored(options, data_dir=data_dir)) is not None:
            return known
        # A device or a precision that cannot be is refused before weights are downloaded.
        self.choose_eager()
        return self.network.spec

    @cached_property
    def network(self) -> Network:
        """The backbone with its weights in memory. Raises what `open_network` raises."""
        network = self.given or open_network(self.request.backbone_options, data_dir=self.request.data_dir)
        for note in network.spec.notes:
            self.reporter.say(note)
        if not network.spec.stores_bytes and (waste := devices.idle_cores(self.device)) is not None:
            self.reporter.warn(waste)
        return network

    def choose(self) -> Chosen:
        """The runner and the precision that the request means on this machine."""
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
        """The same without loading or measuring anything: torch as it is, where no runner is named."""
        from featcache.backbones.runners.choosing import Chosen

        runner = "eager" if self.request.runner == "auto" else self.request.runner
        return Chosen(runner=runner, precision=devices.resolve_precision(self.request.precision, self.device))

    def program(self, spec: Spec, batch_size: int) -> Program:
        """The program that computes rows of this spec; what has to be compiled is compiled now."""
        from featcache.backbones.runners import runner_of

        asked = spec.precision, spec.runner, batch_size
        if asked not in self._programs:
            program = self.network.on(self.device, spec.precision, spec.runner, batch_size=batch_size)
            if runner_of(spec.runner).one_shape:
                self._compile(program)
            self._programs[asked] = program
        return self._programs[asked]

    def _compile(self, program: Program) -> None:
        import time

        import numpy as np

        from featcache.backbones.runners.choosing import beside
        from featcache.errors import ExtractionError, FeatcacheError

        name, side, began = self.network.name, self.network.spec.transform.image_size, time.monotonic()
        self.reporter.say(f"compiling {name} by {program.runner} (--runner eager: not at all)")
        assert program.batch_size is not None
        blank = np.zeros((program.batch_size, side, side, 3), np.uint8)
        try:
            beside(lambda: program.features(blank))
        except FeatcacheError:
            raise
        except Exception as error:
            # Whatever a compiler may raise.
            raise ExtractionError(
                f"{name} cannot be compiled: {str(error).strip().splitlines()[0]}",
                hint="extract with --runner eager",
            ) from error
        self.reporter.say(f"compiled in {time.monotonic() - began:.0f} s")

    @property
    def batch_size(self) -> int:
        """Images per forward pass: as asked, else by device. One that does not fit is halved where it is used."""
        return self.execution.batch_size or batch_size_for(self.network.spec, self.device)

    @property
    def workers(self) -> int:
        """Threads that decode."""
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
    return devices.cores() if spec.stores_bytes else decoding_threads_beside_a_network(device)


def decoding_threads_beside_a_network(device: str) -> int:
    """The same for any backbone that computes."""
    if _kind(device) != "cpu":
        return devices.cores()
    least, most = _THREADS_BESIDE_A_NETWORK
    return max(least, min(devices.cores(), most))


def _kind(device: str) -> str:
    """`cuda:1` -> `cuda`."""
    return device.partition(":")[0]
