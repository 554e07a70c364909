"""Geometry or topology: which distances between samples can be relied on, short ones, long ones or all?

Source: Lin and Kriegeskorte, "The Topology and Geometry of Neural Representations", arXiv 2309.11028: the family of representational
geo-topological matrices between two quantiles, its named corners, and geodesic distances. The transforms themselves are in
:mod:`netloupe.core.geotopology` and offered here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.cluster.hierarchy import linkage
from torch import Tensor

from netloupe.core.dissimilarity import dissimilarity
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.geotopology import (
    geo_topological,
    geo_topological_sigmoid,
    geodesic,
    rank_minmax,
    squashed,
)
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "CORNERS",
    "Topology",
    "corner_parameters",
    "geo_topological",
    "geo_topological_sigmoid",
    "geodesic",
    "rank_minmax",
    "region_of",
    "rgtm_family",
    "topology",
]

Corner = Literal["local", "global", "geometry", "topology", "intermediate"]
CORNERS: tuple[Corner, ...] = ("local", "global", "geometry", "topology", "intermediate")
TOLERANCE = 1e-3
MOST_SAMPLES = 512
CELLS: dict[str, tuple[float, float]] = {
    "geometry": (0.0, 1.0), "local": (0.05, 0.15), "global": (0.85, 0.95), "topology": (0.5, 0.5), "intermediate": (0.2, 0.8),
}  # fmt: skip
"""the cell that stands for each corner where one has to"""


def region_of(lower: float, upper: float) -> Corner:
    """The named corner of the triangle of quantiles that a pair lies in.

    ``local``: their mean is at most 0.2; ``global``: at least 0.8; ``geometry``: 0.8 or more apart; ``topology``: both from 0.4 to 0.6;
    ``intermediate``: the rest. In this order, to 1e-3. Raises InputError for quantiles out of order.
    """
    if not 0 <= lower <= upper <= 1:
        raise InputError(f"the quantiles are {lower} and {upper}, expected 0 <= lower <= upper <= 1")
    middle = (lower + upper) / 2
    if middle <= 0.2 + TOLERANCE:
        return "local"
    if middle >= 0.8 - TOLERANCE:
        return "global"
    if upper - lower >= 0.8 - TOLERANCE:
        return "geometry"
    return "topology" if lower >= 0.4 - TOLERANCE and upper <= 0.6 + TOLERANCE else "intermediate"


def corner_parameters(corner: Corner, n: int = 10, random_state: int = 0) -> Float[np.ndarray, "draw 2"]:
    """Quantiles drawn evenly from a corner: a parameter to average over instead of one chosen on the data.

    Two uniform numbers in order, drawn anew until they lie in the corner and their sum from 0.01 to 1.99. Raises InputError
    for an unknown corner or no draws.
    """
    if corner not in CORNERS or n < 1:
        raise InputError(
            f"{n} draws from the corner '{corner}' were asked for; at least 1 from one of {', '.join(CORNERS)} is needed"
        )
    rng = np.random.default_rng(random_state)
    found: list[np.ndarray] = []
    while len(found) < n:
        pair = np.sort(rng.random(2))
        if 0.01 < pair.sum() < 1.99 and region_of(*pair) == corner:
            found.append(pair)
    return np.stack(found)


def rgtm_family(
    values: Float[np.ndarray, " pair"], grid: Iterable[tuple[float, float]]
) -> Float[np.ndarray, "cell pair"]:
    """:func:`geo_topological` of one matrix for many pairs of quantiles; distances are ranked once.

    Raises InputError for an empty grid, quantiles out of order, or distances that are all equal.
    """
    ranks, cells = rank_minmax(values), list(grid)
    for lower, upper in cells:
        region_of(lower, upper)
    if not cells:
        raise InputError("the grid is empty, at least one pair of quantiles is needed")
    return np.stack([squashed(ranks, *levels) for levels in np.quantile(ranks, np.array(cells))])


@dataclass(frozen=True, eq=False)
class Topology(Finding):
    """How well two halves of the units agree on the distances between samples, by corner of the family; and the graph's shape.

    ``cells`` float64 ``(cell, 2)``: quantiles of ``CELLS``, ``agreement`` ``(split, cell)``: correlations, NaN where not defined.
    """

    cells: Float[np.ndarray, "cell 2"]
    agreement: Float[np.ndarray, "split cell"]
    connected_at: float
    stretch: float
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "local": "how well two halves of the units agree on who is near whom (the shortest distances), 1 for fully",
        "standard_error": "its standard error over divisions of the units",
        "geometry": "the same for all distances",
        "global": "the same for who is far from whom (the longest distances)",
        "topology": "the same for a mere yes or no: nearer than the median or not",
        "intermediate": "the same with the shortest and longest fifth of distances taken as equal",
        "stretch": "length of the way through neighbours over the straight distance, 1 for a straight line",
        "connected_at": "share of the shortest distances that joins all samples",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains, without those that are not defined."""
        known = np.asarray(np.isfinite(self.agreement).any(0))
        means = {name: np.nanmean(self.agreement[:, i]) for i, name in enumerate(CELLS) if known[i]}
        own = self.agreement[:, list(CELLS).index("local")]
        own = own[np.isfinite(own)]
        if len(own) > 1:
            means["standard_error"] = own.std(ddof=1) / np.sqrt(len(own))
        means |= {"stretch": self.stretch, "connected_at": self.connected_at}
        return {name: float(means[name]) for name in self.meanings if name in means}

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        error = f" (standard error {found['standard_error']:.2g})" if "standard_error" in found else ""
        said = [f"on the shortest distances between samples to {found['local']:.3f}{error}"] if "local" in found else []
        said += [
            f"on {words} to {found[name]:.3f}"
            for name, words in (("geometry", "all of them"), ("global", "the longest"))
            if name in found
        ]
        return (
            f"Two halves of the units agree {', '.join(said)} (correlations, {self.n_samples} samples). The way through neighbours is "
            f"{self.stretch:.2f} times the straight distance; {self.connected_at:.1%} of the shortest distances join all samples."
        )

    def plot(self, axes: Axes) -> None:
        """Agreement by corner, every division of the units a point."""
        names = list(CELLS)
        axes.barh(
            names, np.nan_to_num(np.nanmean(self.agreement, 0) if self.agreement.size else 0), color="C0", alpha=0.5
        )
        for row in self.agreement:
            axes.plot(row, np.arange(len(names)), "k.", markersize=4)
        axes.set(xlabel="agreement of two halves of the units", xlim=(min(0.0, float(np.nanmin(self.agreement))), 1.02))


