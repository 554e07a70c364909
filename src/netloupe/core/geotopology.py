"""Distances squashed between two quantiles: from geometry (all of them count) to topology (only who is near whom).

Source: Lin and Kriegeskorte, "The Topology and Geometry of Neural Representations", arXiv 2309.11028. Everything here takes and
returns condensed pairs, in the order of ``scipy.spatial.distance.squareform``.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, shortest_path
from scipy.spatial.distance import squareform
from scipy.special import expit
from scipy.stats import rankdata

from netloupe.core.dissimilarity import average_ranks, samples_of_pairs
from netloupe.core.errors import InputError, NonFiniteError

Normalise = Literal["rank", "minmax", "none"]
Keep = Literal["p_shortest", "p_nearest", "k_nearest", "twostep"]
Missing = Literal["refuse", "keep"]
Disconnected = Literal["refuse", "max"]


def rank_minmax(values: Float[np.ndarray, " pair"], missing: Missing = "refuse") -> Float[np.ndarray, " pair"]:
    """Ranks of all pairs (ties share their mean rank), moved to [0, 1]: the smallest 0, the largest 1.

    Args:
        values: condensed distances. missing: what NaN means: ``refuse``, or ``keep`` it as a pair that is not defined.

    Cost O(n^2 log n). Raises InputError for distances that are all equal, NonFiniteError for NaN or infinity.
    """
    return _minmax(average_ranks(_pairs(values, missing)))


def geo_topological(
    values: Float[np.ndarray, " pair"],
    lower: float = 0.2,
    upper: float = 0.8,
    normalise: Normalise = "rank",
    missing: Missing = "refuse",
) -> Float[np.ndarray, " pair"]:
    """0 below the ``lower`` quantile, 1 above the ``upper``, linear between: ``(r - q_l) / (q_u - q_l)``.

    ``lower = 0, upper = 1`` gives the normalised distances; ``lower = upper`` the step ``1[r > q]``, an adjacency matrix. On tied
    distances the share that is kept is not ``upper - lower``.

    Args:
        values: condensed distances. lower, upper: quantiles, ``0 <= lower <= upper <= 1``.
        normalise: what is done first: ``rank`` (:func:`rank_minmax`), ``minmax``, or ``none``.
        missing: ``refuse`` NaN, or ``keep`` it as a pair that is not defined.

    Cost O(n^2 log n). Raises InputError for quantiles out of order and distances that are all equal, NonFiniteError for NaN or
    infinity.
    """
    if not 0 <= lower <= upper <= 1:
        raise InputError(f"the quantiles are {lower} and {upper}, expected 0 <= lower <= upper <= 1")
    found = _normalised(values, normalise, missing)
    return squashed(found, *np.nanquantile(found, [lower, upper]))


def squashed(values: Float[np.ndarray, "..."], low: float, high: float) -> Float[np.ndarray, "..."]:
    """0 below ``low``, 1 above ``high``, linear between; a step at ``low`` where they are equal. NaN stays."""
    if high <= low:
        return np.where(np.isnan(values), np.nan, (values > low).astype(np.float64))
    return np.clip((values - low) / (high - low), 0, 1)


def geo_topological_sigmoid(
    values: Float[np.ndarray, " pair"],
    alpha: float = 10.0,
    beta: float = 0.5,
    normalise: Normalise = "rank",
    missing: Missing = "refuse",
) -> Float[np.ndarray, " pair"]:
    """``1 / (1 + exp(-alpha (r - beta)))`` of normalised distances: the same dial with soft ends.

    Arguments and errors as :func:`geo_topological`; InputError for ``alpha`` that is not positive.
    """
    if not alpha > 0:
        raise InputError(f"alpha is {alpha}, expected a positive steepness")
    return expit(alpha * (_normalised(values, normalise, missing) - beta))


def geodesic(
    values: Float[np.ndarray, " pair"],
    keep: Keep = "p_shortest",
    p: float = 0.05,
    k: int | None = None,
    *,
    normalise: Normalise | None = None,
    rank_after: bool = True,
    disconnected: Disconnected = "refuse",
    official: bool = False,
) -> Float[np.ndarray, " pair"]:
    """Shortest paths through the graph of short distances between samples.

    Args:
        values: condensed distances. keep: which edges stay: ``p_shortest`` those up to the ``p`` quantile; ``k_nearest`` from a
            sample to its ``k`` nearest (from either side; ties by the sample's number); ``p_nearest`` the same with ``int(p n)``;
            ``twostep``, for distances that :func:`geo_topological` has squashed, those below 1.
        p, k: see ``keep``.
        normalise: what is done first; by default ``rank``, with ``twostep`` ``minmax``, as the source has it. ``none`` walks along
            the distances themselves.
        rank_after: ranks of the path lengths (pairs without a path share the highest) in place of the lengths.
        disconnected: ``refuse`` a graph in several parts, or give pairs between parts the ``max``imum of the path lengths.
        official: as the authors' code, whose graph loses edges of length zero (the closest pairs of all), keeps an edge only
            for the neighbours of the sample with the lower number, and ranks equal paths by their rounding.

    Edges of length zero are edges of length zero here. Cost O(n^3), or O(n e log n) for few edges e. Raises InputError for options that
    keep no edge or cannot be used, distances that are all equal, or a graph in several parts; NonFiniteError for NaN.
    """
    if keep not in get_args(Keep) or disconnected not in get_args(Disconnected):
        raise InputError(
            f"keep is '{keep}' and disconnected '{disconnected}'; expected one of {', '.join(get_args(Keep))} and refuse or max"
        )
    first: Normalise = normalise or ("minmax" if keep == "twostep" else "rank")
    lengths = _normalised(values, first, "refuse")
    n = samples_of_pairs(len(lengths))
    kept = _edges(lengths, n, keep, p, k, official)
    if official:
        kept &= lengths > 0
    one, two = np.triu_indices(n, 1)
    graph = csr_array((lengths[kept], (one[kept], two[kept])), shape=(n, n))
    parts = int(connected_components(graph, directed=False)[0])
    if parts > 1 and disconnected == "refuse":
        raise InputError(
            f"the graph of kept distances has {parts} parts, so that some samples are joined by no path; keep more edges, or "
            "set disconnected='max'"
        )
    if not kept.any():
        raise InputError("no edge is left, so there is no path to measure; keep more of them")
    if official:
        table = _relaxed(np.where(kept, lengths, np.inf))
    else:
        # with many edges all pairs at once cost less than a search from each sample
        table = shortest_path(graph, method="FW" if n < 100 or kept.mean() > 0.25 else "D", directed=False)
    found = squareform(table, checks=False)
    open_ = np.isinf(found)
    if rank_after:
        # sums of the same lengths in another order differ by rounding; the authors' code ranks them as they are
        return rankdata(found) if official else average_ranks(np.where(open_, found[~open_].max() * 2 + 1, found))
    return np.where(open_, found[~open_].max(), found)


def _relaxed(lengths: Float[np.ndarray, " pair"]) -> Float[np.ndarray, "sample sample"]:
    """Floyd and Warshall's recursion, one sample after the other: the order of sums decides which equal paths round alike."""
    table = squareform(lengths, checks=False)
    for through in range(len(table)):
        np.minimum(table, table[through][None] + table[:, through][:, None], out=table)
    return table


def _edges(
    lengths: np.ndarray, n: int, keep: str, p: float, k: int | None, official: bool
) -> Bool[np.ndarray, " pair"]:
    if keep == "twostep":
        return lengths < 1
    if keep == "p_shortest":
        if not 0 < p <= 1:
            raise InputError(f"p is {p}, expected a share of the pairs, above 0 and at most 1")
        # distances that differ by rounding are one distance
        return lengths <= np.quantile(lengths, p) + (0 if official else 1e-10 * lengths.max())
    nearest = int(p * n) if keep == "p_nearest" else k if k is not None else 1
    if not 1 <= nearest < n:
        raise InputError(f"{nearest} nearest of {n} samples were to be kept, expected 1 to {n - 1}")
    table = squareform(lengths, checks=False)
    absent = table == 0 if official else np.eye(n, dtype=bool)
    order = np.argsort(np.where(absent, np.inf, table), axis=1, kind="stable")[:, :nearest]
    near = np.zeros((n, n), dtype=bool)
    np.put_along_axis(near, order, True, axis=1)
    one, two = np.triu_indices(n, 1)
    return near[one, two] if official else near[one, two] | near[two, one]


def _normalised(values: np.ndarray, normalise: str, missing: Missing) -> np.ndarray:
    if normalise not in get_args(Normalise):
        raise InputError(f"normalise is '{normalise}', expected 'rank', 'minmax' or 'none'")
    if normalise == "rank":
        return rank_minmax(values, missing)
    found = _pairs(values, missing)
    return _minmax(found) if normalise == "minmax" else found


def _pairs(values: np.ndarray, missing: str) -> Float[np.ndarray, " pair"]:
    found = np.asarray(values, dtype=np.float64)
    if missing not in get_args(Missing):
        raise InputError(f"missing is '{missing}', expected 'refuse' or 'keep'")
    if found.ndim != 1 or not len(found):
        raise InputError(f"distances have shape {found.shape}, expected condensed pairs (pair,)")
    if np.isinf(found).any() or (missing == "refuse" and np.isnan(found).any()):
        raise NonFiniteError(
            "a distance is NaN or infinite; leave the sample out, or set missing='keep' for pairs that are not defined (NaN)"
        )
    if np.isnan(found).all():
        raise InputError("no pair of samples is defined, so there is no order of pairs")
    return found


def _minmax(values: np.ndarray) -> np.ndarray:
    low, high = np.nanmin(values), np.nanmax(values)
    if not high > low:
        raise InputError("all samples are equally far apart, so there is nothing to squash")
    return (values - low) / (high - low)
