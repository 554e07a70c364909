"""How deviations from collapse pass through a thin layer: the near-feature model's perturbation operator.

The model, its letters and its array convention are those of :mod:`netloupe.lenses.geometry.near_collapse`. A small
change of the input features ``H0`` moves the minimiser ``H`` by a linear map of that change; at collapse its whole
spectrum is known. Source: the perturbation analysis of neural collapse, arXiv 2210.16658; the multiplicities of the
spectrum were worked out and checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg

from netloupe.core.errors import InputError
from netloupe.lenses.geometry.near_collapse import (
    Problem,
    as_float64,
    check_penalties,
    check_problem,
    check_sizes,
    one_hot,
    solve_ridge,
)

__all__ = ["CollapseSpectrum", "block_singular_values", "collapse_operator", "collapse_spectrum"]

DENSE_LIMIT = 2000
"""largest ``N d`` whose operator is assembled as a matrix (32 MB)"""

_NO_MINIMUM = (
    "the near-feature loss has no strict minimum at these features with beta {beta}, so the exact operator does not "
    "exist; give a minimiser or a larger beta."
)

Apply = Callable[[np.ndarray], np.ndarray]
"""a linear map of feature changes ``(*many, sample, unit)``"""


class CollapseSpectrum(NamedTuple):
    """Singular values of the first-order operator's class blocks at collapse."""

    values: Float[np.ndarray, " level"]
    """distinct levels of a diagonal block (a class's effect on itself), largest first"""
    multiplicities: Int[np.ndarray, " level"]
    """how often each level occurs; they add up to ``d n``"""
    cross: float
    """the one non-zero singular value of every off-diagonal block (a class's effect on another)"""

    def expanded(self) -> Float[np.ndarray, " value"]:
        """All ``d n`` singular values of a diagonal block, largest first."""
        return np.repeat(self.values, self.multiplicities)


class _Parts(NamedTuple):
    """What both operators are made of; ``core`` is the inverse of ``H' H + n lambda_w I``."""

    features: Float[np.ndarray, "sample unit"]
    weight: Float[np.ndarray, "class unit"]
    residual: Float[np.ndarray, "sample class"]
    core: Float[np.ndarray, "unit unit"]


def _parts(problem: Problem, weight: Any, lambda_w: float) -> _Parts:
    values, targets, n_per_class = problem
    rows = as_float64(weight, "weight")
    expected = (targets.shape[1], values.shape[1])
    if rows.shape != expected:
        raise InputError(f"weight has shape {rows.shape}, but (class, unit) = {expected} is expected; transpose it.")
    core = solve_ridge(values.T @ values, n_per_class * lambda_w, np.eye(values.shape[1]))
    return _Parts(values, rows, values @ rows.T - targets, (core + core.T) / 2)


def _through_classifier(parts: _Parts, change: Float[np.ndarray, "*many sample unit"]) -> np.ndarray:
    """The part of the Hessian that the classifier's own reaction takes away, applied to feature changes."""
    values, weight, residual, core = parts
    pull = np.swapaxes(change @ weight.T, -1, -2) @ values + residual.T @ change
    reaction = pull @ core
    return values @ np.swapaxes(reaction, -1, -2) @ weight + residual @ reaction


def _first_order(parts: _Parts, change: np.ndarray, lambda_h: float, beta: float) -> np.ndarray:
    bent = (change @ parts.weight.T) @ parts.weight - _through_classifier(parts, change)
    return change - (lambda_h * change + bent) / beta


def _hessian(parts: _Parts, change: np.ndarray, lambda_h: float, beta: float) -> np.ndarray:
    """``K n`` times the near-feature loss's Hessian in the features, the classifier eliminated."""
    bent = (change @ parts.weight.T) @ parts.weight - _through_classifier(parts, change)
    return (lambda_h + beta) * change + bent


def _dense(apply: Apply, shape: tuple[int, int]) -> Float[np.ndarray, "value value"]:
    size = shape[0] * shape[1]
    matrix = apply(np.eye(size).reshape(size, *shape)).reshape(size, size)
    return (matrix + matrix.T) / 2  # the map is symmetric; this removes the rounding that makes it look otherwise


