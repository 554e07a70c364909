"""Which groups of units fire together, asked of one site.

Source: arXiv 2506.10920; the factorisation is :class:`netloupe.lenses.dictionary.snmf.SemiNMF`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.finding import Finding, Place
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.lenses.dictionary.score import neurons_for
from netloupe.lenses.dictionary.snmf import SemiNMF

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_FEATURES, N_TOP = 16, 25


@dataclass(frozen=True, eq=False)
class NeuronGroups(Finding):
    """Groups of units and the samples that fire them.

    ``directions`` float64 ``(feature, unit)``, the feature that explains most first. ``importance`` ``(feature,)``: squared length of
    its part of the reconstruction over the sum of squares. ``samples``, ``strengths`` ``(feature, rank)``: the samples that fire it
    most, and how much (times the direction's length); -1 and 0 where no more fire it.
    """

    directions: Float[np.ndarray, "feature unit"]
    importance: Float[np.ndarray, " feature"]
    samples: Int[np.ndarray, "feature rank"]
    strengths: Float[np.ndarray, "feature rank"]
    reconstructed: float
    sparsity: float
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "reconstructed": "share of the activations' sum of squares that the groups reproduce",
        "units_per_group": "units that hold nine tenths of a group's squared length, median over groups",
        "largest_importance": "sum of squares of the strongest group alone, as a share of the activations'",
        "largest_overlap": "largest share of units that two groups have in common, of the smaller of the two",
        "groups": "groups that were asked for",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        support = (self.directions != 0).astype(float)
        shared, sizes = support @ support.T, np.maximum(support.sum(1), 1)
        shared = shared / np.minimum(sizes[:, None], sizes)
        np.fill_diagonal(shared, 0)
        found = (
            self.reconstructed, np.median(neurons_for(self.directions)), self.importance.max(), shared.max(), len(self.directions),
        )  # fmt: skip
        return dict(zip(self.meanings, map(float, found), strict=True))

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        best = np.flatnonzero(self.directions[0])
        best = best[np.argsort(-np.abs(self.directions[0, best]))][:4]
        return (
            f"{len(self.directions)} groups of {found['units_per_group']:.0f} units (median) reproduce "
            f"{100 * self.reconstructed:.0f} % of the sum of squares on {self.n_samples} samples. The strongest is units "
            f"{', '.join(map(str, best))}, most for samples {', '.join(str(s) for s in self.samples[0, :3] if s >= 0)}. Another "
            "start may find other groups; those that several starts find are to be trusted."
        )

    def places(self) -> list[Place]:
        """The heaviest unit of each group in the sample that fires it most."""
        return [
            Place(float(s[0] * f[i] / np.linalg.norm(f)), int(n[0]), 0, i)
            for f, n, s in zip(self.directions, self.samples, self.strengths, strict=True)
            if n[0] >= 0 and (i := int(np.abs(f).argmax())) >= 0
        ][:8]

    def plot(self, axes: Axes) -> None:
        """Importance of each group, with its heaviest unit."""
        order = np.arange(len(self.importance))
        axes.bar(order, self.importance, color="C0")
        names = [str(int(np.abs(f).argmax())) for f in self.directions]
        axes.set_xticks(order, names, fontsize="x-small")
        axes.set(xlabel="heaviest unit of each group", ylabel="share of the sum of squares")


@lens(
    question="Which groups of units fire together, and on which inputs?",
    needs=("features",),
    pooled=True,
    min_samples=2,
)
def neuron_groups(
    features: Float[Tensor, "sample unit"] | Any,
    n_features: int | None = None,
    sparsity: float | None = None,
    max_iter: int = 100,
    random_state: int = 0,
) -> NeuronGroups:
    """Semi-NMF of a site: each group is a few units with signs, each sample a non-negative sum of groups.

    Args:
        features: ``(sample, unit)``, best after a nonlinearity; more samples than units.
        n_features: groups, default 16 or the largest number that the data determine. sparsity: share of the units that a group
            keeps, default .01 and at least one unit. max_iter: iterations from the singular vectors. random_state: of the start.

    Cost: O(n d k) an iteration; the activations are read once each, so recordings larger than memory are fine. Raises InputError
    for activations that are all 0 and sizes that make no sense, NonFiniteError for NaN.
    """
    rows = as_rows(features, ndim=(2,), min_samples=2)
    k = min(N_FEATURES, rows.n_samples, rows.n_units) if n_features is None else n_features
    share = max(0.01, 1 / rows.n_units) if sparsity is None else sparsity
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a site of few samples is said in the answer's n_samples
        model = SemiNMF(k, sparsity=share, init="svd", max_iter=max_iter, seed=random_state).fit(rows)
    lengths = np.linalg.norm(model.directions_, axis=1)
    strengths = model.codes_ * lengths
    squares = (strengths**2).sum(0)
    order = np.argsort(-squares, kind="stable")
    top = np.argsort(-strengths[:, order], axis=0, kind="stable")[: min(N_TOP, rows.n_samples)].T
    found = np.take_along_axis(strengths[:, order].T, top, axis=1)
    fires = found > 1e-6 * max(float(found.max()), 1e-300)
    return NeuronGroups(
        model.directions_[order], squares[order] / model.total_, np.where(fires, top, -1), np.where(fires, found, 0.0),
        1 - model.relative_error_, share, rows.n_samples,
    )  # fmt: skip
