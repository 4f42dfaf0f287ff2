"""`featcache show`: images of a data set with their labels, before and after a backbone's transform."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.printing import Bold, human_count, human_path, print_json, print_line, print_next
from featcache.cli.terminal import Terminal
from featcache.config import Option
from featcache.errors import ImageError, InvalidOption
from featcache.text import escape_controls

if TYPE_CHECKING:
    from featcache.backbones.transforms import Transform
    from featcache.images.contact_sheet import Tile
    from featcache.images.samples import Sample
    from featcache.images.source import ImageSource

_WHICH = "Which images"
_HOW = "How they are shown"
_AFTER = "As which backbone sees them"


def register(app: typer.Typer) -> None:
    """Add `show` to the typer app."""

    @command(
        app,
        "show",
        section="What there is",
        examples=(
            "featcache show digits",
            "featcache show photos/ --backbone vgg16 --output grid.png",
        ),
    )
    def show(
        dataset: Annotated[
            str,
            typer.Argument(
                metavar="IMAGES", help="A set of `featcache datasets`, or the path of images.", show_default=True
            ),
        ] = "cifar10",
        split: Annotated[
            str | None,
            Option(help="train, val or test.", default="the first there is", metavar="<split>", panel=_WHICH),
        ] = None,
        limit: Annotated[
            int,
            Option(help="So many images, balanced over the classes.", metavar="<images>", least=1, panel=_WHICH),
        ] = 24,
        select_seed: Annotated[int, Option(help="Which images --limit takes.", metavar="<seed>", panel=_WHICH)] = 0,
        backbone: Annotated[
            str | None,
            Option(
                help="Beside each image, what its transform makes of it.",
                flags=(
                    "--backbone",
                    "-b",
                ),
                metavar="<name>",
                panel=_AFTER,
            ),
        ] = None,
        image_size: Annotated[
            int | None,
            Option(
                help="Pixels a side after the transform.",
                default="the backbone's own",
                metavar="<pixels>",
                least=1,
                panel=_AFTER,
            ),
        ] = None,
        resize: Annotated[
            Literal["squash", "crop"],
            Option(help="squash: straight to the square. crop: its middle.", panel=_AFTER),
        ] = "squash",
        output: Annotated[
            Path | None,
            Option(
                help="Draw into this .png instead of here.",
                flags=(
                    "--output",
                    "-o",
                ),
                metavar="<file>",
                panel=_HOW,
            ),
        ] = None,
        columns: Annotated[
            int | None,
            Option(help="Images side by side.", default="6, in a terminal 4", metavar="<images>", least=1, panel=_HOW),
        ] = None,
        side: Annotated[
            int,
            Option(help="Pixels a side of an image in the .png.", metavar="<pixels>", least=8, panel=_HOW),
        ] = 96,
        *,
        common: Common,
    ) -> None:
        """Show images with their labels, also as a backbone sees them.

        In colours right here where stdout is a terminal, else into a file: -o grid.png. With --json the images are
        named and drawn only into the file.
        """
        from featcache.images import open_images, select

        if output is None and not common.json and not sys.stdout.isatty():
            raise InvalidOption("stdout is no terminal to draw on", hint="name a file: -o grid.png")
        if output is not None and output.suffix.lower() != ".png":
            raise InvalidOption(f"expected a .png file, got {output.name!r}")
        after = _transform(backbone, image_size, resize)
        with (
            Terminal(quiet=common.quiet) as terminal,
            open_images(dataset, datasets_dir=common.data_dir / "datasets", report=terminal.info) as source,
        ):
            chosen = select(source.samples(split or source.splits()[0]), limit, select_seed)
            tiles = list(_tiles(source, chosen, after, terminal)) if output is not None or not common.json else []
        if output is not None:
            _draw(tiles, output, columns=columns or 6, side=side)
        if common.json:
            print_json(_answer(source, chosen, after, output))
        elif output is not None:
            print_line(Bold(human_count(len(tiles), "image")), f" of {source.name} in {human_path(output)}")
        else:
            _print(tiles, columns or 4)
        size = [] if image_size is None else ["--image-size", str(image_size)]
        network = [] if backbone is None else ["--backbone", backbone]
        print_next(common, "extract", "--dataset", dataset, *network, *size)


def _transform(backbone: str | None, image_size: int | None, resize: Literal["squash", "crop"]) -> Transform | None:
    from featcache.backbones import preset_transform

    if backbone is None and image_size is None:
        return None
    return preset_transform(backbone or "pixels", image_size=image_size, resize=resize)


def _tiles(
    source: ImageSource, samples: Sequence[Sample], after: Transform | None, terminal: Terminal
) -> Iterator[Tile]:
    from featcache.images import decode
    from featcache.images.contact_sheet import Tile

    for sample in samples:
        label = escape_controls(source.classes[sample.label]) if sample.label >= 0 else "unlabelled"
        try:
            image = decode(source.read(sample), sample.id)
        except ImageError as error:
            terminal.warn(error.message)
            yield Tile(pictures=(None,) * (1 if after is None else 2), caption=f"{label}: unreadable")
            continue
        pictures = (image,) if after is None else (image, after.resize_image(image))
        sizes = " > ".join(f"{picture.shape[1]}x{picture.shape[0]}" for picture in pictures)
        yield Tile(pictures=pictures, caption=label if after is None else f"{label} {sizes}")


def _draw(tiles: Sequence[Tile], output: Path, *, columns: int, side: int) -> None:
    import io

    from PIL import Image

    from featcache.files import publish_bytes
    from featcache.images.contact_sheet import contact_sheet

    encoded = io.BytesIO()
    Image.fromarray(contact_sheet(tiles, columns=columns, side=side)).save(encoded, "PNG")
    publish_bytes(output, encoded.getvalue())


def _print(tiles: Sequence[Tile], columns: int) -> None:
    from rich.console import Console

    from featcache.images.contact_sheet import terminal_lines

    console = Console(highlight=False)
    for line in terminal_lines(tiles, columns=columns, width=console.width):
        console.print(line, overflow="crop", no_wrap=True)


def _answer(
    source: ImageSource, chosen: Sequence[Sample], after: Transform | None, output: Path | None
) -> dict[str, Any]:
    return {
        "dataset": source.name,
        "images": [
            {
                "id": sample.id,
                "split": sample.split,
                "label": source.classes[sample.label] if sample.label >= 0 else None,
            }
            for sample in chosen
        ],
        "transform": None if after is None else after.to_json(),
        "output": None if output is None else str(output),
    }
