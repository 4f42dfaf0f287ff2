"""Checks and measures featcache on a GPU in under five minutes: `python benchmarks/gpu.py [--json PATH]`.

Runs from a checkout that is not installed, and imports only what extraction needs: torch 2.9 or newer, torchvision,
h5py, numpy, Pillow, safetensors, xxhash, filelock. Weights are random; images are noise on gradients. Parts:

    features   fp32 and bf16 on the device against fp32 on the CPU: least cosine, greatest relative error
    resize     the device's resize against Pillow, byte for byte
    speed      images/s of the real pipeline, from JPEGs in memory, relative to the bare forward pass; the limiting
               stage; peak memory
    head       the time of a head's epoch on features in device memory, relative to a bare loop; 64 heads in one batch
    memory     a batch that does not fit into memory is halved until it fits, and gives the same features

`--device cpu --quick` runs the same with tiny sizes, to try the script. A part that fails is reported, and the exit
code is then 1.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from machine import with_machine
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


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the measurements.

    Args:
        networks: Backbones and their image sizes; None for a network's own size.
        compared: Number of images whose features are compared with those of the CPU.
        batch_size: None for the device's default.
        jpegs: Number of different JPEGs of each size.
        samples: The greatest number of images, which repeat the JPEGs.
        jpeg_sizes: Height and width in pixels.
        seconds: Duration of one measurement of speed.
        resized_to: Target sizes, in pixels a side.
        head_rows: Rows of 2,048 features per epoch of a head.
    """

    networks: dict[str, int | None]
    compared: int
    batch_size: int | None
    jpegs: int
    samples: int
    jpeg_sizes: tuple[tuple[int, int], ...]
    seconds: float
    resized_to: tuple[int, ...]
    head_rows: int


WHOLE = Sizes(
    networks={"vgg16": None, "inception_v3": None, "resnet50": None, "vit_b_16": None},
    compared=16,
    batch_size=None,
    jpegs=256,
    samples=200_000,
    jpeg_sizes=((32, 32), (375, 500)),
    seconds=6.0,
    resized_to=(224, 299),
    head_rows=40_000,
)
QUICK = Sizes(
    networks={"squeezenet1_1": 64},
    compared=4,
    batch_size=8,
    jpegs=16,
    samples=2000,
    jpeg_sizes=((32, 32), (48, 64)),
    seconds=0.3,
    resized_to=(64,),
    head_rows=512,
)
# Smaller, larger, wide, tall, and so tall that columns are resized first.
_RESIZED_FROM = ((32, 32), (225, 230), (375, 500), (500, 375), (480, 640), (601, 64))
# A memory limit for the process, and a batch size that does not fit into it.
_CAP_BYTES, _TOO_MANY = 4 << 30, 4096


@dataclass(kw_only=True, eq=False)
class Setting:
    """The device and the sizes of the measurements."""

    device: str
    sizes: Sizes

    def network(self, name: str) -> Network:
        """The network with random weights, loaded again each time: a kept one would count in the next one's memory."""
        options = BackboneOptions(backbone=name, image_size=self.sizes.networks[name], weights="random:0")
        return load(options, weights_dir=Path())

    @property
    def precision(self) -> str:
        """The default precision of the device."""
        return devices.resolve_precision("auto", self.device)

    def pipeline(
        self, program: Program, source: ImageSource, batch_size: int, stages: Stages | None = None
    ) -> Pipeline:
        """The pipeline of an extraction."""
        forward = ForwardPass(
            program=program,
            dtype="float16",
            batch_size=batch_size,
            resizing=resolve_resizing("auto", program.spec, self.device, LogReporter()),
            stages=stages or Stages(),
        )
        return Pipeline(source=source, backbones=[forward], workers=decoding_threads_for(program.spec, self.device))

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def wait(self) -> None:
        """Wait until the device has finished all work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


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
        self._encoded = [_encode_jpeg(image) for image in images]
        rows = (("test", f"test/{number:08d}", 0) for number in range(samples))
        super().__init__(name="jpegs", origin="memory", listing=Listing.of_rows(rows, ["all"]))

    def read(self, sample: Sample) -> bytes:
        """The JPEG of a sample."""
        return self._encoded[int(sample.id.rpartition("/")[2]) % len(self._encoded)]

    def stamp(self, sample: Sample) -> Stamp | None:
        """None, so that nothing is looked up in a cache."""
        return None


def _encode_jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


# --- the parts ---------------------------------------------------------------------------------------------


def features(setting: Setting) -> dict[str, Any]:
    """Each network in fp32 and bf16 on the device against fp32 on the CPU, on the same resized images."""
    return {name: _compare(setting, name) for name in setting.sizes.networks}


def _compare(setting: Setting, name: str) -> dict[str, Any]:
    network = setting.network(name)
    side = network.spec.transform.image_size
    images = pictures(setting.sizes.compared, side, side)
    exact = _rows(network.on("cpu", "fp32"), images)
    compared: dict[str, Any] = {"image_size": side, "feature_dim": exact.shape[1]}
    for precision in ("fp32", "bf16"):
        rows = _rows(network.on(setting.device, precision), images)
        compared[precision] = {
            "least_cosine": round(checks.least_cosine(rows, exact), 8),
            "greatest_relative_error": float(f"{checks.relative_difference(rows, exact):.3g}"),
        }
    return compared


def _rows(program: Program, images: np.ndarray) -> np.ndarray:
    """Features of the only layer: float32 (N, D)."""
    (rows,) = program.features(images).values()
    found: np.ndarray = rows.float().cpu().numpy()
    return found


def resize(setting: Setting) -> dict[str, Any]:
    """Resize images of several sizes, in both interpolations, squashed and cropped, and count bytes that differ from
    Pillow's.
    """
    interpolations: tuple[Interpolation, ...] = ("bilinear", "bicubic")
    ways: tuple[Resize, ...] = ("squash", "crop")
    cases = [
        _compare_resize(setting.device, size, side, interpolation, way)
        for size in _RESIZED_FROM
        for side in setting.sizes.resized_to
        for interpolation in interpolations
        for way in ways
    ]
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
    pillow = np.stack([transform.resize_image(image) for image in images])
    return {
        "from": list(size),
        "to": side,
        "interpolation": interpolation,
        "resize": way,
        "different_bytes": int((here != pillow).sum()),
    }


def speed(setting: Setting) -> dict[str, Any]:
    """Measure each network in the device's default precision."""
    sizes = setting.sizes
    sources = {
        f"{height}x{width}": Jpegs(pictures(sizes.jpegs, height, width), sizes.samples)
        for height, width in sizes.jpeg_sizes
    }
    return {name: _speed(setting, name, sources) for name in sizes.networks}


