"""Every run stores a file, and running that file gives the same head again."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_files import DIGITS, write_experiment
from own_experiment_heads import Wide, narrow, smooth_loss
from PIL import Image
from typer.testing import CliRunner

import featcache
from featcache.backbones.transforms import Transform
from featcache.cli.app import app
from featcache.errors import HeadError, InvalidOption
from featcache.report import WrittenReport
from featcache.runs.catalog import run_folders
from featcache.runs.run import Run

FILE = "experiment.toml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the default folders of data and runs in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take longer than these trainings, and are tested with `featcache run`."""
    page = WrittenReport(path=Path("page"), nbytes=0, runs=1, images=0, pictures=0, files=(), notes=())
    monkeypatch.setattr("featcache.report.write_report", lambda *_, **__: page, raising=False)


def call(*words: str) -> list[Run]:
    """The runs that a command of featcache has written."""
    before = run_folders(Path("runs"))
    result = CliRunner().invoke(app, [*words, "--quiet"], prog_name="featcache")
    assert result.exit_code == 0, result.output
    return [Run.load(folder) for folder in run_folders(Path("runs")) if folder not in before]


def digits(backbone: Any = "pixels", **options: Any) -> Any:
    return featcache.extract("digits", backbone, limit=80, progress=False, **options)


def train(cache: Any, head: Any = "mlp:8", **options: Any) -> Run:
    return featcache.train_head(cache, head, progress=False, **{"max_epochs": 4, "threads": 1} | options)


def solve(cache: Any, head: str = "ridge", **options: Any) -> Run:
    return featcache.train_head(cache, head, progress=False, **options)


def repeat(run: Run, **folders: Any) -> Run:
    """The run that its experiment file gives."""
    done = featcache.run_experiment(run.folder / FILE, progress=False, **folders)
    assert done.run is not None
    return done.run


def require_equal(first: Run, second: Run) -> None:
    """The same options, metrics and predictions, to the bit."""
    assert first.folder != second.folder
    assert first.config == second.config
    assert (first.training.val, first.training.test) == (second.training.val, second.training.test)
    for part in ["val", "test"] if first.training.test is not None else ["val"]:
        this, that = first.predictions(part), second.predictions(part)
        assert this.ids == that.ids
        np.testing.assert_array_equal(this.outputs, that.outputs)
    assert first.weights_sha256 == second.weights_sha256


def with_everything() -> Run:
    options = {"dropout": 0.3, "mixup": 0.2, "noise": 0.1, "optimizer": "sgd", "momentum": 0.8, "schedule": "cosine"}
    return train(digits(), lr=1e-2, val_fraction=0.3, val_seed=5, val_cut="random", seed=11, **options)


def on_views() -> Run:
    return train(digits(views=3, view_seed=4, view_flip=False), train_views="all")


def on_two_layers() -> Run:
    cache = digits("resnet18", layers=["layer1", "layer2"], pool="avg", weights="random:2", image_size=32)
    return train(cache, layers=["layer2", "layer1"])


def on_joined_caches() -> Run:
    return solve(digits(), beside=[digits(image_size=4).path])


def by_lightning() -> Run:
    return train(digits(), trainer="lightning")


def on_columns_of_a_table() -> Run:
    rows = ["path,label,patient_id,size,tag_red,tag_round"]
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{number:02}.png")
        rows.append(f"{number:02}.png,{'ab'[number % 2]},{number // 3},{number / 60},{number % 2},{number % 3 // 2}")
    Path("cells.csv").write_text("\n".join(rows))
    options: dict[str, Any] = {"columns": ["patient_id", "tags=tag_*"], "kinds": ["patient_id=groups"]}
    cache = featcache.extract("cells.csv", "pixels", image_size=8, progress=False, **options)
    return solve(cache, target="tags", group="patient_id")


def from_a_sweep() -> Run:
    digits()
    (run,) = call("sweep", "digits", "--head", "mlp:8", "--grid", "dropout=0.1,0.2,0.3", "--max-epochs", "3")
    return run


def from_folds() -> Run:
    digits()
    (run,) = call("sweep", "digits", "--grid", "head=ridge,centroid", "--folds", "2")
    return run


def from_few_shots() -> Run:
    digits()
    (run,) = call("sweep", "digits", "--grid", "head=ridge,knn", "--shots", "2,4", "--draws", "3", "--seed", "7")
    assert "draw" in " ".join(run.training.notes)
    return run


def of_an_experiment() -> Run:
    text = f"{DIGITS}[grid]\nhead = ['ridge', 'knn']\n[sweep]\nseeds = 2"
    done = featcache.run_experiment(write_experiment(Path(), text), progress=False)
    assert done.run is not None
    return done.run


