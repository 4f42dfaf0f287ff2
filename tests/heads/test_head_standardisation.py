"""Mean and standard deviation of train features: of all rows, or of a sample if there are very many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from head_caches import blobs, write_cache
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache.reader import FeatureCache
from featcache.heads import standardisation as standardisation_module
from featcache.heads.config import HeadConfig
from featcache.heads.standardisation import EXACT_ROWS, SAMPLED_ROWS, sample_rows, standardising_notes
from featcache.rows.batches import ResidentBatches, StreamedBatches
from featcache.rows.cuts import cut_cache
from featcache.rows.features import FeatureRows
from featcache.runs.fit import fit_head, train_head
from featcache.runs.run import Run
from featcache.sweeps.api import sweep
from featcache.training.fitting import standardisation

CPU = torch.device("cpu")


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 100 rows are many; the sample has 64 rows, in runs of two neighbours."""
    monkeypatch.setattr(standardisation_module, "EXACT_ROWS", 100)
    monkeypatch.setattr(standardisation_module, "SAMPLED_ROWS", 64)
    monkeypatch.setattr(standardisation_module, "_RUN_ROWS", 2)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return write_cache(tmp_path, {"train": blobs(240), "test": blobs(30, seed=1)})


@pytest.mark.parametrize("rows", [1, 50_000, EXACT_ROWS])
def test_all_rows_are_used_where_they_are_few(rows: int) -> None:
    assert sample_rows(rows) is None
    assert standardising_notes(rows, HeadConfig()) == ()


@given(rows=st.integers(EXACT_ROWS + 1, 200_000_000))
def test_a_sample_is_spread_evenly_and_always_the_same(rows: int) -> None:
    sample = sample_rows(rows)
    assert sample is not None and len(sample) == SAMPLED_ROWS
    assert int(sample[0]) >= 0 and int(sample[-1]) < rows and bool((sample.diff() > 0).all())
    shares = np.bincount((sample.numpy() * 100 // rows), minlength=100) / SAMPLED_ROWS
    assert np.abs(shares - 0.01).max() < 3e-4
    again = sample_rows(rows)
    assert again is not None and torch.equal(sample, again)


def test_a_sample_is_not_periodic() -> None:
    sample = sample_rows(16_000_000)
    assert sample is not None
    # In a dataset with a period of 1,000, the sample has every phase.
    assert len(np.unique(sample.numpy() % 1000)) == 1000


@pytest.mark.usefixtures("small_sample")
def test_a_sample_standardises_nearly_as_all_rows_do(cache: FeatureCache) -> None:
    rows = FeatureRows.of(cache, cut_cache(cache, val_fraction=0.2, val_seed=42).train, ("avgpool",))
    found = [
        standardisation(kind(rows, batch_size=8, seed=0, device=CPU)) for kind in (ResidentBatches, StreamedBatches)
    ]
    assert np.array_equal(found[0].mean, found[1].mean) and np.array_equal(found[0].deviation, found[1].deviation)
    everything = cache["train"].features.gather(rows.chosen.rows).astype(np.float64)
    mean, deviation = everything.mean(axis=0), everything.std(axis=0)
    sample = sample_rows(len(rows))
    assert sample is not None and len(sample) == 64
    assert found[0].mean == pytest.approx(everything[sample.numpy()].mean(axis=0), rel=1e-5, abs=1e-6)
    # With 64 independent rows, errors are about an eighth.
    assert np.abs((found[0].mean - mean) / deviation).max() < 0.3
    assert np.abs(found[0].deviation / deviation - 1).max() < 0.3
    assert not np.allclose(found[0].mean, mean)


@pytest.mark.usefixtures("small_sample")
def test_a_run_records_that_a_sample_was_used(cache: FeatureCache, tmp_path: Path) -> None:
    messages: list[str] = []
    run = train_head(cache, "linear", max_epochs=1, runs_dir=tmp_path / "runs", report=messages.append)
    (note,) = [one for one in messages if "standardised" in one]
    assert "64 of the 192 train rows" in note and "12.5 % of a deviation" in note
    assert note in Run.load(run.folder).training.notes


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize(
    "config", [HeadConfig(head="linear", max_epochs=1, standardize=False), HeadConfig(head="ridge")], ids=str
)
def test_there_is_no_note_where_no_sample_is_used(cache: FeatureCache, tmp_path: Path, config: HeadConfig) -> None:
    messages: list[str] = []
    run = fit_head(cache, config, runs_dir=tmp_path / "runs", report=messages.append)
    assert not any("standardised" in one for one in (*messages, *run.training.notes))


@pytest.mark.usefixtures("small_sample")
def test_a_sweep_reports_the_sample_once_and_the_run_of_its_best_head_records_it(
    cache: FeatureCache, tmp_path: Path
) -> None:
    messages: list[str] = []
    grid = {"lr": [0.01, 0.02]}
    found = sweep(cache, "linear", grid=grid, max_epochs=1, runs_dir=tmp_path / "runs", report=messages.append)
    assert sum("standardised" in one for one in messages) == 1
    assert found.run is not None
    assert any("64 of the 192 train rows" in one for one in Run.load(found.run).training.notes)
