"""Measures whole commands: the main job, end to end against cached, the recipes, and the start of commands.

Commands that compute little are compared with a process that only imports the necessary libraries.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from measure import Bench, command, in_turns, measurement
from PIL import Image

_HEAD = ("--head", "mlp:128,64", "--activation", "leaky_relu")
_DIGITS = ("extract", "-b", "pixels", "-d", "digits")
FLOOR, TORCH, SOLVER = "import h5py, typer, rich", "import torch", "import sklearn.linear_model"
_PERCEPTRONS = ("mlp", "mlp-l1", "mlp-l2", "mlp-leaky", "mlp-dropout", "mlp-wide", "mlp-best")


@measurement("main_job", "10 min", limit=20)
def main_job(bench: Bench, *, limit: int | None = None) -> dict[str, Any]:
    """Features of real images, extracted and extracted again, and a head on them, for three backbones."""
    images, few = ("-d", bench.archive), ("--limit", limit) if limit else ()
    vgg = ("-b", "vgg16", *images, "--weights", bench.weights("vgg16"), "--limit", limit or 2000)
    inception = ("-b", "inception_v3", *images, "--weights", bench.weights("inception_v3"), "--limit", limit or 500)
    pixels = ("-b", "pixels", *images, "--image-size", 32, "--normalize", "half", *few)
    cases = {"vgg16": (vgg, _HEAD), "inception_v3": (inception, _HEAD), "pixels": (pixels, ("--head", "mlp:64,16"))}
    results = {}
    for name, (features, head) in cases.items():
        extracted = bench.featcache("extract", *features)
        trained = bench.featcache("train-head", extracted["cache"], *head)
        again = bench.featcache("extract", *features)
        results[name] = {
            "extract": _select(extracted, "rows feature_dim computed reused seconds images_per_s wall_seconds"),
            "train_head": _select(trained, "head parameters n epochs best_epoch seconds val last test wall_seconds"),
            "extract_again": _select(again, "computed reused seconds wall_seconds"),
        }
    return results


def _select(printed: dict[str, Any], names: str) -> dict[str, Any]:
    return {name: printed[name] for name in names.split()}


def _end_to_end(scenario: str, takes: str) -> None:
    what = f"The head of {scenario} trained end to end and from a cache; the page and the chart are written too."

    @measurement(f"end_to_end_{scenario}", takes, what, scenario="quick")
    def work(bench: Bench, *, scenario: str = scenario) -> dict[str, Any]:
        from featcache.benchmark.options import scenario as options_of
        from featcache.benchmark.run import run_benchmark
        from featcache.benchmark.showing import files
        from featcache.cli.terminal import Terminal

        options = options_of(scenario)
        if not bench.quick:
            # Relative paths, because a result is read on other machines.
            images, weights = os.path.relpath(bench.archive), os.path.relpath(bench.weights(options.name))
            options = replace(options, dataset=images, weights=weights)
        with Terminal() as terminal:
            about: dict[str, Any] = {"command": command(sys.argv[1:]), "today": datetime.now(UTC).date()}
            result = run_benchmark(options, data_dir=bench.scratch, reporter=terminal, **about)
        for file, content in files(result, f"end_to_end_{scenario}").items():
            if bench.out is not None and not file.endswith(".json"):
                (bench.out / file).write_bytes(content)
        return {name: value for name, value in result.to_json().items() if name not in ("command", "machine")}


_end_to_end("cifar10-vgg16", "30 min")
_end_to_end("cifar10-inception", "20 min")


@measurement("reproduce_mlp", "15 min", seeds=1, limit=200, recipe=("mlp", "mlp-dropout"))
def reproduce(
    bench: Bench, *, seeds: int = 3, limit: int | None = None, recipe: tuple[str, ...] = _PERCEPTRONS
) -> dict[str, Any]:
    """The notebook's seven perceptrons on all 60,000 images, with several seeds."""
    few = ("--limit", limit) if limit else ()
    printed = bench.featcache("reproduce", *recipe, "-d", bench.archive, *few, "--seeds", seeds)
    fits = [[row["seeds"][seed]["seconds"] for row in printed["rows"]] for seed in range(seeds)]
    return {
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "seeds": seeds,
        "wall_seconds": printed["wall_seconds"],
        # The time of all fits, for each seed.
        "fit_seconds_by_seed": [round(sum(some), 2) for some in fits],
        "rows": printed["rows"],
    }


