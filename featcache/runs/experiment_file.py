"""Writes `experiment.toml` into a run: the file from which `featcache run` repeats it.

Its tables are records of options, and its names the fields of these (`featcache.experiments` reads it). Options that
have their default values are left out; paths are absolute. What no file can hold is stated as a comment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tomli_w

from featcache.cache.reader import FeatureCache
from featcache.cache.targets import IMAGES
from featcache.config import non_default_options
from featcache.heads.architectures import head_with_absolute_files
from featcache.heads.config import HeadConfig
from featcache.heads.own import decode_arguments
from featcache.rows.options import RowOptions
from featcache.text import message_line
from featcache.training.preparation import Prepared

EXPERIMENT_FILE = "experiment.toml"
_GIVEN_IMAGES = "The images were given from Python. Write them into a folder, and name it here: dataset = PATH."
_GIVEN_BACKBONE = "The backbone {0} was given from Python (featcache.from_module), so no file can name it."
_OWN_HEAD = (
    "The head is your own. A class of modules that can be imported is found; anything else must be passed again."
)
_OWN_LOSS = "The loss is your own function. It is found only in a Python process that was given it before."
_EXPECTED = "What the features, images and targets were. `featcache run` warns where they differ."
_OWN_TRAINER = "A Trainer object was given from Python; this file has Lightning's default one."


def experiment_file(
    prepared: Prepared,
    config: HeadConfig,
    *,
    training: Mapping[str, Any],
    version: str,
    resampling: Mapping[str, Mapping[str, Any]] | None = None,
    own_trainer: bool = False,
) -> bytes:
    """The content of the file.

    Args:
        prepared: The rows that the head was trained on.
        config: The head's options.
        training: Options of TrainingOptions that change the head, by name.
        version: The version of featcache.
        resampling: For a head that was trained on a draw of few images: options by table, which draw them again.
        own_trainer: Whether the head was trained by the user's own Trainer.
    """
    caches = [column.cache for column in prepared.columns]
    again = resampling or {}
    lines = [
        f"# Repeats the run in this folder: featcache run {EXPERIMENT_FILE}",
        f"# Options that are not here have the default values of featcache {version}.",
        *_images(caches[0], config),
        *_backbone(caches[0], "backbones"),
        *(line for cache in caches[1:] for line in _backbone(cache, "beside")),
        *_table("extract", {name: value for cache in caches for name, value in _tables(cache, "extract").items()}),
        *_table("head", {**_head_options(config), **again.get("head", {})}, _head_comments(config)),
        *_table("training", training, [_OWN_TRAINER] * own_trainer),
        *_table("sweep", again.get("sweep", {})),
        *_table("expected", expectations(caches, config), [_EXPECTED]),
    ]
    # A path with bytes that are not UTF-8 has no form in TOML: reading the file is then an error.
    return "\n".join([*lines, ""]).encode("utf-8", "backslashreplace")


def expectations(caches: Sequence[FeatureCache], options: RowOptions) -> dict[str, Any]:
    """What a repetition compares: fingerprints of the caches, and digests of all images and of their targets.

    Args:
        caches: The caches of the backbones, then those beside.
        options: The options that name the targets and the groups.
    """
    images, targets = hashlib.sha256(), hashlib.sha256()
    for split in caches[0].splits:
        images.update(f"{split}\0".encode() + caches[0][split].digests.tobytes())
        for name in filter(None, (*options.target, options.group)):
            if name in caches[0].targets:
                found = caches[0][split].target(name)
                texts = found.values.dtype == object
                targets.update(repr((split, name, found.column.names)).encode() + found.has_value.tobytes())
                targets.update(repr(found.values.tolist()).encode() if texts else found.values.tobytes())
    return {
        "fingerprints": [cache.spec.fingerprint for cache in caches],
        "images": images.hexdigest(),
        "targets": targets.hexdigest(),
    }


def _tables(cache: FeatureCache, name: str) -> Mapping[str, Any]:
    """A table of the cache's extraction; empty if no file can hold it."""
    tables = cache.provenance.get("experiment")
    table = tables.get(name) if isinstance(tables, Mapping) else None
    return table if isinstance(table, Mapping) else {}


def _images(cache: FeatureCache, config: HeadConfig) -> list[str]:
    table = _tables(cache, "images")
    return _table("images", table, [*([] if table else [_GIVEN_IMAGES]), *_target_comments(cache, config)])


def _target_comments(cache: FeatureCache, config: HeadConfig) -> Iterator[str]:
    for name in filter(None, (*config.target, config.group)):
        if (origin := cache.targets[name].origin) != IMAGES:
            yield f"{name} is from {origin}. In a new cache, `featcache label CACHE {origin}` adds it before training."


def _backbone(cache: FeatureCache, name: str) -> list[str]:
    table = _tables(cache, "backbones")
    return _table(f"[{name}]", table, [] if table else [_GIVEN_BACKBONE.format(cache.spec.backbone)])


def _head_options(config: HeadConfig) -> dict[str, Any]:
    config = replace(config, head=head_with_absolute_files(config.head))
    own = {"head_arguments": _arguments(config), "own_loss": config.own_loss}
    seeds = {"seed": config.seed, "val_seed": config.val_seed}
    given = {name: value for name, value in own.items() if value}
    return {"head": config.head, **non_default_options(config), **seeds, **given}


def _arguments(config: HeadConfig) -> object:
    """The arguments of your own head: by name, or as the record stores them if one is None, which TOML cannot hold."""
    assert isinstance(config.head_arguments, tuple)
    if any("null" in text for _, text in config.head_arguments):
        return [list(pair) for pair in config.head_arguments]
    return decode_arguments(config.head_arguments)


def _head_comments(config: HeadConfig) -> list[str]:
    return [_OWN_HEAD] * config.architecture.own + [_OWN_LOSS] * (config.own_loss is not None)


def _table(name: str, values: Mapping[str, Any], comments: Sequence[str] = ()) -> list[str]:
    """The lines of a table; without values only its comments."""
    lines = [f"# {message_line(comment)}" for comment in comments]
    if not values:
        return ["", *lines] if lines else []
    # In an array of tables, each table is written alone, because a short array would become one line.
    text = f"[{name}]\n{tomli_w.dumps(values)}" if name.startswith("[") else tomli_w.dumps({name: values})
    return ["", *lines, text.rstrip()]
