from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from head_caches import LAYER, Blobs, blobs, write_cache

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord, Predictions
from featcache.runs import files as run_files
from featcache.runs.fit import fit_head, train_head
from featcache.runs.run import Run, caches_in_use

FILES = {
    "head.safetensors",
    "config.json",
    "metrics.json",
    "history.csv",
    "predictions_val.npz",
    "predictions_test.npz",
    "experiment.toml",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    splits = {"train": blobs(120), "test": blobs(60, seed=1)}
    return write_cache(tmp_path_factory.mktemp("cache"), splits, provenance={"parameters": 1234})


@pytest.fixture
def run(cache: FeatureCache, tmp_path: Path) -> Run:
    return train_head(cache, "mlp:8", max_epochs=3, runs_dir=tmp_path / "runs")


def test_run_folder_holds_everything_and_nothing_else(run: Run) -> None:
    assert {path.name for path in run.folder.iterdir()} == FILES
    assert [path.name for path in run.folder.parent.iterdir()] == [run.folder.name]


def test_run_is_named_after_time_backbone_and_head(cache: FeatureCache, tmp_path: Path) -> None:
    created = datetime(2026, 11, 24, 6, 3, 56, tzinfo=UTC)
    config = HeadConfig(head="mlp:8,4", max_epochs=1)
    runs = [fit_head(cache, config, runs_dir=tmp_path, created=created) for _ in range(2)]
    assert re.fullmatch(r"20261124T060356Z-toy-mlp-8-4-[0-9a-f]{6}", runs[0].folder.name)
    assert runs[0].folder != runs[1].folder
    assert runs[0].created == "2026-11-24T06:03:56+00:00"


def test_json_has_the_fields_of_the_command(run: Run, cache: FeatureCache) -> None:
    result = json.loads(json.dumps(run.to_json()))
    kept = json.loads((run.folder / "metrics.json").read_text())
    assert set(kept.pop("metrics")) == {"val", "test"}
    assert kept.pop("target") == run.target.to_json()
    assert result == kept
    assert list(result) == [
        *("run", "cache", "head", "parameters", "n", "epochs", "seconds", "val", "last", "test"),
        *("best_epoch", "interrupted", "beside"),
    ]
    assert result["run"] == str(run.folder) and result["cache"] == str(cache.path)
    assert result["head"] == "mlp:8"
    assert result["parameters"] == {"trainable": 16 * 8 + 8 + 8 * 3 + 3, "frozen": 1234}
    assert result["n"] == {"train": 96, "val": 24, "test": 60}
    assert result["epochs"] == 3 and result["seconds"] > 0
    assert set(result["val"]) == set(result["test"]) == set(result["last"]["val"]) == {"accuracy", "loss"}


def test_without_test_split_test_is_null(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": blobs(120)})
    run = train_head(cache, "linear", max_epochs=1, runs_dir=tmp_path / "runs")
    result = run.to_json()
    assert result["test"] is None and result["parameters"]["frozen"] is None
    assert set(result["n"]) == {"train", "val"}
    assert not (run.folder / "predictions_test.npz").exists()
    assert Run.load(run.folder) == run


def test_loaded_run_equals_the_one_returned(run: Run) -> None:
    assert Run.load(run.folder) == run
    assert Run.load(str(run.folder)).features.feature_dim == 16


def test_config_is_enough_to_repeat_the_run(run: Run, cache: FeatureCache, tmp_path: Path) -> None:
    config = json.loads((run.folder / "config.json").read_text())
    with FeatureCache.open(config["features"]["cache"]) as again:
        assert again.spec.fingerprint == config["features"]["fingerprint"]
        assert json.loads(again.spec.to_json()) == config["features"]["spec"]
        repeated = fit_head(again, HeadConfig.from_json(config["options"]), runs_dir=tmp_path)
    assert repeated.weights_sha256 == run.weights_sha256 == config["weights"]["sha256"]
    assert config["target"] == {"kind": "classes", "columns": ["label"], "names": ["ant", "bee", "cow"]}
    assert (config["trainer"], config["logger"]) == ("featcache", None)
    assert config["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in torch.__version__
    assert Run.load(run.folder).features.spec == cache.spec.to_json()


def test_history_is_a_plain_csv(run: Run) -> None:
    with (run.folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "train_loss", "val_loss", "val_accuracy", "seconds", "rate"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["val_loss"]) == run.training.last.loss


def test_predictions_are_those_behind_the_scores(run: Run, cache: FeatureCache) -> None:
    predictions = run.predictions("test")
    assert predictions.ids == cache["test"].ids
    assert predictions.outputs.dtype == np.float32 and predictions.outputs.shape == (60, 3)
    assert predictions.outputs.sum(axis=1) == pytest.approx(np.ones(60), abs=1e-6)
    right = predictions.outputs.argmax(axis=1) == predictions.targets
    assert run.training.test is not None and right.mean() == run.training.test.accuracy
    val = run.predictions("val")
    loss = -np.log(val.outputs[np.arange(24), val.targets]).mean()
    assert loss == pytest.approx(run.training.val.loss, rel=1e-5)
    assert set(val.ids) < set(cache["train"].ids)
    with pytest.raises(HeadError, match="predictions_train"):
        run.predictions("train")


def test_head_is_readable_without_featcache(run: Run) -> None:
    tensors = safetensors.numpy.load_file(run.folder / "head.safetensors")
    shapes = {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {
        "hidden1.weight": ("float32", (8, 16)),
        "hidden1.bias": ("float32", (8,)),
        "output.weight": ("float32", (3, 8)),
        "output.bias": ("float32", (3,)),
    }


def test_predict_gives_probabilities(run: Run, cache: FeatureCache) -> None:
    features = cache["test"].features[:]
    assert np.array_equal(run.predict(features), run.predictions("test").outputs)
    assert run.predict(features, batch_rows=7) == pytest.approx(run.predict(features), abs=1e-6)
    assert run.predict(np.empty((0, 16))).shape == (0, 3)


def test_predict_takes_pixels_as_stored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16), dtype=np.uint8)
    train = Blobs(features=pixels, labels=np.arange(60) % 3)
    cache = write_cache(tmp_path, {"train": train}, scaling={LAYER: (1 / 127.5, -1.0)})
    run = train_head(cache, "linear", max_epochs=1, runs_dir=tmp_path / "runs")
    values = (pixels / 255 - 0.5) / 0.5
    assert run.predict(pixels) == pytest.approx(run.predict(values), abs=1e-6)


@pytest.mark.parametrize("shape", [(5, 17), (16,), (2, 4, 4)])
def test_features_of_another_width_are_refused(run: Run, shape: tuple[int, ...]) -> None:
    with pytest.raises(HeadError, match=rf"\(N, 16\) of toy/avgpool, got {re.escape(str(shape))}"):
        run.predict(np.zeros(shape))


# --- damage -----------------------------------------------------------------------------------------------


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(HeadError, match=message):
        Run.load(folder).head()


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("position", [0, 9, 100, -1])
def test_head_with_a_flipped_bit_is_refused(run: Run, position: int) -> None:
    path = run.folder / "head.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    refuse(run.folder, "expected sha256")


def test_missing_or_truncated_head_is_refused(run: Run) -> None:
    path = run.folder / "head.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    refuse(run.folder, "cannot be used")
    path.unlink()
    refuse(run.folder, r"head\.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"output.weight": np.zeros((3, 9), np.float32)}, r"output\.weight: expected \(3, 8\), got \(3, 9\)"),
        ({"extra": np.zeros(1, np.float32)}, r"extra: expected None, got \(1,\)"),
    ],
)
def test_head_of_another_shape_is_refused(run: Run, tensors: dict[str, np.ndarray[Any, Any]], message: str) -> None:
    path = run.folder / "head.safetensors"
    content = safetensors.numpy.save({**safetensors.numpy.load(path.read_bytes()), **tensors})
    path.write_bytes(content)
    weights = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    edit_json(run.folder / "config.json", weights=weights)
    refuse(run.folder, message)


def test_bytes_that_are_no_safetensors_are_refused(run: Run) -> None:
    (run.folder / "head.safetensors").write_bytes(b"nothing")
    weights = {"file": "head.safetensors", "sha256": hashlib.sha256(b"nothing").hexdigest()}
    edit_json(run.folder / "config.json", weights=weights)
    refuse(run.folder, "cannot be used")


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="no run in"):
        Run.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 99}'])
