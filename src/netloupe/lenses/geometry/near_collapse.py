"""The near-collapse model: free features tied to given ones, its flow, its minimiser and its perturbation operator.

Balanced classes, ``K`` of them with ``n`` samples each (``N = K n``), features ``H`` with ``d >= K`` units, a
bias-free linear classifier ``W`` of shape ``(class, unit)`` and one-hot targets ``Y``. Two losses:

* free features:  ``|H W' - Y|^2 / (2 K n) + lambda_w |W|^2 / (2 K) + lambda_h |H|^2 / (2 K n)``;
* near features:  the same plus ``beta |H - H0|^2 / (2 K n)``, where ``H0`` are features of an earlier layer. A large
  ``beta`` models a thin layer that can change little.

Everywhere here features are ``(sample, unit)`` in float64, ``'`` is the transpose, and flattening a feature array row
by row is the order in which the perturbation operator counts its coordinates. Source: the perturbation analysis of
neural collapse, arXiv 2210.16658.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from netloupe.core.errors import InputError, NonFiniteError

__all__ = [
    "CentralPath",
    "CollapsedSolution",
    "NearFeatureSolution",
    "central_path",
    "collapsed_solution",
    "near_feature_minimiser",
    "optimal_classifier",
    "reduced_loss",
    "reduced_loss_gradient",
]


class CollapsedSolution(NamedTuple):
    """A global minimiser of the free-feature loss; samples are grouped by class."""

    features: Float[np.ndarray, "sample unit"]
    weight: Float[np.ndarray, "class unit"]
    labels: Int[np.ndarray, " sample"]


@dataclass(frozen=True, eq=False)
class CentralPath:
    """The flow at its recorded steps; the step of index 0 is the start."""

    time: Float[np.ndarray, " record"]
    within: Float[np.ndarray, " record"]
    """trace of the within-class scatter"""
    between: Float[np.ndarray, " record"]
    """trace of the between-class scatter"""
    loss: Float[np.ndarray, " record"]
    """the free-feature loss with its best classifier"""
    features: Float[np.ndarray, "sample unit"]
    """where the flow ended"""
    lambda_h: float
    diverged_at: int | None
    """the first step whose features were not finite; the flow stops before it"""

    @property
    def nc1_trace(self) -> Float[np.ndarray, " record"]:
        """Within over between trace: the number that the flow theorem says must fall."""
        return self.within / self.between

    @property
    def within_scaled(self) -> Float[np.ndarray, " record"]:
        """``exp(2 lambda_h t)`` times the within trace: falls, with the mere shrinkage taken out."""
        return np.exp(2 * self.lambda_h * self.time) * self.within

    @property
    def between_scaled(self) -> Float[np.ndarray, " record"]:
        """``exp(2 lambda_h t)`` times the between trace: rises."""
        return np.exp(2 * self.lambda_h * self.time) * self.between


class NearFeatureSolution(NamedTuple):
    """Where the near-feature solver stopped."""

    features: Float[np.ndarray, "sample unit"]
    weight: Float[np.ndarray, "class unit"]
    loss: float
    residual: float
    """largest move that one more gradient step would make in any coordinate"""
    n_iterations: int
    converged: bool


class Problem(NamedTuple):
    """Checked input of the model: float64 features, one-hot targets, samples per class."""

    features: Float[np.ndarray, "sample unit"]
    targets: Float[np.ndarray, "sample class"]
    n_per_class: int


def as_float64(values: Any, name: str, ndim: int = 2) -> np.ndarray:
    """An array or a tensor as finite float64 of the wanted number of axes."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise InputError(f"{name} has shape {array.shape}, but {ndim} axes are expected; reshape or pool it first.")
    if not _has_finite_squares(array):
        raise NonFiniteError(
            f"{name} holds NaN, infinity or a number whose square overflows, but the model needs finite numbers; "
            "remove those samples."
        )
    return array


