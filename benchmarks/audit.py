"""Does the audit find what was planted: `python benchmarks/audit.py ../shared [--per-class N] [--data-dir DIR]`.

A zip of all CIFAR-10 images, into whose train split copies of 250 test images are put, 50 of each kind (the file
itself, mirrored, recompressed, brighter, moved by two pixels), 250 images are put under a wrong class, and 20 that are
no photographs. VGG16 with its ImageNet weights at 64 pixels, pooled to 512 features; then `featcache audit`, with and
without a look at the pixels. Writes results/audit.json, and results/audit_pairs.csv: the leaks beyond the planted ones,
which are CIFAR-10's own; `--sheet FILE.png` draws them, for judging by eye. The extraction takes some
six minutes on 2 cores, an audit one; `--data-dir` keeps the features for the next time.
"""

from __future__ import annotations

import csv
import io
import random
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import typer
from command import run
from machine import RESULTS, write
from PIL import Image, ImageChops, ImageEnhance, ImageOps

from featcache.images.contact_sheet import Tile, contact_sheet

Picture = Image.Image
Finding = dict[str, Any]
Planted = Mapping[str, Mapping[str, str]]
# Strength, how, ids.
OwnPair = tuple[float, str, tuple[str, str]]

_EACH = 50
_WRONG = 250
_FOREIGN = 20
_SIDE = 48
_COLUMNS = 14
_SHOWN = 280


def recompressed(picture: Picture) -> Picture:
    """As it comes back from JPEG at quality 70."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=70)
    return Image.open(file).convert("RGB")


def moved(picture: Picture) -> Picture:
    """By two pixels to the right, edges repeated."""
    shifted = ImageChops.offset(picture, 2, 0)
    shifted.paste(picture.crop((0, 0, 1, picture.height)).resize((2, picture.height)), (0, 0))
    return shifted


CHANGES: Mapping[str, Callable[[Picture], Picture]] = {
    "mirrored": ImageOps.mirror,
    "recompressed": recompressed,
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.25),
    "moved": moved,
}


def encoded(picture: Picture) -> bytes:
    """As JPEG of quality 95, much as CIFAR-10 was."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return file.getvalue()


def foreign(number: int) -> Picture:
    """No photograph: noise, or a coarse pattern."""
    generator = np.random.default_rng(number)
    side = 32 if number % 2 else 4
    pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST)


def plant(archive: Path, target: Path, per_class: int | None, seed: int = 0) -> Planted:
    """Write the zip. What was planted, by kind: the id in train, and the id of its origin (or its true class)."""
    chooser = random.Random(seed)
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as made:
        names = [name for name in sorted(source.namelist()) if name.endswith(".jpg")]
        names = [name for name in names if per_class is None or int(Path(name).stem) < per_class]
        classes = sorted({name.split("/")[2] for name in names})
        wrong = write_originals(names, source, made, classes, chooser)
        copies = write_copies([name for name in names if "/test/" in name], source, made, chooser)
        return {"wrong label": wrong, **copies, "foreign": write_foreign(made, classes)}


