"""Measures the speed of extraction on real images: every runner beside its bare forward pass, and a notebook's loop.

All ways compute the same features of the same images, in turns; the ratios are medians of the ratios in each turn.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from measure import Bench, measurement, time_of
from PIL import Image
from torch import nn
from torchvision import models, transforms

from featcache.backbones import load_backbone
from featcache.backbones.devices import resolve_precision
from featcache.backbones.loading import plain
from featcache.backbones.network import Network
from featcache.backbones.options import BackboneOptions
from featcache.backbones.program import Program
from featcache.backbones.runners import RUNNERS, obstacle
from featcache.backbones.transforms import Transform
from featcache.cache.reader import FeatureCache
from featcache.errors import InvalidOption, MissingExtra
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.images import open_images
from featcache.images.decoding import decode
from featcache.images.samples import Sample
from featcache.images.source import ImageSource

BATCH = 32
PRECISION = resolve_precision("auto", "cpu")
# The auxiliary classifier is for training only; the transform normalises already.
_INCEPTION = {"init_weights": False, "aux_logits": False, "transform_input": False}


def _network(name: str, weights: str, image_size: int | None) -> nn.Module:
    # The frozen network as the notebook builds it, torchvision's without its classifier: (N, 3, S, S) -> (N, D).
    options = BackboneOptions(backbone=name, weights=weights, image_size=image_size)
    state = plain(options, weights_dir=Path(weights).parent).part.state_dict()
    network = models.get_model(name, weights=None, **(_INCEPTION if name == "inception_v3" else {}))
    setattr(network, "classifier" if hasattr(network, "classifier") else "fc", nn.Identity())
    tensors = {key.removeprefix("root.network."): value for key, value in state.items()}
    missing = network.load_state_dict(tensors, strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


def _notebook(network: nn.Module, source: ImageSource, samples: Sequence[Sample], transform: Transform) -> float:
    # Images per second, one image at a time as in an ImageFolder, in batches of 64 in eager fp32 and NCHW.
    steps = transforms.Resize((transform.image_size,) * 2), transforms.ToTensor()
    prepare = transforms.Compose([*steps, transforms.Normalize(transform.mean, transform.std)])
    began = time.perf_counter()
    with torch.no_grad():
        for start in range(0, len(samples), 64):
            files = [io.BytesIO(cast(bytes, source.read(sample))) for sample in samples[start : start + 64]]
            network(torch.stack([prepare(Image.open(file).convert("RGB")) for file in files]))
    return len(samples) / (time.perf_counter() - began)


def _bare(program: Program, batch: np.ndarray) -> float:
    # Images per second on one batch in memory.
    program.features(batch)
    return len(batch) / statistics.median(time_of(lambda: program.features(batch)).clock for _ in range(3))


def _add(network: str, takes: str) -> None:
    def work(
        bench: Bench, *, images: int = 1024, notebook_images: int = 192, image_size: int | None = None
    ) -> dict[str, Any]:
        return _speed(bench, network, images, notebook_images, image_size)

    what = f"Every runner and `auto` beside the bare forward pass and the notebook's loop: {network}."
    measurement(f"extraction:{network}", takes, what, images=BATCH, notebook_images=8, image_size=96)(work)


_add("vgg16", "35 min")
_add("inception_v3", "20 min")


def _speed(bench: Bench, name: str, images: int, notebook_images: int, size: int | None) -> dict[str, Any]:
    torch.set_num_threads(os.cpu_count() or 1)
    weights = bench.weights(name)
    loaded = load_backbone(name, weights=weights, image_size=size, data_dir=bench.scratch)
    request = Request(
        dataset=bench.archive, backbone=name, weights=weights, image_size=size, splits=("test",), limit=images
    )  # fmt: skip
    with closing(open_images(bench.archive, datasets_dir=bench.scratch)) as source:
        samples = list(source.samples("test"))[:images]
        batch = np.stack([loaded.resize(decode(source.read(one), one.id)) for one in samples[:BATCH]])
        programs, not_run = _programs(loaded, batch)
        loop, few = _network(name, weights, size), samples[:notebook_images]
        turns: list[dict[str, Any]] = []
        for _ in range(bench.rounds):
            turns.append({})
            for runner, program in programs.items():
                alone = _bare(program, batch)
                turns[-1] |= _extract(bench, request, runner)
                turns[-1][f"{runner}_bare"] = statistics.mean([alone, _bare(program, batch)])
            turns[-1] |= _extract(bench, request, "auto")
            turns[-1] |= {"notebook": _notebook(loop, source, few, loaded.spec.transform)}
    ways = [*programs, "auto"]
    medians = {way: round(statistics.median(turn[way] for turn in turns), 2) for way in ways}
    found = {"images": images, "not_run": not_run, "images_per_s": turns}
    return found | {"ratios": _ratios(turns, ways), "medians": medians}


def _programs(network: Network, batch: np.ndarray) -> tuple[dict[str, Program], dict[str, str]]:
    # Each runner's program, compiled, in its default precision; and why other runners cannot run.
    programs, not_run = {}, {}
    for runner in RUNNERS:
        precision = PRECISION if obstacle(runner, "cpu", PRECISION) is None else "fp32"
        try:
            programs[runner] = network.on("cpu", precision, runner, batch_size=len(batch))
            programs[runner].features(batch)
        except (InvalidOption, MissingExtra) as error:
            programs.pop(runner, None)
            not_run[runner] = error.message
    return programs, not_run


def _extract(bench: Bench, request: Request, runner: str) -> dict[str, Any]:
    # An extraction into a new data folder: images per second, steady and of the whole, and the limiting stage.
    folder, speeds = Path(tempfile.mkdtemp(dir=bench.scratch)), bench.scratch / "speeds.json"
    if runner == "auto" and speeds.exists():
        # Speeds are measured once per machine and reused by later extractions, as in normal use.
        shutil.copy(speeds, folder)
    done = extract(replace(request, data_dir=folder, runner=cast(Any, runner)), Execution(device="cpu"))
    with FeatureCache.open(done.cache) as cache:
        taken: dict[str, Any] = {f"{runner}_runner": cache.spec.runner, f"{runner}_precision": cache.spec.precision}
    if (folder / "speeds.json").exists():
        shutil.copy(folder / "speeds.json", speeds)
    shutil.rmtree(folder)
    taken |= {f"{runner}_whole": (request.limit or 0) / done.seconds, f"{runner}_shares": done.shares}
    return taken | {runner: done.images_per_s, f"{runner}_bound": done.bound}


def _ratios(turns: list[dict[str, Any]], ways: Sequence[str]) -> dict[str, float]:
    # Each way over the others; `whole` includes the start of an extraction.
    runners = ways[:-1]
    pairs = {
        **{f"{way}_over_notebook": (way, "notebook") for way in ways},
        **{f"{way}_whole_over_notebook": (f"{way}_whole", "notebook") for way in ways},
        **{f"{way}_of_bare": (way, f"{way}_bare") for way in runners},
    }
    found = {name: statistics.median(turn[a] / turn[b] for turn in turns) for name, (a, b) in pairs.items()}
    found["auto_of_fastest"] = statistics.median(turn["auto"] / max(turn[way] for way in runners) for turn in turns)
    return {name: round(ratio, 3) for name, ratio in found.items()}
