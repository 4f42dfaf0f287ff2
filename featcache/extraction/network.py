"""Open the forward pass that computes the rows of a job, and measure its error against fp32."""

from __future__ import annotations

from typing import Any

from featcache.backbones import devices
from featcache.errors import WeightsError
from featcache.extraction import drift
from featcache.extraction.forward import Features, ForwardPass
from featcache.extraction.resizing import Packed
from featcache.extraction.resolve import Job, augmentation_of

_EXACT = ("cpu", "fp32", "eager")


def open_forward(job: Job) -> ForwardPass:
    """The forward pass that computes the rows of a job: loads weights, and compiles where the runner does.

    Raises WeightsError where the weights are not those that the spec describes.
    """
    described = {layer.name: layer.weights for layer in job.spec.layers}
    if {layer.name: layer.weights for layer in job.computer.network.spec.layers} != described:
        raise WeightsError(
            f"the weights of {job.backbone.name} changed while the extraction began", hint="run it again"
        )
    batch_size = job.computer.batch_size
    forward = ForwardPass(
        program=job.computer.program(job.spec, batch_size),
        dtype=job.spec.dtype,
        batch_size=batch_size,
        augmentation=augmentation_of(job.spec),
        view_seed=job.spec.view_seed or 0,
        resizing=job.computer.resizing,
        one_shape=True,
        stages=job.stages,
    )
    if drifts(job, forward):
        forward.before_first = lambda images: measure_drift(job, forward, images)
    return forward


def drifts(job: Job, forward: ForwardPass) -> bool:
    """Whether rows may differ from eager fp32 on the CPU, and the difference was not measured yet."""
    program = forward.program
    exact = (program.device, program.precision, program.runner) == _EXACT
    return not (exact or job.backbone.stores_bytes or job.drift is not None)


def measure_drift(job: Job, forward: ForwardPass, images: Packed, features: Features | None = None) -> None:
    """Compare rows of some images with eager fp32 on the CPU, and store the result in `job.drift`.

    Args:
        job, forward: The forward pass to measure.
        images: The first of them are used.
        features: Their rows in float32, if they have been computed already.

    Raises:
        ExtractionError: The cosine to fp32 is smaller than `min_cosine`.
    """
    program, some = forward.program, images[: drift.MOST_IMAGES]
    found = forward.features(some, "float32") if features is None else features
    name = program.precision if program.device == "cpu" else f"{program.precision} on {program.device}"
    measured = drift.compare(
        name,
        forward.on_cpu(some, job.computer.network.on(*_EXACT)),
        {layer: rows[: len(some)] for layer, rows in found.items()},
    )
    least = job.execution.min_cosine
    measured.require(least if program.precision != "fp32" else max(least, drift.LEAST_IN_FP32))
    job.reporter.info(str(measured))
    job.drift = measured.to_json()


def provenance_of(job: Job) -> dict[str, Any]:
    """The provenance of the segments of a job: how their rows are computed."""
    probe = job.backbone.probe
    return {
        "drift": job.drift,
        "probe": None if probe is None else probe.to_json(),
        "batch_size": job.computer.batch_size,
        **devices.provenance(job.computer.device, *_packages(job.spec.runner)),
    }


def _packages(runner: str) -> tuple[str, ...]:
    """The packages besides torch that a runner computes with."""
    return {"openvino": ("openvino",), "ncnn": ("ncnn", "pnnx")}.get(runner, ())
