"""Centred kernel alignment: do two sites arrange the same samples alike?

Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", arXiv 1905.00414; the debiased form
follows Song et al. (2012) and Nguyen et al., arXiv 2010.15327.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.lens import lens
from netloupe.core.rows import Rows, as_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class CKA(Finding):
    """Similarity of two representations of the same samples.

    ``biased`` is in [0, 1]; it rises towards 1 by itself when there are few samples for many units. ``debiased`` is
    the ratio of unbiased estimates (None below four samples): about 0 for unrelated representations, and it may
    be slightly negative. Both are 1 for representations equal up to rotation, scale and shift.
    """

    biased: float
    debiased: float | None
    n_samples: int
    n_units: tuple[int, int]

    meanings: ClassVar[dict[str, str]] = {
        "cka": "similarity of the two arrangements, 1 for equal up to rotation, scale and shift (debiased where it can be)",
        "cka_biased": "the same without correction for few samples; never below 0",
    }

    def summary(self) -> dict[str, float]:
        """``cka`` (debiased where there are at least four samples) and ``cka_biased``."""
        return {"cka": self.biased if self.debiased is None else self.debiased, "cka_biased": self.biased}

    def plot(self, axes: Axes) -> None:
        """Both numbers as bars on the scale from 0 to 1."""
        values = self.summary()
        axes.barh(list(values), list(values.values()), color=["C0", "C7"])
        axes.set(xlim=(min(0.0, *values.values()), 1), xlabel="centred kernel alignment")


@lens(
    question="Do two sites, or two networks, arrange the same samples alike?",
    needs=("features", "other"),
    pooled=True,
    min_samples=2,
    invariances=("unit permutation", "sample permutation", "rotation", "scale", "translation"),
)
def cka(features: Float[Tensor, "sample unit"] | Any, other: Float[Tensor, "sample unit_other"] | Any) -> CKA:
    """Linear CKA, biased and debiased, without ever forming a sample-by-sample matrix.

    With centred ``X`` and ``Y``: ``|X'Y|_F^2 / (|X'X|_F |Y'Y|_F)``. The debiased form replaces each squared norm by its
    unbiased estimate (U-centred HSIC), which also needs only covariances and the squared length of each centred sample.

    Args:
        features, other: ``(sample, unit)`` of the same samples; tensors, arrays or stored sites of any widths.

    Cost: two passes, O(n (d1 + d2)^2) time and O((d1 + d2)^2) memory (d wider than n: O(n^2 (d1 + d2)) by the Gram matrix
    of the samples instead, in memory); n may exceed memory. Raises InputError for other shapes, different
    numbers of samples, fewer than two, or a representation that does not vary.
    """
    x, y = as_rows(features, ndim=(2,), min_samples=2), as_rows(other, ndim=(2,), min_samples=2)
    if x.n_samples != y.n_samples:
        raise InputError(
            f"features have {x.n_samples} samples and other {y.n_samples}; the same samples are needed in both"
        )
    batch = min(x.batch_size, y.batch_size)
    x, y = Rows(x.source, None, None, batch), Rows(y.source, None, None, batch)
    sums = _by_gram(x, y) if x.n_samples < min(x.n_units, y.n_units) and x.n_samples <= 4096 else _by_covariance(x, y)
    if sums["xx"] <= 0 or sums["yy"] <= 0:
        raise InputError("a representation is the same for every sample, so its similarity to another is not defined")
    biased = sums["xy"] / np.sqrt(sums["xx"] * sums["yy"])
    n = x.n_samples
    debiased = None
    if n >= 4:
        products = {pair: _unbiased(sums[pair], sums["norms_" + pair], sums["trace_x"] if pair[0] == "x" else sums["trace_y"],
                                    sums["trace_y"] if pair[1] == "y" else sums["trace_x"], n) for pair in ("xy", "xx", "yy")}  # fmt: skip
        if products["xx"] > 0 and products["yy"] > 0:
            debiased = float(products["xy"] / np.sqrt(products["xx"] * products["yy"]))
    return CKA(float(min(biased, 1.0)), debiased, n, (x.n_units, y.n_units))


def _unbiased(product: float, norms: float, trace_one: float, trace_two: float, n: int) -> float:
    """``n (n - 3)`` times the unbiased HSIC of two centred linear kernels.

    With centred Gram matrices K, L (rows sum to zero) and their diagonals removed, ``tr(K~L~) = product - norms``,
    ``1'K~1 = -tr K`` and ``1'K~L~1 = norms`` (the rows of ``K~`` sum to minus its diagonal), so that
    ``tr(K~L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2 (1'K~L~1) / (n-2)`` needs no n x n matrix.
    """
    return product - norms + trace_one * trace_two / ((n - 1) * (n - 2)) - 2 * norms / (n - 2)


def _means(rows: Rows) -> tuple[np.ndarray, float]:
    total, scale = np.zeros(rows.n_units), 0.0
    for batch in rows:
        values = batch.values.double().numpy()
        total += values.sum(0)
        scale = max(scale, float(np.abs(values).max()))
    return total / rows.n_samples, scale


def _by_covariance(x: Rows, y: Rows) -> dict[str, float]:
    """Squared norms of the cross-products and sums of products of squared lengths, from a second, centred pass."""
    (mean_x, scale_x), (mean_y, scale_y) = _means(x), _means(y)
    xx, yy = np.zeros((x.n_units, x.n_units)), np.zeros((y.n_units, y.n_units))
    xy = np.zeros((x.n_units, y.n_units))
    norms = np.zeros(3)
    for one, two in zip(x, y, strict=True):
        a = (one.values.double().numpy() - mean_x) / (scale_x or 1.0)
        b = (two.values.double().numpy() - mean_y) / (scale_y or 1.0)
        xx += a.T @ a
        yy += b.T @ b
        xy += a.T @ b
        p, q = (a * a).sum(1), (b * b).sum(1)
        norms += [p @ q, p @ p, q @ q]
    return {
        "xy": float((xy * xy).sum()), "xx": _varies(float((xx * xx).sum()), x), "yy": _varies(float((yy * yy).sum()), y),
        "norms_xy": norms[0], "norms_xx": norms[1], "norms_yy": norms[2],
        "trace_x": float(np.trace(xx)), "trace_y": float(np.trace(yy)),
    }  # fmt: skip


def _by_gram(x: Rows, y: Rows) -> dict[str, float]:
    """The same sums from the centred Gram matrices of the samples: cheaper where units outnumber samples."""
    grams = []
    for rows in (x, y):
        values = rows.array().double().numpy()
        scale = float(np.abs(values).max()) or 1.0
        centred = (values - values.mean(0)) / scale
        grams.append(centred @ centred.T)
    k, l = grams
    p, q = np.diag(k), np.diag(l)
    return {
        "xy": float((k * l).sum()), "xx": _varies(float((k * k).sum()), x), "yy": _varies(float((l * l).sum()), y),
        "norms_xy": float(p @ q), "norms_xx": float(p @ p), "norms_yy": float(q @ q),
        "trace_x": float(np.trace(k)), "trace_y": float(np.trace(l)),
    }  # fmt: skip


def _varies(squared_norm: float, rows: Rows) -> float:
    """Zero where the variation is only rounding of values that are all alike."""
    rounding = rows.n_samples * np.finfo(np.float64).eps ** 2 * rows.n_units
    return 0.0 if squared_norm <= rounding**2 else squared_norm