@pytest.mark.parametrize(
    "make",
    [
        with_everything,
        on_joined_caches,
        by_lightning,
        from_a_sweep,
        from_folds,
        from_few_shots,
        of_an_experiment,
    ],
    ids=lambda make: make.__name__,
)
def test_the_file_of_a_run_repeats_it_to_the_bit(make: Callable[[], Run]) -> None:
    run = make()
    require_equal(run, repeat(run))


@pytest.mark.parametrize("make", [on_views, on_two_layers, on_columns_of_a_table], ids=lambda make: make.__name__)
def test_the_file_repeats_a_run_also_where_nothing_is_cached(make: Callable[[], Run]) -> None:
    run = make()
    again = repeat(run, data_dir="elsewhere")
    assert again.features.fingerprint == run.features.fingerprint
    require_equal(run, again)


def test_a_recipe_of_the_notebook_is_repeated() -> None:
    runs = call("reproduce", "mlp", "mlp-dropout", "--dataset", "digits", "--limit", "40")
    for run in runs:
        require_equal(run, repeat(run))
    assert {run.config.dropout for run in runs} == {0.0, 0.5}


def test_the_file_is_short_and_its_paths_are_absolute(here: Path) -> None:
    for name in "ab":
        (here / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng([number, ord(name)]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "photos" / name / f"{number}.png")
    cache = featcache.extract("photos", "pixels", image_size=8, progress=False)
    text = (train(cache, "linear").folder / FILE).read_text()
    tables = tomllib.loads(text)
    assert tables.pop("expected")["fingerprints"] == [cache.spec.fingerprint]
    assert tables == {
        "images": {"dataset": str(here / "photos")},
        "backbones": [{"backbone": "pixels", "image_size": 8}],
        "head": {"head": "linear", "max_epochs": 4, "seed": 0, "val_seed": 42},
        "training": {"device": "cpu", "threads": 1},
    }


def test_new_columns_of_the_same_images_are_in_the_file() -> None:
    on_columns_of_a_table()
    cache = featcache.extract("cells.csv", "pixels", image_size=8, columns=["size"], progress=False)
    run = solve(cache, target="size")
    assert tomllib.loads((run.folder / FILE).read_text())["images"]["columns"] == ["size"]
    require_equal(run, repeat(run, data_dir="elsewhere"))


def test_images_that_were_skipped_are_skipped_again(here: Path) -> None:
    text = (
        DIGITS.replace('"digits"', '"photos"').replace("limit = 80", "").replace("pixels", 'pixels"\nimage_size = 8 #')
    )
    for name in "ab":
        (here / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng([number, ord(name)]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "photos" / name / f"{number}.png")
    (here / "photos" / "a" / "broken.png").write_bytes(b"no image")
    file = write_experiment(here, f"{text}\n[extract]\non_error = 'skip'\n[head]\nhead = 'ridge'")
    done = featcache.run_experiment(file, progress=False)
    assert done.run is not None and len(done.caches[0].skipped) == 1
    require_equal(done.run, repeat(done.run, data_dir="elsewhere"))


# --- what no file can hold ---------------------------------------------------------------------------------


def test_images_and_backbones_from_python_are_stated_and_running_the_file_is_an_error() -> None:
    from torch import nn

    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    own = featcache.from_module(nn.Flatten(), name="mine", transform=Transform(image_size=4))
    given = featcache.extract(pixels, "pixels", labels=[*"ab"] * 15, image_size=8, progress=False)
    for cache, comment, message in (
        (given, "# The images were given from Python", r"expected \[images\] with dataset"),
        (digits(own), "# The backbone mine was given from Python", r"expected \[\[backbones\]\], got none"),
    ):
        run = solve(cache)
        assert comment in (run.folder / FILE).read_text()
        with pytest.raises(InvalidOption, match=message):
            repeat(run)


@pytest.mark.parametrize("arguments", [{"width": 3}, {"width": 3, "name": None}], ids=["plain", "null"])
def test_the_arguments_of_your_own_head_are_in_the_file(arguments: dict[str, Any]) -> None:
    run = train(digits(), Wide, head_arguments=arguments)
    assert "# The head is your own." in (run.folder / FILE).read_text()
    require_equal(run, repeat(run))


_ELSEWHERE = """
import sys
import featcache

for file in sys.argv[1:]:
    try:
        print(featcache.run_experiment(file, progress=False).run.weights_sha256)
    except featcache.FeatcacheError as error:
        print(error.message, "|", error.hint)
"""


def test_in_another_process_an_own_class_is_found_and_a_function_is_an_error() -> None:
    cache = digits()
    runs = [train(cache, Wide), train(cache, narrow), train(cache, loss=smooth_loss)]
    assert "# The loss is your own function." in (runs[2].folder / FILE).read_text()
    require_equal(runs[1], repeat(runs[1]))
    require_equal(runs[2], repeat(runs[2]))
    paths = os.pathsep.join((str(Path(__file__).parent), *sys.path))
    words = [sys.executable, "-c", _ELSEWHERE, *(str(run.folder / FILE) for run in runs)]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    lines = subprocess.run(words, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()
    assert lines[0] == runs[0].weights_sha256
    assert "is not a subclass of nn.Module" in lines[1] and "| pass its factory" in lines[1]
    assert "is not known here" in lines[2] and "| pass it: loss=smooth_loss" in lines[2]


def test_a_trainer_of_your_own_is_stated() -> None:
    import pytorch_lightning as pl

    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    text = (train(digits(), "linear", trainer=trainer).folder / FILE).read_text()
    assert "# A Trainer object was given from Python" in text
    assert tomllib.loads(text)["training"]["trainer"] == "lightning"


def test_a_target_from_a_table_is_stated() -> None:
    with digits() as cache:
        rows = [
            f"{name},{int(label) % 2}"
            for split in cache
            for name, label in zip(cache[split].ids, cache[split].labels, strict=True)
        ]
    Path("odd.csv").write_text("\n".join(["id,odd", *rows]))
    call("label", "digits", "odd.csv", "--kind", "odd=classes")
    run = solve(cache.path, target="odd")
    assert "# odd is from odd.csv." in (run.folder / FILE).read_text()
    require_equal(run, repeat(run))
    with pytest.raises(featcache.FeatcacheError, match="odd"):
        repeat(run, data_dir="elsewhere")


def test_a_path_that_is_no_text_is_an_error_when_the_file_is_read(here: Path) -> None:
    folder = os.fsdecode(os.fsencode(here / "photos") + b"\xff")
    for name in "ab":
        Path(folder, name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, ord(name), 0)).save(Path(folder, name, f"{number}.png"))
    run = solve(featcache.extract(folder, "pixels", image_size=8, progress=False))
    with pytest.raises(InvalidOption, match="is not TOML"):
        featcache.run_experiment(run.folder / FILE)


def test_an_own_head_that_cannot_be_imported_is_an_error() -> None:
    text = f"{DIGITS}[head]\nhead = 'own:no_such_module:Head'\n[training]\nthreads = 1"
    with pytest.raises(HeadError, match="no_such_module"):
        featcache.run_experiment(write_experiment(Path(), text), progress=False)


def test_changed_images_are_a_warning(here: Path) -> None:
    for number in range(24):
        path = here / "set" / ("train", "test")[number % 2] / "ab"[number // 12] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 10, 0, 255 * (number // 12))).save(path)
    run = solve(featcache.extract("set", "pixels", image_size=8, progress=False))
    line = ["run", str(run.folder / FILE), "--data-dir", "other"]
    same = CliRunner().invoke(app, line, prog_name="featcache")
    assert same.exit_code == 0 and "the results will differ" not in same.output
    Image.new("RGB", (8, 8), (1, 2, 3)).save(here / "set" / "train" / "a" / "0.png")
    other = CliRunner().invoke(app, line, prog_name="featcache")
    assert other.exit_code == 0, other.output
    assert "the images are others than when" in " ".join(other.output.split())


def test_changed_labels_are_a_warning(here: Path) -> None:
    (here / "set").mkdir()
    rows = [(f"{number}.png", ("train", "test")[number % 2], "ab"[number // 12]) for number in range(24)]
    for number, (name, _, _) in enumerate(rows):
        Image.new("RGB", (8, 8), (number * 10, 0, 255 * (number // 12))).save(here / "set" / name)
    table = here / "set" / "labels.csv"
    lines = ["file_name,split,label", *map(",".join, rows)]
    table.write_text("\n".join(lines))
    run = solve(featcache.extract(table, "pixels", image_size=8, progress=False))
    line = ["run", str(run.folder / FILE), "--data-dir", "other"]
    same = CliRunner().invoke(app, line, prog_name="featcache")
    assert same.exit_code == 0 and "the results will differ" not in same.output
    table.write_text("\n".join([*lines[:1], lines[1].replace(",a", ",b"), *lines[2:]]))
    other = CliRunner().invoke(app, line, prog_name="featcache")
    assert other.exit_code == 0, other.output
    assert "the labels, other targets or groups are others than when" in " ".join(other.output.split())