def test_damaged_records_are_refused(run: Run, name: str, content: str) -> None:
    (run.folder / name).write_text(content)
    with pytest.raises(HeadError):
        Run.load(run.folder)


def test_damaged_history_and_predictions_are_refused(run: Run) -> None:
    (run.folder / "history.csv").write_text("epoch,val_loss\n1,x\n")
    (run.folder / "predictions_val.npz").write_bytes(b"PK")
    with pytest.raises(HeadError, match=r"history\.csv"):
        run.history()
    with pytest.raises(HeadError, match="predictions"):
        run.predictions("val")


def test_caches_in_use_are_those_that_runs_record(run: Run, cache: FeatureCache) -> None:
    runs_dir = run.folder.parent
    reported: list[str] = []
    assert caches_in_use(runs_dir, reported.append) == {cache.path}
    assert caches_in_use(runs_dir / "nowhere", reported.append) == set()
    assert reported == []


@pytest.mark.parametrize("config", ["{}", "[]", "{", "[" * 100_000, '{"features": {}}'])
def test_a_damaged_run_is_reported_and_skipped(run: Run, cache: FeatureCache, config: str) -> None:
    runs_dir, reported = run.folder.parent, list[str]()
    shutil.copytree(run.folder, runs_dir / "damaged")
    (runs_dir / "damaged" / "config.json").write_text(config)
    checkpoint = runs_dir / "begun.unfinished" / "checkpoint.safetensors"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"")
    assert caches_in_use(runs_dir, reported.append) == {cache.path}
    assert len(reported) == 2 and "damaged" in reported[0] and str(checkpoint) in reported[1]


