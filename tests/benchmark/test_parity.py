"""Cached training equals frozen end-to-end training: the same losses in every step; any mistake in either is detected.

Tolerance: 2e-4 on losses of about 2.3, over 9 steps; features stored in float32, computed in fp32, no augmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import (
    CONFIG,
    CPU,
    TOLERANCE,
    Case,
    EndToEndSetup,
    end_to_end,
    in_another_order,
    in_train_mode,
    plain_of,
    request,
    torchvisions,
    train_cached,
    with_other_pooling,
    without_normalisation,
    write_weights,
)

from featcache.benchmark.end_to_end import NotebookNetwork, Trained, TunedForward, cut_samples, parts_of_cache, train
from featcache.benchmark.ways import image_parts
from featcache.cache.reader import FeatureCache
from featcache.extraction.execution import Execution
from featcache.extraction.forward import ForwardPass
from featcache.extraction.images import select_samples
from featcache.extraction.pipeline import Pipeline
from featcache.extraction.resolve import resolve
from featcache.runs.fit import fit_head

# Small images, but large enough for several positions to pool.
SIZES = {"resnet18": 64, "vgg16": 64, "inception_v3": 107}


def apart(first: Trained, second: Trained) -> float:
    """The greatest difference of two losses of the same step."""
    return float(np.abs(first.step_losses - second.step_losses).max())


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module", params=SIZES)
def case(request: pytest.FixtureRequest, data_dir: Path) -> Case:
    return make_case(request.param, data_dir)


@pytest.fixture(scope="module")
def resnet(data_dir: Path) -> Case:
    return make_case("resnet18", data_dir)


def make_case(name: str, folder: Path) -> Case:
    path = folder / f"{name}.safetensors"
    weights = path if path.exists() else write_weights(name, SIZES[name], folder)
    return Case(name=name, weights=str(weights), image_size=SIZES[name])


@pytest.fixture(scope="module")
def from_cache(case: Case, data_dir: Path) -> Trained:
    return train_cached(case, data_dir)


# --- the same ----------------------------------------------------------------------------------------------


def test_cached_losses_are_those_of_end_to_end_training(case: Case, from_cache: Trained, data_dir: Path) -> None:
    trained = end_to_end(case, data_dir)
    assert len(trained.step_losses) == 9
    assert apart(trained, from_cache) <= TOLERANCE
    assert [e.val_score for e in trained.history] == [e.val_score for e in from_cache.history]
    assert np.allclose([e.val_loss for e in trained.history], [e.val_loss for e in from_cache.history], atol=TOLERANCE)
    # The heads must learn: equal losses of heads that do not change would prove nothing.
    assert trained.history[-1].train_loss < trained.history[0].train_loss - 0.05


def test_the_notebooks_network_is_torchvisions_own(case: Case) -> None:
    made = NotebookNetwork(plain_of(case))
    images = torch.rand(3, 3, case.image_size, case.image_size)
    with torch.no_grad():
        assert torch.equal(made(images), torchvisions(case)(images))
    assert not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_the_tuned_way_computes_what_the_cache_holds_bit_for_bit(resnet: Case, data_dir: Path) -> None:
    from_cache = train_cached(resnet, data_dir)
    with resolve([request(resnet, data_dir)], Execution(device="cpu"), _Silent()) as (job,):
        program = job.computer.program(job.spec, 16)
        forward = ForwardPass(program=program, dtype="float32", batch_size=16)
        pipeline = Pipeline(source=job.source, backbones=[forward], workers=1)
        parts = image_parts(
            cut_samples(select_samples(job.source, request(resnet, data_dir)), CONFIG),
            TunedForward(pipeline, device=CPU),
            CONFIG,
            classes=job.source.classes,
            stored="float32",
        )
        trained = train(parts, CONFIG)
        pipeline.close()
    assert trained.step_losses.tolist() == from_cache.step_losses.tolist()
    assert np.array_equal(trained.val.outputs, from_cache.val.outputs)


def test_the_recorded_training_is_that_of_train_head(resnet: Case, data_dir: Path, tmp_path: Path) -> None:
    recorded = train_cached(resnet, data_dir)
    (path,) = (data_dir / "features").glob("*resnet18*.h5")
    with FeatureCache.open(path) as cache:
        run = fit_head(cache, CONFIG, runs_dir=tmp_path, device="cpu")
        again = train(parts_of_cache(cache, CONFIG, CPU), CONFIG)
    for name in ("train_loss", "val_loss", "val_score"):
        # One is featcache's engine, the other Lightning's Trainer: only the order of sums differs.
        expected = [getattr(e, name) for e in recorded.history]
        assert [getattr(e, name) for e in run.history()] == pytest.approx(expected, rel=1e-5)
    assert run.training.val.accuracy == recorded.val.score().accuracy
    assert again.step_losses.tolist() == recorded.step_losses.tolist()
    per_epoch = recorded.step_losses.reshape(CONFIG.max_epochs, -1)
    # The last batch of 20 rows is short: losses count by rows.
    assert np.allclose((per_epoch * [8, 8, 4]).sum(axis=1) / 20, [e.train_loss for e in recorded.history], atol=1e-6)


# --- mistakes are detected ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("resnet18", in_train_mode),
        ("resnet18", without_normalisation),
        ("resnet18", in_another_order),
        ("resnet18", with_other_pooling),
        # Its features are a flattened map, and use neither batch norm nor dropout.
        ("vgg16", with_other_pooling),
        ("inception_v3", in_train_mode),
    ],
)
def test_a_mistake_in_end_to_end_training_is_detected(
    name: str, fault: Callable[[EndToEndSetup], EndToEndSetup], data_dir: Path
) -> None:
    case = make_case(name, data_dir)
    assert apart(end_to_end(case, data_dir, fault), train_cached(case, data_dir)) > 10 * TOLERANCE


# --- real images and weights -------------------------------------------------------------------------------


def real(name: str, image_size: int, weights: Path, images: Path) -> Case:
    return Case(name=name, weights=str(weights), image_size=image_size, dataset=images, images=80)


@pytest.mark.slow
def test_real_vgg16_agrees(cifar_zip: Path, vgg_weights: Path, data_dir: Path) -> None:
    case = real("vgg16", 48, vgg_weights, cifar_zip)
    assert apart(end_to_end(case, data_dir), train_cached(case, data_dir)) <= TOLERANCE


@pytest.mark.slow
def test_real_inception_agrees(cifar_zip: Path, inception_weights: Path, data_dir: Path) -> None:
    case = real("inception_v3", 75, inception_weights, cifar_zip)
    assert apart(end_to_end(case, data_dir), train_cached(case, data_dir)) <= TOLERANCE


class _Silent:
    def info(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None: ...
