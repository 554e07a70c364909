"""Canonical correlations and Procrustes: can one site be turned into the other by a linear map, or by a rotation?

Source: Raghu et al., arXiv 1706.05806 (SVCCA); Morcos, Raghu and Bengio, arXiv 1806.05759 (projection weights); Williams et
al., arXiv 2110.14739 (Procrustes as a distance between representations).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from netloupe.core.alignment import paired_rows
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.statistics import CrossCovariance, CrossCovarianceResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANK = 1e-10  # directions with less than this share of the largest variance are rounding
KEPT = 0.99  # share of variance that SVCCA keeps


@dataclass(frozen=True, eq=False)
class CCA(Finding):
    """Canonical correlations of two sites, after each was cut to the principal directions with 99 % of its variance.

    ``correlations`` fall from the first pair of directions on. ``mean`` is their mean (SVCCA), ``weighted`` their mean weighted
    by how much of the first site each direction accounts for (projection weights), ``mean_squared`` the mean share
    of variance explained; ``chance`` is what ``mean_squared`` is on average for unrelated sites of these sizes.
    """

    correlations: Float[np.ndarray, " direction"]
    mean: float
    weighted: float
    mean_squared: float
    chance: float
    n_samples: int
    n_kept: tuple[int, int]

    meanings: ClassVar[dict[str, str]] = {
        "svcca": "mean correlation of matched directions, 1 where a linear map takes one site to the other",
        "r_squared": "mean squared correlation of matched directions",
        "r_squared_chance": "what the mean squared correlation is on average for unrelated sites of these sizes",
    }

    def summary(self) -> dict[str, float]:
        """``svcca``, ``r_squared`` and its chance level."""
        return {"svcca": self.mean, "r_squared": self.mean_squared, "r_squared_chance": self.chance}

    def plot(self, axes: Axes) -> None:
        """The correlations in order, with the chance level."""
        axes.plot(np.arange(1, len(self.correlations) + 1), self.correlations, "o-", markersize=3)
        axes.axhline(np.sqrt(self.chance), color="0.6", linestyle="--", linewidth=1)
        axes.set(xlabel="pair of directions", ylabel="canonical correlation", ylim=(0, 1.02))


@dataclass(frozen=True, eq=False)
class Procrustes(Finding):
    """How well a rotation (with one scale) lays one site over the other; ``angle`` is ``arccos(similarity)`` in radians."""

    similarity: float
    angle: float
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "procrustes": "agreement after the best rotation and scale, 1 for the same shape and 0 for nothing in common",
        "angle": "angle between the two shapes in radians, a true distance",
    }

    def summary(self) -> dict[str, float]:
        """``procrustes`` and ``angle``."""
        return {"procrustes": self.similarity, "angle": self.angle}

    def plot(self, axes: Axes) -> None:
        """The similarity on the scale from 0 to 1."""
        axes.barh(["procrustes"], [self.similarity])
        axes.set(xlim=(0, 1), xlabel="similarity after the best rotation")


@lens(
    question="Does a linear map take one site, or network, to the other?",
    needs=("features", "other"),
    pooled=True,
    min_samples=4,
    invariances=("unit permutation", "sample permutation", "rotation", "scale", "translation"),
)
def cca(features: Float[Tensor, "sample unit"] | Any, other: Float[Tensor, "sample unit_other"] | Any) -> CCA:
    """Singular values of ``Sxx^-1/2 Sxy Syy^-1/2`` within the directions that hold 99 % of each site's variance.

    Mean squared correlations of unrelated sites are ``max(p, q) / (n - 1)`` on average for p and q kept directions,
    so that few samples make everything look alike; the chance level stands beside the number.

    Args:
        features, other: ``(sample, unit)`` of the same samples, any widths.

    Cost: O(n (d1 + d2)^2 + d^3) time and O((d1 + d2)^2) memory; n may exceed memory. Raises InputError for other shapes,
    different numbers of samples, a site that does not vary, or fewer samples than the kept directions of
    both sites together.
    """
    found = _moments(features, other)
    one, two = (white(scatter, KEPT) for scatter in _own(found))
    made = canonical(one, two, found.scatter, found.count)
    squared = float((made.correlations**2).mean())
    chance = min(1.0, max(one.rank, two.rank) / (found.count - 1))
    return CCA(
        made.correlations, float(made.correlations.mean()), projection_weighted(made, one), squared, chance, found.count,
        (one.rank, two.rank), context=Context(),
    )  # fmt: skip


@lens(
    question="Does a rotation take one site, or network, to the other?",
    needs=("features", "other"),
    pooled=True,
    min_samples=2,
    invariances=("unit permutation", "sample permutation", "rotation", "scale", "translation"),
)
def procrustes(
    features: Float[Tensor, "sample unit"] | Any, other: Float[Tensor, "sample unit_other"] | Any
) -> Procrustes:
    """``|X'Y|_* / (|X|_F |Y|_F)`` of centred sites: the cosine between them after the best rotation (nuclear norm).

    The narrower site is padded with zeros, which changes nothing. For few samples the number is too high.

    Args:
        features, other: ``(sample, unit)`` of the same samples, any widths.

    Cost: O(n d1 d2 + d^3) time and O(d1 d2) memory; n may exceed memory. Raises InputError for other shapes, different
    numbers of samples, or a site that does not vary.
    """
    found = _moments(features, other, own=False)
    both = np.sqrt(found.squares_a.sum() * found.squares_b.sum())
    if not both > 0:
        raise InputError("a representation is the same for every sample, so there is no shape to compare")
    similarity = min(1.0, float(np.linalg.svd(found.scatter, compute_uv=False).sum() / both))
    return Procrustes(similarity, float(np.arccos(similarity)), found.count, context=Context())


class White(NamedTuple):
    """Directions of a site in which it has unit variance: ``axes`` ``(unit, direction)`` with ``axes' S axes = 1``."""

    axes: Float[np.ndarray, "unit direction"]
    scatter: Float[np.ndarray, "unit unit"]

    @property
    def rank(self) -> int:
        """How many directions."""
        return self.axes.shape[1]


