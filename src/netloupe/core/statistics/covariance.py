"""Covariance between all units of one site, or of two sites, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float

from netloupe.core.errors import InputError
from netloupe.core.statistics.base import Array, Mergeable, Statistic
from netloupe.core.statistics.batch import Batch, prepare


@dataclass(frozen=True, eq=False)
class CovarianceResult:
    """Joint second moments of one site's units over ``count`` rows, float64."""

    count: int
    mean: Float[np.ndarray, " unit"]
    scatter: Float[np.ndarray, "unit unit"]
    """``(unit, unit)``: sums of products of deviations from the mean."""

    def covariance(self, ddof: int = 0) -> Float[np.ndarray, "unit unit"]:
        """``(unit, unit)`` scatter divided by ``count - ddof``; the default is the population covariance."""
        return self.scatter / _divisor(self.count, ddof)

    @property
    def correlation(self) -> np.ndarray:
        """``(unit, unit)`` Pearson correlation; NaN where a unit is constant."""
        return _correlate(self.scatter, np.diagonal(self.scatter), np.diagonal(self.scatter))


@dataclass(frozen=True, eq=False)
class CrossCovarianceResult:
    """Joint second moments of two sites, a and b, over ``count`` rows, float64."""

    count: int
    mean_a: Float[np.ndarray, " unit_a"]
    mean_b: Float[np.ndarray, " unit_b"]
    scatter: Float[np.ndarray, "unit_a unit_b"]
    """``(unit_a, unit_b)``: sums of products of deviations from the means."""
    squares_a: Float[np.ndarray, " unit_a"]
    """``(unit_a,)``: each unit's sum of squared deviations."""
    squares_b: Float[np.ndarray, " unit_b"]
    scatter_a: Float[np.ndarray, "unit_a unit_a"] | None = None
    """``(unit_a, unit_a)``, where ``own=True``."""
    scatter_b: Float[np.ndarray, "unit_b unit_b"] | None = None
    """``(unit_b, unit_b)``, where ``own=True``."""

    @property
    def cross(self) -> Float[np.ndarray, "unit_a unit_b"]:
        """``(unit_a, unit_b)`` population cross-covariance (divided by ``count``)."""
        return self.scatter / self.count

    def cross_with(self, ddof: int) -> Float[np.ndarray, "unit_a unit_b"]:
        """The cross-covariance divided by ``count - ddof``."""
        return self.scatter / _divisor(self.count, ddof)

    @property
    def correlation(self) -> np.ndarray:
        """``(unit_a, unit_b)`` Pearson correlation; NaN where a unit is constant."""
        return _correlate(self.scatter, self.squares_a, self.squares_b)


class Covariance(Statistic[CovarianceResult]):
    """Mean and unit-by-unit covariance, in float64.

    Each batch is centred on its own mean, multiplied out, and joined by the pairwise update of Chan, Golub and
    LeVeque (1979): ``S = Sa + Sb + (mean_b - mean_a)(mean_b - mean_a)^T n_a n_b / n``.
    Cost: ``n d^2`` multiply-adds; memory ``8 d^2`` bytes, and a float64 copy of the batch while it is taken in.
    """

    _fields = ("mean", "scatter")

    def __init__(self) -> None:
        super().__init__()
        self._allocate(0)

    def result(self) -> CovarianceResult:
        """``CovarianceResult`` over all rows seen; ``InputError`` when there were none."""
        self._need_rows()
        return CovarianceResult(self.n_rows, self.mean.copy(), self.scatter.copy())

    def _allocate(self, n_units: int) -> None:
        self.mean, self.scatter = np.zeros(n_units), np.zeros((n_units, n_units))

    def _update(self, batch: Batch) -> None:
        mean, centred = _centre(batch.rows)
        self._join(batch.n_rows, mean, _gram(centred))

    def _merge(self, other: Self) -> None:
        self._join(other.n_rows, other.mean, other.scatter)

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        share = count / (self.n_rows + count)
        delta = mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(delta, delta) * (self.n_rows * share)
        self.mean = self.mean + delta * share


