"""The rows in which each unit is largest, with where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError
from netloupe.core.statistics.base import Statistic
from netloupe.core.statistics.batch import Batch
from netloupe.core.statistics.blocks import BlockPass, block_rows
from netloupe.core.statistics.topk_kernels import merge_lists, offer_strips, strip_maxima

STRIP = 16


@dataclass(frozen=True, eq=False)
class TopKResult:
    """Best first; all arrays ``(unit, rank)`` with ``rank`` at most k (fewer when fewer samples were seen)."""

    values: Float[np.ndarray, "unit rank"]
    """float64."""
    samples: Int[np.ndarray, "unit rank"]
    """int64: the sample's index in the data set."""
    positions: Int[np.ndarray, "unit rank"]
    """int64: the position inside the sample; 0 where activations have no positions."""


class TopK(Statistic[TopKResult]):
    """The ``k`` largest values of each unit, with sample and position.

    Ties go to the smaller sample index, then the smaller position, so the answer is a function of the set of rows
    alone: any split and any order of merging give exactly the same lists.

    Args:
        k: entries per unit.
        largest: False keeps the smallest values instead.
        distinct_samples: keep only the best position of each sample (what a gallery of examples wants). With False,
            one sample may take several places.

    Cost: one comparison per value and a few steps per row that enters a list; memory ``24 k`` bytes per unit.
    """

    _options = ("k", "largest", "distinct_samples")
    _fields = ("keys", "samples", "positions")

    def __init__(self, k: int = 8, largest: bool = True, distinct_samples: bool = True) -> None:
        super().__init__()
        if k < 1:
            raise InputError(f"k={k} was given to TopK, expected 1 or more")
        self.k, self.largest, self.distinct_samples = int(k), bool(largest), bool(distinct_samples)
        self._allocate(0)

    @property
    def sign(self) -> int:
        """Keys are values times this, so that the largest key is always wanted."""
        return 1 if self.largest else -1

    def result(self) -> TopKResult:
        """``TopKResult`` over all rows seen; ``InputError`` when there were none."""
        self._need_rows()
        filled = int((self.samples[0] >= 0).sum())
        keys = self.keys[:, :filled]
        return TopKResult(keys * self.sign, self.samples[:, :filled].copy(), self.positions[:, :filled].copy())

    def _allocate(self, n_units: int) -> None:
        self.keys = np.full((n_units, self.k), -np.inf)
        self.samples = np.full((n_units, self.k), -1, np.int64)
        self.positions = np.full((n_units, self.k), -1, np.int64)

    def _begin(self, batch: Batch, n_workers: int) -> BlockPass:
        return _TopKPass(self, batch)

    def _merge(self, other: Self) -> None:
        merge_lists(
            self.keys, self.samples, self.positions, other.keys, other.samples, other.positions,
            self.distinct_samples,
        )  # fmt: skip


class _TopKPass(BlockPass):
    """First the maxima of short strips of rows, then only strips that can hold a new entry are read again."""

    def __init__(self, topk: TopK, batch: Batch) -> None:
        self.topk, self.rows = topk, batch.rows
        self.row_samples = batch.row_samples(topk.next_sample)
        self.row_positions = batch.positions
        self.per_block = block_rows(batch.n_units) // STRIP
        self.starts = np.append(np.arange(0, batch.n_rows, STRIP), batch.n_rows)
        self.maxima = np.empty((len(self.starts) - 1, batch.n_units), batch.rows.dtype)
        self.rising = bool((np.diff(self.row_samples) >= 0).all())
        self.in_order = self.rising and int(self.row_samples[0]) > int(topk.samples.max())
        self.groups, self.n_groups = self._few_groups()

    def _few_groups(self) -> tuple[np.ndarray, int]:
        # A few groups per entry bound the k-th largest value nearly as well as many, and cost less to sort.
        groups = _groups(self.starts, self.row_samples, self.topk.distinct_samples, self.rising)
        n_groups, enough = int(groups.max()) + 1, 4 * self.topk.k
        if n_groups <= enough:
            return groups, n_groups
        return np.where(groups < 0, -1, groups * enough // n_groups), enough

    def block(self, worker: int, index: int, start: int, stop: int) -> None:
        first = index * self.per_block
        strip_maxima(self.rows, start, stop, STRIP, self.rows.dtype.type(self.topk.sign), self.maxima[first:])

    def finish(self, worker: int, n_workers: int) -> None:
        done, n_units = self.topk, self.rows.shape[1]
        offer_strips(
            self.rows, self.rows.dtype.type(done.sign), self.starts, self.maxima, self.groups, self.n_groups,
            self.row_samples, self.row_positions, worker * n_units // n_workers,
            (worker + 1) * n_units // n_workers, self.in_order,
            done.distinct_samples, done.keys, done.samples, done.positions,
        )  # fmt: skip


def _groups(starts: np.ndarray, row_samples: np.ndarray, distinct: bool, rising: bool) -> np.ndarray:
    """A number per strip such that strips of different groups share no sample; -1 for strips in no group.

    The k-th largest of the groups' maxima is then a value that at least k entries reach.
    """
    n_strips = len(starts) - 1
    if not distinct:
        return np.arange(n_strips, dtype=np.int64)
    if not rising:
        return np.full(n_strips, -1, np.int64)
    first, last = row_samples[starts[:-1]], row_samples[starts[1:] - 1]
    groups = np.full(n_strips, -1, np.int64)
    group, reached = -1, -1
    for strip, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        if low > reached:
            group, reached = group + 1, high
            groups[strip] = group
        elif high == reached:
            groups[strip] = group
    return groups
