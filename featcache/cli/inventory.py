"""What there is: `backbones`, `datasets`."""

from __future__ import annotations

from typing import Annotated

import typer

from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.printing import human_rows, print_json, print_line, print_table

_SECTION = "What there is"


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "backbones", section=_SECTION)
    def backbones(
        name: Annotated[str | None, typer.Argument(help="Show this backbone's layers.")] = None, *, common: Common
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

        Any folder, zip or tar of class/image or split/class/image will do as well: give its path.
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
