"""Projects features to two dimensions by PCA, t-SNE or UMAP.

PCA shows the two directions with the most variance. t-SNE (van der Maaten & Hinton, 2008) and UMAP (McInnes et al.,
2018) keep neighbours together instead; large distances on their maps have no meaning. All use the same choice of at
most `limit` rows, because a page cannot show more and the time of t-SNE grows with them. Rows are reduced to 50
principal components before t-SNE and UMAP, as their authors advise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from featcache.analysis.values import FeatureRows, Rows, blocks, read_values, thin
from featcache.display import Shown
from featcache.errors import InvalidOption, MissingExtra

Points = npt.NDArray[np.float32]
Method = Literal["pca", "tsne", "umap"]
METHODS: Final = get_args(Method)

MOST_POINTS: Final[Mapping[str, int]] = {"pca": 10_000, "tsne": 5_000, "umap": 10_000}
"""The default number of points of a map; t-SNE takes half a minute for 5,000 points on 2 cores."""

COMPONENTS: Final = 50
# Rows on which principal components are fitted; more rows change a map by less than a pixel.
FIT_ROWS: Final = 4_000
_LEAST_ROWS: Final = 5
_PERPLEXITY: Final = 30.0
_NEIGHBOURS: Final = 15


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Projection(Shown):
    """Features projected to two dimensions.

    `points`: float32 (n, 2). `rows`: int64 (n,), ascending, the row of each point. `explained`: for PCA the share of
    variance along each axis, else None. `note`: how many rows were left out, None if all are shown.
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
    """Project features to two dimensions.

    Memory: one block of rows, the components, and n rows of 50 values.

    Args:
        features: Shape (N, D), any dtype: an array, or a cache's `FeatureArray`.
        method: "pca", "tsne" or "umap".
        seed: Seed of the choice of rows and of the method.
        limit: The largest number of points; None: the default of the method (10,000, for t-SNE 5,000).
        labels: int64 (N,). With labels, every label keeps its share among the chosen points.

    Returns:
        The points, float32 (n, 2), and the rows that they belong to.

    Raises:
        InvalidOption: The method is unknown, the features are not (N, D), or fewer than 5 rows remain.
        HeadError: A feature is NaN or infinite.
        MissingExtra: The method is "umap", and UMAP is not installed.
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
    # scikit-learn's t-SNE ends the process if all points are identical.
    points = _NEIGHBOURLY[method](reduced, seed) if np.ptp(reduced, axis=0).any() else reduced[:, :2]
    return Projection(points=points, rows=rows, method=method, note=note)


def _count(features: FeatureRows) -> int:
    if len(features.shape) != 2:
        raise InvalidOption(f"expected features (N, D), got shape {tuple(features.shape)}")
    return int(features.shape[0])


def principal(features: FeatureRows, rows: Rows, components: int, *, seed: int) -> tuple[Points, tuple[float, ...]]:
    """The first principal components of `rows`: float32 (n, k), and the share of variance along each.

    k is `components`, or the largest possible number, but at least 2 (missing components are 0). The directions are
    fitted on at most 4,000 rows by a randomised decomposition (Halko, Martinsson & Tropp, 2011), with the memory of
    these rows; then all rows are read in blocks. Signs are fixed, so the same features give the same map.
    """
    from sklearn.decomposition import PCA

    sampled = rows[thin(len(rows), _fit_rows(features.shape[1]), seed=seed)]
    sample = read_values(features, sampled)
    k = min(components, *sample.shape)
    # Constant features have no variance: their shares are 0 / 0.
    with np.errstate(invalid="ignore"):
        pca = PCA(n_components=k, svd_solver="randomized", random_state=seed).fit(sample)
    del sample
    points = np.zeros((len(rows), max(k, 2)), np.float32)
    for start, block in blocks(features, rows):
        points[start : start + len(block), :k] = pca.transform(block)
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    return points, (*map(float, shares), *[0.0] * (2 - k))


def _fit_rows(wide: int) -> int:
    # A float32 copy of the rows and its centred copy are in memory at the same time.
    return int(np.clip((256 << 20) // (4 * wide), 500, FIT_ROWS))


def _tsne(reduced: Points, seed: int) -> Points:
    from sklearn.manifold import TSNE

    # Initialised with the first two components, as in openTSNE and scikit-learn, so that runs give similar maps.
    perplexity = min(_PERPLEXITY, (len(reduced) - 1) / 3)
    points: Points = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(reduced)
    return points.astype(np.float32)


def _umap(reduced: Points, seed: int) -> Points:
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingExtra("a map by UMAP", package=error.name or "umap-learn", extra="umap") from error
    neighbours = min(_NEIGHBOURS, len(reduced) - 1)
    points: Points = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(reduced)
    return points.astype(np.float32)


_NEIGHBOURLY: Final[Mapping[str, Callable[[Points, int], Points]]] = {"tsne": _tsne, "umap": _umap}
