"""Measures the audit's precision and recall, and its speed.

    python benchmarks/audit.py calibrate ../shared --icons FOLDER    planted copies among four kinds of images
    python benchmarks/audit.py cifar ../shared                       600 photographs of three classes, two layers
    python benchmarks/audit.py speed ../shared OTHER_CHECKOUT        60,000 x 512, two checkouts in turn

Copies are planted one kind of change at a time: 10 images of each set are copied into the other split, so a missed copy
is missed by the thresholds and not because too much was planted. Icons are PNG files with transparency, such as those
of the Adwaita theme; textures and scenes are crops of the pictures of scikit-image and scikit-learn.
Each command writes its part of results/audit.json.
"""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from command import run
from machine import merge
from PIL import Image, ImageChops, ImageEnhance, ImageOps

Picture = Image.Image
app = typer.Typer()
_EACH = 10
_CROP = 64
_COSINES = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995)


# Pooled: 256, 512 and 512 values; the last one is what the network's classifier is given.
LAYERS = ("features.16", "features.23", "features.30")


def recompress(picture: Picture) -> Picture:
    """The picture after JPEG compression at quality 70, in the colours of an opaque file."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=70)
    return Image.open(file).convert("RGB")


def move(picture: Picture) -> Picture:
    """The picture moved by a sixteenth of its width to the right, with repeated edges."""
    by = max(1, picture.width // 16)
    moved = ImageChops.offset(picture, by, 0)
    moved.paste(picture.crop((0, 0, 1, picture.height)).resize((by, picture.height)), (0, 0))
    return moved


CHANGES: Mapping[str, Callable[[Picture], Picture]] = {
    "plain": lambda picture: picture,
    "mirrored": ImageOps.mirror,
    "recompressed": recompress,
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.25),
    "moved": move,
}


def photographs(shared: Path, per_class: int, classes: tuple[str, ...] = ()) -> list[Picture]:
    """CIFAR-10 test images, the first of each class."""
    with zipfile.ZipFile(shared / "data" / "cifar10-images.zip") as archive:
        names = [name for name in sorted(archive.namelist()) if "/test/" in name and name.endswith(".jpg")]
        chosen = [name for name in names if not classes or name.split("/")[2] in classes]
        kept = [name for name in chosen if int(Path(name).stem) < per_class]
        return [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in kept]


def digits() -> list[Picture]:
    """scikit-learn's digits, 8 x 8."""
    from sklearn.datasets import load_digits

    return [Image.fromarray((page * 15.9).astype(np.uint8)) for page in load_digits().images]


def drawings() -> list[Picture]:
    """The same digits, enlarged to 32 x 32: not tiny, and still drawings that are alike."""
    return [page.resize((32, 32), Image.Resampling.BICUBIC) for page in digits()]


def textures() -> list[Picture]:
    """Crops of 64 x 64: brick, grass, gravel and scenes of scikit-image (pip install scikit-image) and scikit-learn."""
    from sklearn.datasets import load_sample_images

    data = importlib.import_module("skimage.data")
    pages = [getattr(data, name)() for name in ("brick", "grass", "gravel", "astronaut", "chelsea", "coffee", "rocket")]
    crops = []
    for page in (Image.fromarray(one).convert("RGB") for one in [*pages, *load_sample_images().images]):
        for top in range(0, page.height - _CROP + 1, _CROP):
            crops += [page.crop((left, top, left + _CROP, top + _CROP)) for left in range(0, page.width - 63, _CROP)]
    return crops


def icons(folder: Path) -> list[Picture]:
    """PNG files of a folder as RGBA; one of several with equal pixels or mirrored ones."""
    found: dict[bytes, Picture] = {}
    for path in sorted(folder.rglob("*.png")):
        icon = Image.open(path).convert("RGBA")
        key = min(icon.tobytes(), ImageOps.mirror(icon).tobytes())
        found.setdefault(key, icon)
    return list(found.values())


def plant(pictures: list[Picture], target: Path, change: str | None) -> int:
    """Write the pictures as train and changed copies of some of them as test; returns the number of copies."""
    chosen = np.random.default_rng(0).permutation(len(pictures))[: _EACH if change else 0]
    with zipfile.ZipFile(target, "w") as made:
        for number, picture in enumerate(pictures):
            made.writestr(f"train/a/{number:05d}.png", as_png(picture))
        for number in chosen.tolist():
            # Another compression gives other bytes for the same pixels.
            made.writestr(f"test/a/{number:05d}.png", as_png(CHANGES[change or "plain"](pictures[number]), level=1))
        if not change:
            made.writestr("test/a/other.png", as_png(Image.effect_noise((64, 64), 90).convert("RGB")))
    return len(chosen)


