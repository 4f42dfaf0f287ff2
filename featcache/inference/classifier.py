"""What a head was trained behind, rebuilt: images -> features -> what the head says.

Everything comes from the run's record: backbone, layers, pooling and the transform's numbers. Weights are taken only if
their bytes are those that the head was trained on. Features are computed in fp32 unless told otherwise, and never
rounded to the type a cache stores. Torch is imported where a backbone computes, where the head was trained by steps,
and for a device that is not the CPU.
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
from featcache.cache.spec import Spec
from featcache.errors import InvalidOption
from featcache.extraction.computing import batch_size_for, decoding_threads_for
from featcache.extraction.execution import Execution
from featcache.extraction.forward import ForwardPass
from featcache.extraction.pipeline import Failure, Gathered, Pipeline
from featcache.extraction.rebuild import rebuilt, require_same
from featcache.heads.metrics import readable
from featcache.images.samples import Sample
from featcache.images.source import ImageSource
from featcache.rows.origins import FeatureLayer, FeatureOrigin
from featcache.runs.run import Run

# Images that are read, computed and answered for together: it bounds what is in memory.
CHUNK = 256

# float32 (n, D) -> float32 (n, C), what a head gives.
Outputs = Callable[[NDArray[np.float32]], NDArray[np.float32]]

Weights = str | Path | Mapping[str, str | Path] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """One backbone, and those of its layers that the head reads, in the head's order."""

    backbone: Network
    layers: tuple[FeatureLayer, ...]

    def values(self, features: dict[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        """{layer: (n, D) as computed} -> the head's inputs, float32 (n, D) a layer: value = number x scale + offset."""
        return [layer.values(features[layer.name]) for layer in self.layers]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What came out for some samples: `index` (n,) says which, in ascending order.

    `features`: float32 (n, D), what the head was given; `outputs`: float32 (n, C).
    """

    index: NDArray[np.int64]
    features: NDArray[np.float32]
    outputs: NDArray[np.float32]
    failures: tuple[Failure, ...] = ()


class Classifier:
    """A run with its backbone on a device. `run.target` names the columns of the outputs."""

    def __init__(
        self,
        run: Run,
        branches: Sequence[Branch],
        *,
        device: str = "cpu",
        precision: str = "fp32",
        head: Callable[..., Any] | None = None,
    ) -> None:
        self.run = run
        self.branches = tuple(branches)
        self.device = device
        self._programs: list[Program] = [_program(branch.backbone, device, precision) for branch in branches]
        self.own = head
        self._outputs = _outputs_on(run, device, head)

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
        """Rebuild what a run's record describes.

        `weights`: where they are now, if elsewhere than when the head was trained; of several backbones by name.
        `backbone`: one's own, for a run whose backbone was a module; `head`: what makes the head, for a run whose head
        is one's own and cannot be imported by its path. `data_dir` holds downloaded weights.
        Raises WeightsError where the weights are not there or are others, HeadError where the head is damaged,
        InvalidOption for weights of a backbone that the head does not read.
        """
        origins = run.features.origins
        place = "cpu" if device == "auto" and not _needs_torch(run) else devices.resolve_device(device)
        branches = [
            Branch(backbone=_network(run, origin, where, backbone, data_dir), layers=origin.layers)
            for origin, where in zip(origins, _places(weights, origins), strict=True)
        ]
        return cls(run, branches, device=place, precision=devices.resolve_precision(precision, place), head=head)

    def answers(self, source: ImageSource, samples: Sequence[Sample], how: Execution) -> Iterator[Answers]:
        """Probabilities for `samples`, chunk by chunk, in order. Images that cannot be read are failures."""
        with closing(self._pipeline(source, how)) as pipeline:
            for start in range(0, len(samples), CHUNK):
                yield self._answers(pipeline.gather(samples[start : start + CHUNK]), start)

    def _pipeline(self, source: ImageSource, how: Execution) -> Pipeline:
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

    def _answers(self, found: Gathered, start: int) -> Answers:
        index, failures = found.rows[0].images + start, found.failures
        if not len(index):
            empty = np.empty((0, self.run.features.feature_dim), np.float32)
            return Answers(index=index, features=empty, outputs=self.outputs(empty), failures=_later(failures, start))
        values = [
            part
            for branch, rows in zip(self.branches, found.rows, strict=True)
            for part in branch.values(rows.features)
        ]
        features = np.concatenate(values, axis=1)
        return Answers(
            index=index,
            features=features,
            outputs=self.outputs(features),
            failures=_later(failures, start),
        )

    def outputs(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of features float32 (n, D): float32 (n, C), probabilities of classes, or numbers in their units."""
        if not len(features):
            return np.empty((0, self.run.target.outputs), np.float32)
        return readable(self._outputs(features), self.run.target)


def _needs_torch(run: Run) -> bool:
    """Whether anything is computed that a device could speed up."""
    backbones = {origin.backbone for origin in run.features.origins}
    return not run.config.architecture.solved or backbones != {PIXELS}


def _outputs_on(run: Run, device: str, own: Callable[..., Any] | None) -> Outputs:
    """What the head of a run gives, computed on a device; of a solved head on the CPU without torch."""
    if run.config.architecture.solved and device == "cpu" and own is None:
        return run.solved_head().outputs
    import torch

    head = run.head(own).to(device)

    def outputs(features: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            given: NDArray[np.float32] = head(torch.from_numpy(features).to(device)).float().cpu().numpy()
        return given

    return outputs


def _program(network: Network, device: str, precision: str) -> Program:
    return network.on(device, "uint8" if network.spec.stores_bytes else precision)


def _places(weights: Weights, origins: Sequence[FeatureOrigin]) -> list[str | Path | None]:
    """For each cache where its backbone's weights are now, None for where they were."""
    names = [origin.backbone for origin in origins]
    if isinstance(weights, Mapping):
        if strangers := sorted(set(weights) - set(names)):
            raise InvalidOption(f"--weights: expected {', '.join(names)}, got {', '.join(strangers)}")
        return [weights.get(name) for name in names]
    if weights is not None and len(names) > 1:
        raise InvalidOption(
            f"the head reads {len(names)} backbones, and --weights {weights} could be of any",
            hint=f"say whose they are: --weights {names[0]}={weights}",
        )
    return [weights] * len(names)


def spec_of(origin: FeatureOrigin) -> Spec:
    """The spec of the layers that the head reads. Raises CacheForeign for a spec of another version."""
    return Spec.from_json(origin.spec).restricted_to(layer.name for layer in origin.layers)


def _network(
    run: Run, origin: FeatureOrigin, weights: str | Path | None, backbone: Network | None, data_dir: Path
) -> Network:
    spec, probe = spec_of(origin), outputs_in({"probe": origin.probe})
    if backbone is not None:
        require_same(backbone, spec, run.folder.name, probe)
        return backbone
    return rebuilt(spec, origin.weights, what=run.folder.name, probe=probe, weights=weights, data_dir=data_dir)


def _later(failures: Sequence[Failure], start: int) -> tuple[Failure, ...]:
    return tuple(replace(failure, image=failure.image + start) for failure in failures)