def _speed(setting: Setting, name: str, sources: dict[str, Jpegs]) -> dict[str, Any]:
    network = setting.network(name)
    program = network.on(setting.device, setting.precision)
    batch_size = setting.sizes.batch_size or batch_size_for(network.spec, setting.device)
    with _peak_memory(setting) as peak:
        alone = _bare(setting, program, batch_size)
    found = {"precision": setting.precision, "batch_size": batch_size, "bare_images_per_s": round(alone, 1)}
    found |= {"bare_peak_mb": peak()}
    for size, source in sources.items():
        with _peak_memory(setting) as peak:
            steady = _steady(setting, program, source, batch_size)
        found[size] = {**steady, "of_bare": round(steady["images_per_s"] / alone, 3), "peak_mb": peak()}
    return found


def _bare(setting: Setting, program: Program, batch_size: int) -> float:
    """Images per second of the forward pass on one batch in device memory: the median of rounds."""
    side = program.spec.transform.image_size
    batch = torch.from_numpy(pictures(batch_size, side, side)).to(setting.device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - began < setting.sizes.seconds / 2:
        start = time.perf_counter()
        program.features(batch)
        setting.wait()
        times.append(time.perf_counter() - start)
    # The first round includes the choice of algorithms.
    return batch_size / statistics.median(times[1:])


def _steady(setting: Setting, program: Program, source: Jpegs, batch_size: int) -> dict[str, Any]:
    """Images per second of the pipeline without its first batches, and the limiting stage."""
    stages = Stages()
    # Skipped: until every thread has decoded a batch, and the prefetched batches are used up.
    skipped = 2 + decoding_threads_for(program.spec, setting.device) // 2
    with closing(setting.pipeline(program, source, batch_size, stages)) as pipeline:
        blocks = pipeline.run(source.samples("test"))
        for _ in islice(blocks, skipped):
            pass
        before, began, images = stages.seconds, time.perf_counter(), 0
        for block in blocks:
            images += sum(len(rows.images) for rows in block.rows[0])
            if time.perf_counter() - began > setting.sizes.seconds:
                break
        seconds, spent = time.perf_counter() - began, stages.seconds
    shares = {stage: round((spent[stage] - before[stage]) / seconds, 3) for stage in spent}
    return {
        "images": images,
        "images_per_s": round(images / seconds, 1),
        "shares": shares,
        "bound": max(shares, key=lambda stage: shares[stage]),
    }


def head(setting: Setting) -> dict[str, Any]:
    """Seconds of an epoch of the notebook's head on 2,048 features, and of a bare loop over the same batches."""
    return {f"batch {size}": _head(setting, size) for size in (64, 1_024)}


def _head(setting: Setting, batch_size: int) -> dict[str, Any]:
    device = torch.device(setting.device)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(setting.sizes.head_rows, _WIDE, generator=generator).half().to(device)
    labels = torch.randint(10, (setting.sizes.head_rows,), generator=generator).to(device)
    order = torch.split(torch.randperm(len(labels), generator=generator).to(device), batch_size)
    ways = {
        "bare": _bare_steps(device),
        "one_head": _stack_steps(device, [1e-3]),
        "64_heads": _stack_steps(device, [1e-4 * 2 ** (number % 8) for number in range(64)]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    # The first round includes the start-up costs and is not counted.
    for _ in range(4):
        for name, step in ways.items():
            _wait(device)
            began = time.perf_counter()
            for chosen in order:
                step(features.index_select(0, chosen).float(), labels.index_select(0, chosen))
            _wait(device)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(some[1:]) for name, some in seconds.items()}
    return {
        **{f"{name}_s": round(value, 4) for name, value in medians.items()},
        "one_head_over_bare": round(medians["one_head"] / medians["bare"], 2),
        "64_heads_over_64_bare": round(medians["64_heads"] / (64 * medians["bare"]), 3),
    }


_WIDE = 2_048
Step = Callable[[torch.Tensor, torch.Tensor], object]


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


def _stack_steps(device: torch.device, rates: Sequence[float]) -> Step:
    tensors = {name: one.detach() for name, one in _head_module(device).state_dict().items()}
    configs = [HeadConfig(head="mlp:128,64", activation="leaky_relu", lr=rate) for rate in rates]
    heads = [InitialHead(config=config, tensors=tensors) for config in configs]
    stack = PerceptronStack([heads], HeadTarget(kind="classes", columns=("label",), names=tuple("abcdefghij")))
    return lambda features, labels: stack.step(features[None], labels[None], None)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _peak_memory(setting: Setting) -> Iterator[Callable[[], float]]:
    """Give a function that returns the peak memory in MB: of the device from here, or of the process from its start."""

    def peak() -> float:
        if setting.is_cuda:
            return round(torch.cuda.max_memory_allocated(setting.device) / 1e6, 1)
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)

    if setting.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)
    yield peak