class _Symmetric(LinearOperator):
    """A symmetric map of ``(sample, unit)`` arrays as an operator on their flattened coordinates."""

    def __init__(self, apply: Apply, shape: tuple[int, int]) -> None:
        size = shape[0] * shape[1]
        super().__init__(np.dtype(np.float64), (size, size))
        self.apply, self.array_shape = apply, shape

    def _matvec(self, flat: np.ndarray) -> np.ndarray:
        return self.apply(np.reshape(flat, self.array_shape)).reshape(-1)

    def _matmat(self, columns: np.ndarray) -> np.ndarray:
        return self.apply(columns.T.reshape(-1, *self.array_shape)).reshape(-1, self.shape[0]).T

    def _adjoint(self) -> LinearOperator:
        return self


class _Solved(LinearOperator):
    """``beta`` times the inverse of a Hessian, by conjugate gradients."""

    def __init__(self, hessian: LinearOperator, beta: float) -> None:
        super().__init__(np.dtype(np.float64), hessian.shape)
        self.hessian, self.beta = hessian, beta

    def _matvec(self, flat: np.ndarray) -> np.ndarray:
        wanted = self.beta * np.ravel(flat)
        solution, _ = cg(self.hessian, wanted, rtol=1e-13, atol=0.0, maxiter=10 * len(wanted))
        # the residual that counts is the true one: the running one of the iteration drifts from it by rounding
        if not np.linalg.norm(self.hessian @ solution - wanted) <= 1e-9 * np.linalg.norm(wanted):
            raise InputError(_NO_MINIMUM.format(beta=self.beta))
        return solution

    def _adjoint(self) -> LinearOperator:
        return self


def collapse_operator(
    features: Any,
    weight: Any,
    targets: Any,
    lambda_w: float,
    lambda_h: float,
    beta: float,
    *,
    exact: bool = False,
) -> LinearOperator:
    """The linear map from a change of the given features ``H0`` to the change of the near-feature minimiser ``H``.

    Both changes are ``(sample, unit)`` arrays flattened row by row: ``operator @ change.ravel()``. To first order in
    ``1 / beta`` (the default; error O(beta^-2), for ``beta`` well above 1 and ``lambda_h``) a change ``D`` becomes
    ``D - (lambda_h D + D W' W - Z(D)) / beta``, where ``Z`` is the classifier's reaction:
    ``V = (W D' H + R' D) (H' H + n lambda_w I)^-1``, ``R = H W' - Y`` and ``Z(D) = H V' W + R V``.
    With ``exact=True`` it is ``beta`` times the inverse of the loss's Hessian (scaled by ``K n``), for any ``beta``.

    Args:
        features: ``H`` ``(sample, unit)``, a minimiser.
        weight: ``W`` ``(class, unit)``, the best classifier for those features.
        targets: labels ``0..K-1`` of shape ``(sample,)``, or one-hot rows ``(sample, class)``.
        lambda_w: penalty of the classifier, positive.
        lambda_h: penalty of the features, zero or positive.
        beta: strength of the tie, positive.
        exact: the exact operator instead of the first-order one.

    Up to ``d n K = 2000`` the matrix is assembled, O((d n K)^2 K + (d n K)^3 if exact); above it is applied without
    ever being formed, O(N d^2) and, if exact, that times the iterations of conjugate gradients. Raises InputError for
    unequal class counts, ``d < K``, NaN, a bad penalty, a weight of another shape, or (exact only) where the features
    are no strict minimum; an operator without a matrix notices the latter only where conjugate gradients fail.
    """
    check_penalties(lambda_w=lambda_w, lambda_h=lambda_h, beta=beta)
    problem = check_problem(features, targets)
    parts, shape = _parts(problem, weight, lambda_w), problem.features.shape
    chosen = _hessian if exact else _first_order

    def apply(change: np.ndarray) -> np.ndarray:
        return chosen(parts, change, lambda_h, beta)

    if problem.features.size > DENSE_LIMIT:
        operator = _Symmetric(apply, shape)
        return _Solved(operator, beta) if exact else operator
    matrix = _dense(apply, shape)
    if not exact:
        return aslinearoperator(matrix)
    try:
        factor = scipy.linalg.cho_factor(matrix)
    except scipy.linalg.LinAlgError as error:
        raise InputError(_NO_MINIMUM.format(beta=beta)) from error
    return aslinearoperator(beta * scipy.linalg.cho_solve(factor, np.eye(len(matrix))))


