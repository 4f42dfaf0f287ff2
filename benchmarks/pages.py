"""Writes numbers, tables and a picture from `results/` into README.md and docs/: `python benchmarks/measure.py page`.

Each stands between the marks `<!-- NAME: source -->` and `<!-- end of NAME -->`. A test compares the two, so that pages
always show the current results; what no result has is written by hand, outside the marks. Bold: short of the aim.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from measure import RESULTS, ROOT

from featcache.benchmark.result import NOTEBOOK, TUNED, WARM, Result, summarise
from featcache.benchmark.showing import markdown_table, notes, sentence, times
from featcache.notebook.recipes import Recipe, recipe, recipe_names

_TITLES = {"vgg16": "VGG16 at 224", "inception_v3": "Inception v3 at 299", "pixels": "raw pixels, 32x32"}
_STARTS = {
    "digits": ("a hit of `extract` on the digits", "4"),
    "folder": ("a hit on a folder of 2,000 images", "4"),
    "zip": ("a hit on 60,000 members of a zip", "8"),
    "ls": ("`ls` of 100 caches", "as before (2.4)"),
    "linear": ("`train-head --head linear --max-epochs 3`", "1.25"),
    "ridge": ("`train-head --head ridge`", "1.3"),
    "centroid": ("`train-head --head centroid`", "4"),
    "predict-mlp": ("`predict` of one image, mlp on pixels", "1.4"),
    "predict-solved": ("`predict` of one image, solved head on pixels", "4"),
}


def result_of(name: str) -> dict[str, Any]:
    """A stored result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def table(heads: str, rows: Iterable[str]) -> str:
    """Lines of cells, with `|` between them, as Markdown."""
    lines = [line.split("|") for line in (heads, "|".join(["---"] * len(heads.split("|"))), *rows)]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def percent(share: float, digits: int = 2) -> str:
    """0.5 -> "50.00 %"."""
    return f"{100 * share:.{digits}f} %"


def headline(result: Result) -> str:
    """The speed-up of a single head, extraction included, over end to end at the same speed, as one paragraph."""
    return f"{sentence(result)} [Measured](#measured) has the details, and the slower way of a notebook.\n"


def comparison(result: Result) -> str:
    """The first picture and the first table: the four ways, and the notes."""
    picture = "benchmarks/results/end_to_end_cifar10-vgg16.svg"
    image = f'<img alt="The time of the four ways, as in the table" src="{picture}">'
    return "\n\n".join([image, markdown_table(result), " ".join(notes(result))]) + "\n"


def main_job(result: dict[str, Any]) -> str:
    """One row per experiment."""
    rows = []
    for name, title in _TITLES.items():
        extract, head, again = (result[name][key] for key in ("extract", "train_head", "extract_again"))
        rows.append(
            f"{title}|{sum(extract['rows'].values()):,}|{extract['wall_seconds']:.0f} s|{again['wall_seconds']:.1f} s|"
            f"{head['head']}, {head['parameters']['trainable']:,} parameters|"
            f"{head['seconds']:.1f} s, {head['epochs']} epochs|{percent(head['test']['accuracy'], 1)}"
        )
    return table("features|images|extracted once|the same again|head|trained in|test accuracy", rows)


def recipes(result: dict[str, Any]) -> str:
    """One row per recipe: the notebook's result and featcache's."""
    found, rows = {row["recipe"]: row for row in result["rows"]}, []
    for name in recipe_names():
        one, row = recipe(name), found.get(name)
        size = one.input.image_size or {"vgg16": 224, "inception_v3": 299}[one.backbone]
        measured = "-" if row is None else f"{percent(row['last']['accuracy'], 1)}, {row['epochs']:.0f}"
        before = f"{percent(one.notebook.accuracy, 1)}, {one.notebook.epochs or '-'}"
        rows.append(f"`{name}`|{one.backbone}, {size}x{size}|{_head(one)}|{before}|{measured}")
    return table("recipe|backbone, input|head|notebook: accuracy, epochs|featcache: accuracy, epochs", rows)


