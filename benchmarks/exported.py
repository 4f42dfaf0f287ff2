"""Compares an exported head with featcache on JPEG files: `python benchmarks/exported.py ../shared [--data-dir DIR]`.

Trains the notebook's head on VGG16's features of some CIFAR-10 images and exports it to ONNX. Then predicts test images
with `featcache predict`, and with the exported file in a process that imports onnxruntime but not featcache. Takes
about four minutes for 500 images on 2 cores, if the data folder already holds the cache (with the same `--limit`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import typer
from command import run
from machine import write

# Uses nothing of featcache: the example of docs/export.md, with all probabilities.
_ELSEWHERE = """
import json, os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1])
probabilities = []
for path in sys.stdin.read().splitlines():
    image = np.asarray(Image.open(path).convert("RGB"))[None]
    probabilities.append(session.run(None, {"images": image})[0][0].tolist())
assert not any(name.startswith("featcache") for name in sys.modules)
json.dump({"classes": json.loads(session.get_modelmeta().custom_metadata_map["featcache"])["classes"],
           "probabilities": probabilities}, sys.stdout)
"""


def main(shared: Path, images: int = 500, limit: int = 2000, data_dir: Path | None = None) -> None:
    """Compare on `images` test images, spread over the classes, and write results/exported.json."""
    shared = shared.resolve()
    features = ["-b", "vgg16", "-d", str(shared / "data" / "cifar10-images.zip"), "--limit", str(limit)]
    features += ["--weights", str(shared / "weights" / "vgg16_imagenet_features.safetensors")]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        where = ["--data-dir", str(data_dir or scratch / "data"), "--runs-dir", str(scratch / "runs")]
        run(["extract", *features, *where])
        head = ["--head", "mlp:128,64", "--activation", "leaky_relu"]
        trained = run(["train-head", *features, *head, *where])
        exported = run(["export", "latest", "-o", str(scratch / "head.onnx"), *where])
        paths = _unpack(shared / "data" / "cifar10-images.zip", images, scratch / "images")
        here = run(["predict", "latest", str(scratch / "images"), "--top", "10", *where])
        began = time.monotonic()
        elsewhere = _elsewhere(scratch / "head.onnx", paths)
        seconds = time.monotonic() - began
        result = {
            "test_accuracy": trained["test"]["accuracy"],
            "file_bytes": exported["bytes"],
            "verified": exported["verified"],
            "export_seconds": exported["wall_seconds"],
            "predict_seconds": here["wall_seconds"],
            "onnxruntime_seconds": round(seconds, 2),
            **_compare(here["images"], elsewhere),
        }
        print(json.dumps(result, indent=1))
        print(write("exported", result))


def _unpack(archive: Path, count: int, folder: Path) -> list[str]:
    """Write the first test images of each class into a flat folder; returns their paths, sorted."""
    folder.mkdir()
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if "/test/" in name and name.endswith(".jpg"))
        classes = sorted({name.split("/")[2] for name in names})
        for label in classes:
            for name in [one for one in names if one.split("/")[2] == label][: -(-count // len(classes))]:
                (folder / f"{label}-{Path(name).name}").write_bytes(file.read(name))
    return sorted(map(str, folder.iterdir()))


def _elsewhere(model: Path, paths: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(model)],
        input="\n".join(paths),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _compare(here: list[dict[str, Any]], elsewhere: dict[str, Any]) -> dict[str, Any]:
    """The number of images with the same first class, and the greatest difference of a probability."""
    same, greatest = 0, 0.0
    for image, probabilities in zip(here, elsewhere["probabilities"], strict=True):
        of_class = dict(zip(elsewhere["classes"], probabilities, strict=True))
        same += image["label"] == max(of_class, key=lambda name: of_class[name])
        differences = [abs(guess["probability"] - of_class[guess["label"]]) for guess in image["top"]]
        greatest = max(greatest, *differences)
    return {"images": len(here), "same_top1": same, "greatest_difference": greatest}


if __name__ == "__main__":
    typer.run(main)
