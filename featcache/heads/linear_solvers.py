"""Solvers of linear heads, closed-form or convex: logistic regression, ridge, nearest class mean.

Each takes train and val features as float32 arrays and yields candidates. A candidate is a linear layer on plain
features: standardisation and calibration are folded into its weights.

kind of target    logreg                 ridge                             centroid
classes           multinomial            to +1 and -1, one factor on val   nearest mean, one factor on val
lists             one class at a time    to +1 and -1, one factor on val   -
numbers           -                      to standardised numbers           -
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError
from featcache.heads.calibration import best_factor, minimise
from featcache.heads.candidates import Candidate, is_better
from featcache.heads.list_metrics import binary_cross_entropy
from featcache.heads.metrics import Outcome
from featcache.heads.records import Score
from featcache.heads.solved import LinearHead
from featcache.heads.standardisation import BLOCK_BYTES, Standardisation, blocks
from featcache.heads.target_scale import TargetScale
from featcache.rows.features import slices
from featcache.rows.target import HeadTarget

# scikit-learn's C: the weight of the summed loss relative to half the squared weights. From strong to weak penalties.
LOGREG_PATH = tuple(10.0**exponent for exponent in range(-6, 4))
# The path ends after this many values in a row that were not better on val: weak penalties take longest to solve.
LOGREG_PATIENCE = 2
LOGREG_ITERATIONS = 1000
# With scikit-learn's default of 1e-4, a warm start can stop before its first step.
LOGREG_TOLERANCE = 1e-5
# The weight of the squared weights relative to the summed squared error.
RIDGE_PATH = tuple(10.0**exponent for exponent in range(7, -3, -1))
# The side of the largest Gram matrix that is decomposed by NumPy; larger ones are factorised by scipy.
LARGEST_DECOMPOSED = 1024
# The largest factor for scores of several classes, which are about 1 for a class that is present, -1 for others.
_LARGEST_FACTOR = 100.0
# The distance of the logits of a class without train images below all other logits.
_BELOW = 10.0

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProblem:
    """The input of a linear solver.

    Attributes:
        train, val: Features float32 (N, D); a solver may change them.
        train_targets, val_targets: Targets, (N,) or (N, C); see `FeatureRows.targets`.
        target: The target of the head.
        scale: For numbers: mean and deviation of the train values.
    """

    train: Floats
    train_targets: NDArray[Any]
    val: Floats
    val_targets: NDArray[Any]
    target: HeadTarget
    scale: TargetScale | None = None

    def candidate(
        self,
        name: str,
        layer: Layer,
        standard: Standardisation | None = None,
        *,
        of: Sequence[float] = (1.0,),
        number: int = 0,
        trouble: str | None = None,
    ) -> Candidate:
        """A candidate from a layer on the features of this problem, which are standardised by `standard`, if given.

        It belongs to value `number` of the grid `of`.
        """
        plain = layer if standard is None else layer.fold(standard)
        return Candidate(
            name=name,
            of=len(of),
            build=plain.head,
            train_loss=self._score(layer, self.train, self.train_targets).loss,
            val=self._score(layer, self.val, self.val_targets),
            trouble=trouble,
            at_end=number in (0, len(of) - 1),
        )

    def standardise_(self) -> Standardisation:
        """Standardise train and val in place, by the mean and deviation of train."""
        standard = Standardisation.of(self.train)
        standard.apply_(self.train)
        standard.apply_(self.val)
        return standard

    def _score(self, layer: Layer, features: Floats, targets: NDArray[Any]) -> Score:
        scale = None if self.scale is None else self.scale.deviation
        return Outcome(outputs=layer.outputs(features), targets=targets, target=self.target, scale=scale).score()


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A linear layer: `weight` (C, D), `bias` (C,)."""

    weight: Doubles
    bias: Doubles

    def outputs(self, features: Floats) -> Floats:
        """float32 (N, D) -> float32 (N, C)."""
        return self.head().outputs(features)

    def times(self, factor: float) -> Layer:
        """The layer whose outputs are `factor` times as large."""
        return Layer(weight=self.weight * factor, bias=self.bias * factor)

    def fold(self, standard: Standardisation) -> Layer:
        """The equal layer on features that are not standardised."""
        weight, bias = standard.fold(self.weight, self.bias)
        return Layer(weight=weight, bias=bias)

    def in_units(self, scale: TargetScale | None) -> Layer:
        """The layer with outputs in the units of the targets, for one with standardised outputs."""
        if scale is None:
            return self
        weight, bias = scale.fold(self.weight, self.bias)
        return Layer(weight=weight, bias=bias)

    def head(self) -> LinearHead:
        """The layer as a head, in float32."""
        return LinearHead(weight=np.ascontiguousarray(self.weight, np.float32), bias=self.bias.astype(np.float32))


