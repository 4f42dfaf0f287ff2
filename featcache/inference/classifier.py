"""Images -> features -> a head's outputs, by the backbones that a run or a cache records.

Layers, pooling and transform are read from the record. Weights are accepted only if their bytes equal those that
computed the recorded features. Features are computed in fp32 by default, and never rounded to the type a cache stores.
Torch is imported only where a backbone computes, where the head was trained by steps, and for a device other than the
CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import devices
from featcache.backbones.network import Network
from featcache.backbones.program import Program
from featcache.backbones.spec import outputs_in
from featcache.backbones.zoos.pixels import NAME as PIXELS
from featcache.errors import InvalidOption
from featcache.extraction.computing import batch_size_for, decoding_threads_for
from featcache.extraction.execution import ComputeOptions
from featcache.extraction.forward import ForwardPass
from featcache.extraction.pipeline import Failure, Gathered, Pipeline
from featcache.extraction.rebuild import rebuild, require_same
from featcache.heads.metrics import to_predictions
from featcache.images.samples import Sample
from featcache.images.source import ImageSource
from featcache.inference.options import Weights
from featcache.rows.origins import FeatureLayer, FeatureOrigin
from featcache.runs.run import Run

# Images that are processed together: it limits the memory.
CHUNK = 256

# The function of a head: float32 (n, D) -> float32 (n, C).
Outputs = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """One backbone, and the layers that the head reads, in the head's order."""

    backbone: Network
    layers: tuple[FeatureLayer, ...]

    def values(self, features: dict[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        """{layer: (n, D) as computed} -> the head's inputs, float32 (n, D) per layer: number x scale + offset."""
        return [layer.values(features[layer.name]) for layer in self.layers]


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """The features of a chunk of samples.

    Args:
        index: The indices of the n samples that could be read, ascending: (n,).
        features: A head's inputs: float32 (n, D).
        failures: The samples that could not be read.
    """

    index: NDArray[np.int64]
    features: NDArray[np.float32]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkOutputs(Chunk):
    """The same with the head's outputs, float32 (n, C)."""

    outputs: NDArray[np.float32]


class ImageFeatures:
    """Backbones on a device: images -> the features that a head reads.

    Args:
        branches: The backbones, each with the layers to read.
        device: Where to compute.
        precision: How features are computed: "fp32", "bf16" or "fp16".
    """

    def __init__(self, branches: Sequence[Branch], *, device: str = "cpu", precision: str = "fp32") -> None:
        self.branches = tuple(branches)
        self.device = device
        self._programs: list[Program] = [_program(branch.backbone, device, precision) for branch in branches]

    @classmethod
    def of(
        cls,
        features: FeatureOrigin,
        what: str,
        *,
        weights: Weights = None,
        backbone: Network | None = None,
        data_dir: Path = Path("data"),
        device: str = "auto",
        precision: str = "fp32",
    ) -> ImageFeatures:
        """Open the backbones of recorded features.

        Args:
            features: The caches and layers.
            what: The name of the run or cache, for messages.
            weights, backbone, data_dir, device, precision: As for `Classifier.of`.

        Raises:
            WeightsError: The weights are missing, or differ from those that computed the features.
            InvalidOption: `weights` names a backbone that computed none of them.
        """
        origins = features.origins
        place = "cpu" if device == "auto" and _only_pixels(features) else devices.resolve_device(device)
        branches = [
            Branch(backbone=_network(what, origin, where, backbone, data_dir), layers=origin.layers)
            for origin, where in zip(origins, _places(weights, origins), strict=True)
        ]
        return cls(branches, device=place, precision=devices.resolve_precision(precision, place))

    @property
    def feature_dim(self) -> int:
        """D."""
        return sum(layer.dim for branch in self.branches for layer in branch.layers)

    def chunks(self, source: ImageSource, samples: Sequence[Sample], how: ComputeOptions) -> Iterator[Chunk]:
        """Yield the features of `samples`, chunk by chunk, in order.

        Args:
            source: Where the samples are read.
            samples: The samples.
            how: Batch size and threads.

        Yields:
            The features of a chunk; samples that cannot be read are its failures.
        """
        with closing(self._pipeline(source, how)) as pipeline:
            for start in range(0, len(samples), CHUNK):
                yield self._features(pipeline.gather(samples[start : start + CHUNK]), start)

    def _pipeline(self, source: ImageSource, how: ComputeOptions) -> Pipeline:
        backbones = [
            ForwardPass(
                program=program,
                dtype="float32",
                batch_size=how.batch_size or batch_size_for(program.spec, self.device),
            )
            for program in self._programs
        ]
        workers = how.workers or max(decoding_threads_for(one.spec, self.device) for one in self._programs)
        return Pipeline(source=source, backbones=backbones, workers=workers)

    def _features(self, found: Gathered, start: int) -> Chunk:
        index, failures = found.rows[0].images + start, _later(found.failures, start)
        if not len(index):
            return Chunk(index=index, features=np.empty((0, self.feature_dim), np.float32), failures=failures)
        values = [
            part
            for branch, rows in zip(self.branches, found.rows, strict=True)
            for part in branch.values(rows.features)
        ]
        return Chunk(index=index, features=np.concatenate(values, axis=1), failures=failures)


class Classifier:
    """A run with its backbones on a device.

    Args:
        run: The run. `run.target` names the columns of the outputs.
        images: Its backbones.
        head: Makes the head, for a run whose head is a module of your own.
    """

    def __init__(self, run: Run, images: ImageFeatures, *, head: Callable[..., Any] | None = None) -> None:
        self.run, self.images, self.own = run, images, head
        self._outputs = head_outputs(run, device=images.device, head=head)

    @classmethod
    def of(
        cls,
        run: Run,
        *,
        weights: Weights = None,
        backbone: Network | None = None,
        head: Callable[..., Any] | None = None,
        data_dir: Path = Path("data"),
        device: str = "auto",
        precision: str = "fp32",
    ) -> Classifier:
        """Open the classifier that a run's record describes.

        Args:
            run: The run.
            weights: Where the backbone's weights are now, if they were moved; for several backbones a mapping by name.
            backbone: The module, for a run whose backbone is a module of your own.
            head: Makes the head, for a run whose head is a module of your own that cannot be imported by its path.
            data_dir: The folder of downloaded weights.
            device: Where to compute; "auto": on a GPU, where there is one.
            precision: How features are computed: "fp32", "auto", "bf16" or "fp16".

        Raises:
            WeightsError: The weights are missing, or differ from those that the head was trained with.
            HeadError: The head's file is damaged.
            InvalidOption: `weights` names a backbone that the head does not read.
        """
        if device == "auto" and not run.config.architecture.solved:
            device = devices.resolve_device(device)
        images = ImageFeatures.of(
            run.features,
            run.folder.name,
            weights=weights,
            backbone=backbone,
            data_dir=data_dir,
            device=device,
            precision=precision,
        )
        return cls(run, images, head=head)

    def predict_chunks(
        self, source: ImageSource, samples: Sequence[Sample], how: ComputeOptions
    ) -> Iterator[ChunkOutputs]:
        """Yield features and outputs for `samples`, chunk by chunk, in order. Arguments: see `ImageFeatures.chunks`."""
        for chunk in self.images.chunks(source, samples, how):
            yield ChunkOutputs(**vars(chunk), outputs=self._outputs(chunk.features))


def head_outputs(run: Run, *, device: str = "cpu", head: Callable[..., Any] | None = None) -> Outputs:
    """A run's head as a function: features float32 (n, D) -> outputs float32 (n, C).

    Outputs are probabilities of classes, or numbers in their units. A solved head on the CPU needs no torch.

    Args:
        run: The run.
        device: Where to compute.
        head: Makes the head, for a run whose head is a module of your own.
    """
    compute = _outputs_on(run, device, head)

    def outputs(features: NDArray[np.float32]) -> NDArray[np.float32]:
        if not len(features):
            return np.empty((0, run.target.outputs), np.float32)
        return to_predictions(compute(features), run.target)

    return outputs


def _only_pixels(features: FeatureOrigin) -> bool:
    """Whether nothing is computed, so that a GPU cannot be faster."""
    return {origin.backbone for origin in features.origins} == {PIXELS}


def _outputs_on(run: Run, device: str, own: Callable[..., Any] | None) -> Outputs:
    """The function of a run's head on a device; for a solved head on the CPU it needs no torch."""
    if run.config.architecture.solved and device == "cpu" and own is None:
        return run.load_solved_head().outputs
    import torch

    head = run.head(own).to(device)

    def outputs(features: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            values: NDArray[np.float32] = head(torch.from_numpy(features).to(device)).float().cpu().numpy()
        return values

    return outputs


def _program(network: Network, device: str, precision: str) -> Program:
    return network.on(device, "uint8" if network.spec.stores_bytes else precision)


def _places(weights: Weights, origins: Sequence[FeatureOrigin]) -> list[str | Path | None]:
    """For each cache the current path of its backbone's weights; None where they were not moved."""
    names = [origin.backbone for origin in origins]
    if isinstance(weights, Mapping):
        if unknown := sorted(set(weights) - set(names)):
            raise InvalidOption(f"--weights: expected {', '.join(names)}, got {', '.join(unknown)}")
        return [weights.get(name) for name in names]
    if weights is not None and len(names) > 1:
        raise InvalidOption(
            f"the head reads {len(names)} backbones, and --weights {weights} could belong to any of them",
            hint=f"name the backbone: --weights {names[0]}={weights}",
        )
    return [weights] * len(names)


def _network(
    what: str, origin: FeatureOrigin, weights: str | Path | None, backbone: Network | None, data_dir: Path
) -> Network:
    spec, probe = origin.layers_spec, outputs_in({"probe": origin.probe})
    if backbone is not None:
        require_same(backbone, spec, what, probe)
        return backbone
    return rebuild(spec, origin.weights, what=what, probe=probe, weights=weights, data_dir=data_dir)


def _later(failures: Sequence[Failure], start: int) -> tuple[Failure, ...]:
    return tuple(replace(failure, image=failure.image + start) for failure in failures)
