"""Checks and measures featcache on a GPU in under five minutes: `python benchmarks/gpu.py [--out FOLDER]`.

The same as `python benchmarks/measure.py gpu`. Runs from a checkout that is not installed, and imports only what
extraction needs: torch 2.9 or newer, torchvision, h5py, numpy, Pillow, safetensors, xxhash, filelock. Weights are
random; images are noise on gradients. The result is gpu.json in the folder, else in benchmarks/results; a part that
fails is reported, the others run, and the exit code is 1. `--device cpu --quick` tries the script with tiny sizes.
"""

from __future__ import annotations

import io
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from measure import Bench, in_turns, main, measurement
from PIL import Image

from featcache.backbones import checks, devices
from featcache.backbones.loading import load
from featcache.backbones.network import Network
from featcache.backbones.options import BackboneOptions
from featcache.backbones.program import Program
from featcache.backbones.resampling import Resampler
from featcache.backbones.transforms import Interpolation, Resize, Transform
from featcache.extraction.computing import batch_size_for, decoding_threads_for
from featcache.extraction.forward import ForwardPass
from featcache.extraction.pipeline import Pipeline
from featcache.extraction.processes import peak_bytes
from featcache.extraction.reporting import LogReporter
from featcache.extraction.resizing import resolve_resizing
from featcache.extraction.stages import Stages
from featcache.heads.architectures import build_head
from featcache.heads.config import HeadConfig
from featcache.images.listing import Listing
from featcache.images.samples import Sample
from featcache.images.source import ImageSource, Stamp
from featcache.rows.target import HeadTarget
from featcache.training.stack import InitialHead, PerceptronStack
from featcache.training.stacking import head_shape

# Smaller, larger, wide, tall, and so tall that columns are resized first.
_RESIZED_FROM = ((32, 32), (225, 230), (375, 500), (500, 375), (480, 640), (601, 64))
# A memory limit for the process, and a batch size that does not fit into it.
_CAP_BYTES, _TOO_MANY = 4 << 30, 4096
_WIDE = 2_048
Step = Callable[[torch.Tensor, torch.Tensor], object]


def networks_of(bench: Bench) -> Iterator[tuple[str, Network]]:
    """Networks with random weights, loaded one after another: a kept one would count in the next one's memory."""
    for name in ("squeezenet1_1",) if bench.quick else ("vgg16", "inception_v3", "resnet50", "vit_b_16"):
        options = BackboneOptions(backbone=name, image_size=64 if bench.quick else None, weights="random:0")
        yield name, load(options, weights_dir=Path())


def pipeline_of(
    program: Program, device: str, source: ImageSource, batch_size: int, stages: Stages | None = None
) -> Pipeline:
    """The pipeline of an extraction."""
    resizing = resolve_resizing("auto", program.spec, device, LogReporter())
    forward = ForwardPass(
        program=program, dtype="float16", batch_size=batch_size, resizing=resizing, stages=stages or Stages()
    )
    return Pipeline(source=source, backbones=[forward], workers=decoding_threads_for(program.spec, device))


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Images uint8 (count, height, width, 3): gradients of different directions, with noise."""
    random = np.random.default_rng(0)
    slopes = np.linspace(0, 1, height)[:, None] * random.random((count, 1, 1)) + np.linspace(0, 1, width)
    smooth = 100 * slopes[..., None] * random.random((count, 1, 1, 3))
    noisy: np.ndarray = (smooth + random.integers(0, 50, (count, height, width, 3))).astype(np.uint8)
    return noisy


class Jpegs(ImageSource):
    """An image source of many samples that repeat a few JPEGs in memory."""

    def __init__(self, images: np.ndarray, samples: int) -> None:
        self._encoded = []
        for image in images:
            Image.fromarray(image).save(file := io.BytesIO(), "JPEG", quality=90)
            self._encoded.append(file.getvalue())
        rows = (("test", f"test/{number:08d}", 0) for number in range(samples))
        super().__init__(name="jpegs", origin="memory", listing=Listing.of_rows(rows, ["all"]))

    def read(self, sample: Sample) -> bytes:
        return self._encoded[int(sample.id.rpartition("/")[2]) % len(self._encoded)]

    def stamp(self, sample: Sample) -> Stamp | None:
        return None  # Nothing is looked up in a cache.


@measurement("gpu:features", "1 min")
def features(bench: Bench, *, device: str = "cuda") -> dict[str, Any]:
    """fp32 and bf16 on the device against fp32 on the CPU: least cosine, greatest relative error."""
    results: dict[str, Any] = {}
    for name, network in networks_of(bench):
        images = pictures(16, *(network.spec.transform.image_size,) * 2)
        exact = _rows(network.on("cpu", "fp32"), images)
        results[name] = {"image_size": images.shape[1], "feature_dim": exact.shape[1]}
        for precision in ("fp32", "bf16"):
            rows = _rows(network.on(devices.resolve_device(device), precision), images)
            results[name][precision] = {
                "least_cosine": round(checks.least_cosine(rows, exact), 8),
                "greatest_relative_error": float(f"{checks.relative_difference(rows, exact):.3g}"),
            }
    return results


def _rows(program: Program, images: np.ndarray) -> np.ndarray:
    (rows,) = program.features(images).values()
    found: np.ndarray = rows.float().cpu().numpy()
    return found


@measurement("gpu:resize", "10 s")
def resize(bench: Bench, *, device: str = "cuda") -> dict[str, Any]:
    """The device's resize against Pillow, byte for byte: several sizes, both interpolations, squashed and cropped."""
    sides = (64,) if bench.quick else (224, 299)
    choices = itertools.product(_RESIZED_FROM, sides, get_args(Interpolation), get_args(Resize))
    cases = [_compare_resize(devices.resolve_device(device), *choice) for choice in choices]
    different = [case for case in cases if case["different_bytes"]]
    return {"cases": len(cases), "equal": len(cases) - len(different), "different": different}


