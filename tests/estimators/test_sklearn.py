"""featcache.sklearn: scikit-learn's checks of estimators, and the same heads as by `train_head`."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_modules import two_layers
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits, make_multilabel_classification
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from featcache.errors import HeadError, InvalidOption, UnknownName
from featcache.sklearn import FeatureExtractor, HeadClassifier, HeadRegressor

# The estimators pass all other checks of scikit-learn.
SKIPPED = {
    "check_array_api_input",  # it needs SCIPY_ARRAY_API=1 before SciPy is imported
    "check_classifiers_multilabel_output_format_decision_function",  # heads have predict_proba instead
}

Digits = tuple[NDArray[np.uint8], NDArray[np.int64]]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """300 images (8, 8) uint8 and their classes."""
    images, labels = load_digits(return_X_y=True)
    return (images[:300] * 15).astype(np.uint8).reshape(-1, 8, 8), labels[:300]


# --- heads -------------------------------------------------------------------------------------------------


# With the default learning rate and 50 epochs, the few rows of scikit-learn's checks are not enough.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator",
    [
        HeadClassifier("linear", lr=0.02, threads=1),
        HeadClassifier("ridge"),
        HeadRegressor("linear", lr=0.02, threads=1),
        HeadRegressor("knn"),
    ],
    ids=repr,
)
def test_scikit_learns_own_checks_are_passed(estimator: Any) -> None:
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    assert [one["check_name"] for one in results if one["status"] == "failed"] == []
    assert {one["check_name"] for one in results if one["status"] == "skipped"} <= SKIPPED
    assert sum(one["status"] == "passed" for one in results) > 50


@pytest.mark.parametrize("labels", [["no", "yes"], [-3, 12], [2.0, 1.0]], ids=str)
@pytest.mark.parametrize("head", ["linear", "logreg", "centroid"])
def test_predictions_have_the_type_of_the_labels(head: str, labels: list[Any]) -> None:
    random = np.random.default_rng(0)
    truth = np.array(labels)[random.integers(0, 2, 120)]
    features = random.normal(size=(120, 4)) + 4 * (truth == labels[0])[:, None]
    options: dict[str, Any] = {"lr": 0.05} if head == "linear" else {}
    classifier = HeadClassifier(head, **options).fit(features, truth)
    assert classifier.classes_.tolist() == sorted(labels)
    assert classifier.score(features, truth) > 0.95
    probabilities = classifier.predict_proba(features)
    assert probabilities.shape == (120, 2) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("head", ["mlp:16", "logreg", "knn"])
def test_several_classes_per_row_are_learned(head: str) -> None:
    features, truth = make_multilabel_classification(200, 10, n_classes=4, random_state=0)
    options: dict[str, Any] = {"lr": 0.02} if head == "mlp:16" else {}
    classifier = HeadClassifier(head, **options).fit(features, truth)
    assert classifier.predict(features).shape == classifier.predict_proba(features).shape == (200, 4)
    assert (classifier.predict(features) == truth).mean() > 0.75


@pytest.mark.parametrize("columns", [1, 3])
def test_numbers_are_predicted_in_their_units(columns: int) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 5))
    truth = 1e4 + 50 * features @ random.normal(size=(5, columns))
    truth = truth[:, 0] if columns == 1 else truth
    for head in (HeadRegressor("ridge"), HeadRegressor("linear", lr=0.05)):
        fitted = head.fit(features, truth)
        assert fitted.predict(features).shape == truth.shape
        assert fitted.score(features, truth) > 0.95


def test_a_custom_module_can_be_the_head(digits: Digits) -> None:
    images, labels = digits
    features = images.reshape(len(images), -1)
    model = HeadClassifier(two_layers, head_arguments={"width": 16}, lr=0.02).fit(features, labels)
    assert model.score(features, labels) > 0.9
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(features), model.predict(features))


def test_options_are_parameters_that_a_search_can_vary(digits: Digits) -> None:
    images, labels = digits
    model = HeadClassifier("linear", lr=0.1, max_epochs=5)
    assert model.get_params()["lr"] == 0.1 and model.get_params()["weight_decay"] == 0.0
    assert clone(model).set_params(lr=0.3).get_params()["lr"] == 0.3
    search = GridSearchCV(model, {"lr": [1e-6, 0.05]}, cv=2).fit(images.reshape(len(images), -1), labels)
    assert search.best_params_ == {"lr": 0.05}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"lr": 0.0}, InvalidOption),
        ({"head": "mpl:8"}, UnknownName),
        ({"head": "ridge", "lr": 0.1}, InvalidOption),
    ],
)
def test_invalid_options_are_refused_by_fit(options: dict[str, Any], error: type[Exception]) -> None:
    model = HeadClassifier(**options)
    with pytest.raises(error):
        model.fit(np.eye(20), np.arange(20) % 2)


def test_an_unknown_option_is_refused_at_once() -> None:
    with pytest.raises(InvalidOption, match="HeadClassifier has no option 'learning_rate'"):
        HeadClassifier(learning_rate=0.1)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], ["a", "a"]], ids=str)
def test_a_single_class_is_refused(labels: list[Any]) -> None:
    with pytest.raises(ValueError, match="one class"):
        HeadClassifier("ridge").fit(np.eye(len(labels)), labels)


def test_too_few_rows_for_val_are_refused() -> None:
    with pytest.raises(HeadError, match="for train and 0 for val"):
        HeadClassifier("ridge").fit(np.eye(2), [0, 1])


# --- images ------------------------------------------------------------------------------------------------


def test_images_are_computed_once(digits: Digits, tmp_path: Path) -> None:
    images, _ = digits
    extractor = FeatureExtractor("pixels", data_dir=tmp_path, image_size=8)
    first = extractor.transform(images)
    assert first.shape == (300, 192) and first.dtype == np.float32
    caches = sorted(tmp_path.rglob("*.h5"))
    written = [path.stat().st_mtime_ns for path in caches]
    assert np.array_equal(extractor.fit_transform(images), first)
    assert sorted(tmp_path.rglob("*.h5")) == caches and [path.stat().st_mtime_ns for path in caches] == written
    assert extractor.get_feature_names_out().tolist()[:2] == ["pixels0", "pixels1"]
    assert len(extractor.get_feature_names_out()) == 192


def test_paths_keep_their_order_even_if_one_occurs_twice(digits: Digits, tmp_path: Path) -> None:
    images, _ = digits
    paths = [tmp_path / f"{name}.png" for name in ("z", "a", "m")]
    for path, pixels in zip(paths, images, strict=False):
        Image.fromarray(pixels).save(path)
    extractor = FeatureExtractor("pixels", data_dir=tmp_path / "data", image_size=8)
    expected = extractor.transform(images[:3])
    assert np.array_equal(extractor.transform([*paths, paths[0]]), expected[[0, 1, 2, 0]])
    assert np.array_equal(extractor.transform(np.array([str(path) for path in paths])), expected)


@pytest.mark.parametrize("given", [np.zeros((3, 4)), [], "photos/", [1, 2], np.zeros((2, 4, 4), np.float32)], ids=repr)
def test_invalid_images_are_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="expected images uint8"):
        FeatureExtractor("pixels", data_dir=tmp_path).fit(given)


def test_an_extractor_is_copied_and_pickled(tmp_path: Path) -> None:
    extractor = FeatureExtractor("vgg16", layers=("avgpool",), dtype="float32", data_dir=tmp_path)
    for again in (clone(extractor), pickle.loads(pickle.dumps(extractor))):
        assert again.get_params() == extractor.get_params()
    assert extractor.set_params(dtype="float16").get_params()["dtype"] == "float16"
    with pytest.raises(NotFittedError):
        extractor.get_feature_names_out()
    with pytest.raises(InvalidOption, match="no option 'layer'"):
        FeatureExtractor("vgg16", layer="avgpool")


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks_of_a_stateless_transformer(tmp_path: Path) -> None:
    # The tags exclude the checks that pass matrices of floats, which are not images; few checks are left.
    results = check_estimator(FeatureExtractor("pixels", data_dir=tmp_path), on_fail=None, on_skip=None)
    assert {one["status"] for one in results} == {"passed"}


@pytest.mark.parametrize(
    "last", [HeadClassifier("ridge"), LogisticRegression(max_iter=50)], ids=["featcache", "scikit-learn"]
)
def test_a_pipeline_goes_from_images_to_classes(digits: Digits, tmp_path: Path, last: Any) -> None:
    images, labels = digits
    model = make_pipeline(FeatureExtractor("pixels", image_size=8, data_dir=tmp_path), last).fit(
        images[:200], labels[:200]
    )
    assert model.score(images[200:], labels[200:]) > 0.8


def test_only_featcache_sklearn_imports_scikit_learn() -> None:
    script = "import featcache, featcache.cli.app, sys; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