def _has_finite_squares(values: np.ndarray) -> bool:
    """Whether the scatter exists: features whose squares overflow are as lost as infinite ones."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.sum(values**2)))


def check_penalties(**penalties: float) -> None:
    """Refuse a penalty that is not a positive finite number (``lambda_h`` may be zero)."""
    for name, value in penalties.items():
        allows_zero = name == "lambda_h"
        if not np.isfinite(value) or value < 0 or (value == 0 and not allows_zero):
            wanted = "zero or a positive number" if allows_zero else "a positive number"
            raise InputError(f"{name} is {value}, but {wanted} is expected; change {name}.")


def check_sizes(n_classes: int, n_units: int, n_per_class: int) -> None:
    """Refuse sizes for which the model is not defined."""
    if n_classes < 2 or n_per_class < 2 or n_units < n_classes:
        raise InputError(
            f"the model got {n_classes} classes, {n_per_class} samples per class and {n_units} units, but it needs at "
            "least 2 classes, 2 samples per class and as many units as classes; change the sizes."
        )


def one_hot(targets: Any) -> Float[np.ndarray, "sample class"]:
    """Labels ``0..K-1`` as one-hot rows; one-hot rows pass through once checked."""
    if np.ndim(targets) == 1:
        labels = as_float64(targets, "targets", ndim=1)
        whole = labels.size and (labels == np.floor(labels)).all() and labels.min() >= 0
        if not whole or len(np.unique(labels)) != labels.max() + 1:
            raise InputError("targets are not the labels 0..K-1 with every class present; renumber the labels from 0.")
        return np.eye(int(labels.max()) + 1)[labels.astype(np.int64)]
    rows = as_float64(targets, "targets")
    if not (np.isin(rows, (0.0, 1.0)).all() and (rows.sum(1) == 1).all()):
        raise InputError("targets have two axes but are not one-hot rows; give labels 0..K-1 or one-hot rows.")
    return rows


def check_problem(features: Any, targets: Any) -> Problem:
    """Features and targets of the model, refused where its theory does not speak."""
    values, rows = as_float64(features, "features"), one_hot(targets)
    if len(values) != len(rows):
        raise InputError(f"features have {len(values)} samples but targets {len(rows)}; give one target per sample.")
    counts = rows.sum(0).astype(int)
    if counts.min() != counts.max():
        raise InputError(
            f"classes have between {counts.min()} and {counts.max()} samples, but the model is defined for equal "
            "counts; keep the same number of samples of every class."
        )
    check_sizes(rows.shape[1], values.shape[1], int(counts[0]))
    return Problem(values, rows, int(counts[0]))


def collapsed_solution(
    n_classes: int, n_units: int, n_per_class: int, lambda_w: float, lambda_h: float, random_state: int = 0
) -> CollapsedSolution:
    """A collapsed global minimiser of the free-feature loss, in a random rotation.

    With ``c = sqrt(lambda_w lambda_h) <= 1``: all features of class ``k`` equal ``sqrt(rho) r_k`` with orthonormal
    ``r_k`` and ``rho = (1 - c) sqrt(lambda_w / lambda_h)``, and the classifier row is ``sqrt(lambda_h / lambda_w)``
    times that feature. From ``c = 1`` on, the only minimiser is zero, and zeros are returned.

    Args:
        n_classes: ``K >= 2``.
        n_units: ``d >= K``.
        n_per_class: ``n >= 2``.
        lambda_w: penalty of the classifier, positive.
        lambda_h: penalty of the features, positive.
        random_state: seed of the rotation.

    Cost O(d K^2 + K n d). Raises InputError for sizes or penalties outside these bounds.
    """
    check_sizes(n_classes, n_units, n_per_class)
    check_penalties(lambda_w=lambda_w, lambda_h=lambda_h)
    if lambda_h == 0:
        raise InputError("lambda_h is 0, but then the features have no finite minimiser; give a positive lambda_h.")
    normal = np.random.default_rng(random_state).standard_normal((n_units, n_classes))
    frame, triangle = np.linalg.qr(normal)
    frame = frame * np.sign(np.diag(triangle))  # makes the rotation uniform instead of depending on the QR routine
    rho = max(0.0, 1 - np.sqrt(lambda_w * lambda_h)) * np.sqrt(lambda_w / lambda_h)
    means = np.sqrt(rho) * frame.T
    labels = np.repeat(np.arange(n_classes), n_per_class)
    return CollapsedSolution(means[labels], np.sqrt(lambda_h / lambda_w) * means, labels)


def solve_ridge(gram: np.ndarray, ridge: float, right: np.ndarray) -> np.ndarray:
    """``(gram + ridge I)^-1 right`` for a positive semi-definite ``gram`` and a positive ``ridge``."""
    try:
        factor = scipy.linalg.cho_factor(gram + ridge * np.eye(len(gram)))
        return scipy.linalg.cho_solve(factor, right)
    except scipy.linalg.LinAlgError:
        # the ridge drowned in the rounding of a singular gram; its eigenvalues, cut at zero, still carry it
        values, vectors = scipy.linalg.eigh(gram)
        return vectors @ ((vectors.T @ right) / (np.maximum(values, 0) + ridge)[:, None])


def _ridge_classifier(problem: Problem, lambda_w: float) -> Float[np.ndarray, "class unit"]:
    values, targets, n_per_class = problem
    return solve_ridge(values.T @ values, n_per_class * lambda_w, values.T @ targets).T


def optimal_classifier(features: Any, targets: Any, lambda_w: float) -> Float[np.ndarray, "class unit"]:
    """The classifier that minimises either loss for these features: ``Y' H (H' H + n lambda_w I)^-1``.

    Args:
        features: ``(sample, unit)``.
        targets: labels ``0..K-1`` of shape ``(sample,)``, or one-hot rows ``(sample, class)``.
        lambda_w: penalty of the classifier, positive.

    Cost O(N d^2 + d^3). Raises InputError for unequal class counts, ``d < K``, NaN or a penalty that is not positive.
    """
    check_penalties(lambda_w=lambda_w)
    return _ridge_classifier(check_problem(features, targets), lambda_w)


def _loss(problem: Problem, weight: np.ndarray, lambda_w: float, lambda_h: float) -> float:
    values, targets, n_per_class = problem
    misfit = np.sum((values @ weight.T - targets) ** 2) + lambda_h * np.sum(values**2)
    return float((misfit + n_per_class * lambda_w * np.sum(weight**2)) / (2 * len(values)))


def reduced_loss(features: Any, targets: Any, lambda_w: float, lambda_h: float) -> float:
    """The free-feature loss with the classifier at its best for these features.

    Arguments, cost and errors as in :func:`reduced_loss_gradient`.
    """
    check_penalties(lambda_w=lambda_w, lambda_h=lambda_h)
    problem = check_problem(features, targets)
    return _loss(problem, _ridge_classifier(problem, lambda_w), lambda_w, lambda_h)


def _scaled_gradient(problem: Problem, weight: np.ndarray, lambda_h: float) -> np.ndarray:
    """``K n`` times the gradient of the reduced loss, at the best classifier for these features."""
    return (problem.features @ weight.T - problem.targets) @ weight + lambda_h * problem.features


def reduced_loss_gradient(
    features: Any, targets: Any, lambda_w: float, lambda_h: float
) -> Float[np.ndarray, "sample unit"]:
    """Gradient of :func:`reduced_loss` in the features: ``((H W' - Y) W + lambda_h H) / (K n)`` at the best ``W``.

    The best classifier is stationary, so its own change adds nothing (envelope theorem).

    Args:
        features: ``(sample, unit)``.
        targets: labels ``0..K-1`` of shape ``(sample,)``, or one-hot rows ``(sample, class)``.
        lambda_w: penalty of the classifier, positive.
        lambda_h: penalty of the features, zero or positive.

    Cost O(N d^2 + d^3). Raises InputError for unequal class counts, ``d < K``, NaN or a bad penalty.
    """
    check_penalties(lambda_w=lambda_w, lambda_h=lambda_h)
    problem = check_problem(features, targets)
    return _scaled_gradient(problem, _ridge_classifier(problem, lambda_w), lambda_h) / len(problem.features)


def _scatter_traces(problem: Problem) -> tuple[float, float]:
    values, targets, n_per_class = problem
    means = targets.T @ values / n_per_class
    within = np.sum((values - targets @ means) ** 2) / len(values)
    between = np.sum((means - means.mean(0)) ** 2) / len(means)
    return float(within), float(between)


def central_path(
    features: Any,
    targets: Any,
    lambda_w: float,
    lambda_h: float,
    *,
    step: float = 1e-3,
    n_steps: int = 1000,
    record: int = 10,
    sign: int = 1,
) -> CentralPath:
    """Gradient flow of the reduced loss from given features: ``dH/dt = -K n grad L(H)``, by explicit Euler.

    Along the exact flow the within over between trace falls strictly, whatever the features were; time plays the part
    of ``1 / beta``. ``sign=-1`` climbs instead of descending: the control, along which that ratio rises.

    Args:
        features: the start ``(sample, unit)``.
        targets: labels ``0..K-1`` of shape ``(sample,)``, or one-hot rows ``(sample, class)``.
        lambda_w: penalty of the classifier, positive.
        lambda_h: penalty of the features, zero or positive.
        step: time of one Euler step.
        n_steps: number of steps.
        record: keep the numbers of every so many steps; the start and the last step are always kept.
        sign: 1 for the flow, -1 for the control.

    A flow that leaves the finite numbers stops there and says so in ``diverged_at``. Cost O(N d^2 + d^3) a step.
    Raises InputError for unequal class counts, ``d < K``, NaN, a bad penalty or a bad step setting.
    """
    check_penalties(lambda_w=lambda_w, lambda_h=lambda_h, step=step)
    if sign not in (1, -1) or n_steps < 1 or record < 1:
        raise InputError(
            f"sign is {sign}, n_steps {n_steps} and record {record}, but sign must be 1 or -1 and both counts at least "
            "1; change them."
        )
    problem, rows, diverged_at = check_problem(features, targets), [], None
    for index in range(n_steps + 1):
        weight = _ridge_classifier(problem, lambda_w)
        if index % record == 0 or index == n_steps:
            rows.append((index * step, *_scatter_traces(problem), _loss(problem, weight, lambda_w, lambda_h)))
        if index == n_steps:
            break
        moved = problem.features - sign * step * _scaled_gradient(problem, weight, lambda_h)
        if not _has_finite_squares(moved):
            diverged_at = index + 1
            break
        problem = problem._replace(features=moved)
    time, within, between, loss = np.array(rows).T
    return CentralPath(time, within, between, loss, problem.features, lambda_h, diverged_at)


def near_feature_minimiser(
    features: Any,
    targets: Any,
    lambda_w: float,
    lambda_h: float,
    beta: float,
    *,
    start: Any | None = None,
    tol: float = 1e-12,
    max_iter: int = 20_000,
) -> NearFeatureSolution:
    """Minimise the near-feature loss, whose features are tied to the given ones with strength ``beta``.

    Alternates the two ridge problems, each solved exactly: the best classifier for the features, then the best
    features for the classifier, ``(Y W + beta H0) (W' W + (lambda_h + beta) I)^-1``. The loss never rises. It stops
    when one more gradient step, of length ``1 / (beta + lambda_h + |W|^2)`` with the spectral norm, would move no
    coordinate by more than ``tol * max(1, max |H0|)``.

    Args:
        features: ``H0`` ``(sample, unit)``.
        targets: labels ``0..K-1`` of shape ``(sample,)``, or one-hot rows ``(sample, class)``.
        lambda_w: penalty of the classifier, positive.
        lambda_h: penalty of the features, zero or positive.
        beta: strength of the tie, positive.
        start: features to begin from; ``H0`` by default. Needed when ``H0`` is zero, because zero is stationary.
        tol: when to stop.
        max_iter: most alternations; a solver that reaches it returns with ``converged=False``.

    The loss is not convex: for small ``beta`` the answer may be a local minimum that depends on ``start``.
    Cost O(N d^2 + d^3) an alternation. Raises InputError for unequal class counts, ``d < K``, NaN or a bad penalty.
    """
    check_penalties(lambda_w=lambda_w, lambda_h=lambda_h, beta=beta, tol=tol)
    origin = check_problem(features, targets)
    problem = origin if start is None else check_problem(start, targets)
    if problem.features.shape != origin.features.shape:
        raise InputError(
            f"start has shape {problem.features.shape} but features {origin.features.shape}; give equal shapes."
        )
    limit = tol * max(1.0, float(np.abs(origin.features).max()))
    index = 0
    while True:
        weight = _ridge_classifier(problem, lambda_w)
        gradient = _scaled_gradient(problem, weight, lambda_h) + beta * (problem.features - origin.features)
        residual = float(np.abs(gradient).max() / (beta + lambda_h + np.linalg.norm(weight, 2) ** 2))
        if residual <= limit or index >= max_iter:
            break
        # a Newton step of the ridge problem: the same minimum as solving it afresh, without the rounding of beta * H0
        move = solve_ridge(weight.T @ weight, lambda_h + beta, gradient.T).T
        problem = problem._replace(features=problem.features - move)
        index += 1
    tie = beta * np.sum((problem.features - origin.features) ** 2) / (2 * len(origin.features))
    loss = _loss(problem, weight, lambda_w, lambda_h) + float(tie)
    return NearFeatureSolution(problem.features, weight, loss, residual, index, residual <= limit)
