"""The lasso of many targets on a Gram matrix, without another look at the samples."""

from __future__ import annotations

import numpy as np

from netloupe.core.statistics.kernels import compiled, inlined

SETTLING, PATIENCE = 12, 3  # sweeps over inputs with a weight; rounds before Newton steps, which cost s^3
JITTER = 1e-10  # added to the Gram matrix of a Newton step, so that equal units do not make it singular


@compiled
def lasso_gram(gram, cross, alpha, weights, tolerance, max_rounds):
    """Minimises ``1/2 w'Gw - c'w + alpha |w|_1`` for each row of ``cross``, from ``weights`` on, in place.

    ``gram`` ``(p, p)`` with diagonal 1 (0 for inputs that never vary), ``cross`` and ``weights`` ``(q, p)``. A row stops when its
    duality gap, for a target of variance 1, is at most ``tolerance``. Returns gaps and rounds, one a row.

    A round is a sweep of coordinate descent over all inputs and several over those with a weight, on their own small Gram matrix;
    after some rounds also Newton steps among these up to the first change of sign: units go together, and coordinate
    descent alone would creep along their common directions.
    """
    q, p = cross.shape
    gaps, rounds = np.zeros(q), np.zeros(q, np.int64)
    residual, active = np.empty(p), np.empty(p, np.int64)
    for target in range(q):
        weight = weights[target]
        for i in range(p):
            residual[i] = cross[target, i]
        for j in range(p):
            if weight[j] != 0.0:
                _move(gram, residual, j, weight[j], p)
        gap, done = np.inf, 0
        while done < max_rounds:
            done += 1
            n_active = 0
            for j in range(p):
                before = weight[j]
                if gram[j, j] > 0.0 and (before == 0.0 or done == 1):  # those with a weight were settled last
                    after = _shrunk(residual[j] + before * gram[j, j], alpha) / gram[j, j]
                    if after != before:
                        weight[j] = after
                        _move(gram, residual, j, after - before, p)
                if weight[j] != 0.0:
                    active[n_active] = j
                    n_active += 1
            gap = _gap(residual, weight, cross[target], alpha, p)
            if gap <= tolerance:
                break
            if n_active:
                _settle(gram, residual, weight, active[:n_active], alpha, p, tolerance, done > PATIENCE)
        gaps[target], rounds[target] = gap, done
    return gaps, rounds


@inlined
def _shrunk(pull, alpha):
    """Soft threshold."""
    if pull > alpha:
        return pull - alpha
    if pull < -alpha:
        return pull + alpha
    return 0.0


@inlined
def _move(gram, residual, j, change, p):
    """The residual correlations after a change of one weight."""
    for i in range(p):
        residual[i] -= change * gram[j, i]


@compiled
def _settle(gram, residual, weight, active, alpha, p, tolerance, newton):
    """Improves the weights of ``active`` inputs among themselves, then brings the residual up to date once."""
    m = len(active)
    inner, slope, value = np.empty((m, m)), np.empty(m), np.empty(m)
    for k in range(m):
        for other in range(m):
            inner[k, other] = gram[active[k], active[other]]
        slope[k], value[k] = residual[active[k]], weight[active[k]]
    for _ in range(SETTLING):
        largest = 0.0
        for k in range(m):
            after = _shrunk(slope[k] + value[k] * inner[k, k], alpha) / inner[k, k]
            change = after - value[k]
            if change != 0.0:
                value[k] = after
                largest = max(largest, abs(change))
                _move(inner, slope, k, change, m)
        if largest * largest <= 0.01 * tolerance:
            break
    if newton:
        for _ in range(10):
            if _newton(inner, slope, value, alpha):
                break
    for k in range(m):
        change = value[k] - weight[active[k]]
        if change != 0.0:
            weight[active[k]] = value[k]
            _move(gram, residual, active[k], change, p)


@compiled
def _newton(inner, slope, value, alpha):
    """Towards the minimum with the present signs, at most to where the first weight reaches zero; whether it came all the way."""
    held = np.flatnonzero(value)
    m = len(held)
    if m == 0:
        return True
    system, right = np.empty((m, m)), np.empty(m)
    for k in range(m):
        for other in range(m):
            system[k, other] = inner[held[k], held[other]]
        system[k, k] += JITTER
        right[k] = slope[held[k]] - alpha * np.sign(value[held[k]])
    step = np.linalg.solve(system, right)
    length, first = 1.0, -1
    for k in range(m):
        before = value[held[k]]
        if before * (before + step[k]) <= 0.0:
            reach = -before / step[k]
            if reach < length:
                length, first = reach, k
    for k in range(m):
        before = value[held[k]]
        after = 0.0 if k == first else before + length * step[k]
        value[held[k]] = after
        _move(inner, slope, held[k], after - before, len(value))
    return first < 0


@compiled
def _gap(residual, weight, cross, alpha, p):
    """Primal less dual objective: the dual point is the residual, shrunk until no input correlates above ``alpha``."""
    largest, size, fitted, aligned = 0.0, 0.0, 0.0, 0.0
    for j in range(p):
        largest = max(largest, abs(residual[j]))
        size += abs(weight[j])
        fitted += weight[j] * (cross[j] - residual[j])  # w'Gw
        aligned += weight[j] * cross[j]  # w'c
    error = max(1.0 - 2.0 * aligned + fitted, 0.0)
    shrink = 1.0 if largest <= alpha else alpha / largest
    # dual point theta = shrink * (y - Xw): value = y'theta - theta'theta / 2
    dual = shrink * (1.0 - aligned) - 0.5 * shrink * shrink * error
    return 0.5 * error + alpha * size - dual