# --- nothing half-written ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_writing_leaves_nothing(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write = run_files.write_durably

    def failing(path: Path, content: bytes) -> None:
        if path.name == "history.csv":
            raise error
        write(path, content)

    monkeypatch.setattr(run_files, "write_durably", failing)
    expected = HeadError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        train_head(cache, "linear", max_epochs=1, runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_runs_dir_that_is_a_file_is_refused_before_training(cache: FeatureCache, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    epochs: list[EpochRecord] = []
    with pytest.raises(HeadError, match="cannot write runs") as raised:
        train_head(cache, "linear", runs_dir=tmp_path / "runs", progress=epochs.append)
    assert epochs == []
    assert "--runs-dir" in str(raised.value.hint)


def test_ids_that_are_no_text_survive(cache: FeatureCache, tmp_path: Path) -> None:
    predictions = Predictions(
        ids=("train/a\udcff.jpg", "train/ä.jpg"),
        targets=np.zeros(2, np.int64),
        outputs=np.ones((2, 1), np.float32),
    )
    run = train_head(cache, "linear", max_epochs=1, runs_dir=tmp_path)
    (run.folder / "predictions_val.npz").write_bytes(run_files.predictions_bytes(predictions))
    assert run.predictions("val").ids == predictions.ids


def test_runs_are_read_without_torch(run: Run) -> None:
    code = (
        "import sys; from featcache.heads.config import HeadConfig; from featcache.runs.run import Run; "
        f"run = Run.load({str(run.folder)!r}); run.history(); run.predictions('val'); "
        "assert not {'torch', 'pytorch_lightning'} & set(sys.modules), 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