def _compare_resize(
    device: str, size: tuple[int, int], side: int, interpolation: Interpolation, way: Resize
) -> dict[str, Any]:
    crop = round(side * 256 / 224) if way == "crop" else None
    transform = Transform(image_size=side, resize=way, resize_size=crop, interpolation=interpolation)
    images = pictures(3, *size)
    resampler = Resampler(transform=transform, device=torch.device(device))
    here = resampler.resize(torch.from_numpy(images).to(device)).cpu().numpy()
    different = int((here != np.stack([transform.resize_image(image) for image in images])).sum())
    return {"from": size, "to": side, "interpolation": interpolation, "resize": way, "different_bytes": different}


@measurement("gpu:speed", "2 min")
def speed(bench: Bench, *, device: str = "cuda", seconds: float = 6.0) -> dict[str, Any]:
    """Images/s of the real pipeline from JPEGs over the bare forward pass; the limiting stage; peak memory."""
    device, seconds = devices.resolve_device(device), 0.3 if bench.quick else seconds
    count, samples = (16, 2000) if bench.quick else (256, 200_000)
    sizes = ((32, 32), (48, 64)) if bench.quick else ((32, 32), (375, 500))
    sources = {f"{height}x{width}": Jpegs(pictures(count, height, width), samples) for height, width in sizes}
    results = {}
    for name, network in networks_of(bench):
        precision = devices.resolve_precision("auto", device)
        program = network.on(device, precision)
        batch_size = 8 if bench.quick else batch_size_for(network.spec, device)
        with peak_memory(device) as peak:
            alone = bare(program, device, batch_size, seconds / 2)
        found = {"precision": precision, "batch_size": batch_size}
        found |= {"bare_images_per_s": round(alone, 1), "bare_peak_mb": peak()}
        for size, source in sources.items():
            with peak_memory(device) as peak:
                measured = steady(program, device, source, batch_size, seconds)
            found[size] = {**measured, "of_bare": round(measured["images_per_s"] / alone, 3), "peak_mb": peak()}
        results[name] = found
    return results


