"""What a cache records of its extraction, as the tables of an experiment file (`featcache.experiments`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featcache.backbones.describe import Choice
from featcache.backbones.options import BackboneOptions
from featcache.cache.spec import Json
from featcache.columns import ColumnOptions
from featcache.config import non_default_options
from featcache.extraction.execution import Execution
from featcache.extraction.request import StorageOptions
from featcache.extraction.resolve import Job
from featcache.images.options import ImageOptions

# Of the options that change no feature, those that decide whether there is a cache at all.
_DECISIVE = ("on_error", "min_cosine")


def experiment_tables(job: Job) -> dict[str, Json]:
    """The options that determine rows and targets, by table; options with their default values are left out.

    Paths are absolute, and `auto` is replaced by what computed the rows. A table is None if a file cannot hold it: the
    images are a Python object, or the backbone is a module of your own.
    """
    execution = non_default_options(job.execution, Execution)
    return {
        "images": None if job.request.location.is_object else _images(job),
        "backbones": None if job.backbone.is_own_module else _backbone(job),
        "extract": {name: value for name, value in execution.items() if name in _DECISIVE},
    }


def _images(job: Job) -> Mapping[str, Any]:
    request = job.request
    given = non_default_options(request, ImageOptions) | non_default_options(request, ColumnOptions)
    # The origin contains the folders that are splits.
    given.pop("split_by_folder", None)
    return {**given, "dataset": request.origin}


def _backbone(job: Job) -> Mapping[str, Any]:
    choice = Choice.of(job.request.backbone_options)
    resolved = {} if job.backbone.stores_bytes else {"precision": job.spec.precision, "runner": job.spec.runner}
    chosen = non_default_options(BackboneOptions(**vars(choice)))
    return {**chosen, "backbone": choice.backbone, **non_default_options(job.request, StorageOptions), **resolved}
