"""Do groups of units of one site and groups of the other belong together?

Source: Li, Yosinski, Clune, Lipson and Hopcroft, arXiv 1511.07543.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.alignment import joint_moments, paired_rows
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.lenses.similarity.joint_clusters import (
    cluster_mixing,
    cluster_overlap,
    joint_spectral_clusters,
    joint_tree,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class SharedGroups(Finding):
    """Clusters over the units of two sites: ``labels_a``, ``labels_b`` (-1 for units that never vary), ``counts`` ``(cluster, 2)``.

    ``overlap``: each cluster's largest canonical correlation between its two halves (NaN where it has one). ``depth``: joins in the
    tree until a unit's branch holds both sites, units of a first; -1 for units that never vary.
    """

    labels_a: Int[np.ndarray, " unit_a"]
    labels_b: Int[np.ndarray, " unit_b"]
    counts: Int[np.ndarray, "cluster 2"]
    overlap: Float[np.ndarray, " cluster"]
    depth: Int[np.ndarray, " both"]
    shared: float
    mixing: float
    null_shared: float
    null_mixing: float
    p_value: float

    meanings: ClassVar[dict[str, str]] = {
        "mixing": "how evenly clusters of units hold both sites, 0 for sites apart and 1 for an even mix everywhere",
        "chance": "the same with the units' sites shuffled: sites that group as if they were one",
        "p_apart": "how often shuffled sites mix as little: small where the two sites keep apart",
        "shared": "share of clusters, of at least two units, that hold units of both sites",
        "clusters": "number of clusters, by the largest gap of the spectrum",
        "joins": "joins in the tree, on average, until a unit's branch holds both sites; 1 where its nearest is of the other",
    }

    def summary(self) -> dict[str, float]:
        """``mixing`` with its chance level, ``shared``, number of clusters, joins."""
        return {
            "mixing": self.mixing,
            "chance": self.null_mixing,
            "p_apart": self.p_value,
            "shared": self.shared,
            "clusters": float(len(self.counts)),
            "joins": float(self.depth[self.depth > 0].mean()),
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        together = self.overlap[~np.isnan(self.overlap)]
        spans = (
            f" Halves of shared clusters have a canonical correlation of {together.mean():.2f} on average."
            if len(together)
            else ""
        )
        return (
            f"{100 * self.shared:.0f} % of {len(self.counts)} clusters over both sites' units hold units of both; their mixing is "
            f"{self.mixing:.2f}, where units without a site of their own would reach {self.null_mixing:.2f} (p = {self.p_value:.2g} for as "
            f"little).{spans}"
        )

    def plot(self, axes: Axes) -> None:
        """Units of either site in every cluster, largest first."""
        order = np.argsort(-self.counts.sum(1), kind="stable")
        places = np.arange(len(order))
        axes.bar(places, self.counts[order, 0], label="first site")
        axes.bar(places, self.counts[order, 1], bottom=self.counts[order, 0], label="second site")
        axes.set(xlabel="cluster, largest first", ylabel="units")
        axes.legend(frameon=False, fontsize=7)


@lens(
    question="Do groups of units of one site, or network, belong together with groups of the other?",
    needs=("features", "other"),
    pooled=True,
    min_samples=4,
    invariances=("sample permutation", "scale", "translation"),
)
def shared_groups(
    features: Float[Tensor, "sample unit"] | Any,
    other: Float[Tensor, "sample unit_other"] | Any,
    *,
    k: int | None = None,
    random_state: int = 0,
) -> SharedGroups:
    """Clusters the units of both sites together by the size of their correlations and tells how far clusters are shared.

    Spectral clustering of ``|C|`` over all units (:func:`~netloupe.lenses.similarity.joint_clusters.joint_spectral_clusters`), ``k`` by
    the largest gap. A cluster with shares ``s_a``, ``s_b`` of the two sites mixes by ``2 min(s_a, s_b) / (s_a + s_b)``.

    Args:
        features, other: ``(sample, unit)`` of the same samples, any widths; or both ``(sample, position, unit)`` with the same positions.
        k: number of clusters.

    Cost: O(n (p + q)^2 + (p + q)^3); streams over samples; at most 2,048 units together. Raises InputError for other shapes, different
    samples, fewer than four, or fewer than three units that vary.
    """
    moments = joint_moments(*paired_rows(features, other, min_samples=4, ndim=(2, 3)))
    if moments.dead_a.all() or moments.dead_b.all():
        raise InputError("no unit of one site varies over the samples, so there is nothing to group")
    tables = moments.within_a, moments.between, moments.within_b
    found = joint_spectral_clusters(*tables, k=k, random_state=random_state)
    mixed = cluster_mixing(found.labels, moments.p, random_state=random_state)
    overlap = np.full(len(mixed.counts), np.nan)
    for label, values in cluster_overlap(moments, found.labels).items():
        overlap[label] = values[0]
    tree, depth = joint_tree(*tables), np.full(len(found.labels), -1)
    depth[tree.units] = tree.depth
    apart = (1 + int((mixed.null <= mixed.mixing).sum())) / (1 + len(mixed.null))
    return SharedGroups(
        found.labels[: moments.p], found.labels[moments.p :], mixed.counts, overlap, depth, mixed.shared, mixed.mixing,
        float(mixed.null_shared.mean()), float(mixed.null.mean()), apart, context=Context(seed=random_state),
    )  # fmt: skip
