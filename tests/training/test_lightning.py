"""Heads with Lightning's Trainer: the same heads as by the engine, checkpoints, callbacks and loggers."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from head_caches import Blobs, blobs, write_cache
from own_heads import Gated
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.cache.reader import FeatureCache
from featcache.cache.targets import Column
from featcache.errors import HeadError, InvalidOption
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord
from featcache.lightning import FeatureDataModule, HeadModule
from featcache.rows.devices import seed_generators
from featcache.runs.fit import train_head
from featcache.runs.run import Run
from featcache.training.by_trainer import quiet_lightning
from featcache.training.fit import fit
from featcache.training.preparation import Prepared, open_prepared, prepare

CPU = torch.device("cpu")
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "label": F.cross_entropy,
    "tags": F.binary_cross_entropy_with_logits,
    "size": F.mse_loss,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def with_targets(rows: Blobs, seed: int) -> Blobs:
    random = np.random.default_rng(seed)
    values = rows.features.astype(np.float64)
    tags = np.stack([rows.labels == 0, values[:, 0] > 0], axis=1).astype(np.int8)
    size = 170 + 10 * values[:, 1] + random.normal(size=len(values))
    return replace(rows, targets={"tags": tags, "size": size})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """160 images in train, of which 128 are left after val; each has a class, several classes and a number."""
    splits = {"train": with_targets(blobs(160), 0), "test": with_targets(blobs(60, seed=1), 1)}
    columns = (Column(name="tags", kind="lists", names=("ant", "right")), Column(name="size", kind="numbers"))
    return write_cache(tmp_path_factory.mktemp("lightning"), splits, columns=columns)


def quiet_trainer(folder: Path, **options: Any) -> pl.Trainer:
    """A plain Trainer; nothing is printed."""
    given: dict[str, Any] = {"logger": False, "enable_checkpointing": False} | options
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **given,
    )


def plain_loop(prepared: Prepared, config: HeadConfig, epochs: int, target: str) -> nn.Module:
    """A head trained by a simple loop, on plain features."""
    train, _ = open_prepared(prepared, config)
    with seed_generators(config.seed, CPU):
        hidden, output = nn.Linear(16, 8), nn.Linear(8, prepared.target.outputs)
    head = nn.Sequential(hidden, nn.ReLU(), output)
    optimizer = torch.optim.Adam(head.parameters(), lr=config.lr)
    values = train.targets.double()
    mean, deviation = values.mean(dim=0), values.std(dim=0, correction=0)
    for epoch in range(epochs):
        for features, targets in train.epoch(epoch):
            wanted = ((targets - mean) / deviation).float() if target == "size" else targets
            optimizer.zero_grad()
            loss: Any = LOSSES[target](head(features), wanted)
            loss.backward()
            optimizer.step()
    if target == "size":
        with torch.no_grad():
            output.weight.mul_(deviation.float()[:, None])
            output.bias.mul_(deviation.float()).add_(mean.float())
    return head


def assert_equal(found: nn.Module, expected: nn.Module, tolerance: float = 1e-5) -> None:
    pairs = zip(found.state_dict().values(), expected.state_dict().values(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# --- the same head -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", LOSSES)
def test_engine_trainer_and_plain_loop_give_the_same_head(cache: FeatureCache, tmp_path: Path, target: str) -> None:
    config = HeadConfig(
        head="mlp:8",
        target=(target,),
        max_epochs=50,
        patience=50,
        head_batch_size=32,
        standardize=False,
        val_fraction=0.2,
    )
    prepared = prepare(cache, config, device=CPU)
    fitted = fit(prepared, config, threads=1)
    epochs = fitted.best_epoch
    assert epochs == 50, "200 steps: val is still falling"
    data = FeatureDataModule(cache, config)
    module = HeadModule.of(data)
    with quiet_lightning():
        quiet_trainer(tmp_path, max_epochs=epochs).fit(module, data)
    expected = plain_loop(prepared, config, epochs, target)
    assert isinstance(fitted.head, nn.Module)
    assert_equal(fitted.head, expected)
    assert_equal(module.plain_head(), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"mixup": 0.3, "noise": 0.2},
        {"dropout": 0.4, "l1": 1e-4, "label_smoothing": 0.1, "class_weights": "balanced"},
        {"batch_norm": True, "head_batch_size": 31, "optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine"},
        {"optimizer": "sgd", "momentum": 0.8, "schedule": "plateau", "patience": 2, "lr": 0.05},
        {"head": Gated, "head_arguments": {"dropout": 0.3}},
        {"target": "tags", "class_weights": "balanced", "mixup": 0.2},
        {"target": "size", "loss": "huber", "noise": 0.1},
    ],
    ids=lambda options: "-".join(options),
)
def test_random_numbers_and_penalties_are_those_of_the_engine(cache: FeatureCache, options: dict[str, Any]) -> None:
    config = HeadConfig.of({"head": "mlp:8", "max_epochs": 6, "head_batch_size": 32, **options})
    prepared = prepare(cache, config, device=CPU)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found, expected = fit(prepared, config, trainer="lightning"), fit(prepared, config, threads=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert (found.best_epoch, len(found.history)) == (expected.best_epoch, len(expected.history))
    for name in ("train_loss", "val_loss", "val_score", "rate"):
        values, by_engine = ([getattr(epoch, name) for epoch in each.history] for each in (found, expected))
        assert values == pytest.approx(by_engine, rel=1e-4, abs=1e-5), name
    assert isinstance(found.head, nn.Module) and isinstance(expected.head, nn.Module)
    assert_equal(found.head, expected.head, 1e-4)


@pytest.mark.parametrize("own", [False, True], ids=["by name", "a Trainer"])
def test_a_run_by_the_trainer_equals_that_of_the_engine(cache: FeatureCache, tmp_path: Path, own: bool) -> None:
    trainer: Any = "lightning"
    if own:
        stopping = EarlyStopping("val_loss", patience=5, min_delta=0.001)
        trainer = quiet_trainer(tmp_path, max_epochs=8, callbacks=[stopping])
    options: dict[str, Any] = {"max_epochs": 8, "runs_dir": tmp_path / "runs"}
    found = train_head(cache, "mlp:8", trainer=trainer, **options)
    expected = train_head(cache, "mlp:8", threads=1, **options)
    assert_equal(found.head(), expected.head())
    assert found.training.best_epoch == expected.training.best_epoch
    if own:
        assert [type(one).__name__ for one in trainer.callbacks][:1] == ["EarlyStopping"], (
            "no callback stays in the Trainer"
        )


def test_a_trainer_determines_the_number_of_epochs(cache: FeatureCache, tmp_path: Path) -> None:
    run = train_head(cache, "linear", trainer=quiet_trainer(tmp_path, max_epochs=3), max_epochs=1, runs_dir=tmp_path)
    assert run.training.epochs == 3


@pytest.mark.parametrize("options", [{"check_val_every_n_epoch": 2}, {"limit_val_batches": 0}], ids=str)
def test_a_trainer_that_does_not_run_val_is_refused(
    cache: FeatureCache, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidOption, match="runs val after every epoch"):
        train_head(cache, "linear", trainer=quiet_trainer(tmp_path, max_epochs=2, **options), runs_dir=tmp_path)


# --- threads, interrupts, errors, warnings -----------------------------------------------------------------


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processor cores")
def test_the_number_of_threads_applies_with_a_trainer_too(cache: FeatureCache, tmp_path: Path) -> None:
    seen: list[int] = []

    def epoch_ended(_: EpochRecord) -> None:
        seen.append(torch.get_num_threads())

    run = train_head(
        cache, "linear", trainer="lightning", threads=2, max_epochs=2, progress=epoch_ended, runs_dir=tmp_path
    )
    assert seen == [2, 2] and torch.get_num_threads() == 1
    assert run.training.threads == 2


def test_ctrl_c_with_the_trainer_keeps_the_best_epoch(cache: FeatureCache, tmp_path: Path) -> None:
    def press(epoch: EpochRecord) -> None:
        if epoch.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    run = train_head(cache, "linear", trainer="lightning", max_epochs=9, progress=press, runs_dir=tmp_path)
    assert run.training.interrupted and run.training.epochs == 2
    assert run.training.test is not None


def test_ctrl_c_before_the_first_epoch_leaves_nothing(cache: FeatureCache, tmp_path: Path) -> None:
    class Pressing(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            signal.raise_signal(signal.SIGINT)

    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[Pressing()])
    with pytest.raises(KeyboardInterrupt):
        train_head(cache, "linear", trainer=trainer, runs_dir=tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_divergence_names_epoch_and_lr(cache: FeatureCache, tmp_path: Path, lr: float) -> None:
    with pytest.raises(HeadError, match=f"diverged: .* in epoch 1 with lr {lr:g}".replace("+", r"\+")):
        train_head(cache, "mlp:8", trainer="lightning", optimizer="sgd", lr=lr, runs_dir=tmp_path)


def test_cluster_job_is_not_taken_for_a_distributed_training(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"NTASKS": "4", "JOB_NAME": "job", "PROCID": "2", "LOCALID": "2", "NODEID": "0", "JOB_ID": "7"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert train_head(cache, "linear", trainer="lightning", max_epochs=1, runs_dir=tmp_path).training.epochs == 1


def test_other_warnings_of_lightning_are_shown() -> None:
    level = logging.getLogger("pytorch_lightning.utilities.rank_zero").level
    with pytest.warns(UserWarning, match="something is wrong"), quiet_lightning():
        pl.utilities.rank_zero_warn("something is wrong")
    assert logging.getLogger("pytorch_lightning.utilities.rank_zero").level == level


# --- modules and data modules ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", LOSSES)
def test_a_checkpoint_can_be_loaded_as_a_module(cache: FeatureCache, tmp_path: Path, target: str) -> None:
    data = FeatureDataModule(cache, "mlp:8", target=target, batch_norm=True)
    module = HeadModule.of(data)
    keeping = ModelCheckpoint(tmp_path / "kept", monitor="val_loss")
    trainer = quiet_trainer(
        tmp_path, max_epochs=2, callbacks=[keeping, EarlyStopping("val_loss")], enable_checkpointing=True
    )
    trainer.fit(module, data)
    again = HeadModule.load_from_checkpoint(keeping.best_model_path)
    assert again.config == data.config and again.target == data.target
    features = torch.from_numpy(cache["test"].features[:5].astype(np.float32))
    with torch.no_grad():
        outputs = again.eval()(features)
    scale = again.scaling.targets
    if scale is not None:
        outputs = outputs * torch.from_numpy(scale.deviation).float() + torch.from_numpy(scale.mean).float()
    torch.testing.assert_close(again.plain_head()(features), outputs, rtol=1e-4, atol=1e-4)
    (found,) = quiet_trainer(tmp_path).test(again, data, verbose=False)
    assert set(found) == {"test_loss", f"test_{again.target.metric}"}


@pytest.mark.filterwarnings("ignore")
def test_a_training_resumes_from_lightnings_checkpoint(cache: FeatureCache, tmp_path: Path) -> None:
    def train(epochs: int, path: Path | None = None) -> tuple[HeadModule, Path]:
        data = FeatureDataModule(cache, "mlp:8", dropout=0.2, noise=0.1)
        module = HeadModule.of(data)
        trainer = quiet_trainer(tmp_path, max_epochs=epochs)
        trainer.fit(module, data, ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module, tmp_path / f"{epochs}.ckpt"

    whole, _ = train(4)
    _, path = train(2)
    resumed, _ = train(4, path)
    assert_equal(resumed.plain_head(), whole.plain_head(), 0.0)


@pytest.mark.filterwarnings("ignore")
def test_the_plain_head_equals_the_module(cache: FeatureCache, tmp_path: Path) -> None:
    data = FeatureDataModule(cache, "mlp:8", batch_norm=True)
    module = HeadModule.of(data)
    quiet_trainer(tmp_path, max_epochs=2, logger=CSVLogger(tmp_path, name="log", version="")).fit(module, data)
    features = torch.from_numpy(cache["test"].features[:5].astype(np.float32))
    with torch.no_grad():
        torch.testing.assert_close(module.plain_head()(features), module.eval()(features), rtol=1e-4, atol=1e-5)
    logged = (tmp_path / "log" / "metrics.csv").read_text().splitlines()
    assert {"train_loss", "val_loss", "val_accuracy"} <= set(logged[0].split(","))


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_can_run_a_part_of_an_epoch(cache: FeatureCache, tmp_path: Path) -> None:
    data = FeatureDataModule(cache, "linear")
    quiet_trainer(tmp_path, fast_dev_run=True).fit(HeadModule.of(data), data)
    trainer = quiet_trainer(tmp_path, max_epochs=1, limit_train_batches=0.5)
    trainer.fit(HeadModule.of(data), data)
    assert trainer.global_step == 1


def test_a_solved_head_is_refused(cache: FeatureCache) -> None:
    with pytest.raises(InvalidOption, match="is solved, not trained by steps"):
        FeatureDataModule(cache, "ridge")


def test_a_training_with_the_trainer_prints_nothing(
    cache: FeatureCache, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    train_head(cache, "linear", trainer="lightning", max_epochs=1, runs_dir=tmp_path)
    assert capfd.readouterr() == ("", "") and caplog.messages == []


def test_a_loaded_run_equals_the_trained_one(cache: FeatureCache, tmp_path: Path) -> None:
    run = train_head(cache, "linear", trainer="lightning", max_epochs=2, runs_dir=tmp_path)
    assert Run.load(run.folder).training == run.training
