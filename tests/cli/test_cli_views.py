"""`--views`: taken by whoever takes options of a cache, and told by whoever shows one."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import PIXELS, answer, complaint, featcache

VIEWS = ("--views", "3", "--view-seed", "5")
QUICK = ("--head", "linear", "--max-epochs", "1")


def told(*words: str) -> dict[str, str]:
    """The pairs that a command shows."""
    lines = featcache(*words).stdout.splitlines()
    return dict(line.split(None, 1) for line in lines if len(line.split(None, 1)) == 2)


def test_views_are_rows_of_train_and_stand_in_ls_and_info(here: Path) -> None:
    said = answer("extract", *PIXELS, *VIEWS)
    assert (said["rows"], said["computed"]) == ({"train": 108, "test": 12}, 120)
    (entry,) = answer("ls")["caches"]
    assert (entry["views"], entry["rows"]["train"]) == (3, 108)
    assert told("info", entry["name"])["views"] == "3 rows for each train image: plain, and 2 augmented with seed 5"
    details = answer("info", entry["name"])
    assert (details["spec"]["views"], details["spec"]["view_seed"]) == (3, 5)
    assert details["spec"]["transform"]["augmentation"]["area"] == [0.35, 1]


def test_a_plain_cache_says_that_it_holds_no_augmentation(cache: Path) -> None:
    for shown in (told("info", cache.stem), told("train-head", *QUICK)):
        assert shown["views"] == "1 row for each train image, plain: there is no augmentation in this cache"


def test_a_head_finds_the_cache_by_its_views_and_says_what_it_saw(here: Path) -> None:
    plain, seen = answer("extract", *PIXELS), answer("extract", *PIXELS, *VIEWS)
    assert seen["computed"] == 36 * 2
    assert answer("train-head", *PIXELS, *VIEWS, *QUICK)["cache"].endswith(seen["cache"])
    assert answer("train-head", *PIXELS, *QUICK)["cache"].endswith(plain["cache"])
    run = featcache("train-head", *PIXELS, *VIEWS, *QUICK)
    assert "2 augmented with seed 5" in run.stdout
    assert "val and test are judged on plain images" in run.stderr
    assert answer("why", *PIXELS, *VIEWS)["state"] == "hit"


def test_views_that_are_not_there_are_offered_as_a_command(cache: Path) -> None:
    _, hint = complaint("train-head", *PIXELS, *VIEWS)
    assert "featcache extract" in hint and "--views 3 --view-seed 5" in hint


def test_views_of_digits_are_not_mirrored_where_that_is_said(here: Path) -> None:
    featcache("extract", *PIXELS, *VIEWS)
    unmirrored = answer("extract", *PIXELS, *VIEWS, "--no-view-flip")
    assert answer("train-head", *PIXELS, *VIEWS, "--no-view-flip", *QUICK)["cache"].endswith(unmirrored["cache"])
    assert "augmented with seed 5, none mirrored" in featcache("info", Path(unmirrored["cache"]).stem).stdout


@pytest.mark.parametrize(
    ("words", "what"),
    [(("--view-seed", "3"), "without --views"), (("--views", "2", "--split", "test"), "only train images have views")],
)
def test_views_that_mean_nothing_are_refused(words: tuple[str, ...], what: str, here: Path) -> None:
    error, hint = complaint("extract", *PIXELS, *words)
    assert what in error and hint
