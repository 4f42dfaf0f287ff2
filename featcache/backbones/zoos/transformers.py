"""The zoo of transformers: models of the Hugging Face hub, or in a folder with the same files.

    hf:facebook/dinov2-small             the newest commit
    hf:facebook/dinov2-small@REVISION    a branch, a tag or a commit
    hf:./folder                          config.json, preprocessor_config.json and model.safetensors

Only code of the package itself is run, and weights are only read from safetensors. Needs the extra `transformers`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import DownloadError, FeatcacheError, InvalidOption, MissingExtra, UnknownName, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from featcache.backbones.transforms import Transform
    from featcache.backbones.weights import Weights
    from featcache.backbones.zoos import Architecture

_PREFIX = "hf:"
_FORMS = ("hf:ORG/MODEL", "hf:ORG/MODEL@REVISION", "hf:FOLDER")
_ON_THE_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_DESCRIPTIONS = _CONFIG, _PREPROCESSING = "config.json", "preprocessor_config.json"
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")


class TransformersZoo:
    """Vision models of transformers. See `zoos.Zoo`."""

    prefix = _PREFIX

    def names(self) -> Sequence[str]:
        return ()

    def check(self, name: str) -> None:
        if find_spec("transformers") is None:
            raise MissingExtra("a backbone hf:NAME", package="transformers", extra="transformers")
        where = name.removeprefix(_PREFIX)
        if not (where and Path(where).is_dir()) and not _ON_THE_HUB.fullmatch(where):
            raise UnknownName("backbone", name, _FORMS)

    def transform(self, name: str) -> Transform:
        self.check(name)
        from transformers import AutoImageProcessor

        from featcache.backbones.zoos.preprocessing import transform_of

        folder = _read_json(name, _PREPROCESSING)[0]
        with _quiet(), _refusing(name, _PREPROCESSING):
            published = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            return transform_of(published, name)

    def build(self, name: str, image_size: int) -> Architecture:
        self.check(name)
        import torch

        from featcache.backbones.zoos.vision_models import VisionModel, check_size

        config, digest = _config(name)
        with _quiet():
            with torch.device("meta"):
                check_size(VisionModel(config, image_size), image_size)
            return VisionModel(config, image_size).architecture({"config": digest})

    def source_of(self, name: str, weights: str) -> str:
        self.check(name)
        if weights != "default":
            raise UnknownName(f"weights for {name}", weights, ["default", "random"])
        repository = _on_the_hub(name)
        if repository is None:
            return f"file:{_folder(name).resolve()}"
        return f"{_PREFIX}{repository[0]}@{commit_of(*repository)}"

    def weights(self, name: str, weights: str) -> Weights:
        from featcache.backbones.weights import Weights

        source, transform = self.source_of(name, weights), self.transform(name)
        tensors = _convert(name, _folder(name, *_SAFETENSORS))
        return Weights(source=source, tensors=tensors, transform=transform, own_normalization=True)

    def convert(
        self, name: str, tensors: Mapping[str, Tensor], architecture: Architecture, image_size: int
    ) -> Mapping[str, Tensor]:
        # Position embeddings keep their shape, because the models interpolate them in their forward method.
        return _convert(name, tensors)


def _convert(name: str, source: Path | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from featcache.backbones.zoos.vision_models import convert_checkpoint

    with _quiet():
        return convert_checkpoint(_config(name)[0], source)


def _config(name: str) -> tuple[Any, str]:
    """The config of the image network, and the SHA-256 of the canonical JSON of the whole file."""
    from transformers import AutoConfig

    from featcache.backbones.zoos.vision_models import tower

    folder, content = _read_json(name, _CONFIG)
    if "model_type" not in content:
        raise InvalidOption(
            f"{name} is not a model of transformers: its {_CONFIG} has no model_type",
            hint=f"use timm:{content['architecture']}" if "architecture" in content else None,
        )
    with _quiet(), _refusing(name, _CONFIG):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return tower(config), hashlib.sha256(canonical.encode()).hexdigest()


def _read_json(name: str, file: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a model's JSON file, and its content. Raises InvalidOption if the model needs foreign code."""
    folder = _folder(name)
    if not (folder / file).is_file():
        raise InvalidOption(f"{name} has no {file}", hint=f"expected {', '.join(_DESCRIPTIONS)} and safetensors")
    with _refusing(name, file):
        content = dict(json.loads((folder / file).read_text(encoding="utf-8")))
    for field, what in (
        ("auto_map", "its own code, which is never run"),
        ("quantization_config", "rounded weights"),
    ):
        if content.get(field):
            raise InvalidOption(f"{name} has {what} ({field} in {file})")
    return folder, content


@contextmanager
def _refusing(name: str, file: str) -> Iterator[None]:
    try:
        yield
    except FeatcacheError:
        raise
    except Exception as error:
        # The library raises many types of errors for an invalid config.
        raise InvalidOption(f"{name}: its {file} cannot be used: {one_line(error)}") from error


def _folder(name: str, *files: str) -> Path:
    """The folder of a model with its JSON files, and with those of `files` that the model has."""
    repository = _on_the_hub(name)
    if repository is None:
        return Path(name.removeprefix(_PREFIX))
    return _download(repository[0], commit_of(*repository), *_DESCRIPTIONS, *files)


def _on_the_hub(name: str) -> tuple[str, str | None] | None:
    """The repository and the revision of a model on the hub; None for a folder."""
    where = name.removeprefix(_PREFIX)
    match = None if Path(where).is_dir() else _ON_THE_HUB.fullmatch(where)
    return (match[1], match[2]) if match else None


@cache
def commit_of(repository: str, revision: str | None) -> str:
    """The commit of a revision, cached so that all files of a model are of one commit even if its branch moves."""
    # The hub's client stores each commit in a folder with its name.
    return _download(repository, revision, *_DESCRIPTIONS).name


def _download(repository: str, revision: str | None, *files: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        # The hub's client may raise any exception: about networks, proxies, tokens or disks.
        unknown = isinstance(error, RepositoryNotFoundError)
        raise DownloadError(
            f"the model {repository} could not be downloaded: {one_line(error)}",
            hint="check the name; a gated or private model needs its licence accepted, and `hf auth login`"
            if unknown
            else "without a network: hf:FOLDER, a folder with the files of the model",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's messages about unused weights, and its progress bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


ZOO = TransformersZoo()
