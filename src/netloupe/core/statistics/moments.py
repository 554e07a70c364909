"""Count, mean, variance and extremes of every unit in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float

from netloupe.core.errors import InputError
from netloupe.core.statistics.base import Statistic
from netloupe.core.statistics.batch import Batch
from netloupe.core.statistics.blocks import BlockPass, block_rows, n_blocks
from netloupe.core.statistics.kernels import block_moments, combine_moments


@dataclass(frozen=True, eq=False)
class MomentsResult:
    """Moments of each unit over ``count`` rows; arrays are float64 ``(unit,)``."""

    count: int
    mean: Float[np.ndarray, " unit"]
    scatter: Float[np.ndarray, " unit"]
    """Sum of squared deviations from the mean."""
    minimum: Float[np.ndarray, " unit"]
    maximum: Float[np.ndarray, " unit"]

    @property
    def variance(self) -> Float[np.ndarray, " unit"]:
        """Population variance (divided by ``count``)."""
        return self.scatter / self.count

    @property
    def std(self) -> Float[np.ndarray, " unit"]:
        """Square root of the population variance."""
        return np.sqrt(self.variance)

    def variance_with(self, ddof: int) -> Float[np.ndarray, " unit"]:
        """Variance divided by ``count - ddof``; ``ddof=1`` is unbiased for independent rows."""
        if self.count <= ddof:
            raise InputError(f"variance with ddof={ddof} was asked of {self.count} rows: give more rows")
        return self.scatter / (self.count - ddof)


class Moments(Statistic[MomentsResult]):
    """Mean, variance, minimum and maximum of each unit, in float64.

    Each block of rows is summed around its own first row, then joined by the pairwise update of Chan, Golub and
    LeVeque (1979): ``M2 = M2a + M2b + (mean_b - mean_a)^2 n_a n_b / n``. The relative error of the variance is of
    the order of the block length times 1e-16 whatever the mean, so a large offset costs no digits.
    Cost: one addition and one multiplication per value; memory 40 bytes per unit.
    """

    _fields = ("mean", "m2", "minimum", "maximum")

    def __init__(self) -> None:
        super().__init__()
        self._allocate(0)

    def result(self) -> MomentsResult:
        """``MomentsResult`` over all rows seen; ``InputError`` when there were none."""
        self._need_rows()
        return MomentsResult(self.n_rows, self.mean.copy(), self.m2.copy(), self.minimum.copy(), self.maximum.copy())

    def _allocate(self, n_units: int) -> None:
        self.mean, self.m2 = np.zeros(n_units), np.zeros(n_units)
        self.minimum, self.maximum = np.full(n_units, np.inf), np.full(n_units, -np.inf)

    def _begin(self, batch: Batch, n_workers: int) -> BlockPass:
        return _MomentsPass(self, batch)

    def _merge(self, other: Self) -> None:
        n = self.n_rows + other.n_rows
        delta = other.mean - self.mean
        self.m2 = self.m2 + other.m2 + delta**2 * (self.n_rows * (other.n_rows / n))
        self.mean = self.mean + delta * (other.n_rows / n)
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)


class _MomentsPass(BlockPass):
    checks_finite = True

    def __init__(self, moments: Moments, batch: Batch) -> None:
        shape = (n_blocks(batch), batch.n_units)
        self.moments, self.rows = moments, batch.rows
        self.total, self.square = np.empty(shape), np.empty(shape)
        self.low, self.high = np.empty(shape, batch.rows.dtype), np.empty(shape, batch.rows.dtype)

    def block(self, worker: int, index: int, start: int, stop: int) -> None:
        block_moments(self.rows, start, stop, self.total[index], self.square[index], self.low[index], self.high[index])

    def finite(self) -> bool:
        return bool(np.isfinite(self.total).all())

    def commit(self) -> None:
        done = self.moments
        step = block_rows(self.rows.shape[1])
        combine_moments(self.rows, step, self.total, self.square, done.n_rows, done.mean, done.m2)
        done.minimum = np.minimum(done.minimum, self.low.min(axis=0))
        done.maximum = np.maximum(done.maximum, self.high.max(axis=0))