class Canonical(NamedTuple):
    """Canonical correlations and the directions of both sites, ``(unit, pair)``, that have them."""

    correlations: Float[np.ndarray, " pair"]
    axes_a: Float[np.ndarray, "unit_a pair"]
    axes_b: Float[np.ndarray, "unit_b pair"]


def white(scatter: Float[np.ndarray, "unit unit"], kept: float = 1.0) -> White:
    """Whitened principal directions with a share ``kept`` of the variance; those that are rounding are dropped."""
    values, vectors = np.linalg.eigh(scatter)
    values, vectors = values[::-1], vectors[:, ::-1]
    if not values[0] > 0:
        raise InputError("a representation is the same for every sample, so its similarity to another is not defined")
    sound = int((values > RANK * values[0]).sum())
    needed = int(np.searchsorted(np.cumsum(values[:sound]), kept * values[:sound].sum() * (1 - 1e-12))) + 1
    n = min(sound, needed)
    return White(vectors[:, :n] / np.sqrt(values[:n]), scatter)


def canonical(one: White, two: White, cross: Float[np.ndarray, "unit_a unit_b"], n_samples: int) -> Canonical:
    """Canonical correlations from whitened sites and their cross-scatter. InputError where the directions of both sites
    together are as many as the samples: then some correlate fully by counting alone."""
    if one.rank + two.rank > n_samples - 1:
        raise InputError(
            f"there are {n_samples} samples for {one.rank} and {two.rank} directions, some of which correlate fully by counting "
            "alone; give more samples than both together"
        )
    left, values, right = np.linalg.svd(one.axes.T @ cross @ two.axes, full_matrices=False)
    return Canonical(np.clip(values, 0, 1), one.axes @ left, two.axes @ right.T)


def projection_weighted(found: Canonical, one: White) -> float:
    """Mean correlation with the weights ``sum_j |<X u_i, x_j>|`` of the first site's units ``x_j``."""
    weights = np.abs(one.scatter @ found.axes_a).sum(0)
    return float((weights * found.correlations).sum() / weights.sum())


def _own(found: CrossCovarianceResult) -> tuple[np.ndarray, np.ndarray]:
    assert found.scatter_a is not None  # asked for with own=True
    assert found.scatter_b is not None
    return found.scatter_a, found.scatter_b


def _moments(features: Any, other: Any, own: bool = True) -> CrossCovarianceResult:
    x, y = paired_rows(features, other, min_samples=2)
    joint = CrossCovariance(own=own)
    for one, two in zip(x, y, strict=True):
        joint.update(one.values, two.values)
    return joint.result()
