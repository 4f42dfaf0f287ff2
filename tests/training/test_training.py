from __future__ import annotations

import random
import re
import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_caches import LAYER, Blobs, blobs, write_cache
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, InvalidOption
from featcache.heads.architectures import HeadShape, build_head
from featcache.heads.class_metrics import softmax
from featcache.heads.config import HeadConfig
from featcache.heads.metric_records import ClassMetrics
from featcache.heads.metrics import Outcome
from featcache.heads.records import EpochRecord, Progress
from featcache.rows.batches import Batches, epoch_order
from featcache.rows.cuts import cut_cache
from featcache.runs.fit import fit_head, train_head
from featcache.runs.run import Run
from featcache.training.evaluation import evaluate
from featcache.training.stack import PerceptronStack

CLASSES = ("ant", "bee")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Three clouds apart: 120 images in train, 60 in test."""
    splits = {"train": blobs(120), "test": blobs(60, seed=1)}
    return write_cache(tmp_path_factory.mktemp("apart"), splits, provenance={"parameters": 1234})


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Features without information on the labels: a head can only overfit, and val gets worse."""
    return write_cache(tmp_path_factory.mktemp("noise"), {"train": blobs(150, distance=0.0)})


class HeadContract:
    """Tests that every kind of head has to pass."""

    config: HeadConfig
    drawn = True  # whether the head depends on the seed
    trainable: int

    @pytest.fixture
    def run(self, cache: FeatureCache, tmp_path: Path) -> Run:
        return fit_head(cache, self.config, runs_dir=tmp_path)

    def test_features_become_one_logit_per_class(self, run: Run) -> None:
        head = run.head()
        assert not head.training
        assert head(torch.zeros(5, run.features.feature_dim)).shape == (5, 3)
        assert all(parameter.dtype == torch.float32 for parameter in head.parameters())

    def test_trainable_parameters_are_counted(self, run: Run) -> None:
        assert run.to_json()["parameters"] == {"trainable": self.trainable, "frozen": 1234}

    def test_every_epoch_or_candidate_is_reported_and_stored(self, cache: FeatureCache, tmp_path: Path) -> None:
        seen: list[EpochRecord] = []
        run = fit_head(cache, self.config, runs_dir=tmp_path, progress=seen.append)
        kept = run.history()
        assert [(record.epoch, record.candidate, record.val_loss) for record in seen] == [
            (record.epoch, record.candidate, record.val_loss) for record in kept
        ]
        assert len(kept) == run.training.epochs and 1 <= run.training.best_epoch <= len(kept)
        best = kept[run.training.best_epoch - 1]
        assert run.training.val.loss == pytest.approx(best.val_loss, rel=1e-3, abs=1e-6)

    def test_loaded_run_gives_the_same_predictions(self, run: Run, cache: FeatureCache) -> None:
        loaded = Run.load(run.folder)
        assert loaded == run
        assert np.array_equal(loaded.predict(cache["test"].features[:]), run.predictions("test").outputs)

    def test_separate_clouds_are_learned(self, run: Run) -> None:
        assert run.training.val.accuracy > 0.9
        assert run.training.test is not None and run.training.test.accuracy > 0.9

    def test_saved_head_gives_the_logits_of_the_trained_one(self, run: Run, cache: FeatureCache) -> None:
        stored = run.predictions("test")
        features = torch.from_numpy(cache["test"].features[:].astype(np.float32))
        with torch.inference_mode():
            logits = [loaded.head()(features) for loaded in (run, Run.load(run.folder))]
        assert torch.equal(logits[0], logits[1])
        # A solved head predicts without torch, whose sums differ in their last bits.
        assert softmax(logits[0].numpy()) == pytest.approx(stored.outputs, abs=1e-5)
        assert stored.targets.tolist() == cache["test"].labels.tolist()

    def test_same_seed_gives_the_same_numbers(self, run: Run, cache: FeatureCache, tmp_path: Path) -> None:
        torch.manual_seed(4711)
        again = fit_head(cache, self.config, runs_dir=tmp_path)
        assert numbers(again) == numbers(run)
        if not self.config.architecture.solved:
            streamed = fit_head(cache, self.config, runs_dir=tmp_path, resident_bytes=0)
            assert numbers(streamed) == numbers(run)

    def test_another_seed_gives_other_numbers(self, run: Run, cache: FeatureCache, tmp_path: Path) -> None:
        config = HeadConfig.from_json({**self.config.to_json(), "seed": 1})
        same = numbers(fit_head(cache, config, runs_dir=tmp_path)) == numbers(run)
        assert same is not self.drawn


