"""A frozen network with its weights, cut at its layers; immutable. `Network.on` gives the program that computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbones.program import Program
from featcache.backbones.runners import require_usable, runner_of
from featcache.backbones.spec import BackboneSpec
from featcache.errors import RunnerUnsuitable

if TYPE_CHECKING:
    from torch import nn

    from featcache.backbones.normalised import Rows
    from featcache.backbones.options import BackboneOptions


class Network:
    """A frozen network: images in, one row of features an image and layer out, computed by its programs.

    Args:
        spec: What it is.
        rows: On the CPU, in eval mode.
        files: Those that its weights were read from.
    """

    def __init__(self, spec: BackboneSpec, rows: Rows, files: Sequence[Path] = ()) -> None:
        # Pixels are a network too, and need no torch.
        from featcache.backbones.tapping import channels_last

        self.spec = spec
        self.files = tuple(files)
        #: What it was opened by; None for a module of one's own.
        self.options: BackboneOptions | None = None
        self._rows = rows
        channels_last(rows.eval().requires_grad_(False))
        self._programs: dict[tuple[str, str, str, int | None], Program] = {}

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.spec.name

    def resize(self, image: np.ndarray) -> np.ndarray:
        """One decoded image (H, W, 3) uint8 -> (S, S, 3) uint8; thread-safe."""
        return self.spec.transform.resize_image(image)

    def on(
        self, device: str = "cpu", precision: str = "fp32", runner: str = "eager", *, batch_size: int = 32
    ) -> Program:
        """The program that computes on a device. A second call with the same arguments gives the same program.

        Args:
            device: "cpu", "cuda", "cuda:1", "mps".
            precision: "fp32", "bf16" or "fp16".
            runner: One of `runners.RUNNERS`.
            batch_size: Images of every batch, for a runner whose programs have one shape.

        Raises:
            InvalidOption: The runner cannot compute there.
            RunnerUnsuitable: The runner cannot compute this network.
            MissingExtra: The runner's package is not installed.
        """
        require_usable(runner, device, precision)
        chosen = runner_of(runner)
        key = device, precision, runner, batch_size if chosen.one_shape else None
        if key not in self._programs:
            try:
                compute = chosen.compute(self._rows, device=device, precision=precision, batch_size=batch_size)
            except RunnerUnsuitable as error:
                raise RunnerUnsuitable(runner, self.name, error.reason) from error
            self._programs[key] = Program(
                self.spec,
                compute,
                device=device,
                precision=precision,
                runner=runner,
                batch_size=key[3],
                alone=chosen.alone,
                resized=lambda images: self.on(device, precision, runner, batch_size=images),
            )
        return self._programs[key]

    def module(self) -> nn.Module:
        """The same as a torch module, for reading: (N, 3, S, S) uint8 -> {layer: (N, D)}, in fp32 on the CPU."""
        return self._rows