class CrossCovariance(Mergeable[CrossCovarianceResult]):
    """Means and covariance between the units of two sites seen on the same rows, in float64.

    Args:
        own: also keep each site's own covariance, which CKA, CCA and linear regression between sites need.

    Cost: ``n d_a d_b`` multiply-adds (and ``n d_a^2 / 2 + n d_b^2 / 2`` with ``own``).
    """

    _options = ("own",)
    _fields = ("n_units_b", "mean_a", "mean_b", "scatter", "squares_a", "squares_b", "scatter_a", "scatter_b")

    def __init__(self, own: bool = False) -> None:
        super().__init__()
        self.own = bool(own)
        self.n_units_b = 0
        self._allocate(0)

    def update(self, values_a: Array, values_b: Array, *, mask: Array | None = None) -> Self:
        """Take in the activations of both sites for the same samples (and positions) and return ``self``.

        Args:
            values_a: ``(sample, unit_a)`` or ``(sample, position, unit_a)``; as in ``Statistic.update``.
            values_b: the same samples and positions with ``unit_b`` units.
            mask: bool ``(sample, position)``; False leaves a position out.

        Raises:
            InputError: rows that do not pair up, or another number of units than before.
            NonFiniteError: NaN or infinity in an unmasked position.
        """
        a, b = prepare(values_a, mask=mask), prepare(values_b, mask=mask)
        if (a.n_samples, a.n_positions) != (b.n_samples, b.n_positions):
            raise InputError(
                f"two sites with {a.n_samples} x {a.n_positions} and {b.n_samples} x {b.n_positions} samples and "
                f"positions were given, expected the same rows: pool both sites alike"
            )
        if self.n_units is not None and (self.n_units, self.n_units_b) != (a.n_units, b.n_units):
            raise InputError(
                f"CrossCovariance has seen {self.n_units} and {self.n_units_b} units and was given {a.n_units} and "
                f"{b.n_units}: use one statistic per pair of sites"
            )
        a.refuse_nonfinite()
        b.refuse_nonfinite()
        if a.n_rows:
            self._take(a, b)
        self.next_sample += a.n_samples
        return self

    def result(self) -> CrossCovarianceResult:
        """``CrossCovarianceResult`` over all rows seen; ``InputError`` when there were none."""
        self._need_rows()
        return CrossCovarianceResult(
            count=self.n_rows,
            mean_a=self.mean_a.copy(),
            mean_b=self.mean_b.copy(),
            scatter=self.scatter.copy(),
            squares_a=self.squares_a.copy(),
            squares_b=self.squares_b.copy(),
            scatter_a=self.scatter_a.copy() if self.own else None,
            scatter_b=self.scatter_b.copy() if self.own else None,
        )

    def _allocate(self, n_units: int) -> None:
        d_a, d_b = n_units, self.n_units_b
        self.mean_a, self.mean_b, self.scatter = np.zeros(d_a), np.zeros(d_b), np.zeros((d_a, d_b))
        self.squares_a, self.squares_b = np.zeros(d_a), np.zeros(d_b)
        if not self.own:
            d_a = d_b = 0
        self.scatter_a, self.scatter_b = np.zeros((d_a, d_a)), np.zeros((d_b, d_b))

    def _take(self, a: Batch, b: Batch) -> None:
        if self.n_units is None:
            self.n_units_b = b.n_units
            self._allocate(a.n_units)
            self.n_units = a.n_units
        mean_a, rows_a = _centre(a.rows)
        mean_b, rows_b = _centre(b.rows)
        scatter = rows_a.T @ rows_b
        squares = np.einsum("ij,ij->j", rows_a, rows_a), np.einsum("ij,ij->j", rows_b, rows_b)
        own = (_gram(rows_a), _gram(rows_b)) if self.own else None
        self._join(a.n_rows, mean_a, mean_b, scatter, squares, own)
        self.n_rows += a.n_rows

    def _merge(self, other: Self) -> None:
        own = (other.scatter_a, other.scatter_b) if self.own else None
        squares = other.squares_a, other.squares_b
        self._join(other.n_rows, other.mean_a, other.mean_b, other.scatter, squares, own)

    def _join(
        self,
        count: int,
        mean_a: np.ndarray,
        mean_b: np.ndarray,
        scatter: np.ndarray,
        squares: tuple[np.ndarray, np.ndarray],
        own: tuple[np.ndarray, np.ndarray] | None,
    ) -> None:
        share = count / (self.n_rows + count)
        weight = self.n_rows * share
        delta_a, delta_b = mean_a - self.mean_a, mean_b - self.mean_b
        self.scatter = self.scatter + scatter + np.outer(delta_a, delta_b) * weight
        self.squares_a = self.squares_a + squares[0] + delta_a**2 * weight
        self.squares_b = self.squares_b + squares[1] + delta_b**2 * weight
        if own is not None:
            self.scatter_a = self.scatter_a + own[0] + np.outer(delta_a, delta_a) * weight
            self.scatter_b = self.scatter_b + own[1] + np.outer(delta_b, delta_b) * weight
        self.mean_a = self.mean_a + delta_a * share
        self.mean_b = self.mean_b + delta_b * share

    def _check_width(self, other: Self) -> None:
        super()._check_width(other)
        if self.n_units is not None and self.n_units_b != other.n_units_b:
            raise InputError(
                f"cannot merge CrossCovariance of {self.n_units_b} and of {other.n_units_b} units at the second "
                f"site: merge statistics of the same two sites"
            )


def _centre(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows' mean and the rows without it, float64."""
    centred = rows - rows[0].astype(np.float64)
    offset = centred.mean(axis=0)
    centred -= offset
    return rows[0] + offset, centred


def _gram(centred: np.ndarray) -> np.ndarray:
    """``centred.T @ centred``; numpy sees that both are one array, computes one triangle and mirrors it."""
    return centred.T @ centred


def _divisor(count: int, ddof: int) -> int:
    if count <= ddof:
        raise InputError(f"a covariance with ddof={ddof} was asked of {count} rows: give more rows")
    return count - ddof


def _correlate(scatter: np.ndarray, squares_a: np.ndarray, squares_b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        found = scatter / (np.sqrt(squares_a)[:, None] * np.sqrt(squares_b)[None, :])
    found[(squares_a == 0)[:, None] | (squares_b == 0)[None, :]] = np.nan
    return np.clip(found, -1.0, 1.0)