def _head(one: Recipe) -> str:
    head = one.head
    extras = [
        *([head.activation] if head.activation != "relu" else []),
        *([f"L1 {head.l1:g}"] if head.l1 else []),
        *([f"weight decay {head.weight_decay:g}"] if head.weight_decay else []),
        *([f"dropout {head.dropout:g}"] if head.dropout else []),
    ]
    return ", ".join([f"`{head.head}`", *extras])


def end_to_end(results: Sequence[Result]) -> str:
    """Caching over end to end, in two scenarios."""
    pairs = zip(*map(_gains, results), strict=True)
    rows = [f"{what}|{one}|{aim}|{other}" for (what, aim, one), (_, _, other) in pairs]
    return table(f"|{results[0].options.scenario}|asked|{results[1].options.scenario}", rows)


def _gains(result: Result) -> list[tuple[str, str, str]]:
    gains, peak = summarise(result).comparisons, {name: way.memory["peak"] or 0 for name, way in result.ways.items()}
    (same,) = [one for one in result.agreements if one.baseline == NOTEBOOK]

    def of_memory(way: str) -> str:
        share = _bold(f"{peak[WARM] / peak[way]:.2f}", peak[WARM] / peak[way], "0.25")
        return f"{share} ({peak[WARM] / 1e6:,.0f} of {peak[way] / 1e6:,.0f} MB)"

    assert same.test_accuracy is not None
    (val, other), (test, another) = same.val_accuracy, same.test_accuracy
    shares, others = (f"{percent(a, 1)} val, {percent(b, 1)} test" for a, b in ((val, test), (other, another)))
    accuracy = f"equal: {shares}" if shares == others else f"{shares}; {others}"
    fair, loop = gains[TUNED], gains[NOTEBOOK]
    return [
        ("cold, one head, over end to end at featcache's own speed", "-", f"{times(fair.cold_one_head)} times"),
        ("cold, all heads, over the same", "-", f"{times(fair.cold_all_heads)} times"),
        ("warm, one head, over the same", "-", f"{times(fair.warm_one_head)} times"),
        ("warm, an epoch, over the same", "100", f"{times(fair.warm_epoch)} times"),
        ("cold, all heads, over the notebook's way", "100", f"{times(loop.cold_all_heads)} times"),
        ("warm, an epoch, over the notebook's way", "300", f"{times(loop.warm_epoch)} times"),
        ("peak memory of warm training, of the notebook's way", "0.25", of_memory(NOTEBOOK)),
        ("the same, of end to end at featcache's own speed", "-", of_memory(TUNED)),
        ("the same answers in fp32, cached and end to end", "-", f"{same.same_answers} of {same.answers}"),
        ("accuracy, cached and end to end, fp32", "within 0.2 points", accuracy),
        ("greatest difference of a logit, relative, fp32", "1e-3", f"{same.logits:.1e}"),
    ]


def whole_commands(result: dict[str, Any]) -> str:
    """The main job in detail."""
    titles = {"vgg16": "VGG16 at 224, bf16", "inception_v3": "Inception v3 at 299, bf16", "pixels": "pixels, 32x32"}
    rows = []
    for name, title in titles.items():
        extract, head, again = (result[name][key] for key in ("extract", "train_head", "extract_again"))
        wide = "" if name == "pixels" else "".join(f", {wide:,}" for wide in extract["feature_dim"].values())
        shares = [percent(one["accuracy"]) for one in (head["val"], head["last"]["val"], head["test"])]
        rows.append(
            f"{title}{wide}|{sum(extract['rows'].values()):,}|{extract['images_per_s']}|"
            f"{extract['wall_seconds']:.2f} s|{again['wall_seconds']:.2f} s|"
            f"{head['seconds']:.1f} s, {head['epochs']} epochs|{'|'.join(shares)}"
        )
    heads = "features|images|images/s, steady|extract|the same again|head trained in|val|val, last epoch|test"
    return table(heads, rows)


