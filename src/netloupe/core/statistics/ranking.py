"""How well each unit, by itself, ranks or separates positives from negatives: all units at once."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped

from netloupe.core.errors import InputError
from netloupe.core.statistics.batch import prepare
from netloupe.core.statistics.kernels import average_precision_of, best_threshold_of

Scores = Shaped[torch.Tensor, "sample unit"] | Shaped[np.ndarray, "sample unit"]
Positives = Bool[torch.Tensor, " sample"] | Bool[np.ndarray, " sample"]
PerUnit = Float[np.ndarray, " unit"]

_CHUNK_VALUES = 1 << 22  # sorted at a time: bounds the working memory at about 100 MB


def average_precision(scores: Scores, positives: Positives) -> PerUnit:
    """Average precision of each unit's value as a detector of ``positives``; float64 ``(unit,)``.

    ``AP = sum_t (R_t - R_(t-1)) P_t`` over the distinct values t in falling order, P and R the precision and recall
    of "value >= t". Equal values enter together, so the order of the samples never matters.

    Args:
        scores: ``(sample, unit)`` real numbers.
        positives: bool ``(sample,)``, at least one True.

    Raises:
        InputError: shapes that do not fit, or no positives.
        NonFiniteError: NaN or infinity in ``scores``.

    Cost: one sort per unit, ``n log n``.
    """
    rows, wanted = _check(scores, positives)
    if not wanted.any():
        raise InputError("positives are all False: average precision needs at least one positive sample")
    found = np.empty(rows.shape[1])
    for first, last in _chunks(rows):
        values, hits = _sorted(rows[:, first:last], wanted)
        average_precision_of(values, hits, found[first:last])
    return found


def best_threshold(scores: Scores, positives: Positives) -> tuple[PerUnit, PerUnit]:
    """The threshold on each unit's value with the best balanced accuracy; both float64 ``(unit,)``.

    A sample is called positive when its value is strictly greater than the threshold. Balanced accuracy is the
    mean of the true-positive and the true-negative rate. The threshold lies half-way between two neighbouring
    values (or at the unit's largest value, where calling nothing positive is best); ties go to the higher one.
    Selected and measured on the same samples, the accuracy is optimistic: use held-out samples to report it.

    Args:
        scores: ``(sample, unit)`` real numbers.
        positives: bool ``(sample,)`` with at least one True and one False.

    Raises:
        InputError: shapes that do not fit, or only one kind of sample.
        NonFiniteError: NaN or infinity in ``scores``.

    Cost: one sort per unit, ``n log n``.
    """
    rows, wanted = _check(scores, positives)
    if wanted.all() or not wanted.any():
        raise InputError(f"positives are all {bool(wanted[0])}: a threshold needs samples of both kinds")
    thresholds, accuracy = np.empty(rows.shape[1]), np.empty(rows.shape[1])
    for first, last in _chunks(rows):
        values, hits = _sorted(rows[:, first:last], wanted)
        best_threshold_of(values, hits, thresholds[first:last], accuracy[first:last])
    return thresholds, accuracy


def _check(scores: Scores, positives: Positives) -> tuple[np.ndarray, np.ndarray]:
    if getattr(scores, "ndim", 0) != 2:
        raise InputError(f"scores have {getattr(scores, 'ndim', 0)} axes, expected (sample, unit)")
    batch = prepare(scores)
    batch.refuse_nonfinite()
    wanted = np.asarray(positives.detach().cpu() if hasattr(positives, "detach") else positives)  # pyright: ignore[reportAttributeAccessIssue]
    if wanted.dtype != np.bool_ or wanted.shape != (batch.n_rows,):
        raise InputError(
            f"positives are {wanted.dtype} of shape {wanted.shape}, expected bool ({batch.n_rows},): one per sample"
        )
    if batch.n_rows == 0:
        raise InputError("scores hold no samples: give at least one")
    return batch.rows, wanted


def _chunks(rows: np.ndarray) -> list[tuple[int, int]]:
    step = max(1, _CHUNK_VALUES // rows.shape[0])
    return [(first, min(first + step, rows.shape[1])) for first in range(0, rows.shape[1], step)]


def _sorted(rows: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each unit's values in rising order and whether they belong to positives; both ``(unit, sample)``."""
    values = np.ascontiguousarray(rows.T) + rows.dtype.type(0)  # -0 becomes +0, as the two are equal
    if values.dtype == np.float64:
        order = np.argsort(values, axis=1)
        return np.take_along_axis(values, order, axis=1), wanted[order]
    # float32: value and label fit one 64-bit integer that sorts like the value, much faster than by index.
    bits = values.view(np.uint32)
    negative = (bits >> np.uint32(31)).astype(bool)
    rising = np.where(negative, ~bits, bits | np.uint32(0x80000000))
    keys = (rising.astype(np.uint64) << np.uint64(1)) | wanted.astype(np.uint64)[None, :]
    keys.sort(axis=1)
    rising = (keys >> np.uint64(1)).astype(np.uint32)
    bits = np.where(rising >> np.uint32(31), rising & np.uint32(0x7FFFFFFF), ~rising)
    return bits.view(np.float32), (keys & np.uint64(1)).astype(bool)
