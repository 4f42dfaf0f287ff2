"""`featcache train-head`."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import CLASSES, PIXELS, answer, child, complaint, featcache

from featcache.cli.terminal import Terminal
from featcache.runs.run import Run, caches_in_use
from featcache.training.checkpoints import State, Unfinished

QUICK = ("--head", "linear", "--max-epochs", "2")


def test_the_answer_has_exactly_the_promised_fields_and_three_more(cache: Path, here: Path) -> None:
    output = answer("train-head", *QUICK)
    promised = ["run", "cache", "head", "parameters", "n", "epochs", "seconds", "val", "last", "test"]
    assert list(output) == [*promised, "best_epoch", "interrupted", "beside"]
    assert output["head"] == "linear"
    assert output["parameters"] == {"trainable": 192 * 3 + 3, "frozen": 0}
    assert output["n"] == {"train": 29, "val": 7, "test": 12}
    assert (output["epochs"], output["interrupted"]) == (2, False)
    assert set(output["val"]) == set(output["test"]) == set(output["last"]["val"]) == {"accuracy", "loss"}
    assert Path(output["cache"]) == cache
    assert (here / output["run"] / "head.safetensors").is_file()


@pytest.mark.parametrize(
    "named",
    [
        lambda cache: (str(cache),),
        lambda cache: (str(cache.relative_to(cache.parents[2])),),
        lambda cache: (cache.stem,),
        lambda cache: (cache.stem[:15],),
        lambda cache: ("--backbone", "pixels", "--dataset", "pictures"),
        lambda cache: (cache.stem[:5], "-b", "pixels"),
        lambda cache: ("--layer", "pixels"),
        lambda cache: (),
    ],
    ids=["path", "relative path", "name", "beginning", "filters", "beginning and filter", "layer", "nothing"],
)
def test_every_way_to_name_a_cache_finds_it(cache: Path, named: Callable[[Path], tuple[str, ...]]) -> None:
    assert Path(answer("train-head", *named(cache), *QUICK)["cache"]) == cache


def test_a_person_reads_accuracy_on_val_and_test(cache: Path) -> None:
    stdout = featcache("train-head", *QUICK).stdout
    table = {line.split()[0]: line.split() for line in stdout.splitlines() if line.startswith(("val ", "test "))}
    assert [table[split][-1] for split in ("val", "test")] == ["7", "12"]
    assert all("%" in row for row in table.values())
    assert str(cache.relative_to(Path.cwd())) in stdout and str(cache) not in stdout


def test_the_options_of_the_head_are_kept_in_the_run(cache: Path, here: Path) -> None:
    output = answer("train-head", "--head", "mlp:4", "--activation", "leaky_relu", "--dropout", "0.5", *QUICK[2:])
    assert output["head"] == "mlp:4"
    config = (here / output["run"] / "config.json").read_text()
    assert '"activation": "leaky_relu"' in config
    assert '"dropout": 0.5' in config


def test_the_same_seed_gives_the_same_numbers(cache: Path) -> None:
    first, again, other = (answer("train-head", *QUICK, "--seed", seed) for seed in ("3", "3", "4"))
    assert first["val"] == again["val"] != other["val"]


def test_features_that_may_take_no_memory_are_streamed_to_the_same_head(cache: Path, here: Path) -> None:
    resident, streamed = featcache("train-head", *QUICK), featcache("train-head", *QUICK, "--feature-memory", "0")
    assert "streamed" in streamed.stderr and "streamed" not in resident.stderr
    first, second = sorted((here / "runs").iterdir())
    assert (first / "head.safetensors").read_bytes() == (second / "head.safetensors").read_bytes()


@pytest.mark.parametrize(("head", "trainable"), [("knn", 0), ("centroid", 192 * 3 + 3), ("ridge", 192 * 3 + 3)])
def test_a_head_that_is_solved_answers_like_any_other(cache: Path, head: str, trainable: int) -> None:
    output = answer("train-head", "--head", head)
    assert output["head"] == head
    assert output["parameters"]["trainable"] == trainable
    assert 1 <= output["best_epoch"] <= output["epochs"]
    assert output["val"] == output["last"]["val"]


def test_a_person_reads_what_a_solver_chose(cache: Path) -> None:
    stdout = featcache("train-head", "--head", "ridge").stdout
    assert "alpha=" in stdout and "of 10 candidates" in stdout


def test_an_option_that_would_do_nothing_is_refused(cache: Path) -> None:
    error, hint = complaint("train-head", "--head", "logreg", "--lr", "0.1", expect=2)
    assert "--lr" in error
    assert "linear" in hint
    assert "--feature-memory" in complaint("train-head", "--head", "knn", "--feature-memory", "100", expect=2)[0]


def test_runs_go_into_the_given_folder(cache: Path, here: Path) -> None:
    output = answer("train-head", *QUICK, "--runs-dir", here / "elsewhere")
    assert Path(output["run"]).parent == here / "elsewhere"


def test_training_marks_the_cache_as_used(cache: Path) -> None:
    assert answer("ls")["caches"][0]["used"] is None
    featcache("train-head", *QUICK)
    assert answer("ls")["caches"][0]["used"] is not None


def test_ctrl_c_keeps_the_best_epoch_reports_it_and_ends_with_130(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Terminal, stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training", 2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Terminal, "advance", interrupt)
    output = answer("train-head", "--head", "linear", "--max-epochs", "1000", "--patience", "1000", expect=130)
    assert output["interrupted"] is True
    assert output["epochs"] < 1000
    assert output["test"]["accuracy"] >= 0


# --- caches that are refused -------------------------------------------------------------------------------


def test_without_any_cache_the_command_that_makes_one_is_named() -> None:
    error, hint = complaint("train-head", "--backbone", "vgg16", "--dataset", "cifar10")
    assert "there is no cache in data/features with backbone vgg16, dataset cifar10" in error
    assert "featcache extract --dataset cifar10 --backbone vgg16" in hint


def test_several_candidates_are_listed_and_none_is_guessed(cache: Path) -> None:
    featcache("extract", *PIXELS, "--limit", "6")
    names = {entry["name"] for entry in answer("ls")["caches"]}
    assert len(names) == 2
    for words in ((), ("pictures-",), ("--backbone", "pixels")):
        result = featcache("train-head", *words, *QUICK, expect=1)
        assert "error: 2 caches fit" in result.stderr
        assert all(name in result.stderr for name in names)
        assert "limit 6" in result.stderr and "limit none" in result.stderr
        assert "backbone" not in result.stderr


def test_an_unknown_name_lists_those_there_are(cache: Path) -> None:
    error, hint = complaint("train-head", "pictuers-pixels")
    assert "'pictuers-pixels'" in error
    assert cache.stem in hint


def test_an_option_of_extract_is_wrong_usage_and_names_its_command(cache: Path) -> None:
    error, hint = complaint("train-head", cache.stem, "--limit", "5", expect=2)
    assert "has no option --limit" in error
    assert "it is an option of extract" in hint


def test_a_named_cache_that_contradicts_a_filter_is_refused(cache: Path) -> None:
    error, _ = complaint("train-head", cache.stem, "--backbone", "vgg16")
    assert "does not have backbone vgg16" in error


def test_an_unfinished_cache_is_refused_with_the_command_that_finishes_it(unfinished: Path, here: Path) -> None:
    error, hint = complaint("train-head", "--backbone", "pixels")
    assert "not finished: 16 of 48 rows" in error
    assert f"featcache extract --backbone pixels --dataset {here / 'pictures'} --image-size 8" in hint


def test_an_unfinished_cache_is_refused_by_its_name_too(unfinished: Path) -> None:
    error, hint = complaint("train-head", unfinished.stem)
    assert "not finished: 16 of 48 rows" in error
    assert "featcache extract" in hint


def test_a_damaged_cache_is_refused(damaged: Path) -> None:
    error, hint = complaint("train-head", damaged.stem)
    assert "damaged" in error
    assert "extracting again repairs it" in hint


def test_images_of_one_class_are_no_ground_for_a_head(here: Path) -> None:
    for split in ("train", "test"):
        for name in CLASSES[1:]:
            shutil.rmtree(here / "pictures" / split / name)
    featcache("extract", *PIXELS)
    error, _ = complaint("train-head", *QUICK)
    assert "class" in error


# --- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected", "offered"),
    [
        (("--head", "mpl:64"), "unknown head 'mpl'", "mlp"),
        (("--dropout", "1.5"), "--dropout", ""),
        (("--val-fraction", "0"), "--val-fraction", ""),
        (("--lr", "quick"), "a number such as 1e-3", ""),
        (("--recipe", "mpl"), "unknown recipe 'mpl'", "mlp"),
    ],
)
def test_a_value_that_cannot_be_used_is_wrong_usage(
    cache: Path, words: tuple[str, ...], expected: str, offered: str
) -> None:
    error, hint = complaint("train-head", *words, expect=2)
    assert expected in error
    assert offered in error + hint


@pytest.mark.parametrize(
    ("words", "expected", "offered"),
    [(("--layer", "pixles"), "layer pixles", "extract"), (("--device", "abacus"), "abacus", "auto")],
)
def test_a_value_that_does_not_fit_what_is_there_is_an_error(
    cache: Path, words: tuple[str, ...], expected: str, offered: str
) -> None:
    error, hint = complaint("train-head", *words)
    assert expected in error
    assert offered in error + hint


@pytest.mark.parametrize(
    "words", [("--activation", "rleu"), ("--optimizer", "adamv"), ("--trainer", "keras"), ("--feature-memory", "much")]
)
def test_a_choice_or_type_that_there_is_not_is_wrong_usage(cache: Path, words: tuple[str, ...]) -> None:
    assert words[0] in featcache("train-head", *words, expect=2).stderr


@pytest.mark.parametrize(
    "words", [("--lr", "0.001"), ("--max-epochs", "50"), ("--standardize",), ("--feature-memory", "100")]
)
def test_an_option_that_is_given_counts_also_where_it_is_the_default(cache: Path, words: tuple[str, ...]) -> None:
    assert words[0] in complaint("train-head", "--head", "ridge", *words, expect=2)[0]


def test_a_head_that_is_worse_than_a_constant_is_a_warning_and_kept(cache: Path, here: Path) -> None:
    result = featcache("train-head", "--head", "linear", "--lr", "1e6", "--max-epochs", "3", "--quiet")
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert "equal probabilities for all classes would have 1.099" in warning and "a lower learning rate" in warning
    (run,) = (here / "runs").iterdir()
    assert any("equal probabilities" in note for note in Run.load(run).training.notes)
    assert "warning" not in featcache("train-head", *QUICK).stderr


def test_took_counts_from_the_key_press_and_the_fit_stands_beside_it(cache: Path, here: Path) -> None:
    began = time.monotonic()
    with child("train-head", "--head", "linear", "--max-epochs", "2", cwd=here) as process:
        stdout, _ = process.communicate(timeout=120)
    whole = time.monotonic() - began
    (took, fit) = re.search(r"took +([0-9.]+) s, fit ([0-9.]+) s", stdout).groups()  # type: ignore[union-attr]
    assert float(fit) < float(took) <= whole + 0.1
    # All but the end of the process, and what its parent does.
    assert float(took) > 0.5 * whole


def test_a_runs_folder_that_is_a_file_is_an_error_before_anything_is_trained(cache: Path, here: Path) -> None:
    (here / "runs").write_text("no folder")
    error, hint = complaint("train-head", *QUICK)
    assert "runs" in error
    assert "--runs-dir" in hint


# --- cut off and gone on with ------------------------------------------------------------------------------


def cut_off(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """A training that stops after its third epoch without a word, with a checkpoint after every epoch."""

    class CutOffError(BaseException):
        pass

    def cut(self: Terminal, stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training", 3):
            raise CutOffError

    with monkeypatch.context() as patch, pytest.raises(CutOffError):
        patch.setattr("featcache.training.checkpoints.Unfinished.epoch_ended", _at_once(Unfinished.epoch_ended))
        patch.setattr(Terminal, "advance", cut)
        featcache("train-head", *words)


def _at_once(epoch_ended: Callable[[Unfinished, State], None]) -> Callable[[Unfinished, State], None]:
    def eager(self: Unfinished, state: State) -> None:
        self.every_s = self._due = 0.0
        epoch_ended(self, state)

    return eager


LONG = ("--head", "mlp:8", "--max-epochs", "6", "--patience", "6", "--dropout", "0.2")


@pytest.mark.parametrize("named", ["latest", "last", "name", "path"])
def test_a_training_that_was_cut_off_goes_on(
    cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    cut_off(monkeypatch, *LONG)
    (folder,) = (here / "runs").iterdir()
    name = {"name": folder.name[:-11], "path": str(folder)}.get(named, named)
    output = answer("train-head", "--resume", name)
    whole = answer("train-head", *LONG)
    assert (output["epochs"], output["val"], output["test"]) == (6, whole["val"], whole["test"])
    assert Path(output["run"]).name == folder.name.removesuffix(".unfinished")
    assert not folder.exists()


def test_what_is_resumed_is_reported(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(monkeypatch, *LONG)
    assert "resuming after epoch 3 of at most 6" in featcache("train-head", "--resume", "last").stderr


def test_a_training_goes_on_as_it_was_begun(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(monkeypatch, *LONG)
    result = featcache("train-head", cache.stem, "--resume", "last", "--lr", "0.1", "--with", "that", expect=2)
    assert all(word in result.stderr for word in ("leave out", "--lr", "--with", "cache"))


def test_without_anything_to_resume_there_is_an_error(cache: Path) -> None:
    error, hint = complaint("train-head", "--resume", "last")
    assert "can be resumed" in error and "train-head" in hint


def test_the_caches_of_a_training_that_was_cut_off_are_no_garbage(
    cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(monkeypatch, *LONG)
    assert cache in caches_in_use(here / "runs", pytest.fail)


def test_curves_are_written_for_tensorboard(cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cut_off(monkeypatch, *LONG, "--logger", "tensorboard")
    output = answer("train-head", "--resume", "last")
    events = EventAccumulator(str(here / output["run"]))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["accuracy/val", "loss/train", "loss/val", "rate"]
    history = Run.load(here / output["run"]).history()
    points = [(point.step, point.value) for point in events.Scalars("loss/val")]
    assert points == [(epoch.epoch, pytest.approx(epoch.val_loss)) for epoch in history]


def test_tensorboard_that_is_missing_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    # Lightning looks for the packages once, when it is imported.
    for package in ("TENSORBOARD", "TENSORBOARDX"):
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard._{package}_AVAILABLE", False)
    error, hint = complaint("train-head", *QUICK, "--logger", "tensorboard")
    assert "tensorboard" in error and hint == "pip install 'featcache[tensorboard]'"
    assert list((here / "runs").iterdir()) == []


# --- several caches and layers -----------------------------------------------------------------------------


def test_features_of_two_caches_stand_side_by_side(cache: Path, here: Path) -> None:
    other = (here / answer("extract", *PIXELS[:2], "--image-size", "4", *PIXELS[4:])["cache"]).absolute()
    output = answer("train-head", cache.stem, "--with", other.stem, *QUICK)
    assert (output["cache"], output["beside"]) == (str(cache), [str(other)])
    assert output["parameters"]["trainable"] == (192 + 48) * 3 + 3
    shown = featcache("train-head", cache.stem, "--with", other.stem, *QUICK).stdout
    assert cache.name in shown and other.name in shown


def test_caches_of_other_images_are_not_put_side_by_side(cache: Path) -> None:
    few = Path(answer("extract", *PIXELS, "--limit", "30")["cache"])
    error, hint = complaint("train-head", cache.stem, "--with", few.stem, *QUICK)
    assert "5 train images are missing" in error and "train/" in error
    assert "--limit" in hint


def test_all_layers_are_read_with_layer_all(here: Path) -> None:
    network = ("--backbone", "resnet18", "--weights", "random:0", "--image-size", "32", "--dataset", "pictures")
    featcache("extract", *network, "--layer", "layer1", "--layer", "avgpool", "--pool", "avg")
    error, hint = complaint("train-head", *QUICK)
    assert "2 layers" in error and "--layer all" in hint
    both = answer("train-head", *QUICK, "--layer", "all")
    named = answer("train-head", *QUICK, "--layer", "layer1", "--layer", "avgpool")
    assert both["parameters"]["trainable"] == named["parameters"]["trainable"] == (64 + 512) * 3 + 3


def test_a_layer_may_be_named_with_its_backbone(cache: Path) -> None:
    named = answer("train-head", *QUICK, "--layer", "pixels/pixels")
    assert named["val"] == answer("train-head", *QUICK)["val"]
    assert "pixels" in complaint("train-head", cache.stem, *QUICK, "--layer", "vgg16/pixels")[0]
