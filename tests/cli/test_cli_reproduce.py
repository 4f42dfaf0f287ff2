"""`featcache reproduce` and `train-head --recipe`."""

from __future__ import annotations

import errno
import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import PIXELS, answer, complaint, featcache

from featcache import Run, files
from featcache.cli.reproduce import weights_by_backbone
from featcache.cli.terminal import Terminal
from featcache.errors import InvalidOption
from featcache.notebook.recipes import recipe
from featcache.sweeps.records import Sweep

ON_PICTURES = ("--dataset", "pictures")
ROW = ["recipe", "val", "last", "test", "epochs", "seconds", "agrees", "seeds"]


# --- the answer --------------------------------------------------------------------------------------------


def test_recipes_run_on_real_images_beside_the_notebooks_numbers(cifar_zip: Path, here: Path) -> None:
    words = ("reproduce", "mlp-dropout", "mlp-best", "--dataset", cifar_zip, "--limit", "200", "--output", "out")
    stdout = featcache(*words).stdout
    rows = {line.split()[0]: line.split() for line in stdout.splitlines() if line.startswith("mlp-")}
    assert list(rows) == ["mlp-dropout", "mlp-best"]
    assert rows["mlp-best"][2:5] == ["52.50", "-", "[1]"] and max(map(len, rows.values())) == 9
    assert "[1] not comparable: 160 train and 40 val images, the notebook had 40,000 train and 10,000 val" in stdout
    output = json.loads((here / "out" / "reproduce.json").read_text())
    assert [row["recipe"] for row in output["rows"]] == list(rows)
    assert [row["agrees"] for row in output["rows"]] == [None, None]
    assert all(0 <= row["test"]["accuracy"] <= 1 for row in output["rows"])
    assert f"{100 * output['rows'][1]['last']['accuracy']:.2f}" == rows["mlp-best"][1]


def test_the_answer_has_exactly_the_promised_fields_and_the_seeds() -> None:
    output = answer("reproduce", "mlp", *ON_PICTURES, "--seeds", "2")
    assert list(output) == ["rows"]
    (row,) = output["rows"]
    assert list(row) == ROW
    assert row["recipe"] == "mlp"
    assert set(row["val"]) == set(row["last"]) == set(row["test"]) == {"accuracy", "loss"}
    assert [one["seed"] for one in row["seeds"]] == [0, 1]
    assert row["seeds"][0]["last"] != row["seeds"][1]["last"]
    assert row["last"]["loss"] == pytest.approx(sum(one["last"]["loss"] for one in row["seeds"]) / 2)
    assert row["agrees"] is None


def test_recipes_with_the_same_features_share_one_cache(here: Path) -> None:
    featcache("reproduce", "mlp", "mlp-leaky", *ON_PICTURES)
    assert len(list((here / "data" / "features").glob("*.h5"))) == 1


def test_recipes_are_one_sweep_and_the_best_head_of_each_is_a_run(here: Path) -> None:
    rows = {row["recipe"]: row for row in answer("reproduce", "mlp", "mlp-leaky", *ON_PICTURES, "--seeds", "3")["rows"]}
    (folder,) = (path.parent for path in (here / "runs").glob("*/sweep.json"))
    found = Sweep.load(folder)
    assert found.stacks and max(found.stacks) > 1
    runs = {row.values["recipe"]: Run.load(row.run or "") for row in found.rows}
    assert set(runs) == {"mlp", "mlp-leaky"} and len(list((here / "runs").iterdir())) == 3
    for name, run in runs.items():
        seeds = {one["seed"]: one for one in rows[name]["seeds"]}
        assert run.config == replace(recipe(name).head, seed=run.config.seed)
        assert run.training.val.accuracy == max(one["val"]["accuracy"] for one in seeds.values())
        for part in ("val", "last", "test"):
            score = getattr(run.training, part)
            assert score.to_json() == pytest.approx(seeds[run.config.seed][part])


def test_a_recipe_gives_the_head_that_train_head_gives(here: Path) -> None:
    (row,) = answer("reproduce", "mlp-leaky", *ON_PICTURES)["rows"]
    alone = answer("train-head", "--recipe", "mlp-leaky", *ON_PICTURES)
    for part, score in (("val", alone["val"]), ("last", alone["last"]["val"]), ("test", alone["test"])):
        assert score == pytest.approx(row[part], rel=1e-4)
    assert alone["epochs"] == row["epochs"]


def test_rows_stand_in_the_order_of_the_arguments() -> None:
    rows = answer("reproduce", "mlp-wide", "mlp-l2", "mlp", *ON_PICTURES)["rows"]
    assert [row["recipe"] for row in rows] == ["mlp-wide", "mlp-l2", "mlp"]


def test_a_recipe_named_twice_runs_once() -> None:
    assert len(answer("reproduce", "mlp", "mlp", *ON_PICTURES)["rows"]) == 1


