"""Measures whether the audit finds planted faults: `python benchmarks/audit.py ../shared [--per-class N]`.

The data are all CIFAR-10 images in a zip. Added to train: copies of 250 test images, 50 of each kind (the same file,
mirrored, recompressed, brighter, moved by two pixels), 250 images under a wrong class, and 20 images that are no
photographs. Features: VGG16 with its ImageNet weights at 64 pixels, pooled to 512 values; then `featcache audit`, with
and without comparing pixels. Writes results/audit.json, and results/audit_pairs.csv: the leaks that were not planted,
which are CIFAR-10's own; `--sheet FILE.png` draws them, to check them by eye. The extraction takes about six minutes on
2 cores, an audit about one; `--data-dir` keeps the features for the next time.
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


def recompress(picture: Picture) -> Picture:
    """The picture after JPEG compression at quality 70."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=70)
    return Image.open(file).convert("RGB")


def move(picture: Picture) -> Picture:
    """The picture moved by two pixels to the right, with repeated edges."""
    shifted = ImageChops.offset(picture, 2, 0)
    shifted.paste(picture.crop((0, 0, 1, picture.height)).resize((2, picture.height)), (0, 0))
    return shifted


CHANGES: Mapping[str, Callable[[Picture], Picture]] = {
    "mirrored": ImageOps.mirror,
    "recompressed": recompress,
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.25),
    "moved": move,
}


def encode_jpeg(picture: Picture) -> bytes:
    """The picture as JPEG of quality 95, similar to the CIFAR-10 files."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return file.getvalue()


def foreign(number: int) -> Picture:
    """An image that is no photograph: noise, or a coarse pattern."""
    generator = np.random.default_rng(number)
    side = 32 if number % 2 else 4
    pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST)


def plant(archive: Path, target: Path, per_class: int | None, seed: int = 0) -> Planted:
    """Write the zip; returns what was planted, by kind: ids in train, each with its origin's id (or true class)."""
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
    """Write all images, some of train under another class; returns {id: its true class} of these."""
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
    """Write copies of test images into train; returns {kind: {id: the id of its origin}}."""
    kinds = ("plain", *CHANGES)
    planted: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    for number, name in enumerate(chooser.sample(test, _EACH * len(kinds))):
        kind, content = kinds[number % len(kinds)], source.read(name)
        if kind != "plain":
            content = encode_jpeg(CHANGES[kind](Image.open(io.BytesIO(content)).convert("RGB")))
        path = f"train/{name.split('/')[2]}/planted-{kind}-{number}.jpg"
        made.writestr(path, content)
        planted[kind][path] = name.removeprefix("cifar10/")
    return planted


def write_foreign(made: zipfile.ZipFile, classes: list[str]) -> dict[str, str]:
    """Write images that are no photographs into train; returns {id: ""}."""
    paths = [f"train/{classes[number % len(classes)]}/foreign-{number}.jpg" for number in range(_FOREIGN)]
    for number, path in enumerate(paths):
        made.writestr(path, encode_jpeg(foreign(number)))
    return dict.fromkeys(paths, "")


def findings(audit: dict[str, Any], kind: str) -> list[Finding]:
    """The findings of one kind."""
    (section,) = [section for section in audit["sections"] if section["kind"] == kind]
    found: list[Finding] = section["findings"]
    return found


def ids(finding: Finding) -> list[str]:
    """The ids of the images of a finding."""
    return [sample["id"] for sample in finding["samples"]]


def score_audit(audit: dict[str, Any], planted: Planted) -> dict[str, Any]:
    """Recall of each kind, and the number of findings that were not planted."""
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
    """The linked pairs of leaks without planted images, the strongest first: strength, how, ids."""
    pairs = []
    for finding in findings(audit, "leak"):
        names = ids(finding)
        for link in finding["links"]:
            pair = (names[link["first"]], names[link["second"]])
            if not any("planted" in name for name in pair):
                pairs.append(((link["cosine"] + (link["pixels"] or 1)) / 2, link["how"], pair))
    return sorted(pairs, reverse=True)


def write_pairs(pairs: list[OwnPair], target: Path) -> None:
    """Write pairs as CSV, the strongest first."""
    with target.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("strength", "how", "first", "second"))
        rows.writerows((f"{strength:.3f}", how, *pair) for strength, how, pair in pairs)


def draw_pairs(pairs: list[OwnPair], archive: Path, target: Path) -> None:
    """Draw pairs as a contact sheet; if there are too many, an even selection."""
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
            "audits": {name: score_audit(audit, planted) for name, audit in audits.items()},
            "pairs_beyond_planted": len(pairs),
        }
        print(write("audit", results))


if __name__ == "__main__":
    typer.run(main)
