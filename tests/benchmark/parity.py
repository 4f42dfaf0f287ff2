"""The same small training twice: from a cache, and end to end with plain torchvision, image by image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models, transforms

from featcache.backbones.loading import Plain, plain
from featcache.backbones.options import BackboneOptions
from featcache.backbones.transforms import Transform
from featcache.benchmark.end_to_end import NotebookForward, Trained, cut_samples, notebook_preset, parts_of_cache, train
from featcache.benchmark.ways import image_parts
from featcache.cache.reader import FeatureCache
from featcache.extraction.images import select_samples
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.heads.config import HeadConfig
from featcache.images import open_images

CPU = torch.device("cpu")
# Nine steps, large enough that any difference of features shows in the losses.
CONFIG = HeadConfig(
    head="mlp:16", lr=3e-3, head_batch_size=8, max_epochs=3, patience=3, val_fraction=0.5, standardize=False
)
# Losses are about 2.3. Cached features have batch norms folded and channels last: other roundings, the same function.
TOLERANCE = 2e-4


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its weights, images and their number."""

    name: str
    weights: str
    image_size: int
    dataset: str | Path = "digits"
    images: int = 40


def request(case: Case, data_dir: Path) -> Request:
    """Exact features of the train images."""
    return Request(
        dataset=case.dataset,
        backbone=case.name,
        weights=case.weights,
        image_size=case.image_size,
        precision="fp32",
        dtype="float32",
        runner="eager",
        splits=("train",),
        limit=case.images,
        data_dir=data_dir,
    )


@cache
def train_cached(case: Case, data_dir: Path) -> Trained:
    """Extract, then train on the cache; once for each case."""
    done = extract(request(case, data_dir), Execution(device="cpu"))
    with FeatureCache.open(done.cache) as cache:
        return train(parts_of_cache(cache, CONFIG, CPU), CONFIG)


@cache
def plain_of(case: Case) -> Plain:
    """The network as the notebook's way of the benchmark uses it; read once."""
    options = BackboneOptions(backbone=case.name, weights=case.weights, image_size=case.image_size)
    return plain(options, weights_dir=Path())


@cache
def _torchvisions(case: Case) -> nn.Module:
    # Initial weights that are replaced at once take longer than everything else.
    with torch.device("meta"):
        network = without_classifier(case.name, init_weights=False)
    missing, unknown = network.load_state_dict(load_file(case.weights), strict=False, assign=True)
    assert [name for name in missing if "num_batches_tracked" not in name] == []
    assert [name for name in unknown if not name.startswith(("classifier.", "fc.", "AuxLogits."))] == []
    return network.requires_grad_(False)


def without_classifier(name: str, *, init_weights: bool = True) -> nn.Module:
    """Torchvision's network with initial weights up to the features its classifier is given, in eval mode."""
    arguments = {} if name == "resnet18" else {"init_weights": init_weights}
    arguments |= {"transform_input": False} if name == "inception_v3" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = models.get_model(name, weights=None, **arguments)
    setattr(network, "classifier" if name == "vgg16" else "fc", nn.Identity())
    if name == "inception_v3":
        # The auxiliary classifier is used in train mode only.
        setattr(network, "aux_logits", False)  # noqa: B010 - nn.Module's own attributes are typed as tensors
        setattr(network, "AuxLogits", None)  # noqa: B010
    return network.eval().requires_grad_(False)


def write_weights(name: str, image_size: int, folder: Path) -> Path:
    """Write initial weights whose batch norms have realistic means and deviations, as after a training.

    With the initial statistics, Inception v3's features are about a million.
    """
    network = without_classifier(name).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with open_images("digits", datasets_dir=folder) as source, torch.no_grad():
        payloads = [source.read(sample) for sample in source.samples("train")[:32]]
        preset = notebook_preset(Transform(image_size=image_size))
        network(torch.stack([preset(Image.fromarray(np.asarray(one)).convert("RGB")) for one in payloads]))
    path = folder / f"{name}.safetensors"
    save_file(network.state_dict(), path)
    return path


def torchvisions(case: Case) -> nn.Module:
    """Torchvision's own network in eval mode, without its classifier and without any code of featcache."""
    return copy.deepcopy(_torchvisions(case))


def preset_of(case: Case) -> Callable[[Image.Image], Tensor]:
    """The transform that belongs to the weights, in torchvision's classes."""
    return notebook_preset(plain_of(case).transform)


# --- faults ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EndToEndSetup:
    """The parts of the end-to-end training, so that a test can break one of them."""

    network: nn.Module
    preset: Callable[[Image.Image], Tensor]
    config: HeadConfig


def in_train_mode(setup: EndToEndSetup) -> EndToEndSetup:
    """The frozen network in train mode, as the notebook's trainer left it."""
    setup.network.train()
    return setup


def without_normalisation(setup: EndToEndSetup) -> EndToEndSetup:
    """Without the last step of the transform."""
    assert isinstance(setup.preset, transforms.Compose)
    assert isinstance(setup.preset.transforms[-1], transforms.Normalize)
    return replace(setup, preset=transforms.Compose(setup.preset.transforms[:-1]))


def in_another_order(setup: EndToEndSetup) -> EndToEndSetup:
    """With the batches of another seed."""
    return replace(setup, config=replace(setup.config, seed=setup.config.seed + 1))


def with_other_pooling(setup: EndToEndSetup) -> EndToEndSetup:
    """With the maximum over positions instead of the mean."""
    average = setup.network.avgpool
    assert isinstance(average, nn.AdaptiveAvgPool2d)
    setup.network.avgpool = nn.AdaptiveMaxPool2d(average.output_size)
    return setup


def end_to_end(
    case: Case, data_dir: Path, broken: Callable[[EndToEndSetup], EndToEndSetup] = lambda setup: setup
) -> Trained:
    """Train with the backbone in every step, on the rows that a cache would have."""
    with open_images(case.dataset, datasets_dir=data_dir) as source:
        samples = cut_samples(select_samples(source, request(case, data_dir)), CONFIG)
        network = torchvisions(case)
        with torch.no_grad():
            feature_dim = network(torch.zeros(2, 3, case.image_size, case.image_size)).shape[1]
        setup = broken(EndToEndSetup(network=network, preset=preset_of(case), config=CONFIG))
        forward = NotebookForward(source, setup.network, setup.preset, feature_dim=feature_dim)
        parts = image_parts(samples, forward, setup.config, classes=source.classes, stored="float32")
        return train(parts, CONFIG)