class TestLinear(HeadContract):
    config = HeadConfig(head="linear", lr=0.05, max_epochs=15)
    trainable = 51


class TestPerceptron(HeadContract):
    config = HeadConfig(head="mlp:16", lr=0.01, max_epochs=15, l1=1e-4)
    trainable = 17 * 16 + 17 * 3


class TestDeepPerceptron(HeadContract):
    config = HeadConfig(
        head="mlp:16,8",
        lr=0.02,
        max_epochs=25,
        activation="leaky_relu",
        dropout=0.2,
        weight_decay=1e-4,
        head_batch_size=32,
    )
    trainable = 17 * 16 + 17 * 8 + 9 * 3


class TestLogisticRegression(HeadContract):
    config = HeadConfig(head="logreg")
    drawn = False
    trainable = 51


class TestRidge(HeadContract):
    config = HeadConfig(head="ridge")
    drawn = False
    trainable = 51


class TestCentroid(HeadContract):
    config = HeadConfig(head="centroid")
    drawn = False
    trainable = 51


class TestNeighbours(HeadContract):
    config = HeadConfig(head="knn")
    drawn = False
    trainable = 0


def numbers(run: Run) -> tuple[object, ...]:
    """All results of a training that do not depend on time and folders."""
    # As text, because the train loss of knn is nan, which does not equal itself.
    losses = str([(epoch.train_loss, epoch.val_loss, epoch.val_score) for epoch in run.history()])
    return run.weights_sha256, losses, run.training.val, run.training.last, run.training.test


# --- compared with a plain loop ---------------------------------------------------------------------------


def plain_loop(cache: FeatureCache, config: HeadConfig) -> nn.Module:
    """The same training as a simple loop."""
    train = cut_cache(cache, val_fraction=config.val_fraction, val_seed=config.val_seed).train
    features = torch.from_numpy(cache["train"].layer(LAYER).gather(train.rows).astype(np.float32))
    if config.standardize:
        features = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)
    labels = torch.from_numpy(train.targets)
    weight = None if config.class_weights == "none" else len(labels) / (3 * torch.bincount(labels).float())
    shape = HeadShape(in_features=16, classes=3, hidden=config.architecture.hidden)
    torch.manual_seed(config.seed)
    head = build_head(config.architecture, shape)
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": partial(torch.optim.SGD, momentum=config.momentum),
    }
    optimizer = kinds[config.optimizer](head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    # A cosine from lr at the first epoch to 0 after the last.
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.max_epochs)
    for epoch in range(config.max_epochs):
        order = epoch_order(len(labels), batch_size=config.head_batch_size, row_bytes=32, seed=config.seed, epoch=epoch)
        for chosen in torch.split(order, config.head_batch_size):
            optimizer.zero_grad()
            penalty = sum((parameter.abs().sum() for parameter in head.parameters()), torch.zeros(()))
            loss = config.l1 * penalty + F.cross_entropy(
                head(features[chosen]), labels[chosen], weight=weight, label_smoothing=config.label_smoothing
            )
            torch.autograd.backward(loss)
            optimizer.step()
        if config.schedule == "cosine":
            falling.step()
    return head


@pytest.mark.parametrize(
    "config",
    [
        HeadConfig(head="linear", max_epochs=3),
        HeadConfig(head="mlp:8,4", max_epochs=3, l1=1e-2),
        HeadConfig(head="mlp:8", max_epochs=3, weight_decay=0.1, seed=3, head_batch_size=7),
        HeadConfig(head="mlp:8", max_epochs=3, weight_decay=0.1, optimizer="adamw", schedule="cosine"),
        HeadConfig(head="linear", max_epochs=3, optimizer="sgd", momentum=0.8, weight_decay=0.1, lr=0.01),
        HeadConfig(head="mlp:8", max_epochs=3, label_smoothing=0.2, class_weights="balanced"),
    ],
)
def test_training_equals_a_plain_loop(cache: FeatureCache, tmp_path: Path, config: HeadConfig) -> None:
    # Standardisation has its own test.
    config = replace(config, standardize=False)
    expected = plain_loop(cache, config).state_dict()
    run = fit_head(cache, config, runs_dir=tmp_path)
    assert run.training.best_epoch == 3
    for name, tensor in run.head().state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("resident_bytes", [None, 0])
