"""How many different codes a stream of activations holds, when even packed codes are too many to keep (arXiv 2101.05490)."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import xxhash

from netloupe.core.statistics.base import Statistic
from netloupe.core.statistics.batch import Batch


class DistinctCodesResult(NamedTuple):
    """``n_distinct`` codes in ``n_rows`` rows; ``constant`` ``(unit,)`` bool: bits that never changed."""

    n_distinct: int
    n_rows: int
    constant: np.ndarray

    @property
    def redundancy(self) -> float:
        """Share of rows that repeat an earlier code."""
        return 1 - self.n_distinct / self.n_rows


class DistinctCodes(Statistic[DistinctCodesResult]):
    """How many different codes a stream holds: 16 bytes for each, in any order, mergeable.

    A code is kept as a hash of 128 bits (xxh3): two different codes are taken for one with probability below 2**-64 up to
    2**32 of them. Every row (sample, or position of one) is a code of its own.

    Args:
        threshold: a unit is on above it.
    """

    _options = ("threshold",)
    _fields = ("digests", "ever", "never")

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = float(threshold)
        self._allocate(0)

    def result(self) -> DistinctCodesResult:
        """Counts so far; InputError when nothing was seen."""
        self._need_rows()
        return DistinctCodesResult(len(self.digests), self.n_rows, ~(self.ever & self.never))

    def _allocate(self, n_units: int) -> None:
        self.digests = np.zeros((0, 2), np.uint64)
        self.ever, self.never = np.zeros(n_units, bool), np.zeros(n_units, bool)

    def _update(self, batch: Batch) -> None:
        bits = batch.rows > self.threshold
        self.ever |= bits.any(0)
        self.never |= ~bits.all(0)
        packed = np.packbits(bits, axis=1)
        found = b"".join(xxhash.xxh3_128_digest(row.data) for row in packed)
        self._add(np.frombuffer(found, np.uint64).reshape(-1, 2))

    def _merge(self, other: Self) -> None:
        self.ever |= other.ever
        self.never |= other.never
        self._add(other.digests)

    def _add(self, digests: np.ndarray) -> None:
        self.digests = np.unique(np.concatenate([self.digests, digests]), axis=0)
