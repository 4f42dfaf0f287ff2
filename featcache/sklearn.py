"""scikit-learn estimators: a frozen backbone as a transformer, heads as a classifier and a regressor.

    model = make_pipeline(FeatureExtractor("vgg16"), HeadClassifier("mlp:128,64", lr=1e-2))
    model.fit(paths, labels).predict(others)

Heads are trained as by `train_head`, but on features in memory: val is split off from the rows that `fit` gets, and
chooses the epoch. Options have featcache's names (`seed`), not scikit-learn's (`random_state`).
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
from featcache.config import accepts, divide_options, options_of
from featcache.errors import InvalidOption
from featcache.extraction.execution import Execution
from featcache.extraction.request import Request
from featcache.heads.config import HeadConfig
from featcache.heads.metrics import to_predictions
from featcache.heads.solved import SolvedHead
from featcache.rows.cuts import Cut, SplitRows, cut_rows
from featcache.rows.devices import resolve_device_name
from featcache.rows.features import FeatureRows
from featcache.rows.memory import memory_rows
from featcache.rows.target import HeadTarget
from featcache.training.fit import fit
from featcache.training.preparation import Prepared

__all__ = ["FeatureExtractor", "HeadClassifier", "HeadRegressor"]

# Options of extraction that do not apply: a transformer gets the images as an argument, and returns one row for each.
_NOT_OF_IMAGES = (
    *("dataset", "columns", "kinds", "split_by_folder", "splits", "limit", "select_seed", "backbone"),
    *("views", "view_seed", "view_flip", "on_error", "shard", "wait"),
)
# Options of heads that do not apply: an estimator gets rows and targets as arguments.
_NOT_OF_ROWS = ("head", "layers", "target", "group", "train_views")
_PREDICTED_ROWS = 4096


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Transformer from images to features of a frozen backbone, float32 (N, D); several layers are concatenated.

    Features are cached in `data_dir`: no extraction computes the same images twice. The transformer learns nothing;
    `fit` only checks its argument.
    """

    @accepts(Request, Execution, without=_NOT_OF_IMAGES)
    def __init__(self, backbone: Any = "vgg16", *, data_dir: str | Path = "data", **options: Any) -> None:
        """Set the options.

        Args:
            backbone: The name of a network, "pixels", or a Network (`load_backbone`, `from_module`).
            data_dir: The folder of weights and caches.
            {options}
        """
        own = ("backbone", "data_dir")
        divide_options(options, "FeatureExtractor", Request, Execution, without=_NOT_OF_IMAGES, also=own)
        self.backbone, self.data_dir = backbone, data_dir
        _keep(self, options, Request, Execution, without=_NOT_OF_IMAGES)

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the images; nothing is learned.

        Args:
            X: An array uint8 (N, H, W) or (N, H, W, C), or N paths.
            y: Ignored.

        Returns:
            The transformer itself.

        Raises:
            InvalidOption: `X` is neither an array of images nor a list of paths.
        """
        _images(X)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Compute the features of images, or read them from the cache.

        Args:
            X: An array uint8 (N, H, W) or (N, H, W, C), or N paths.

        Returns:
            float32 (N, D).

        Raises:
            InvalidOption: `X` is neither an array of images nor a list of paths.
            SourceError, WeightsError, ExtractionError, CacheError: As in `featcache.extract`.
        """
        images, order = _images(X)
        given = _non_defaults(self, Request, Execution, without=_NOT_OF_IMAGES)
        with extract(images, self.backbone, data_dir=self.data_dir, progress=False, **given) as cache:
            if order is not None:
                _require_order(cache, images)
            features = self._features(cache, len(images))
        return features if order is None else features[order]

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """The name of each column, `<layer><number>`.

        Args:
            input_features: Ignored.

        Returns:
            An array of strings (D,).

        Raises:
            NotFittedError: `transform` was not called before.
        """
        if not hasattr(self, "layer_widths_"):
            raise NotFittedError("the number of features is known after `transform` only")
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
    """Base of the estimators: a head that is trained on rows in memory."""

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
        """Set the options.

        Args:
            head: As in `featcache.train_head`.
            head_arguments: Arguments of a custom head.
            device: auto, cpu, mps, cuda or cuda:N.
            threads: Torch's threads for a head that is trained by steps on the CPU; None for the fastest number by
                measurement.
            {options}
        """
        own = ("head", "head_arguments", "device", "threads")
        divide_options(options, type(self).__name__, HeadConfig, without=_NOT_OF_ROWS, also=own)
        self.head, self.head_arguments = head, head_arguments
        self.device, self.threads = device, threads
        _keep(self, options, HeadConfig, without=_NOT_OF_ROWS)

    def _config(self) -> HeadConfig:
        given = _non_defaults(self, HeadConfig, without=_NOT_OF_ROWS)
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
            device_name=resolve_device_name(self.device, solved=config.architecture.solved),
        )
        fitted = fit(prepared, config, threads=self.threads)
        if fitted.interrupted:
            # A search over estimators must stop too.
            raise KeyboardInterrupt
        self.head_ = fitted.head if isinstance(fitted.head, SolvedHead) else fitted.head.cpu()
        self.target_, self.history_, self.n_iter_ = target, fitted.history, len(fitted.history)

    def _outputs(self, X: Any) -> NDArray[np.float32]:
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float32, reset=False)
        parts = range(0, len(features), _PREDICTED_ROWS)
        return np.concatenate([self._run_head(features[start : start + _PREDICTED_ROWS]) for start in parts])

    def _run_head(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if isinstance(self.head_, SolvedHead):
            return self.head_.outputs(features)
        import torch

        with torch.inference_mode():
            given: NDArray[np.float32] = self.head_(torch.from_numpy(np.ascontiguousarray(features))).numpy()
        return given


class HeadClassifier(ClassifierMixin, _HeadEstimator):  # type: ignore[misc]
    """A head as a classifier: one class per row, or several if `y` has several columns of 0 and 1."""

    def fit(self, X: Any, y: Any) -> Self:
        """Train the head on rows, some of which become val.

        Args:
            X: Features (N, D).
            y: Labels (N,) of any type, or 0 and 1 (N, C).

        Returns:
            The estimator itself.

        Raises:
            ValueError: `X` or `y` is not valid.
            InvalidOption, UnknownName: An option cannot be used.
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
        """Predict probabilities.

        Args:
            X: Features (N, D).

        Returns:
            float32 (N, C), in the order of `classes_`. They sum to 1 for one class per row; for several, each
            probability is independent.

        Raises:
            NotFittedError: `fit` was not called before.
        """
        return to_predictions(self._outputs(X), self.target_)

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict classes.

        Args:
            X: Features (N, D).

        Returns:
            The most probable class of each row (N,); for several classes per row, int64 (N, C) with 1 where the
            probability is above 0.5.

        Raises:
            NotFittedError: `fit` was not called before.
        """
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
    """A head as a regressor, for one or several numbers per row."""

    def fit(self, X: Any, y: Any) -> Self:
        """Train the head on rows, some of which become val.

        Args:
            X: Features (N, D).
            y: Numbers (N,) or (N, C).

        Returns:
            The estimator itself.

        Raises:
            ValueError: `X` or `y` is not valid.
            InvalidOption, UnknownName: An option cannot be used.
            HeadError: No head can be trained.
        """
        X, y = validate_data(self, X, y, dtype=np.float32, multi_output=True, y_numeric=True, ensure_min_samples=2)
        self._single = np.ndim(y) == 1
        numbers = np.asarray(y, np.float64).reshape(len(X), -1)
        self._fit(X, numbers, _target("numbers", range(numbers.shape[1])))
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predict numbers.

        Args:
            X: Features (N, D).

        Returns:
            float64 (N,), or (N, C) if `fit` got several columns.

        Raises:
            NotFittedError: `fit` was not called before.
        """
        outputs = self._outputs(X).astype(np.float64)
        return outputs[:, 0] if self._single else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


# --- options and images ------------------------------------------------------------------------------------


def _keep(estimator: Any, given: Mapping[str, Any], *records: Any, without: Sequence[str]) -> None:
    """Set every option as an attribute, as scikit-learn requires: the given value, else its default."""
    for record in records:
        for field in options_of(record):
            if field.name not in without:
                setattr(estimator, field.name, given.get(field.name, field.default))


def _non_defaults(estimator: Any, *records: Any, without: Sequence[str]) -> dict[str, Any]:
    """The options that differ from their defaults."""
    known = [field for record in records for field in options_of(record) if field.name not in without]
    values = {field.name: getattr(estimator, field.name) for field in known}
    defaults = {field.name: field.default for field in known}
    return {name: value for name, value in values.items() if value is not defaults[name] and value != defaults[name]}


def _target(kind: Any, names: Any) -> HeadTarget:
    return HeadTarget(kind=kind, columns=("y",), names=tuple(map(str, names)))


def _require_order(cache: FeatureCache, paths: Sequence[str]) -> None:
    """Raise InvalidOption unless the cache has one row for each path, in the same order."""
    ids = [name for split in cache.splits for name in cache[split].ids_at(np.arange(len(paths)))]
    if len(cache.splits) != 1 or not all(path.endswith(name) for path, name in zip(paths, ids, strict=True)):
        raise InvalidOption(
            f"the images of {cache.name} are not in the order of their paths", hint="pass arrays, or use train_head"
        )


def _images(given: Any) -> tuple[Any, NDArray[np.int64] | None]:
    """The images as `extract` takes them, and the row of each given image among them; None if the order is the same."""
    if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim in (3, 4):
        return given, None
    paths = np.asarray(given).ravel().tolist() if isinstance(given, np.ndarray) else given
    several = isinstance(paths, Sequence) and not isinstance(paths, str) and len(paths) > 0
    if several and all(isinstance(path, str | os.PathLike) for path in paths):
        # A cache has each image once, in the order of their names.
        unique, order = np.unique([str(Path(path).absolute()) for path in paths], return_inverse=True)
        return unique.tolist(), order.astype(np.int64)
    got = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else f"a {type(given).__name__}"
    raise InvalidOption(f"expected images uint8 (N, H, W, C) or a list of paths, got {got}")