@lens(
    question="Can short distances between samples be relied on, or only long ones, and how curved is their arrangement?",
    pooled=True,
    min_samples=4,
    invariances=("scale", "translation", "sample permutation"),
)
def topology(features: Float[Tensor, "sample unit"] | Any, *, n_splits: int = 8, random_state: int = 0) -> Topology:
    """Split-half agreement of the geo-topological matrices between units, and the geodesic stretch (arXiv 2309.11028).

    Units are divided into two halves at random, ``n_splits`` times; distances of each half are ranked and squashed between the
    quantiles of each corner's cell (``CELLS``), and the two are correlated. The stretch is the mean ratio of the shortest path
    through the fewest shortest distances that join all samples to the distance itself.

    Args:
        features: ``(sample, unit)``, at least two units that vary; of more than 512 samples every so manieth is looked at.
        n_splits: divisions of the units. random_state: of the divisions.

    Cost: O(s n^2 (d + log n)) for s divisions and O(n^2 log n) for the paths, n at most 512; reads all samples. Raises InputError for one
    unit, or distances that are all equal.
    """
    rows = as_rows(features, ndim=(2,), min_samples=4)
    step = -(-rows.n_samples // MOST_SAMPLES)
    chosen = [batch.values[(batch.samples % step) == 0] for batch in rows]
    x = torch.cat(chosen).double().numpy()
    x = x[:, (x != x[0]).any(0)]
    if n_splits < 1 or x.shape[1] < 2:
        raise InputError(
            f"{x.shape[1]} units vary and {n_splits} divisions were asked for; at least two units and one division are needed"
        )
    distances = dissimilarity(x)
    rng = np.random.default_rng(random_state)
    agreement = np.full((n_splits, len(CELLS)), np.nan)
    for split in range(n_splits):
        order = rng.permutation(x.shape[1])
        halves = [dissimilarity(x[:, part]) for part in np.array_split(order, 2)]
        if all(np.ptp(half) > 1e-9 * half.max() for half in halves):
            agreement[split] = _correlations(*(rgtm_family(half, CELLS.values()) for half in halves))
    longest = float(linkage(distances, "single")[-1, 2])
    share = float((distances <= longest * (1 + 1e-10)).mean())
    paths = geodesic(distances, p=share, normalise="none", rank_after=False)
    apart = distances > 1e-9 * distances.max()
    return Topology(
        np.array(list(CELLS.values())), agreement, share, float((paths[apart] / distances[apart]).mean()), len(x),
        context=Context(seed=random_state),
    )  # fmt: skip


def _correlations(one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, " cell"]:
    one, other = one - one.mean(1, keepdims=True), other - other.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
