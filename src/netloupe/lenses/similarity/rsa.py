"""Representational similarity analysis: do two sites find the same pairs of samples far apart?

Source: Kriegeskorte, Mur and Bandettini (2008), doi 10.3389/neuro.06.004.2008; Lampinen, Chan and Hermann, arXiv
2405.05847, show that it mostly compares the features which take much variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import squareform
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.rows import Rows, as_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_SAMPLES = 2048
Metric = Literal["euclidean", "correlation"]


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


def rdm(
    features: Float[Tensor, "sample unit"] | Any, metric: Metric = "euclidean"
) -> Float[np.ndarray, "sample sample"]:
    """Table of distances between samples, float64 with a zero diagonal.

    ``euclidean``: ``|x_i - x_j|``. ``correlation``: 1 less the Pearson correlation of two samples over units.

    Args:
        features: ``(sample, unit)``, at most 2,048 samples.

    Cost: O(n^2 d) as one matrix product, O(n^2) memory. Raises InputError for another metric, more samples, one sample, or
    (``correlation``) a sample whose units are all equal.
    """
    return _table(as_rows(features, ndim=(2,), min_samples=2), metric)


def _table(rows: Rows, metric: str) -> Float[np.ndarray, "sample sample"]:
    if metric not in ("euclidean", "correlation"):
        raise InputError(f"metric is '{metric}', expected 'euclidean' or 'correlation'")
    x = rows.array(MAX_SAMPLES, "a table of distances").double().numpy()
    if metric == "euclidean":
        x = x - x.mean(0)  # a large offset would cost digits in the inner products
        lengths = np.einsum("nd,nd->n", x, x)
        table = x @ x.T
        table *= -2
        table += lengths
        table += lengths[:, None]
        _mend(table, x, 1e-8 * float(lengths.max()))
        np.sqrt(table, out=table)
    else:
        x = x - x.mean(1, keepdims=True)
        lengths = np.linalg.norm(x, axis=1)
        if lengths.min() <= 1e-14 * max(lengths.max(), 1e-300):
            raise InputError(
                "a sample has the same value in all units, so its correlation is not defined; use 'euclidean'"
            )
        x /= lengths[:, None]
        table = 1 - x @ x.T
    np.fill_diagonal(table, 0)
    return table


def _mend(squares: np.ndarray, x: np.ndarray, below: float) -> None:
    """Small squared distances again from differences: as inner products they have lost their digits."""
    small = squares <= below
    for i in np.flatnonzero(small.sum(1) > 1):  # every sample is near itself
        near = np.flatnonzero(small[i])
        squares[i, near] = ((x[near] - x[i]) ** 2).sum(1)
    np.fill_diagonal(squares, 0)


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
    """Spearman's correlation of the upper triangles of two tables of distances (:func:`rdm`); ties share their mean rank.

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
    a, b = (_ranks(squareform(_table(rows, metric), checks=False)) for rows in (x, y))
    sums = [float(np.dot(*pair)) for pair in ((a, a), (b, b), (a, b))]
    correlation = sums[2] / np.sqrt(sums[0] * sums[1])
    return RSA(float(np.clip(correlation, -1, 1)), _jackknife(a, b, n, sums), _binned(a, b), n, context=Context())


def _ranks(distances: np.ndarray) -> np.ndarray:
    """Centred ranks. Equal distances that differ by rounding are one rank, else a turn of the axes would reorder them.

    A pair's number is packed below its distance (in units of 1e-10 of the largest), so that one sort of integers gives the
    order: several times faster than sorting floats by index.
    """
    largest, bits = float(distances.max()), len(distances).bit_length()
    if not largest > 0:
        raise InputError("all samples are equally far apart, so there is no order of pairs to compare")
    keys = np.rint(distances * (1e10 / largest)).astype(np.int64)
    keys <<= bits
    keys |= np.arange(len(keys))
    keys.sort()
    order = keys & ((1 << bits) - 1)
    keys >>= bits
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    if len(first) == 1:
        raise InputError("all samples are equally far apart, so there is no order of pairs to compare")
    ranks = np.empty(len(keys))
    if len(first) == len(keys):
        ranks[order] = np.arange(len(keys)) - (len(keys) - 1) / 2
    else:
        sizes = np.diff(first, append=len(keys))
        ranks[order] = np.repeat(first + (sizes - len(keys)) / 2, sizes)
    return ranks


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
