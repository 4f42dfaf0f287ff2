"""Custom heads and losses: any module, trained by the same engine and stored without code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import own_heads
import pytest
import torch
from head_caches import blobs, write_cache
from own_heads import Failing, Gated, Tied, focal, high_quantile, two_layers
from torch import Tensor, nn

from featcache.cache.reader import FeatureCache
from featcache.cache.targets import Column
from featcache.errors import FeatcacheError, HeadError, InvalidOption
from featcache.heads import own
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord
from featcache.rows.devices import seed_generators
from featcache.runs.fit import fit_head, train_head
from featcache.runs.resuming import resume_head
from featcache.runs.run import Run
from featcache.sweeps.api import sweep
from featcache.training.augmentation import StepRandom
from featcache.training.fit import fit
from featcache.training.preparation import open_prepared, prepare

CPU = torch.device("cpu")
FACTORIES: dict[str, Callable[..., Any]] = {"module": Gated, "tied": Tied, "function": two_layers}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """130 images in train, of which 104 are left after val: with batches of 32, the last one has 8."""
    return write_cache(tmp_path_factory.mktemp("own"), {"train": blobs(130), "test": blobs(60, seed=1)})


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which no custom head or loss was given."""
    monkeypatch.setattr(own, "_GIVEN", {})


def weights(run: Run) -> dict[str, bytes]:
    return {"head": (run.folder / "head.safetensors").read_bytes()}


# --- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [None, focal], ids=["cross-entropy", "own loss"])
@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_a_module_trains_as_in_a_plain_loop(
    cache: FeatureCache, factory: Callable[..., Any], loss: Callable[..., Tensor] | None
) -> None:
    options = {"head": factory, "max_epochs": 6, "patience": 6, "head_batch_size": 32, "standardize": False, "lr": 1e-2}
    config = HeadConfig.of(options | ({} if loss is None else {"loss": loss}) | {"weight_decay": 1e-2, "l1": 1e-4})
    prepared = prepare(cache, config, device=CPU)
    fitted = fit(prepared, config, threads=1)
    train, _ = open_prepared(prepared, config)
    with seed_generators(config.seed, CPU):
        module = factory(16, 3)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.lr, weight_decay=config.weight_decay)
    for epoch in range(fitted.best_epoch):
        for features, targets in train.epoch(epoch):
            value = (loss or nn.functional.cross_entropy)(module(features), targets)
            value = value + config.l1 * sum(parameter.abs().sum() for parameter in trained)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    found = fitted.tensors()
    for name, tensor in module.state_dict().items():
        np.testing.assert_allclose(found[f"head.{name}"], tensor.numpy(), atol=2e-5, err_msg=name)


