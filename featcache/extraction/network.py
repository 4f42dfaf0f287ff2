"""From a job to the forward pass that computes its rows."""

from __future__ import annotations

from typing import Any

from featcache.backbones import devices
from featcache.errors import WeightsError
from featcache.extraction import drift
from featcache.extraction.forward import ForwardPass
from featcache.extraction.resizing import Packed
from featcache.extraction.resolve import Job, augmentation_of

_EXACT = ("cpu", "fp32", "eager")


def open_forward(job: Job) -> ForwardPass:
    """What computes the rows of a job; weights are loaded, and what has to be compiled is compiled.

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
    forward.before_first = lambda images: measure_drift(job, forward, images)
    return forward


def measure_drift(job: Job, forward: ForwardPass, images: Packed) -> None:
    """Compare rows of some images with fp32 on the CPU, torch as it is; once for each job.

    Raises ExtractionError where they are too far off.
    """
    program = forward.program
    if job.backbone.stores_bytes or job.drift is not None:
        return
    if (program.device, program.precision, program.runner) == _EXACT:
        return
    some = images[: drift.MOST_IMAGES]
    name = program.precision if program.device == "cpu" else f"{program.precision} on {program.device}"
    found = drift.measured(
        name, forward.on_cpu(some, job.computer.network.on(*_EXACT)), forward.features(some, "float32")
    )
    least = job.execution.min_cosine
    found.require(least if program.precision != "fp32" else max(least, drift.LEAST_IN_FP32))
    job.reporter.say(str(found))
    job.drift = found.to_json()


def computed_by(job: Job) -> dict[str, Any]:
    """How rows are computed now: the provenance of segments."""
    probe = job.backbone.probe
    return {
        "drift": job.drift,
        "probe": None if probe is None else probe.to_json(),
        "batch_size": job.computer.batch_size,
        **devices.provenance(job.computer.device, *_packages(job.spec.runner)),
    }


def _packages(runner: str) -> tuple[str, ...]:
    """The packages that a runner computes with besides torch."""
    return {"openvino": ("openvino",), "ncnn": ("ncnn", "pnnx")}.get(runner, ())
