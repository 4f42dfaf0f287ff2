"""Views of train images: commands that take options of a cache take `--views`, and those that show one tell of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from command_line import PIXELS, answer, complaint, featcache

from featcache.cache.donors import Donors, MemoryDonor
from featcache.cache.info import CacheInfo
from featcache.cache.spec import LayerSpec, Selection, Spec
from featcache.cache.tables import SplitTable
from featcache.cache.targets import label_column
from featcache.cache.writer import write_packed
from featcache.rows.views import DEFAULT_TRAIN_VIEWS

ALL_SEEN = "all of them in every epoch"
DRAWN = "one of them drawn for each image in every epoch"
VIEWS = ("--views", "3", "--view-seed", "5")
QUICK = ("--head", "linear", "--max-epochs", "1")


def told(*words: str) -> dict[str, str]:
    """The pairs that a command shows."""
    lines = featcache(*words).stdout.splitlines()
    return dict(line.split(None, 1) for line in lines if len(line.split(None, 1)) == 2)


@pytest.fixture
def viewed(here: Path) -> str:
    """The name of a cache of 40 train images in 3 views and 20 test images, whose images are nowhere."""
    random, names = np.random.default_rng(0), ("ant", "bee")
    spec = Spec(
        backbone="toy",
        layers=(LayerSpec(name="a", weights=None, shape=(4,)),),
        transform={"size": [8, 8]},
        decoder="none",
        precision="fp32",
        runner="eager",
        dtype="float16",
        views=3,
        view_seed=5,
    )
    tables, donors = {}, []
    for split, count in (("train", 40), ("test", 20)):
        labels = np.arange(count) % 2
        ids = tuple(f"{split}/{number}" for number in range(count))
        digests = np.stack([np.frombuffer(hashlib.sha256(one.encode()).digest(), np.uint8) for one in ids])
        views = [{"a": (4.0 * labels[:, None] + random.random((count, 4))).astype(np.float16)} for _ in range(3)]
        tables[split] = SplitTable(ids=ids, targets={"label": labels}, digests=digests)
        donors.append(
            MemoryDonor(fingerprint=spec.fingerprint, digests=digests, features=views[0], augmented=views[1:])
        )
    selection = Selection(source="toy", splits=None, limit=None, select_seed=0)
    info = CacheInfo(spec=spec, selection=selection, set_name="toy", columns=(label_column(names),))
    folder = here / "data" / "features"
    folder.mkdir(parents=True)
    return write_packed(folder / "toy.h5", info, tables=tables, donors=Donors(donors)).stem


def test_ls_and_info_count_images_and_tell_their_views(viewed: str) -> None:
    (entry,) = answer("ls")["caches"]
    assert (entry["views"], entry["rows"]) == (3, {"train": 40, "test": 20})
    header, _, row = featcache("ls").stdout.splitlines()
    assert row[: header.index("views") + len("views")].endswith("40 train, 20 test      3")
    assert told("info", viewed)["views"] == "3 views of each train image: plain, and 2 augmented with seed 5"


@pytest.mark.parametrize(
    ("words", "how"),
    [
        ((), ALL_SEEN if DEFAULT_TRAIN_VIEWS == "all" else DRAWN),
        (("--train-views", "all"), ALL_SEEN),
        (("--train-views", "draw"), DRAWN),
    ],
)
def test_train_head_says_what_an_epoch_sees(viewed: str, words: tuple[str, ...], how: str) -> None:
    run = featcache("train-head", viewed, *QUICK, *words)
    seen = f"3 views of each train image: plain, and 2 augmented with seed 5, {how}"
    assert f"train sees {seen}; val and test are judged on plain images" in run.stderr
    assert f"{seen}\n" in run.stdout
    assert answer("train-head", viewed, *QUICK, *words)["n"] == {"train": 32, "val": 8, "test": 20}


def test_a_sweep_compares_both_ways(viewed: str) -> None:
    said = answer("sweep", viewed, *QUICK, "--grid", "train_views=all,draw")
    assert {row["values"]["train_views"] for row in said["rows"]} == {"all", "draw"}


def test_views_that_cannot_be_drawn_are_refused(viewed: str) -> None:
    error, hint = complaint("train-head", viewed, "--head", "ridge", "--train-views", "draw")
    assert "--train-views would do nothing" in error and hint
    assert "--train-views" in featcache("train-head", viewed, "--train-views", "drawn", expect=2).stderr


def test_an_export_says_what_becomes_of_views(viewed: str, here: Path) -> None:
    assert told("export", viewed, "-o", "rows.npz")["views"] == "3 of each train image"
    assert np.load(here / "rows.npz")["views/2/a"].shape == (40, 4)
    table = featcache("export", viewed, "-o", "rows.csv", "--quiet")
    assert "2 augmented views of each train image are left out" in table.stderr


# --- extracted --------------------------------------------------------------------------------------------


def test_views_are_arrays_beside_the_rows_of_train(here: Path) -> None:
    said = answer("extract", *PIXELS, *VIEWS)
    assert said["rows"] == {"train": 36, "test": 12}
    (entry,) = answer("ls")["caches"]
    assert (entry["views"], entry["rows"]["train"]) == (3, 36)
    assert told("info", entry["name"])["views"] == "3 views of each train image: plain, and 2 augmented with seed 5"
    details = answer("info", entry["name"])
    assert (details["spec"]["views"], details["spec"]["view_seed"]) == (3, 5)
    assert details["spec"]["transform"]["augmentation"]["area"] == [0.35, 1]


def test_a_plain_cache_says_that_it_holds_no_augmentation(cache: Path) -> None:
    for shown in (told("info", cache.stem), told("train-head", *QUICK)):
        assert shown["views"] == "each train image plain: there is no augmentation in this cache"


def test_views_that_a_cache_has_not_are_not_trained_on(cache: Path) -> None:
    error, hint = complaint("train-head", cache.stem, *QUICK, "--train-views", "draw")
    assert "--train-views draw says nothing" in error and "--views" in hint


def test_a_head_finds_the_cache_by_its_views_and_says_what_it_saw(here: Path) -> None:
    plain, seen = answer("extract", *PIXELS), answer("extract", *PIXELS, *VIEWS)
    assert (seen["computed"], seen["reused"]) == (36, 12)
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
