"""The support vector machine of one problem in compiled code: see :mod:`netloupe.lenses.geometry.margins`."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numba import njit


@njit(cache=True)
def solve_one(
    x: Float[np.ndarray, "sample unit"], y: Float[np.ndarray, " sample"], penalty: float, most_steps: int, halvings: int
) -> Float[np.ndarray, " unit"]:
    """Minimises ``|w|^2 / 2 + C sum_i max(0, 1 - y_i w x_i)^2`` by Newton steps on the samples inside the margin.

    Between steps only samples that entered or left change the Hessian; where a whole step does not lower the objective, the
    slope along it is halved down to near its zero.
    """
    n, rank = x.shape
    weight = np.zeros(rank)
    margin = np.ones(n)
    active = np.ones(n, dtype=np.bool_)
    hessian = 2 * penalty * np.dot(x.T, x)
    for i in range(rank):
        hessian[i, i] += 1
    aim = 2 * penalty * np.dot(x.T, y)
    moved = np.empty(n, dtype=np.int64)
    for _ in range(most_steps):
        step = np.linalg.solve(hessian, aim) - weight
        change = -y * np.dot(x, step)
        along, square = np.dot(weight, step), np.dot(step, step)
        before = after = 0.0
        for i in range(n):
            here, there = max(margin[i], 0.0), max(margin[i] + change[i], 0.0)
            before += here * here
            after += there * there
        length = 1.0
        higher = penalty * after + along + square / 2 > penalty * before * (1 - 1e-10)
        # at a solved problem the slope at 1 is zero up to rounding
        if higher and _slope(margin, change, along, square, penalty, 1.0) > 1e-12 * (1 + square):
            low, high = 0.0, 1.0
            for _ in range(halvings):
                middle = (low + high) / 2
                if _slope(margin, change, along, square, penalty, middle) > 0:
                    high = middle
                else:
                    low = middle
            length = (low + high) / 2
        weight += length * step
        margin += length * change
        count = 0
        for i in range(n):
            if (margin[i] > 0) != active[i]:
                moved[count] = i
                count += 1
        if (count == 0 and length == 1.0) or length * np.abs(step).max() <= 1e-14 * (1 + np.abs(weight).max()):
            break
        for entering in (True, False):
            chosen = moved[:count][active[moved[:count]] != entering]
            if len(chosen):
                part = x[chosen]
                scale = 2 * penalty if entering else -2 * penalty
                hessian += scale * np.dot(part.T, part)
                aim += scale * np.dot(part.T, y[chosen])
        for i in moved[:count]:
            active[i] = not active[i]
    return weight


@njit(cache=True)
def _slope(margin: np.ndarray, change: np.ndarray, along: float, square: float, penalty: float, t: float) -> float:
    total = 0.0
    for i in range(len(margin)):
        total += max(margin[i] + t * change[i], 0.0) * change[i]
    return along + t * square + 2 * penalty * total
