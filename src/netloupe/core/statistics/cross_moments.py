"""Everything of second order about the units of two sites seen on the same rows: means, and one joint Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from netloupe.core.errors import InputError
from netloupe.core.statistics.base import Array
from netloupe.core.statistics.batch import Batch
from netloupe.core.statistics.covariance import CrossCovariance

_BLOCK_VALUES = 2**18  # 2 MiB of float64
TINY = 1e-10  # a standard deviation below this share of a unit's own mean is rounding of a constant


@dataclass(frozen=True, eq=False)
class JointMoments:
    """Joint second moments of ``p`` units of site a followed by ``q`` units of site b, over ``count`` rows, float64.

    A unit that does not vary is *dead*: its correlations are 0, and ``dead_a`` and ``dead_b`` name it.
    """

    count: int
    mean: Float[np.ndarray, " both"]
    scatter: Float[np.ndarray, "both both"]
    """``(p + q, p + q)``: sums of products of deviations from the means."""
    p: int

    @cached_property
    def deviation(self) -> Float[np.ndarray, " both"]:
        """Population standard deviations; 0 for dead units."""
        spread = np.sqrt(np.diagonal(self.scatter) / self.count)
        return np.where(spread > TINY * np.abs(self.mean), spread, 0.0)

    @property
    def dead_a(self) -> Bool[np.ndarray, " unit_a"]:
        """Which units of a never vary."""
        return self.deviation[: self.p] == 0

    @property
    def dead_b(self) -> Bool[np.ndarray, " unit_b"]:
        """Which units of b never vary."""
        return self.deviation[self.p :] == 0

    @cached_property
    def joint(self) -> Float[np.ndarray, "both both"]:
        """Correlations of all units with all; 1 on the diagonal of units that vary, 0 for dead ones."""
        live = self.deviation > 0
        inverse = np.divide(1.0, self.deviation, out=np.zeros(len(live)), where=live)
        found = np.clip(self.scatter / self.count * inverse * inverse[:, None], -1.0, 1.0)
        np.fill_diagonal(found, live)
        return found

    @property
    def within_a(self) -> Float[np.ndarray, "unit_a unit_a"]:
        """Correlations inside a."""
        return self.joint[: self.p, : self.p]

    @property
    def within_b(self) -> Float[np.ndarray, "unit_b unit_b"]:
        """Correlations inside b."""
        return self.joint[self.p :, self.p :]

    @property
    def between(self) -> Float[np.ndarray, "unit_a unit_b"]:
        """Correlations of units of a with units of b."""
        return self.joint[: self.p, self.p :]

    @property
    def mean_a(self) -> Float[np.ndarray, " unit_a"]:
        """Means of a."""
        return self.mean[: self.p]

    @property
    def mean_b(self) -> Float[np.ndarray, " unit_b"]:
        """Means of b."""
        return self.mean[self.p :]

    @property
    def swapped(self) -> JointMoments:
        """The same with b first."""
        order = np.r_[self.p : len(self.mean), : self.p]
        return JointMoments(self.count, self.mean[order], self.scatter[np.ix_(order, order)], len(self.mean) - self.p)


class CrossMoments(CrossCovariance):
    """Means and all covariances of two sites' units, in float64: what unit matching and linear maps between sites need.

    Args:
        p, q: units of the two sites, where they shall be checked; by default what the first batch has.

    Positions count as observations of their own: ``(sample, position, unit)`` gives ``sample * position`` rows.
    Cost: ``n (p + q)^2 / 2 + n p q`` multiply-adds; memory ``8 (p + q)^2`` bytes. Merges to rounding.
    """

    _options = ("p", "q")

    def __init__(self, p: int | None = None, q: int | None = None) -> None:
        super().__init__(own=True)
        self.p, self.q = p, q

    def update(self, values_a: Array, values_b: Array, *, mask: Array | None = None) -> CrossMoments:
        """As :meth:`CrossCovariance.update`; InputError too where the widths are not ``p`` and ``q``."""
        for name, wanted, values in (("p", self.p, values_a), ("q", self.q, values_b)):
            if wanted is not None and values.shape[-1] != wanted:
                raise InputError(f"CrossMoments was made for {name} = {wanted} units and was given {values.shape[-1]}")
        super().update(values_a, values_b, mask=mask)
        return self

    def _take(self, a: Batch, b: Batch) -> None:
        """One triangle of the joint products, over blocks of rows that stay in the cache, around the first block's mean."""
        if self.n_units is None:
            self.n_units_b = b.n_units
            self._allocate(a.n_units)
            self.n_units = a.n_units
        p, n = a.n_units, a.n_rows
        size = max(64, _BLOCK_VALUES // (p + b.n_units))
        start = np.concatenate([_mean(a.rows[:size]), _mean(b.rows[:size])])
        buffer = np.empty((min(size, n), len(start)))
        products, total = np.zeros((len(start), len(start))), np.zeros(len(start))
        for first in range(0, n, size):
            block = buffer[: min(size, n - first)]
            np.subtract(a.rows[first : first + size], start[:p], out=block[:, :p])
            np.subtract(b.rows[first : first + size], start[p:], out=block[:, p:])
            products += block.T @ block  # numpy sees one array twice and computes one triangle
            total += block.sum(0)
        offset = total / n
        products -= np.outer(offset, offset) * n
        squares, mean = np.maximum(np.diagonal(products), 0), start + offset
        np.fill_diagonal(products, squares)
        self._join(
            n, mean[:p], mean[p:], products[:p, p:], (squares[:p], squares[p:]), (products[:p, :p], products[p:, p:])
        )
        self.n_rows += n

    def result(self) -> JointMoments:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``JointMoments`` over all rows seen; ``InputError`` when there were none."""
        self._need_rows()
        scatter = np.block([[self.scatter_a, self.scatter], [self.scatter.T, self.scatter_b]])
        return JointMoments(self.n_rows, np.concatenate([self.mean_a, self.mean_b]), scatter, len(self.mean_a))

    def correlation(self) -> Float[np.ndarray, "unit_a unit_b"]:
        """``(p, q)`` correlations so far; 0 where a unit is dead."""
        return self.result().between


def _mean(rows: np.ndarray) -> np.ndarray:
    """Column means, exact where a column is constant."""
    return rows[0] + (rows - rows[0].astype(np.float64)).mean(0)