def test_every_reason_why_a_row_cannot_be_compared_is_a_note_of_its_own() -> None:
    stdout = featcache("reproduce", "mlp", *ON_PICTURES).stdout
    notes = [line for line in stdout.splitlines() if line.startswith("[")]
    assert [note[:3] for note in notes] == ["[1]", "[2]"]
    assert "other classes" in notes[0]
    assert "29 train and 7 val images" in notes[1]


# --- files -------------------------------------------------------------------------------------------------


def test_the_table_is_written_as_markdown_and_json(here: Path) -> None:
    output = answer("reproduce", "mlp", "mlp-l1", *ON_PICTURES, "--output", "deep/out")
    folder = here / "deep" / "out"
    assert sorted(path.name for path in folder.iterdir()) == ["reproduce.json", "reproduce.md"]
    assert json.loads((folder / "reproduce.json").read_text()) == output
    lines = (folder / "reproduce.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {13}
    assert [line.split()[1] for line in table[2:]] == ["mlp", "mlp-l1"]
    assert str(here) not in (folder / "reproduce.md").read_text()


def test_a_table_that_cannot_be_written_leaves_the_old_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    featcache("reproduce", "mlp", *ON_PICTURES, "--output", "out")
    before = (here / "out" / "reproduce.md").read_text()
    replace = files.system.replace

    def full(source: str | Path, target: str | Path) -> None:
        if Path(target).parent.name == "out":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.system, "replace", full)
    error, hint = complaint("reproduce", "mlp-wide", *ON_PICTURES, "--output", "out")
    assert "reproduce.md" in error
    assert "--output" in hint
    assert (here / "out" / "reproduce.md").read_text() == before
    assert len(list((here / "out").iterdir())) == 2


def test_an_output_that_is_a_file_is_an_error_before_anything_is_computed(here: Path) -> None:
    (here / "out").write_text("no folder")
    error, hint = complaint("reproduce", "mlp", *ON_PICTURES, "--output", "out")
    assert "out" in error
    assert "--output" in hint
    assert not (here / "data").exists()


# --- interruption ------------------------------------------------------------------------------------------


def test_ctrl_c_reports_what_is_finished_and_ends_with_130(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Terminal, stage: str, done: int, total: int, **_: object) -> None:
        if stage == "training" and done >= 2 * 2 * 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Terminal, "advance", interrupt)
    monkeypatch.setattr("featcache.training.engine.PROGRESS_EVERY_S", 0.0)
    output = answer("reproduce", "mlp", "mlp-wide", *ON_PICTURES, "--seeds", "3", "--output", "out", expect=130)
    assert [row["recipe"] for row in output["rows"]] == ["mlp", "mlp-wide"]
    assert all(0 < row["epochs"] <= 3 and len(row["seeds"]) == 3 for row in output["rows"])
    assert "interrupted" in (here / "out" / "reproduce.md").read_text()
    assert len(list((here / "runs").glob("*/config.json"))) == 2


# --- what is refused ---------------------------------------------------------------------------------------


def test_an_unknown_recipe_offers_the_nearest() -> None:
    error, hint = complaint("reproduce", "mlp", "vgg-16")
    assert error == "unknown recipe 'vgg-16'"
    assert "vgg16" in hint


def test_missing_weights_show_before_the_first_recipe_is_run(here: Path) -> None:
    error, _ = complaint("reproduce", "mlp", "vgg16", *ON_PICTURES, "--weights", "absent.safetensors")
    assert "absent.safetensors" in error
    assert not list((here / "data").rglob("*.h5"))


def test_as_written_is_refused_for_weights_that_carry_their_own_mean(vgg_weights: Path) -> None:
    error, _ = complaint("reproduce", "vgg16", "--as-written", *ON_PICTURES, "--weights", vgg_weights)
    assert "half contradicts" in error


def test_no_seed_at_all_is_refused() -> None:
    assert "expected --seeds between 1 and 10000" in complaint("reproduce", "mlp", "--seeds", "0", expect=2)[0]


NETWORKS = ("vgg16", "inception_v3")


@pytest.mark.parametrize(
    ("texts", "networks", "expected"),
    [
        ((), NETWORKS, {}),
        (("pypi",), ("vgg16",), {"vgg16": "pypi"}),
        (("a/b=c.pth",), ("vgg16",), {"vgg16": "a/b=c.pth"}),
        (("vgg16=a=b.pth",), NETWORKS, {"vgg16": "a=b.pth"}),
        (("inception_v3=i.pth", "vgg16=random:1"), NETWORKS, {"vgg16": "random:1", "inception_v3": "i.pth"}),
        (("pypi",), ("vgg16", "vgg16"), {"vgg16": "pypi"}),
    ],
)
def test_weights_go_to_the_backbone_they_name_or_to_the_only_one(
    texts: tuple[str, ...], networks: tuple[str, ...], expected: dict[str, str]
) -> None:
    assert weights_by_backbone(texts, networks) == expected


