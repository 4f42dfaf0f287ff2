"""What there is: `backbones`, `datasets`, `recipes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import completion
from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.printing import print_json, print_line, print_pairs, print_table
from featcache.errors import UnknownName

if TYPE_CHECKING:
    from featcache.heads.recipes import Recipe
    from featcache.images.torchvision_sets import NamedSet

_SECTION = "What there is"
_SHOWN = "Which are listed"


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "backbones", section=_SECTION)
    def backbones(
        name: Annotated[
            str | None, typer.Argument(autocompletion=completion.backbones, help="Show this backbone and its layers.")
        ] = None,
        like: Annotated[
            str, typer.Option(help="Only names with this in them.", metavar="<text>", rich_help_panel=_SHOWN)
        ] = "",
        timm: Annotated[
            bool, typer.Option("--timm", help="timm's, by name alone: there are many.", rich_help_panel=_SHOWN)
        ] = False,
        *,
        common: Common,
    ) -> None:
        """List the backbones, or show one and its layers.

        Features, parameters and GFLOPs (of one image, two operations a multiply-add) are those of the default layer
        at the weights' own image size. Weights that are not here are downloaded when they are first used.
        """
        if name is not None:
            if like or timm:
                raise typer.BadParameter("say a name, or which to list, not both", param_hint="name")
            _show_backbone(name, common)
            return
        listed = [_described(one) for one in _names(like, timm=timm)]
        if common.json:
            print_json({"backbones": listed})
        elif timm:
            print_line("\n".join(one["name"] for one in listed))
        else:
            print_table([_backbone_row(one) for one in listed], header=_BACKBONE_HEADER)

    @command(app, "datasets", section=_SECTION)
    def datasets(common: Common) -> None:
        """List the data sets that have names.

        Classes and images are those that are published. A set that is not in --data-dir is downloaded when it is
        first used, or must be put there by hand.

        Any folder, zip or tar of class/image or split/class/image will do as well: give its path. hf:NAME is a set of
        the Hugging Face Hub.
        """
        from featcache.images import dataset_names, describe
        from featcache.images.named import is_here

        folder = common.data_dir / "datasets"
        known = [(one, is_here(one, folder)) for one in map(describe, dataset_names())]
        if common.json:
            print_json({"datasets": [_dataset_said(one, here=here) for one, here in known]})
            return
        print_table([_dataset_row(one, here=here) for one, here in known], header=_DATASET_HEADER)
        print_line()
        print_pairs([(one.name, one.note) for one, _ in known if one.note])

    @command(app, "recipes", section=_SECTION)
    def recipes(common: Common) -> None:
        """List the notebook's experiments that have names.

        `featcache reproduce` runs them; `featcache train-head --recipe NAME` takes the settings of one.
        """
        from featcache.heads.recipes import recipe, recipe_names

        known = [recipe(name) for name in recipe_names()]
        if common.json:
            print_json({"recipes": [one.to_json() for one in known]})
        else:
            print_table([_recipe_row(one) for one in known], header=_RECIPE_HEADER, optional=4)


_DATASET_HEADER = ("name", "classes", "train", "val", "test", "")


def _dataset_said(named: NamedSet, *, here: bool) -> dict[str, Any]:
    return {
        "name": named.name,
        "images": dict(named.sizes),
        "classes": named.class_count,
        "here": here,
        "downloads": named.downloads,
        "note": named.note,
    }


def _dataset_row(named: NamedSet, *, here: bool) -> tuple[str, ...]:
    sizes = [f"{named.sizes[split]:,}" if split in named.sizes else "-" for split in ("train", "val", "test")]
    where = "here" if here else "download" if named.downloads else "by hand"
    return (named.name, f"{named.class_count:,}", *sizes, where)


_BACKBONE_HEADER = ("name", "size", "features", "parameters", "GFLOPs", "weights")


def _names(like: str, *, timm: bool) -> list[str]:
    from featcache.backbones import backbone_names

    known = _timm_names() if timm else backbone_names()
    found = [name for name in known if like.lower() in name]
    if not found:
        raise UnknownName("backbone", like, known)
    return found


def _timm_names() -> tuple[str, ...]:
    from featcache.backbones.timm_networks import timm_names

    return timm_names()


def _described(name: str) -> dict[str, Any]:
    """What is known of a backbone without measuring it: nothing but the name of timm's and pixels."""
    from featcache.backbones.facts import TORCHVISION

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


def _backbone_row(known: Mapping[str, Any]) -> tuple[str, ...]:
    if "feature_dim" not in known:
        return (known["name"], "any", "3 a pixel", "-", "-", "none")
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


def _show_backbone(name: str, common: Common) -> None:
    from featcache.backbones import backbone_layers

    layers = backbone_layers(name)
    known = _measured(name) if name.startswith("timm:") else _described(name)
    if common.json:
        print_json(known | {"default": layers.default, "layers": list(layers.names)})
        return
    _, size, features, parameters, gflops, weights = _backbone_row(known)
    print_pairs(
        [
            ("features", f"{features} ({layers.default})"),
            ("images", size if size == "any" else f"{size} x {size}"),
            ("parameters", parameters),
            ("GFLOPs", gflops),
            ("weights", f"{known['weights']}, {weights}" if known.get("weights") else weights),
        ]
    )
    print_line()
    print_line("\n".join(f"{layer}  (default)" if layer == layers.default else layer for layer in layers.names))


def _measured(name: str) -> dict[str, Any]:
    """One of timm's, which no table holds."""
    from featcache.backbones import timm_networks
    from featcache.backbones.measuring import measured

    costs, weights = asdict(measured(name)), timm_networks.default_weights(name)
    here = weights is not None and timm_networks.is_downloaded(name)
    return {"name": name, **costs, "weights": weights, "weights_mb": None, "weights_here": here}


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
    said = {"l1": recipe.head.l1, "weight decay": recipe.head.weight_decay, "dropout": recipe.head.dropout}
    return ", ".join(f"{name} {value:g}" for name, value in said.items() if value)
