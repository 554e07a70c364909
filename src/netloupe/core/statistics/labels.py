"""Class means and within-class scatter in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError
from netloupe.core.statistics.base import Statistic
from netloupe.core.statistics.batch import Batch
from netloupe.core.statistics.blocks import BlockPass
from netloupe.core.statistics.kernels import class_means, class_squares

Second = Literal["trace", "diagonal", "full"]


@dataclass(frozen=True, eq=False)
class LabelMomentsResult:
    """Per class ``c`` of C, over the rows that carry its label; floats are float64."""

    counts: Int[np.ndarray, " class"]
    """int64 ``(class,)``."""
    means: Float[np.ndarray, "class unit"]
    """``(class, unit)``; NaN for a class without rows."""
    within: Float[np.ndarray, " ..."]
    """Scatter around the class means (sums, not divided): ``trace`` ``(class,)`` sums over units; ``diagonal``
    ``(class, unit)``; ``full`` ``(unit, unit)`` summed over classes."""
    second: Second

    @property
    def count(self) -> int:
        """Rows of all classes."""
        return int(self.counts.sum())

    @property
    def global_mean(self) -> Float[np.ndarray, " unit"]:
        """``(unit,)``: mean over all rows, so classes weigh by their counts."""
        seen = self.counts > 0
        return self.counts[seen] @ self.means[seen] / self.count

    @property
    def within_total(self) -> float:
        """Trace of the within-class scatter, summed over classes and units."""
        return float(np.trace(self.within) if self.second == "full" else self.within.sum())

    @property
    def between_total(self) -> float:
        """Trace of the between-class scatter ``sum_c n_c |mean_c - mean|^2``."""
        seen = self.counts > 0
        offset = self.means[seen] - self.global_mean
        return float(self.counts[seen] @ (offset**2).sum(axis=1))

    @property
    def within_covariance(self) -> Float[np.ndarray, "unit unit"]:
        """``(unit, unit)``: pooled within-class covariance divided by the number of rows; needs ``full``."""
        if self.second != "full":
            raise InputError(f"LabelMoments kept second={self.second!r}: build it with second='full'")
        return self.within / self.count


class LabelMoments(Statistic[LabelMomentsResult]):
    """Count, mean and within-class scatter for every label, in float64.

    Each batch is centred on its own class means (two passes over the batch in memory) and joined by the pairwise
    update of Chan, Golub and LeVeque (1979), so a large offset costs no digits.

    Args:
        n_classes: number of classes; by default classes are added as larger labels appear.
        second: what is kept of the within-class scatter: its trace per class, its diagonal per class, or the full
            unit-by-unit matrix pooled over classes.

    Raises on update:
        InputError: no labels, a negative label, or a label of ``n_classes`` or more.

    Cost: 2 operations per value, and ``n d^2`` for ``full``; memory ``C d`` and, for ``full``, ``d^2`` float64.
    """

    _options = ("n_classes", "second")
    _fields = ("counts", "means", "within")

    def __init__(self, n_classes: int | None = None, second: Second = "trace") -> None:
        super().__init__()
        if second not in ("trace", "diagonal", "full"):
            raise InputError(f"second={second!r} was given to LabelMoments, expected 'trace', 'diagonal' or 'full'")
        if n_classes is not None and n_classes < 1:
            raise InputError(f"n_classes={n_classes} was given to LabelMoments, expected 1 or more")
        self.n_classes = n_classes
        self.second: Second = second
        self._allocate(0)

    def result(self) -> LabelMomentsResult:
        """``LabelMomentsResult`` over all rows seen; ``InputError`` when there were none."""
        self._need_rows()
        means = np.where(self.counts[:, None] > 0, self.means, np.nan)
        return LabelMomentsResult(self.counts.copy(), means, self.within.copy(), self.second)

    def _check(self, batch: Batch) -> None:
        super()._check(batch)
        if batch.labels is None:
            raise InputError("LabelMoments was updated without labels: pass labels, one integer per sample")
        if batch.n_rows == 0:
            return
        low, high = int(batch.row_labels.min()), int(batch.row_labels.max())
        if low < 0:
            raise InputError(f"labels hold {low}, expected 0 or more: mask or drop samples without a label")
        if self.n_classes is not None and high >= self.n_classes:
            raise InputError(f"labels hold {high}, expected 0 to {self.n_classes - 1}: raise n_classes")

    def _allocate(self, n_units: int) -> None:
        n = self.n_classes or 0
        self.counts, self.means = np.zeros(n, np.int64), np.zeros((n, n_units))
        self.within = np.zeros({"trace": (n,), "diagonal": (n, n_units), "full": (n_units, n_units)}[self.second])

    def _grow(self, n_classes: int) -> None:
        more = n_classes - len(self.counts)
        if more > 0:
            self.counts = np.pad(self.counts, (0, more))
            self.means = np.pad(self.means, ((0, more), (0, 0)))
            if self.second != "full":
                self.within = np.pad(self.within, [(0, more)] + [(0, 0)] * (self.within.ndim - 1))

    def _begin(self, batch: Batch, n_workers: int) -> BlockPass:
        return _LabelsPass(self, batch)

    def _merge(self, other: Self) -> None:
        self._grow(len(other.counts))
        present = np.flatnonzero(other.counts)
        within = other.within if self.second == "full" else other.within[present]
        self._join(present, other.counts[present], other.means[present], within)

    def _join(self, present: np.ndarray, counts: np.ndarray, means: np.ndarray, within: np.ndarray) -> None:
        """Chan's update of the classes ``present`` with another set's counts, means and scatter."""
        mine = self.counts[present]
        share = counts / (mine + counts)
        delta = means - self.means[present]
        weight = mine * share
        if self.second == "full":
            self.within += within + (delta * weight[:, None]).T @ delta
        elif self.second == "trace":
            self.within[present] += within + weight * (delta**2).sum(axis=1)
        else:
            self.within[present] += within + weight[:, None] * delta**2
        self.means[present] += delta * share[:, None]
        self.counts[present] += counts


class _LabelsPass(BlockPass):
    """Twice over the batch once it is known to be finite, threads sharing out the units."""

    def __init__(self, statistic: LabelMoments, batch: Batch) -> None:
        self.statistic, self.rows = statistic, batch.rows
        self.present, self.classes, self.counts = np.unique(batch.row_labels, return_inverse=True, return_counts=True)
        shape = (len(self.present), batch.n_units)
        self.means, self.squares = np.empty(shape), np.empty(shape)

    def finish(self, worker: int, n_workers: int) -> None:
        n_units = self.rows.shape[1]
        first, last = worker * n_units // n_workers, (worker + 1) * n_units // n_workers
        class_means(self.rows, self.classes, self.counts, first, last, self.means)
        if self.statistic.second != "full":
            class_squares(self.rows, self.classes, self.means, first, last, self.squares)

    def commit(self) -> None:
        done = self.statistic
        if done.second == "full":
            centred = self.rows - self.means[self.classes]
            within = centred.T @ centred
        else:
            within = self.squares if done.second == "diagonal" else self.squares.sum(axis=1)
        done._grow(int(self.present[-1]) + 1)
        done._join(self.present, self.counts, self.means, within)
