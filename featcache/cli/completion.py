"""What the shell offers at the tab key: names of backbones, data sets, caches, runs, heads, recipes, and paths.

Each function gives those that begin with what was typed (`incomplete`). It has to be there at once, so nothing here
imports torch.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import typer


def backbones(incomplete: str) -> list[str]:
    """Torchvision's classification networks and pixels."""
    from featcache.backbones import backbone_names

    return _starting(backbone_names(), incomplete)


def datasets(incomplete: str) -> list[str]:
    """Sets that have a name, and paths."""
    from featcache.images import dataset_names

    return _starting(dataset_names(), incomplete) + _paths(incomplete)


def of_choices(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """A function that offers the choices of an option."""
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


def caches(context: typer.Context, incomplete: str) -> list[str]:
    """The caches, packed or in segments, and paths."""
    from featcache.cache.catalog import is_cache_path, name_of

    folder = _folder(context, "data_dir", "FEATCACHE_DATA_DIR", "data") / "features"
    return _starting({name_of(path) for path in folder.glob("*") if is_cache_path(path)}, incomplete) + _paths(
        incomplete
    )


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """The runs in --runs-dir, `latest` and `best` where there are some, and paths."""
    from featcache.runs.catalog import BEST, LATEST, run_folders

    folder = _folder(context, "runs_dir", "FEATCACHE_RUNS_DIR", "runs")
    names = [path.name for path in run_folders(folder)]
    return _starting([*names, BEST, LATEST] if names else [], incomplete) + _paths(incomplete)


def runs_and_caches(context: typer.Context, incomplete: str) -> list[str]:
    """What can be exported or pushed."""
    return list(dict.fromkeys([*runs(context, incomplete), *caches(context, incomplete)]))


def paths(incomplete: str) -> list[str]:
    """Folders to push to and to pull from."""
    return _paths(incomplete)


def heads(incomplete: str) -> list[str]:
    """How each kind of head is written."""
    from featcache.heads.architectures import head_names

    return _starting(head_names(), incomplete)


def recipes(incomplete: str) -> list[str]:
    """The names of recipes (`featcache recipes`) that begin with `incomplete`, sorted."""
    from featcache.notebook.recipes import recipe_names

    return _starting(recipe_names(), incomplete)


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def _paths(incomplete: str) -> list[str]:
    # Only where a path is meant: names are what is mostly asked for.
    if not incomplete.startswith((".", "/", "~")) and "/" not in incomplete:
        return []
    found = sorted(glob.glob(glob.escape(incomplete) + "*"))  # noqa: PTH207 - "./" and "~" are kept as they are typed
    return [f"{path}/" if Path(path).is_dir() else path for path in found]


def _folder(context: typer.Context, option: str, variable: str, default: str) -> Path:
    """A folder of the common options, which belong to the root."""
    return Path(context.find_root().params.get(option) or os.environ.get(variable) or default)
