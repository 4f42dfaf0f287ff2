"""Compares exported heads with `predict`: `python benchmarks/exported.py ../shared`.

VGG16 with its ImageNet weights at 64 pixels, and a head of each kind of target on its features of CIFAR-10: classes,
several classes (properties of the class), and numbers (brightness and colourfulness). Each head is exported to ONNX,
and run on test images of CIFAR-10 and 15 odd images in a process with the script of docs/export.md: onnxruntime and
Pillow, without featcache.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import typer
from command import run
from machine import write
from odd_images import write_odd_images
from PIL import Image

PAGE = Path(__file__).parents[1] / "docs" / "export.md"
TARGETS = {"classes": ["label"], "lists": ["properties"], "numbers": ["brightness", "colourfulness"]}
# What the classes have in common.
_PROPERTIES = {
    "airplane": ("flies", "machine"),
    "automobile": ("drives", "machine"),
    "bird": ("animal", "flies"),
    "cat": ("animal", "pet"),
    "deer": ("animal",),
    "dog": ("animal", "pet"),
    "frog": ("animal", "swims"),
    "horse": ("animal",),
    "ship": ("machine", "swims"),
    "truck": ("drives", "machine"),
}
# The script of the page is imported, so it ends up with no images to print.
_ELSEWHERE = """
import json, sys
paths = sys.stdin.read().splitlines()
import classify
rows = [classify.outputs(path).tolist() for path in paths]
assert not any(name.startswith("featcache") for name in sys.modules)
json.dump({"names": classify.names, "rows": rows}, sys.stdout)
"""


def snippet() -> str:
    """The script `classify.py` of docs/export.md."""
    text = PAGE.read_text(encoding="utf-8")
    begin = text.index("cat > classify.py <<'END'\n") + len("cat > classify.py <<'END'\n")
    return text[begin : text.index("\nEND\n", begin) + 1]


def outputs_elsewhere(model: Path, paths: list[Path], folder: Path) -> dict[str, Any]:
    """The outputs of an ONNX file for images, in a process without featcache: `names` of the columns and `rows`."""
    (folder / "classify.py").write_text(snippet(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(model)],
        input="\n".join(map(str, paths)),
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(shared: Path, images: int = 500, limit: int = 500) -> None:
    """Compare on `images` test images, and write results/exported.json."""
    shared = shared.resolve()
    archive = shared / "data" / "cifar10-images.zip"
    words = ["-b", "vgg16", "-d", str(archive), "--image-size", "64", "--limit", str(limit)]
    words += ["--weights", str(shared / "weights" / "vgg16_imagenet_features.safetensors")]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        where = ["--data-dir", str(scratch / "data"), "--runs-dir", str(scratch / "runs")]
        cache = run(["extract", *words, *where])["cache"]
        table = _write_table(archive, scratch / "targets.csv")
        run(["label", cache, str(table), "--kind", "properties=lists", *where])
        paths = _unpack(archive, images, scratch / "images") + write_odd_images(scratch / "odd")
        results = {kind: _compare(kind, cache, paths, scratch, where) for kind in TARGETS}
    print(json.dumps(results, indent=1))
    print(write("exported", {"images": images, "odd_images": len(paths) - images, **results}))


def _compare(kind: str, cache: str, paths: list[Path], scratch: Path, where: list[str]) -> dict[str, Any]:
    """Train a head on the targets of one kind, and compare its file with `predict`."""
    targets = [word for name in TARGETS[kind] for word in ("--target", name)]
    trained = run(["train-head", cache, "--head", "mlp:64", *targets, *where])
    exported = run(["export", trained["run"], "-o", str(scratch / f"{kind}.onnx"), *where])
    here = run(["predict", trained["run"], *map(str, paths), "--top", "1000", *where])["images"]
    found = outputs_elsewhere(scratch / f"{kind}.onnx", paths, scratch)
    there = np.array(found["rows"])
    expected = np.array([_row(image, found["names"]) for image in here])
    scale = np.abs(expected).max(axis=0) if kind == "numbers" else np.ones(expected.shape[1])
    differences = (np.abs(there - expected) / scale).max(axis=1)
    return {
        "val": trained["val"],
        "file_bytes": exported["bytes"],
        "verified": exported["verified"],
        "within_1e-3": int((differences <= 1e-3).sum()),
        "greatest_difference": float(differences.max()),
        **({"same_top1": int((there.argmax(1) == expected.argmax(1)).sum())} if kind == "classes" else {}),
    }


def _row(image: dict[str, Any], names: list[str]) -> list[float]:
    """All outputs of `predict` for an image, in the order of the columns."""
    values = image.get("values") or {guess["label"]: guess["probability"] for guess in image["top"]}
    return [values[name] for name in names]


def _write_table(archive: Path, path: Path) -> Path:
    """Write the properties, and brightness and colourfulness, of all images of CIFAR-10."""
    with zipfile.ZipFile(archive) as file, path.open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["id", "properties", *TARGETS["numbers"]])
        for name in sorted(one for one in file.namelist() if one.endswith(".jpg")):
            pixels = np.asarray(Image.open(BytesIO(file.read(name))).convert("RGB"), np.float64)
            # In units that are far from 1.
            numbers = pixels.mean() * 1000, pixels.std(axis=2).mean() / 1000
            _, split, label, rest = name.split("/")
            rows.writerow([f"{split}/{label}/{rest}", ";".join(_PROPERTIES[label]), *numbers])
    return path


def _unpack(archive: Path, count: int, folder: Path) -> list[Path]:
    """Write the first test images of each class into a flat folder; returns their paths, sorted."""
    folder.mkdir()
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if "/test/" in name and name.endswith(".jpg"))
        classes = sorted({name.split("/")[2] for name in names})
        for label in classes:
            for name in [one for one in names if one.split("/")[2] == label][: -(-count // len(classes))]:
                (folder / f"{label}-{Path(name).name}").write_bytes(file.read(name))
    return sorted(folder.iterdir())


if __name__ == "__main__":
    typer.run(main)
