"""An audit finds planted faults (wrong labels, unusual images, unlike splits), and nothing in a clean cache."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from audit_caches import CLASSES, Features, Labels, clouds, write_cache
from PIL import Image

from featcache.analysis.audit import audit_cache
from featcache.analysis.directions import directions
from featcache.analysis.folds import FOLDS, out_of_fold
from featcache.analysis.label_errors import confident_errors
from featcache.analysis.outliers import class_distances
from featcache.analysis.records import KINDS, Finding
from featcache.analysis.table import ImageTable
from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, UnknownName
from featcache.extraction.request import Request
from featcache.extraction.run import extract

Splits = dict[str, tuple[Features, Labels]]


def clean_splits() -> Splits:
    """Train and test from the same clouds."""
    return {"train": clouds(300, distance=0.8), "test": clouds(120, distance=0.8, seed=1)}


def findings_of(tmp_path: Path, splits: Splits, kind: str, **options: object) -> tuple[Finding, ...]:
    with write_cache(tmp_path, splits, **options) as cache:  # type: ignore[arg-type]  # passed on
        return audit_cache(cache).section(kind).findings


def reasons(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.reason for finding in findings]


def ids(finding: Finding) -> list[str]:
    return [sample.id for sample in finding.samples]


# --- the whole ---------------------------------------------------------------------------------------------


def test_a_cache_without_faults_has_nearly_no_findings(tmp_path: Path) -> None:
    stages: list[str] = []
    audit = audit_cache(
        write_cache(tmp_path, clean_splits()),
        progress=lambda stage, done, total: stages.append(f"{stage} {done}/{total}"),
    )
    assert [section.kind for section in audit.sections] == list(KINDS)
    sizes = {section.kind: len(section.findings) for section in audit.sections}
    assert sizes.pop("outlier") <= 4
    assert sizes == dict.fromkeys(sizes, 0)
    assert all(section.note for section in audit.sections)
    assert (audit.cache, audit.layer, audit.classes) == ("toy", "avgpool", CLASSES)
    assert audit.counts["test"] == {"ant": 40, "bee": 40, "cow": 40}
    assert {"reading 420/420", "comparing 420/420", f"judging {FOLDS}/{FOLDS}"} <= set(stages)


def test_the_same_cache_gives_the_same_findings(tmp_path: Path) -> None:
    with write_cache(tmp_path, clean_splits()) as cache:
        one, other = (audit_cache(cache).to_json() | {"seconds": 0} for _ in range(2))
    assert json.dumps(one, allow_nan=False) == json.dumps(other, allow_nan=False)


def test_an_unknown_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown layer 'fc'"):
        audit_cache(write_cache(tmp_path, clean_splits()), layer="fc")


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    splits = clean_splits()
    splits["test"][0][5, 2] = np.nan
    with pytest.raises(HeadError, match="NaN or infinity in row 5 of <FeatureArray test/features/avgpool"):
        audit_cache(write_cache(tmp_path, splits))


@pytest.mark.parametrize("images", [1, 2, 20])
def test_too_few_images_are_noted(images: int, tmp_path: Path) -> None:
    audit = audit_cache(write_cache(tmp_path, {"test": clouds(images)}))
    assert "too few" in audit.withheld["label_error"]
    assert "too few" in audit.withheld["outlier"]


# --- labels ------------------------------------------------------------------------------------------------


def test_wrong_labels_are_found_in_every_split(tmp_path: Path) -> None:
    splits = {"train": clouds(300, distance=1.5), "test": clouds(120, distance=1.5, seed=1)}
    for _, labels in splits.values():
        labels[7] = (labels[7] + 1) % 3
    findings = findings_of(tmp_path, splits, "label_error")
    assert sorted(ids(finding) for finding in findings) == [["test/00007"], ["train/00007"]]
    assert all(finding.suggested == 7 % 3 for finding in findings)
    assert all(finding.score > 0.9 for finding in findings)
    assert findings[0].reason.startswith("labelled cow, looks like bee: ")


def test_a_wrong_label_is_found_although_its_copies_have_it_too(tmp_path: Path) -> None:
    splits = clean_splits()
    features, labels = splits["train"]
    # Ten copies of one image: a head fitted on one of them would predict the wrong label for the others.
    features[:10], labels[:10] = features[1], (labels[1] + 1) % 3
    digests = {"train": [bytes(32)] * 10 + [bytes([n % 256, n // 256] * 16) for n in range(10, 300)]}
    findings = findings_of(tmp_path, splits, "label_error", digests=digests)
    assert sorted(ids(finding)[0] for finding in findings) == [f"train/{n:05d}" for n in range(10)]


def test_unlabelled_images_are_listed_and_have_no_label_errors(tmp_path: Path) -> None:
    splits = clean_splits()
    splits["train"][1][[3, 8]] = -1
    splits["test"][1][:] = -1
    assert findings_of(tmp_path / "a", splits, "label_error") == ()
    whole, partly = findings_of(tmp_path / "b", splits, "unlabelled")
    if whole.samples:
        whole, partly = partly, whole
    assert (whole.reason, whole.samples, whole.score) == ("120 of 120 images of test have no label", (), 1)
    assert ids(partly) == ["train/00003", "train/00008"]


def test_confident_errors_need_a_confident_class_and_an_unlikely_label() -> None:
    probabilities = np.array(
        [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.01, 0.99, 0.0], [0.3, 0.7, 0.0], [0.985, 0.015, 0.0]]
    )
    suspects, suggested = confident_errors(probabilities, np.array([0, 0, 0, 1, 1]))
    assert suspects.tolist() == [2, 4]
    assert suggested.tolist() == [1, 0]


def test_no_image_is_predicted_by_a_head_fitted_on_it() -> None:
    rows, labels = clouds(100, dim=6, classes=2, distance=0.0)
    probabilities = out_of_fold(rows, np.arange(100), labels)
    assert probabilities.shape == (100, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    # There is nothing to learn: only a head fitted on the same labels would do better.
    assert (probabilities.argmax(axis=1) == labels).mean() < 0.65


def test_a_class_of_one_image_is_handled() -> None:
    rows, labels = clouds(60, dim=6, classes=2)
    labels[0] = 4
    probabilities = out_of_fold(rows, np.arange(60), labels)
    assert probabilities.shape == (60, 5)
    assert np.isfinite(probabilities).all()
    assert (probabilities[:, 2:4] == 0).all()
    assert probabilities[0, 4] == 0


# --- outliers ----------------------------------------------------------------------------------------------


def test_unusual_images_come_first(tmp_path: Path) -> None:
    splits = clean_splits()
    # Like real features, these share a large mean and lie near a subspace of few dimensions; four of them do not.
    generator = np.random.default_rng(0)
    spread = generator.standard_normal((32, 32)).astype(np.float32) * np.where(np.arange(32) < 8, 1, 0.1)[:, None]
    common = 10 * generator.standard_normal(32).astype(np.float32)
    splits = {split: ((features @ spread + common).astype(np.float32), of) for split, (features, of) in splits.items()}
    splits["train"][0][[5, 50, 51, 200]] = 5 * generator.standard_normal((4, 32))
    findings = findings_of(tmp_path, splits, "outlier")
    assert {ids(finding)[0] for finding in findings[:4]} == {f"train/{n:05d}" for n in (5, 50, 51, 200)}
    assert [finding.score for finding in findings] == sorted((one.score for one in findings), reverse=True)
    assert "half of all images are within" in findings[0].reason


@pytest.mark.slow
def test_images_that_are_no_photographs_are_outliers(tmp_path: Path, cifar_zip: Path, vgg_weights: Path) -> None:
    folder = tmp_path / "mixed"
    with zipfile.ZipFile(cifar_zip) as archive:
        names = [name for name in archive.namelist() if "/test/" in name and int(Path(name).stem) < 60]
        for name in names:
            target = folder / name.removeprefix("cifar10/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
    generator = np.random.default_rng(0)
    flat = [np.full((32, 32, 3), generator.integers(0, 256, 3), np.uint8) for _ in range(4)]
    noise = [generator.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(4)]
    slope = [np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], 32, 1).repeat(3, 2)]
    classes = sorted((folder / "test").iterdir())
    for number, pixels in enumerate([*flat, *noise, *slope]):
        Image.fromarray(pixels).save(classes[number] / f"foreign-{number}.png")
    request = Request(
        dataset=folder, backbone="vgg16", weights=str(vgg_weights), image_size=64, pool="avg", data_dir=tmp_path
    )
    with FeatureCache.open(extract(request).cache) as cache:
        findings = audit_cache(cache).section("outlier").findings
    named = [ids(finding)[0] for finding in findings]
    assert sum("foreign" in name for name in named) >= 8
    assert sum("foreign" in name for name in named[:20]) >= 7
    assert len(named) < 0.05 * len(names)


def test_the_distance_to_a_class_is_mahalanobis() -> None:
    rows, labels = clouds(400, dim=5, distance=2.0)
    distances, nearest = class_distances(rows, labels)
    means = np.stack([rows[labels == n].mean(axis=0) for n in range(3)]).astype(np.float64)
    around = rows - means[labels]
    covariance = around.T @ around / 400
    covariance = 0.1 * covariance + 0.9 * np.trace(covariance) / 5 * np.eye(5)
    apart = rows[:, None] - means[None]
    expected = np.sqrt(np.einsum("ncd,de,nce->nc", apart, np.linalg.inv(covariance), apart))
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-4)
    np.testing.assert_array_equal(nearest, expected.argmin(axis=1))


# --- splits and classes ------------------------------------------------------------------------------------


def test_ids_that_name_another_split_are_found(tmp_path: Path) -> None:
    names = {"train": [f"train/cow/{n:04d}.jpg" for n in range(300)]}
    names["train"][4] = "train/cow/from_test_4.jpg"
    names["train"][9] = "valid/cow/9.jpg"
    splits = {"train": clouds(300, distance=0.8)}
    findings = findings_of(tmp_path, splits, "split", ids={"train": sorted(names["train"])})
    assert reasons(findings) == ["1 of 300 images of train have ids that name val"]
    # An id that names train as well is not reported.
    names["train"][4] = "cow/holdout-test-4.jpg"
    assert len(findings_of(tmp_path / "b", splits, "split", ids={"train": sorted(names["train"])})) == 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    names = {"test": [f"test/train/{n:04d}.jpg" for n in range(120)]}
    splits = {"test": clouds(120)}
    assert findings_of(tmp_path, splits, "split", ids=names, classes=("bus", "car", "train")) == ()


def test_a_small_split_is_reported_with_its_uncertainty(tmp_path: Path) -> None:
    splits = clean_splits() | {"val": clouds(24, distance=0.8, seed=2)}
    (finding,) = findings_of(tmp_path, splits, "split")
    assert finding.reason == "val has 24 images: an accuracy of 90 % on them is uncertain by 12 points"


def test_a_missing_class_is_reported(tmp_path: Path) -> None:
    splits = clean_splits()
    features, labels = splits["train"]
    splits["train"] = (features[labels != 1], labels[labels != 1])
    texts = reasons(findings_of(tmp_path, splits, "split"))
    assert "train has no image of bee, which other splits have" in texts


def test_other_shares_of_the_classes_are_found(tmp_path: Path) -> None:
    splits = clean_splits()
    features, labels = clouds(300, distance=0.8, seed=1)
    kept = np.flatnonzero((labels == 0) | (np.arange(300) < 100))
    splits["test"] = (features[kept], labels[kept])
    (finding,) = findings_of(tmp_path, splits, "split")
    assert finding.reason.startswith("the class shares of test differ from those of train: ")


def test_a_split_of_different_images_is_found(tmp_path: Path) -> None:
    splits = clean_splits()
    features, labels = splits["test"]
    splits["test"] = (features + np.float32(0.8), labels)
    (finding,) = findings_of(tmp_path, splits, "split")
    assert finding.reason.startswith("images of test look different from those of train: a linear head separates ")
    assert finding.score > 0.5


def test_rare_and_frequent_classes_are_reported(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 60, 10, 200])
    features = clouds(320)[0]
    findings = findings_of(tmp_path, {"train": (features, labels)}, "balance", classes=("a", "b", "c", "d"))
    assert reasons(findings) == [
        "c has 10 images in train, the median class 55",
        "d has 200 images in train, the median class 55",
    ]


# --- directions --------------------------------------------------------------------------------------------


def test_directions_are_centred_and_of_length_one(tmp_path: Path) -> None:
    splits = clean_splits()
    rows = directions(ImageTable.of(write_cache(tmp_path, splits)))
    values = np.concatenate([splits["train"][0], splits["test"][0]])
    values -= values.mean(axis=0)
    np.testing.assert_allclose(rows, values / np.linalg.norm(values, axis=1, keepdims=True), atol=1e-5)


def test_wide_features_keep_their_cosines(tmp_path: Path) -> None:
    features, labels = clouds(80, dim=3000, distance=0.8)
    rows = directions(ImageTable.of(write_cache(tmp_path, {"train": (features, labels)})))
    assert rows.shape == (80, 512)
    values = features - features.mean(axis=0)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    assert np.abs(rows @ rows.T - values @ values.T).max() < 0.2


def test_features_that_do_not_vary_have_no_direction(tmp_path: Path) -> None:
    splits: Splits = {"train": (np.full((60, 8), 3.3, np.float32), np.arange(60) % 3)}
    with write_cache(tmp_path, splits) as cache:
        assert (directions(ImageTable.of(cache)) == 0).all()
        assert not audit_cache(cache).section("duplicate").findings


def test_large_directions_are_memory_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with write_cache(tmp_path, clean_splits()) as cache:
        expected = audit_cache(cache).to_json()["sections"]
        monkeypatch.setattr("featcache.analysis.directions.RESIDENT_BYTES", 1000)
        assert isinstance(directions(ImageTable.of(cache)), np.memmap)
        assert audit_cache(cache).to_json()["sections"] == expected


def test_labels_of_nearly_as_many_classes_as_images_are_audited_without_a_warning(tmp_path: Path) -> None:
    features, _ = clouds(80)
    names = tuple(f"c{n:02d}" for n in range(60))
    cache = write_cache(tmp_path, {"train": (features, np.arange(80) % 60)}, classes=names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "too" not in audit_cache(cache).withheld["label_error"]


def test_one_image_is_called_one_image(tmp_path: Path) -> None:
    features, labels = clouds(1)
    audit = audit_cache(write_cache(tmp_path, {"train": (features, labels), "test": (features, labels)}))
    texts = [*audit.withheld.values(), *(one.reason for part in audit.sections for one in part.findings)]
    assert "test has 1 image: an accuracy of 90 % on them is uncertain by 59 points" in texts
    assert not any("1 images" in text or "1 classes" in text or "1 image are" in text for text in texts)
