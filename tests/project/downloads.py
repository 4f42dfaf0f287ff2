"""The sizes of what pip downloads for this project: what `bash scripts/constraints` writes into scripts/downloads.tsv.

pip resolves the requirements for this machine, as if nothing were installed. Sizes are those of the wheels that it
would fetch, in bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any
from urllib.request import Request, urlopen

from pins import canonical
from project_tree import ROOT

#: The extras that scripts install: those of scripts/demo, and everything.
EXTRAS = ("pypi", "dev")


def resolve(extras: str) -> dict[str, str]:
    """What pip would install for `featcache[extras]`: `name==version` -> the wheel's address."""
    command = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", f".[{extras}]"]
    ran = subprocess.run(
        [sys.executable, "-m", "pip", *command, "-c", "constraints.txt"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(ran.stdout)["install"]
    packages = {
        f"{canonical(each['metadata']['name'])}=={each['metadata']['version']}": str(each["download_info"]["url"])
        for each in found
    }
    return {package: address for package, address in packages.items() if not package.startswith("featcache==")}


def download_bytes(address: str) -> int:
    """The size of a wheel, from the header of its download. Raises TypeError for a server that does not state it."""
    with urlopen(Request(address, method="HEAD")) as answer:
        return int(answer.headers["Content-Length"])


def main() -> None:
    """The lines of scripts/downloads.tsv: package, bytes, extras."""
    by_extras = {extras: resolve(extras) for extras in EXTRAS}
    packages = {package: address for found in by_extras.values() for package, address in found.items()}
    print("# What pip downloads, on Linux with x86-64: package, bytes, extras. Written by `bash scripts/constraints`.")
    for package, address in sorted(packages.items()):
        extras = " ".join(each for each in EXTRAS if package in by_extras[each])
        print(f"{package}\t{download_bytes(address)}\t{extras}")


if __name__ == "__main__":
    main()