def test_dropout_inside_a_module_is_a_function_of_the_step(cache: FeatureCache, tmp_path: Path) -> None:
    options: dict[str, Any] = {"head_arguments": {"dropout": 0.5}, "max_epochs": 2, "runs_dir": tmp_path}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train_head(cache, Gated, **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert weights(train_head(cache, Gated, **options)) == weights(first)
    assert weights(train_head(cache, Gated, **options, seed=1)) != weights(first)
    with StepRandom([0], 0, 0, CPU).global_generators():
        inside = torch.rand(3)
    assert not torch.equal(inside, torch.rand(3, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_training_resumes_to_the_same_bits(cache: FeatureCache, tmp_path: Path, optimizer: str) -> None:
    options: dict[str, Any] = {
        "head_arguments": {"dropout": 0.3},
        "max_epochs": 6,
        "patience": 6,
        "optimizer": optimizer,
        "schedule": "cosine",
        "mixup": 0.3,
        "noise": 0.1,
        "loss": focal,
        "threads": 1,
    }
    whole = train_head(cache, Gated, runs_dir=tmp_path / "whole", **options)

    def kill(epoch: EpochRecord) -> None:
        if epoch.epoch == 4:
            raise RuntimeError("killed")

    config = HeadConfig.of({"head": Gated, **{key: value for key, value in options.items() if key != "threads"}})
    with suppress(RuntimeError):
        fit_head(cache, config, runs_dir=tmp_path / "cut", progress=kill, checkpoint_every_s=0, threads=1)
    resumed = resume_head(runs_dir=tmp_path / "cut")
    assert weights(resumed) == weights(whole)
    assert [one.val_loss for one in resumed.history()] == [one.val_loss for one in whole.history()]


def test_buffers_are_stored_even_if_the_module_replaces_them(cache: FeatureCache, tmp_path: Path) -> None:
    run = train_head(cache, Gated, max_epochs=2, head_batch_size=32, runs_dir=tmp_path)
    state = run.head().state_dict()
    assert state["head.seen"].item() == 104 * run.training.best_epoch
    assert state["head.norm.num_batches_tracked"].item() == 4 * run.training.best_epoch


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_last_batch_too_short_for_a_batch_norm_is_left_out(cache: FeatureCache, tmp_path: Path, rows: int) -> None:
    size = (104 - rows) // (2 if rows != 7 else 1)
    run = train_head(cache, Gated, max_epochs=1, head_batch_size=size, runs_dir=tmp_path)
    assert run.head().state_dict()["head.seen"].item() == 104 - 104 % size


def test_the_module_is_wrapped_with_its_standardisation(cache: FeatureCache, tmp_path: Path) -> None:
    run = train_head(cache, two_layers, max_epochs=3, runs_dir=tmp_path)
    state = run.head().state_dict()
    train = cache["train"].features[:].astype(np.float64)
    assert np.abs(state["feature_mean"].numpy() - train.mean(axis=0)).max() < 0.5
    assert torch.equal(state["target_mean"], torch.zeros(3)) and torch.equal(state["target_deviation"], torch.ones(3))
    plain = train_head(cache, two_layers, max_epochs=3, standardize=False, runs_dir=tmp_path).head().state_dict()
    assert torch.equal(plain["feature_mean"], torch.zeros(16)) and torch.equal(plain["feature_factor"], torch.ones(16))


def test_a_custom_loss_chooses_the_epoch_of_a_perceptron_too(cache: FeatureCache, tmp_path: Path) -> None:
    run = train_head(cache, "mlp:8", loss=focal, max_epochs=4, runs_dir=tmp_path)
    losses = [epoch.val_loss for epoch in run.history()]
    assert run.training.best_epoch == 1 + int(np.argmin(losses))
    assert any("own_heads:focal" in note for note in run.training.notes)
    assert sorted(run.head().state_dict()) == ["hidden1.bias", "hidden1.weight", "output.bias", "output.weight"]


def test_a_quantile_is_learned_from_numbers(tmp_path: Path) -> None:
    """The mean squared error rises while a quantile is learned, so only the custom loss can choose the epoch."""
    random = np.random.default_rng(0)
    rows = replace(blobs(600), targets={"weight": random.exponential(size=600)})
    column = Column(name="weight", kind="numbers")
    cache = write_cache(tmp_path, {"train": rows}, columns=(column,))
    config = HeadConfig.of({"head": "linear", "loss": high_quantile, "target": "weight", "lr": 1e-2, "max_epochs": 40})
    fitted = fit(prepare(cache, config, device=CPU), config)
    below = float((fitted.val.targets <= fitted.val.outputs).mean())
    assert 0.8 < below < 0.97
    assert fitted.best_epoch > 5


def test_training_a_module_imports_no_compiler(cache: FeatureCache, tmp_path: Path) -> None:
    script = (
        "import sys; from own_heads import Gated; from featcache.runs.fit import train_head; "
        f"train_head({str(cache.path)!r}, Gated, max_epochs=1, runs_dir={str(tmp_path)!r}); "
        "print([name for name in ('torch._dynamo', 'torchvision', 'pytorch_lightning') if name in sys.modules])"
    )
    assert in_another_process(script).stdout.strip() == "[]"


# --- sweeps ------------------------------------------------------------------------------------------------


def test_a_sweep_ranks_custom_heads_together_with_others(cache: FeatureCache, tmp_path: Path) -> None:
    found = sweep(
        cache,
        grid={"head": [Gated, two_layers, "mlp:8", "ridge"], "lr": [1e-3, 1e-2]},
        head_arguments={"width": 4},
        max_epochs=2,
        seeds=2,
        runs_dir=tmp_path,
    )
    heads = {row.config.head for row in found.rows}
    assert heads == {"own:own_heads:Gated", "own:own_heads:two_layers", "mlp:8", "ridge"}
    assert len(found.rows) == 7
    alone = train_head(cache, Gated, head_arguments={"width": 4}, max_epochs=2, seed=1, lr=1e-2, runs_dir=tmp_path)
    row = next(row for row in found.rows if row.config.head == "own:own_heads:Gated" and row.config.lr == 1e-2)
    beside = next(head.val for head in row.heads if head.seed == 1)
    assert beside is not None and beside.loss == pytest.approx(alone.training.val.loss, rel=1e-5)


def test_two_heads_with_one_name_are_refused(cache: FeatureCache, tmp_path: Path) -> None:
    def factory(width: int) -> Callable[[int, int], nn.Module]:
        def head(in_features: int, outputs: int) -> nn.Module:
            return two_layers(in_features, outputs, width)

        return head

    with pytest.raises(InvalidOption, match="different names"):
        sweep(cache, grid={"head": [factory(2), factory(4)]}, runs_dir=tmp_path)


# --- loading runs ------------------------------------------------------------------------------------------


def in_another_process(script: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(own_heads.__file__).parent), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


def test_a_run_of_a_class_is_read_by_another_process(cache: FeatureCache, tmp_path: Path) -> None:
    run = train_head(cache, Gated, head_arguments={"width": 5}, max_epochs=2, runs_dir=tmp_path)
    features = blobs(4, seed=9).features.astype(np.float32)
    script = (
        "import numpy as np; from featcache import Run; "
        f"print(Run.load({str(run.folder)!r}).predict(np.array({features.tolist()}, np.float32)).tolist())"
    )
    done = in_another_process(script)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), run.predict(features), atol=1e-6)


def test_a_run_holds_no_code(cache: FeatureCache, tmp_path: Path) -> None:
    run = train_head(cache, Gated, head_arguments={"width": 5}, max_epochs=1, runs_dir=tmp_path)
    assert {path.suffix for path in run.folder.iterdir()} <= {".safetensors", ".json", ".csv", ".npz", ".toml"}
    loaded = Run.load(run.folder)
    assert loaded.config == run.config and hash(loaded.config) == hash(run.config)
    assert json.loads((run.folder / "config.json").read_text())["options"]["head_arguments"] == {"width": 5}


@pytest.mark.usefixtures("unknown")
def test_a_function_has_to_be_passed_to_a_loaded_run(cache: FeatureCache, tmp_path: Path) -> None:
    run = train_head(cache, two_layers, max_epochs=1, runs_dir=tmp_path)
    features = blobs(4, seed=9).features.astype(np.float32)
    expected = run.predict(features)
    own._GIVEN.clear()
    with pytest.raises(HeadError, match="a record must not be able to call a function") as caught:
        run.head()
    assert "own=two_layers" in str(caught.value.hint)
    assert np.array_equal(run.predict(features, own=two_layers), expected)
    with pytest.raises(HeadError, match="cannot be used"):
        run.head(own=lambda d, c: two_layers(d, c, 9))


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("path", ["os:system", "json:loads", "subprocess:Popen", "no_such_module:Head", "torch:nope"])
def test_a_record_calls_nothing_but_classes_of_modules(cache: FeatureCache, tmp_path: Path, path: str) -> None:
    run = train_head(cache, Gated, max_epochs=1, runs_dir=tmp_path)
    record = json.loads((run.folder / "config.json").read_text())
    record["options"]["head"] = f"own:{path}"
    record["options"]["head_arguments"] = {"command": "echo"}
    (run.folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(HeadError, match="is not known here"):
        Run.load(run.folder).head()


@pytest.mark.usefixtures("unknown")
def test_a_training_resumes_with_the_given_head_and_loss(cache: FeatureCache, tmp_path: Path) -> None:
    def kill(epoch: EpochRecord) -> None:
        if epoch.epoch == 2:
            raise RuntimeError("killed")

    config = HeadConfig.of({"head": two_layers, "loss": focal, "max_epochs": 3})
    with suppress(RuntimeError):
        fit_head(cache, config, runs_dir=tmp_path, progress=kill, checkpoint_every_s=0)
    own._GIVEN.clear()
    with pytest.raises(HeadError, match="the head own:own_heads:two_layers is not known here"):
        resume_head(runs_dir=tmp_path)
    assert list(tmp_path.iterdir()), "the checkpoint stays, so that the missing head can be given"
    with pytest.raises(HeadError, match="the loss own_heads:focal of this head is not known here"):
        resume_head(runs_dir=tmp_path, head=two_layers)
    assert resume_head(runs_dir=tmp_path, head=two_layers, loss=focal).training.epochs == 3


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "options", "expected"),
    [
        (own_heads.not_a_module, {}, "expected a torch module of the head own_heads:not_a_module, got a list"),
        (own_heads.too_wide, {}, r"outputs float32 \(2, 3\), got float32 \(2, 4\)"),
        (own_heads.raising, {}, "could not be built: ValueError: no such width"),
        (own_heads.in_double, {}, "fails on features float32"),
        (own_heads.frozen, {}, "expected parameters to train"),
        (Failing, {}, "fails on features .* RuntimeError: not today"),
        (Gated, {"head_arguments": {"wide": 3}}, "could not be built: TypeError"),
        (Gated, {"head_arguments": {"width": {1}}}, "head_arguments that JSON can hold"),
        (Gated, {"head_arguments": [3]}, "head_arguments as a mapping"),
        (Gated(16, 3), {}, "expected as custom head a class"),
        (lambda d, c: nn.Linear(d, c), {}, "expected as custom head a class"),
        (Gated, {"activation": "gelu"}, "--activation would do nothing"),
        (Gated, {"dropout": 0.2, "batch_norm": True}, "--dropout, --batch-norm would do nothing"),
        (Gated, {"loss": focal, "class_weights": "balanced"}, "--class-weights would do nothing"),
        ("mlp:8", {"loss": focal, "label_smoothing": 0.1}, "--label-smoothing would do nothing"),
        ("mlp:8", {"head_arguments": {"width": 3}}, "head_arguments apply to custom heads only"),
        ("ridge", {"loss": focal}, "the head ridge is solved"),
        ("linear", {"loss": lambda outputs, targets: outputs.sum()}, "expected as custom loss a function"),
        ("own:nothing", {}, "expected a custom head as own:module:Class"),
    ],
)
def test_invalid_heads_are_refused(
    cache: FeatureCache, tmp_path: Path, head: Any, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(FeatcacheError, match=expected):
        train_head(cache, head, max_epochs=1, runs_dir=tmp_path, **options)


def _vector(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum(dim=1)


def _number(outputs: Tensor, targets: Tensor) -> float:
    return float(outputs.detach().sum())


def _constant(outputs: Tensor, targets: Tensor) -> Tensor:
    return targets.float().mean()


def _raising(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs @ targets


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (_vector, r"a tensor of one number, got shape \(64,\)"),
        (_number, "a tensor of one number, got a float"),
        (_constant, "does not depend on the outputs"),
        (_raising, r"fails on outputs \(64, 3\) and targets \(64,\)"),
    ],
)
def test_invalid_losses_are_refused(
    cache: FeatureCache, tmp_path: Path, loss: Callable[..., Any], expected: str
) -> None:
    with pytest.raises(FeatcacheError, match=expected):
        train_head(cache, Gated, loss=loss, max_epochs=1, runs_dir=tmp_path)


def test_a_factory_is_refused_for_a_head_that_featcache_builds(cache: FeatureCache, tmp_path: Path) -> None:
    run = train_head(cache, "linear", max_epochs=1, runs_dir=tmp_path)
    with pytest.raises(InvalidOption, match="which featcache builds"):
        run.head(own=Gated)