@pytest.mark.parametrize("head", ["linear", "mlp:8"])
def test_standardised_training_is_folded_into_the_head(tmp_path: Path, head: str, resident_bytes: int | None) -> None:
    plain = blobs(120)
    size, far = np.logspace(-1, 2, 16), np.linspace(-30, 30, 16)
    splits = {"train": Blobs(features=(plain.features * size + far).astype(np.float32), labels=plain.labels)}
    cache = write_cache(tmp_path, splits)
    config = HeadConfig(head=head, max_epochs=3, lr=0.01, standardize=True)
    run = fit_head(cache, config, runs_dir=tmp_path / "runs", resident_bytes=resident_bytes)
    features = torch.from_numpy(splits["train"].features)
    seen = features[cut_cache(cache, val_fraction=0.2, val_seed=42).train.rows]
    trained = plain_loop(cache, config).eval()
    expected = trained((features - seen.mean(dim=0)) / seen.std(dim=0, correction=0)).softmax(dim=1)
    assert run.predict(features.numpy()) == pytest.approx(expected.detach().numpy(), abs=1e-3)
    assert set(run.head().state_dict()) == set(trained.state_dict())
    assert run.training.val.loss == pytest.approx(run.training.last.loss, rel=1e-3)


def test_balanced_weights_raise_the_recall_of_a_rare_class(tmp_path: Path) -> None:
    rows = np.concatenate([np.arange(0, 200), np.arange(200, 215)])
    many = blobs(400, classes=2, distance=0.25)
    train = Blobs(features=many.features[rows], labels=np.sort(many.labels[rows]))
    cache = write_cache(
        tmp_path, {"train": train, "test": blobs(200, classes=2, seed=1, distance=0.25)}, classes=CLASSES
    )
    recalls = [
        measured.recall[1]
        for weights in ("none", "balanced")
        for run in [train_head(cache, "linear", lr=0.05, class_weights=weights, runs_dir=tmp_path / "runs")]
        if isinstance(measured := run.metrics("test"), ClassMetrics)
    ]
    assert recalls[0] is not None and recalls[1] is not None and recalls[1] > recalls[0] + 0.1


def test_l1_makes_weights_small(cache: FeatureCache, tmp_path: Path) -> None:
    norms = []
    for l1 in (0.0, 0.05):
        run = train_head(cache, "linear", l1=l1, lr=0.05, max_epochs=10, patience=10, runs_dir=tmp_path)
        norms.append(sum(float(parameter.detach().abs().sum()) for parameter in run.head().parameters()))
    assert norms[1] < 0.5 * norms[0]


# --- which epoch is kept ----------------------------------------------------------------------------------


def test_training_stops_after_patience_and_keeps_the_best_epoch(noise: FeatureCache, tmp_path: Path) -> None:
    config = HeadConfig(head="mlp:32", lr=0.01, patience=4, min_delta=0.0)
    run = fit_head(noise, config, runs_dir=tmp_path)
    losses = [epoch.val_loss for epoch in run.history()]
    best = int(np.argmin(losses)) + 1
    assert run.training.best_epoch == best
    assert run.training.epochs == len(losses) == best + 4 < 50
    assert run.training.val.loss == pytest.approx(min(losses), rel=1e-6)
    assert run.training.last.loss == losses[-1] > min(losses)
    # A training that ends with the best epoch has the same weights, to the bit.
    until_best = fit_head(noise, replace(config, max_epochs=best), runs_dir=tmp_path)
    assert until_best.training.epochs == best
    assert until_best.weights_sha256 == run.weights_sha256


def test_best_epoch_is_the_lowest_even_within_min_delta(noise: FeatureCache, tmp_path: Path) -> None:
    run = train_head(noise, "linear", lr=1e-5, min_delta=0.5, patience=3, runs_dir=tmp_path)
    assert (run.training.epochs, run.training.best_epoch) == (4, 4)


