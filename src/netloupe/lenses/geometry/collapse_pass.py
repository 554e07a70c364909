"""All collapse numbers from a second reading of the data, mergeable like every statistic.

The definitions are those of :mod:`netloupe.lenses.geometry.neural_collapse`.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.statistics import LabelMomentsResult, Statistic
from netloupe.core.statistics.batch import Batch
from netloupe.lenses.geometry.collapse_finding import NeuralCollapse, as_classifier, assemble, check_counts, frame_of

__all__ = ["CollapseSecondPass"]

_CHUNK = 1 << 19
"""values turned to float64 at a time (4 MB)"""


class CollapseSecondPass(Statistic[NeuralCollapse]):
    """All collapse numbers from a second reading of the data, once the class means are known.

    The first reading gives ``LabelMoments`` (``second="trace"`` is enough); build this statistic with :meth:`of` and
    show it the same samples again, in any order and division. Definitions and weighting as in :func:`neural_collapse`.
    Cost O(K d) a sample; memory O(K d), where NC1 from a single reading would hold the ``d x d`` scatter.

    Args:
        means: class means ``(class, unit)`` of the first reading.
        counts: samples of each class in the first reading.
        weight: the classifier's weight ``(class, unit)``, for NC3 and NC4.
        bias: the classifier's bias ``(class,)``; none by default.

    Raises InputError for fewer than two classes or samples of one, equal class means, or a classifier that does not
    fit, on update for labels or units that the first reading did not have, on result when the samples are not those
    of the first reading.
    """

    _options = ("means", "counts", "weight", "bias")
    _fields = ("seen", "within_sum", "along_sum", "n_disagree")

    def __init__(
        self,
        means: Float[np.ndarray, "class unit"],
        counts: Int[np.ndarray, " class"],
        weight: Float[Tensor, "class unit"] | np.ndarray | None = None,
        bias: Float[Tensor, " class"] | np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.means, self.counts = np.asarray(means, dtype=np.float64), np.asarray(counts, dtype=np.int64)
        check_counts(self.counts)
        self.weight, self.bias = as_classifier(weight, bias, (self.means.shape[0], self.means.shape[1]))
        self._frame = frame_of(self.means)
        self.seen: np.ndarray | None = None
        self.within_sum: float | None = None
        self.along_sum: np.ndarray | None = None
        self.n_disagree: int | None = None

    @classmethod
    def of(
        cls,
        moments: LabelMomentsResult,
        weight: Float[Tensor, "class unit"] | np.ndarray | None = None,
        bias: Float[Tensor, " class"] | np.ndarray | None = None,
    ) -> Self:
        """The second pass that belongs to a first one."""
        check_counts(moments.counts)
        return cls(moments.means, moments.counts, weight, bias)

    def merge(self, other: Self) -> Self:
        """Take in what another second pass has seen; ``InputError`` unless both were built from the same first pass."""
        if type(other) is type(self):
            for name in self._options:
                if not np.array_equal(getattr(self, name), getattr(other, name)):
                    raise InputError(
                        f"cannot merge two second passes whose {name} differ; build both from one merged first pass "
                        "and the same classifier."
                    )
        return super().merge(other)

    def __repr__(self) -> str:
        return f"<CollapseSecondPass of {len(self.counts)} classes: {self.n_rows} rows of {self.n_units} units>"

    def result(self) -> NeuralCollapse:
        """All numbers; ``InputError`` when the samples seen are not as many of each class as in the first pass."""
        self._need_rows()
        assert self.seen is not None
        assert self.within_sum is not None
        assert self.along_sum is not None
        if not np.array_equal(self.seen, self.counts):
            raise InputError(
                f"the second pass saw {int(self.seen.sum())} samples with other class counts than the "
                f"{int(self.counts.sum())} of the first; show both the same samples."
            )
        along = self.along_sum / self.n_rows
        return assemble(
            self._frame,
            self.counts,
            nc1=float(np.sum(along / self._frame.spread**2)),
            within=self.within_sum / self.n_rows,
            weight=self.weight,
            nc4=None if self.n_disagree is None else self.n_disagree / self.n_rows,
        )

    def _allocate(self, n_units: int) -> None:
        self.seen, self.within_sum = np.zeros(len(self.counts), np.int64), 0.0
        self.along_sum = np.zeros(len(self._frame.spread))
        self.n_disagree = None if self.weight is None else 0

    def _check(self, batch: Batch) -> None:
        super()._check(batch)
        if batch.n_units != self.means.shape[1]:
            raise InputError(
                f"the class means have {self.means.shape[1]} units but the batch {batch.n_units}; give the same site."
            )
        labels = batch.row_labels
        if len(labels) and (labels.min() < 0 or labels.max() >= len(self.counts)):
            raise InputError(
                f"labels run from {labels.min()} to {labels.max()}, but the first pass had 0..{len(self.counts) - 1}; "
                "show both passes the same samples."
            )

    def _update(self, batch: Batch) -> None:
        assert self.seen is not None
        assert self.within_sum is not None
        assert self.along_sum is not None
        labels, step = batch.row_labels, max(1, _CHUNK // batch.n_units)
        for start in range(0, batch.n_rows, step):
            rows = batch.rows[start : start + step].astype(np.float64)
            own = labels[start : start + step]
            if self.n_disagree is not None:
                self.n_disagree += self._disagreements(rows)
            rows -= self.means[own]
            self.within_sum += float(np.vdot(rows, rows))
            self.along_sum += np.sum((rows @ self._frame.directions.T) ** 2, axis=0)
        self.seen += np.bincount(labels, minlength=len(self.seen))

    def _disagreements(self, rows: Float[np.ndarray, "row unit"]) -> int:
        assert self.weight is not None
        logits = rows @ self.weight.T + (0.0 if self.bias is None else self.bias)
        # seen from the centre of the means, a large common offset costs no digits of the distances
        closeness = (rows - self._frame.centre) @ self._frame.centred.T - np.sum(self._frame.centred**2, axis=1) / 2
        return int(np.count_nonzero(logits.argmax(1) != closeness.argmax(1)))

    def _merge(self, other: Self) -> None:
        assert self.seen is not None
        assert self.within_sum is not None
        assert self.along_sum is not None
        assert other.seen is not None
        assert other.within_sum is not None
        assert other.along_sum is not None
        self.seen = self.seen + other.seen
        self.within_sum += other.within_sum
        self.along_sum = self.along_sum + other.along_sum
        if self.n_disagree is not None and other.n_disagree is not None:
            self.n_disagree += other.n_disagree
