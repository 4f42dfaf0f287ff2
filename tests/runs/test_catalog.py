"""Finding runs by name: `latest` and `best`, without NumPy and torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from head_caches import blobs, write_cache

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.runs.catalog import find_run
from featcache.runs.fit import train_head
from featcache.runs.run import Run


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return write_cache(tmp_path, {"train": blobs(90, distance=0.6), "test": blobs(30, seed=1, distance=0.6)})


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def train(cache: FeatureCache, runs_dir: Path, head: str = "linear", **options: Any) -> Run:
    return train_head(cache, head, runs_dir=runs_dir, **options)


def weak(cache: FeatureCache, runs_dir: Path, **options: Any) -> Run:
    return train(cache, runs_dir, lr=1e-6, max_epochs=1, **options)


def test_best_is_the_run_with_the_highest_score_on_val(cache: FeatureCache, runs_dir: Path) -> None:
    weak(cache, runs_dir)
    good = train(cache, runs_dir, "ridge")
    last = weak(cache, runs_dir, seed=1)
    assert good.training.val.value > last.training.val.value
    assert find_run(runs_dir, "best") == good.folder
    assert find_run(runs_dir, "latest") == last.folder


def test_of_equal_scores_the_lower_loss_is_best(cache: FeatureCache, runs_dir: Path) -> None:
    first, second = train(cache, runs_dir, "ridge"), train(cache, runs_dir, "ridge")
    values = json.loads((first.folder / "metrics.json").read_text())
    (first.folder / "metrics.json").write_text(json.dumps(values | {"val": values["val"] | {"loss": 1e-9}}))
    assert find_run(runs_dir, "best") == first.folder
    (first.folder / "metrics.json").write_text(json.dumps(values))
    assert find_run(runs_dir, "best") == second.folder


@pytest.mark.parametrize("options", [{"val_seed": 1}, {"val_fraction": 0.5}])
def test_a_run_with_other_val_images_is_never_best(
    cache: FeatureCache, runs_dir: Path, options: dict[str, Any]
) -> None:
    train(cache, runs_dir, "ridge")
    last = weak(cache, runs_dir, **options)
    assert find_run(runs_dir, "best") == last.folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "predictions_val.npz").unlink(),
        lambda folder: (folder / "metrics.json").write_text("[" * 100_000),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: (folder / "metrics.json").write_text('{"val": {"loss": "x", "accuracy": 1}}'),
    ],
    ids=["no predictions", "deep", "empty", "text"],
)
def test_a_damaged_run_is_skipped(cache: FeatureCache, runs_dir: Path, damage: Any) -> None:
    broken, good = train(cache, runs_dir, "ridge"), weak(cache, runs_dir)
    damage(broken.folder)
    assert find_run(runs_dir, "best") == good.folder


def test_a_latest_run_without_a_val_score_is_an_error(cache: FeatureCache, runs_dir: Path) -> None:
    train(cache, runs_dir, "ridge")
    (weak(cache, runs_dir).folder / "predictions_val.npz").write_bytes(b"no archive")
    with pytest.raises(HeadError, match="has no readable val score") as raised:
        find_run(runs_dir, "best")
    assert "give the name of a run" in str(raised.value.hint)


def test_without_runs_there_is_no_best(runs_dir: Path) -> None:
    with pytest.raises(HeadError, match="there are no runs"):
        find_run(runs_dir, "best")


def test_best_is_found_without_numpy_and_torch(cache: FeatureCache, runs_dir: Path) -> None:
    good = train(cache, runs_dir, "ridge")
    code = (
        "import sys; from pathlib import Path; from featcache.runs.catalog import find_run\n"
        "print(find_run(Path(sys.argv[1]), 'best'))\n"
        "assert not {'numpy', 'torch', 'h5py'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(runs_dir)], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == str(good.folder)
