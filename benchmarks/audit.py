"""Measures the audit's precision and recall, and its speed.

    python benchmarks/measure.py audit:calibrate --icons FOLDER    planted copies among five kinds of images
    python benchmarks/measure.py audit:speed --against CHECKOUT    60,000 x 512, two checkouts in turn

Copies are planted one kind of change at a time: 10 images of each set are copied into the other split, so a missed copy
is missed by the thresholds and not because too much was planted. Icons are PNG files with transparency, such as those
of the Adwaita theme; textures and scenes are crops of the pictures of scikit-image and scikit-learn.
"""

from __future__ import annotations

import functools
import importlib
import io
import itertools
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from measure import Bench, in_turns, measurement
from PIL import Image, ImageChops, ImageEnhance, ImageOps

Picture = Image.Image
_CROP = 64
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


def photographs(bench: Bench, per_class: int) -> list[Picture]:
    """CIFAR-10 test images, the first of each class."""
    return [Image.open(path).convert("RGB") for path in bench.unpack("test", 10 * per_class)]


def digits(side: int) -> list[Picture]:
    """scikit-learn's digits of 8 x 8; enlarged to 32 x 32 they are not tiny, and still drawings that are alike."""
    from sklearn.datasets import load_digits

    pages = [Image.fromarray((page * 15.9).astype(np.uint8)) for page in load_digits().images]
    return [page.resize((side, side), Image.Resampling.BICUBIC) for page in pages]


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


def icons_in(folder: Path) -> list[Picture]:
    """PNG files of a folder as RGBA; one of several with equal pixels or mirrored ones."""
    found: dict[bytes, Picture] = {}
    for path in sorted(folder.rglob("*.png")):
        icon = Image.open(path).convert("RGBA")
        key = min(icon.tobytes(), ImageOps.mirror(icon).tobytes())
        found.setdefault(key, icon)
    return list(found.values())


def plant(pictures: list[Picture], target: Path, change: str | None) -> int:
    """Write the pictures as train and changed copies of some of them as test; returns the number of copies."""
    chosen = np.random.default_rng(0).permutation(len(pictures))[: 10 if change else 0]
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
        ends = [[(one.split("/")[0], Path(one).stem) for one in sorted(pair)] for pair in pairs]
        planted = sum([split for split, _ in two] == ["test", "train"] and two[0][1] == two[1][1] for two in ends)
        counts |= {name: planted, f"{name}_others": len(pairs) - planted}
    return counts | {"withheld": {one["kind"]: one["reason"] for one in audit["withheld"]}}


def plant_and_audit(bench: Bench, pictures: list[Picture], change: str | None) -> dict[str, Any]:
    """Plant, extract, audit; the judgement by layer."""
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        archive, where = Path(folder) / "planted.zip", ["--data-dir", str(Path(folder) / "data")]
        copies = plant(pictures, archive, change)
        cache = bench.featcache("extract", "-d", archive, *vgg16(bench, *LAYERS), *where)["cache"]
        audits = {layer: bench.featcache("audit", cache, "--layer", layer, *where) for layer in LAYERS}
        return {layer: judge(one, copies) for layer, one in audits.items()}


def vgg16(bench: Bench, *layers: str) -> list[str]:
    """The words for VGG16 at 32 pixels."""
    named = [word for layer in layers for word in ("--layer", layer)]
    return ["-b", "vgg16", "--weights", bench.weights("vgg16"), "--image-size", "32", "--pool", "avg", *named]


def changes_of(bench: Bench) -> dict[str, str | None]:
    """No copies, and copies with each change."""
    return {"nothing": None, "plain": "plain"} if bench.quick else {"nothing": None, **{name: name for name in CHANGES}}


@measurement("audit:calibrate", "30 min", each=3)
def calibrate(bench: Bench, *, icons: Path | None = None, each: int = 60) -> dict[str, Any]:
    """Precision and recall by kind of image and change; needs --icons FOLDER and scikit-image."""
    if icons is None and not bench.quick:
        raise ValueError("audit:calibrate needs --icons FOLDER, a folder of PNG files with transparency")
    kinds: dict[str, list[Picture]] = {"photographs": photographs(bench, each), "digits": digits(8)}
    if icons is not None:
        kinds |= {"drawings": digits(32), "textures": textures(), "icons": icons_in(icons)}
    found: dict[str, Any] = {name: {"images": len(pictures)} for name, pictures in kinds.items()}
    for name, (change, way) in itertools.product(kinds, changes_of(bench).items()):
        found[name][change] = plant_and_audit(bench, kinds[name], way)
    return found


@measurement("audit:speed", "15 min", limit=100)
def speed(bench: Bench, *, pairs: Path | None = None, limit: int | None = None) -> dict[str, Any]:
    """Seconds for all of CIFAR-10 with 512 features, over --against; --pairs FILE: its likely pairs as CSV."""
    few = ("--limit", limit) if limit else ()
    cache = bench.featcache("extract", "-d", bench.archive, *vgg16(bench), *few)["cache"]
    ways = {
        # The keys of the stored results.
        {"before": "other", "here": "this"}[name]: functools.partial(bench.featcache, "audit", cache, checkout=checkout)
        for name, checkout in bench.checkouts().items()
    }
    taken = in_turns(ways, bench.rounds, warm=False)
    audit = taken["this"][-1].result
    if pairs is not None:
        write_pairs(audit, pairs)
    return {
        "seconds": {name: [one.result["seconds"] for one in some] for name, some in taken.items()},
        "findings": {one["kind"]: len(one["findings"]) for one in audit["sections"]},
        "withheld": audit["withheld"],
    }


def write_pairs(audit: dict[str, Any], path: Path) -> None:
    """Write every likely link, the strongest first: ids, score, cosine; the column `same` is for a judgement by eye."""
    lines: list[tuple[float, float | None, str, str]] = []
    for section in audit["sections"]:
        for finding in section["findings"] if section["kind"] in ("look_alike", "label_question") else ():
            ids = [sample["id"] for sample in finding["samples"]]
            lines += [(one["score"], one["cosine"], ids[one["first"]], ids[one["second"]]) for one in finding["links"]]
    rows = [f"{first},{second},{score:.4f},{cosine or 0:.4f}," for score, cosine, first, second in sorted(lines)[::-1]]
    path.write_text("\n".join(["first,second,score,cosine,same", *rows]) + "\n", encoding="utf-8")
