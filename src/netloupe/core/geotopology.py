"""Distances squashed between two quantiles: from geometry (all of them count) to topology (only who is near whom).

Source: Lin and Kriegeskorte, arXiv 2309.11028. Everything here takes and returns condensed pairs, NaN where undefined.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from netloupe.core.dissimilarity import average_ranks
from netloupe.core.errors import InputError

Normalise = Literal["rank", "minmax", "none"]


def rank_minmax(values: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " pair"]:
    """Ranks of all pairs (ties share their mean rank), moved to [0, 1]: the smallest 0, the largest 1."""
    return _minmax(average_ranks(np.asarray(values, dtype=np.float64)))


def geo_topological(
    values: Float[np.ndarray, " pair"], lower: float = 0.2, upper: float = 0.8, normalise: Normalise = "rank"
) -> Float[np.ndarray, " pair"]:
    """0 below the ``lower`` quantile, 1 above the ``upper``, linear between: ``(r - q_l) / (q_u - q_l)``.

    ``lower = 0, upper = 1`` gives the normalised distances; ``lower = upper`` the step ``1[r > q]``, an adjacency matrix.

    Args:
        values: condensed distances. lower, upper: quantiles, ``0 <= lower <= upper <= 1``.
        normalise: what is done first: ``rank`` (:func:`rank_minmax`), ``minmax``, or ``none``.

    Raises InputError for quantiles out of order and distances that are all equal.
    """
    if not 0 <= lower <= upper <= 1:
        raise InputError(f"the quantiles are {lower} and {upper}, expected 0 <= lower <= upper <= 1")
    found = _normalised(np.asarray(values, dtype=np.float64), normalise)
    low, high = np.nanquantile(found, [lower, upper])
    if high <= low:
        return np.where(np.isnan(found), np.nan, (found > low).astype(np.float64))
    return np.clip((found - low) / (high - low), 0, 1)


def geo_topological_sigmoid(
    values: Float[np.ndarray, " pair"], alpha: float = 10.0, beta: float = 0.5, normalise: Normalise = "rank"
) -> Float[np.ndarray, " pair"]:
    """``1 / (1 + exp(-alpha (r - beta)))`` of normalised distances: the same dial with soft ends."""
    if not alpha > 0:
        raise InputError(f"alpha is {alpha}, expected a positive steepness")
    return 1 / (1 + np.exp(-alpha * (_normalised(np.asarray(values, dtype=np.float64), normalise) - beta)))


def _normalised(values: np.ndarray, normalise: str) -> np.ndarray:
    if normalise not in ("rank", "minmax", "none"):
        raise InputError(f"normalise is '{normalise}', expected 'rank', 'minmax' or 'none'")
    return rank_minmax(values) if normalise == "rank" else _minmax(values) if normalise == "minmax" else values


def _minmax(values: np.ndarray) -> np.ndarray:
    low, high = np.nanmin(values), np.nanmax(values)
    if not high > low:
        raise InputError("all samples are equally far apart, so there is nothing to squash")
    return (values - low) / (high - low)