def test_test_split_never_influences_the_choice(tmp_path: Path) -> None:
    runs = []
    for seed, count in ((1, 60), (2, 9)):
        folder = tmp_path / str(seed)
        test = blobs(count, seed=seed, distance=float(seed))
        cache = write_cache(folder, {"train": blobs(120), "test": test})
        runs.append(train_head(cache, "mlp:8", max_epochs=5, runs_dir=folder))
    assert runs[0].training.test != runs[1].training.test
    assert numbers(runs[0])[:4] == numbers(runs[1])[:4]


def test_test_split_is_read_once_after_the_fit(cache: FeatureCache, tmp_path: Path) -> None:
    evaluated: list[str] = []

    def spy(head: nn.Module, batches: Batches, *rest: Any, **more: Any) -> Outcome:
        evaluated.append(batches.rows.chosen.source)
        return evaluate(head, batches, *rest, **more)

    def no_test_yet(record: EpochRecord) -> None:
        assert evaluated == []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featcache.training.fitting.evaluate", spy)
        patch.setattr("featcache.training.evaluation.evaluate", spy)
        train_head(cache, "linear", max_epochs=2, runs_dir=tmp_path, progress=no_test_yet)
    assert evaluated == ["train", "test"]


def test_images_are_counted_once_whatever_views_they_have(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": blobs(60, views=2)})
    # The default seed leaves no `cow` for val.
    run = train_head(cache, "linear", max_epochs=1, val_seed=1, runs_dir=tmp_path)
    assert run.training.images == {"train": 48, "val": 12}
    assert len(run.predictions("val").ids) == 12


# --- Ctrl-C -----------------------------------------------------------------------------------------------


def interrupt_after(epoch: int, by_signal: bool) -> Progress:
    def progress(record: EpochRecord) -> None:
        if record.epoch == epoch:
            if not by_signal:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)

    return progress


