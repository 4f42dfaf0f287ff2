"""`Network`: a frozen network with its weights and chosen layers; immutable."""

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

    from featcache.backbones.feature_module import FeatureModule
    from featcache.backbones.options import BackboneOptions


class Network:
    """A frozen network that computes one row of features per image and layer; `on` returns the program for a device.

    Args:
        spec: The description.
        rows: The module with normalisation and pooling, on the CPU, in eval mode.
        files: The files from which its weights were read.
    """

    def __init__(self, spec: BackboneSpec, rows: FeatureModule, files: Sequence[Path] = ()) -> None:
        # Imported here because `pixels` is a Network too, and must not import torch.
        from featcache.backbones.tapping import channels_last

        self.spec = spec
        self.files = tuple(files)
        #: The options with which it was opened; None for a module of the caller's own.
        self.options: BackboneOptions | None = None
        self._rows = rows
        channels_last(rows.eval().requires_grad_(False))
        self._programs: dict[tuple[str, str, str, int | None], Program] = {}

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.spec.name

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resize one decoded image; thread-safe.

        Args:
            image: uint8 (H, W, 3).

        Returns:
            uint8 (S, S, 3), where S is the image size of the backbone.
        """
        return self.spec.transform.resize_image(image)

    def on(
        self, device: str = "cpu", precision: str = "fp32", runner: str = "eager", *, batch_size: int = 32
    ) -> Program:
        """The program that computes on a device. A second call with the same arguments returns the same program.

        Args:
            device: "cpu", "cuda", "cuda:1", "mps".
            precision: "fp32", "bf16" or "fp16".
            runner: One of `runners.RUNNERS`.
            batch_size: Images per batch, for a runner whose programs have a fixed batch size.

        Returns:
            The program; `program.features(images)` computes.

        Raises:
            InvalidOption: The runner does not support the device or the precision.
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
        """The network as a torch module, in fp32 on the CPU; it must not be changed.

        Returns:
            A module: uint8 (N, 3, S, S) -> {layer: float32 (N, D)}.
        """
        return self._rows
