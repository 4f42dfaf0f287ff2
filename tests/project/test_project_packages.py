"""The data walks one way, and so do the imports (docs/architecture.md, "The packages")."""

from __future__ import annotations

import graphlib
import sys
import tomllib
from pathlib import Path

from project_tree import PACKAGE, ROOT, imports_of, module_name, modules, packages

# What each package may import besides itself and the ground. Images, backbones and cache do not know each other; heads
# know nothing of images.
MAY_IMPORT: dict[str, set[str]] = {
    "images": set(),
    "backbones": set(),
    "cache": set(),
    "extraction": {"images", "backbones", "cache"},
    "rows": {"cache"},
    "heads": {"cache", "rows"},
    # The text encoder of the backbone that computed the features, for heads made from class names.
    "training": {"cache", "extraction", "rows", "heads"},
    "runs": {"cache", "rows", "heads", "training"},
    "sweeps": {"cache", "rows", "heads", "training", "runs"},
    "notebook": {"cache", "rows", "heads", "training", "runs", "sweeps"},
    "inference": {"images", "backbones", "cache", "extraction", "rows", "heads", "runs", "analysis"},
    "sharing": {"cache", "extraction", "rows", "heads", "runs"},
    "analysis": {"images", "cache", "heads"},
    "benchmark": {
        *("images", "backbones", "cache", "extraction"),
        *("rows", "heads", "training", "runs", "sweeps", "inference", "analysis"),
    },
    # Results only: a page is made anew where neither weights nor an accelerator are.
    "report": {"images", "cache", "rows", "heads", "runs", "sweeps", "analysis"},
}
MAY_IMPORT["experiments"] = {
    *("images", "backbones", "cache", "extraction", "heads", "training", "runs", "sweeps", "report"),
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
# Modules next to the packages that every package may import.
GROUND = {"errors", "config", "columns", "display", "files", "progress", "text"}
# All modules next to the packages, and what they may import.
ROOT_MODULES: dict[str, set[str]] = {
    **{module: set() for module in GROUND},
    "api": set(MAY_IMPORT) - {"cli"},
    # Backbones and heads for users of scikit-learn, heads for users of Lightning.
    "sklearn": {"api", "cache", "extraction", "rows", "heads", "training"},
    "lightning": {"training"},
    "__init__": {"api", *MAY_IMPORT} - {"cli"},
    "__main__": {"cli"},
}
# Modules that use a public name of featcache, when they are called and not before: `Run.report` and `Sweep.report`, for
# notebooks. The name is resolved then (PEP 562), so runs and sweeps neither load the report nor know it.
USES_THE_ROOT = {"featcache.runs.run", "featcache.sweeps.records"}
TORCH = {"torch", "torchvision", "pytorch_lightning", "lightning", "torchmetrics"}


def place(path: Path) -> str:
    """The package a module stands in, or its own name where it stands in none."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def places_imported(path: Path) -> set[str]:
    """The packages and root modules of featcache that a module imports."""
    known = {*packages(), *(module.stem for module in PACKAGE.glob("*.py"))}
    found: set[str] = set()
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "featcache":
            found.add(parts[1] if len(parts) > 1 and parts[1] in known else "__init__")
    return found - {place(path)}


def root_use(path: Path) -> set[str]:
    """`__init__`, where a module may use the public names of featcache."""
    return places_imported(path) & {"__init__"} if name_of(path) in USES_THE_ROOT else set()


def name_of(path: Path) -> str:
    return module_name(path)


def test_every_package_has_its_place_in_the_order() -> None:
    # A new package: state in MAY_IMPORT, and in the architecture, what it may import.
    assert set(packages()) <= set(MAY_IMPORT)
    assert {path.stem for path in PACKAGE.glob("*.py")} <= set(ROOT_MODULES)


def test_a_module_imports_only_from_the_packages_before_its_own() -> None:
    wrong = {}
    for path in modules():
        allowed = (MAY_IMPORT | ROOT_MODULES)[place(path)] | GROUND | root_use(path)
        if found := places_imported(path) - allowed:
            wrong[name_of(path)] = found
    assert wrong == {}


def test_public_names_of_featcache_are_used_by_its_modules_only_when_they_are_called() -> None:
    assert {name_of(path) for path in modules() if root_use(path)} == USES_THE_ROOT
    for path in modules():
        if name_of(path) in USES_THE_ROOT:
            assert "featcache" not in imports_of(path, at_import_time=True)


def test_the_packages_have_no_circular_imports() -> None:
    graph: dict[str, set[str]] = {}
    for path in modules():
        graph.setdefault(place(path), set()).update(places_imported(path) - root_use(path))
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_no_module_uses_private_names_of_another_package() -> None:
    private = [
        f"{name_of(path)}: {name}"
        for path in modules()
        for name in imports_of(path)
        if name.split(".")[0] == "featcache" and name.split(".")[:2] != module_name(path).split(".")[:2]
        if any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    ]
    assert private == []


def test_the_cache_never_imports_torch() -> None:
    assert {name.split(".")[0] for path in modules(PACKAGE / "cache") for name in imports_of(path)} & TORCH == set()


def test_images_and_command_line_import_torch_only_inside_functions() -> None:
    light = [*modules(PACKAGE / "images"), *modules(PACKAGE / "cli"), *PACKAGE.glob("*.py")]
    heavy = [
        name_of(path)
        for path in light
        if {name.split(".")[0] for name in imports_of(path, at_import_time=True)} & TORCH
    ]
    assert heavy == []


def test_only_declared_packages_are_imported() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *declared["dependencies"],
        *(line for extra in declared["optional-dependencies"].values() for line in extra),
    ]
    packages = {line.split(">")[0].split("[")[0].replace("-", "_") for line in lines}
    # pillow, scikit-learn, part of pytorch-lightning, umap-learn, vl-convert-python, open_clip_torch
    called_otherwise = {"PIL", "sklearn", "lightning_fabric", "umap", "vl_convert", "open_clip"}
    known = packages | called_otherwise | {"featcache", *sys.stdlib_module_names}
    found = {name.split(".")[0] for path in modules() for name in imports_of(path)}
    assert found <= known