@pytest.mark.parametrize("by_signal", [True, False])
def test_ctrl_c_keeps_the_best_epoch_and_evaluates_it(cache: FeatureCache, tmp_path: Path, by_signal: bool) -> None:
    stopped = train_head(
        cache,
        "mlp:8",
        runs_dir=tmp_path,
        progress=interrupt_after(3, by_signal),
    )
    assert stopped.training.interrupted and stopped.training.epochs == 3
    assert Run.load(stopped.folder).to_json()["interrupted"] is True
    whole = train_head(cache, "mlp:8", runs_dir=tmp_path, max_epochs=3)
    assert not whole.training.interrupted
    assert numbers(stopped) == numbers(whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_within_an_epoch_discards_that_epoch(cache: FeatureCache, tmp_path: Path) -> None:
    steps = 0
    step = PerceptronStack.step

    def interrupting(stack: PerceptronStack, *batch: Any) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 5:
            signal.raise_signal(signal.SIGINT)
        return step(stack, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PerceptronStack, "step", interrupting)
        stopped = train_head(cache, "mlp:8", l1=1e-4, runs_dir=tmp_path)
    # 96 rows are 2 steps an epoch; the fifth is the first of the third.
    assert steps == 5 and stopped.training.epochs == 2 and stopped.training.interrupted
    whole = train_head(cache, "mlp:8", l1=1e-4, max_epochs=2, runs_dir=tmp_path)
    assert numbers(stopped) == numbers(whole)


@pytest.mark.parametrize("where", ["step", "outputs"])
def test_ctrl_c_before_the_first_epoch_leaves_nothing(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PerceptronStack, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_head(cache, "mlp:8", runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- errors and side effects ------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [1e30, 1e37])
def test_diverging_training_names_epoch_and_lr(cache: FeatureCache, tmp_path: Path, lr: float) -> None:
    with pytest.raises(HeadError, match=rf"diverged.*epoch 1 with lr {re.escape(f'{lr:g}')}") as raised:
        train_head(cache, "mlp:8,8", lr=lr, runs_dir=tmp_path)
    assert "--lr" in str(raised.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_divergence_after_finite_epochs_is_an_error_too(cache: FeatureCache, tmp_path: Path) -> None:
    def poison(record: EpochRecord) -> None:
        if record.epoch == 2:
            with torch.no_grad():
                next(iter(stacks[-1].tensors.values())).fill_(float("nan"))

    stacks: list[PerceptronStack] = []
    build = PerceptronStack.__init__

    def remember(self: PerceptronStack, *args: Any) -> None:
        build(self, *args)
        stacks.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PerceptronStack, "__init__", remember)
        with pytest.raises(HeadError, match=r"epoch 3 .*; epoch 2 still had val loss"):
            train_head(cache, "linear", runs_dir=tmp_path, progress=poison)
    assert list(tmp_path.iterdir()) == []


def test_callers_random_state_is_untouched(cache: FeatureCache, tmp_path: Path) -> None:
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    run = train_head(
        cache, "mlp:8", dropout=0.5, batch_norm=True, mixup=0.2, noise=0.1, max_epochs=2, runs_dir=tmp_path
    )
    run.predict(np.zeros((2, 16)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (repr(np.random.get_state()), random.getstate()) == before[1:]


def test_training_prints_nothing(cache: FeatureCache, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_head(cache, "mlp:8", max_epochs=2, runs_dir=tmp_path)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")


def test_head_trains_outside_the_main_thread(cache: FeatureCache, tmp_path: Path) -> None:
    runs: list[Run] = []
    progress = interrupt_after(2, by_signal=False)
    thread = threading.Thread(
        target=lambda: runs.append(train_head(cache, "linear", runs_dir=tmp_path, progress=progress))
    )
    thread.start()
    thread.join()
    assert runs[0].training.epochs == 2 and runs[0].training.interrupted


def test_progress_gets_the_history(cache: FeatureCache, tmp_path: Path) -> None:
    seen: list[EpochRecord] = []
    run = train_head(cache, "linear", max_epochs=3, runs_dir=tmp_path, progress=seen.append)
    assert tuple(seen) == run.history()
    assert [(record.epoch, record.max_epochs) for record in seen] == [(1, 3), (2, 3), (3, 3)]


def test_rows_that_are_left_out_are_reported(tmp_path: Path) -> None:
    train = blobs(60)
    labels = np.where(np.arange(60) % 10 == 0, -1, train.labels)
    cache = write_cache(tmp_path, {"train": Blobs(features=train.features, labels=labels)})
    messages: list[str] = []
    run = fit_head(
        cache,
        HeadConfig(max_epochs=1),
        runs_dir=tmp_path / "runs",
        report=messages.append,
        resident_bytes=0,
    )
    assert messages[0] == "6 of 60 train images are unlabelled and left out" == run.training.notes[0]
    assert "streamed" in messages[1]


@pytest.mark.parametrize("device", ["gpu", "nonsense", "cuda:99", "meta"])
def test_device_that_is_not_there_is_refused(cache: FeatureCache, tmp_path: Path, device: str) -> None:
    with pytest.raises(InvalidOption, match=device):
        train_head(cache, "linear", device=device, runs_dir=tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_nearly_the_numbers_of_the_cpu(cache: FeatureCache, tmp_path: Path) -> None:
    runs = [train_head(cache, "mlp:8", max_epochs=3, device=device, runs_dir=tmp_path) for device in ("cpu", "cuda")]
    assert runs[0].training.val.loss == pytest.approx(runs[1].training.val.loss, rel=1e-3)


def test_cache_may_be_a_path(cache: FeatureCache, tmp_path: Path) -> None:
    by_path = train_head(str(cache.path), "linear", layers=LAYER, max_epochs=1, runs_dir=str(tmp_path))
    opened = train_head(cache, "linear", layers=[LAYER], max_epochs=1, runs_dir=tmp_path)
    assert numbers(by_path) == numbers(opened)


def test_real_handwritten_digits_are_learned(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = (images * 15).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    splits = {
        name: Blobs(features=pixels[rows], labels=labels[rows].astype(np.int64))
        for name, rows in (("train", order[:1400]), ("test", order[1400:]))
    }
    cache = write_cache(tmp_path, splits, classes=tuple("0123456789"), scaling={LAYER: (1 / 127.5, -1.0)})
    run = train_head(cache, "mlp:64", runs_dir=tmp_path)
    assert run.training.test is not None and run.training.test.accuracy > 0.95


def test_small_features_are_learnt_with_the_default_options(tmp_path: Path) -> None:
    """Inception's features are about 0.05: without standardisation, patience ran out before the head had learned."""
    plain = blobs(600, classes=3)
    small = Blobs(features=(0.01 * plain.features).astype(np.float32), labels=plain.labels)
    run = fit_head(write_cache(tmp_path, {"train": small}), HeadConfig(), runs_dir=tmp_path / "runs")
    assert run.training.val.accuracy > 0.9
