"""How often units are active, exactly zero and negative, and how many are active at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int

from netloupe.core.errors import InputError
from netloupe.core.statistics.base import Statistic
from netloupe.core.statistics.batch import Batch
from netloupe.core.statistics.blocks import BlockPass
from netloupe.core.statistics.kernels import block_counts


@dataclass(frozen=True, eq=False)
class CountsResult:
    """Exact counts over ``count`` rows; arrays are int64."""

    count: int
    active: Int[np.ndarray, " unit"]
    """``(unit,)``: rows in which the unit is active."""
    zero: Int[np.ndarray, " unit"]
    """``(unit,)``: rows in which it is exactly zero."""
    negative: Int[np.ndarray, " unit"]
    """``(unit,)``: rows in which it is below zero."""
    rows_with_active: Int[np.ndarray, " unit+1"]
    """``(unit + 1,)``: entry ``a`` is the number of rows in which exactly ``a`` units are active."""

    @property
    def n_units(self) -> int:
        return len(self.active)

    @property
    def frequency(self) -> Float[np.ndarray, " unit"]:
        """``(unit,)``: the fraction of rows in which each unit is active."""
        return self.active / self.count

    @property
    def active_fraction(self) -> float:
        """The fraction of all values that are active."""
        return float(self.active.sum() / (self.count * self.n_units))

    @property
    def nonzero_fraction(self) -> float:
        """The fraction of all values that are not exactly zero."""
        return float(1.0 - self.zero.sum() / (self.count * self.n_units))

    @property
    def dead(self) -> Bool[np.ndarray, " unit"]:
        """``(unit,)`` bool: units that were active in no row."""
        return self.active == 0

    @property
    def mean_active_units(self) -> float:
        """The mean number of active units per row (L0)."""
        return float(self.active.sum() / self.count)


class Counts(Statistic[CountsResult]):
    """Counts of ``value > threshold`` (strictly), of exact zeros and of negatives.

    Args:
        threshold: a value is active above this; finite, in the activations' own unit.
        absolute: compare the absolute value instead.

    Integer counts: merging is exact. Cost: three comparisons per value; memory 32 bytes per unit.
    """

    _options = ("threshold", "absolute")
    _fields = ("active", "zero", "negative", "rows_with_active")

    def __init__(self, threshold: float = 0.0, absolute: bool = False) -> None:
        super().__init__()
        if not np.isfinite(threshold):
            raise InputError(f"threshold={threshold} was given to Counts, expected a finite number")
        self.threshold, self.absolute = float(threshold), bool(absolute)
        self._allocate(0)

    def result(self) -> CountsResult:
        """``CountsResult`` over all rows seen; ``InputError`` when there were none."""
        self._need_rows()
        return CountsResult(
            self.n_rows, self.active.copy(), self.zero.copy(), self.negative.copy(), self.rows_with_active.copy()
        )

    def _allocate(self, n_units: int) -> None:
        self.active, self.zero, self.negative = (np.zeros(n_units, np.int64) for _ in range(3))
        self.rows_with_active = np.zeros(n_units + 1, np.int64)

    def _begin(self, batch: Batch, n_workers: int) -> BlockPass:
        return _CountsPass(self, batch, n_workers)

    def _merge(self, other: Self) -> None:
        for name in self._fields:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class _CountsPass(BlockPass):
    def __init__(self, counts: Counts, batch: Batch, n_workers: int) -> None:
        self.counts, self.rows = counts, batch.rows
        # In the activations' own precision: float32 values against a float32 threshold. A value is above the
        # threshold exactly when it is above the largest float32 that does not exceed the threshold.
        self.threshold = _round_down(counts.threshold, batch.rows.dtype)
        self.found = np.zeros((n_workers, 3, batch.n_units), np.int32)
        self.rows_with_active = np.zeros((n_workers, batch.n_units + 1), np.int64)

    def block(self, worker: int, index: int, start: int, stop: int) -> None:
        active, zero, negative = self.found[worker]
        block_counts(
            self.rows, start, stop, self.threshold, self.counts.absolute, active, zero, negative,
            self.rows_with_active[worker],
        )  # fmt: skip

    def commit(self) -> None:
        done = self.counts
        active, zero, negative = self.found.sum(axis=0, dtype=np.int64)
        done.active += active
        done.zero += zero
        done.negative += negative
        done.rows_with_active += self.rows_with_active.sum(axis=0)


def _round_down(threshold: float, dtype: np.dtype) -> np.floating:
    with np.errstate(over="ignore"):
        rounded = dtype.type(threshold)
    return np.nextafter(rounded, dtype.type(-np.inf)) if float(rounded) > threshold else rounded
