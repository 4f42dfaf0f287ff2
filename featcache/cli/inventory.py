"""Lists of what can be used: `backbones`, `datasets`, `recipes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import completion
from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.printing import Bold, print_json, print_line, print_pairs, print_table
from featcache.cli.usage import WrongUsage
from featcache.config import Option
from featcache.errors import UnknownName

if TYPE_CHECKING:
    from featcache.backbones.listing import LayerRow
    from featcache.images.sources.torchvision_sets import NamedSet
    from featcache.notebook.recipes import Recipe

_SECTION = "What there is"
_SHOWN = "Which are listed"


def register(app: typer.Typer) -> None:
    """Add `backbones`, `datasets` and `recipes` to the typer app."""

    @command(
        app,
        "backbones",
        section=_SECTION,
        examples=(
            "featcache backbones vgg16",
            "featcache backbones timm: --like vit",
        ),
    )
    def backbones(
        name: Annotated[
            str | None,
            typer.Argument(
                metavar="NAME",
                autocompletion=completion.backbones,
                help="Show this backbone and its layers. timm: or open_clip: lists the names of that library.",
            ),
        ] = None,
        like: Annotated[str, Option(help="Only names with this in them.", metavar="<text>", panel=_SHOWN)] = "",
        image_size: Annotated[
            int | None,
            Option(
                help="Show the layers for images of this size.",
                default="the weights' own size",
                metavar="<pixels>",
                least=1,
                panel=_SHOWN,
            ),
        ] = None,
        *,
        common: Common,
    ) -> None:
        """List the backbones, or show one and its layers.

        Features, parameters and GFLOPs (of one image, two operations a multiply-add) are those of the default layer
        at the weights' own image size. Weights that are not here are downloaded when they are first used.
        """
        if name is not None and name.endswith(":"):
            _list_names(_names(like, prefix=name), common)
            return
        if name is not None:
            if like:
                raise WrongUsage("expected a name, or --like for the list, got both")
            _show_backbone(name, image_size, common)
            return
        listed = [_facts_of(one) for one in _names(like)]
        if common.json:
            print_json({"backbones": listed})
        else:
            _print_backbones(listed)

    @command(
        app,
        "datasets",
        section=_SECTION,
        examples=(
            "featcache datasets",
            "featcache datasets --json",
        ),
    )
    def datasets(common: Common) -> None:
        """List the data sets that have names.

        Classes and images are those that are published. A set that is not in --data-dir is downloaded when it is
        first used.

        Any folder, zip or tar of class/image or split/class/image will do as well: give its path. torchvision:NAME is
        another class of torchvision.datasets, such as torchvision:USPS; hf:NAME is a set of the Hugging Face Hub.
        """
        from featcache.images.sources.torchvision_sets import dataset_names, describe, is_local

        folder = common.data_dir / "datasets"
        known = [(one, is_local(one, folder)) for one in map(describe, dataset_names())]
        if common.json:
            print_json({"datasets": [_dataset_json(one, here=here) for one, here in known]})
            return
        print_table([_dataset_row(one, here=here) for one, here in known], header=_DATASET_HEADER)
        print_line()
        print_pairs([(one.name, one.note) for one, _ in known if one.note])

    @command(
        app,
        "recipes",
        section=_SECTION,
        examples=(
            "featcache recipes",
            "featcache recipes --json",
        ),
    )
    def recipes(common: Common) -> None:
        """List the notebook's experiments that have names.

        `featcache reproduce` runs them; `featcache train-head --recipe NAME` takes the settings of one.
        """
        from featcache.notebook.recipes import recipe, recipe_names

        known = [recipe(name) for name in recipe_names()]
        if common.json:
            print_json({"recipes": [one.to_json() for one in known]})
        else:
            print_table([_recipe_row(one) for one in known], header=_RECIPE_HEADER, optional=4)


_DATASET_HEADER = ("name", "classes", "train", "val", "test", "")


def _dataset_json(named: NamedSet, *, here: bool) -> dict[str, Any]:
    return {
        "name": named.name,
        "images": dict(named.sizes),
        "classes": named.class_count,
        "here": here,
        "note": named.note,
    }


def _dataset_row(named: NamedSet, *, here: bool) -> tuple[str, ...]:
    sizes = [f"{named.sizes[split]:,}" if split in named.sizes else "-" for split in ("train", "val", "test")]
    return (named.name, f"{named.class_count:,}", *sizes, "here" if here else "download")


_BACKBONE_HEADER = ("name", "size", "features", "parameters", "GFLOPs", "weights")


def _names(like: str, *, prefix: str = "") -> list[str]:
    """The names with `like` in them: those of the library with this prefix, or all that need no other library."""
    from featcache.backbones import backbone_names
    from featcache.backbones.zoos import zoo_of

    if prefix and (zoo_of(prefix).prefix != prefix or not zoo_of(prefix).names()):
        raise UnknownName("library that lists its names", prefix, ["timm:", "open_clip:"])
    known = zoo_of(prefix).names() if prefix else backbone_names()
    found = [name for name in known if like.lower() in name.lower()]
    if not found:
        raise UnknownName("backbone", like, known)
    return found


def _list_names(names: Sequence[str], common: Common) -> None:
    if common.json:
        print_json({"backbones": [{"name": name} for name in names]})
        return
    for name in names:
        print_line(name)


def _facts_of(name: str) -> dict[str, Any]:
    """What is known of a backbone without measuring it: of timm's and pixels nothing but the name."""
    from featcache.backbones.zoos.names import short_names
    from featcache.backbones.zoos.torchvision_facts import TORCHVISION

    short = {one.name: one for one in short_names()}
    if name in short:
        one = short[name]
        return {
            "name": name,
            "stands_for": f"timm:{one.timm}",
            "licence": one.licence,
            "gated": one.gated,
            "about": one.about,
        }
    if name not in TORCHVISION:
        return {"name": name}
    weights = TORCHVISION[name].weights
    return {
        "name": name,
        **asdict(TORCHVISION[name].costs),
        "weights": weights.file,
        "weights_mb": weights.megabytes,
        "weights_here": weights.path.is_file(),
    }


