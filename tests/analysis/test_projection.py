"""Maps of features: similar images are near each other, and a note says how many points were left out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from audit_caches import clouds, write_cache
from hypothesis import given
from hypothesis import strategies as st

from featcache.analysis import project
from featcache.analysis.projection import METHODS, Method, principal
from featcache.analysis.values import thin
from featcache.errors import HeadError, InvalidOption, MissingExtra

# UMAP compiles its code on first use: minutes on a busy machine.
METHOD = pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] if name == "umap" else []) for name in METHODS]
)
FEATURES, LABELS = clouds(60, dim=20, classes=3, distance=8.0)


@METHOD
def test_clouds_stay_apart_on_the_map(method: Method) -> None:
    found = project(FEATURES, method=method, labels=LABELS)
    assert found.points.dtype == np.float32
    assert found.points.shape == (60, 2)
    assert (found.method, found.note) == (method, None)
    assert found.rows.tolist() == list(range(60))
    distances = np.linalg.norm(found.points[:, None] - found.points[None], axis=2) + np.eye(60) * 1e9
    assert (LABELS[distances.argmin(axis=1)] == LABELS).all()


@METHOD
def test_the_same_features_give_the_same_map(method: Method) -> None:
    one, other = (project(FEATURES, method=method, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.points, other.points)


def test_pca_finds_the_directions_that_numpy_finds() -> None:
    values = np.random.default_rng(0).standard_normal((300, 12)) * np.array([9, 5, *[1] * 10])
    found = project(values)
    centred = values - values.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.points), np.abs(centred @ directions[:2].T), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.explained or (), (singular**2 / (singular**2).sum())[:2], rtol=1e-4)


def test_a_cache_is_read_in_blocks_with_its_scale(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": (FEATURES, LABELS)}, scaling=(2.0, 5.0))
    np.testing.assert_allclose(
        project(cache["train"].features).points, 2 * project(FEATURES).points, rtol=1e-3, atol=1e-2
    )


def test_many_points_are_thinned_and_noted() -> None:
    found = project(FEATURES, limit=30, labels=LABELS)
    assert found.note == "30 of 60 points are shown"
    assert np.bincount(LABELS[found.rows]).tolist() == [10, 10, 10]
    assert found.rows.tolist() == sorted(set(found.rows.tolist()))
    assert not np.array_equal(found.rows, project(FEATURES, limit=30, labels=LABELS, seed=1).rows)


@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=60),
    limit=st.integers(1, 70),
    seed=st.integers(0, 3),
)
def test_thinning_keeps_every_labels_share(labels: list[int], limit: int, seed: int) -> None:
    given_labels = np.array(labels)
    rows = thin(len(labels), limit, labels=given_labels, seed=seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == min(limit, len(labels))
    sizes = np.bincount(given_labels + 1, minlength=6)
    kept = np.bincount(given_labels[rows] + 1, minlength=6)[sizes > 0]
    # The shares are as equal as possible: with one row less, no label would exceed the share of another.
    assert ((kept - 1) / sizes[sizes > 0]).max() <= (kept / sizes[sizes > 0]).min()


@METHOD
def test_features_that_do_not_vary_are_one_point(method: Method) -> None:
    found = project(np.ones((8, 3)), method=method)
    assert np.isfinite(found.points).all()
    assert found.explained in (None, (0.0, 0.0))


@METHOD
def test_identical_images_are_handled(method: Method) -> None:
    twice = np.concatenate([np.ones((10, 20), np.float32), *[FEATURES[:20]] * 2])
    assert np.isfinite(project(twice, method=method).points).all()


def test_a_single_feature_has_a_second_axis_of_zeros() -> None:
    assert (project(np.arange(9.0)[:, None]).points[:, 1] == 0).all()


def test_wide_features_are_reduced_from_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.analysis.projection.FIT_ROWS", 500)
    wide, labels = clouds(700, dim=64, classes=2, distance=6.0)
    points, shares = principal(wide, np.arange(700), 2, seed=0)
    assert points.shape == (700, 2)
    assert 0 < shares[1] < shares[0] < 1
    assert abs(np.corrcoef(points[:, 0], labels)[0, 1]) > 0.9


@pytest.mark.parametrize(
    ("features", "options", "expected"),
    [
        (FEATURES, {"method": "mds"}, "expected a map by pca, tsne, umap, got 'mds'"),
        (FEATURES[0], {}, "expected features"),
        (FEATURES[:3], {}, "expected at least 5 images for a map, got 3"),
        (FEATURES, {"limit": 2}, "expected at least 5 images for a map, got 2"),
    ],
)
def test_what_cannot_be_mapped_is_an_error(features: object, options: dict[str, object], expected: str) -> None:
    with pytest.raises(InvalidOption, match=expected):
        project(features, **options)  # type: ignore[arg-type]  # wrong on purpose


def test_features_that_are_not_finite_are_named() -> None:
    broken = FEATURES.copy()
    broken[7, 2] = np.inf
    with pytest.raises(HeadError, match="NaN or infinity in row 7"):
        project(broken)


def test_a_missing_extra_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtra, match="a map by UMAP needs the package umap") as caught:
        project(FEATURES, method="umap")
    assert caught.value.hint == "pip install 'featcache[umap]'"
