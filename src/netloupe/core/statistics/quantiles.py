"""Quantiles of a site's values from counts of float bit patterns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError
from netloupe.core.statistics.base import Statistic
from netloupe.core.statistics.batch import Batch
from netloupe.core.statistics.blocks import BlockPass
from netloupe.core.statistics.kernels import add_tables, block_bits, block_bits_per_unit, count_bits

_SITE_BITS, _UNIT_BITS = 16, 12
_SMALL = 1 << 16  # up to so many values, clearing tables for every thread costs more than counting
_LANES = 4
_PADDING = 1040  # keeps the lanes' equal bins out of the same cache set


@dataclass(frozen=True, eq=False)
class QuantilesResult:
    """An ordered table of values and how often they (or values that share their bin) were seen.

    ``values`` float64 ``(bin,)`` ascending representatives; ``lower`` and ``upper`` the bins' edges; ``counts`` int64
    ``(bin,)``, or ``(unit, bin)`` where each unit was counted by itself.
    """

    count: int
    """Values seen (per unit where units are apart)."""
    values: Float[np.ndarray, " bin"]
    lower: Float[np.ndarray, " bin"]
    upper: Float[np.ndarray, " bin"]
    counts: Int[np.ndarray, "*unit bin"]
    relative_error: float
    """Bound of ``|value seen - representative| / |value seen|``; 0 when every value was representable."""

    def quantile(self, q: float | Float[np.ndarray, " *q"]) -> Float[np.ndarray, " ..."]:
        """The smallest representative whose cumulative share reaches ``q``; shape of ``q`` (then ``unit``).

        Within ``relative_error`` of the order statistic number ``ceil(q * count)`` (the inverted empirical
        distribution, numpy's ``method="inverted_cdf"``), and equal to it when ``relative_error`` is 0.
        """
        q = np.asarray(q, np.float64)
        if not np.all((q >= 0) & (q <= 1)):
            raise InputError(f"quantile q={q} was asked for, expected numbers from 0 to 1")
        # The share is compared in counts: rank r is reached where the cumulative count is at least r.
        ranks = np.clip(np.ceil(q * self.count - 1e-9), 1, self.count)
        cumulative = np.cumsum(np.atleast_2d(self.counts), axis=1)
        found = np.stack([self.values[np.searchsorted(row, ranks, side="left")] for row in cumulative], axis=-1)
        return found if self.counts.ndim == 2 else found[..., 0]

    def cdf(self, x: float | Float[np.ndarray, " *x"]) -> Float[np.ndarray, " ..."]:
        """The share of values at most ``x``; shape of ``x`` (then ``unit``). Bins are taken as all at their value."""
        before = np.concatenate([np.zeros_like(self.counts[..., :1]), np.cumsum(self.counts, axis=-1)], axis=-1)
        at = np.searchsorted(self.values, np.asarray(x, np.float64), side="right")
        return np.moveaxis(before[..., at], 0, -1) / self.count if before.ndim == 2 else before[at] / self.count

    def histogram(self, edges: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " bin *unit"]:
        """Counts between ``edges`` for figures, float64 ``(len(edges) - 1,)`` (then ``unit``).

        A bin that an edge cuts is shared out in proportion to width, as if its values were spread evenly; exact
        where no edge cuts an occupied bin or every value was representable. The last edge is included.
        """
        edges = np.asarray(edges, np.float64)
        if edges.ndim != 1 or len(edges) < 2 or not np.all(np.diff(edges) > 0):
            raise InputError("histogram edges must be one increasing row of at least two numbers")
        if self.relative_error == 0:
            at = np.searchsorted(self.values, edges, side="left")
            at[-1] = np.searchsorted(self.values, edges[-1], side="right")
            share = (np.arange(len(self.values))[:, None] < at[None, :]).astype(np.float64)
        else:
            width = np.where(self.upper > self.lower, self.upper - self.lower, 1.0)
            inside = (edges[None, :] - self.lower[:, None]) / width[:, None]
            share = np.clip(np.where((self.upper > self.lower)[:, None], inside, edges >= self.lower[:, None]), 0, 1)
        return np.moveaxis(np.diff(self.counts @ share, axis=-1), -1, 0)


class Quantiles(Statistic[QuantilesResult]):
    """Counts of the high bits of each value's float32 pattern, from which any quantile follows.

    The pattern's sign, exponent and first mantissa bits name a bin, so bins are narrow near zero and wide far out
    and no range need be known before. With ``bits=16`` (7 mantissa bits) a normal number ``x`` lies in a bin
    ``[L, L(1 + 2^-7 / m))``, ``m`` in [1, 2), and the bin's midpoint is within ``2^-8 |x|``; in general
    ``2^-(bits - 8) |x|``. When every value seen had zeros in the remaining bits (bfloat16 activations at 16 bits,
    small integers) the lower edge is returned and is exact. Zero is exact; values below float32's smallest normal
    number (1.2e-38) are within ``2^(9 - bits)`` of that number. float64 values are cut (not rounded) to float32,
    which leaves them in their bin; beyond float32's range they count as its largest number.

    Why not KLL or t-digest: their merge depends on order (and KLL's on random draws). Adding integer counts is
    exact, commutative and associative, so a resumed, sharded or reordered run gives the same bits.

    Args:
        per_unit: count each unit by itself.
        bits: 10 to 16; by default 16 for a site and 12 (error at most 2^-4) per unit.

    Cost: one increment per value. Memory: ``8 * 2^bits`` bytes, per unit where units are apart (32 KiB at 12 bits).
    """

    _options = ("per_unit", "bits")
    _fields = ("table", "exact")

    def __init__(self, per_unit: bool = False, bits: int | None = None) -> None:
        super().__init__()
        if bits is None:
            bits = _UNIT_BITS if per_unit else _SITE_BITS
        if not 10 <= bits <= 16:
            raise InputError(f"bits={bits} was given to Quantiles, expected 10 to 16")
        self.per_unit, self.bits = bool(per_unit), int(bits)
        self._allocate(0)

    def result(self) -> QuantilesResult:
        """``QuantilesResult`` of all values seen; ``InputError`` when there were none."""
        self._need_rows()
        lower, upper, order = _bins(self.bits)
        counts = self.table[..., order]
        # +0 and -0 are one value: the two bins that touch zero are joined.
        zero = len(order) // 2
        counts[..., zero] += counts[..., zero - 1]
        seen = np.flatnonzero(counts.reshape(-1, len(order)).any(axis=0))
        seen = seen[seen != zero - 1]
        exact = bool(self.exact)
        inner = np.where(lower >= 0, lower, upper)
        values = np.where((inner == 0) | exact, inner, (lower + upper) / 2)
        lower[zero] = np.where(exact, 0.0, lower[zero - 1])
        bound = 0.0 if exact else 2.0 ** -(self.bits - 8)
        count = self.n_rows * (1 if self.per_unit else self.n_units or 1)
        return QuantilesResult(count, values[seen], lower[seen], upper[seen], counts[..., seen], bound)

    def _allocate(self, n_units: int) -> None:
        n_bins = 1 << self.bits
        self.table = np.zeros((n_units, n_bins) if self.per_unit else n_bins, np.int64)
        self.exact = True

    def _begin(self, batch: Batch, n_workers: int) -> BlockPass:
        if self.per_unit:
            return _UnitPass(self, batch, n_workers)
        return (_SitePass if batch.rows.size > _SMALL else _SmallPass)(self, batch, n_workers)

    def _merge(self, other: Self) -> None:
        self.table = self.table + other.table
        self.exact = bool(self.exact and other.exact)


def _bins(bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper edges of all bins in ascending order, and the bins' numbers in that order."""
    half = 1 << (bits - 1)
    order = np.concatenate([np.arange(2 * half - 1, half - 1, -1), np.arange(half)])
    patterns = np.arange(half + 1, dtype=np.uint32) << np.uint32(32 - bits)
    edges = patterns.view(np.float32)
    edges = np.where(np.isfinite(edges), edges, np.finfo(np.float32).max).astype(np.float64)
    return np.concatenate([-edges[:0:-1], edges[:-1]]), np.concatenate([-edges[-2::-1], edges[1:]]), order


class _SitePass(BlockPass):
    def __init__(self, quantiles: Quantiles, batch: Batch, n_workers: int) -> None:
        self.quantiles = quantiles
        self.halves, self.cut = _float32_halves(batch.rows)
        self.drop = np.uint16(16 - quantiles.bits)
        self.table = np.zeros((n_workers, _LANES, (1 << quantiles.bits) + _PADDING), np.int32)
        self.rest = [False] * n_workers

    def block(self, worker: int, index: int, start: int, stop: int) -> None:
        if block_bits(self.halves, start, stop, self.drop, self.table[worker]):
            self.rest[worker] = True

    def commit(self) -> None:
        done = self.quantiles
        add_tables(self.table, done.table)
        done.exact = bool(done.exact) and not self.cut and not any(self.rest)


class _SmallPass(BlockPass):
    """Few values: straight into the statistic's own table."""

    def __init__(self, quantiles: Quantiles, batch: Batch, n_workers: int) -> None:
        self.quantiles = quantiles
        self.halves, self.cut = _float32_halves(batch.rows)

    def commit(self) -> None:
        done = self.quantiles
        rest = bool(count_bits(self.halves, np.uint16(16 - done.bits), done.table))
        done.exact = bool(done.exact) and not self.cut and not rest


class _UnitPass(BlockPass):
    """Each unit by itself: tables are too large to have several, so threads share out the units."""

    def __init__(self, quantiles: Quantiles, batch: Batch, n_workers: int) -> None:
        self.quantiles = quantiles
        self.halves, self.cut = _float32_halves(batch.rows)
        self.rest = [False] * n_workers

    def finish(self, worker: int, n_workers: int) -> None:
        done, (n_rows, width) = self.quantiles, self.halves.shape
        first, last = worker * (width // 2) // n_workers, (worker + 1) * (width // 2) // n_workers
        drop = np.uint16(16 - done.bits)
        self.rest[worker] = bool(block_bits_per_unit(self.halves, 0, n_rows, drop, first, last, done.table))

    def commit(self) -> None:
        self.quantiles.exact = bool(self.quantiles.exact) and not self.cut and not any(self.rest)


def _float32_halves(rows: np.ndarray) -> tuple[np.ndarray, bool]:
    """The rows' float32 patterns as pairs of uint16, low half first, and whether float32 cut anything off."""
    if rows.dtype == np.float32:
        return rows.view(np.uint16), False
    limit = float(np.finfo(np.float32).max)
    with np.errstate(invalid="ignore"):
        rounded = np.clip(rows, -limit, limit).astype(np.float32)
        away = np.abs(rounded.astype(np.float64)) > np.abs(rows)
    bits = rounded.view(np.uint32)
    # One pattern less is one step towards zero, for either sign.
    bits -= away.astype(np.uint32)
    return bits.view(np.uint16), bool((rounded != rows).any())