def logreg(problem: LinearProblem) -> Iterator[Candidate]:
    """Logistic regression with an L2 penalty on the weights, by scikit-learn's L-BFGS: multinomial, or class by class.

    Each C starts from the solution of the C before it. A candidate that did not converge has a `trouble`.
    """
    standard = problem.standardise_()
    solve = _multinomial(problem) if problem.target.kind == "classes" else _one_versus_rest(problem)
    best: Score | None = None
    waited = 0
    for number, c in enumerate(LOGREG_PATH):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer = solve(c)
        trouble = _trouble(f"logreg at C={c:g}", caught)
        candidate = problem.candidate(f"C={c:g}", layer, standard, of=LOGREG_PATH, number=number, trouble=trouble)
        yield candidate
        if best is None or is_better(candidate.val, best):
            best, waited = candidate.val, 0
        else:
            waited += 1
        if waited == LOGREG_PATIENCE:
            return


def ridge(problem: LinearProblem) -> Iterator[Candidate]:
    """Least squares with an L2 penalty on the weights, to +1 and -1 for classes, or to standardised numbers.

    One Gram matrix is used for every alpha. One factor, chosen on val, turns the scores of classes into logits.
    """
    standard = problem.standardise_()
    targets = _regression_targets(problem)
    bias = targets.mean(axis=0)
    weight_at = ridge_path(problem.train, targets - bias)
    for number, alpha in enumerate(RIDGE_PATH):
        layer = _calibrate(Layer(weight=weight_at(alpha).T, bias=bias).in_units(problem.scale), problem)
        yield problem.candidate(f"alpha={alpha:g}", layer, standard, of=RIDGE_PATH, number=number)


def centroid(problem: LinearProblem) -> Iterator[Candidate]:
    """Nearest class mean, as a linear layer: -|x - m|^2 = 2 m x - |m|^2 - |x|^2, and |x|^2 is equal for all classes.

    One factor, chosen on val, turns the distances into logits.
    """
    present = np.unique(problem.train_targets)
    chosen = _one_hot(problem.train_targets, problem.target.outputs)[:, present]
    means = _transpose_times(problem.train, chosen).T / chosen.sum(axis=0)[:, None]
    # Relative to the mean of all means, which changes no distance: the numbers stay small.
    middle = means.mean(axis=0)
    apart = means - middle
    layer = Layer(weight=2 * apart, bias=-(np.square(apart).sum(axis=1) + 2 * apart @ middle))
    yield problem.candidate("nearest mean", _calibrate(_for_all_classes(layer, present, problem), problem))


LINEAR_SOLVERS: Mapping[str, Callable[[LinearProblem], Iterator[Candidate]]] = {
    "logreg": logreg,
    "ridge": ridge,
    "centroid": centroid,
}


def ridge_path(features: Floats, targets: Doubles) -> Callable[[float], Doubles]:
    """A function from alpha to the ridge weights, float64 (D, C).

    The smaller of the two Gram matrices, (D, D) or (N, N), is computed once.

    Args:
        features: float32 (N, D), of mean 0.
        targets: float64 (N, C), of mean 0.

    Raises:
        HeadError: (from the returned function) alpha is lost in rounding beside the features.
    """
    rows, wide = features.shape
    if wide <= rows:
        gram = np.zeros((wide, wide))
        for block in blocks(features):
            gram += block.T @ block
        return _ridge_solver(gram, _transpose_times(features, targets))
    gram = np.zeros((rows, rows))
    for part in slices(wide, max(1, BLOCK_BYTES // (8 * rows))):
        columns = features[:, part].astype(np.float64)
        gram += columns @ columns.T
    solve = _ridge_solver(gram, targets)
    return lambda alpha: _transpose_times(features, solve(alpha))


def _multinomial(problem: LinearProblem) -> Callable[[float], Layer]:
    model = _logistic_regression()

    def solve(c: float) -> Layer:
        model.set_params(C=c).fit(problem.train, problem.train_targets)
        return _for_all_classes(_layer_of(model.coef_, model.intercept_), model.classes_, problem)

    return solve


def _for_all_classes(layer: Layer, present: NDArray[np.int64], problem: LinearProblem) -> Layer:
    """Extend a layer for the classes of train by outputs for the others: constants lower than any output on train."""
    classes = problem.target.outputs
    if len(present) == classes:
        return layer
    weight = np.zeros((classes, layer.weight.shape[1]))
    bias = np.full(classes, float(layer.outputs(problem.train).min()) - _BELOW)
    weight[present], bias[present] = layer.weight, layer.bias
    return Layer(weight=weight, bias=bias)


def _one_versus_rest(problem: LinearProblem) -> Callable[[float], Layer]:
    columns = [_binary(problem.train, marks) for marks in problem.train_targets.T]

    def solve(c: float) -> Layer:
        weights, biases = zip(*(column(c) for column in columns), strict=True)
        return Layer(weight=np.stack(weights), bias=np.array(biases))

    return solve


def _binary(features: Floats, marks: NDArray[np.int8]) -> Callable[[float], tuple[Doubles, float]]:
    """A function from C to the weights (D,) and the bias of one class, for `marks` (N,) of 0 and 1."""
    there = int(marks.sum())
    if there in (0, len(marks)):
        # All images have the same value: its log odds, with half an image added on each side, so that they are finite.
        bias = float(np.log((there + 0.5) / (len(marks) - there + 0.5)))
        return lambda _: (np.zeros(features.shape[1]), bias)
    model = _logistic_regression()

    def solve(c: float) -> tuple[Doubles, float]:
        model.set_params(C=c).fit(features, marks)
        return model.coef_[0].astype(np.float64), float(model.intercept_[0])

    return solve


def _logistic_regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(warm_start=True, max_iter=LOGREG_ITERATIONS, tol=LOGREG_TOLERANCE)


def _layer_of(coefficients: NDArray[np.floating], intercepts: NDArray[np.floating]) -> Layer:
    weight, bias = np.array(coefficients, np.float64), np.array(intercepts, np.float64)
    if len(weight) == 1:
        # For two classes, scikit-learn returns only the logit of the second minus that of the first.
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros_like(bias), bias])
    return Layer(weight=weight, bias=bias)


