"""What an extraction does to targets: labels come with the images, other targets from tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache import label
from featcache.cache.manifest import MANIFEST_NAME, Manifest
from featcache.cache.reader import FeatureCache
from featcache.cache.verification import verify
from featcache.errors import CacheIncomplete
from featcache.extraction.execution import Execution
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.extraction.result import Extraction
from featcache.extraction.run import extract


class RecordingReporter(LogReporter):
    """Records what is reported; with `stop` it interrupts the extraction."""

    def __init__(self, stop: bool = False) -> None:
        self.sentences: list[str] = []
        self._stop = stop

    def info(self, text: str) -> None:
        self.sentences.append(text)

    def warn(self, text: str) -> None:
        self.sentences.append(text)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        if self._stop and stage == "extracting":
            raise KeyboardInterrupt


def image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(path)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A table of six images, three cats and three dogs."""
    for number in range(6):
        image(tmp_path / "images" / f"{number}.png", number)
    return listing(tmp_path / "images.csv", ["cat", "dog"] * 3)


def listing(path: Path, labels: list[str]) -> Path:
    rows = "".join(f"images/{number}.png,{name}\n" for number, name in enumerate(labels))
    path.write_text(f"path,label\n{rows}")
    return path


def ages(path: Path, count: int = 6, name: str = "age") -> Path:
    rows = "".join(f"images/{number}.png,{number}\n" for number in range(count))
    path.write_text(f"path,{name}\n{rows}")
    return path


Extract = Callable[..., tuple[Extraction, list[str]]]


@pytest.fixture(params=[True, False], ids=["packed", "segments"])
def run_extraction(request: pytest.FixtureRequest, tmp_path: Path) -> Extract:
    """Extracts the pixels of a table of images, packed or in segments of two rows."""

    def run(listed: Path, pack: bool = request.param, stop: bool = False) -> tuple[Extraction, list[str]]:
        reporter = RecordingReporter(stop)
        request_ = Request(dataset=listed, backbone="pixels", image_size=8, data_dir=tmp_path / "data")
        done = extract(request_, Execution(pack=pack, segment_rows=2, batch_size=2, workers=1), reporter=reporter)
        return done, reporter.sentences

    return run


def decode_target(path: Path, target: str) -> list[object]:
    with FeatureCache.open(path) as cache:
        return cache["train"].target(target).decode()


def test_other_labels_are_written_and_no_row_is_computed(run_extraction: Extract, listed: Path) -> None:
    first, _ = run_extraction(listed)
    label(first.cache, ages(listed.parent / "ages.csv"))
    existing = {path: path.stat().st_mtime_ns for path in first.cache.parent.rglob("t*-?????????.h5")}
    again, sentences = run_extraction(listing(listed, ["eel", "cat"] * 3))
    assert (again.cache, again.computed, again.reused) == (first.cache, 0, 6)
    assert decode_target(again.cache, "label") == ["eel", "cat"] * 3
    assert decode_target(again.cache, "age") == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert any("only targets have changed: no row is computed" in one for one in sentences)
    assert verify(again.cache, full=True).sound
    assert {path: path.stat().st_mtime_ns for path in first.cache.parent.rglob("t*-?????????.h5")} == existing


def test_columns_of_tables_survive_an_increment_and_new_images_are_reported(
    run_extraction: Extract, listed: Path
) -> None:
    first, _ = run_extraction(listed)
    label(first.cache, ages(listed.parent / "ages.csv"))
    image(listed.parent / "images" / "6.png", 6)
    grown, sentences = run_extraction(listing(listed, ["cat", "dog"] * 3 + ["cat"]))
    assert (grown.computed, grown.reused) == (1, 6)
    assert decode_target(grown.cache, "age") == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, None]
    assert any("1 rows of new images have no value of age (ages.csv)" in one for one in sentences)
    assert decode_target(grown.cache, "label")[-1] == "cat"


def test_columns_of_tables_survive_an_increment_that_was_stopped(run_extraction: Extract, listed: Path) -> None:
    first, _ = run_extraction(listed)
    label(first.cache, ages(listed.parent / "ages.csv"))
    image(listed.parent / "images" / "6.png", 6)
    listing(listed, ["cat", "dog"] * 3 + ["cat"])
    with pytest.raises(KeyboardInterrupt):
        run_extraction(listed, stop=True)
    grown, _ = run_extraction(listed)
    assert decode_target(grown.cache, "age") == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, None]
    assert verify(grown.cache, full=True).sound


def test_columns_of_tables_survive_packing_and_unpacking(run_extraction: Extract, listed: Path) -> None:
    first, _ = run_extraction(listed)
    label(first.cache, ages(listed.parent / "ages.csv"))
    other = not first.cache.is_file()
    image(listed.parent / "images" / "6.png", 6)
    turned, _ = run_extraction(listing(listed, ["cat", "dog"] * 3 + ["cat"]), pack=other)
    assert turned.cache.is_file() == other
    assert decode_target(turned.cache, "age")[:6] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_label_from_a_table_is_kept_and_reported(run_extraction: Extract, listed: Path) -> None:
    first, _ = run_extraction(listed)
    table = listed.parent / "mine.csv"
    table.write_text("path,label\nimages/0.png,mine\n")
    label(first.cache, table)
    again, sentences = run_extraction(listing(listed, ["eel", "cat"] * 3))
    assert again.computed == 0
    assert decode_target(again.cache, "label") == ["mine", None, None, None, None, None]
    assert len([one for one in sentences if "label keeps the values from mine.csv" in one]) == 1
    label(first.cache, remove="label")
    back, _ = run_extraction(listed)
    assert decode_target(back.cache, "label") == ["eel", "cat"] * 3


def test_targets_that_are_damaged_are_reported_and_the_rest_is_kept(run_extraction: Extract, listed: Path) -> None:
    first, _ = run_extraction(listed)
    if first.cache.is_file():
        pytest.skip("other tests damage packed files")
    label(first.cache, ages(listed.parent / "ages.csv"))
    (targets,) = first.cache.glob("targets-*.h5")
    targets.unlink()
    again, sentences = run_extraction(listed)
    assert again.computed == 0 and verify(again.cache, full=True).sound
    with FeatureCache.open(again.cache) as cache:
        assert list(cache.targets) == ["label"]
    assert any("are lost: add them again" in one for one in sentences)


def test_an_unfinished_extraction_has_no_targets(run_extraction: Extract, listed: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_extraction(listed, stop=True)
    (folder,) = (one.parent for one in (tmp_path / "data").rglob(MANIFEST_NAME))
    assert Manifest.read(folder).targets is None
    assert not list(folder.glob("targets-*"))
    with pytest.raises(CacheIncomplete):
        label(folder, ages(listed.parent / "ages.csv"))
    shutil.rmtree(folder)