def against_imports(bench: Bench, floor: str, *words: object) -> dict[str, Any]:
    """Compare a command with its imports. If it trains by steps, the seconds of its fit are added to the imports."""
    imports = [sys.executable, "-c", floor]
    taken = in_turns({"command": lambda: bench.featcache(*words), "imports": lambda: bench.run(imports)}, bench.rounds)
    trains = words[0] == "train-head" and floor == TORCH
    found: dict[str, Any] = {"floor": floor}
    for clock, prefix in (("clock", ""), ("processor", "processor_")):
        mine = [getattr(one, clock) for one in taken["command"]]
        fits = [one.result["seconds"] if trains else 0.0 for one in taken["command"]]
        others = [getattr(one, clock) + fit for one, fit in zip(taken["imports"], fits, strict=True)]
        medians = {f"{prefix}seconds": mine, f"floor_{prefix}seconds": others}
        found |= {name: round(statistics.median(some), 3) for name, some in medians.items()}
        found[f"{prefix}ratio"] = round(statistics.median(a / b for a, b in zip(mine, others, strict=True)), 2)
    return found


def hit(bench: Bench, *options: object) -> dict[str, Any]:
    """An extraction that finds its cache."""
    bench.featcache("extract", *options)
    return against_imports(bench, FLOOR, "extract", *options)


@measurement("startup:digits", "10 s")
def digits(bench: Bench) -> dict[str, Any]:
    """A hit of `extract` on the digits, a set that comes with scikit-learn."""
    return hit(bench, *_DIGITS[1:])


@measurement("startup:folder", "20 s", images=40)
def folder(bench: Bench, *, images: int = 2000) -> dict[str, Any]:
    """A hit on images in a folder, through SqueezeNet at 32 pixels."""
    bench.unpack("train", images)
    where = ("-d", bench.scratch / "images")
    return hit(bench, "-b", "squeezenet1_1", "--weights", "random:0", "--image-size", 32, *where)


@measurement("startup:zip", "1 min", limit=100)
def zip_members(bench: Bench, *, limit: int | None = None) -> dict[str, Any]:
    """A hit on all 60,000 members of the CIFAR zip, at 8 pixels."""
    few = ("--limit", limit) if limit else ()
    return hit(bench, "-b", "pixels", "--image-size", 8, "-d", bench.archive, *few)


@measurement("startup:ls", "10 s")
def ls(bench: Bench) -> dict[str, Any]:
    """`ls` of 100 caches."""
    cache = bench.scratch / bench.featcache(*_DIGITS, "--limit", 10)["cache"]
    for number in range(99):
        shutil.copy(cache, cache.with_name(f"copy-{number:02d}.h5"))
    return against_imports(bench, FLOOR, "ls")


def training(bench: Bench, head: str, floor: str, *options: object) -> dict[str, Any]:
    """`train-head` on the digits."""
    bench.featcache(*_DIGITS)
    return against_imports(bench, floor, "train-head", "--head", head, *options)


def prediction(bench: Bench, head: str, floor: str, *options: object) -> dict[str, Any]:
    """`predict` of one image, with a head on the digits."""
    bench.featcache(*_DIGITS)
    trained = bench.featcache("train-head", "--head", head, *options)
    Image.new("RGB", (8, 8), "grey").save(bench.scratch / "image.png")
    return against_imports(bench, floor, "predict", trained["run"], bench.scratch / "image.png")


def _add(part: str, work: Callable[..., dict[str, Any]], head: str, floor: str, *options: object) -> None:
    what = f"{work.__doc__} Head {head}, over `{floor}`."
    measurement(f"startup:{part}", "30 s", what)(lambda bench: work(bench, head, floor, *options))


_add("linear", training, "linear", TORCH, "--max-epochs", 3)
_add("ridge", training, "ridge", SOLVER)
_add("centroid", training, "centroid", FLOOR)
_add("predict-mlp", prediction, "mlp:16", TORCH, "--max-epochs", 3)
_add("predict-solved", prediction, "centroid", FLOOR)
