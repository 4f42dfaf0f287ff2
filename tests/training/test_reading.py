"""`read_batches`: batches for a plain loop, for scikit-learn and for Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from head_caches import blobs, write_cache
from sklearn.linear_model import SGDClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from featcache import read_batches
from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.heads.config import HeadConfig
from featcache.rows.batches import Batches, ResidentBatches, StreamedBatches
from featcache.rows.cuts import cut_cache
from featcache.runs.fit import fit_head

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return write_cache(tmp_path_factory.mktemp("read"), {"train": blobs(240), "test": blobs(60, seed=1)})


@pytest.fixture(params=[None, 0], ids=["resident", "streamed"])
def train(cache: FeatureCache, request: pytest.FixtureRequest) -> Batches:
    return read_batches(cache.path, batch_size=32, resident_bytes=request.param)


def test_features_are_in_memory_if_they_fit(cache: FeatureCache) -> None:
    assert isinstance(read_batches(cache), ResidentBatches)
    assert isinstance(read_batches(cache, resident_bytes=100), StreamedBatches)


def test_scikit_learn_can_be_trained_on_batches(cache: FeatureCache, train: Batches) -> None:
    classifier = SGDClassifier(random_state=0)
    for epoch in range(5):
        for features, labels in train.epoch(epoch):
            classifier.partial_fit(features.numpy(), labels.numpy(), classes=np.arange(3))
    ((features, labels),) = read_batches(cache, "test").in_order()
    assert classifier.score(features.numpy(), labels.numpy()) > 0.9


def test_a_plain_loop_trains_the_same_head_as_train_head(cache: FeatureCache, train: Batches, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = nn.Linear(train.feature_dim, 3)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for epoch in range(3):
        for features, labels in train.epoch(epoch):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(head(features), labels))
            optimizer.step()
    config = HeadConfig(head="linear", lr=0.01, max_epochs=3, head_batch_size=32, standardize=False)
    trained = fit_head(cache, config, runs_dir=tmp_path).head()
    for parameter, expected in zip(head.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)


def test_lightning_accepts_batches_as_a_loader(train: Batches) -> None:
    seen: list[Tensor] = []

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 3)

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            seen.append(batch[0])
            return F.cross_entropy(self.head(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), train)
    expected = [features for epoch in range(2) for features, _ in train.epoch(epoch)]
    assert len(seen) == len(expected) == 2 * len(train)
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))


def test_each_iteration_is_the_next_epoch(train: Batches) -> None:
    passes = [torch.cat([labels for _, labels in train]) for _ in range(2)]
    expected = [torch.cat([labels for _, labels in train.epoch(epoch)]) for epoch in range(2)]
    assert torch.equal(passes[0], expected[0]) and torch.equal(passes[1], expected[1])
    assert not torch.equal(passes[0], passes[1])


def test_parts_are_those_of_a_training(cache: FeatureCache) -> None:
    cut = cut_cache(cache, val_fraction=0.25, val_seed=7)
    parts = {part: read_batches(cache, part, val_fraction=0.25, val_seed=7) for part in PARTS}
    assert cut.test is not None
    for batches, rows in zip(parts.values(), (cut.train, cut.val, cut.test), strict=True):
        assert batches.targets.tolist() == rows.targets.tolist()


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": blobs(120)})
    with pytest.raises(HeadError, match=r"one of train, val of toy, got 'test'"):
        read_batches(cache, "test")


def test_features_of_several_caches_are_concatenated(cache: FeatureCache, tmp_path: Path) -> None:
    splits = {"train": blobs(240, dim=4, seed=2), "test": blobs(60, dim=4, seed=3)}
    other = write_cache(tmp_path, splits, backbone="other")
    both = read_batches(cache, "test", beside=[other])
    ((features, _),) = both.in_order()
    expected = np.concatenate([cache["test"].features[:], other["test"].features[:]], axis=1)
    assert np.array_equal(features.numpy(), expected.astype(np.float32))
