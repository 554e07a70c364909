"""How many directions do samples really vary in: the intrinsic dimension of data, or of a layer's activations.

Estimators: maximum likelihood over k neighbours (Levina and Bickel, averaged as by MacKay and Ghahramani), TwoNN (Facco et al.,
doi 10.1038/s41598-017-11873-y) and GeoMLE (Gomtsyan et al., arXiv 1902.04404), as used by Konz and Mazurowski, "The Effect of
Intrinsic Dataset Properties on Generalization", arXiv 2401.08865.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.lens import lens
from netloupe.core.neighbours import BLOCK
from netloupe.lenses.geometry.separate_points import Duplicates, separate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

K = 20
"""neighbours of the maximum-likelihood estimate, as published"""
LIMIT = 20_000
ANCHORS = 4096
"""samples whose neighbours the lens looks up"""
Average = Literal["inverse", "mean"]
Norm = Literal["k-1", "k-2"]


@dataclass(frozen=True, eq=False)
class IntrinsicDimension(Finding):
    """An estimate with its bootstrap interval over samples (95 %; neighbours are held fixed).

    ``curve`` ``(point, 2)``: for maximum likelihood the estimate at each k from 3; for TwoNN ``log mu`` and ``-log(1 - F)`` at 64
    quantiles; for GeoMLE radius and estimate at each k. ``n_samples`` counts different samples, ``n_duplicates`` those
    removed (or moved) because another is equal. ``second`` is TwoNN's estimate where both were asked for.
    """

    value: float
    low: float
    high: float
    curve: np.ndarray
    estimator: str
    k: int
    n_samples: int
    n_units: int
    n_duplicates: int
    second: float | None = None

    meanings: ClassVar[dict[str, str]] = {
        "dimension": "estimated number of directions in which samples vary",
        "low": "lower end of its 95 % interval over samples",
        "high": "upper end of that interval",
        "twonn": "the same estimated from the two nearest neighbours alone",
        "duplicates": "samples that equal another and were left out",
        "too_few": "1 where there are too few samples for a dimension this high, so that it reads low",
    }

    @property
    def too_few(self) -> bool:
        """``n < 10 * 2**(d / 2)``: estimates saturate, the truth may be far higher."""
        return bool(self.n_samples < 10 * 2 ** (self.value / 2))

    @property
    def warning(self) -> str:
        """Why the value is to be read as a lower bound, or an empty string."""
        if not self.too_few:
            return ""
        return (
            f"{self.n_samples} samples are too few for a dimension of {self.value:.1f}: estimates saturate there, so read it as a "
            "lower bound"
        )

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        found = {"dimension": self.value, "low": self.low, "high": self.high}
        if self.second is not None:
            found["twonn"] = self.second
        return found | {"duplicates": float(self.n_duplicates), "too_few": float(self.too_few)}

    def paragraph(self) -> str:
        """The answer in plain words."""
        text = (
            f"Samples vary in about {self.value:.1f} directions (95 % interval {self.low:.1f} to {self.high:.1f}; {self.estimator}, "
            f"k = {self.k}, {self.n_samples} samples of {self.n_units} units). "
        )
        if self.second is not None:
            text += f"The two nearest neighbours alone give {self.second:.1f}. "
        if self.n_duplicates:
            text += f"{self.n_duplicates} samples equal another and were left out. "
        return text + (self.warning + "." if self.warning else "")

    def plot(self, axes: Axes) -> None:
        """The estimate against k (maximum likelihood), or the points that the slope is fitted to (TwoNN)."""
        x, y = self.curve.T
        if self.estimator.startswith("TwoNN"):
            axes.plot(x, y, "o", markersize=3, color="C0")
            axes.plot([0, x.max()], [0, self.value * x.max()], color="C1", label=f"slope {self.value:.2f}")
            axes.set(xlabel="log of second over first distance", ylabel="-log(1 - share of samples)")
        else:
            axes.plot(x, y, "o-", markersize=3, color="C0")
            axes.axhspan(self.low, self.high, color="C1", alpha=0.25, linewidth=0)
            axes.axhline(self.value, color="C1", label=f"{self.value:.2f}")
            if self.second is not None:
                axes.axhline(self.second, color="C2", linestyle="--", label=f"TwoNN {self.second:.2f}")
            axes.set(
                xlabel="distance to the k-th neighbour" if self.estimator == "GeoMLE" else "neighbours k",
                ylabel="dimension",
            )
        axes.legend(frameon=False, fontsize="small")


def mle_dimension(
    X: Float[Tensor, "sample unit"] | Any,
    k: int = K,
    average: Average = "inverse",
    norm: Norm = "k-1",
    anchors: int | Any | None = None,
    block: int = BLOCK,
    *,
    duplicates: Duplicates = "remove",
    n_boot: int = 200,
    random_state: int = 0,
) -> IntrinsicDimension:
    """Maximum likelihood over k neighbours.

    With ``T_j`` the distance to the j-th neighbour, ``inv_i = (1/m) sum_{j<k} log(T_k / T_j)`` and ``d = 1 / mean_i inv_i``
    (``inverse``) or ``mean_i 1 / inv_i`` (``mean``). The sum has expectation ``(k-1)/d`` in the Poisson limit, so ``m = k - 1`` is
    unbiased for ``inverse``, and ``m = k - 2`` for ``mean``. The published code takes ``inverse`` with ``k-2``, which reads low by
    ``(k-2)/(k-1)``, 5 % at k = 20.

    Args:
        X: ``(sample, unit)``; flatten images first. k: neighbours, 20 as published.
        anchors: samples that are asked for their neighbours: None, all; a number; or indices (of the samples that differ).
        block: most samples compared at a time.
        duplicates: what becomes of equal samples, :func:`~netloupe.lenses.geometry.separate_points.separate`.
        n_boot, random_state: of the interval.

    Returns:
        value, interval, and in ``curve`` the estimate at every k' from 3 to k.

    Cost: n^2 d / 2 multiplications, or a n d for a anchors; memory n (d + k). Raises InputError for k below 3 or not below the number
    of different samples, samples that are all equal, and what ``as_rows`` refuses; NonFiniteError for NaN.
    """
    if average not in ("inverse", "mean") or norm not in ("k-1", "k-2"):
        raise InputError(f"average is '{average}' and norm '{norm}', expected inverse or mean, and k-1 or k-2")
    _need_k(k, n_boot)
    points = separate(X, k, anchors, block, duplicates, random_state=random_state)
    logs = np.log(points.distances)
    curve = np.array([(j, _likelihood(logs, j, average, norm)[0]) for j in range(3, k + 1)])
    value, parts = _likelihood(logs, k, average, norm)
    means = _resampled_means(parts, n_boot, random_state)
    low, high = np.quantile(1 / means if average == "inverse" else means, (0.025, 0.975))
    return IntrinsicDimension(
        value,
        float(low),
        float(high),
        curve,
        "maximum likelihood",
        k,
        points.n,
        points.n_units,
        points.n_duplicates,
    )


def _need_k(k: int, n_boot: int) -> None:
    if k < 3 or n_boot < 1:
        raise InputError(f"k is {k} and n_boot {n_boot}; at least 3 neighbours and 1 draw are needed")


def _likelihood(logs: np.ndarray, k: int, average: Average, norm: Norm) -> tuple[float, np.ndarray]:
    """The estimate at k, and each anchor's part in its mean."""
    inverse = (logs[:, k - 1 : k] - logs[:, : k - 1]).sum(1) / (k - 1 if norm == "k-1" else k - 2)
    if not inverse.any():
        raise InputError(f"every sample's {k} nearest are equally far, so there is no dimension to estimate")
    if average == "inverse":
        return float(1 / inverse.mean()), inverse
    parts = 1 / np.maximum(inverse, np.finfo(float).tiny)
    return float(parts.mean()), parts


