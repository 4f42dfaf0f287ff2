"""Measures extraction, in parts that can be run one at a time: `python benchmarks/extraction.py ../shared`.

    speed:NETWORK  every runner, and `auto`, against its own bare forward pass, the notebook's loop and a good script,
                   in turns
    precision      the effect of bf16: least cosine to fp32, and a head's test accuracy, on the same real images
    jpeg           640x480 photographs: which stage limits the speed, as reported by the run and as measured separately
    pixels         all images of the zip at 32x32
    memory         RSS after a tenth of the images, and after all
    growth         N, 2N and 4N images: the cost per image, and the fixed cost
    interrupt      how long Ctrl-C takes, while reading, compiling and computing

`--quick` tries the parts with tiny sizes and writes no result. Compare ratios: everything in a part runs on the same
images and the same machine. Results are merged, part by part, into results/extraction.json.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from extraction_ways import BATCH, WEIGHTS, Plain, bare, featcache, network_of, notebook
from parts import run_parts
from PIL import Image

from featcache.backbones import load_backbone
from featcache.backbones.devices import resolve_precision
from featcache.backbones.network import Network
from featcache.backbones.program import Program
from featcache.backbones.runners import RUNNERS, obstacle
from featcache.cache.reader import FeatureCache
from featcache.errors import InvalidOption, MissingExtra
from featcache.extraction.drift import compare
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.extraction.run import extract
from featcache.images import open_images
from featcache.images.decoding import decode
from featcache.runs.fit import train_head


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of images and of rounds."""

    images: int
    rounds: int
    image_size: int | None
    notebook_images: int
    precision: int
    jpegs: int
    memory: int
    growth: int
    growth_network: str


