"""The data walks one way, and so do the imports (docs/architecture.md, "The rooms")."""

from __future__ import annotations

import graphlib
import sys
import tomllib
from pathlib import Path

import pytest
from house import PACKAGE, ROOT, imported, module_name, modules, rooms

# What each package may import besides itself and the ground. Images, backbones and cache do not know each other; heads
# know nothing of images.
MAY_IMPORT: dict[str, set[str]] = {
    "images": set(),
    "backbones": set(),
    "cache": set(),
    "extraction": {"images", "backbones", "cache"},
    "rows": {"cache"},
    "heads": {"cache", "rows"},
    "training": {"cache", "rows", "heads"},
    "runs": {"cache", "rows", "heads", "training"},
    "sweeps": {"cache", "rows", "heads", "training", "runs"},
    "notebook": {"cache", "rows", "heads", "training", "runs", "sweeps"},
    "inference": {"images", "backbones", "cache", "extraction", "rows", "heads", "runs"},
    "analysis": {"images", "cache", "heads"},
    "benchmark": {
        *("images", "backbones", "cache", "extraction"),
        *("rows", "heads", "training", "runs", "sweeps", "inference", "analysis"),
    },
    # Results only: a page is made anew where neither weights nor an accelerator are.
    "report": {"images", "cache", "heads", "runs", "analysis"},
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
# Modules beside the packages that every package may import.
GROUND = {"errors", "config", "columns", "files"}
# All modules that stand beside the packages.
DOORS: dict[str, set[str]] = {
    **{module: set() for module in GROUND},
    "api": set(MAY_IMPORT) - {"cli"},
    # Backbones and heads for those who use scikit-learn, heads for those who use Lightning.
    "sklearn": {"api", "cache", "extraction", "rows", "heads", "training"},
    "lightning": {"training"},
    "__init__": {"api", *MAY_IMPORT} - {"cli"},
    "__main__": {"cli"},
}
# What may ask for a public name of the package, when it is called and not before: `Run.report`, for notebooks. The
# name is found then (PEP 562), so heads neither load the report nor know it.
ASKS_THE_DOOR = {"featcache.runs.run"}
TORCH = {"torch", "torchvision", "pytorch_lightning", "lightning", "torchmetrics"}


def place(path: Path) -> str:
    """The room a module stands in, or its own name where it stands in none."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def places_imported(path: Path) -> set[str]:
    """The rooms and doors of featcache that a module imports."""
    known = {*rooms(), *(door.stem for door in PACKAGE.glob("*.py"))}
    found: set[str] = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "featcache":
            found.add(parts[1] if len(parts) > 1 and parts[1] in known else "__init__")
    return found - {place(path)}


def doors_asked(path: Path) -> set[str]:
    """The package's own door, where a module may ask for it."""
    return places_imported(path) & {"__init__"} if name_of(path) in ASKS_THE_DOOR else set()


def name_of(path: Path) -> str:
    return module_name(path)


def test_every_room_has_its_place_in_the_row() -> None:
    assert set(rooms()) <= set(MAY_IMPORT), "a new room: say in MAY_IMPORT, and in the architecture, what it may import"
    assert {path.stem for path in PACKAGE.glob("*.py")} <= set(DOORS)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_from_the_rooms_before_its_own(path: Path) -> None:
    allowed = (MAY_IMPORT | DOORS)[place(path)] | GROUND
    assert places_imported(path) - doors_asked(path) <= allowed


def test_a_door_is_asked_only_when_something_is_called() -> None:
    asking = {name_of(path) for path in modules() if doors_asked(path)}
    assert asking == ASKS_THE_DOOR
    for path in modules():
        if name_of(path) in ASKS_THE_DOOR:
            assert "featcache" not in imported(path, at_import_time=True)


def test_the_rooms_stand_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in modules():
        graph.setdefault(place(path), set()).update(places_imported(path) - doors_asked(path))
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_module_reaches_into_another_rooms_private_names(path: Path) -> None:
    own = module_name(path).split(".")[:2]
    strangers = [name.split(".") for name in imported(path) if name.startswith("featcache.")]
    private = [
        ".".join(parts)
        for parts in strangers
        if parts[:2] != own and any(part.startswith("_") and not part.startswith("__") for part in parts)
    ]
    assert private == []


@pytest.mark.parametrize("path", modules(PACKAGE / "cache"), ids=name_of)
def test_the_cache_room_never_imports_torch(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & TORCH


@pytest.mark.parametrize(
    "path", [*modules(PACKAGE / "images"), *modules(PACKAGE / "cli"), *PACKAGE.glob("*.py")], ids=name_of
)
def test_images_and_command_line_import_torch_only_inside_functions(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path, at_import_time=True)} & TORCH


def test_only_declared_packages_are_imported() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *declared["dependencies"],
        *(line for extra in declared["optional-dependencies"].values() for line in extra),
    ]
    packages = {line.split(">")[0].split("[")[0].replace("-", "_") for line in lines}
    # pillow, scikit-learn, part of pytorch-lightning, umap-learn
    called_otherwise = {"PIL", "sklearn", "lightning_fabric", "umap", "vl_convert"}
    known = packages | called_otherwise | {"featcache", *sys.stdlib_module_names}
    found = {name.split(".")[0] for path in modules() for name in imported(path)}
    assert found <= known
