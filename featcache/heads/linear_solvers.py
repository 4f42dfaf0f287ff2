"""Linear heads with a closed or a convex solution: logistic regression, ridge, nearest class mean.

Each takes train and val features as float32 arrays, offers candidates, and stores a plain linear layer on the
features as they are: standardisation and calibration are folded into its weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.errors import HeadError
from featcache.heads.architectures import Architecture, HeadShape, build_head
from featcache.heads.calibration import sharpness
from featcache.heads.candidates import Candidate, is_better
from featcache.heads.metrics import Outcome
from featcache.heads.records import Score
from featcache.heads.standardisation import BLOCK_BYTES, Standardisation, blocks

# scikit-learn's C: the weight of the summed loss against half the squared weights. From strong to weak penalties.
LOGREG_PATH = tuple(10.0**exponent for exponent in range(-6, 4))
# The path ends after so many in a row that were no better on val: weak penalties take the longest to solve.
LOGREG_PATIENCE = 2
LOGREG_ITERATIONS = 1000
# scikit-learn's own 1e-4 lets a warm start stop before it has moved at all.
LOGREG_TOLERANCE = 1e-5
# The weight of the squared weights against the summed squared error.
RIDGE_PATH = tuple(10.0**exponent for exponent in range(7, -3, -1))


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProblem:
    """`train`, `val`: float32 (N, D) on the CPU, which a solver may change; the labels are int64 (N,)."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    classes: int

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
        """A layer on the features as they lie here, standardised by `standard`: value `number` of the grid `of`."""
        plain = layer if standard is None else layer.folded(standard)
        return Candidate(
            name=name,
            of=len(of),
            build=plain.head,
            train_loss=Outcome(logits=layer.logits(self.train), labels=self.train_labels).score().loss,
            val=Outcome(logits=layer.logits(self.val), labels=self.val_labels).score(),
            trouble=trouble,
            at_end=number in (0, len(of) - 1),
        )

    def standardise_(self) -> Standardisation:
        """Standardise train and val where they lie, as train says."""
        standard = Standardisation.of(self.train)
        standard.apply_(self.train)
        standard.apply_(self.val)
        return standard


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A linear layer: `weight` (C, D), `bias` (C,)."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """float32 (N, D) -> float32 (N, C)."""
        return torch.addmm(self.bias.float(), features, self.weight.float().T)

    def times(self, factor: float) -> Layer:
        """The layer whose logits are `factor` times as large."""
        return Layer(weight=self.weight * factor, bias=self.bias * factor)

    def folded(self, standard: Standardisation) -> Layer:
        """The same on features that are not standardised."""
        weight, bias = standard.folded(self.weight, self.bias)
        return Layer(weight=weight, bias=bias)

    def head(self) -> nn.Module:
        """It as a head, named and shaped as `linear` is."""
        classes, features = self.weight.shape
        with torch.device("meta"):
            head = build_head(Architecture(kind="linear"), HeadShape(in_features=features, classes=classes))
        state = {"output.weight": self.weight.float().contiguous(), "output.bias": self.bias.float()}
        head.load_state_dict(state, assign=True)
        return head


def logreg(problem: LinearProblem) -> Iterator[Candidate]:
    """Multinomial logistic regression with an L2 penalty on the weights, by scikit-learn's L-BFGS.

    Each C starts from the solution before it. What does not converge says so.
    """
    from sklearn.linear_model import LogisticRegression

    standard = problem.standardise_()
    features, labels = problem.train.numpy(), problem.train_labels.numpy()
    model = LogisticRegression(warm_start=True, max_iter=LOGREG_ITERATIONS, tol=LOGREG_TOLERANCE)
    best: Score | None = None
    waited = 0
    for number, c in enumerate(LOGREG_PATH):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.set_params(C=c).fit(features, labels)
        layer = _layer_of(model.coef_, model.intercept_)
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
    """Least squares to +1 for the class and -1 for the others, with an L2 penalty on the weights.

    One Gram matrix serves every alpha; the scores become logits by one factor, chosen on val.
    """
    standard = problem.standardise_()
    targets = F.one_hot(problem.train_labels, problem.classes).double() * 2 - 1
    bias = targets.mean(dim=0)
    weight_at = ridge_path(problem.train, targets - bias)
    for number, alpha in enumerate(RIDGE_PATH):
        layer = Layer(weight=weight_at(alpha).T, bias=bias)
        layer = layer.times(sharpness(layer.logits(problem.val), problem.val_labels))
        yield problem.candidate(f"alpha={alpha:g}", layer, standard, of=RIDGE_PATH, number=number)


def ridge_path(features: Tensor, targets: Tensor) -> Callable[[float], Tensor]:
    """Weights float64 (D, C) for any alpha: features float32 (N, D) and targets float64 (N, C), both of mean 0.

    The smaller of the two Gram matrices, (D, D) or (N, N), is computed once, and factorised for each alpha: ten
    Cholesky factorisations take as long as one eigendecomposition, and suffer far less on a busy machine.
    Raises HeadError for an alpha that rounding swallows.
    """
    rows, wide = features.shape
    if wide <= rows:
        gram = sum((block.T @ block for block in blocks(features)), torch.zeros((wide, wide), dtype=torch.float64))
        right = _transposed_times(features, targets)
        return lambda alpha: _solved(gram, alpha, right)
    step = max(1, BLOCK_BYTES // (8 * rows))
    gram = torch.zeros((rows, rows), dtype=torch.float64)
    for start in range(0, wide, step):
        columns = features[:, start : start + step].double()
        gram.addmm_(columns, columns.T)
    return lambda alpha: _transposed_times(features, _solved(gram, alpha, targets))


def centroid(problem: LinearProblem) -> Iterator[Candidate]:
    """The class whose mean is nearest, which is a linear layer: |x - m|^2 differs between classes by that only.

    Its distances become logits by one factor, chosen on val.
    """
    chosen = F.one_hot(problem.train_labels, problem.classes).double()
    means = _transposed_times(problem.train, chosen).T / chosen.sum(dim=0)[:, None]
    # Measured from the middle of all means, which changes no distance: the numbers stay small.
    middle = means.mean(dim=0)
    apart = means - middle
    layer = Layer(weight=2 * apart, bias=-(apart.square().sum(dim=1) + 2 * apart @ middle))
    layer = layer.times(sharpness(layer.logits(problem.val), problem.val_labels))
    yield problem.candidate("nearest mean", layer)


LINEAR_SOLVERS: Mapping[str, Callable[[LinearProblem], Iterator[Candidate]]] = {
    "logreg": logreg,
    "ridge": ridge,
    "centroid": centroid,
}


def _layer_of(coefficients: NDArray[np.floating], intercepts: NDArray[np.floating]) -> Layer:
    weight = torch.from_numpy(np.array(coefficients, dtype=np.float64))
    bias = torch.from_numpy(np.array(intercepts, dtype=np.float64))
    if len(weight) == 1:
        # Of two classes scikit-learn keeps the second's advantage over the first.
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    return Layer(weight=weight, bias=bias)


def _solved(gram: Tensor, alpha: float, right: Tensor) -> Tensor:
    # (gram + alpha I)^-1 right, all float64.
    shifted = gram.clone()
    shifted.diagonal().add_(alpha)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if int(failed):
        raise HeadError(
            f"ridge cannot be solved at alpha={alpha:g}: the features are too large beside it",
            hint="--head logreg, or --head linear",
        )
    return torch.cholesky_solve(right, factor)


def _transposed_times(features: Tensor, columns: Tensor) -> Tensor:
    # (N, D), float64 (N, C) -> float64 (D, C), without all of the features as float64.
    total = torch.zeros((features.shape[1], columns.shape[1]), dtype=torch.float64)
    start = 0
    for block in blocks(features):
        total.addmm_(block.T, columns[start : start + len(block)])
        start += len(block)
    return total


def _trouble(what: str, caught: Sequence[warnings.WarningMessage]) -> str | None:
    if not caught:
        return None
    said = str(caught[0].message).strip().splitlines()[0].rstrip(".:")
    return f"{what} did not converge in {LOGREG_ITERATIONS} iterations or stopped early: {said}"
