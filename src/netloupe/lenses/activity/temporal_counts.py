"""The mergeable counts behind :mod:`netloupe.lenses.activity.temporal` (arXiv 2107.07305)."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from netloupe.core.errors import InputError
from netloupe.core.statistics import Statistic
from netloupe.core.statistics.batch import Batch
from netloupe.core.statistics.counts import _round_down
from netloupe.lenses.activity.temporal_kernels import count_changes


class ChangesResult(NamedTuple):
    """``changed``, ``nonzero`` int64 ``(unit,)``; ``steps`` int64 ``(step, 3)``: earlier sample, changed, compared."""

    changed: np.ndarray
    nonzero: np.ndarray
    steps: np.ndarray
    relative_change: float
    n_rows: int


class _Counted(NamedTuple):
    """``counts`` int32 ``(2, unit)`` changed and not zero; ``steps``, ``sums`` as in :class:`Changes`."""

    counts: np.ndarray
    steps: np.ndarray
    sums: np.ndarray


class Changes(Statistic[ChangesResult]):
    """Counts of activations that differ by more than ``tol`` between samples that follow each other.

    Samples i and i + 1 are compared also where they come in different batches: the first and last sample of every
    unbroken range are kept, and ranges that touch are joined, in whatever order they are merged. Counts are exact.
    A position is compared where the mask keeps it in both samples. Memory: 24 bytes a sample, and two samples.
    """

    _options = ("tol",)
    _fields = ("changed", "nonzero", "steps", "sums", "ranges", "edges", "edges_kept")

    def __init__(self, tol: float = 0.0) -> None:
        super().__init__()
        if not 0 <= tol < float("inf"):
            raise InputError(f"tol={tol} was given to Changes, expected a finite number of at least 0")
        self.tol = float(tol)
        self._allocate(0)

    @property
    def steps(self) -> np.ndarray:
        """``(step, 3)``: the earlier sample, values changed, values compared; in the order of samples."""
        if len(self._parts) != 1:
            joined = np.concatenate([np.zeros((0, 3), np.int64), *self._parts])
            self._parts = [joined[np.argsort(joined[:, 0], kind="stable")]]
        return self._parts[0]

    @steps.setter
    def steps(self, value: np.ndarray) -> None:
        self._parts = [value]

    def result(self) -> ChangesResult:
        """The counts; ``InputError`` when no two samples followed each other."""
        self._need_rows()
        if self.steps[:, 2].sum() == 0:
            raise InputError("no two samples follow each other; at least 2 consecutive samples are needed")
        relative = float(self.sums[0] / self.sums[1]) if self.sums[1] else 0.0
        return ChangesResult(self.changed.copy(), self.nonzero.copy(), self.steps.copy(), relative, self.n_rows)

    def _allocate(self, n_units: int) -> None:
        self.changed, self.nonzero = np.zeros(n_units, np.int64), np.zeros(n_units, np.int64)
        self.sums, self._parts = np.zeros(2), []
        self.ranges, self.edges = np.zeros((0, 2), np.int64), np.zeros((0, 2, 0, n_units))
        self.edges_kept = np.zeros((0, 2, 0), bool)

    def _check(self, batch: Batch) -> None:
        super()._check(batch)
        if len(self.ranges) and self.edges.shape[2] != batch.n_positions:
            raise InputError(f"samples have {batch.n_positions} positions and had {self.edges.shape[2]} before")

    def _update(self, batch: Batch) -> None:
        shape = (batch.n_samples, batch.n_positions)
        kept = np.zeros(batch.n_samples * batch.n_positions, bool)
        kept[batch._flat] = True
        rows = batch.rows
        if batch.kept is not None:
            rows = np.zeros((len(kept), batch.n_units), rows.dtype)
            rows[batch.kept] = batch.rows
        rows, kept = rows.reshape(*shape, -1), kept.reshape(shape)
        samples = np.arange(len(rows)) + self.next_sample if batch.samples is None else batch.samples
        if (np.diff(samples) < 0).any():
            order = np.argsort(samples, kind="stable")
            samples, rows, kept = samples[order], rows[order], kept[order]
        breaks = np.flatnonzero(np.diff(samples) != 1) + 1
        runs = list(zip([0, *breaks], [*breaks, len(samples)]))
        counted = [self._count(rows[start:stop], kept[start:stop], int(samples[start])) for start, stop in runs]
        for each, (start, stop) in zip(counted, runs):
            self._take(each)
            ends = np.array([start, stop - 1])
            reach = np.array([[samples[start], samples[stop - 1] + 1]])
            self._add_range(reach, rows[ends][None].astype(np.float64), kept[ends][None])

    def _count(self, rows: np.ndarray, kept: np.ndarray, first: int) -> _Counted:
        n_units, steps = rows.shape[-1], np.zeros((3, len(rows) - 1), np.int64)
        steps[0] = first + np.arange(len(rows) - 1)
        counts, sums = np.zeros((2, n_units), np.int32), np.zeros((2, n_units))
        tol = _round_down(self.tol, rows.dtype)
        count_changes(np.ascontiguousarray(rows), kept, tol, counts[0], counts[1], steps[1], steps[2], sums[0], sums[1])
        return _Counted(counts, steps.T, np.array([sums[0].sum(), 0.5 * sums[1].sum()]))

    def _take(self, counted: _Counted, values: bool = True) -> None:
        self.changed = self.changed + counted.counts[0]
        self.nonzero = self.nonzero + counted.counts[1] * values
        self.sums = self.sums + counted.sums
        self._parts = [*self._parts, counted.steps] if len(self._parts) < 256 else [self.steps, counted.steps]

    def _add_range(self, ranges: np.ndarray, edges: np.ndarray, kept: np.ndarray) -> None:
        """Adds ranges, in order, and joins those that touch."""
        if len(self.ranges) == 0:
            self.ranges, self.edges, self.edges_kept = ranges, edges, kept
            return
        ranges = np.concatenate([self.ranges, ranges])
        order = np.argsort(ranges[:, 0], kind="stable")
        ranges = ranges[order]
        edges, kept = np.concatenate([self.edges, edges])[order], np.concatenate([self.edges_kept, kept])[order]
        heads = [0]
        for index in range(1, len(ranges)):
            head = heads[-1]
            if ranges[head, 1] != ranges[index, 0]:
                heads.append(index)
                continue
            both, real = np.stack([edges[head, 1], edges[index, 0]]), np.stack([kept[head, 1], kept[index, 0]])
            self._take(self._count(both, real, int(ranges[head, 1]) - 1), values=False)  # values are counted already
            ranges[head, 1], edges[head, 1], kept[head, 1] = ranges[index, 1], edges[index, 1], kept[index, 1]
        self.ranges, self.edges, self.edges_kept = ranges[heads], edges[heads], kept[heads]

    def _merge(self, other: Self) -> None:
        if self.edges.shape[2] != other.edges.shape[2]:
            raise InputError(f"cannot merge samples of {self.edges.shape[2]} and of {other.edges.shape[2]} positions")
        self.changed, self.nonzero = self.changed + other.changed, self.nonzero + other.nonzero
        self.sums, self._parts = self.sums + other.sums, [*self._parts, *other._parts]
        self._add_range(other.ranges, other.edges, other.edges_kept)
