"""Repeats at full size what tests check with a sample: damage, faults, kills, networks, exports, memory.

What is checked stands in `tests/`, beside the tests that use it. A measurement fails at the first wrong end.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
from measure import RESULTS, Bench, measurement


@measurement("mutations", "25 min", count=20)
def mutations(bench: Bench, *, count: int = 10_000, kind: tuple[str, ...] = (), seed: int = 0) -> dict[str, Any]:
    """Damaged files of 19 kinds, each opened, listed and decoded: all end well or with an error of featcache."""
    from mutations import bad_ends, run
    from sound_files import SOUND

    found = run(kind or list(SOUND), count, seed, bench.scratch)
    if bad_ends(found):
        raise AssertionError(json.dumps(found, indent=2))
    return found


@measurement("faults", "10 min", sample=50)
def faults(bench: Bench, *, sample: int | None = None, action: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every system call on a file fails once with every error that it may have: nothing is lost, a retry succeeds."""
    from system_faults import ACTIONS, run

    return run(list(action or ACTIONS), sample, bench.scratch)


@measurement("kills", "3 min", kills=8)
def kills(bench: Bench, *, kills: int = 500, seed: int = 0) -> dict[str, Any]:
    """SIGKILL at random moments, extracting into one file, into segments, in shards, and packing: nothing is lost."""
    from kills import run

    return run(kills, seed, bench.scratch)


@measurement("zoo", "15 min", network=("squeezenet1_1", "timm:test_vit"))
def zoo(bench: Bench, *, network: tuple[str, ...] = ()) -> dict[str, Any]:
    """Networks that can be extracted: all of torchvision, and the smallest of each of timm's model files."""
    from zoo_networks import smallest_of_each_file, try_network

    from featcache.backbones.zoos.torchvision_facts import TORCHVISION

    warnings.simplefilter("ignore")
    smallest = smallest_of_each_file(RESULTS / "zoo.json")
    files = dict.fromkeys(TORCHVISION, "torchvision") | {f"timm:{one}": file for file, one in smallest.items()}
    outcomes = []
    for one in network or files:
        outcomes.append(try_network(one, files.get(one, "")))
        print(outcomes[-1].line(), file=sys.stderr, flush=True)
    extracted, every = sum(one.refusal is None for one in outcomes), [asdict(one) for one in outcomes]
    return {"extract": extracted, "networks": len(every), "smallest": smallest, "outcomes": every}


@measurement("exported", "3 min", images=10, limit=20)
def onnx_file(bench: Bench, *, images: int = 500, limit: int = 500) -> dict[str, Any]:
    """A head on VGG16 as an ONNX file, run without featcache, beside `predict`: CIFAR-10 and 15 odd images."""
    from elsewhere import outputs_elsewhere
    from odd_images import write_odd_images

    words = ("-b", "vgg16", "-d", bench.archive, "--image-size", 64, "--limit", limit)
    cache = bench.featcache("extract", *words, "--weights", bench.weights("vgg16"))["cache"]
    paths = bench.unpack("test", images) + write_odd_images(bench.scratch / "odd")
    trained = bench.featcache("train-head", cache, "--head", "mlp:64")
    written = bench.featcache("export", trained["run"], "-o", bench.scratch / "head.onnx")
    here = bench.featcache("predict", trained["run"], *paths, "--top", 10)["images"]
    found = outputs_elsewhere(bench.scratch / "head.onnx", paths, bench.scratch)
    guesses = [{guess["label"]: guess["probability"] for guess in one["top"]} for one in here]
    expected, there = np.array([[one[name] for name in found["names"]] for one in guesses]), np.array(found["rows"])
    differences = np.abs(there - expected).max(axis=1)
    classes = {
        "val": trained["val"],
        "file_bytes": written["bytes"],
        "verified": written["verified"],
        "within_1e-3": int((differences <= 1e-3).sum()),
        "greatest_difference": float(differences.max()),
        "same_top1": int((there.argmax(1) == expected.argmax(1)).sum()),
    }
    return {"images": images, "odd_images": len(paths) - images, "classes": classes}


@measurement("memory_limit", "1 min", rows=12_000)
def memory_limit(bench: Bench, *, rows: int = 24_000) -> dict[str, Any]:
    """Training on a cache of 25,088 features that is larger than the memory allowed: the same head, streamed."""
    from limited_memory import compare
    from storage import make_cache

    made = make_cache(bench.scratch, {"train": rows}, 25_088)
    return compare(made.packed, int(made.packed.stat().st_size * 0.4))
