"""How many nats two units tell about each other: a matching that sees more than straight lines.

Source: Li, Yosinski, Clune, Lipson and Hopcroft, "Convergent Learning", arXiv 1511.07543.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.alignment import paired_rows
from netloupe.core.errors import InputError
from netloupe.lenses.similarity.mi_kernels import pair_information

Bias = Literal["miller-madow", "official"] | None
ZERO = 1e-6  # activations below this are a silent unit's
MAX_ROWS = 2_000_000
MAX_BINS = 256  # codes are bytes


def pairwise_mi(
    features: Float[Tensor, "sample *position unit_a"] | Any,
    other: Float[Tensor, "sample *position unit_b"] | Any,
    bins: int = 10,
    zero_bin: bool = True,
    bias: Bias = "miller-madow",
    pairs: Int[np.ndarray, "pair 2"] | None = None,
) -> Float[np.ndarray, "unit_a unit_b"] | Float[np.ndarray, " pair"]:
    """Mutual information of units, from histograms of ``bins`` bins a unit that hold about equally many rows.

    ``sum_ij p_ij log(p_ij / (p_i p_j))`` in nats. With ``zero_bin`` a unit's values within 1e-6 of zero are one bin (silent ReLU units),
    the others fill the remaining bins equally. ``bias="miller-madow"`` subtracts ``(R - 1)(C - 1) / (2 n)`` for R and C bins that
    hold something: independent units then average 0, and single estimates may be slightly negative. Neighbouring positions are
    not independent rows, for which that is too little.

    ``bias="official"`` is what the authors' code computes: bins by percentiles of all values from the share of values below 1e-6 on
    (negative ones count as silent), and a correction of ``bins^2 / (2 n log 2)``, which takes nats for bits.

    Args:
        features, other: ``(sample, unit)`` or ``(sample, position, unit)``; every position is a row. Both in memory at once.
        pairs: ``(k, 2)`` units to look at, in place of all.

    Returns:
        ``(p, q)``, or ``(k,)`` with ``pairs``.

    Cost: O(n log n (p + q)) for the bins and O(n p q) increments; n (p + q) bytes. Raises InputError for rows that are at most
    ``bins^2`` or more than 2,000,000, different samples, other options, or pairs that do not exist.
    """
    if not 2 <= bins <= MAX_BINS or bias not in ("miller-madow", "official", None):
        raise InputError(
            f"bins is {bins} and bias {bias!r}; 2 to {MAX_BINS} and 'miller-madow', 'official' or None are needed"
        )
    x, z = paired_rows(features, other, min_samples=1, ndim=(2, 3))
    n = int(np.prod(x.shape[:-1]))
    if not bins**2 < n <= MAX_ROWS:
        raise InputError(
            f"{n} rows were given for {bins} bins a unit; more than {bins**2} and at most {MAX_ROWS} are needed: "
            f"choose fewer bins or draw a sample"
        )
    codes = [
        _codes(rows.array().double().numpy().reshape(n, -1), bins, zero_bin, bias == "official") for rows in (x, z)
    ]
    wanted = _pairs(pairs, x.n_units, z.n_units)
    counts = np.arange(n + 1, dtype=np.float64)
    found = pair_information(codes[0], codes[1], wanted, bins, counts * np.log(np.maximum(counts, 1)))
    if bias == "official":
        found -= bins**2 / (2 * n * np.log(2))
    elif bias == "miller-madow":
        used = [np.array([len(np.unique(unit)) for unit in each]) for each in codes]
        found -= (used[0][wanted[:, 0]] - 1) * (used[1][wanted[:, 1]] - 1) / (2 * n)
    return found if pairs is not None else found.reshape(x.n_units, z.n_units)


def _pairs(pairs: Any, p: int, q: int) -> Int[np.ndarray, "pair 2"]:
    if pairs is None:
        return np.stack(np.meshgrid(np.arange(p), np.arange(q), indexing="ij"), -1).reshape(-1, 2)
    wanted = np.asarray(pairs)
    if wanted.ndim != 2 or wanted.shape[1] != 2 or wanted.dtype.kind not in "iu":
        raise InputError(f"pairs have shape {wanted.shape} and type {wanted.dtype}, expected whole numbers (pair, 2)")
    if len(wanted) and not (wanted.min() >= 0 and (wanted < (p, q)).all()):
        raise InputError(f"pairs name units beyond the {p} and {q} there are")
    return wanted.astype(np.int64)


def _codes(values: Float[np.ndarray, "row unit"], bins: int, zero_bin: bool, official: bool) -> np.ndarray:
    """``(unit, row)`` bin of every value, as bytes."""
    found = np.empty(values.T.shape, np.uint8)
    for unit, column in enumerate(np.ascontiguousarray(values.T)):
        found[unit] = _official(column, bins) if official else _equal(column, bins, zero_bin)
    return found


def _equal(column: np.ndarray, bins: int, zero_bin: bool) -> np.ndarray:
    silent = np.abs(column) < ZERO if zero_bin else np.zeros(len(column), bool)
    some = bool(silent.any())
    active = column[~silent]
    if not len(active):
        return np.zeros(len(column), np.uint8)
    edges = np.quantile(active, np.linspace(0, 1, bins - some + 1)[1:-1])
    codes = np.searchsorted(edges, column, side="right") + some
    codes[silent] = 0
    return codes


def _official(column: np.ndarray, bins: int) -> np.ndarray:
    first = float((column < ZERO).mean()) * 100.1
    if first > 100:
        raise InputError(
            "a unit is silent in more than 99.9 % of rows, where the official bins are not defined; use another bias"
        )
    edges = np.percentile(column, [0.0, *np.linspace(first, 100, bins)])
    edges[0] -= 0.01
    return np.minimum(np.searchsorted(edges, column, side="right") - 1, bins - 1)
