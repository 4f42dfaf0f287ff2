"""Commands at the same time: two extractions, a training, and what tidies up."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import child, featcache

from featcache.cache.reader import FeatureCache
from featcache.runs.run import Run

SET = ("--dataset", "digits", "--backbone", "pixels")


def test_extractions_gc_rm_and_a_training_at_once_do_no_harm(here: Path) -> None:
    featcache("extract", *SET, "--image-size", "8")
    featcache("extract", *SET, "--image-size", "4")
    (used, other) = sorted((here / "data" / "features").glob("*.h5"), key=_side, reverse=True)
    featcache("train-head", used.stem, "--head", "ridge")
    grown = ("extract", *SET, "--image-size", "16", "--segment-rows", "64", "--json")
    training = ("train-head", used.stem, "--head", "mlp:16", "--max-epochs", "20", "--json")
    running = [
        child(*grown, cwd=here),
        child(*grown, cwd=here),
        child(*training, cwd=here),
        child("rm", other.stem, cwd=here),
        *(child("gc", "--delete", cwd=here) for _ in range(3)),
    ]
    output = [process.communicate(timeout=300) for process in running]
    # `gc` may have been quicker than `rm`, which then finds nothing.
    codes = [process.returncode for process in running]
    assert codes[:3] + codes[4:] == [0] * 6, output
    first, second = (json.loads(output[number][0]) for number in (0, 1))
    assert first["cache"] == second["cache"]
    # `gc` may have removed what no run uses.
    featcache(*grown)
    featcache("verify", "--full", Path(first["cache"]).stem)
    with FeatureCache.open(here / first["cache"]) as cache:
        assert sum(len(cache[split]) for split in cache) == 1797
    run = Run.load(here / json.loads(output[2][0])["run"])
    assert run.training.images["train"] > 1000
    assert not other.exists()
    assert not list((here / "data").rglob("*.tmp-*"))


def _side(path: Path) -> int:
    with FeatureCache.open(path) as cache:
        side = cache.spec.transform["image_size"]
        assert isinstance(side, int)
        return side
