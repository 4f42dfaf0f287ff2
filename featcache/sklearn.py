"""featcache for scikit-learn: a frozen backbone as a transformer, heads as a classifier and a regressor.

    model = make_pipeline(FeatureExtractor("vgg16"), HeadClassifier("mlp:128,64", lr=1e-2))
    model.fit(paths, labels).predict(others)

Heads are those of `train_head`, on features that lie in memory: val is cut from what `fit` is given, as featcache cuts
it, and chooses the epoch. scikit-learn's own names for such things (`random_state`) are featcache's here (`seed`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from featcache.api import extract
from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divided, options_of
from featcache.errors import InvalidOption
from featcache.extraction.execution import Execution
from featcache.extraction.request import Request
from featcache.heads.config import HeadConfig
from featcache.heads.metrics import readable
from featcache.heads.solved import SolvedHead
from featcache.rows.cuts import Cut, SplitRows, cut_rows
from featcache.rows.devices import place_of
from featcache.rows.features import FeatureRows
from featcache.rows.memory import memory_rows
from featcache.rows.target import HeadTarget
from featcache.training.fit import fit
from featcache.training.preparation import Prepared

__all__ = ["FeatureExtractor", "HeadClassifier", "HeadRegressor"]

# A transformer is given the images, and gives a row for each of them.
_NOT_OF_IMAGES = (
    *("dataset", "columns", "kinds", "split_by_folder", "splits", "limit", "select_seed", "backbone"),
    *("views", "view_seed", "view_flip", "on_error", "shard", "wait"),
)
# An estimator is given the rows and what they teach.
_NOT_OF_ROWS = ("head", "layers", "target", "group", "train_views")
_PREDICTED_ROWS = 4096


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Images -> features of a frozen backbone, float32 (N, D); layers stand side by side.

    What was computed is kept in `data_dir`: the same images are not computed twice, by this or any other extraction.
    It learns nothing, so `fit` only looks at what it is given.
    """

    @accepts(Request, Execution, without=_NOT_OF_IMAGES)
    def __init__(self, backbone: Any = "vgg16", *, data_dir: str | Path = "data", **options: Any) -> None:
        """
        Args:
            backbone: The name of a network, "pixels", or a Network (`load_backbone`, `from_module`).
            data_dir: The folder of weights and caches.
            {options}
        """
        own = ("backbone", "data_dir")
        divided(options, "FeatureExtractor", Request, Execution, without=_NOT_OF_IMAGES, also=own)
        self.backbone, self.data_dir = backbone, data_dir
        _keep(self, options, Request, Execution, without=_NOT_OF_IMAGES)

    def fit(self, X: Any, y: Any = None) -> Self:
        """Look at the images. Raises InvalidOption for what is neither an array of images nor a list of paths."""
        _images(X)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """The features of images.

        Args:
            X: An array uint8 (N, H, W) or (N, H, W, C), or N paths.

        Returns:
            float32 (N, D).

        Raises:
            InvalidOption: `X` is neither.
            SourceError, WeightsError, ExtractionError, CacheError: As `featcache.extract` does.
        """
        images, order = _images(X)
        given = _changed(self, Request, Execution, without=_NOT_OF_IMAGES)
        with extract(images, self.backbone, data_dir=self.data_dir, **given) as cache:
            if order is not None:
                _require_order(cache, images)
            features = self._features(cache, len(images))
        return features if order is None else features[order]

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """`<layer><number>` for each column. Raises NotFittedError before anything was transformed."""
        if not hasattr(self, "layer_widths_"):
            raise NotFittedError("how wide features are is known after `transform`")
        names = [f"{name}{number}" for name, width in self.layer_widths_.items() for number in range(width)]
        return np.array(names, dtype=object)

    def _features(self, cache: FeatureCache, images: int) -> NDArray[np.float32]:
        (split,) = cache.splits
        self.layer_widths_ = {name: int(cache[split].layer(name).shape[1]) for name in cache.layers}
        chosen = SplitRows(source=split, rows=np.arange(images), targets=np.zeros(images, np.int64))
        return FeatureRows.of(cache, chosen, tuple(cache.layers)).values()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.requires_fit = False
        tags.no_validation = True
        return tags


