"""Equal images are certain findings, similar ones likely, and what is unclear is withheld."""

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
from featcache.analysis.copies import MOST_ALIKE, Match, group_matches
from featcache.analysis.pairs import MOST_PAIRS, near_pairs
from featcache.analysis.pictures import Pictures, gradient_correlations
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


def plant_copy(
    tmp_path: Path, change: Change, cosine: float, label: int | None = None
) -> tuple[FeatureCache, ImageSource]:
    """A cache whose test row 3 is a changed copy of train row 10, and the images."""
    pictures = {"train": [photograph(n) for n in range(60)], "test": [photograph(100 + n) for n in range(30)]}
    pictures["test"][3] = change(pictures["train"][10])
    test, labels = TEST.copy(), TEST_LABELS.copy()
    test[3], labels[3] = close_to(TRAIN[10], cosine), LABELS[10] if label is None else label
    splits = {"train": (TRAIN, LABELS), "test": (test, labels)}
    digests = {split: [digest(one) for one in some] for split, some in pictures.items()}
    cache = write_cache(tmp_path, splits, digests=digests)
    source = ArraySource({split: (some, splits[split][1]) for split, some in pictures.items()}, classes=CLASSES)
    return cache, source


def ids(finding: Finding) -> list[str]:
    return [sample.id for sample in finding.samples]


def findings_of(audit: Audit) -> list[Finding]:
    return [one for kind in ("leak", "duplicate", "look_alike") for one in audit.section(kind).findings]


# --- by their bytes ----------------------------------------------------------------------------------------


def test_the_same_bytes_are_one_finding_that_names_all_of_them(tmp_path: Path) -> None:
    words = {"train": [f"train {n}" for n in range(60)], "test": [f"test {n}" for n in range(30)]}
    words["train"][4] = words["train"][7] = words["test"][2] = "the same"
    words["train"][20] = words["train"][21] = "another"
    digests = {split: [digest(word.encode()) for word in some] for split, some in words.items()}
    audit = audit_cache(write_cache(tmp_path, {"train": (TRAIN, LABELS), "test": (TEST, TEST_LABELS)}, digests=digests))
    (leak,) = audit.section("leak").findings
    assert ids(leak) == ["train/00004", "train/00007", "test/00002"]
    assert {link.how for link in leak.links} == {"bytes"}
    assert len(leak.links) == 2
    assert leak.score == 1
    (within,) = audit.section("duplicate").findings
    assert ids(within) == ["train/00020", "train/00021"]
    assert within.reason == "the same bytes: 2 images in train, labelled ant and cow"
    questions = audit.section("label_question").findings
    assert [ids(one) for one in questions] == [ids(leak), ids(within)]
    assert questions[1].reason == "the same bytes, but labelled ant and cow"


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
def test_a_changed_copy_is_found(name: str, tmp_path: Path) -> None:
    cache, source = plant_copy(tmp_path, CHANGES[name], cosine=0.8)
    audit = audit_cache(cache, source=source)
    (found,) = findings_of(audit)
    assert set(ids(found)) == {"train/00010", "test/00003"}
    (link,) = found.links
    if name == "mirrored":
        assert (found.kind, link.how, link.score) == ("leak", "mirrored_pixels", 1.0)
    else:
        assert (found.kind, link.how) == ("look_alike", "outlines")
        assert link.outlines == pytest.approx(link.score)
        assert 0.75 < link.score <= 1
    # The features alone would not suffice.
    assert findings_of(audit_cache(cache)) == []


def test_different_labels_make_a_likely_pair_a_question(tmp_path: Path) -> None:
    cache, source = plant_copy(tmp_path, brighten, cosine=0.8, label=0)
    audit = audit_cache(cache, source=source)
    assert findings_of(audit) == []
    (question,) = audit.section("label_question").findings
    assert question.reason == "alike, but labelled ant and bee: two pictures, or one label is wrong"


def test_another_picture_with_similar_features_is_not_listed(tmp_path: Path) -> None:
    cache, source = plant_copy(tmp_path, lambda _: photograph(999), cosine=0.999)
    assert findings_of(audit_cache(cache, source=source)) == []
    (found,) = findings_of(audit_cache(cache))
    assert (found.kind, found.reason) == ("look_alike", "features that hardly differ: 2 images in train and test")
    assert found.links[0].outlines is None


