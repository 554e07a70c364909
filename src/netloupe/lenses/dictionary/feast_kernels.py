"""The sequential loop of adaptive selection thresholds (arXiv 1907.07853), compiled and plain.

Weights are kept as ``(unit, feature)``: the loop over features is innermost and becomes vector instructions, and units that are 0 (most
of a time surface) are skipped.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.statistics.kernels import compiled


@compiled
def learn(rows, weights, thresholds, wins, winners, eta, gain, loosen, adaptive, clip, block):
    """Learns from rows of length 1 in their order, in place; returns how many no feature claimed.

    ``weights`` ``(unit, feature)``, columns of length 1; ``thresholds``, ``wins`` (int64, counted up) ``(feature,)``; ``winners`` int64
    ``(row,)``: who won, -1 nobody. Not ``adaptive``: the best feature always wins and thresholds stay. ``block`` rows are compared
    with the weights as they are before the first of them; thresholds and weights then move row by row.
    """
    n_units, n_features = weights.shape
    similarities = np.empty((block, n_features))
    misses = 0
    for row in range(len(rows)):
        place = row % block
        if block == 1:
            similarities[0] = 0.0
            for unit in range(n_units):
                value = rows[row, unit]
                if value != 0.0:
                    for feature in range(n_features):
                        similarities[0, feature] += value * weights[unit, feature]
        elif place == 0:
            n = min(block, len(rows) - row)
            similarities[:n] = np.dot(rows[row : row + n], weights)
        similarity = similarities[place]
        best = -1
        for feature in range(n_features):
            if (not adaptive or similarity[feature] > thresholds[feature]) and (
                best < 0 or similarity[feature] > similarity[best]
            ):
                best = feature
        winners[row] = best
        if best < 0:
            misses += 1
            for feature in range(n_features):
                thresholds[feature] -= loosen
                if clip and thresholds[feature] < 0.0:
                    thresholds[feature] = 0.0
            continue
        wins[best] += 1
        total = 0.0
        for unit in range(n_units):
            value = (1 - eta) * weights[unit, best] + eta * rows[row, unit]
            weights[unit, best] = value
            total += value * value
        if total > 0.0:  # opposite rows at eta = 1/2 leave nothing to give a length
            length = np.sqrt(total)
            for unit in range(n_units):
                weights[unit, best] /= length
        if adaptive:
            thresholds[best] += gain
            if clip and thresholds[best] > 1.0:
                thresholds[best] = 1.0
    return misses


def learn_plain(
    rows: Float[np.ndarray, "row unit"],
    weights: Float[np.ndarray, "unit feature"],
    thresholds: Float[np.ndarray, " feature"],
    wins: Int[np.ndarray, " feature"],
    winners: Int[np.ndarray, " row"],
    eta: float,
    gain: float,
    loosen: float,
    adaptive: bool,
    clip: bool,
    block: int = 1,
) -> int:
    """:func:`learn` in numpy, row by row: the same winners and, to rounding, the same numbers."""
    misses, similarities = 0, np.empty((0, len(thresholds)))
    for i, row in enumerate(rows):
        if i % block == 0:
            similarities = rows[i : i + block] @ weights
        similarity = similarities[i % block]
        eligible = np.where(similarity > thresholds, similarity, -np.inf) if adaptive else similarity
        best = int(eligible.argmax())
        if eligible[best] == -np.inf:
            winners[i] = -1
            misses += 1
            thresholds -= loosen
            if clip:
                np.maximum(thresholds, 0, out=thresholds)
            continue
        winners[i] = best
        wins[best] += 1
        moved = (1 - eta) * weights[:, best] + eta * row
        length = np.linalg.norm(moved)
        weights[:, best] = moved / length if length > 0 else moved
        if adaptive:
            thresholds[best] += gain
            if clip:
                thresholds[best] = min(thresholds[best], 1.0)
    return misses
