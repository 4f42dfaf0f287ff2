"""Pictures that occur twice are found by their bytes, outlines or features, and different pictures are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from audit_caches import CLASSES, clouds, write_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from featcache.analysis.audit import audit_cache
from featcache.analysis.duplicates import Match, group_matches
from featcache.analysis.pairs import near_pairs
from featcache.analysis.pictures import Pictures, gradient_correlation
from featcache.analysis.records import Audit, Finding
from featcache.analysis.table import ImageTable
from featcache.cache.reader import FeatureCache
from featcache.images import ArraySource, ImageSource, decode, digest, open_images, select

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]


def photograph(seed: int, side: int = 32) -> Pixels:
    """An image with large and small shapes, different for every seed."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def recompress(pixels: Pixels) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=70)
    return np.asarray(Image.open(file).convert("RGB"))


def mirror(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[:, ::-1])


def brighten(pixels: Pixels) -> Pixels:
    return (pixels * 0.7 + 60).astype(np.uint8)


def shrink(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((24, 24)))


def shift(pixels: Pixels) -> Pixels:
    return np.roll(pixels, 2, axis=1)


CHANGES: dict[str, Change] = {
    "copy": recompress,
    "mirrored": mirror,
    "brighter": brighten,
    "smaller": shrink,
    "moved": shift,
}
TRAIN, LABELS = clouds(60, dim=48, distance=0.7)
TEST, TEST_LABELS = clouds(30, dim=48, distance=0.7, seed=1)


def close_to(features: NDArray[np.float32], cosine: float = 0.9) -> NDArray[np.float32]:
    """A feature whose centred cosine with another is about `cosine`."""
    noise = np.random.default_rng(7).standard_normal(features.shape)
    noise *= np.linalg.norm(features) / np.linalg.norm(noise)
    near: NDArray[np.float32] = (features + noise * np.sqrt(1 / cosine**2 - 1)).astype(np.float32)
    return near


def plant_copy(tmp_path: Path, change: Change, cosine: float) -> tuple[FeatureCache, ImageSource]:
    """A cache whose test row 3 is a changed copy of train row 10, and the images."""
    pictures = {"train": [photograph(n) for n in range(60)], "test": [photograph(100 + n) for n in range(30)]}
    pictures["test"][3] = change(pictures["train"][10])
    test, labels = TEST.copy(), TEST_LABELS.copy()
    test[3], labels[3] = close_to(TRAIN[10], cosine), LABELS[10]
    splits = {"train": (TRAIN, LABELS), "test": (test, labels)}
    digests = {split: [digest(one) for one in some] for split, some in pictures.items()}
    cache = write_cache(tmp_path, splits, digests=digests)
    source = ArraySource({split: (some, splits[split][1]) for split, some in pictures.items()}, classes=CLASSES)
    return cache, source


def ids(finding: Finding) -> list[str]:
    return [sample.id for sample in finding.samples]


def findings_of(audit: Audit) -> list[Finding]:
    return [*audit.section("leak").findings, *audit.section("duplicate").findings]


# --- by their bytes ----------------------------------------------------------------------------------------


def test_the_same_bytes_are_one_finding_that_names_all_of_them(tmp_path: Path) -> None:
    words = {"train": [f"train {n}" for n in range(60)], "test": [f"test {n}" for n in range(30)]}
    words["train"][4] = words["train"][7] = words["test"][2] = "the same"
    words["train"][20] = words["train"][21] = "another"
    digests = {split: [digest(word.encode()) for word in some] for split, some in words.items()}
    audit = audit_cache(write_cache(tmp_path, {"train": (TRAIN, LABELS), "test": (TEST, TEST_LABELS)}, digests=digests))
    (leak,) = audit.section("leak").findings
    assert ids(leak) == ["train/00004", "train/00007", "test/00002"]
    assert {link.how for link in leak.links} == {"exact"}
    assert len(leak.links) == 2
    assert leak.score == 1
    (within,) = audit.section("duplicate").findings
    assert ids(within) == ["train/00020", "train/00021"]
    assert within.reason == "the same bytes: 2 images in train, labelled ant and cow"


def test_leaks_into_test_come_first_then_contradicting_labels(tmp_path: Path) -> None:
    words = {split: [f"{split} {n}" for n in range(30)] for split in ("train", "val", "test")}
    words["train"][0] = words["val"][0] = "train and val"
    words["train"][5] = words["test"][5] = "train and test"
    words["train"][6] = words["train"][9] = "the same label"
    words["train"][7] = words["train"][8] = "other labels"
    digests = {split: [digest(word.encode()) for word in some] for split, some in words.items()}
    splits = {split: clouds(30, dim=48, distance=0.7, seed=seed) for seed, split in enumerate(words)}
    audit = audit_cache(write_cache(tmp_path, splits, digests=digests))
    assert [ids(leak) for leak in audit.section("leak").findings] == [
        ["train/00005", "test/00005"],
        ["train/00000", "val/00000"],
    ]
    assert [ids(one) for one in audit.section("duplicate").findings] == [
        ["train/00007", "train/00008"],
        ["train/00006", "train/00009"],
    ]