def write_originals(
    names: list[str], source: zipfile.ZipFile, made: zipfile.ZipFile, classes: list[str], chooser: random.Random
) -> dict[str, str]:
    """All images, some of train under another class: {id: its true class}."""
    train = [name for name in names if "/train/" in name]
    chosen = set(chooser.sample(train, min(_WRONG, len(train) // 50)))
    wrong = {}
    for name in names:
        path = name.removeprefix("cifar10/")
        if name in chosen:
            _, true, file = path.split("/")
            path = f"train/{chooser.choice([other for other in classes if other != true])}/{true}-{file}"
            wrong[path] = true
        made.writestr(path, source.read(name))
    return wrong


def write_copies(test: list[str], source: zipfile.ZipFile, made: zipfile.ZipFile, chooser: random.Random) -> Planted:
    """Copies of test images in train: {kind: {id: the id of its origin}}."""
    kinds = ("plain", *CHANGES)
    planted: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    for number, name in enumerate(chooser.sample(test, _EACH * len(kinds))):
        kind, content = kinds[number % len(kinds)], source.read(name)
        if kind != "plain":
            content = encoded(CHANGES[kind](Image.open(io.BytesIO(content)).convert("RGB")))
        path = f"train/{name.split('/')[2]}/planted-{kind}-{number}.jpg"
        made.writestr(path, content)
        planted[kind][path] = name.removeprefix("cifar10/")
    return planted


def write_foreign(made: zipfile.ZipFile, classes: list[str]) -> dict[str, str]:
    """Images that are no photographs, in train: {id: ""}."""
    paths = [f"train/{classes[number % len(classes)]}/foreign-{number}.jpg" for number in range(_FOREIGN)]
    for number, path in enumerate(paths):
        made.writestr(path, encoded(foreign(number)))
    return dict.fromkeys(paths, "")


def findings(audit: dict[str, Any], kind: str) -> list[Finding]:
    """The findings of one kind."""
    (section,) = [section for section in audit["sections"] if section["kind"] == kind]
    found: list[Finding] = section["findings"]
    return found


def ids(finding: Finding) -> list[str]:
    """The images it names."""
    return [sample["id"] for sample in finding["samples"]]


def judged(audit: dict[str, Any], planted: Planted) -> dict[str, Any]:
    """Recall of each kind, and how many findings there are beyond the planted ones."""
    leaks = [set(ids(finding)) for finding in findings(audit, "leak")]
    recall = {
        kind: sum(any({copy, origin} <= leak for leak in leaks) for copy, origin in planted[kind].items())
        / len(planted[kind])
        for kind in ("plain", *CHANGES)
    }
    copies = {copy for kind in recall for copy in planted[kind]}
    named = [ids(finding)[0] for finding in findings(audit, "label_error")]
    odd = [ids(finding)[0] for finding in findings(audit, "outlier")]
    wrong = planted["wrong label"]
    return {
        "seconds": audit["seconds"],
        "wall_seconds": audit["wall_seconds"],
        "recall": recall,
        "leaks": len(leaks),
        "leaks_beyond_planted": sum(len(leak - copies) > 1 or not leak & copies for leak in leaks),
        "duplicates_within": len(findings(audit, "duplicate")),
        "wrong_labels": {
            "planted": len(wrong),
            "named": len(named),
            "recall": sum(name in wrong for name in named) / len(wrong),
            "of_the_first_100": sum(name in wrong for name in named[:100]),
        },
        "foreign": {
            "planted": len(planted["foreign"]),
            "named": len(odd),
            "recall": sum(name in planted["foreign"] for name in odd) / len(planted["foreign"]),
            "of_the_first_20": sum(name in planted["foreign"] for name in odd[:20]),
        },
    }


def own_pairs(audit: dict[str, Any]) -> list[OwnPair]:
    """The linked pairs of the leaks without planted images: strength, how, ids; the strongest first."""
    pairs = []
    for finding in findings(audit, "leak"):
        names = ids(finding)
        for link in finding["links"]:
            pair = (names[link["first"]], names[link["second"]])
            if not any("planted" in name for name in pair):
                pairs.append(((link["cosine"] + (link["pixels"] or 1)) / 2, link["how"], pair))
    return sorted(pairs, reverse=True)


def write_pairs(pairs: list[OwnPair], target: Path) -> None:
    """List them: the strongest first."""
    with target.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("strength", "how", "first", "second"))
        rows.writerows((f"{strength:.3f}", how, *pair) for strength, how, pair in pairs)


def draw_pairs(pairs: list[OwnPair], archive: Path, target: Path) -> None:
    """Draw them, an even choice where they are many."""
    shown = pairs if len(pairs) <= _SHOWN else [pairs[n * len(pairs) // _SHOWN] for n in range(_SHOWN)]
    with zipfile.ZipFile(archive) as images:
        tiles = [
            Tile(
                pictures=tuple(np.asarray(Image.open(io.BytesIO(images.read(name))).convert("RGB")) for name in pair),
                caption=f"{strength:.2f} {how}",
            )
            for strength, how, pair in shown
        ]
    if tiles:
        page = Image.fromarray(contact_sheet(tiles, columns=_COLUMNS, side=_SIDE))
        page.quantize(256).save(target, optimize=True)


def main(shared: Path, per_class: int | None = None, data_dir: Path | None = None, sheet: Path | None = None) -> None:
    """Plant, extract, audit; write results/audit.json and results/audit_pairs.csv."""
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "planted.zip"
        planted = plant(shared / "data" / "cifar10-images.zip", archive, per_class)
        where = ["--data-dir", str(data_dir or Path(scratch) / "data")]
        weights = str(shared / "weights" / "vgg16_imagenet_features.safetensors")
        network = ["-b", "vgg16", "--weights", weights, "--image-size", "64", "--pool", "avg"]
        extracted = run(["extract", "-d", str(archive), *network, *where])
        audits = {
            "with pixels": run(["audit", extracted["cache"], *where]),
            "features only": run(["audit", extracted["cache"], "--no-pixels", *where]),
        }
        pairs = own_pairs(audits["with pixels"])
        write_pairs(pairs, RESULTS / "audit_pairs.csv")
        if sheet is not None:
            draw_pairs(pairs, archive, sheet)
        results = {
            "rows": extracted["rows"],
            "feature_dim": extracted["feature_dim"],
            "audits": {name: judged(audit, planted) for name, audit in audits.items()},
            "pairs_beyond_planted": len(pairs),
        }
        print(write("audit", results))


if __name__ == "__main__":
    typer.run(main)
