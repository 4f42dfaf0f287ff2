"""Batch norm, mixup and noise in training, and the stored head, which has none of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from head_caches import LAYER, blobs, write_cache
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.cache.reader import FeatureCache
from featcache.errors import InvalidOption
from featcache.heads.architectures import HeadShape, build_head, fold_batch_norms, parse_head
from featcache.heads.config import HeadConfig
from featcache.rows.batches import epoch_order
from featcache.rows.cuts import cut_cache
from featcache.runs.fit import fit_head
from featcache.runs.run import Run
from featcache.training.augmentation import StepRandom
from featcache.training.stack import PerceptronStack

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    splits = {"train": blobs(120, distance=1.0), "test": blobs(60, seed=1, distance=1.0)}
    return write_cache(tmp_path_factory.mktemp("augmented"), splits)


def numbers(run: Run) -> tuple[object, ...]:
    return run.weights_sha256, [(epoch.train_loss, epoch.val_loss) for epoch in run.history()], run.training.test


def head_with_norms(hidden: str, seed: int, activation: str = "relu") -> nn.Module:
    """A head whose batch norms have statistics of some batches."""
    torch.manual_seed(seed)
    architecture = parse_head(f"mlp:{hidden}")
    shape = HeadShape(
        in_features=6, classes=3, hidden=architecture.hidden, batch_norm=True, dropout=0.2, activation=activation
    )
    head = build_head(architecture, shape)
    for layer in head.modules():
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    for _ in range(20):
        head(torch.randn(16, 6) * 3 + 1)
    return head.eval()


# --- batch norm -------------------------------------------------------------------------------------------


@given(
    hidden=st.sampled_from(["4", "8,4", "5,4,3"]),
    seed=st.integers(0, 1000),
    activation=st.sampled_from(["relu", "tanh"]),
)
def test_folded_head_gives_the_same_logits(hidden: str, seed: int, activation: str) -> None:
    head = head_with_norms(hidden, seed, activation)
    features = torch.randn(9, 6) * 3
    expected = head(features)
    folded = fold_batch_norms(head)
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in folded.modules())
    torch.testing.assert_close(folded(features), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("standardize", [True, False])
def test_trained_head_is_stored_without_its_norms(cache: FeatureCache, tmp_path: Path, standardize: bool) -> None:
    config = HeadConfig(head="mlp:8,4", batch_norm=True, lr=0.01, max_epochs=5, standardize=standardize)
    run = fit_head(cache, config, runs_dir=tmp_path)
    names = [f"{layer}.{kind}" for layer in ("hidden1", "hidden2", "output") for kind in ("weight", "bias")]
    assert list(run.head().state_dict()) == names
    assert run.training.val.loss == pytest.approx(run.history()[run.training.best_epoch - 1].val_loss, rel=1e-4)
    assert np.array_equal(run.predict(cache["test"].features[:]), run.predictions("test").outputs)
    # A hidden unit has a gain and a shift, and no bias.
    assert run.training.trainable == 16 * 8 + 8 * 4 + 2 * (8 + 4) + 5 * 3


def test_training_with_batch_norm_equals_a_plain_loop(cache: FeatureCache, tmp_path: Path) -> None:
    config = HeadConfig(head="mlp:8", batch_norm=True, max_epochs=3, lr=0.01, standardize=False, head_batch_size=40)
    train = cut_cache(cache, val_fraction=0.2, val_seed=42).train
    features = torch.from_numpy(cache["train"].layer(LAYER).gather(train.rows).astype(np.float32))
    labels = torch.from_numpy(train.targets)
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for epoch in range(3):
        # 96 rows: batches of 40, 40 and 16.
        for chosen in torch.split(epoch_order(96, batch_size=40, row_bytes=32, seed=0, epoch=epoch), 40):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(head(features[chosen]), labels[chosen]))
            optimizer.step()
    with torch.inference_mode():
        expected = head.eval()(features).softmax(dim=1).numpy()
    run = fit_head(cache, config, runs_dir=tmp_path)
    assert run.training.best_epoch == 3
    assert run.predict(features.numpy()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("batch_size", "steps"), [(95, 1), (93, 1), (88, 2), (96, 1), (200, 1)])
def test_last_rows_too_few_to_be_normalised_are_left_out(
    cache: FeatureCache, tmp_path: Path, batch_size: int, steps: int
) -> None:
    """With 96 rows, a last batch of 1 or 3 is too small for batch norm, one of 8 is not."""
    seen: list[int] = []
    step = PerceptronStack.step

    def spy(stack: PerceptronStack, features: Tensor, targets: Tensor, random: StepRandom | None) -> Tensor:
        seen.append(features.shape[1])
        return step(stack, features, targets, random)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PerceptronStack, "step", spy)
        config = HeadConfig(head="mlp:8", batch_norm=True, max_epochs=2, head_batch_size=batch_size)
        fit_head(cache, config, runs_dir=tmp_path)
    assert len(seen) == 2 * steps and min(seen) >= 8


def test_few_rows_are_trained_on_all_the_same(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": blobs(6, classes=2), "val": blobs(6, classes=2)}, classes=("ant", "bee"))
    run = fit_head(cache, HeadConfig(head="mlp:4", batch_norm=True, max_epochs=2), runs_dir=tmp_path / "runs")
    assert run.training.epochs == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "linear", "batch_norm": True}, "batch norm follows hidden layers"),
        ({"batch_norm": True, "head_batch_size": 4}, "--head-batch-size of at least 8 with --batch-norm"),
        ({"batch_norm": 1}, "--batch-norm True or False"),
        ({"mixup": -0.1}, "--mixup"),
        ({"noise": float("nan")}, "--noise"),
        ({"head": "logreg", "mixup": 0.2, "noise": 0.1}, "--mixup, --noise would do nothing"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        HeadConfig.from_json(options)


# --- mixup ------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**31), alpha=st.floats(0.05, 5), rows=st.integers(1, 20))
def test_mixtures_are_of_two_rows_and_their_labels(seed: int, alpha: float, rows: int) -> None:
    labels = torch.arange(rows)
    # The features of a row are its label, one-hot.
    features, mixture = StepRandom([seed], 0, 0, CPU).mix(F.one_hot(labels, rows).float()[None], labels[None], alpha)
    (share,) = mixture.shares.tolist()
    assert 0 <= share <= 1
    expected = share * F.one_hot(labels, rows) + (1 - share) * F.one_hot(mixture.partners[0], rows)
    torch.testing.assert_close(features[0], expected)
    assert sorted(mixture.partners[0].tolist()) == labels.tolist()


def test_shares_are_beta_distributed() -> None:
    batch = torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.int64)
    shares = np.array([float(StepRandom([0], 0, step, CPU).mix(*batch, 0.4)[1].shares) for step in range(4000)])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * 1.8), rel=0.06)


# --- noise ------------------------------------------------------------------------------------------------


def test_noise_has_the_requested_deviation() -> None:
    features = torch.full((1, 2000, 4), 3.0)
    noisy = StepRandom([0], 0, 0, CPU).add_noise(features, 0.5)
    assert float(noisy.mean()) == pytest.approx(3.0, abs=0.03)
    assert float(noisy.std()) == pytest.approx(0.5, rel=0.03)
    assert torch.equal(features, torch.full((1, 2000, 4), 3.0))


def test_noise_is_relative_to_standardised_features(tmp_path: Path) -> None:
    plain = blobs(120)
    size = np.logspace(-2, 2, 16)
    caches = [
        write_cache(tmp_path / name, {"train": replace(plain, features=features.astype(np.float32))})
        for name, features in (("plain", plain.features * 1.0), ("sized", plain.features * size))
    ]
    config = HeadConfig(head="mlp:8", noise=0.3, max_epochs=3)
    losses = [
        [epoch.train_loss for epoch in fit_head(one, config, runs_dir=tmp_path / "runs").history()] for one in caches
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    quiet = fit_head(caches[0], replace(config, noise=0.0), runs_dir=tmp_path / "runs").history()
    assert [epoch.train_loss for epoch in quiet] != pytest.approx(losses[0], rel=1e-3)


def losses(cache: FeatureCache, config: HeadConfig, runs_dir: Path) -> list[float]:
    return [epoch.train_loss for epoch in fit_head(cache, config, runs_dir=runs_dir).history()]


# --- all of them ------------------------------------------------------------------------------------------

OPTIONS = [
    {"batch_norm": True},
    {"mixup": 0.3},
    {"noise": 0.2},
    {"batch_norm": True, "mixup": 0.3, "noise": 0.2, "dropout": 0.2, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["norm", "mixup", "noise", "all"])
def test_same_seed_gives_the_same_numbers_resident_and_streamed(
    cache: FeatureCache, tmp_path: Path, options: dict[str, object]
) -> None:
    config = HeadConfig.from_json({"head": "mlp:8", "lr": 0.01, "max_epochs": 4, **options})
    resident = fit_head(cache, config, runs_dir=tmp_path)
    torch.manual_seed(4711)
    streamed = fit_head(cache, config, runs_dir=tmp_path, resident_bytes=0)
    other = fit_head(cache, replace(config, seed=1), runs_dir=tmp_path)
    assert numbers(resident) == numbers(streamed) != numbers(other)
    assert np.array_equal(resident.predict(cache["test"].features[:]), resident.predictions("test").outputs)
    assert resident.training.val.accuracy > 0.5
