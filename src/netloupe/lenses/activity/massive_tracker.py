"""Which single activations outgrow all others, gathered in one pass over any data; definitions in
:mod:`netloupe.lenses.activity.massive` (arXiv 2508.03616)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int
from scipy import integrate, special

from netloupe.core.errors import InputError
from netloupe.core.statistics import Statistic
from netloupe.core.statistics.batch import Batch
from netloupe.core.statistics.kernels import FLOAT32_BITS
from netloupe.lenses.activity.massive_kernels import SAMPLED, largest_and_median, largest_of_rows

ABS_MIN, RATIO_MIN = 100.0, 1000.0  # Sun et al. 2024, arXiv 2402.17762


_SORTED = 256  # samples of so few values are sorted all at once


@dataclass(frozen=True, eq=False)
class MassiveResult:
    """What :class:`MassiveTracker` has seen.

    ``top`` ``(rank,)``: the largest absolute values of a sample, averaged over samples; ``median``: of a sample's absolute
    values, averaged; ``reference``: what ``top[0] / median`` is on average for as many independent normal numbers.
    ``error``: standard error of ``top[0] / median`` over samples. ``largest_*`` ``(place,)``: the largest scalars of all data,
    signed, with where they are. ``unit_counts`` ``(unit,)`` and ``position_counts`` ``(position,)``: in how many samples the
    largest value is there. ``massive_counts`` ``(unit,)``: massive scalars of each unit; ``n_massive_samples``: samples with
    at least one. ``zero_share``: share of all values that are exactly zero.
    """

    top: Float[np.ndarray, " rank"]
    median: float
    reference: float
    error: float
    n_samples: int
    largest_values: Float[np.ndarray, " place"]
    largest_samples: Int[np.ndarray, " place"]
    largest_positions: Int[np.ndarray, " place"]
    largest_units: Int[np.ndarray, " place"]
    unit_counts: Int[np.ndarray, " unit"]
    position_counts: Int[np.ndarray, " position"]
    massive_counts: Int[np.ndarray, " unit"]
    n_massive_samples: int
    zero_share: float


@cache
def gaussian_reference(n: int) -> float:
    """``E max |z| / median |z|`` of ``n`` independent standard normals: 6.0 for ten thousand, 7.3 for a million.

    ``E max = integral of 1 - erf(x / sqrt 2)^n`` from 0; the median is that of one ``|z|``, 0.6745.
    """
    if n < 1:
        raise InputError(f"n is {n}, expected at least one value")
    inside = math.sqrt(2 * math.log(max(n, 2)))
    found, _ = integrate.quad(
        lambda x: -math.expm1(n * math.log1p(-special.erfc(x / math.sqrt(2)))) if x > 0 else 1.0,
        0, inside + 8, points=[inside], limit=200,
    )  # fmt: skip
    return float(found / (math.sqrt(2) * special.erfinv(0.5)))


class MassiveTracker(Statistic[MassiveResult]):
    """Largest absolute values of each sample beside the sample's median, and where they are.

    Every sample's values (positions times units, padding left out) are looked at together: its ``k`` largest, their
    places, and its exact median (the mean of the two middle values where their number is even, as in numpy). Averages over
    samples, counts and the ``n_places`` largest scalars of all merge exactly but for rounding of the sums.

    Args:
        k: how many of a sample's largest values are averaged, rank by rank.
        n_places: how many of the largest scalars of all data are kept with their places.
        abs_min, ratio_min: a scalar is massive where it is above ``abs_min`` and at least ``ratio_min`` times the median.

    Cost: two readings of the values, nothing is sorted: O(values). Memory: O(units + positions). Raises InputError for
    samples with fewer than two values or fewer than ``k``.
    """

    _options = ("k", "n_places", "abs_min", "ratio_min")
    _fields = (
        "sums", "products", "n_seen", "reference_sum", "values", "samples", "positions", "units", "unit_counts",
        "position_counts", "massive_counts", "n_massive_samples", "n_values", "n_zeros", "smallest",
    )  # fmt: skip

    def __init__(self, k: int = 3, n_places: int = 8, abs_min: float = ABS_MIN, ratio_min: float = RATIO_MIN) -> None:
        super().__init__()
        if k < 1 or n_places < 1 or not (abs_min >= 0 and ratio_min >= 0):
            raise InputError(
                f"k is {k}, n_places {n_places}, abs_min {abs_min} and ratio_min {ratio_min}; expected at least 1 and 1, 0 and 0"
            )
        self.k, self.n_places, self.abs_min, self.ratio_min = int(k), int(n_places), float(abs_min), float(ratio_min)
        self._allocate(0)

    def result(self) -> MassiveResult:
        """``MassiveResult`` of all samples; ``InputError`` when there were none."""
        self._need_rows()
        n = self.n_seen
        if n == 0:
            raise InputError(
                f"a sample has {self.smallest} values, at least {self._fewest} are needed to set the largest against the median"
            )
        means = self.sums / n
        top, median = means[:-1], float(means[-1])
        found = int((self.samples >= 0).sum())
        return MassiveResult(
            top.copy(), median, self.reference_sum / n, self._error(float(top[0]), median), n,
            self.values[:found].copy(), self.samples[:found].copy(), self.positions[:found].copy(), self.units[:found].copy(),
            self.unit_counts.copy(), self.position_counts.copy(), self.massive_counts.copy(), self.n_massive_samples,
            self.n_zeros / self.n_values,
        )  # fmt: skip

    def _error(self, top: float, median: float) -> float:
        """Standard error of a ratio of means (delta method); 0 for one sample or a median of 0."""
        n = self.n_seen
        if n < 2 or median == 0:
            return 0.0
        tt, mm, tm = self.products / n - np.array([top * top, median * median, top * median])
        ratio = top / median
        variance = max(float(tt - 2 * ratio * tm + ratio * ratio * mm), 0.0)
        return math.sqrt(variance / (n - 1)) / median

    def _allocate(self, n_units: int) -> None:
        self.sums, self.products, self.reference_sum = np.zeros(self.k + 1), np.zeros(3), 0.0
        self.n_seen, self.n_massive_samples, self.n_values, self.n_zeros, self.smallest = 0, 0, 0, 0, 0
        self.values = np.zeros(self.n_places)
        self.samples, self.positions, self.units = (np.full(self.n_places, -1, np.int64) for _ in range(3))
        self.unit_counts, self.massive_counts = np.zeros(n_units, np.int64), np.zeros(n_units, np.int64)
        self.position_counts = np.zeros(1, np.int64)

    def _update(self, batch: Batch) -> None:
        row_samples, positions = batch.row_samples(self.next_sample), batch.positions
        if batch.kept is None:
            if batch.n_positions * batch.n_units < self._fewest:
                self._pass_over(batch.n_positions * batch.n_units)
            else:
                self._take(batch.rows, batch.n_positions, row_samples, positions)
            return
        borders = np.flatnonzero(np.diff(batch.sample_in_batch)) + 1
        for start, stop in zip([0, *borders], [*borders, batch.n_rows], strict=True):
            if (stop - start) * batch.n_units < self._fewest:
                self._pass_over(int(stop - start) * batch.n_units)
            else:
                self._take(batch.rows[start:stop], int(stop - start), row_samples[start:stop], positions[start:stop])

    def _pass_over(self, n_values: int) -> None:
        """Notes a sample that has too few values to be measured; a recording must not end for its sake."""
        self.smallest = min(self.smallest, n_values) if self.smallest else n_values

    @property
    def _fewest(self) -> int:
        """Values that a sample must have."""
        return max(2, self.k)

    def _take(self, rows: np.ndarray, per_sample: int, row_samples: np.ndarray, row_positions: np.ndarray) -> None:
        """Takes in whole samples of ``per_sample`` rows each."""
        n_units = rows.shape[1]
        values = rows.reshape(-1, per_sample * n_units)
        top, places, median = extremes(values, max(self.k, self.n_places))
        self.sums = self.sums + np.append(top[:, : self.k].sum(0), median.sum())
        self.products = self.products + np.array([top[:, 0] @ top[:, 0], median @ median, top[:, 0] @ median])
        self.n_seen += len(values)
        self.n_values += values.size
        self.n_zeros += values.size - int(np.count_nonzero(values))
        self.reference_sum += len(values) * gaussian_reference(values.shape[1])
        self.unit_counts = self.unit_counts + np.bincount(places[:, 0] % n_units, minlength=n_units)
        at = row_positions.reshape(-1, per_sample)[np.arange(len(values)), places[:, 0] // n_units]
        self.position_counts = _added(self.position_counts, np.bincount(at))
        self._count_massive(values, top[:, 0], median, n_units)
        top, places = top[:, : self.n_places], places[:, : self.n_places]
        floor = abs(self.values[-1]) if self.samples[-1] >= 0 else 0.0
        if top.size > self.n_places:
            floor = max(floor, float(np.partition(top, -self.n_places, axis=None)[-self.n_places]))
        sample, rank = np.nonzero((top >= floor) & (places >= 0))
        place = places[sample, rank]
        row = sample * per_sample + place // n_units
        self._offer(values[sample, place].astype(float), row_samples[row], row_positions[row], place % n_units)

    def _count_massive(self, values: np.ndarray, top: np.ndarray, median: np.ndarray, n_units: int) -> None:
        cut = np.maximum(self.ratio_min * median, self.abs_min)
        for sample in np.flatnonzero((top > self.abs_min) & (top >= cut)):
            row = np.abs(values[sample])
            massive = np.flatnonzero((row > self.abs_min) & (row >= self.ratio_min * median[sample]))
            self.massive_counts = self.massive_counts + np.bincount(massive % n_units, minlength=n_units)
            self.n_massive_samples += 1

    def _offer(self, values: np.ndarray, samples: np.ndarray, positions: np.ndarray, units: np.ndarray) -> None:
        """The largest of those kept and those given; of equal ones the first sample, position and unit."""
        kept = self.samples >= 0
        joined = [
            np.concatenate([mine[kept], given])
            for mine, given in zip(
                (self.values, self.samples, self.positions, self.units),
                (values, samples, positions, units),
                strict=True,
            )
        ]
        order = np.lexsort((joined[3], joined[2], joined[1], -np.abs(joined[0])))[: self.n_places]
        for mine, column in zip((self.values, self.samples, self.positions, self.units), joined, strict=True):
            mine[: len(order)] = column[order]

    def _merge(self, other: Self) -> None:
        self.sums, self.products = self.sums + other.sums, self.products + other.products
        self.n_seen += other.n_seen
        self.reference_sum += other.reference_sum
        self.unit_counts = self.unit_counts + other.unit_counts
        self.massive_counts = self.massive_counts + other.massive_counts
        self.n_massive_samples += other.n_massive_samples
        self.n_values, self.n_zeros = self.n_values + other.n_values, self.n_zeros + other.n_zeros
        if other.smallest:
            self._pass_over(other.smallest)
        self.position_counts = _added(self.position_counts, other.position_counts)
        kept = other.samples >= 0
        self._offer(other.values[kept], other.samples[kept], other.positions[kept], other.units[kept])


def extremes(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every row its ``k`` largest absolute values (place -1 where there are fewer), their places, and its median."""
    unsigned: Any = FLOAT32_BITS[values.dtype.itemsize]
    n, length = values.shape
    top, places = np.empty((n, k), unsigned), np.empty((n, k), np.int64)
    absolute, mask = np.empty(length, unsigned), unsigned(np.iinfo(unsigned).max >> 1)
    bits = values.view(unsigned)
    if length <= _SORTED:
        largest_of_rows(bits, mask, k, top, places, absolute)
        ordered = np.sort(bits & mask, axis=1)
        middle = ordered[:, [(length - 1) // 2, length // 2]]
    else:
        middle = np.empty((n, 2), unsigned)
        held, sample = np.empty(length, unsigned), np.empty(SAMPLED, unsigned)
        most = unsigned(np.iinfo(unsigned).max)
        largest_and_median(bits, mask, most, k, top, places, middle, absolute, held, sample)
    return top.view(values.dtype).astype(float), places, middle.view(values.dtype).mean(1, dtype=np.float64)


def _added(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    total = np.zeros(max(len(one), len(other)), np.int64)
    total[: len(one)] += one
    total[: len(other)] += other
    return total