def memory(setting: Setting) -> dict[str, Any]:
    """Run the first network with a batch that does not fit, and check the halved batch size and the features."""
    if not setting.is_cuda:
        return {"not_measured": f"the memory of {setting.device} cannot be capped"}
    name = next(iter(setting.sizes.networks))
    program = setting.network(name).on(setting.device, "fp32")
    side = program.spec.transform.image_size
    source = Jpegs(pictures(8, side, side), 64)
    samples = source.samples("test")
    expected = _extract(setting, program, source, samples, 32)[0]
    total = torch.cuda.get_device_properties(setting.device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(_CAP_BYTES / total, setting.device)
    try:
        many = Jpegs(pictures(8, side, side), _TOO_MANY)
        halved, batch_size = _extract(setting, program, many, many.samples("test"), _TOO_MANY)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setting.device)
    return {
        "network": name,
        "cap_mb": _CAP_BYTES / 1e6,
        "asked_batch_size": _TOO_MANY,
        "halved_to": batch_size,
        "rows": len(halved),
        "least_cosine": round(checks.least_cosine(halved[: len(expected)], expected), 8),
    }


def _extract(
    setting: Setting, program: Program, source: Jpegs, samples: Sequence[Sample], batch_size: int
) -> tuple[np.ndarray, int]:
    """The features of all samples, and the final batch size."""
    with closing(setting.pipeline(program, source, batch_size)) as pipeline:
        (rows,) = pipeline.gather(samples).rows
        return next(iter(rows.features.values())), pipeline.backbones[0].batch_size


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "features": features,
    "resize": resize,
    "speed": speed,
    "head": head,
    "memory": memory,
}


# --- all of them -------------------------------------------------------------------------------------------


def measure(device: str, sizes: Sizes, parts: Sequence[str]) -> dict[str, Any]:
    """Run the parts one after another; the result of a part that raises is its error."""
    setting = Setting(device=device, sizes=sizes)
    name = torch.cuda.get_device_name(device) if setting.is_cuda else device
    result: dict[str, Any] = {"device": name, "quick": sizes is QUICK}
    for part in parts:
        began = time.perf_counter()
        try:
            found = PARTS[part](setting)
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"}
        result[part] = {"took_s": round(time.perf_counter() - began, 1), **found}
        print(part, json.dumps(result[part]), file=sys.stderr, flush=True)
    return result


def main() -> int:
    """Measure, and print or write one JSON object. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Check and measure featcache on a GPU.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to try the script, not to measure")
    parser.add_argument("--only", action="append", choices=tuple(PARTS), help="one part; may be repeated")
    parser.add_argument("--json", type=Path, help="write the result there, not to stdout")
    chosen = parser.parse_args()
    device = devices.resolve_device(chosen.device)
    result = with_machine(measure(device, QUICK if chosen.quick else WHOLE, chosen.only or tuple(PARTS)))
    text = json.dumps(result, indent=2)
    if chosen.json is None:
        print(text)
    else:
        chosen.json.write_text(text + "\n")
    return int(any("failed" in result[part] for part in chosen.only or PARTS))


if __name__ == "__main__":
    sys.exit(main())
