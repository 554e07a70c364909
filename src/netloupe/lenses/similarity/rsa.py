"""Representational similarity analysis: do two sites find the same pairs of samples far apart?

Source: Kriegeskorte, Mur and Bandettini (2008), doi 10.3389/neuro.06.004.2008; Lampinen, Chan and Hermann, arXiv
2405.05847, show that it mostly compares the features which take much variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import squareform
from torch import Tensor

from netloupe.core.dissimilarity import Metric, average_ranks, dissimilarity_of_rows
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_SAMPLES = 2048


@dataclass(frozen=True, eq=False)
class RSA(Finding):
    """Rank correlation of two tables of distances; ``quantiles`` ``(2, 64)`` are mean ranks (0 to 1) of the pairs in 64
    bins by the first site's distance: the first site's, and the second's."""

    correlation: float
    standard_error: float
    quantiles: Float[np.ndarray, "site bin"]
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "rsa": "rank correlation of the two sites' distances between samples, 1 for the same order",
        "standard_error": "its standard error over samples",
    }

    def summary(self) -> dict[str, float]:
        """``rsa`` and its ``standard_error``."""
        return {"rsa": self.correlation, "standard_error": self.standard_error}

    def paragraph(self) -> str:
        """The answer in plain words."""
        return (
            f"Pairs of samples that are far apart at one site are so at the other with a rank correlation of {self.correlation:.3f} "
            f"(standard error {self.standard_error:.2g}, {self.n_samples} samples). It speaks of features with much variance."
        )

    def plot(self, axes: Axes) -> None:
        """The second site's mean rank against the first's."""
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axes.plot(*self.quantiles, "o-", markersize=3)
        axes.set(xlabel="rank of distance, first site", ylabel="mean rank, second site", xlim=(0, 1), ylim=(0, 1))


@lens(
    question="Do two sites, or two networks, find the same pairs of samples far apart?",
    needs=("features", "other"),
    pooled=True,
    min_samples=4,
    limit=MAX_SAMPLES,
    invariances=("unit permutation", "sample permutation", "rotation", "scale", "translation"),
)
def rsa(
    features: Float[Tensor, "sample unit"] | Any,
    other: Float[Tensor, "sample unit_other"] | Any,
    *,
    metric: Metric = "euclidean",
) -> RSA:
    """Spearman's correlation of the upper triangles of two tables of distances
    (:func:`~netloupe.core.dissimilarity.dissimilarity`); ties share their mean rank.

    The standard error is the jackknife over samples with ranks held fixed. ``correlation`` in place of ``euclidean`` is
    not invariant to rotation or translation.

    Args:
        features, other: ``(sample, unit)`` of the same samples, any widths.

    Cost: O(n^2 (d + log n)) time, O(n^2) memory; it holds all pairs and takes at most 2,048 samples. Raises InputError
    for more, fewer than 4, different numbers of samples, or distances that are all equal.
    """
    x, y = (as_rows(each, ndim=(2,), min_samples=4) for each in (features, other))
    if x.n_samples != y.n_samples:
        raise InputError(
            f"features have {x.n_samples} samples and other {y.n_samples}; the same samples are needed in both"
        )
    n = x.n_samples
    a, b = (_ranks(dissimilarity_of_rows(rows, metric, MAX_SAMPLES)) for rows in (x, y))
    sums = [float(np.dot(*pair)) for pair in ((a, a), (b, b), (a, b))]
    correlation = sums[2] / np.sqrt(sums[0] * sums[1])
    return RSA(float(np.clip(correlation, -1, 1)), _jackknife(a, b, n, sums), _binned(a, b), n, context=Context())


def _ranks(distances: np.ndarray) -> np.ndarray:
    """Centred ranks."""
    return average_ranks(distances) - (len(distances) + 1) / 2


def _jackknife(a: np.ndarray, b: np.ndarray, n: int, sums: list[float]) -> float:
    """Each sample's pairs taken out of the sums in turn."""
    x, y = squareform(a), squareform(b)
    pairs = (n - 1) * (n - 2) / 2
    mean_a, mean_b = -x.sum(1) / pairs, -y.sum(1) / pairs
    aa, bb, ab = (
        total - np.einsum("ij,ij->i", *pair) for total, pair in zip(sums, ((x, x), (y, y), (x, y)), strict=True)
    )
    spread = (aa - pairs * mean_a**2) * (bb - pairs * mean_b**2)
    left = (ab - pairs * mean_a * mean_b) / np.sqrt(np.maximum(spread, np.finfo(float).tiny))
    return float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum()))


def _binned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    place = ((a / len(a) + 0.5) * 64).astype(np.int64)
    counts = np.bincount(place, minlength=64)
    sums = [np.bincount(place, side, 64)[counts > 0] for side in (a, b)]
    return np.stack(sums) / counts[counts > 0] / len(a) + 0.5
