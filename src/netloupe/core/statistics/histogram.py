"""Exact counts between fixed edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError
from netloupe.core.statistics.base import Statistic
from netloupe.core.statistics.batch import Batch
from netloupe.core.statistics.blocks import BlockPass
from netloupe.core.statistics.kernels import block_histogram, block_histogram_per_unit


@dataclass(frozen=True, eq=False)
class HistogramResult:
    """Counts are int64 ``(bin,)``, ``under`` and ``over`` scalars; with a leading unit axis where units are apart."""

    edges: Float[np.ndarray, " edge"]
    counts: Int[np.ndarray, "*unit bin"]
    under: Int[np.ndarray, " *unit"]
    """Values below the first edge."""
    over: Int[np.ndarray, " *unit"]
    """Values above the last edge."""

    @property
    def count(self) -> int:
        """All values seen."""
        return int(self.counts.sum() + self.under.sum() + self.over.sum())

    @property
    def density(self) -> Float[np.ndarray, "*unit bin"]:
        """Counts divided by bin width and by all values seen (of the unit): integrates to 1 minus what fell outside."""
        total = self.counts.sum(axis=-1, keepdims=True) + self.under[..., None] + self.over[..., None]
        return self.counts / (total * np.diff(self.edges))


class Histogram(Statistic[HistogramResult]):
    """How many values lie in ``[edge_i, edge_i+1)``; the last bin includes its right edge, as in numpy.

    Args:
        edges: at least two increasing finite numbers ``(bin + 1,)``.
        per_unit: count each unit by itself instead of the whole site.

    Integer counts: merging is exact. Cost: a multiplication per value for evenly spaced edges, ``log2(bins)``
    comparisons otherwise; memory 8 bytes per bin (and unit).
    """

    _options = ("edges", "per_unit")
    _fields = ("table",)

    def __init__(self, edges: Float[np.ndarray, " edge"], per_unit: bool = False) -> None:
        super().__init__()
        array = np.array(edges, np.float64)
        if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all() or not (np.diff(array) > 0).all():
            raise InputError("edges given to Histogram must be one increasing row of at least two finite numbers")
        self.edges, self.per_unit = array, bool(per_unit)
        self._allocate(0)

    def result(self) -> HistogramResult:
        """``HistogramResult`` of all values seen; ``InputError`` when there were none."""
        self._need_rows()
        table = self.table if self.per_unit else self.table[0]
        return HistogramResult(
            self.edges.copy(), table[..., 1:-1].copy(), np.array(table[..., 0]), np.array(table[..., -1])
        )

    def _allocate(self, n_units: int) -> None:
        self.table = np.zeros((n_units if self.per_unit else 1, len(self.edges) + 1), np.int64)

    def _begin(self, batch: Batch, n_workers: int) -> BlockPass:
        return (_UnitPass if self.per_unit else _SitePass)(self, batch, n_workers)

    def _merge(self, other: Self) -> None:
        self.table = self.table + other.table


class _SitePass(BlockPass):
    def __init__(self, histogram: Histogram, batch: Batch, n_workers: int) -> None:
        self.histogram, self.rows = histogram, batch.rows
        self.scale = _even_scale(histogram.edges)
        self.found = np.zeros((n_workers, len(histogram.edges) + 1), np.int64)

    def block(self, worker: int, index: int, start: int, stop: int) -> None:
        block_histogram(self.rows, start, stop, self.histogram.edges, self.scale, self.found[worker])

    def commit(self) -> None:
        self.histogram.table += self.found.sum(axis=0)


class _UnitPass(BlockPass):
    """Threads share out the units, so that each table row has one writer."""

    def __init__(self, histogram: Histogram, batch: Batch, n_workers: int) -> None:
        self.histogram, self.rows = histogram, batch.rows
        self.scale = _even_scale(histogram.edges)

    def finish(self, worker: int, n_workers: int) -> None:
        n_units = self.rows.shape[1]
        first, last = worker * n_units // n_workers, (worker + 1) * n_units // n_workers
        block_histogram_per_unit(self.rows, first, last, self.histogram.edges, self.scale, self.histogram.table)


def _even_scale(edges: np.ndarray) -> float:
    """Bins per unit of value where edges are evenly spaced to rounding, else 0."""
    width = (edges[-1] - edges[0]) / (len(edges) - 1)
    if not np.isfinite(width) or width == 0:
        return 0.0
    even = np.abs(np.diff(edges) - width).max() <= 1e-6 * width
    scale = 1.0 / width
    return float(scale) if even and np.isfinite(scale) else 0.0