@pytest.mark.parametrize(
    ("texts", "networks", "message", "hint"),
    [
        (("w.pth",), NETWORKS, "for which of vgg16, inception_v3", "--weights vgg16=<source> --weights inception_v3="),
        (("vgg61=w.pth",), NETWORKS, "for vgg16 or inception_v3, got vgg61", "--weights vgg16=w.pth"),
        (("inception_v3=w.pth",), ("vgg16",), "for vgg16, got inception_v3", "vgg16"),
        (("w.pth",), (), "pixels has no weights", "leave --weights out"),
        (("a.pth", "b.pth"), ("vgg16",), "one --weights for vgg16, got a.pth and b.pth", ""),
    ],
)
def test_weights_that_are_nobodys_are_an_error(
    texts: tuple[str, ...], networks: tuple[str, ...], message: str, hint: str
) -> None:
    with pytest.raises(InvalidOption, match=message) as raised:
        weights_by_backbone(texts, networks)
    assert hint in (raised.value.hint or "")


def test_the_command_names_the_backbone_whose_weights_are_missing() -> None:
    error, hint = complaint("reproduce", "--weights", "w.pth")
    assert "vgg16, inception_v3" in error
    assert "inception_v3=<source>" in hint


# --- train-head --recipe -----------------------------------------------------------------------------------


def options_of(run: str) -> dict[str, object]:
    options: dict[str, object] = json.loads(Path(run, "config.json").read_text())["options"]
    return options


def test_a_recipe_fills_in_the_settings_that_are_not_given(cache: Path) -> None:
    words = ("train-head", "--recipe", "mlp-dropout", "--dropout", "0.25", "--max-epochs", "2")
    kept = options_of(answer(*words, cache.stem)["run"])
    assert (kept["head"], kept["dropout"], kept["max_epochs"]) == ("mlp:64,16", 0.25, 2)


def test_a_given_option_wins_even_where_it_is_the_default(cache: Path) -> None:
    words = ("train-head", "--recipe", "mlp-leaky", "--max-epochs", "1")
    assert options_of(answer(*words)["run"])["activation"] == "leaky_relu"
    assert options_of(answer(*words, "--activation", "relu", "--seed", "7")["run"])["activation"] == "relu"


def test_features_of_another_width_than_the_recipes_are_a_warning(cache: Path) -> None:
    shown = featcache("train-head", "--recipe", "mlp", cache.stem, "--max-epochs", "1").stderr
    (warning,) = [line for line in shown.splitlines() if line.startswith("warning: ")]
    assert "the recipe mlp is made for 3,072 features, got 192" in warning
    assert "`featcache extract --backbone pixels --image-size 32`" in warning


def test_features_of_several_caches_are_counted_together(here: Path) -> None:
    for size in ("8", "16"):
        featcache("extract", *ON_PICTURES, "--backbone", "pixels", "--image-size", size)
    small, large = sorted((here / "data" / "features").glob("*.h5"), key=lambda path: path.stat().st_size)
    words = ("train-head", "--recipe", "mlp", small.stem, "--with", large.stem, "--max-epochs", "1")
    assert "got 960: " in featcache(*words).stderr


def test_a_recipe_on_its_own_features_warns_of_nothing(here: Path) -> None:
    featcache("extract", *ON_PICTURES, "--backbone", "pixels", "--image-size", "32")
    assert "warning" not in featcache("train-head", "--recipe", "mlp", *ON_PICTURES, "--max-epochs", "1").stderr


def test_a_recipe_finds_its_cache_among_others(cache: Path) -> None:
    featcache("extract", *ON_PICTURES, "--backbone", "pixels", "--image-size", "32")
    output = answer("train-head", "--recipe", "mlp", *ON_PICTURES, "--max-epochs", "1")
    assert output["parameters"]["trainable"] == 3072 * 64 + 64 + 64 * 16 + 16 + 16 * 3 + 3
    assert Path(output["cache"]) != cache


def test_a_recipe_without_its_cache_names_the_command_that_makes_it() -> None:
    _, hint = complaint("train-head", "--recipe", "mlp")
    assert "featcache extract --backbone pixels --image-size 32" in hint


@pytest.mark.parametrize("named", ["cache", "options"])
def test_a_recipe_of_another_backbone_contradicts(named: str, cache: Path) -> None:
    which = (cache.stem,) if named == "cache" else PIXELS[:2]
    error, _ = complaint("train-head", *which, "--recipe", "vgg16")
    assert "features of vgg16 for the recipe vgg16, got those of pixels" in error


def test_an_unknown_recipe_for_a_head_offers_the_nearest(cache: Path) -> None:
    error, hint = complaint("train-head", "--recipe", "mlp-droput", expect=2)
    assert "unknown recipe" in error
    assert "mlp-dropout" in hint
