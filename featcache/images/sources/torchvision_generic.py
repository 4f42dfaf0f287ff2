"""`torchvision:NAME`: a class of torchvision.datasets for image classification, in upper or lower case.

    torchvision:USPS         arrays: its objects have public `data` and `targets` or `labels`
    torchvision:Country211   files: a subclass of DatasetFolder, with public `samples` and `classes`

Only public attributes are read. Classes without them are refused before anything is downloaded; their objects can be
passed from Python. The class of a named set gives that set: torchvision:CIFAR10 is cifar10.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.errors import SourceError, UnknownName
from featcache.images.location import ImagesArgument, Location, OpenOptions, refuse_columns, register
from featcache.images.source import ImageSource, Report
from featcache.images.sources.torchvision_sets import NAMED_SETS, PREFIX, open_named, torchvision_origin

# The names of a split in torchvision.
_NAMES_OF_SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
# Their `data` are paths, and torchvision no longer downloads them.
_NO_PIXELS = ("LFWPairs", "LFWPeople")

Arguments = Mapping[str, Mapping[str, Any]]


def open_torchvision(
    dataset: str, datasets_dir: Path, report: Report | None = None, *, download: bool = True
) -> ImageSource:
    """Open the images of a class of torchvision.datasets; download them if they are not on disk.

    Args:
        dataset: `torchvision:NAME`.
        datasets_dir: Where data sets are stored: this one in the folder NAME, in lower case.
        report: Receives progress messages.
        download: Whether the set may be downloaded.

    Raises:
        UnknownName: There is no such class; the message offers the nearest names.
        SourceError: The class cannot be opened by its name, or its files cannot be read.
        DownloadError, MissingExtra: As `acquire` does.
    """
    # Imported only if a set may have to be downloaded.
    from featcache.images.acquisition import TorchvisionSet, acquire
    from featcache.images.torchvision_rows import classes_of, images_of

    origin = torchvision_origin(dataset)
    if origin in NAMED_SETS:
        return open_named(origin, datasets_dir, report, download=download)
    name = origin.removeprefix(PREFIX)
    of_kind = _class_called(dataset.removeprefix(PREFIX))
    _check(of_kind, datasets_dir)
    data_set = TorchvisionSet(name=origin, folder=name, dataset=of_kind.__name__, arguments=_arguments(of_kind))
    datasets = acquire(data_set, datasets_dir, report, download=download)
    return images_of(datasets, origin, classes_of(datasets, origin))


def _class_called(name: str) -> Any:
    import torchvision.datasets

    known = {one.lower(): one for one in torchvision.datasets.__all__}
    if name.lower() in known:
        return getattr(torchvision.datasets, known[name.lower()])
    error = UnknownName("data set of torchvision", name, known.values())
    error.hint = error.hint or "give the name of a class in torchvision.datasets, such as torchvision:USPS"
    raise error


def _check(of_kind: Any, datasets_dir: Path) -> None:
    """Raises SourceError unless torchvision downloads the set and gives public access to images and class numbers."""
    dataset = f"{PREFIX}{of_kind.__name__}"
    if "download" not in inspect.signature(of_kind).parameters:
        raise SourceError(
            f"{dataset} cannot be opened by its name: torchvision does not download it",
            hint="give the path of a folder or archive of its images (split/class/image)",
        )
    if not _is_public(of_kind):
        raise SourceError(
            f"{dataset} cannot be opened by its name: it has no public attributes for its images and class numbers",
            hint="give hf:NAME if the Hugging Face Hub has it; or, if its items are (image, class number), pass it "
            f"from Python: {_python_line(of_kind, datasets_dir)}",
        )


def _is_public(of_kind: Any) -> bool:
    from torchvision.datasets import DatasetFolder

    if of_kind.__name__ in _NO_PIXELS or _has_more_arguments(of_kind):
        return False
    # Only an object has its attributes for certain, but creating one may need a download of 100 GB.
    used = set(of_kind.__init__.__code__.co_names)
    return issubclass(of_kind, DatasetFolder) or ("data" in used and not used.isdisjoint(("targets", "labels")))


def _has_more_arguments(of_kind: Any) -> bool:
    """Whether the class needs more arguments than the folder of its files and the split."""
    parameters = inspect.signature(of_kind).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return not set(needed) <= {"root", "split"}


def _arguments(of_kind: Any) -> Arguments:
    """By split, the arguments of the class: from its signature, and the split names that it accepts."""
    parameters = inspect.signature(of_kind).parameters
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" not in parameters:
        return {"train": {}}
    found: dict[str, dict[str, Any]] = {}
    for split, names in _NAMES_OF_SPLITS.items():
        accepted = [name for name in names if _accepts(of_kind, name)]
        if accepted:
            found[split] = {"split": accepted[0]}
    return found


def _accepts(of_kind: Any, split: str) -> bool:
    """Whether a class has a split: an unknown one is a ValueError, missing files are another error."""
    with tempfile.TemporaryDirectory() as nothing, contextlib.redirect_stdout(sys.stderr):
        try:
            of_kind(root=nothing, split=split, download=False)
        except ValueError:
            return False
        except Exception:  # Missing files are different errors in different classes.
            return True
    return True


def _python_line(of_kind: Any, datasets_dir: Path) -> str:
    made = f"torchvision.datasets.{of_kind.__name__}"
    arguments = {} if _has_more_arguments(of_kind) else _arguments(of_kind)
    if not arguments:
        return f'featcache.extract({{"train": {made}(...)}}, ...)'
    first, *others = arguments
    words = [f"{name}={value!r}".replace("'", '"') for name, value in arguments[first].items()]
    called = ", ".join([json.dumps(str(datasets_dir)), *words, "download=True"])
    listed = [f'"{first}": {made}({called})', *(f'"{split}": ...' for split in others)]
    return f"featcache.extract({{{', '.join(listed)}}}, ...)"


def _locate(given: ImagesArgument) -> Location | None:
    if not (isinstance(given.value, str) and given.text.startswith(PREFIX)):
        return None
    origin = torchvision_origin(given.text)
    if origin in NAMED_SETS:
        return given.at("named set", origin)
    return given.at("torchvision", origin.removeprefix(PREFIX), prefix=PREFIX)


@register("torchvision", rank=21, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> ImageSource:
    refuse_columns(location, opening)
    return open_torchvision(location.origin, opening.datasets_dir, opening.report, download=opening.download)
