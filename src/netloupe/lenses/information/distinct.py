"""The different values that a site takes: all of them, or a fair sample of them where there are too many.

Bins that hold equally many *different* values (arXiv 1902.09037) need the sorted set of these values and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, UInt64

from netloupe.core.errors import InputError
from netloupe.core.statistics.base import Statistic
from netloupe.core.statistics.batch import Batch

LIMIT = 10**8
"""most different values that are kept"""


@dataclass(frozen=True, eq=False)
class DistinctResult:
    """``values`` float64 ``(value,)``, ascending. ``share`` of all different values that were kept; 1.0 is all."""

    values: Float[np.ndarray, " value"]
    share: float

    @property
    def exact(self) -> bool:
        """Whether every different value is there."""
        return self.share == 1.0


class Distinct(Statistic[DistinctResult]):
    """The set of different values over all samples and units of a site.

    Above ``limit`` of them those whose hash is small are kept, and the bound on the hash is halved until they fit:
    a sample of the different values that is uniform, the same in any order of the data, and mergeable. A quantile
    read from ``m`` kept values is then off by about ``0.5 / sqrt(m)`` in rank (standard error at the median).

    Cost: one sort per batch and a logarithmic number of merges; 8 bytes for each value kept.
    """

    _options = ("limit",)
    _fields = ("values", "halvings")

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__()
        if limit < 2:
            raise InputError(f"limit={limit} was given to Distinct, expected at least 2 values")
        self.limit = int(limit)
        self._allocate(0)

    @property
    def values(self) -> Float[np.ndarray, " value"]:
        """What is kept, ascending."""
        if self._pending:
            self._values = np.unique(np.concatenate([self._values, *self._pending]))
            self._pending, self._waiting = [], 0
            self._thin()
        return self._values

    @values.setter
    def values(self, values: Float[np.ndarray, " value"]) -> None:
        self._values, self._pending, self._waiting = np.asarray(values, np.float64), [], 0

    def result(self) -> DistinctResult:
        """``DistinctResult`` of all values seen; ``InputError`` when there were none."""
        self._need_rows()
        return DistinctResult(self.values.copy(), 0.5**self.halvings)

    def _allocate(self, n_units: int) -> None:
        self.values, self.halvings = np.zeros(0), 0

    def _update(self, batch: Batch) -> None:
        found = np.unique(batch.rows.reshape(-1)).astype(np.float64)
        found += 0.0  # -0.0 and 0.0 are one value
        self._add(found[_hashes(found) <= self._bound()] if self.halvings else found)

    def _merge(self, other: Self) -> None:
        theirs = other.values
        if other.halvings > self.halvings:
            self._values = self.values
            self.halvings = other.halvings
            self._values = self._values[_hashes(self._values) <= self._bound()]
        elif self.halvings > other.halvings:
            theirs = theirs[_hashes(theirs) <= self._bound()]
        self._add(theirs)

    def _add(self, found: Float[np.ndarray, " value"]) -> None:
        self._pending.append(found)
        self._waiting += len(found)
        if self._waiting > max(1 << 20, len(self._values)):
            self.values  # noqa: B018 - merges what waits

    def _bound(self) -> np.uint64:
        return np.uint64(2**64 - 1 >> self.halvings)

    def _thin(self) -> None:
        while len(self._values) > self.limit:
            self.halvings += 1
            self._values = self._values[_hashes(self._values) <= self._bound()]


def _hashes(values: Float[np.ndarray, " value"]) -> UInt64[np.ndarray, " value"]:
    """The finaliser of splitmix64 over the bit patterns: every bit of the value moves every bit of the hash."""
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64).copy()
    with np.errstate(over="ignore"):
        bits += np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
