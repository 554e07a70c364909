"""How far features of one class have bunched up, and how regularly the classes stand: the neural-collapse numbers.

Late in training the penultimate features of a class gather at its mean (NC1), the class means form a simplex (NC2),
the classifier's rows point along them (NC3) and the network decides for the nearest class mean (NC4). All four
numbers are zero at full collapse. Source: the perturbation analysis of neural collapse, arXiv 2210.16658, for NC1
and NC2; NC3 and NC4 as in the neural-collapse literature.

Three ways in, same numbers: :func:`neural_collapse` for arrays in memory; :func:`collapse_of_moments` on
``LabelMoments`` gathered in one pass; and :class:`CollapseSecondPass`, which reads the data again and so needs neither
the ``d x d`` scatter for NC1 nor anything but the data for NC4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.statistics import LabelMoments, LabelMomentsResult, Statistic
from netloupe.core.statistics.batch import Batch

__all__ = ["CollapseSecondPass", "NeuralCollapse", "collapse_of_moments", "neural_collapse"]

_CHUNK = 1 << 19
"""values turned to float64 at a time in the second pass (4 MB)"""

_PIECE = 1 << 22
"""values of an array in memory read at a time (32 MB in float64)"""


@dataclass(frozen=True, eq=False)
class NeuralCollapse:
    """How near to collapse; every number is zero at full collapse and none of them is ever NaN."""

    nc1: float | None
    """within-class scatter measured in units of the between-class scatter; None without the means to know it"""
    nc1_trace: float
    """trace of the within-class scatter over trace of the between-class scatter"""
    nc2: float
    """distance of the normalised Gram matrix of the centred class means from that of a simplex; 0 to 2"""
    nc3: float | None
    """distance between the normalised classifier and the normalised centred class means, 0 to 2; None without one"""
    nc4: float | None
    """share of samples for which the classifier and the nearest class mean disagree; None without a classifier"""
    rank: int
    """rank of the between-class scatter; below ``K - 1``, NC1 sees only that many directions"""
    within: float
    """trace of the within-class scatter, in squared units of the features"""
    between: float
    """trace of the between-class scatter, in squared units of the features"""
    counts: Int[np.ndarray, " class"]
    """samples of each class"""
    n_samples: int
    n_units: int


class _Frame(NamedTuple):
    """The class means seen from their own mean, with their singular values and directions up to the rank."""

    centre: Float[np.ndarray, " unit"]
    centred: Float[np.ndarray, "class unit"]
    spread: Float[np.ndarray, " rank"]
    directions: Float[np.ndarray, "rank unit"]
    between: float


def _frame(means: Float[np.ndarray, "class unit"]) -> _Frame:
    centre = means.mean(0)
    centred = means - centre
    with np.errstate(over="ignore"):
        between = float(np.sum(centred**2) / len(means))
    if not np.isfinite(between):
        raise NonFiniteError("the squares of the class means overflow, but their scatter is needed; rescale features.")
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    rounding = len(means) * np.finfo(np.float64).eps
    if between == 0 or spread[0] <= float(np.abs(means).max()) * rounding:
        raise InputError(
            f"the means of all {len(means)} classes coincide, but collapse is measured against the scatter between "
            "them; give features that differ between classes."
        )
    # squared singular values are the eigenvalues of the class-by-class Gram matrix, found without squaring it
    kept = (spread / spread[0]) ** 2 > rounding
    return _Frame(centre, centred, spread[kept], directions[kept], between)


def _check_counts(counts: np.ndarray) -> None:
    if len(counts) < 2 or counts.min() < 2:
        raise InputError(
            f"the first class counts are {counts.tolist()[:5]}, but at least 2 classes and 2 samples of each label "
            "0..K-1 are needed; drop the rare classes and renumber the labels from 0."
        )


def _as_classifier(
    weight: Any, bias: Any, shape: tuple[int, int]
) -> tuple[Float[np.ndarray, "class unit"] | None, Float[np.ndarray, " class"] | None]:
    """Weight and bias as finite float64 arrays that fit the class means."""
    if weight is None:
        if bias is not None:
            raise InputError("a bias was given without a weight, but a classifier needs its weight; give both.")
        return None, None
    arrays = []
    for name, given, expected in (("weight", weight, shape), ("bias", bias, shape[:1])):
        if given is None:
            arrays.append(None)
            continue
        tensor = given.detach().cpu().double() if isinstance(given, Tensor) else given
        array = np.asarray(tensor, dtype=np.float64)
        if array.shape != expected:
            raise InputError(
                f"{name} has shape {array.shape}, but {expected} is expected for {shape[0]} classes and {shape[1]} "
                "units; give a classifier with one row per class."
            )
        if not np.isfinite(array).all():
            raise NonFiniteError(f"{name} holds NaN or infinity, but finite numbers are needed; repair the network.")
        arrays.append(array)
    if not arrays[0].any():
        raise InputError("weight is all zeros, but NC3 and NC4 compare its directions; leave it out.")
    return arrays[0], arrays[1]


def _nc2(frame: _Frame) -> float:
    n_classes, scaled = len(frame.centred), frame.centred / np.linalg.norm(frame.centred)
    gram = scaled @ scaled.T
    simplex = (np.eye(n_classes) - 1 / n_classes) / np.sqrt(n_classes - 1)
    return float(np.linalg.norm(gram / np.linalg.norm(gram) - simplex))


def _nc3(frame: _Frame, weight: np.ndarray | None) -> float | None:
    if weight is None:
        return None
    return float(np.linalg.norm(weight / np.linalg.norm(weight) - frame.centred / np.linalg.norm(frame.centred)))


def collapse_of_moments(
    moments: LabelMomentsResult,
    weight: Float[Tensor, "class unit"] | np.ndarray | None = None,
) -> NeuralCollapse:
    """The collapse numbers that one pass over the data can give: all but NC4.

    ``LabelMoments(second="full")`` gives NC1 for ``8 d^2`` bytes of memory; with ``"diagonal"`` or ``"trace"``, which
    need next to none, ``nc1`` is None. Definitions, weighting and errors as in :func:`neural_collapse`.

    Args:
        moments: per-class counts, means and pooled within-class scatter.
        weight: the classifier's weight ``(class, unit)``, for NC3.

    Cost O(K^2 d), and O(K d^2) for NC1.
    """
    _check_counts(moments.counts)
    frame = _frame(moments.means)
    rows, _ = _as_classifier(weight, None, (moments.means.shape[0], moments.means.shape[1]))
    nc1 = None
    if moments.second == "full":
        along = np.einsum("iu,iu->i", frame.directions @ moments.within_covariance, frame.directions)
        nc1 = float(np.sum(along / frame.spread**2))
    within = moments.within_total / moments.count
    return _assemble(frame, moments.counts, nc1=nc1, within=within, weight=rows, nc4=None)


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
        _check_counts(self.counts)
        self.weight, self.bias = _as_classifier(weight, bias, (self.means.shape[0], self.means.shape[1]))
        self._frame = _frame(self.means)
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
        _check_counts(moments.counts)
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
        return _assemble(
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


def _assemble(
    frame: _Frame, counts: np.ndarray, *, nc1: float | None, within: float, weight: np.ndarray | None, nc4: float | None
) -> NeuralCollapse:
    if not np.isfinite(within):
        raise NonFiniteError("the squares of the features overflow, but their scatter is needed; rescale features.")
    return NeuralCollapse(
        nc1=nc1,
        nc1_trace=within / frame.between,
        nc2=_nc2(frame),
        nc3=_nc3(frame, weight),
        nc4=nc4,
        rank=len(frame.spread),
        within=within,
        between=frame.between,
        counts=counts.copy(),
        n_samples=int(counts.sum()),
        n_units=frame.centred.shape[1],
    )


def neural_collapse(
    features: Float[Tensor, "sample unit"] | np.ndarray,
    labels: Int[Tensor, " sample"] | np.ndarray,
    weight: Float[Tensor, "class unit"] | np.ndarray | None = None,
    bias: Float[Tensor, " class"] | np.ndarray | None = None,
) -> NeuralCollapse:
    """How collapsed features are: NC1 to NC4, all zero at full collapse.

    With class means ``m_k``, their plain mean ``m``, centred means ``M`` of shape ``(class, unit)``, within scatter
    ``S_w = (1/N) sum (h - m_k)(h - m_k)'`` and between scatter ``S_b = (1/K) sum (m_k - m)(m_k - m)'``:

    * ``nc1 = trace(S_w S_b^+) / K`` and ``nc1_trace = trace(S_w) / trace(S_b)``;
    * ``nc2 = | G / |G| - (I - 11'/K) / sqrt(K - 1) |`` with ``G = M M'`` and Frobenius norms;
    * ``nc3 = | W / |W| - M / |M| |``;
    * ``nc4``: share of samples where ``argmax(W h + b)`` is not the nearest class mean.

    The pseudo-inverse drops directions whose Gram eigenvalue is below ``K`` times float64's rounding of the largest.
    Unbalanced classes: every class weighs the same in ``m`` and ``S_b``, every sample the same in ``S_w`` and ``nc4``.

    Args:
        features: ``(sample, unit)``, or ``(sample, position, unit)`` where every position counts as a sample. Take
            them from training data, in evaluation mode and without augmentation: in training mode batch norm changes
            them. Arithmetic is float64 whatever they come in.
        labels: ``(sample,)`` integers ``0..K-1``, at least two samples of each.
        weight: the classifier's weight ``(class, unit)``.
        bias: the classifier's bias ``(class,)``; needs a weight.

    Without a weight ``nc3`` and ``nc4`` are None. ``nc3`` compares with *centred* means: the bias-free minimiser of
    squared error has an orthogonal frame of means, so its ``nc3`` is ``sqrt(2 - 2 sqrt((K - 1) / K))``, not zero.
    ``nc1`` grows without bound as class means become collinear; read it with ``rank``.

    Cost O(N K d + K^2 d) time; O(K d) memory and some 100 MB at most beyond the input. Raises InputError for fewer
    than two classes, a class with fewer than two samples, labels with gaps, equal class means or shapes that do not
    fit, NonFiniteError for NaN, infinity or squares that overflow.
    """
    values = features if isinstance(features, Tensor) else np.asarray(features)
    classes = labels if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim < 2 or classes.shape != values.shape[:1]:
        raise InputError(
            f"features have shape {tuple(values.shape)} and labels {tuple(classes.shape)}, but (sample, unit) and "
            "(sample,) are expected; give one label per sample."
        )
    step = max(1, _PIECE // max(1, math.prod(values.shape[1:])))
    pieces = [slice(start, start + step) for start in range(0, len(values), step)]
    first = LabelMoments(second="trace")
    for piece in pieces:
        first.update(values[piece], labels=classes[piece])
    second = CollapseSecondPass.of(first.result(), weight, bias)
    for piece in pieces:
        second.update(values[piece], labels=classes[piece])
    return second.result()
