"""The versions this environment was tested with: what `bash scripts/constraints` writes into constraints.txt."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

# They follow from torch, and differ from one kind of GPU to the next.
_LEFT_TO_TORCH = ("nvidia-", "cuda-", "triton")


def canonical(name: str) -> str:
    """`PyTorch_Lightning` -> `pytorch-lightning`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct_dependencies() -> set[str]:
    """What pyproject.toml asks for, with all its extras, by canonical name."""
    requirements = map(Requirement, distribution("featcache").requires or [])
    return {canonical(requirement.name) for requirement in requirements} - {"featcache"}


def pins_here() -> dict[str, str]:
    """Name -> version of every installed direct and indirect dependency, sorted."""
    pins: dict[str, str] = {}
    waiting = [(name, frozenset[str]()) for name in direct_dependencies()]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        if name.startswith(_LEFT_TO_TORCH):
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:
            # For another platform, or another version of Python.
            continue
        pins[name] = found.version.partition("+")[0]
        for requirement in map(Requirement, found.requires or []):
            if _applies(requirement, extras):
                needed = (canonical(requirement.name), frozenset(requirement.extras))
                waiting += [needed] if needed not in seen else []
                seen.add(needed)
    return dict(sorted(pins.items()))


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""})


def main() -> None:
    """The lines of constraints.txt."""
    print("# Tested together. `bash scripts/constraints` writes this file from what is installed in .venv.")
    for name, version in pins_here().items():
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
