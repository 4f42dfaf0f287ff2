"""Measures featcache beside VisBench: one layer of one network from the same files, and a linear probe on it.

VisBench is no dependency: `pip install --no-deps visbench` first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from measure import Bench, in_new_process, measurement, time_of

_LAYER = "features.30"


def visbench_probe(root: str, weights: str, size: int) -> dict[str, Any]:
    """VGG16's convolutions, averaged over the image, and VisBench's linear probe; writes the test features."""
    import torchvision
    import visbench
    from safetensors import safe_open
    from safetensors.torch import load_file
    from torchvision.transforms import v2
    from visbench.backbones.custom import CustomBackbone
    from visbench.cache import FeatureCache
    from visbench.data.image_folder import ImageFolderDataset

    layers = torchvision.models.vgg16(weights=None).features
    layers.load_state_dict({name.removeprefix("features."): one for name, one in load_file(weights).items()})
    with safe_open(weights, "pt") as file:
        mean, std = (json.loads(file.metadata()[name]) for name in ("mean", "std"))
    colours = v2.Compose([v2.Resize((size, size)), v2.PILToTensor(), v2.ToDtype(_float(), scale=True)])
    normalise = v2.Normalize(mean, std)
    backbone = CustomBackbone(layers, lambda one: normalise(colours(one.convert("RGB"))), "vgg16", image_size=size)
    sets = {split: ImageFolderDataset(Path(root) / "set" / split, split) for split in ("train", "test")}
    cache = FeatureCache(Path(root) / "visbench")
    found = visbench.run(backbone, "classification", sets["test"], train_dataset=sets["train"], cache=cache)
    pooled = cache.extract_dataset(backbone, sets["test"], keep="pooled", pooling="mean")["pooled"]
    np.save(Path(root) / "visbench.npy", pooled.numpy())
    return {"metrics": {name: float(value) for name, value in found.metrics.items()}}


def _float() -> Any:
    import torch

    return torch.float32


@measurement("peers", "10 min", images=20, image_size=32)
def peers(bench: Bench, *, images: int = 250, image_size: int = 224) -> dict[str, Any]:
    """Extraction and a linear probe, beside VisBench: seconds of whole processes without and with a cache, accuracy."""
    from featcache.cache.reader import FeatureCache

    for split in ("train", "test"):
        bench.unpack(split, images)
        (bench.scratch / "set").mkdir(exist_ok=True)
        (bench.scratch / "images").rename(bench.scratch / "set" / split)
    where = ["--data-dir", str(bench.scratch / "data"), "--runs-dir", str(bench.scratch / "runs")]
    network = ["-b", "vgg16", "--weights", bench.weights("vgg16"), "--layer", _LAYER, "--pool", "avg"]

    def ours() -> dict[str, Any]:
        extracted = bench.featcache(
            "extract", "-d", bench.scratch / "set", *network, "--image-size", image_size, *where[:2]
        )
        return extracted | {"run": bench.featcache("train-head", extracted["cache"], "--head", "linear", *where)}

    def visbench() -> Any:
        return in_new_process(visbench_probe, str(bench.scratch), bench.weights("vgg16"), image_size)

    taken = {name: [time_of(work) for _ in range(2)] for name, work in (("featcache", ours), ("visbench", visbench))}
    first = taken["featcache"][0].result
    with FeatureCache.open(first["cache"]) as cache:
        mine = np.asarray(cache["test"].layer(_LAYER)[:], np.float32)
    other = np.load(bench.scratch / "visbench.npy")
    return {
        "images": 2 * images,
        "image_size": image_size,
        "seconds": {name: [round(one.clock, 2) for one in some] for name, some in taken.items()},
        "processor_seconds": {name: [round(one.processor, 2) for one in some] for name, some in taken.items()},
        "featcache_test": first["run"]["test"],
        "visbench_test": taken["visbench"][0].result["metrics"],
        "greatest_difference": float(np.abs(mine - other).max() / np.abs(other).max()),
    }