def block_singular_values(
    operator: LinearOperator, targets: Any, class_to: int, class_from: int
) -> Float[np.ndarray, " value"]:
    """Singular values, largest first, of the part of the operator that takes one class's changes to another's.

    Args:
        operator: from :func:`collapse_operator`, square over ``N d`` coordinates.
        targets: the labels or one-hot rows it was built with.
        class_to: class whose answer is read.
        class_from: class whose features are changed.

    Cost: ``n d`` applications of the operator and one decomposition, O((n d)^3). Raises InputError for a class that
    does not exist or an operator of another size.
    """
    labels = one_hot(targets).argmax(1)
    n_units, rest = divmod(operator.shape[1], len(labels))
    if rest or not {class_to, class_from} <= set(labels.tolist()):
        raise InputError(
            f"classes {class_to} and {class_from} of an operator with {operator.shape[1]} coordinates were asked for, "
            f"but the targets have classes 0..{labels.max()} and {len(labels)} samples; give matching ones."
        )
    coordinates = np.arange(operator.shape[1]).reshape(len(labels), n_units)
    source = coordinates[labels == class_from].ravel()
    unit_changes = np.zeros((operator.shape[1], len(source)))
    unit_changes[source, np.arange(len(source))] = 1
    answer = np.asarray(operator @ unit_changes)
    return np.linalg.svd(answer[coordinates[labels == class_to].ravel()], compute_uv=False)


def collapse_spectrum(
    n_classes: int, n_units: int, n_per_class: int, lambda_w: float, lambda_h: float, beta: float
) -> CollapseSpectrum:
    """Closed form of the first-order operator's class blocks at a collapsed minimiser.

    With ``c = sqrt(lambda_w lambda_h)`` and ``y = 2 lambda_h (1 - c) / beta``, a diagonal block has the singular
    values (absolute values of) ``1`` (``d - K`` times), ``1 - y`` (``K - 1``), ``1 - 2 y`` (once),
    ``1 - lambda_h / beta`` (``(d - K)(n - 1)``) and ``1 - sqrt(lambda_h / lambda_w) / beta`` (``K (n - 1)``);
    an off-diagonal block has rank one and singular value ``y``. Deviations inside a class thus shrink more the larger
    ``lambda_h`` is, and less the larger ``lambda_w`` is.

    Args:
        n_classes: ``K >= 2``.
        n_units: ``d >= K``.
        n_per_class: ``n >= 2``.
        lambda_w: penalty of the classifier, positive.
        lambda_h: penalty of the features, positive, with ``c <= 1``.
        beta: strength of the tie, positive.

    Constant cost. Raises InputError for sizes or penalties outside these bounds.
    """
    check_sizes(n_classes, n_units, n_per_class)
    check_penalties(lambda_w=lambda_w, lambda_h=lambda_h, beta=beta)
    joint = float(np.sqrt(lambda_w * lambda_h))
    if lambda_h == 0 or joint > 1:
        raise InputError(
            f"sqrt(lambda_w * lambda_h) is {joint:.4g}, but a collapsed minimiser needs it above 0 and at most 1; "
            "change lambda_w or lambda_h."
        )
    cross = 2 * lambda_h * (1 - joint) / beta
    free = n_units - n_classes
    levels = [
        (1.0, free),
        (abs(1 - cross), n_classes - 1),
        (abs(1 - 2 * cross), 1),
        (abs(1 - lambda_h / beta), free * (n_per_class - 1)),
        (abs(1 - np.sqrt(lambda_h / lambda_w) / beta), n_classes * (n_per_class - 1)),
    ]
    levels = sorted((level for level in levels if level[1]), reverse=True)
    values, counts = zip(*levels)
    return CollapseSpectrum(np.array(values), np.array(counts), cross)
