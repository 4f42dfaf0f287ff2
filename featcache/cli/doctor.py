"""`featcache doctor`: examines this machine and estimates how fast it extracts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.printing import print_json, print_pairs
from featcache.cli.terminal import Terminal

if TYPE_CHECKING:
    from featcache.extraction.checkup import Checkup


def register(app: typer.Typer) -> None:
    """Add `doctor` to the typer app."""

    @command(
        app,
        "doctor",
        section="What there is",
        examples=(
            "featcache doctor",
            "featcache doctor --json",
        ),
    )
    def doctor(common: Common) -> None:
        """Examine this machine, and say how fast it will be.

        That is: device, precision, threads, disk, and the images/s to expect. Takes a few seconds, downloads nothing
        and leaves nothing behind.
        """
        from featcache.extraction.checkup import examine

        with Terminal(quiet=common.quiet) as terminal:
            terminal.info("measuring for a few seconds")
            found = examine(common.data_dir)
            for warning in found.warnings:
                terminal.warn(warning)
        if common.json:
            print_json(found.to_json())
        else:
            _show(found)


def _show(found: Checkup) -> None:
    supported = ", ".join(name for name, there in found.precisions.items() if there)
    disk = f"{found.disk_mb_per_s:,.0f} MB/s" if found.disk_mb_per_s else "cannot be written"
    print_pairs(
        [
            ("device", f"{found.device} ({found.device_name})"),
            ("precision", f"{found.precision} (its hardware computes {supported})"),
            ("cores", f"{found.cores}; {found.threads} threads compute, {found.decoding_threads} decode"),
            ("BLAS", found.blas),
            ("C++ compiler", found.compiler or "none"),
            ("decoding", f"{found.decode_images_per_s:,.0f} images/s and thread (JPEG 640x480 to 224)"),
            ("disk", f"{disk}, {found.disk_free_gb:,.1f} GB free"),
            *[
                (name, f"about {speed.images_per_s:,.1f} images/s (estimate: {speed.gflops:,.0f} GFLOP/s measured)")
                for name, speed in found.expected.items()
            ],
            ("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
        ]
    )