def bare(program: Program, device: str, batch_size: int, seconds: float) -> float:
    """Images per second of the forward pass on one batch in device memory: the median of rounds."""
    side = program.spec.transform.image_size
    batch = torch.from_numpy(pictures(batch_size, side, side)).to(device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        program.features(batch)
        _wait(device)
        times.append(time.perf_counter() - start)
    # The first round includes the choice of algorithms.
    return batch_size / statistics.median(times[1:])


def steady(program: Program, device: str, source: Jpegs, batch_size: int, seconds: float) -> dict[str, Any]:
    """Images per second of the pipeline without its first batches, and the limiting stage."""
    stages = Stages()
    # Skipped: until every thread has decoded a batch, and the prefetched batches are used up.
    skipped = 2 + decoding_threads_for(program.spec, device) // 2
    with closing(pipeline_of(program, device, source, batch_size, stages)) as pipeline:
        blocks = pipeline.run(source.samples("test"))
        for _ in islice(blocks, skipped):
            pass
        before, began, images = stages.seconds, time.perf_counter(), 0
        for block in blocks:
            images += sum(len(rows.images) for rows in block.rows[0])
            if time.perf_counter() - began > seconds:
                break
        took, spent = time.perf_counter() - began, stages.seconds
    shares = {stage: round((spent[stage] - before[stage]) / took, 3) for stage in spent}
    bound = max(shares, key=lambda stage: shares[stage])
    return {"images": images, "images_per_s": round(images / took, 1), "shares": shares, "bound": bound}


@contextmanager
def peak_memory(device: str) -> Iterator[Callable[[], float]]:
    """Give a function that returns the peak memory in MB: of the device from here, or of the process from its start."""
    is_cuda = device.startswith("cuda")
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield lambda: round((torch.cuda.max_memory_allocated(device) if is_cuda else peak_bytes()) / 1e6, 1)


@measurement("gpu:head", "1 min")
def head(bench: Bench, *, device: str = "cuda") -> dict[str, Any]:
    """An epoch of the notebook's head on features in device memory over a bare loop; 64 heads in one batch."""
    where = torch.device(devices.resolve_device(device))
    return {f"batch {size}": epochs_of(where, size, 128 if bench.quick else 40_000) for size in (64, 1_024)}


def epochs_of(device: torch.device, batch_size: int, rows: int) -> dict[str, Any]:
    """Seconds of an epoch of one head, of 64 heads, and of a bare loop over the same batches, in turns."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(rows, _WIDE, generator=generator).half().to(device)
    labels = torch.randint(10, (rows,), generator=generator).to(device)
    order = torch.split(torch.randperm(rows, generator=generator).to(device), batch_size)

    def epoch(step: Step) -> Callable[[], None]:
        def work() -> None:
            for chosen in order:
                step(stored.index_select(0, chosen).float(), labels.index_select(0, chosen))
            _wait(str(device))

        return work

    many = stack_steps(device, [1e-4 * 2 ** (number % 8) for number in range(64)])
    steps = {"bare": _bare_steps(device), "one_head": stack_steps(device, [1e-3]), "64_heads": many}
    taken = in_turns({name: epoch(step) for name, step in steps.items()}, 3)
    medians = {name: statistics.median(one.clock for one in some) for name, some in taken.items()}
    return {
        **{f"{name}_s": round(value, 4) for name, value in medians.items()},
        "one_head_over_bare": round(medians["one_head"] / medians["bare"], 2),
        "64_heads_over_64_bare": round(medians["64_heads"] / (64 * medians["bare"]), 3),
    }


def _head_module(device: torch.device) -> torch.nn.Module:
    torch.manual_seed(0)
    config = HeadConfig(head="mlp:128,64", activation="leaky_relu")
    return build_head(config.architecture, head_shape(config, _WIDE, 10)).to(device)


def _bare_steps(device: torch.device) -> Step:
    module = _head_module(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

    def step(features: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.nn.functional.cross_entropy(module(features), labels))
        optimizer.step()

    return step


def stack_steps(device: torch.device, rates: Sequence[float]) -> Step:
    """A step of featcache's engine with one head for each rate."""
    tensors = {name: one.detach() for name, one in _head_module(device).state_dict().items()}
    configs = [HeadConfig(head="mlp:128,64", activation="leaky_relu", lr=rate) for rate in rates]
    heads = [InitialHead(config=config, tensors=tensors) for config in configs]
    stack = PerceptronStack([heads], HeadTarget(kind="classes", columns=("label",), names=tuple("abcdefghij")))
    return lambda features, labels: stack.step(features[None], labels[None], None)


@measurement("gpu:memory", "20 s")
def memory_cap(bench: Bench, *, device: str = "cuda") -> dict[str, Any]:
    """A batch that does not fit into memory is halved until it fits, and gives the same features."""
    device = devices.resolve_device(device)
    if not device.startswith("cuda"):
        return {"not_measured": f"the memory of {device} cannot be capped"}
    name, network = next(networks_of(bench))
    program = network.on(device, "fp32")
    side = program.spec.transform.image_size
    expected, _ = extract(program, device, Jpegs(pictures(8, side, side), 64), 32)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(_CAP_BYTES / total, device)
    try:
        halved, batch_size = extract(program, device, Jpegs(pictures(8, side, side), _TOO_MANY), _TOO_MANY)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    return {
        "network": name,
        "cap_mb": _CAP_BYTES / 1e6,
        "asked_batch_size": _TOO_MANY,
        "halved_to": batch_size,
        "rows": len(halved),
        "least_cosine": round(checks.least_cosine(halved[: len(expected)], expected), 8),
    }


def extract(program: Program, device: str, source: Jpegs, batch_size: int) -> tuple[np.ndarray, int]:
    """The features of all samples, and the final batch size."""
    with closing(pipeline_of(program, device, source, batch_size)) as pipeline:
        (rows,) = pipeline.gather(source.samples("test")).rows
        return next(iter(rows.features.values())), pipeline.backbones[0].batch_size


if __name__ == "__main__":
    sys.exit(main(["gpu", *sys.argv[1:]]))