def test_views_of_one_image_are_no_duplicates(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": (TRAIN, LABELS), "test": (TEST, TEST_LABELS)}, augmented=[TRAIN])
    audit = audit_cache(cache)
    assert findings_of(audit) == []
    assert sum(audit.counts["train"].values()) == 60


# --- by their outlines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_copy_in_another_split_is_a_leak(name: str, tmp_path: Path) -> None:
    cache, source = plant_copy(tmp_path, CHANGES[name], cosine=0.8)
    (leak,) = findings_of(audit_cache(cache, source=source))
    assert ids(leak) == ["train/00010", "test/00003"]
    (link,) = leak.links
    assert link.how == ("mirrored" if name == "mirrored" else "copy")
    assert link.pixels is not None
    assert link.pixels > 0.65
    assert 0.6 < link.cosine < 0.95
    # The features alone would not suffice.
    assert findings_of(audit_cache(cache)) == []


def test_another_picture_with_similar_features_is_no_leak(tmp_path: Path) -> None:
    cache, source = plant_copy(tmp_path, lambda _: photograph(999), cosine=0.97)
    assert findings_of(audit_cache(cache, source=source)) == []
    (leak,) = findings_of(audit_cache(cache))
    assert leak.reason == "features that hardly differ: 2 images in train and test"
    assert leak.links[0].pixels is None


def test_an_image_that_has_changed_since_is_not_compared(tmp_path: Path) -> None:
    cache, source = plant_copy(tmp_path, mirror, cosine=0.8)
    other = [photograph(500 + n) for n in range(60)]
    changed = ArraySource({"train": (other, LABELS), "test": ([photograph(600)] * 30, TEST_LABELS)}, classes=CLASSES)
    audit = audit_cache(cache, source=changed)
    assert findings_of(audit) == []
    assert "the images were not compared" in audit.section("leak").note
    assert "images were looked at" in audit_cache(cache, source=source).section("leak").note


def test_images_that_cannot_be_read_are_compared_by_their_features(tmp_path: Path) -> None:
    cache, _ = plant_copy(tmp_path, mirror, cosine=0.97)
    empty = ArraySource([photograph(0)])
    (leak,) = findings_of(audit_cache(cache, source=empty))
    assert leak.links[0].how == "features"


@given(
    pixels=arrays(np.uint8, (16, 16), elements=st.integers(0, 255)),
    factor=st.floats(0.2, 3),
    added=st.floats(-50, 50),
)
@settings(deadline=None)
def test_outlines_ignore_brightness_and_contrast(pixels: Pixels, factor: float, added: float) -> None:
    plain = pixels[None].astype(np.float32)
    (same,) = gradient_correlation(plain, plain * np.float32(factor) + np.float32(added))
    inner = plain[0, 2:14, 2:14]
    if np.ptp(inner) == 0:
        assert np.isnan(same)
    else:
        assert same == pytest.approx(1, abs=1e-3)


def test_a_picture_without_outlines_has_no_correlation(tmp_path: Path) -> None:
    black = ArraySource([np.zeros((9, 9, 3), np.uint8), np.full((9, 9), 7, np.uint8), photograph(1)])
    samples = black.samples("train")
    cache = write_cache(
        tmp_path, {"train": clouds(3)}, digests={"train": [digest(black.read(sample)) for sample in samples]}
    )
    pictures = Pictures.read(black, ImageTable.of(cache), np.arange(3))
    plain, turned = pictures.correlate(np.array([0, 0, 2]), np.array([1, 2, 2]))
    assert np.isnan(plain[:2]).all()
    assert np.isnan(turned[:2]).all()
    assert plain[2] == pytest.approx(1)


def test_different_photographs_do_not_match_but_their_copies_do(cifar_zip: Path, tmp_path: Path) -> None:
    source = open_images(cifar_zip, datasets_dir=tmp_path)
    real = [decode(source.read(sample), sample.id) for sample in select(source.samples("test"), 60)]
    pictures = [*real, *(mirror(one) for one in real), *(recompress(one) for one in real)]
    look = ArraySource(pictures)
    digests = {"train": [digest(look.read(sample)) for sample in look.samples("train")]}
    table = ImageTable.of(write_cache(tmp_path, {"train": clouds(len(pictures))}, digests=digests))
    seen = Pictures.read(look, table, np.arange(len(pictures)))
    first, second = np.triu_indices(60, 1)
    assert (np.maximum(*seen.correlate(first, second)) > 0.6).mean() < 0.01
    numbers = np.arange(60)
    assert seen.correlate(numbers, numbers + 60)[1].min() > 0.99
    assert seen.correlate(numbers, numbers + 120)[0].min() > 0.95


# --- pairs and groups --------------------------------------------------------------------------------------


def test_pairs_are_those_with_the_highest_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.analysis.pairs._BLOCK_BYTES", 4 * 200 * 32)
    features = clouds(200, dim=16)[0]
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = near_pairs(rows.astype(np.float32))
    cosines = np.triu(rows @ rows.T, 1)
    expected = np.argwhere(cosines >= pairs.floor)
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [tuple(pair) for pair in expected]
    np.testing.assert_allclose(pairs.cosine, cosines[pairs.first, pairs.second], atol=1e-5)
    assert 10 * 200 <= 2 * len(pairs) <= 30 * 200


def test_identical_features_give_a_bounded_number_of_pairs() -> None:
    rows = np.full((900, 4), 0.5, np.float32)
    assert len(near_pairs(rows)) <= 64 * 900


@given(
    links=st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 11), st.floats(0, 1)).filter(lambda one: one[0] < one[1]),
        max_size=30,
    )
)
def test_groups_are_the_connected_images(links: list[tuple[int, int, float]]) -> None:
    matches = [Match(first=a, second=b, how="copy", cosine=s, pixels=s, strength=s) for a, b, s in links]
    groups = group_matches(12, matches)
    together = np.eye(12, dtype=bool)
    for a, b, _ in links:
        together[a, b] = together[b, a] = True
    for _ in range(4):
        together = (together.astype(int) @ together.astype(int)) > 0
    found = {tuple(group.numbers.tolist()) for group in groups}
    assert found == {tuple(np.flatnonzero(row).tolist()) for row in together if row.sum() > 1}
    assert all(len(group.matches) == len(group.numbers) - 1 for group in groups)