def _print_backbones(listed: Sequence[Mapping[str, Any]]) -> None:
    short = [one for one in listed if "stands_for" in one]
    others = [one for one in listed if "stands_for" not in one]
    if others:
        print_table([_backbone_row(one) for one in others], header=_BACKBONE_HEADER)
    if others and short:
        print_line()
    if short:
        rows = [(one["name"], one["licence"] or "-", one["about"]) for one in short]
        print_table(rows, header=("short name", "licence", "what it is"), shorten=(2,))


def _backbone_row(known: Mapping[str, Any]) -> tuple[str, ...]:
    if "feature_dim" not in known:
        return (known["name"], "any", "3 per pixel", "-", "-", "none")
    return (
        known["name"],
        str(known["image_size"]),
        f"{known['feature_dim']:,}",
        f"{known['parameters'] / 1e6:,.1f} M",
        f"{known['gflops']:,.2f}",
        _weights(known),
    )


def _weights(known: Mapping[str, Any]) -> str:
    if known["weights"] is None:
        return "none"
    if known["weights_here"]:
        return "here"
    # How large timm's are is not known before.
    size = "" if known["weights_mb"] is None else f" {known['weights_mb']:,.0f} MB"
    return f"download{size}"


def _show_backbone(name: str, image_size: int | None, common: Common) -> None:
    if name == "pixels":
        _show_pixels(common)
        return
    from featcache.backbones.listing import listing

    found = listing(name, image_size=image_size, data_dir=common.data_dir)
    if common.json:
        layers = [{**asdict(row), "flat": row.flat, "megabytes": row.megabytes} for row in found.layers]
        print_json({**_facts_of(name), **asdict(found), "name": name, "full_name": found.name, "layers": layers})
        return
    pooling = [("token pooling", f"{found.own_pool} (the authors' own)")] if found.own_pool else []
    stands_for = [("stands for", found.name)] if found.name != name else []
    known = _facts_of(name)
    licence = [("licence", known["licence"])] if known.get("licence") else []
    weights = [("weights", _weights(known) if "weights" in known else found.source or "none")]
    print_pairs(
        [
            ("features", Bold(f"{found.feature_dim:,} ({found.default})")),
            *stands_for,
            *licence,
            ("images", f"{found.image_size} x {found.image_size} pixels"),
            ("parameters", f"{found.parameters / 1e6:,.1f} M"),
            ("GFLOPs", f"{found.gflops:,.2f}"),
            *pooling,
            *weights,
        ]
    )
    print_line()
    print_table([_layer_row(row) for row in found.layers], header=_LAYER_HEADER)
    print_line()
    print_line("* usual choices; MB: 10,000 images in float16, not pooled")


_LAYER_HEADER = ("", "layer", "type", "shape", "pooled", "flat", "MB")


def _layer_row(row: LayerRow) -> tuple[str, ...]:
    return (
        "*" if row.usual else "",
        row.name,
        row.kind,
        "x".join(map(str, row.shape)),
        "-" if row.pooled is None or row.pooled == row.flat else f"{row.pooled:,}",
        f"{row.flat:,}",
        f"{row.megabytes:,.0f}",
    )


def _show_pixels(common: Common) -> None:
    if common.json:
        print_json({"name": "pixels", "default": "pixels", "layers": [{"name": "pixels"}]})
        return
    print_pairs([("features", Bold("3 per pixel (pixels)")), ("images", "any size"), ("weights", "none")])


_RECIPE_HEADER = ("name", "input", "head", "more", "notebook", "loss", "epochs", "minutes", "")


def _recipe_row(recipe: Recipe) -> tuple[str, ...]:
    size, notebook = recipe.input.image_size, recipe.notebook
    return (
        recipe.name,
        recipe.backbone if size is None else f"{recipe.backbone} {size}",
        f"{recipe.head.head} {recipe.head.activation}",
        _regularisers(recipe),
        f"{100 * notebook.accuracy:.2f} %",
        f"{notebook.loss:.4f}",
        "-" if notebook.epochs is None else str(notebook.epochs),
        "-" if notebook.minutes is None else f"{notebook.minutes:g}",
        notebook.remark or "",
    )


def _regularisers(recipe: Recipe) -> str:
    values = {"l1": recipe.head.l1, "weight decay": recipe.head.weight_decay, "dropout": recipe.head.dropout}
    return ", ".join(f"{name} {value:g}" for name, value in values.items() if value)