def test_an_image_that_has_changed_since_is_not_compared(tmp_path: Path) -> None:
    cache, _ = plant_copy(tmp_path, mirror, cosine=0.8)
    other = [photograph(500 + n) for n in range(60)]
    changed = ArraySource({"train": (other, LABELS), "test": ([photograph(600)] * 30, TEST_LABELS)}, classes=CLASSES)
    audit = audit_cache(cache, source=changed)
    assert findings_of(audit) == []
    assert audit.withheld["look_alike"].startswith("90 images that cannot be read or that changed: ")
    for kind in ("leak", "duplicate"):
        assert audit.withheld[kind] == (
            "90 images that cannot be read or that changed: of these only the same bytes are found"
        )


def test_of_images_with_the_same_bytes_one_that_is_unchanged_is_compared(tmp_path: Path) -> None:
    pictures = {"train": [photograph(n) for n in range(60)], "test": [photograph(100 + n) for n in range(30)]}
    pictures["train"][10] = pictures["train"][4]
    pictures["test"][3] = mirror(pictures["train"][4])
    digests = {split: [digest(one) for one in some] for split, some in pictures.items()}
    splits = {"train": (TRAIN, LABELS), "test": (TEST, TEST_LABELS)}
    cache = write_cache(tmp_path, splits, digests=digests)
    pictures["train"][4] = photograph(999)
    source = ArraySource({split: (some, splits[split][1]) for split, some in pictures.items()}, classes=CLASSES)
    (leak,) = audit_cache(cache, source=source).section("leak").findings
    assert ids(leak) == ["train/00004", "train/00010", "test/00003"]


def test_leaks_whose_pixels_were_not_compared_are_withheld(tmp_path: Path) -> None:
    cache, source = plant_copy(tmp_path, mirror, cosine=0.8)
    compared, not_compared = audit_cache(cache, source=source), audit_cache(cache)
    assert [one.kind for one in findings_of(compared)] == ["leak"]
    assert not {"leak", "duplicate"} & set(compared.withheld)
    assert findings_of(not_compared) == []
    for kind in ("leak", "duplicate"):
        assert not_compared.withheld[kind] == "the pixels were not compared: only the same bytes are found"


def test_transparency_counts_as_pixels(tmp_path: Path) -> None:
    """Icons that are black everywhere, and differ in their transparency alone."""
    drawings = [np.dstack([np.zeros((32, 32, 3), np.uint8), photograph(n)[:, :, 0]]) for n in range(60)]
    pictures = [*drawings, *(np.ascontiguousarray(one[:, ::-1]) for one in drawings[:2])]
    look = ArraySource(pictures)
    digests = {"train": [digest(look.read(sample)) for sample in look.samples("train")]}
    features, labels = np.ones((62, 8), np.float32), np.zeros(62, np.int64)
    audit = audit_cache(write_cache(tmp_path, {"train": (features, labels)}, digests=digests), source=look)
    found = audit.section("duplicate").findings
    assert [ids(one) for one in found] == [["train/00000", "train/00060"], ["train/00001", "train/00061"]]
    assert {one.links[0].how for one in found} == {"mirrored_pixels"}


def audit_pictures(tmp_path: Path, pictures: list[Pixels], features: NDArray[np.float32]) -> Audit:
    look = ArraySource(pictures)
    digests = {"train": [digest(look.read(sample)) for sample in look.samples("train")]}
    splits = {"train": (features, np.zeros(len(pictures), np.int64))}
    return audit_cache(write_cache(tmp_path, splits, digests=digests), source=look)


def test_tiny_images_are_withheld(tmp_path: Path) -> None:
    tiny = [shift(photograph(n % 30, side=12)) if n < 30 else photograph(n % 30, side=12) for n in range(60)]
    audit = audit_pictures(tmp_path, tiny, TRAIN)
    assert findings_of(audit) == []
    assert "60 images smaller than 16 x 16 pixels" in audit.withheld["look_alike"]
    assert "label_question" in audit.withheld