def as_png(picture: Picture, level: int = 9) -> bytes:
    """The picture as PNG, which keeps its pixels."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=level)
    return file.getvalue()


def pairs_of(audit: dict[str, Any], kind: str) -> list[tuple[str, str]]:
    """The linked pairs of ids in the findings of a kind."""
    found = next(section["findings"] for section in audit["sections"] if section["kind"] == kind)
    names = [([sample["id"] for sample in one["samples"]], one["links"]) for one in found]
    return [(ids[link["first"]], ids[link["second"]]) for ids, links in names for link in links]


def judge(audit: dict[str, Any], copies: int) -> dict[str, Any]:
    """How many copies are certain and likely, and how many other pairs are named."""
    counts: dict[str, Any] = {"copies": copies}
    for name, kinds in (("certain", ("leak", "duplicate")), ("likely", ("look_alike",))):
        pairs = [pair for kind in kinds for pair in pairs_of(audit, kind)]
        planted = sum({one.split("/")[0] for one in pair} == {"train", "test"} and one_number(pair) for pair in pairs)
        counts |= {name: planted, f"{name}_others": len(pairs) - planted}
    return counts | {"withheld": {one["kind"]: one["reason"] for one in audit["withheld"]}}


def one_number(pair: tuple[str, str]) -> bool:
    """Whether both files have the same number."""
    return Path(pair[0]).stem == Path(pair[1]).stem


def near(cache: Path, layer: str) -> dict[str, Any]:
    """How many copies, and how many other pairs, have at least a cosine: what features tell without pixels."""
    from featcache.analysis.directions import directions
    from featcache.analysis.pairs import near_pairs
    from featcache.analysis.table import ImageTable
    from featcache.cache.reader import FeatureCache

    with FeatureCache.open(cache) as opened:
        table = ImageTable.of(opened, layer)
        pairs = near_pairs(directions(table))
        ids = [sample.id for sample in table.samples(np.arange(len(table)))]
        firsts, seconds = np.array([Path(name).stem for name in ids]), table.split
    own = (firsts[pairs.first] == firsts[pairs.second]) & (seconds[pairs.first] != seconds[pairs.second])
    return {
        f"{least:g}": {
            "copies": int((own & (pairs.cosine >= least)).sum()),
            "others": int((~own & (pairs.cosine >= least)).sum()),
        }
        for least in _COSINES
    }


def plant_and_audit(pictures: list[Picture], change: str | None, network: list[str], layers: list[str]) -> Any:
    """Plant, extract, audit; the judgement by layer, with pixels and by the cosine of features alone."""
    with tempfile.TemporaryDirectory() as scratch:
        archive, where = Path(scratch) / "planted.zip", ["--data-dir", str(Path(scratch) / "data")]
        copies = plant(pictures, archive, change)
        cache = run(["extract", "-d", str(archive), *network, *where])["cache"]
        return {
            layer: judge(run(["audit", cache, "--layer", layer, *where]), copies)
            | {"cosines": near(Path(cache), layer)}
            for layer in layers
        }


def vgg16(shared: Path, *layers: str) -> list[str]:
    """The words for VGG16 at 32 pixels."""
    weights = str(shared / "weights" / "vgg16_imagenet_features.safetensors")
    named = [word for layer in layers for word in ("--layer", layer)]
    return ["-b", "vgg16", "--weights", weights, "--image-size", "32", "--pool", "avg", *named]


@app.command()
def calibrate(shared: Path, icons_at: Annotated[Path, typer.Option("--icons")]) -> None:
    """Precision and recall by kind of image and change."""
    kinds = {
        "photographs": photographs(shared, 60),
        "digits": digits(),
        "drawings": drawings(),
        "textures": textures(),
        "icons": icons(icons_at),
    }
    found = {
        name: {"images": len(pictures)}
        | {
            change or "nothing": plant_and_audit(pictures, change, vgg16(shared, *LAYERS), [*LAYERS])
            for change in (None, *CHANGES)
        }
        for name, pictures in kinds.items()
    }
    print(merge("audit", "calibrate", found))


@app.command()
def cifar(shared: Path) -> None:
    """600 photographs of three classes at VGG16 features.16 and features.30."""
    pictures = photographs(shared, 200, ("ship", "truck", "horse"))
    found = {
        change or "nothing": plant_and_audit(pictures, change, vgg16(shared, *LAYERS), [*LAYERS])
        for change in (None, *CHANGES)
    }
    print(merge("audit", "cifar", {"images": len(pictures), "changes": found}))


@app.command()
def speed(shared: Path, other: Path, pairs: Annotated[Path | None, typer.Option()] = None) -> None:
    """Seconds for all of CIFAR-10 with 512 features, three times in turn; also its likely pairs, as a CSV file."""
    with tempfile.TemporaryDirectory() as scratch:
        where = ["--data-dir", scratch]
        cache = run(["extract", "-d", str(shared / "data" / "cifar10-images.zip"), *vgg16(shared), *where])["cache"]
        seconds: dict[str, list[float]] = {"this": [], "other": []}
        for _ in range(3):
            for name, checkout in (("other", other), ("this", Path(__file__).parents[1])):
                seconds[name].append(seconds_of_audit(["audit", cache, *where], checkout))
        audit = run(["audit", cache, *where])
    counts = {one["kind"]: len(one["findings"]) for one in audit["sections"]}
    if pairs is not None:
        write_pairs(audit, pairs)
    print(merge("audit", "speed", {"seconds": seconds, "findings": counts, "withheld": audit["withheld"]}))


def write_pairs(audit: dict[str, Any], path: Path) -> None:
    """Write every likely link, the strongest first: ids, score, cosine; the column `same` is for a judgement by eye."""
    lines: list[tuple[float, float | None, str, str]] = []
    for section in audit["sections"]:
        for finding in section["findings"] if section["kind"] in ("look_alike", "label_question") else ():
            ids = [sample["id"] for sample in finding["samples"]]
            lines += [(one["score"], one["cosine"], ids[one["first"]], ids[one["second"]]) for one in finding["links"]]
    rows = [f"{first},{second},{score:.4f},{cosine or 0:.4f}," for score, cosine, first, second in sorted(lines)[::-1]]
    path.write_text("\n".join(["first,second,score,cosine,same", *rows]) + "\n", encoding="utf-8")


def seconds_of_audit(words: list[str], checkout: Path) -> float:
    """The seconds that an audit states, computed by the code of one checkout."""
    import json

    line = [sys.executable, "-m", "featcache", *words, "--json"]
    done = subprocess.run(
        line, check=True, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(checkout.resolve())}
    )
    return float(json.loads(done.stdout)["seconds"])


if __name__ == "__main__":
    app()