class _HeadEstimator(BaseEstimator):  # type: ignore[misc]
    """What both have in common: a head trained on rows in memory."""

    @accepts(HeadConfig, without=_NOT_OF_ROWS)
    def __init__(
        self,
        head: Any = HeadConfig.head,
        *,
        head_arguments: Mapping[str, Any] | None = None,
        device: str = "auto",
        threads: int | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            head: As in `featcache.train_head`.
            head_arguments: Those of a head of one's own.
            device: auto, cpu, mps, cuda or cuda:N.
            threads: Torch's, for a head that is trained by steps on the CPU; None for what is measured to be fastest.
            {options}
        """
        own = ("head", "head_arguments", "device", "threads")
        divided(options, type(self).__name__, HeadConfig, without=_NOT_OF_ROWS, also=own)
        self.head, self.head_arguments = head, head_arguments
        self.device, self.threads = device, threads
        _keep(self, options, HeadConfig, without=_NOT_OF_ROWS)

    def _config(self) -> HeadConfig:
        given = _changed(self, HeadConfig, without=_NOT_OF_ROWS)
        return HeadConfig.of({"head": self.head, "head_arguments": self.head_arguments or {}, **given})

    def _fit(self, features: NDArray[np.float32], targets: NDArray[Any], target: HeadTarget) -> None:
        config = self._config()
        train, val = cut_rows(
            targets, target, val_fraction=config.val_fraction, val_seed=config.val_seed, val_cut=config.val_cut
        )
        parts = {
            name: SplitRows(source="memory", rows=rows, targets=targets[rows])
            for name, rows in (("train", train), ("val", val))
        }
        prepared = Prepared(
            columns=(),
            cut=Cut(train=parts["train"], val=parts["val"], test=None, target=target),
            rows={name: memory_rows(features, chosen) for name, chosen in parts.items()},
            place=place_of(self.device, solved=config.architecture.solved),
        )
        fitted = fit(prepared, config, threads=self.threads)
        if fitted.interrupted:
            # A search over estimators has to stop too.
            raise KeyboardInterrupt
        self.head_ = fitted.head if isinstance(fitted.head, SolvedHead) else fitted.head.cpu()
        self.target_, self.history_, self.n_iter_ = target, fitted.history, len(fitted.history)

    def _outputs(self, X: Any) -> NDArray[np.float32]:
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float32, reset=False)
        parts = range(0, len(features), _PREDICTED_ROWS)
        return np.concatenate([self._asked(features[start : start + _PREDICTED_ROWS]) for start in parts])

    def _asked(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if isinstance(self.head_, SolvedHead):
            return self.head_.outputs(features)
        import torch

        with torch.inference_mode():
            given: NDArray[np.float32] = self.head_(torch.from_numpy(np.ascontiguousarray(features))).numpy()
        return given


class HeadClassifier(ClassifierMixin, _HeadEstimator):  # type: ignore[misc]
    """A head that says classes: of each row one, or, for `y` of 0 and 1 in several columns, any number of them."""

    def fit(self, X: Any, y: Any) -> Self:
        """Train.

        Args:
            X: Features (N, D).
            y: Labels (N,) of any kind, or 0 and 1 (N, C).

        Raises:
            ValueError: Rows that cannot be learned from.
            InvalidOption, UnknownName: Options that cannot be used.
            HeadError: No head can be trained.
        """
        X, y = validate_data(self, X, y, dtype=np.float32, multi_output=True, ensure_min_samples=2)
        check_classification_targets(y)
        if type_of_target(y) == "multilabel-indicator":
            self.classes_ = np.arange(y.shape[1])
            self._fit(X, np.asarray(y, np.int8), _target("lists", self.classes_))
            return self
        self.classes_, codes = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"expected two classes or more, got one class: {self.classes_[0]}")
        self._fit(X, codes.astype(np.int64), _target("classes", self.classes_))
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Probabilities float32 (N, C), in the order of `classes_`; of several classes each by itself."""
        return readable(self._outputs(X), self.target_)

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class (N,); of several classes those that are more probable than not, (N, C)."""
        outputs = self._outputs(X)
        if self.target_.kind == "lists":
            return (outputs > 0).astype(np.int64)
        predicted: NDArray[Any] = self.classes_[outputs.argmax(axis=1)]
        return predicted

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class HeadRegressor(RegressorMixin, _HeadEstimator):  # type: ignore[misc]
    """A head that says numbers."""

    def fit(self, X: Any, y: Any) -> Self:
        """Train.

        Args:
            X: Features (N, D).
            y: Numbers (N,) or (N, C).

        Raises:
            ValueError: Rows that cannot be learned from.
            InvalidOption, UnknownName: Options that cannot be used.
            HeadError: No head can be trained.
        """
        X, y = validate_data(self, X, y, dtype=np.float32, multi_output=True, y_numeric=True, ensure_min_samples=2)
        self._single = np.ndim(y) == 1
        numbers = np.asarray(y, np.float64).reshape(len(X), -1)
        self._fit(X, numbers, _target("numbers", range(numbers.shape[1])))
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Numbers (N,), or (N, C) where it was fitted to several."""
        outputs = self._outputs(X).astype(np.float64)
        return outputs[:, 0] if self._single else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


# --- options and images ------------------------------------------------------------------------------------


def _keep(estimator: Any, given: Mapping[str, Any], *records: Any, without: Sequence[str]) -> None:
    """Every option as an attribute, as scikit-learn wants it: what was given, else its default."""
    for record in records:
        for field in options_of(record):
            if field.name not in without:
                setattr(estimator, field.name, given.get(field.name, field.default))


def _changed(estimator: Any, *records: Any, without: Sequence[str]) -> dict[str, Any]:
    """The options that are not their defaults."""
    known = [field for record in records for field in options_of(record) if field.name not in without]
    values = {field.name: getattr(estimator, field.name) for field in known}
    defaults = {field.name: field.default for field in known}
    return {name: value for name, value in values.items() if value is not defaults[name] and value != defaults[name]}


def _target(kind: Any, names: Any) -> HeadTarget:
    return HeadTarget(kind=kind, columns=("y",), names=tuple(map(str, names)))


def _require_order(cache: FeatureCache, paths: Sequence[str]) -> None:
    """Raises InvalidOption unless the cache has one row for each path, in their order."""
    ids = [name for split in cache.splits for name in cache[split].ids_at(np.arange(len(paths)))]
    if len(cache.splits) != 1 or not all(path.endswith(name) for path, name in zip(paths, ids, strict=True)):
        raise InvalidOption(
            f"the images of {cache.name} do not stand in the order of their paths", hint="give arrays, or train_head"
        )


def _images(given: Any) -> tuple[Any, NDArray[np.int64] | None]:
    """Images as `extract` takes them, and which row of theirs each of those given has; None for the same order."""
    if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim in (3, 4):
        return given, None
    paths = np.asarray(given).ravel().tolist() if isinstance(given, np.ndarray) else given
    several = isinstance(paths, Sequence) and not isinstance(paths, str) and len(paths) > 0
    if several and all(isinstance(path, str | os.PathLike) for path in paths):
        # A cache has images once, in the order of their names.
        unique, order = np.unique([str(Path(path).absolute()) for path in paths], return_inverse=True)
        return unique.tolist(), order.astype(np.int64)
    got = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else f"a {type(given).__name__}"
    raise InvalidOption(f"expected images uint8 (N, H, W, C) or a list of paths, got {got}")
