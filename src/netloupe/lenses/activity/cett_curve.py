"""What dropping weak neurons costs a feed-forward layer, at every threshold at once, in one pass over its tokens.

Source: Luo et al., "Sparsing Law: Towards Large Language Models with Greater Activation Sparsity", arXiv 2411.02335.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float

from netloupe.core.errors import InputError
from netloupe.core.statistics import Statistic
from netloupe.core.statistics.batch import Batch
from netloupe.core.statistics.blocks import BlockPass, n_blocks
from netloupe.lenses.activity.cett_kernels import dropped_errors

PER_OCTAVE = 24  # levels to each doubling: neighbouring thresholds differ by 2.9 %
OCTAVES = 64  # from 2^-40 to 2^24
FIRST = -40 * PER_OCTAVE
LEVELS = OCTAVES * PER_OCTAVE


@dataclass(frozen=True, eq=False)
class CettCurveResult:
    """Over all tokens seen: at threshold ``eps[k]`` the error is ``cett[k]`` and the share of neurons kept ``ratio[k]``.

    All ``(level,)`` float64, ``eps`` rising from 0 to infinity. ``n_skipped`` tokens had no output at all: no error is
    defined for them.
    """

    eps: Float[np.ndarray, " level"]
    cett: Float[np.ndarray, " level"]
    ratio: Float[np.ndarray, " level"]
    n_tokens: int
    n_skipped: int

    def eps_at(self, cett: float) -> float:
        """The threshold for an error ``cett`` in [0, 1], between levels by interpolation; infinite at 1."""
        if not 0 <= cett <= 1:
            raise InputError(f"a CETT of {cett} was asked for, expected 0 to 1")
        if cett == 1:
            return float("inf")
        rising = np.maximum.accumulate(self.cett)
        after = int(np.searchsorted(rising, cett, side="right"))  # the first level with a larger error
        low, high = self.eps[after - 1], self.eps[after]
        if low == 0 or not np.isfinite(high):
            return float(low)
        share = (cett - rising[after - 1]) / (rising[after] - rising[after - 1])
        return float(low * (high / low) ** share)

    def ratio_at(self, eps: float) -> float:
        """The share of neurons kept at a threshold, between levels by interpolation."""
        inner = slice(1, -1)
        if eps <= 0:
            return float(self.ratio[0])
        return float(np.interp(np.log(eps), np.log(self.eps[inner]), self.ratio[inner]))


class CettCurve(Statistic[CettCurveResult]):
    """The error and the share of kept neurons of one layer as a function of the threshold; mergeable.

    With the outputs ``n_i = W_out[:, i] a_i`` of a token's neurons and ``D = {i : |n_i| < eps}``, ``CETT(eps)`` is the mean
    over tokens of ``|sum_D n_i| / |sum n_i|``. Levels are fixed (24 to each power of 2 from ``2^-40`` to ``2^24``), so that
    curves of any data merge. A neuron whose output is exactly zero never counts as kept.

    Args:
        weight: the output projection ``(out, unit)``.

    Cost: 4 multiply-adds for each weight and token, whatever the number of levels; memory 24 KiB for the levels and a copy
    of the weight. Raises InputError for a weight that is not a finite matrix, and for batches of other width.
    """

    _options = ("weight",)
    _fields = ("error", "kept", "n_skipped")

    def __init__(self, weight: Float[np.ndarray, "out unit"]) -> None:
        super().__init__()
        self.weight = np.array(weight)
        if self.weight.ndim != 2 or 0 in self.weight.shape or not np.isfinite(self.weight).all():
            raise InputError(f"the projection has shape {self.weight.shape}, expected finite numbers (out, unit)")
        lengths = np.linalg.norm(self.weight.astype(np.float64), axis=0)
        with np.errstate(divide="ignore"):
            self._geometry = lengths, np.log2(lengths)
        self._columns: dict[np.dtype, np.ndarray] = {}
        self._allocate(0)

    def result(self) -> CettCurveResult:
        """``CettCurveResult`` of all tokens; ``InputError`` where there were none with an output."""
        self._need_rows()
        counted = self.n_rows - self.n_skipped
        if counted == 0:
            raise InputError(
                f"the layer's output is zero for all {self.n_rows} tokens, so no error can be measured; it is dead"
            )
        levels = np.exp2((np.arange(LEVELS) + FIRST) / PER_OCTAVE)
        error = np.cumsum(self.error) / counted
        kept = np.cumsum(self.kept) / (self.n_rows * self.weight.shape[1])
        return CettCurveResult(
            np.concatenate([[0.0], levels, [np.inf]]),
            np.concatenate([[0.0], error[:-1], [1.0]]),
            np.concatenate([kept[:1], kept[:-1], [0.0]]),
            self.n_rows,
            self.n_skipped,
        )

    def columns(self, dtype: np.dtype) -> Float[np.ndarray, "unit out"]:
        """The weight's columns in the precision of the rows, each in one piece of memory."""
        if dtype not in self._columns:
            self._columns[dtype] = np.ascontiguousarray(self.weight.T.astype(dtype))
        return self._columns[dtype]

    def _allocate(self, n_units: int) -> None:
        self.error, self.kept, self.n_skipped = np.zeros(LEVELS + 1), np.zeros(LEVELS + 1, np.int64), 0

    def _check(self, batch: Batch) -> None:
        super()._check(batch)
        if batch.n_units != self.weight.shape[1]:
            raise InputError(
                f"the activations have {batch.n_units} units and the projection {self.weight.shape[1]}; give the tensor "
                "that the projection reads"
            )

    def _begin(self, batch: Batch, n_workers: int) -> BlockPass:
        return _CurvePass(self, batch)

    def _merge(self, other: Self) -> None:
        self.error, self.kept = self.error + other.error, self.kept + other.kept
        self.n_skipped += other.n_skipped


class _CurvePass(BlockPass):
    """Sums are kept for each block and added in their order, so that the number of threads changes no bit."""

    def __init__(self, curve: CettCurve, batch: Batch) -> None:
        self.curve, self.rows = curve, batch.rows
        self.columns = curve.columns(batch.rows.dtype)
        self.blocks: list[tuple[int, int]] = [(0, 0)] * n_blocks(batch)
        self.found: list[tuple[np.ndarray, np.ndarray, int] | None] = [None] * n_blocks(batch)

    def block(self, worker: int, index: int, start: int, stop: int) -> None:
        self.blocks[index] = start, stop

    def finish(self, worker: int, n_workers: int) -> None:
        lengths, log_lengths = self.curve._geometry
        n_units, width = self.columns.shape
        scratch = np.empty(width, self.columns.dtype)
        bucket_of, order = np.empty(n_units, np.int64), np.empty(n_units, np.int64)
        for index in range(worker, len(self.blocks), n_workers):
            error, kept = np.zeros(LEVELS + 1), np.zeros(LEVELS + 1, np.int64)
            skipped = dropped_errors(
                self.rows, *self.blocks[index], self.columns, lengths, log_lengths, FIRST, PER_OCTAVE, error, kept,
                scratch, bucket_of, order,
            )  # fmt: skip
            self.found[index] = error, kept, skipped

    def commit(self) -> None:
        for found in self.found:
            assert found is not None
            self.curve.error += found[0]
            self.curve.kept += found[1]
            self.curve.n_skipped += found[2]
