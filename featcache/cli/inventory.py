"""What there is: `backbones`, `datasets`, `recipes`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import completion
from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.printing import human_rows, print_json, print_line, print_table

if TYPE_CHECKING:
    from featcache.heads.recipes import Recipe

_SECTION = "What there is"


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "backbones", section=_SECTION)
    def backbones(
        name: Annotated[
            str | None, typer.Argument(autocompletion=completion.backbones, help="Show this backbone's layers.")
        ] = None,
        *,
        common: Common,
    ) -> None:
        """List the backbones, or the layers of one."""
        from featcache.backbones import backbone_layers, backbone_names

        if name is None:
            names = backbone_names()
            print_json({"backbones": list(names)}) if common.json else print_line("\n".join(names))
            return
        layers = backbone_layers(name)
        if common.json:
            print_json({"backbone": name, "default": layers.default, "layers": list(layers.names)})
        else:
            print_line("\n".join(f"{layer}  (default)" if layer == layers.default else layer for layer in layers.names))

    @command(app, "datasets", section=_SECTION)
    def datasets(common: Common) -> None:
        """List the data sets that have names.

        Any folder, zip or tar of class/image or split/class/image will do as well: give its path. hf:NAME is a set of
        the Hugging Face Hub.
        """
        from featcache.images import dataset_names, describe

        known = [describe(name) for name in dataset_names()]
        if common.json:
            print_json(
                {
                    "datasets": [
                        {
                            "name": one.name,
                            "images": dict(one.sizes),
                            "classes": one.class_count,
                            "downloads": one.downloads,
                            "note": one.note,
                        }
                        for one in known
                    ]
                }
            )
        else:
            print_table(
                [
                    (one.name, str(one.class_count), human_rows(one.sizes), one.note or "downloaded when first used")
                    for one in known
                ],
                header=("name", "classes", "images", ""),
            )

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
            print_table([_recipe_row(one) for one in known], header=_RECIPE_HEADER)


_RECIPE_HEADER = ("name", "backbone", "size", "head", "activation", "more", "notebook", "loss", "epochs", "minutes", "")


def _recipe_row(recipe: Recipe) -> tuple[str, ...]:
    notebook = recipe.notebook
    return (
        recipe.name,
        recipe.backbone,
        "weights' own" if recipe.input.image_size is None else str(recipe.input.image_size),
        recipe.head.head,
        recipe.head.activation,
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
