"""Search: the most similar cached images by cosine, with cached rows read once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stored import Rows, write_cache
from trained import Workspace

from featcache.api import extract
from featcache.cache.reader import FeatureCache
from featcache.errors import ImageError, InvalidOption, SourceError, UnknownName, WeightsError
from featcache.inference import predict, search
from featcache.inference.classifier import ImageFeatures
from featcache.inference.similarity import Queries, nearest
from featcache.rows.features import FeatureRows
from featcache.runs.run import Run


@pytest.fixture(scope="module")
def networked(workspace: Workspace) -> Iterator[FeatureCache]:
    """The cache of a ResNet, in two layers, stored as float16."""
    with extract(
        workspace.pictures,
        "resnet18",
        layers=("layer2", "pre_logits"),
        pool="avg",
        image_size=40,
        weights="random:1",
        data_dir=workspace.root / "half",
    ) as cache:
        yield cache


# --- which rows are nearest --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 30),
    queries=st.integers(0, 7),
    count=st.integers(1, 40),
    wide=st.integers(1, 5),
    block=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_the_nearest_rows_are_those_of_the_greatest_cosine(
    rows: int, queries: int, count: int, wide: int, block: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    # Small whole numbers: many rows are equal, and some are zero.
    known = random.integers(-1, 2, (rows, wide)).astype(np.float32)
    wanted = random.integers(-1, 2, (queries, wide)).astype(np.float32)
    kept = Queries(wide)
    kept.add(wanted)
    near, numbers = nearest(kept, (known[start : start + block] for start in range(0, rows, block)), count)
    assert near.shape == numbers.shape == (queries, min(count, rows))
    scaled = [one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12) for one in (wanted, known)]
    cosines = scaled[0] @ scaled[1].T
    assert np.allclose(near, -np.sort(-cosines, axis=1)[:, :count], atol=1e-6)
    assert np.allclose(np.take_along_axis(cosines, numbers, axis=1), near, atol=1e-6)
    assert all(len(set(some)) == len(some) for some in numbers.tolist())


def test_many_queries_go_to_a_temporary_file_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    known, wanted = random.standard_normal((50, 8), np.float32), random.standard_normal((40, 8), np.float32)

    def search_all() -> Any:
        kept = Queries(8)
        for start in range(0, 40, 7):
            kept.add(wanted[start : start + 7])
        return nearest(kept, [known[:20], known[20:]], 5)[1].tolist()

    whole = search_all()
    monkeypatch.setattr("featcache.inference.similarity.QUERY_BYTES", 100)
    monkeypatch.setattr("featcache.inference.similarity._PIECE_BYTES", 200)
    assert search_all() == whole


def test_train_rows_are_read_once_however_many_images_are_predicted(
    workspace: Workspace, pixel_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.inference.classifier.CHUNK", 2)
    read: list[int] = []
    original = FeatureRows.read

    def note(self: FeatureRows, rows: Any, out: Any) -> None:
        read.extend(rows.tolist())
        original(self, rows, out)

    monkeypatch.setattr(FeatureRows, "read", note)
    predicted = predict(pixel_run, workspace.test_images(), neighbours=2, data_dir=workspace.root / "data")
    assert len(predicted) == 12 and all(len(image.neighbours) == 2 for image in predicted)
    assert sorted(read) == list(range(36))


# --- search ------------------------------------------------------------------------------------------------


def test_a_new_image_is_computed_by_the_backbone_of_the_cache(
    networked: FeatureCache, workspace: Workspace, tmp_path: Path
) -> None:
    new = tmp_path / "new.png"
    with Image.open(workspace.pictures / "train" / "dog" / "05.png") as image:
        image.save(new, compress_level=1)
    found = search(networked, new, count=3, layers=["pre_logits"], data_dir=workspace.root / "half")
    (one,) = found.images
    assert (one.path, one.cached, found.rows, found.layers) == (str(new), False, 48, ("pre_logits",))
    assert [near.id for near in one.neighbours][:1] == ["train/dog/05.png"]
    assert one.neighbours[0].similarity == pytest.approx(1, abs=2e-3)
    assert (one.neighbours[0].split, one.neighbours[0].label) == ("train", "dog")


def test_cached_images_are_found_by_id_or_by_their_bytes_without_a_backbone(
    networked: FeatureCache, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFeatures, "of", lambda *_, **__: pytest.fail("a backbone was opened"))
    copy = shutil.copy(workspace.pictures / "test" / "eel" / "02.png", tmp_path / "renamed.png")
    found = search(networked, ["test/eel/02.png", copy], layers="all", count=4)
    by_id, by_bytes = found.images
    assert by_id.cached and by_bytes.cached
    assert by_bytes.neighbours[0].id == "test/eel/02.png" and by_bytes.neighbours[0].similarity == pytest.approx(1)
    assert "test/eel/02.png" not in {near.id for near in by_id.neighbours} and len(by_id.neighbours) == 4
    assert [near.id for near in by_id.neighbours][:3] == [near.id for near in by_bytes.neighbours][1:]
    rows = np.concatenate(
        [
            np.concatenate([np.asarray(split.layer(name), np.float32) for name in networked.layers], axis=1)
            for split in networked.values()
        ]
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = [name for split in networked.values() for name in split.ids]
    cosines = rows @ rows[ids.index("test/eel/02.png")]
    assert [near.id for near in by_bytes.neighbours] == [ids[row] for row in np.argsort(-cosines)[:4]]


def test_images_come_in_the_order_in_which_they_were_given(networked: FeatureCache, workspace: Workspace) -> None:
    test = workspace.pictures / "test"
    given = [str(test / "dog" / "01.png"), "train/cat/00.png", "test/eel/00.png", str(test / "cat")]
    found = search(networked, given, count=1, layers="layer2", splits="train")
    assert [image.path for image in found.images] == [
        *given[:3],
        *(str(test / "cat" / f"{number:02d}.png") for number in range(4)),
    ]
    assert {near.split for image in found.images for near in image.neighbours} == {"train"}
    assert found.rows == 36


def test_all_rows_are_found_where_more_are_wanted(workspace: Workspace) -> None:
    with extract(workspace.pictures, "pixels", image_size=8, data_dir=workspace.root / "data") as cache:
        found = search(cache.path, "test/dog/00.png", count=1000)
        array = search(cache, np.zeros((5, 5, 3), np.uint8), count=1000)
    assert len(found.images[0].neighbours) == 47 and len(array.images[0].neighbours) == 48
    assert found.to_json()["images"][0]["neighbours"][0].keys() == {"id", "split", "label", "similarity"}


def test_rows_of_zeros_are_similar_to_nothing(tmp_path: Path) -> None:
    rows = Rows(ids=["狗/0", "b", "c"], labels=np.array([0, -1, 1]), layers={"a": np.eye(3, 2, dtype="f2")})
    with write_cache(tmp_path, {"train": rows}, classes=("狗", "ω")) as cache:
        (found,) = search(cache, "c").images
    assert [(near.id, near.label, near.similarity) for near in found.neighbours] == [("狗/0", "狗", 0), ("b", None, 0)]


def test_what_cannot_be_searched_is_explained(networked: FeatureCache, workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: there is no such file, and no image of .* has this id") as caught:
        search(networked, "gone.png", layers="all")
    assert "train/cat/00.png" in str(caught.value.hint)
    with pytest.raises(InvalidOption, match="holds 2 layers"):
        search(networked, "test/dog/00.png")
    with pytest.raises(UnknownName, match="unknown layer 'layer3'"):
        search(networked, "test/dog/00.png", layers="layer3")
    with pytest.raises(UnknownName, match="unknown split 'tset'"):
        search(networked, "test/dog/00.png", layers="all", splits="tset")
    with pytest.raises(InvalidOption, match="expected images, got none"):
        search(networked, [], layers="all")
    with pytest.raises(SourceError, match="no images found"):
        search(networked, str(tmp_path), layers="all")
    (tmp_path / "note.png").write_text("no image")
    with pytest.raises(ImageError, match=r"note\.png: not an image"):
        search(networked, str(tmp_path / "note.png"), layers="all", data_dir=workspace.root / "half")
    with pytest.raises(WeightsError, match="expected sha256"):
        search(networked, np.zeros((9, 9, 3), np.uint8), layers="all", weights="random:2")
    with pytest.raises(InvalidOption, match="--count of at least 1"):
        search(networked, "test/dog/00.png", layers="all", count=0)
