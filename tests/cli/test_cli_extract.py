"""`featcache extract`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from command_line import CLASSES, PIXELS, answer, complaint, featcache, picture

from featcache.cache.locks import lock_cache
from featcache.images.location import Location


def test_the_answer_has_exactly_the_promised_fields() -> None:
    output = answer("extract", *PIXELS)
    assert list(output) == [
        "cache",
        "fingerprint",
        "complete",
        "rows",
        "feature_dim",
        "computed",
        "reused",
        "skipped",
        "seconds",
        "images_per_s",
        "shares",
        "bound",
        "drift",
        "images",
    ]
    assert Path(output["cache"]).is_file()
    assert output["images"]["splits"]["train"] == {"images": 36, "unlabelled": 0, "lacking": []}
    assert output["images"]["left_out"]["left_out"] == []
    assert (output["complete"], output["rows"]) == (True, {"train": 36, "test": 12})
    assert output["feature_dim"] == {"pixels": 8 * 8 * 3}
    assert (output["computed"], output["reused"], output["skipped"]) == (48, 0, [])
    assert output["seconds"] > 0
    assert output["images_per_s"] > 0
    assert sum(output["shares"].values()) == pytest.approx(1, abs=0.001)
    assert output["bound"] == max(output["shares"], key=output["shares"].get)


def test_a_second_call_computes_nothing() -> None:
    first = answer("extract", *PIXELS)
    again = answer("extract", *PIXELS)
    assert (again["computed"], again["reused"], again["images_per_s"]) == (0, 48, None)
    assert (again["cache"], again["fingerprint"]) == (first["cache"], first["fingerprint"])
    assert (again["shares"], again["bound"]) == (None, None)


def test_without_json_a_person_reads_what_happened() -> None:
    stdout = featcache("extract", *PIXELS).stdout
    first, *lines, after = stdout.splitlines()
    shown = {name: value.strip() for name, value in (line.split("  ", 1) for line in lines)}
    assert first.startswith("48 images computed at ") and first.endswith(" images/s")
    assert after == f"next: featcache train-head {Path(shown['cache']).stem}"
    assert shown["images"] == "train 36, test 12"
    assert shown["features"] == "192 (pixels)"
    assert " s, " in shown["took"] and "decode " in shown["took"]
    assert not {"computed", "reused", "skipped"} & set(shown)
    assert Path(shown["cache"]).is_file()


def test_what_libraries_print_never_reaches_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    really = Location.open

    def chatty(*args: Any, **options: Any) -> Any:
        print("Files already downloaded and verified")
        return really(*args, **options)

    monkeypatch.setattr(Location, "open", chatty)
    result = featcache("extract", *PIXELS, "--json")
    assert result.stdout.startswith("{")
    assert "already downloaded" in result.stderr
    assert "already downloaded" not in featcache("extract", *PIXELS).stdout


def test_remarks_go_to_stderr_and_quiet_leaves_only_warnings() -> None:
    network = ("extract", "-b", "squeezenet1_1", "--weights", "random:0", "--image-size", "32", "-d", "pictures")
    loud = featcache(*network, "--limit", "3")
    assert "6 images to extract with squeezenet1_1" in loud.stderr
    quiet = featcache(*network, "--limit", "6", "--quiet")
    lines = quiet.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in lines)
    assert any(line.startswith("warning: RANDOM WEIGHTS") for line in lines)


def test_splits_limit_and_seed_choose_the_images() -> None:
    output = answer("extract", *PIXELS, "--split", "train", "--limit", "6")
    assert output["rows"] == {"train": 6}
    other = answer("extract", *PIXELS, "--split", "train", "--limit", "6", "--select-seed", "1")
    assert other["fingerprint"] == output["fingerprint"]
    assert other["cache"] != output["cache"]


@pytest.mark.parametrize("where", ["--data-dir", "FEATCACHE_DATA_DIR"])
def test_the_data_folder_can_be_chosen(where: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "FEATCACHE_DATA_DIR":
        monkeypatch.setenv(where, str(here / "elsewhere"))
        output = answer("extract", *PIXELS)
    else:
        output = answer("extract", *PIXELS, where, here / "elsewhere")
    assert Path(output["cache"]).parent == here / "elsewhere" / "features"
    assert not (here / "data").exists()


# --- several backbones -------------------------------------------------------------------------------------

SEVERAL = ("extract", "-b", "pixels", "-b", "squeezenet1_1", "--image-size", "32", "-d", "pictures", "--limit", "3")


def test_several_backbones_give_one_object_with_an_extraction_each() -> None:
    output = answer(*SEVERAL, "--weights", "squeezenet1_1=random:0", "--layer", "squeezenet1_1=features.5")
    assert list(output) == ["caches"]
    pixels, network = output["caches"]
    assert (pixels["feature_dim"], list(network["feature_dim"])) == ({"pixels": 32 * 32 * 3}, ["features.5"])
    assert (pixels["computed"], network["computed"]) == (6, 6)
    alone = answer("extract", *SEVERAL[3:], "--weights", "random:0", "--layer", "squeezenet1_1=features.5")
    assert (alone["computed"], alone["fingerprint"]) == (0, network["fingerprint"])
    stdout = featcache(*SEVERAL, "--weights", "squeezenet1_1=random:0").stdout
    assert stdout.count("\nimages ") == 2
    assert "squeezenet1_1: 6 images to extract" in featcache(*SEVERAL, "--weights", "squeezenet1_1=random:1").stderr


@pytest.mark.parametrize(("option", "value"), [("--weights", "random:0"), ("--layer", "features.5")])
def test_what_could_be_of_several_backbones_is_wrong_usage(option: str, value: str) -> None:
    stderr = featcache(*SEVERAL, option, value, expect=2).stderr
    assert f"{option} pixels={value}" in stderr


# --- images that cannot be used ----------------------------------------------------------------------------


@pytest.fixture
def bad_image(here: Path) -> Path:
    path = here / "pictures" / "train" / "dog" / "05.png"
    path.write_bytes(b"this is no image")
    return path


def test_an_image_that_cannot_be_read_stops_the_extraction(bad_image: Path, here: Path) -> None:
    error, _ = complaint("extract", *PIXELS)
    assert "train/dog/05.png" in error
    assert not list((here / "data" / "features").glob("*.h5"))


def test_skip_leaves_it_out_and_lists_it(bad_image: Path) -> None:
    output = answer("extract", *PIXELS, "--on-error", "skip")
    assert output["rows"] == {"train": 35, "test": 12}
    (skipped,) = output["skipped"]
    assert skipped["id"] == "train/dog/05.png"
    assert skipped["reason"]
    assert "skipped train/dog/05.png: " in featcache("extract", *PIXELS, "--on-error", "skip").stdout


def test_a_cache_with_skipped_images_is_no_hit_for_fail(bad_image: Path) -> None:
    featcache("extract", *PIXELS, "--on-error", "skip")
    complaint("extract", *PIXELS)
    bad_image.write_bytes(picture(999))
    again = answer("extract", *PIXELS)
    assert (again["computed"], again["reused"]) == (1, 47)


def test_an_empty_folder_is_an_error(here: Path) -> None:
    (here / "empty").mkdir()
    error, hint = complaint("extract", "-b", "pixels", "--image-size", "8", "-d", "empty")
    assert "empty" in error
    assert "class/image" in hint


def test_a_path_that_is_not_there_is_an_error() -> None:
    error, hint = complaint("extract", "-b", "pixels", "-d", "./nowhere")
    assert error.endswith("/nowhere: no such file or folder")
    assert "class/image" in hint


# --- names and values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "unknown", "offered"),
    [
        (("-b", "vg16"), "backbone 'vg16'", "vgg16"),
        (("-b", "pixels", "-d", "digts"), "data set 'digts'", "digits"),
        (("-b", "alexnet", "--weights", "random", "--layer", "avgpol"), "layer of alexnet 'avgpol'", "avgpool"),
        (("-b", "vgg16", "--weights", "IMAGENET1K_V9"), "weights for vgg16 'IMAGENET1K_V9'", "IMAGENET1K_V1"),
    ],
)
def test_an_unknown_name_offers_the_nearest(words: tuple[str, ...], unknown: str, offered: str) -> None:
    dataset = () if "-d" in words else ("-d", "pictures")
    error, hint = complaint("extract", *words, *dataset)
    assert error == f"unknown {unknown}"
    assert offered in hint


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("-b", "alexnet", "--weights", "alexnet=random", "--precision", "fp16", "--device", "cpu"),
            "fp16 is not supported on a CPU",
        ),
        (("--device", "abacus"), "unknown device 'abacus'"),
        (("--split", "val"), "has no split val: it has train, test"),
    ],
)
def test_a_value_that_cannot_be_used_is_an_error(words: tuple[str, ...], expected: str) -> None:
    error, _ = complaint("extract", *PIXELS, *words)
    assert expected in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--limit", "0"), "--limit of at least 1, got 0"),
        (("--split", "trian"), "unknown split 'trian'"),
        (("--segment-rows", "-1"), "--segment-rows of at least 1, got -1"),
    ],
)
def test_a_value_that_no_extraction_takes_is_wrong_usage(words: tuple[str, ...], expected: str) -> None:
    error, _ = complaint("extract", *PIXELS, *words, expect=2)
    assert expected in error


def test_pixels_of_a_folder_need_a_size() -> None:
    _, hint = complaint("extract", "-b", "pixels", "-d", "pictures")
    assert "--image-size" in hint


# --- the data folder ---------------------------------------------------------------------------------------


def test_a_data_folder_that_is_a_file_is_an_error(here: Path) -> None:
    (here / "data").write_text("no folder")
    error, hint = complaint("extract", *PIXELS)
    assert "data" in error
    assert "--data-dir" in hint
    assert (here / "data").read_text() == "no folder"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_data_folder_that_cannot_be_written_is_an_error(here: Path) -> None:
    (here / "data").mkdir(mode=0o500)
    _, hint = complaint("extract", *PIXELS)
    assert "--data-dir" in hint


def test_no_wait_stops_when_another_process_writes_the_cache(cache: Path) -> None:
    (cache.parents[2] / "pictures" / "train" / CLASSES[0] / "99.png").write_bytes(picture(99))
    with lock_cache(cache.parent, cache.stem):
        error, _ = complaint("extract", *PIXELS, "--no-wait")
    assert f"process {os.getpid()}" in error
    assert answer("extract", *PIXELS, "--no-wait")["computed"] == 1