def test_flat_images_are_withheld(tmp_path: Path) -> None:
    flat = [(photograph(n) // 100 + 90).astype(np.uint8) for n in range(60)]
    audit = audit_pictures(tmp_path, flat, TRAIN)
    assert findings_of(audit) == []
    assert "without enough contrast" in audit.withheld["look_alike"]


def test_many_alike_images_are_withheld(tmp_path: Path) -> None:
    alike = [recompress(brighten(photograph(n // 2))) if n % 2 else photograph(n // 2) for n in range(60)]
    audit = audit_pictures(tmp_path, alike, np.repeat(TRAIN[:30], 2, axis=0))
    assert findings_of(audit) == []
    assert "60 of 60 images would be listed" in audit.withheld["look_alike"]


def test_an_image_that_resembles_many_others_is_withheld(tmp_path: Path) -> None:
    versions = [(photograph(0) * (1 - n / 40)).astype(np.uint8) for n in range(MOST_ALIKE + 2)]
    others = [photograph(n) for n in range(1, 300)]
    features = np.concatenate([np.repeat(TRAIN[:1], len(versions), axis=0), clouds(299, dim=48, distance=0.7)[0]])
    audit = audit_pictures(tmp_path, [*versions, *others], features)
    assert findings_of(audit) == []
    withheld = audit.withheld["look_alike"]
    assert f"{len(versions)} images in sets of more than {MOST_ALIKE} that resemble one another" in withheld


@pytest.mark.parametrize("images", [1, 2, 5])
def test_images_whose_features_are_all_equal_are_compared(images: int, tmp_path: Path) -> None:
    """The same pixels, in arrays of other shapes, so that their bytes differ."""
    picture = np.repeat(photograph(0)[:, :, :1], 3, axis=2)
    shapes = [
        picture,
        picture[:, :, 0],
        picture[:, :, :1],
        picture[:, ::-1],
        np.dstack([picture, picture[:, :, 0] | 255]),
    ]
    audit = audit_pictures(tmp_path, shapes[:images], np.ones((images, 4), np.float32))
    sizes = [len(one.samples) for one in audit.section("duplicate").findings]
    assert sizes == ([images] if images > 1 else [])


@given(
    pixels=arrays(np.uint8, (16, 16), elements=st.integers(0, 255)),
    factor=st.floats(0.2, 3),
    added=st.floats(-50, 50),
)
@settings(deadline=None)
def test_outlines_ignore_brightness_and_contrast(pixels: Pixels, factor: float, added: float) -> None:
    plain = pixels[None].astype(np.float32)
    (same,), _ = gradient_correlations(plain, plain * np.float32(factor) + np.float32(added))
    inner = plain[0, 2:14, 2:14]
    centred = inner - inner.mean(0) - inner.mean(1)[:, None] + inner.mean()
    if np.abs(centred).max() < 0.1:
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
    assert pictures.tiny.tolist() == [True, True, False]


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
        st.tuples(st.integers(0, 11), st.integers(0, 11), st.floats(0.1, 1)).filter(lambda one: one[0] < one[1]),
        max_size=30,
        unique_by=lambda one: one[:2],
    )
)
def test_every_member_of_a_group_matches_its_medoid(links: list[tuple[int, int, float]]) -> None:
    groups = group_matches([Match(first=a, second=b, how="outlines", score=score) for a, b, score in links])
    scores = {(a, b): score for a, b, score in links}
    for group in groups:
        for match in group.matches:
            assert match.first == group.centre
            assert match.score == scores[min(match.first, match.second), max(match.first, match.second)]
    # No link is lost: both of its images are in one group.
    together = [set(group.numbers.tolist()) for group in groups]
    assert all(any({a, b} <= some for some in together) for a, b, _ in links)


def test_pairs_that_are_left_out_are_counted() -> None:
    rows = np.tile(np.array([[1, 0]], np.float32), (400, 1))
    # The last 65 images have at most as many later ones as an image keeps.
    assert near_pairs(rows).cut == 400 - (MOST_PAIRS + 1)
    assert near_pairs(rows[:40]).cut == 0
