"""The caches: `ls`, `info`, `verify`, `why`, `rm`, `gc`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import CLASSES, PIXELS, answer, complaint, featcache, picture

from featcache.files import tmp_name

SMALL = ("--image-size", "32")


@pytest.fixture
def squeezenet_file(here: Path) -> Path:
    """A file of random weights."""
    import torch
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    path = here / "weights.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


# --- ls ----------------------------------------------------------------------------------------------------


def test_ls_without_caches_names_the_command_that_makes_one() -> None:
    assert "featcache extract" in featcache("ls").stdout
    assert answer("ls") == {"caches": []}


def test_ls_lists_a_cache(cache: Path) -> None:
    (entry,) = answer("ls")["caches"]
    assert (entry["name"], entry["path"]) == (cache.stem, str(cache.relative_to(Path.cwd())))
    assert (entry["state"], entry["problem"]) == ("complete", None)
    assert (entry["dataset"], entry["backbone"], entry["layers"]) == ("pictures", "pixels", ["pixels"])
    assert (entry["rows"], entry["rows_done"]) == ({"train": 36, "test": 12}, 48)
    assert entry["bytes"] == cache.stat().st_size
    header, _, line, after = featcache("ls").stdout.splitlines()
    assert header.split() == ["name", "images", "size", "age", "layers"]
    assert line.split()[:2] == [cache.stem, "48"]
    assert after == f"next: featcache info {cache.stem}"


def test_ls_lists_an_unfinished_cache_with_its_progress(unfinished: Path) -> None:
    (entry,) = answer("ls")["caches"]
    assert (entry["state"], entry["rows_done"]) == ("unfinished", 16)
    header, _, line, after = featcache("ls").stdout.splitlines()
    assert header.split() == ["name", "images", "size", "age", "state", "layers"] and "unfinished, 33 %" in line
    assert after.startswith("next: featcache extract --backbone pixels --dataset ")


def test_ls_lists_what_is_damaged_or_foreign(damaged: Path) -> None:
    (damaged.parent / "notes.h5").write_text("no cache")
    states = {entry["name"]: entry["state"] for entry in answer("ls")["caches"]}
    assert states == {damaged.stem: "damaged", "notes": "foreign"}
    assert featcache("ls").stdout.count("\n") == 4


def test_ls_of_a_data_folder_that_is_a_file_is_an_error(here: Path) -> None:
    (here / "data").write_text("no folder")
    _, hint = complaint("ls")
    assert "--data-dir" in hint


# --- info --------------------------------------------------------------------------------------------------


def test_info_shows_the_spec_the_selection_and_where_it_came_from(cache: Path) -> None:
    output = answer("info", cache.stem)
    assert output["spec"]["backbone"] == "pixels"
    assert output["selection"]["source"].endswith("/pictures")
    label = {"name": "label", "kind": "classes", "names": list(CLASSES), "unlabelled": 0, "origin": "images"}
    assert output["targets"] == [label]
    assert output["provenance"]["device"] == "cpu"
    shown = dict(line.split(None, 1) for line in featcache("info", cache).stdout.splitlines())
    assert shown["rows"] == "36 train, 12 test"
    assert shown["spec.transform.image_size"] == "8"
    assert shown["target"].split(None, 1)[1] == "classes (cat, dog, eel), 0 rows without a value, from images"


def test_info_of_an_unfinished_cache_names_its_state(unfinished: Path) -> None:
    assert answer("info", unfinished.stem)["state"] == "unfinished"
    assert "unfinished, 33 %" in featcache("info", unfinished).stdout


def test_info_of_a_damaged_cache_names_the_problem(damaged: Path) -> None:
    output = answer("info", damaged.stem, expect=1)
    assert output["state"] == "damaged"
    assert output["problem"] in featcache("info", damaged.stem, expect=1).stdout


@pytest.mark.parametrize("name", ["nothing", "nothing.h5", "no/where.h5"])
def test_info_of_nothing_is_an_error(cache: Path, name: str) -> None:
    error, hint = complaint("info", name)
    assert "nothing" in error or "no/where.h5" in error
    assert hint


# --- verify ------------------------------------------------------------------------------------------------


def test_a_sound_cache_is_verified(cache: Path) -> None:
    quick, full = answer("verify", cache.stem), answer("verify", cache, "--full")
    assert (quick["sound"], quick["full"], quick["rows"], quick["findings"]) == (True, False, 0, [])
    assert (full["sound"], full["full"], full["rows"]) == (True, True, 48)


def test_rows_can_be_computed_again(cache: Path) -> None:
    again = answer("verify", cache.stem, "--recompute", "5")["recomputed"]
    assert (again["rows"], again["equal"], again["greatest_difference"]) == (5, 5, 0.0)
    assert "recomputed.equal" in featcache("verify", cache.stem, "--recompute", "5").stdout


@pytest.mark.parametrize("words", [("--device", "cpu"), ("--weights", "w.pth")])
def test_an_option_of_recompute_without_it_is_wrong_usage(words: tuple[str, ...], cache: Path) -> None:
    error, _ = complaint("verify", cache.stem, *words, expect=2)
    assert f"{words[0]} has no effect without --recompute" in error


def test_rows_of_moved_weights_are_computed_again_where_they_are_named(here: Path, squeezenet_file: Path) -> None:
    featcache("extract", "--dataset", "pictures", "-b", "squeezenet1_1", "--weights", squeezenet_file, *SMALL)
    # A path may hold the sign that separates a backbone from its source.
    moved = squeezenet_file.rename(here / "epochs=90.pth")
    error, hint = complaint("verify", "-b", "squeezenet1_1", "--recompute", "2")
    assert "no longer at" in error and "--weights" in hint
    again = answer("verify", "-b", "squeezenet1_1", "--recompute", "2", "--weights", moved)["recomputed"]
    assert (again["rows"], again["greatest_difference"]) == (2, 0.0)
    assert "not those" in complaint("verify", "-b", "squeezenet1_1", "--recompute", "2", "--weights", "random:7")[0]
    assert (
        "expected squeezenet1_1"
        in complaint("verify", "-b", "squeezenet1_1", "--recompute", "2", "--weights", f"vgg16={moved}")[0]
    )


def test_pixels_have_no_weights_to_name(cache: Path) -> None:
    assert "no weights" in complaint("verify", cache.stem, "--recompute", "2", "--weights", "w.pth")[0]


@pytest.mark.parametrize("command", ["info", "verify"])
def test_filters_choose_a_cache(command: str, cache: Path) -> None:
    assert answer(command, "--backbone", "pixels", "--dataset", "pictures")["path"].endswith(cache.name)
    assert "vgg16" in complaint(command, "--backbone", "vgg16")[0]


def test_a_flipped_byte_is_found_and_ends_with_exit_1(cache: Path) -> None:
    content = bytearray(cache.read_bytes())
    at = content.index(bytes(picture_row(cache)))
    content[at] ^= 1
    cache.write_bytes(content)
    assert answer("verify", cache.stem)["sound"] is True
    output = answer("verify", cache.stem, "--full", expect=1)
    assert output["sound"] is False
    assert output["findings"][0]["count"] == 1
    result = featcache("verify", cache.stem, "--full", expect=1)
    assert "error: " in result.stderr
    assert "hint: extract again" in result.stderr


def picture_row(cache: Path) -> bytes:
    """The stored bytes of the first train row."""
    import h5py

    with h5py.File(cache) as file:
        return bytes(file["train/features/pixels"][0].tobytes())


def test_a_truncated_cache_is_found(damaged: Path) -> None:
    output = answer("verify", damaged.stem, expect=1)
    assert output["sound"] is False


def test_an_unfinished_one_cannot_be_verified(unfinished: Path) -> None:
    error, hint = complaint("verify", unfinished.stem)
    assert "not finished" in error
    assert "featcache extract" in hint


# --- why ---------------------------------------------------------------------------------------------------


def test_why_reports_a_hit(cache: Path) -> None:
    output = answer("why", *PIXELS)
    assert (output["state"], output["rows"], output["to_compute"]) == ("hit", 48, 0)
    assert featcache("why", *PIXELS).stdout.startswith("hit: 48 of 48 images are cached")


def test_why_names_what_is_new_changed_and_gone(cache: Path, here: Path) -> None:
    dogs = here / "pictures" / "train" / "dog"
    (dogs / "new.png").write_bytes(picture(500))
    (dogs / "00.png").write_bytes(picture(501))
    (dogs / "01.png").unlink()
    output = answer("why", *PIXELS)
    assert (output["state"], output["to_compute"]) == ("partial", 2)
    assert output["new"] == ["train/dog/new.png"]
    assert output["changed"] == ["train/dog/00.png"]
    assert output["gone"] == ["train/dog/01.png"]
    stdout = featcache("why", *PIXELS).stdout
    assert "new: train/dog/new.png\n" in stdout
    assert "gone: train/dog/01.png\n" in stdout


def test_why_lists_the_fields_of_a_miss(cache: Path) -> None:
    other = ("-b", "pixels", "-d", "pictures", "--image-size", "9")
    output = answer("why", *other)
    assert (output["state"], output["to_compute"]) == ("miss", 48)
    (nearest,) = output["nearest"]
    assert nearest["cache"] == cache.stem
    sizes = {one["field"]: (one["cached"], one["requested"]) for one in nearest["differences"]}
    assert sizes["transform.image_size"] == (8, 9)
    assert "transform.image_size: cached 8, requested 9" in featcache("why", *other).stdout


def test_why_writes_nothing(here: Path) -> None:
    assert answer("why", *PIXELS)["state"] == "miss"
    assert not list(here.glob("data/features/*.h5"))
    assert not list(here.glob("data/features/*/"))


# --- rm and gc ---------------------------------------------------------------------------------------------


def test_rm_removes_a_cache(cache: Path) -> None:
    size = cache.stat().st_size
    assert answer("rm", cache.stem) == {"removed": str(cache.relative_to(Path.cwd())), "bytes": size}
    assert answer("ls") == {"caches": []}
    complaint("rm", cache.stem)


def test_rm_takes_filters_but_never_a_cache_that_was_not_described(cache: Path) -> None:
    assert "expected a cache" in complaint("rm", expect=2)[0]
    complaint("rm", "--backbone", "vgg16")
    assert cache.exists()
    featcache("rm", "--backbone", "pixels")
    assert not cache.exists()


def test_rm_removes_an_unfinished_one(unfinished: Path) -> None:
    assert featcache("rm", unfinished.stem).stdout.startswith("removed ")
    assert not unfinished.exists()


def test_rm_leaves_a_foreign_file_alone(cache: Path) -> None:
    foreign = cache.parent / "notes.h5"
    foreign.write_text("no cache")
    complaint("rm", "notes")
    assert foreign.exists()


def test_gc_lists_and_only_on_request_removes_what_no_run_uses(cache: Path) -> None:
    featcache("train-head", "--head", "linear", "--max-epochs", "1")
    assert featcache("gc").stdout == "nothing to remove\n"
    featcache("extract", *PIXELS, "--limit", "6")
    output = answer("gc")
    (piece,) = output["garbage"]
    assert (output["deleted"], output["bytes"]) == (False, piece["bytes"])
    assert Path(piece["path"]).exists()
    assert "next: featcache gc --delete\n" in featcache("gc").stdout
    assert answer("gc", "--delete")["garbage"] == [piece]
    assert [entry["name"] for entry in answer("ls")["caches"]] == [cache.stem]


def test_gc_finds_what_dead_processes_left_among_caches_runs_and_digests(here: Path, cache: Path) -> None:
    featcache("train-head", "--head", "ridge")
    (run,) = (path.parent for path in here.glob("runs/*/config.json"))
    (here / "data" / "digests").mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        for folder in (cache.parent, here / "data" / "digests", here / "runs", run):
            (folder / tmp_name("left")).write_bytes(b"half")
        aside = here / "runs" / tmp_name("run")
        aside.mkdir()
        (aside / "weights").write_bytes(b"half")
        os._exit(0)
    os.waitpid(pid, 0)
    left = set(here.rglob("*.tmp-*"))
    assert {Path(piece["path"]) for piece in answer("gc")["garbage"]} == {one.relative_to(here) for one in left}
    answer("gc", "--delete")
    assert not list(here.rglob("*.tmp-*"))
    assert featcache("gc").stdout == "nothing to remove\n"


def test_gc_names_a_damaged_run_and_goes_on(here: Path, cache: Path) -> None:
    featcache("train-head", "--head", "ridge")
    (config,) = here.glob("runs/*/config.json")
    config.write_text("[" * 100_000)
    ran = featcache("gc")
    assert config.parent.name in ran.stderr and cache.name in ran.stdout


def test_a_moved_project_keeps_its_caches(here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    featcache("train-head", "--head", "ridge")
    moved = here / "elsewhere"
    moved.mkdir()
    for name in ("data", "runs"):
        (here / name).rename(moved / name)
    monkeypatch.chdir(moved)
    assert featcache("gc").stdout == "nothing to remove\n"
