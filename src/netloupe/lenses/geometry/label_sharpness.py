"""How close can samples with different labels be: the label sharpness of a data set, or of a layer.

Source: Konz and Mazurowski, "The Effect of Intrinsic Dataset Properties on Generalization: Unraveling Learning Differences
Between Natural and Medical Images", arXiv 2401.08865. Built from the formula; the published function pairs samples otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial.distance import pdist
from torch import Tensor

from netloupe.core.dissimilarity import dissimilarity
from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_SAMPLES = 1000
MOST_SAMPLES = 8000
"""every pair is held for the quantiles"""
QUANTILES = (0.5, 0.9, 0.99, 0.999)
_METRICS: dict[str, Any] = {"l2": "euclidean", "l1": "cityblock", "linf": "chebyshev"}
Metric = Literal["l2", "l1", "linf"]


@dataclass(frozen=True, eq=False)
class LabelSharpness(Finding):
    """The largest ``|y_j - y_k| / |x_j - x_k|`` of any two samples, and where it is.

    ``quantiles`` ``(quantile, 2)``: level and value over pairs with different labels. ``pair``: the two samples.
    ``without_pair``: the maximum when both are left out. ``half``: mean of the maxima of two random halves of the samples.
    ``relative``: median distance of differently labelled samples over that of the pair, which does not change with scale.
    ``n_equal``: differently labelled pairs without a distance beyond rounding, which are left out. ``low, high``: range of the values.
    """

    sharpness: float
    quantiles: np.ndarray
    pair: tuple[int, int]
    without_pair: float
    half: float
    relative: float
    n_equal: int
    n_samples: int
    metric: str
    low: float
    high: float

    meanings: ClassVar[dict[str, str]] = {
        "sharpness": "largest change of the label per unit of distance between any two samples",
        "without_pair": "the same without the two samples that set it",
        "half_the_samples": "the same of half as many samples, on average: a maximum grows with their number",
        "upper_permille": "what one in a thousand differently labelled pairs exceeds",
        "relative": "how many times nearer these two samples are than differently labelled ones usually",
        "equal_pairs": "pairs with different labels and no distance at all, which are left out",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        return {
            "sharpness": self.sharpness,
            "without_pair": self.without_pair,
            "half_the_samples": self.half,
            "upper_permille": float(self.quantiles[-1, 1]),
            "relative": self.relative,
            "equal_pairs": float(self.n_equal),
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        equal = f" {self.n_equal} pairs with different labels are identical and were left out." if self.n_equal else ""
        return (
            f"The label changes by {self.sharpness:.3g} per unit of distance where it is sharpest, between samples {self.pair[0]} and "
            f"{self.pair[1]} ({self.n_samples} samples; {self.without_pair:.3g} without these two, {self.half:.3g} with half as many "
            f"samples). These two are {self.relative:.3g} times nearer than differently labelled samples usually are.{equal} "
            "Compare only at equal scale and number of samples."
        )

    def plot(self, axes: Axes) -> None:
        """Quantiles over pairs, with the maximum."""
        axes.plot(
            -np.log10(1 - self.quantiles[:, 0]), self.quantiles[:, 1], "o-", color="C0", label="quantiles of pairs"
        )
        axes.axhline(self.sharpness, color="C1", label=f"maximum {self.sharpness:.3g}")
        axes.axhline(self.without_pair, color="C1", linestyle=":", label=f"without that pair {self.without_pair:.3g}")
        axes.set(xlabel="one pair in 10^x exceeds it", ylabel="change of label per distance", ylim=(0, None))
        axes.legend(frameon=False, fontsize="small")


@lens(
    question="How close can samples with different labels be?",
    needs=("features", "labels"),
    pooled=True,
    min_samples=4,
    invariances=("unit permutation", "rotation", "translation"),
)
def label_sharpness(
    features: Float[Tensor, "sample unit"] | Any,
    labels: Int[Any, " sample"] | Any,
    n_samples: int = N_SAMPLES,
    quantile: float | tuple[float, ...] | None = None,
    metric: Metric = "l2",
    seed: int = 0,
    *,
    numeric: bool = False,
) -> LabelSharpness:
    """``K_F = max_{j,k} |y_j - y_k| / |x_j - x_k|`` over all pairs of at most ``n_samples`` samples drawn at random.

    For classes the numerator is 1 where labels differ (arXiv 2401.08865). ``K_F`` scales as one over the scale of the values,
    and as an extreme value it rises with the number of samples, while one mislabelled near-duplicate sets it: fix both, and
    read the quantiles and the pair.

    Args:
        features: ``(sample, unit)``; flatten images first. labels: ``(sample,)`` whole numbers; with ``numeric`` any.
        n_samples: drawn from more, 1,000 as published. seed: of the draw and of the halves.
        quantile: levels over pairs with different labels; by default 0.5, 0.9, 0.99, 0.999.
        metric: ``l2``, ``l1`` or ``linf``. numeric: labels are amounts, and ``|y_j - y_k|`` is the numerator.

    Pairs nearer than rounding, ``4 eps max|x| sqrt(d)``, count as identical: they are left out and counted.

    Cost: O(M^2 d) time and 40 M^2 bytes for M samples. Raises InputError for a single class, another metric, levels outside (0, 1), or
    pairs that are all identical; NonFiniteError for NaN.
    """
    levels = QUANTILES if quantile is None else tuple(np.atleast_1d(quantile).tolist())
    if (
        metric not in _METRICS
        or not 4 <= n_samples <= MOST_SAMPLES
        or not levels
        or not all(0 < level < 1 for level in levels)
    ):
        raise InputError(
            f"metric is '{metric}', n_samples {n_samples}, quantiles {levels}; expected l2, l1 or linf, 4 to "
            f"{MOST_SAMPLES}, and levels in (0, 1)"
        )
    rows = as_rows(features, None if numeric else labels, ndim=(2,), min_samples=4)
    amounts = _amounts(labels, rows.n_samples) if numeric else rows.labels
    if amounts is None:
        raise InputError("no labels were given, but how close different labels come is asked; pass labels")
    chosen = np.sort(np.random.default_rng(seed).permutation(rows.n_samples)[:n_samples])
    x = np.concatenate([b.values[chosen[(chosen >= int(b.samples[0])) & (chosen <= int(b.samples[-1]))] - int(b.samples[0])]
                        .detach().cpu().double().numpy() for b in rows])  # fmt: skip
    y = amounts.cpu().numpy()[chosen].astype(np.float64)
    if (y == y[0]).all():
        raise InputError("all samples drawn have one label, so no two differ; give at least two classes")
    single = torch.as_tensor(rows.source[:1]).dtype != torch.float64
    rounding = 4 * float(np.finfo(np.float32 if single else np.float64).eps)
    return _pairs(x, y, chosen, sorted(levels), metric, seed, numeric, rounding)


def _amounts(labels: Any, n: int) -> Tensor:
    found = torch.as_tensor(labels).double()
    if found.shape != (n,) or not bool(torch.isfinite(found).all()):
        raise InputError(f"labels have shape {tuple(found.shape)}, expected one finite amount for each of {n} samples")
    return found


def _pairs(
    x: np.ndarray,
    y: np.ndarray,
    chosen: np.ndarray,
    levels: list[float],
    metric: Metric,
    seed: int,
    numeric: bool,
    rounding: float,
) -> LabelSharpness:
    """All pairs."""
    n = len(x)
    distance = dissimilarity(x, max_samples=MOST_SAMPLES) if metric == "l2" else pdist(x, _METRICS[metric])
    one, two = pair_index_of(n)
    change = np.abs(y[one] - y[two])
    distance[distance <= rounding * float(np.abs(x).max()) * x.shape[1] ** 0.5] = 0.0
    differs = np.flatnonzero(change) if numeric else np.flatnonzero(y[one] != y[two])
    equal = int((distance[differs] == 0).sum())
    differs = differs[distance[differs] > 0]
    if not len(differs):
        raise InputError("samples with different labels are all identical, so no distance is left; check the data")
    one, two, distance = one[differs], two[differs], distance[differs]
    ratio = (change[differs] if numeric else 1.0) / distance
    top = int(ratio.argmax())
    rest = ~(np.isin(one, (one[top], two[top])) | np.isin(two, (one[top], two[top])))
    half = np.random.default_rng(seed + 1).permutation(n) % 2
    halves = [ratio[(half[one] == side) & (half[two] == side)].max(initial=0.0) for side in (0, 1)]
    return LabelSharpness(
        float(ratio[top]), np.stack([levels, np.quantile(ratio, levels)], 1), (int(chosen[one[top]]), int(chosen[two[top]])),
        float(ratio[rest].max(initial=0.0)), float(np.mean(halves)), float(np.median(distance) / distance[top]), equal, n, metric,
        float(x.min()), float(x.max()),
    )  # fmt: skip


def pair_index_of(n: int) -> tuple[np.ndarray, np.ndarray]:
    """First and second sample of every pair, in the order of condensed distances."""
    counts = np.arange(n - 1, 0, -1)
    first = np.repeat(np.arange(n - 1), counts)
    return first, np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts) + first + 1


def compare_sharpness(found: Mapping[str, LabelSharpness]) -> dict[str, float]:
    """Sharpness by name, with a warning where data sets are not on one footing.

    Warns where ranges of values differ by more than a factor of two, or numbers of samples or metrics differ: then the numbers
    do not compare. Raises InputError for fewer than two.
    """
    if len(found) < 2:
        raise InputError(f"{len(found)} data sets were given, at least two are needed to compare")
    ranges = [one.high - one.low for one in found.values()]
    if max(ranges) > 2 * min(ranges):
        warnings.warn(
            f"ranges of values go from {min(ranges):.3g} to {max(ranges):.3g}: sharpness does not compare", stacklevel=2
        )
    if len({(one.n_samples, one.metric) for one in found.values()}) > 1:
        warnings.warn("numbers of samples or metrics differ: sharpness does not compare", stacklevel=2)
    return {name: one.sharpness for name, one in found.items()}