def perceptrons(result: dict[str, Any]) -> str:
    """The notebook's MLPs, with the accuracy of each seed."""
    rows = []
    for row in result["rows"]:
        each = [f"{100 * seed['last']['accuracy']:.2f}" for seed in row["seeds"]]
        before = recipe(row["recipe"]).notebook.accuracy
        points = 100 * (row["last"]["accuracy"] - before)
        within = f"{'yes' if abs(points) <= 1.5 else '**no**'} ({points:+.2f})"
        mine = [percent(row[name]["accuracy"]) for name in ("val", "test")]
        rows.append(
            f"{row['recipe']}|{percent(row['last']['accuracy'])}|{', '.join(each)}|{percent(before)}|"
            f"{'|'.join(mine)}|{row['epochs']:.1f}|{row['seconds']:.0f}|{within}"
        )
    heads = "recipe|last, val: mean of 3 seeds|each|the notebook's|best, val|test|epochs|seconds a seed|"
    return table(heads + "within 1.5 points", rows)


def startup(result: dict[str, Any]) -> str:
    """The time of commands over that of their imports."""
    rows = []
    for name, (what, aim) in _STARTS.items():
        one = result[name]
        floor = f"`{one.get('floor', 'import h5py, typer, rich')}`" + (" and its fit" if name == "linear" else "")
        ratios = [one["ratio"], one.get("processor_ratio")]
        cells = ["" if ratio is None else _bold(f"{ratio:.2f}", ratio, aim) for ratio in ratios]
        rows.append(f"{what}|{one['seconds']:.2f}|{floor}|{'|'.join(cells)}|{aim}")
    return table("command|seconds|over|clock|processor|asked", rows)


def _bold(text: str, ratio: float, aim: str) -> str:
    return f"**{text}**" if re.fullmatch(r"[\d.]+", aim) and ratio > float(aim) else text


def training(result: dict[str, Any]) -> str:
    """The measurements with ten million rows."""
    part = result["training"]
    listed, batch, step = (part[name] for name in ("catalogue", "first_batch", "first_step"))
    held = [f"{one['peak_mib']:,} MiB, {one['imports_mib']:,} of them imports" for one in (batch, step)]
    rows = [
        f"listing it (`featcache ls`)|{1000 * listed['listing_s']:.0f} ms|{listed['peak_mib']:,} MiB",
        f"opening it|{1000 * batch['open_s']:.0f} ms|",
        f"cutting val from train|{batch['cut_s']:.2f} s|",
        f"from nothing to the first batch|{batch['seconds']:.2f} s|{held[0]}",
        f"standardising, by a sample|{step['standardising_s']:.2f} s|",
        f"from nothing to a training's first step|{step['seconds']:.2f} s|{held[1]}",
    ]
    machine, load = part["machine"], part["load_before"][0]
    return table("what|time|memory at most", rows) + (
        f"\n{machine['processor']}, {machine['cores']} cores, PyTorch {machine['versions']['torch']}, "
        f"{machine['date']}, load before {load:.1f}: `{part['command']}`\n"
    )


def texts() -> dict[str, dict[str, str]]:
    """The texts between the marks, by page and name, from the stored results."""
    names = ("cifar10-vgg16", "cifar10-inception")
    ends = [Result.from_json(result_of(f"end_to_end_{name}")) for name in names]
    job, mlps = result_of("main_job"), result_of("reproduce_mlp")
    return {
        "README.md": {
            "headline": headline(ends[0]), "comparison": comparison(ends[0]), "results": main_job(job),
            "recipes": recipes(mlps),
        },
        "docs/measurements.md": {
            "end to end": end_to_end(ends), "main job": whole_commands(job), "perceptrons": perceptrons(mlps),
            "startup": startup(result_of("startup")),
        },
        "docs/scale.md": {"training": training(result_of("scale"))},
    }  # fmt: skip


def render(page: str, numbers: dict[str, str]) -> str:
    """The page with each text written between its marks."""
    for name, text in numbers.items():
        (mark,) = re.findall(rf"<!-- {name}: [^\n]* -->\n", page)
        before, after = page.split(mark)
        page = f"{before}{mark}\n{text}\n<!-- end of {name} -->{after.split(f'<!-- end of {name} -->', 1)[1]}"
    return page


def write() -> None:
    """Write all pages."""
    for name, numbers in texts().items():
        path = ROOT / name
        path.write_text(render(path.read_text(), numbers))
