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


def pairs_of(*words: str) -> dict[str, str]:
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
    header, _, row, _ = featcache("ls").stdout.splitlines()
    assert (header.split()[-2:], row.split()[-2:]) == (["views", "layers"], ["3", "a"])
    assert pairs_of("info", viewed)["views"] == "3 views of each train image: plain, and 2 augmented with seed 5"


@pytest.mark.parametrize(
    ("words", "how"),
    [
        ((), ALL_SEEN if DEFAULT_TRAIN_VIEWS == "all" else DRAWN),
        (("--train-views", "all"), ALL_SEEN),
        (("--train-views", "draw"), DRAWN),
    ],
)
def test_train_head_reports_what_an_epoch_sees(viewed: str, words: tuple[str, ...], how: str) -> None:
    run = featcache("train-head", viewed, *QUICK, *words)
    seen = f"3 views of each train image: plain, and 2 augmented with seed 5, {how}"
    assert f"train sees {seen}; val and test are evaluated on plain images" in run.stderr
    assert f"{seen}\n" in run.stdout
    assert answer("train-head", viewed, *QUICK, *words)["n"] == {"train": 32, "val": 8, "test": 20}


def test_a_sweep_compares_both_ways(viewed: str) -> None:
    output = answer("sweep", viewed, *QUICK, "--grid", "train_views=all,draw")
    assert {row["values"]["train_views"] for row in output["rows"]} == {"all", "draw"}


def test_views_that_cannot_be_drawn_are_refused(viewed: str) -> None:
    error, hint = complaint("train-head", viewed, "--head", "ridge", "--train-views", "draw", expect=2)
    assert "--train-views would do nothing" in error and hint
    assert "--train-views" in featcache("train-head", viewed, "--train-views", "drawn", expect=2).stderr


def test_an_export_reports_what_becomes_of_views(viewed: str, here: Path) -> None:
    assert pairs_of("export", viewed, "-o", "rows.npz")["views"] == "3 of each train image"
    assert np.load(here / "rows.npz")["views/2/a"].shape == (40, 4)
    table = featcache("export", viewed, "-o", "rows.csv", "--quiet")
    assert "2 augmented views of each train image are left out" in table.stderr


# --- extracted --------------------------------------------------------------------------------------------


def test_views_are_arrays_beside_the_rows_of_train(here: Path) -> None:
    output = answer("extract", *PIXELS, *VIEWS)
    assert output["rows"] == {"train": 36, "test": 12}
    (entry,) = answer("ls")["caches"]
    assert (entry["views"], entry["rows"]["train"]) == (3, 36)
    assert pairs_of("info", entry["name"])["views"] == "3 views of each train image: plain, and 2 augmented with seed 5"
    details = answer("info", entry["name"])
    assert (details["spec"]["views"], details["spec"]["view_seed"]) == (3, 5)
    assert details["spec"]["transform"]["augmentation"]["area"] == [0.35, 1]


def test_a_plain_cache_is_described_without_augmentation(cache: Path) -> None:
    shown = pairs_of("info", cache.stem)
    assert shown["views"] == "each train image plain: there is no augmentation in this cache"
    assert "views" not in pairs_of("train-head", *QUICK)


def test_views_that_a_cache_has_not_are_not_trained_on(cache: Path) -> None:
    error, hint = complaint("train-head", cache.stem, *QUICK, "--train-views", "draw")
    assert "--train-views draw has no effect" in error and "--views" in hint


def test_caches_that_differ_in_their_views_are_listed_with_them(here: Path) -> None:
    plain, seen = answer("extract", *PIXELS), answer("extract", *PIXELS, *VIEWS)
    assert (seen["computed"], seen["reused"]) == (36, 12)
    listed = featcache("train-head", "--backbone", "pixels", *QUICK, expect=1).stderr
    assert "views 1" in listed and "views 3, view seed 5" in listed
    assert Path(plain["cache"]).stem in listed
    run = featcache("train-head", Path(seen["cache"]).stem, *QUICK)
    assert "2 augmented with seed 5" in run.stdout
    assert "val and test are evaluated on plain images" in run.stderr
    assert answer("why", *PIXELS, *VIEWS)["state"] == "hit"


def test_views_of_digits_are_not_mirrored_with_no_view_flip(here: Path) -> None:
    featcache("extract", *PIXELS, *VIEWS)
    unmirrored = answer("extract", *PIXELS, *VIEWS, "--no-view-flip")
    assert answer("train-head", Path(unmirrored["cache"]).stem, *QUICK)["cache"].endswith(unmirrored["cache"])
    assert "augmented with seed 5, none mirrored" in featcache("info", Path(unmirrored["cache"]).stem).stdout


@pytest.mark.parametrize(
    ("words", "what"),
    [(("--view-seed", "3"), "without --views"), (("--views", "2", "--split", "test"), "only train images have views")],
)
def test_views_that_mean_nothing_are_refused(words: tuple[str, ...], what: str, here: Path) -> None:
    error, hint = complaint("extract", *PIXELS, *words, expect=2)
    assert what in error and hint