QUICK = Sizes(
    images=BATCH, rounds=1, image_size=96, notebook_images=8, precision=16, jpegs=8, memory=80, growth=8,
    growth_network="squeezenet1_1",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The folders of the real images and weights, and the sizes."""

    shared: Path
    sizes: Sizes
    scratch: Path

    @property
    def archive(self) -> Path:
        return self.shared / "data" / "cifar10-images.zip"

    def weights(self, network: str) -> str:
        return str(self.shared / "weights" / WEIGHTS[network]) if network in WEIGHTS else "random:0"

    def request(self, network: str, **changes: Any) -> Request:
        """The request for an extraction into a new data folder."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        plain = Request(dataset=self.archive, backbone=network, weights=self.weights(network), data_dir=folder)
        return replace(plain, **changes)


# --- the parts ---------------------------------------------------------------------------------------------


def speed(setting: Setting, network: str) -> dict[str, Any]:
    """Measure all ways in turns; the ratios are medians of the ratios in each turn."""
    sizes, size = setting.sizes, setting.sizes.image_size
    loaded = load_backbone(network, weights=setting.weights(network), image_size=size, data_dir=setting.scratch)
    with closing(open_images(setting.archive, datasets_dir=setting.scratch)) as source:
        samples = list(source.samples("test"))[: sizes.images]
        batch = np.stack([loaded.resize(decode(source.read(one), one.id)) for one in samples[:BATCH]])
        programs, not_run = _programs(loaded, batch)
        loop = network_of(network, setting.weights(network), size)
        plain = Plain(network_of(network, setting.weights(network), size), loaded.spec.transform, _usual())
        turns = []
        for turn in range(sizes.rounds):
            taken = _turn(setting, network, programs, batch)
            taken["plain_script"] = plain.run(source, samples)
            taken["notebook"] = notebook(loop, source, samples[: sizes.notebook_images], loaded.spec.transform)
            turns.append(taken)
            print(network, turn, taken, flush=True)
    return {
        "images": sizes.images,
        "not_run": not_run,
        "images_per_s": turns,
        "ratios": _ratios(turns, list(programs)),
        "medians": {way: round(statistics.median(turn[way] for turn in turns), 2) for way in (*programs, "auto")},
    }


def _usual() -> str:
    return resolve_precision("auto", "cpu")


def _programs(network: Network, batch: np.ndarray) -> tuple[dict[str, Program], dict[str, str]]:
    """Each runner's program, compiled, in its default precision; and why other runners cannot run."""
    programs, not_run = {}, {}
    for runner in RUNNERS:
        precision = _usual() if obstacle(runner, "cpu", _usual()) is None else "fp32"
        try:
            programs[runner] = network.on("cpu", precision, runner, batch_size=len(batch))
            programs[runner].features(batch)
        except (InvalidOption, MissingExtra) as error:
            programs.pop(runner, None)
            not_run[runner] = error.message
    return programs, not_run


def _turn(setting: Setting, network: str, programs: dict[str, Program], batch: np.ndarray) -> dict[str, Any]:
    """Every runner, with its bare forward pass before and after, and `auto`."""
    taken: dict[str, Any] = {}
    for runner, program in programs.items():
        alone = bare(program, batch)
        taken |= _measure_extraction(setting, network, runner)
        taken[f"{runner}_bare"] = statistics.mean([alone, bare(program, batch)])
    return taken | _measure_extraction(setting, network, "auto")


def _measure_extraction(setting: Setting, network: str, runner: str) -> dict[str, Any]:
    sizes = setting.sizes
    request = setting.request(network, splits=("test",), limit=sizes.images, runner=runner, image_size=sizes.image_size)
    measured_before = setting.scratch / "speeds.json"
    if runner == "auto" and measured_before.exists():
        # Speeds are measured once per machine and reused by later extractions, as in normal use.
        shutil.copy(measured_before, request.data_dir)
    done = featcache(request)
    with FeatureCache.open(done.cache) as cache:
        taken = {f"{runner}_runner": cache.spec.runner, f"{runner}_precision": cache.spec.precision}
    if (speeds := request.data_dir / "speeds.json").exists():
        shutil.copy(speeds, measured_before)
    shutil.rmtree(request.data_dir)
    whole = sizes.images / done.seconds
    return taken | {
        runner: done.images_per_s, f"{runner}_whole": whole, f"{runner}_shares": done.shares,
        f"{runner}_bound": done.bound,
    }  # fmt: skip


def _ratios(turns: list[dict[str, Any]], runners: list[str]) -> dict[str, float]:
    pairs = {
        **{f"{way}_over_notebook": (way, "notebook") for way in (*runners, "auto")},
        **{f"{way}_whole_over_notebook": (f"{way}_whole", "notebook") for way in (*runners, "auto")},
        **{f"{way}_of_bare": (way, f"{way}_bare") for way in runners},
        **{f"{way}_over_plain_script": (way, "plain_script") for way in (*runners, "auto")},
    }
    ratios = {
        name: statistics.median(turn[one] / turn[other] for turn in turns) for name, (one, other) in pairs.items()
    }
    ratios["auto_of_fastest"] = statistics.median(turn["auto"] / max(turn[way] for way in runners) for turn in turns)
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


def precision(setting: Setting) -> dict[str, Any]:
    """Features of the same images in every precision, eager, and a logistic regression on each."""
    return {"images_a_split": setting.sizes.precision, **{name: _precisions(setting, name) for name in WEIGHTS}}


def _precisions(setting: Setting, network: str) -> dict[str, Any]:
    results: dict[str, Any] = {}
    exact: np.ndarray | None = None
    for name in ("fp32", "bf16"):
        done = featcache(setting.request(network, limit=setting.sizes.precision, precision=name, runner="eager"))
        with FeatureCache.open(done.cache) as cache:
            (layer,) = cache.layers
            features = cache["test"].features[:]
        exact = features if exact is None else exact
        drift = compare(name, {layer: exact}, {layer: features}).layers[layer]
        run = train_head(done.cache, "logreg", runs_dir=setting.scratch / "runs")
        results[name] = {
            "images_per_s": done.images_per_s,
            "least_cosine": round(drift.cosine, 6),
            "median_relative_error": round(drift.median, 6),
            "accuracy": run.to_json()["test"]["accuracy"],
        }
        print(network, name, results[name], flush=True)
    return results


def jpeg(setting: Setting) -> dict[str, Any]:
    """Photographs of 640x480, made of real images: the limiting stage as reported, and as measured separately."""
    folder = _photographs(setting)
    results: dict[str, Any] = {}
    for network, size in (("vgg16", 224), ("inception_v3", 299), ("squeezenet1_1", 64), ("pixels", 64)):
        request = setting.request(network, dataset=folder, runner="eager")
        request = replace(request, image_size=size, weights="default" if network == "pixels" else request.weights)
        done = extract(request)
        decoding, computing = _apart(setting, request, folder)
        results[network] = {
            "size": size,
            "images_per_s": done.images_per_s,
            "shares": done.shares,
            "bound": done.bound,
            "decoding_images_per_s": decoding,
            "computing_images_per_s": computing,
            "named_rightly": done.bound == ("decode" if decoding < computing else "compute"),
        }
        print(network, results[network], flush=True)
    return {"images": setting.sizes.jpegs, **results}


def _photographs(setting: Setting) -> Path:
    folder = setting.scratch / "photographs" / "all"
    folder.mkdir(parents=True)
    with closing(open_images(setting.archive, datasets_dir=setting.scratch)) as source:
        for number, sample in enumerate(list(source.samples("test"))[: setting.sizes.jpegs]):
            picture = Image.fromarray(decode(source.read(sample), sample.id)).resize(
                (640, 480), Image.Resampling.BICUBIC
            )
            picture.save(folder / f"{number:05d}.jpg", quality=90)
    return folder.parent


def _apart(setting: Setting, request: Request, folder: Path) -> tuple[float, float]:
    """Images per second of decoding and resizing alone, with one thread per core, and of the forward pass alone."""
    network = load_backbone(
        str(request.backbone), weights=request.weights, image_size=request.image_size, data_dir=setting.scratch
    )
    files = sorted(folder.rglob("*.jpg"))
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pictures = list(pool.map(lambda path: network.resize(decode(path.read_bytes(), path.name)), files))
    return len(files) / (time.perf_counter() - began), bare(network.on("cpu", _usual()), np.stack(pictures[:BATCH]))


def pixels(setting: Setting) -> dict[str, Any]:
    """All images of the zip at 32x32: into an empty data folder, and again with the cache present."""
    request = setting.request("pixels", weights="default", image_size=32)
    first, again = extract(request), extract(request)
    return {
        "images": sum(first.rows.values()),
        "seconds": first.seconds,
        "images_per_s": first.images_per_s,
        "seconds_of_a_hit": again.seconds,
    }


class _Memory(LogReporter):
    """Records the resident memory after a tenth of the images, and after all."""

    def __init__(self) -> None:
        self.after: dict[int, float] = {}

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        if stage == "extracting" and done >= total // 10:
            self.after.setdefault(total // 10, _rss_mb())
            self.after[total] = _rss_mb()


def _rss_mb() -> float:
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1000


def memory(setting: Setting) -> dict[str, Any]:
    """Memory of a small network on many images."""
    reporter = _Memory()
    request = setting.request("squeezenet1_1", image_size=64, limit=setting.sizes.memory // 2, runner="eager")
    extract(request, reporter=reporter)
    (few, before), (many, after) = reporter.after.items()
    return {"network": "squeezenet1_1 at 64", f"rss_mb_after_{few}": before, f"rss_mb_after_{many}": after,
            "grown_by": round(after / before - 1, 4)}  # fmt: skip


def growth(setting: Setting) -> dict[str, Any]:
    """The wall time for N, 2N and 4N images, and the line fitted to it."""
    counts = [setting.sizes.growth * factor for factor in (1, 2, 4)]
    network = setting.sizes.growth_network
    # A warm-up, so that the first measurement does not include the start-up cost of the process.
    featcache(setting.request(network, splits=("train",), limit=BATCH, runner="eager"))
    seconds = []
    for count in counts:
        request = setting.request(network, splits=("train",), limit=count, runner="eager")
        seconds.append(featcache(request).seconds)
        shutil.rmtree(request.data_dir)
        print(network, count, seconds[-1], flush=True)
    each_s, once_s = np.polyfit(counts, seconds, 1)
    return {
        "network": network,
        "seconds": dict(zip(map(str, counts), seconds, strict=True)),
        "seconds_an_image": round(float(each_s), 5),
        "seconds_once": round(float(once_s), 2),
        "cost_of_4N_over_4_times_N": round(seconds[2] / (4 * seconds[0]), 3),
    }


def interrupt(setting: Setting) -> dict[str, Any]:
    """Seconds from Ctrl-C to the end of the process, and its exit code, at several stages."""
    network = ["-b", "vgg16", "--weights", setting.weights("vgg16"), "--split", "test"]
    stages = {
        "reading": (["-b", "pixels", "--image-size", "32"], "", 4.0),
        "compiling": ([*network, "--runner", "compiled"], "compiling vgg16", 6.0),
        "computing": ([*network, "--limit", "2000", "--runner", "eager"], "bf16 against fp32", 4.0),
    }
    return {stage: _interrupt_command(setting, *arguments) for stage, arguments in stages.items()}


def _interrupt_command(setting: Setting, words: list[str], message: str, later_s: float) -> dict[str, Any]:
    """Send Ctrl-C `later_s` seconds after the command has printed `message`, or after its start if that is empty."""
    folder = tempfile.mkdtemp(dir=setting.scratch)
    command = [sys.executable, "-m", "featcache", "extract", "-d", str(setting.archive), "--data-dir", folder, *words]
    # A process started in the background ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Its own process group, so that Ctrl-C reaches compilers too.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    if message:
        next(line for line in process.stderr if message in line)
    rest = threading.Thread(target=process.stderr.read)
    rest.start()
    time.sleep(later_s)
    began = time.perf_counter()
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(120)
    seconds = time.perf_counter() - began
    rest.join()
    return {"seconds": round(seconds, 2), "exit_code": code}


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "speed:vgg16": lambda setting: speed(setting, "vgg16"),
    "speed:inception_v3": lambda setting: speed(setting, "inception_v3"),
    "precision": precision,
    "jpeg": jpeg,
    "pixels": pixels,
    "memory": memory,
    "growth": growth,
    "interrupt": interrupt,
}


def main(
    shared: Path,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts: {', '.join(PARTS)}.")] = None,
    images: Annotated[int, typer.Option(help="Images per turn of speed.")] = 1024,
    rounds: int = 3,
    notebook_images: int = 192,
    precision: Annotated[int, typer.Option(help="Images per split.")] = 1000,
    jpegs: int = 384,
    memory: int = 20_000,
    growth: Annotated[int, typer.Option(help="N; 2N and 4N follow.")] = 2000,
    growth_network: str = "resnet18",
    quick: Annotated[bool, typer.Option(help="Tiny sizes, no result written: to try the script.")] = False,
) -> None:
    """Measure the parts and merge them into results/extraction.json."""
    torch.set_num_threads(os.cpu_count() or 1)
    sizes = Sizes(
        images=images, rounds=rounds, image_size=None, notebook_images=notebook_images, precision=precision,
        jpegs=jpegs, memory=memory, growth=growth, growth_network=growth_network,
    )  # fmt: skip
    sizes = QUICK if quick else sizes
    run_parts(
        "extraction",
        PARTS,
        only,
        lambda scratch: Setting(shared=shared.resolve(), sizes=sizes, scratch=scratch),
        keep=not quick,
    )


if __name__ == "__main__":
    typer.run(main)