def _regression_targets(problem: LinearProblem) -> Doubles:
    """The numbers that ridge is fitted to: float64 (N, C)."""
    if problem.scale is not None:
        return problem.scale.apply(problem.train_targets)
    if problem.target.kind == "classes":
        return _one_hot(problem.train_targets, problem.target.outputs) * 2 - 1
    return problem.train_targets.astype(np.float64) * 2 - 1


def _calibrate(layer: Layer, problem: LinearProblem) -> Layer:
    """Scale the outputs to logits by one factor, chosen on val; a layer for numbers stays as it is."""
    if problem.target.kind == "numbers":
        return layer
    scores, targets = layer.outputs(problem.val), problem.val_targets
    if problem.target.kind == "classes":
        return layer.times(best_factor(scores, targets))
    loss = partial(_loss_with_factor, scores, targets)
    return layer.times(minimise(loss, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR))


def _loss_with_factor(scores: Floats, marks: NDArray[np.int8], factor: float) -> float:
    return binary_cross_entropy(scores * np.float32(factor), marks)


def _one_hot(labels: NDArray[np.int64], classes: int) -> Doubles:
    return np.eye(classes)[labels]


def _ridge_solver(gram: Doubles, right: Doubles) -> Callable[[float], Doubles]:
    """A function from alpha to (gram + alpha I)^-1 right, all float64.

    One eigendecomposition is used for every alpha; it takes less time than importing scipy. For large matrices, ten
    Cholesky factorisations take half as long.
    """
    if len(gram) > LARGEST_DECOMPOSED:
        return partial(_solve_by_cholesky, gram, right)
    values, vectors = np.linalg.eigh(gram)
    turned = vectors.T @ right

    def solve(alpha: float) -> Doubles:
        shifted = values + alpha
        # A Cholesky factorisation would fail too: relative to the largest eigenvalue, the smallest is a rounding error.
        if shifted[0] <= len(values) * np.finfo(np.float64).eps * shifted[-1]:
            raise _alpha_too_small(alpha)
        return vectors @ (turned / shifted[:, None])

    return solve


def _solve_by_cholesky(gram: Doubles, right: Doubles, alpha: float) -> Doubles:
    # NumPy has no solver for symmetric matrices; its general one takes twice as long.
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    shifted = gram.copy()
    shifted[np.diag_indices_from(shifted)] += alpha
    try:
        # The matrix is symmetric; its transpose has the memory order that LAPACK needs, without a copy.
        factor = cho_factor(shifted.T, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError as error:
        raise _alpha_too_small(alpha) from error
    solution: Doubles = cho_solve(factor, right, check_finite=False)
    return solution


def _alpha_too_small(alpha: float) -> HeadError:
    return HeadError(
        f"ridge cannot be solved at alpha={alpha:g}: it is too small relative to the features",
        hint="--head logreg, or --head linear",
    )


def _transpose_times(features: Floats, columns: Doubles) -> Doubles:
    # (N, D), float64 (N, C) -> float64 (D, C), without a float64 copy of all features.
    total = np.zeros((features.shape[1], columns.shape[1]))
    start = 0
    for block in blocks(features):
        total += block.T @ columns[start : start + len(block)]
        start += len(block)
    return total


def _trouble(what: str, caught: Sequence[warnings.WarningMessage]) -> str | None:
    if not caught:
        return None
    message = str(caught[0].message).strip().splitlines()[0].rstrip(".:")
    return f"{what} did not converge in {LOGREG_ITERATIONS} iterations or stopped early: {message}"
