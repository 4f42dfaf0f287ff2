"""Features on a plane: a map on which near images lie near each other.

PCA shows the two directions in which features differ most; t-SNE (van der Maaten & Hinton, 2008) and UMAP (McInnes
et al., 2018) keep neighbours together instead, and say nothing of distances across the map. All see the same rows:
a choice of at most `limit`, because no page shows more and t-SNE's time grows with them. Wide rows become 50 principal
components before t-SNE and UMAP, as their authors advise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from featcache.analysis.thinning import Rows, thin
from featcache.analysis.values import FeatureRows, blocks, read_values
from featcache.errors import InvalidOption, MissingExtra

Points = npt.NDArray[np.float32]
Method = Literal["pca", "tsne", "umap"]
METHODS: Final = get_args(Method)

MOST_POINTS: Final[Mapping[str, int]] = {"pca": 10_000, "tsne": 5_000, "umap": 10_000}
"""Points of a map unless told otherwise: t-SNE takes half a minute for 5,000 on 2 cores."""

COMPONENTS: Final = 50
# Rows that principal components are found on; more change two directions of a map by less than a pixel.
FIT_ROWS: Final = 4_000
_LEAST_ROWS: Final = 5
_PERPLEXITY: Final = 30.0
_NEIGHBOURS: Final = 15


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """A map of features. `points`: float32 (n, 2); `rows`: int64 (n,), ascending, whose points they are.

    `explained`: the share of the features' variance along each axis, for PCA. `note`: what was left out, else None.
    """

    points: Points
    rows: Rows
    method: str
    explained: tuple[float, float] | None = None
    note: str | None = None


def project(
    features: FeatureRows,
    *,
    method: Method = "pca",
    seed: int = 0,
    limit: int | None = None,
    labels: npt.NDArray[np.int64] | None = None,
) -> Projection:
    """Map features (N, D) of any dtype to the plane.

    `limit`: at most so many points (None: MOST_POINTS of the method), chosen by `seed` and, where `labels` int64
    (N,) are given, by label in equal shares. Memory stays at a block of rows, the components, and n rows of 50.

    Raises InvalidOption for another method or shape, HeadError for NaN or infinity, MissingExtra where UMAP is not
    installed.
    """
    if method not in METHODS:
        raise InvalidOption(f"expected a map by {', '.join(METHODS)}, got {method!r}")
    count = _count(features)
    most = MOST_POINTS[method] if limit is None else limit
    rows = thin(count, most, labels=labels, seed=seed)
    note = None if len(rows) == count else f"{len(rows):,} of {count:,} points are shown"
    if len(rows) < _LEAST_ROWS:
        raise InvalidOption(f"expected at least {_LEAST_ROWS} images for a map, got {len(rows)}")
    if method == "pca":
        reduced, explained = principal(features, rows, 2, seed=seed)
        return Projection(points=reduced, rows=rows, method=method, explained=(explained[0], explained[1]), note=note)
    reduced, _ = principal(features, rows, COMPONENTS, seed=seed)
    # scikit-learn's t-SNE ends the process on points that are all the same.
    points = _NEIGHBOURLY[method](reduced, seed) if np.ptp(reduced, axis=0).any() else reduced[:, :2]
    return Projection(points=points, rows=rows, method=method, note=note)


def _count(features: FeatureRows) -> int:
    if len(features.shape) != 2:
        raise InvalidOption(f"expected features (N, D), got shape {tuple(features.shape)}")
    return int(features.shape[0])


def principal(features: FeatureRows, rows: Rows, components: int, *, seed: int) -> tuple[Points, tuple[float, ...]]:
    """The first principal components of `rows`: float32 (n, k) and the share of variance along each.

    k is `components`, or as many as there can be, and at least 2 (further ones are 0). The directions are found on
    at most 4,000 of the rows by a randomised decomposition (Halko, Martinsson & Tropp, 2011), whose memory is that
    of these rows; then all rows are read in blocks. Signs are settled, so the same features give the same map.
    """
    from sklearn.decomposition import PCA

    fitted = rows[thin(len(rows), _fit_rows(features.shape[1]), seed=seed)]
    sample = read_values(features, fitted)
    k = min(components, *sample.shape)
    # Features that do not vary have no shares.
    with np.errstate(invalid="ignore"):
        pca = PCA(n_components=k, svd_solver="randomized", random_state=seed).fit(sample)
    del sample
    points = np.zeros((len(rows), max(k, 2)), np.float32)
    for start, block in blocks(features, rows):
        points[start : start + len(block), :k] = pca.transform(block)
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    return points, (*map(float, shares), *[0.0] * (2 - k))


def _fit_rows(wide: int) -> int:
    # A float32 copy of the rows and its centred copy are held at once.
    return int(np.clip((256 << 20) // (4 * wide), 500, FIT_ROWS))


def _tsne(reduced: Points, seed: int) -> Points:
    from sklearn.manifold import TSNE

    # As in openTSNE and scikit-learn: the map begins as the first two components, so it looks alike on every run.
    perplexity = min(_PERPLEXITY, (len(reduced) - 1) / 3)
    found: Points = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(reduced)
    return found.astype(np.float32)


def _umap(reduced: Points, seed: int) -> Points:
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingExtra("a map by UMAP", package=error.name or "umap-learn", extra="umap") from error
    neighbours = min(_NEIGHBOURS, len(reduced) - 1)
    found: Points = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(reduced)
    return found.astype(np.float32)


_NEIGHBOURLY: Final[Mapping[str, Callable[[Points, int], Points]]] = {"tsne": _tsne, "umap": _umap}
