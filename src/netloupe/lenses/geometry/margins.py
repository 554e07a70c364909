"""Many linear support vector machines on the same samples, solved exactly and together.

Abstraction metrics fit a linear classifier for every dichotomy and every subset of conditions: thousands of small problems that
share their samples. The objective is scikit-learn's ``LinearSVC`` with its defaults, ``|w|^2 / 2 + b^2 / 2 + C sum_i max(0, 1 -
y_i (w x_i + b))^2``, whose Newton method with an exact line search ends after finitely many steps (Mangasarian 2002).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from netloupe.core.errors import InputError
from netloupe.lenses.geometry.margin_kernels import solve_one

MAX_NEWTON = 200
HALVINGS = 12
_ALONE = 64  # samples
_AT_ONCE = 2**18  # numbers: small problems form their Hessians as one product
_TOGETHER = 2**22  # numbers: problems are solved in groups whose Hessians fit


def decision_values(
    features: Float[np.ndarray, "sample unit"],
    signs: Float[np.ndarray, "problem sample"],
    fitted: Bool[np.ndarray, "problem sample"],
    penalty: float = 1.0,
) -> Float[np.ndarray, "problem sample"]:
    """``w x + b`` of every sample, fitted or not, for each problem's own labels and subset of fitted samples.

    Args:
        features: ``(sample, unit)`` float64. signs: ``(problem, sample)``, -1 and +1. fitted: ``(problem, sample)``, both signs in
            each. penalty: C.

    Cost: about ten steps of O(n r^2 + r^3) a problem, with ``r = min(n, d + 1)``. Raises InputError for a problem without both
    signs.
    """
    n, _ = features.shape
    for sign in (-1, 1):
        if not ((signs == sign) & fitted).any(1).all():
            raise InputError("a classifier needs samples of both sides; a condition or a side has none to fit on")
    x = np.column_stack([features, np.ones(n)])
    if x.shape[1] > n:
        x = np.asarray(np.linalg.qr(x.T, mode="r")).T  # the same inner products in n dimensions
    if n > _ALONE:  # then a problem is large enough by itself, and need not look at samples that it is not fitted on
        weights = [solve_one(x[mask], row[mask], penalty, MAX_NEWTON, HALVINGS) for row, mask in zip(signs, fitted)]
        return np.stack(weights) @ x.T
    rank = x.shape[1]
    found = np.empty(signs.shape)
    size = max(1, _TOGETHER // (rank * rank + n))
    for start in range(0, len(signs), size):
        part = slice(start, start + size)
        found[part] = _solve(x, signs[part], fitted[part] * penalty) @ x.T
    return found


def _solve(x: np.ndarray, y: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """``(problem, unit)``: Newton steps on the active samples, each followed by a good point on its line."""
    count, (n, rank) = len(y), x.shape
    weight = np.zeros((count, rank))
    margin = np.ones((count, n))  # 1 - y f
    active = cost > 0
    outer = (x[:, :, None] * x[:, None, :]).reshape(n, -1) if n * rank * rank <= _AT_ONCE else None
    hessian = np.zeros((count, rank, rank))
    hessian[:, np.arange(rank), np.arange(rank)] = 1
    _add(hessian, x, outer, 2 * cost)
    left = np.arange(count)
    for _ in range(MAX_NEWTON):
        own, costs, aim = active[left], cost[left], y[left]
        goal = np.linalg.solve(hessian, ((2 * costs * own * aim) @ x)[..., None])[..., 0]
        step = goal - weight[left]
        change = -aim * (step @ x.T)
        length = _good(weight[left], step, margin[left], change, costs)
        weight[left] += length[:, None] * step
        margin[left] = 1 - aim * (weight[left] @ x.T)
        now = (margin[left] > 0) & (costs > 0)
        done = (now == own).all(1) & (length == 1)
        done |= np.abs(length[:, None] * step).max(1) <= 1e-14 * (1 + np.abs(weight[left]).max(1))
        active[left] = now
        hessian, left = hessian[~done], left[~done]
        if not len(left):
            break
        _add(hessian, x, outer, 2 * costs[~done] * (now[~done].astype(float) - own[~done]))
    return weight


def _add(hessian: np.ndarray, x: np.ndarray, outer: np.ndarray | None, scale: np.ndarray) -> None:
    """Adds ``sum_i scale_i x_i x_i'`` of each problem: after the first steps few samples have changed."""
    if outer is not None:
        hessian += (scale @ outer).reshape(hessian.shape)
        return
    for matrix, row in zip(hessian, scale):
        for sign in (1, -1):
            moved = np.flatnonzero(sign * row > 0)
            if len(moved):
                part = x[moved] * np.sqrt(sign * row[moved])[:, None]
                matrix += sign * (part.T @ part)


def _good(
    weight: np.ndarray, step: np.ndarray, margin: np.ndarray, change: np.ndarray, cost: np.ndarray
) -> Float[np.ndarray, " problem"]:
    """How far to go on ``weight + t step``: all of it where that lowers the objective, else near where it is least.

    The first saves steps, the second makes sure that they end: the slope along the line rises, so halving finds its zero.
    """
    along, square = np.einsum("pu,pu->p", weight, step), np.einsum("pu,pu->p", step, step)
    length = np.ones(len(step))
    before, after = (
        np.einsum("pn,pn,pn->p", cost, hinge, hinge) for hinge in (_hinge(margin), _hinge(margin + change))
    )
    worse = np.flatnonzero(after + along + square / 2 > before * (1 - 1e-10))
    if not len(worse):
        return length
    along, square, margin, change, cost = along[worse], square[worse], margin[worse], change[worse], cost[worse]

    def slope(t: np.ndarray) -> np.ndarray:
        hinge = _hinge(margin + t[:, None] * change)
        return along + t * square + 2 * np.einsum("pn,pn,pn->p", cost, hinge, change)

    low, high = np.zeros(len(worse)), np.ones(len(worse))
    # at a solved problem the slope at 1 is zero up to rounding
    beyond = slope(high) > 1e-12 * (1 + square)
    for _ in range(HALVINGS if beyond.any() else 0):
        middle = (low + high) / 2
        rising = slope(middle) > 0
        high, low = np.where(rising, middle, high), np.where(rising, low, middle)
    length[worse] = np.where(beyond, (low + high) / 2, 1.0)
    return length


def _hinge(margin: np.ndarray) -> np.ndarray:
    return np.maximum(margin, 0)