def _resampled_means(parts: np.ndarray, n_boot: int, random_state: int) -> np.ndarray:
    """Means of draws with replacement; of sorted values, so that the order of samples does not matter."""
    ordered, n = np.sort(parts), len(parts)
    return np.array([ordered[drawn].mean() for drawn in _draws(n, n_boot, random_state)])


def _draws(n: int, n_boot: int, random_state: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(random_state)
    return (generator.integers(0, n, n) for _ in range(n_boot))


def twonn_dimension(
    X: Float[Tensor, "sample unit"] | Any,
    method: Literal["regression", "mle"] = "regression",
    discard: int | float = 1,
    *,
    anchors: int | Any | None = None,
    block: int = BLOCK,
    duplicates: Duplicates = "remove",
    n_boot: int = 100,
    random_state: int = 0,
) -> IntrinsicDimension:
    """TwoNN: the ratio ``mu = T_2 / T_1`` of the two nearest distances is Pareto with exponent d.

    ``regression``: sort mu, drop the largest, and fit ``-log(1 - i/n) = d log mu_i`` by least squares through the origin.
    ``mle``: ``n / sum log mu`` (what is dropped is not used).

    Args:
        X: ``(sample, unit)``. discard: how many of the largest ratios to leave out, 1 as published; a share where below 1. With
            ``regression`` at least the largest must go, for its logarithm is infinite.
        anchors, block, duplicates, n_boot, random_state: as in :func:`mle_dimension`.

    Cost and errors as :func:`mle_dimension` with k = 2.
    """
    if method not in ("regression", "mle") or discard < 0 or n_boot < 1:
        raise InputError(
            f"method is '{method}', discard {discard}; expected regression or mle, and a number that is not negative"
        )
    points = separate(X, 2, anchors, block, duplicates, min_samples=4, random_state=random_state)
    logs = np.log(points.distances)
    value, low, high, curve = _two_nearest(logs, method, discard, n_boot, random_state)
    return IntrinsicDimension(
        value, low, high, curve, f"TwoNN, {method}", 2, points.n, points.n_units, points.n_duplicates
    )


def _two_nearest(
    logs: np.ndarray, method: str, discard: int | float, n_boot: int, random_state: int
) -> tuple[float, float, float, np.ndarray]:
    mu = np.sort(logs[:, 1] - logs[:, 0])
    n = len(mu)
    kept = n - (round(discard * n) if discard < 1 else int(discard))
    kept = min(kept, n - 1) if method == "regression" else kept
    if kept < 2 or not mu[:kept].any():
        raise InputError(
            f"{kept} of {n} samples are left with distances that differ, too few to estimate a dimension from"
        )
    height = -np.log1p(-np.arange(1, kept + 1) / n) if method == "regression" else np.ones(kept)

    def estimate(ordered: np.ndarray) -> float:
        part = ordered[:kept]
        return float(part @ height / (part @ part)) if method == "regression" else float(kept / part.sum())

    drawn = [estimate(np.repeat(mu, np.bincount(draw, minlength=n))) for draw in _draws(n, n_boot, random_state)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    shown = np.unique(np.linspace(0, min(kept, n - 1) - 1, 64).astype(int))
    curve = np.stack([mu[shown], -np.log1p(-(shown + 1) / n)], 1)
    return estimate(mu), float(low), float(high), curve


@lens(
    question="In how many directions do samples really vary?",
    pooled=True,
    min_samples=5,
    limit=LIMIT,
    invariances=("unit permutation", "sample permutation", "rotation", "scale", "translation"),
)
def intrinsic_dimension(features: Float[Tensor, "sample unit"] | Any, *, k: int = K) -> IntrinsicDimension:
    """Maximum-likelihood dimension (k neighbours, unbiased norm) with TwoNN beside it, from one search for neighbours.

    Both as in :func:`mle_dimension` and :func:`twonn_dimension` (arXiv 2401.08865). Equal samples, such as those for which a
    rectified layer is off, are left out and counted. Of few samples fewer neighbours are used.

    Args:
        features: ``(sample, unit)``: tensor, array or store.

    Cost: n^2 d / 2 multiplications up to 4,096 samples, above them 4,096 n d (the search is for so many of them); holds the samples and
    takes at most 20,000. Raises InputError for more, fewer than five different ones, or samples that are all equal; NonFiniteError for NaN.
    """
    _need_k(k, 1)
    points = separate(features, k, min_samples=5, limit=LIMIT, most_anchors=ANCHORS)
    logs = np.log(points.distances)
    used = logs.shape[1]
    value, parts = _likelihood(logs, used, "inverse", "k-1")
    low, high = np.quantile(1 / _resampled_means(parts, 200, 0), (0.025, 0.975))
    curve = np.array([(j, _likelihood(logs, j, "inverse", "k-1")[0]) for j in range(3, used + 1)])
    second = _two_nearest(logs, "regression", 1, 1, 0)[0]
    return IntrinsicDimension(
        value,
        float(low),
        float(high),
        curve,
        "maximum likelihood",
        used,
        points.n,
        points.n_units,
        points.n_duplicates,
        second,
    )
