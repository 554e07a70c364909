"""Groups of units across two sites: do groups of one span what groups of the other span, where single units do not match?

Source: Li, Yosinski, Clune, Lipson and Hopcroft, "Convergent Learning", arXiv 1511.07543 (its many-to-many mapping).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import linalg
from scipy.cluster import hierarchy

from netloupe.core.errors import InputError
from netloupe.core.nulls import permutations
from netloupe.core.statistics import JointMoments

MAX_UNITS = 2048
N_NULL = 200
Within = Float[np.ndarray, "unit unit"]
Between = Float[np.ndarray, "unit_a unit_b"]


@dataclass(frozen=True, eq=False)
class JointLabels:
    """``labels`` ``(p + q,)``: each unit's cluster, units of a first; -1 for dead ones. ``eigenvalues``: of the Laplacian, rising,
    as many as were needed. ``k``: number of clusters, by the largest gap between eigenvalues where none was given."""

    labels: Int[np.ndarray, " both"]
    eigenvalues: Float[np.ndarray, " first"]
    k: int
    p: int


@dataclass(frozen=True, eq=False)
class JointTree:
    """``linkage``: scipy's, over the units that vary (``units``, numbered with a first). ``depth``, ``height``: for each
    of these, after how many joins and at which distance its branch first holds units of both sites; -1 and infinity for never."""

    linkage: Float[np.ndarray, "join 4"]
    units: Int[np.ndarray, " live"]
    depth: Int[np.ndarray, " live"]
    height: Float[np.ndarray, " live"]


class Mixing(NamedTuple):
    """How clusters mix two sites.

    ``counts`` ``(cluster, 2)``: units of a and of b. ``shared``: share of clusters of at least two units that hold both. ``mixing``:
    ``2 min(s_a, s_b) / (s_a + s_b)`` with a cluster's share of each site, averaged over units; 1 is an even mix. ``null``: ``mixing`` with
    the sites' names shuffled among units, ``null_shared`` likewise.
    """

    counts: Int[np.ndarray, "cluster 2"]
    shared: float
    mixing: float
    null: Float[np.ndarray, " repeat"]
    null_shared: Float[np.ndarray, " repeat"]


def joint_spectral_clusters(
    within_a: Within,
    between: Between,
    within_b: Within,
    k: int | None = None,
    max_k: int | None = None,
    random_state: int = 0,
) -> JointLabels:
    """Spectral clustering of the units of both sites on the size of their correlations.

    Affinity ``W = |C|`` without its diagonal, ``L = D^-1/2 (D - W) D^-1/2``; k-means on the rows, scaled to length 1, of the first ``k``
    eigenvectors. ``k=None``: the largest gap ``lambda_{k+1} - lambda_k`` with ``2 <= k <= max_k`` (default: half of all units).

    Args:
        within_a, between, within_b: ``(p, p)``, ``(p, q)``, ``(q, q)`` correlations, as in ``CrossMoments(...).result()``; units whose
            correlations are all 0 or NaN are dead and get no cluster.

    Cost: O((p + q)^3); at most 2,048 units. Raises InputError for shapes that do not fit, fewer than three units that vary, or
    a ``k`` above their number.
    """
    joint, live = _joint(within_a, between, within_b)
    p, n = len(within_a), int(live.sum())
    top = max(2, n // 2) if max_k is None else max_k
    if not 2 <= (top if k is None else k) <= n:
        raise InputError(
            f"{top if k is None else k} clusters of {n} units that vary were asked for; 2 to {n} are possible"
        )
    last = min(n - 1, top if k is None else k)
    values, vectors = _laplacian(joint[np.ix_(live, live)], last)
    if k is None:
        k = 2 + int(np.diff(values)[1:top].argmax())
    labels = np.full(len(live), -1)
    labels[live] = _cluster(vectors[:, :k], k, random_state)
    return JointLabels(labels, values, k, p)


def joint_tree(within_a: Within, between: Between, within_b: Within, n_vectors: int | None = None) -> JointTree:
    """A tree of the units of both sites: Ward's joins on the leading eigenvectors of the Laplacian of joint_spectral_clusters.

    ``n_vectors=None`` takes as many as the largest gap says. Other arguments, cost and errors as in :func:`joint_spectral_clusters`.
    """
    joint, live = _joint(within_a, between, within_b)
    n, p = int(live.sum()), len(within_a)
    if n_vectors is not None and not 1 <= n_vectors <= n:
        raise InputError(f"n_vectors is {n_vectors} for {n} units that vary; 1 to {n} are possible")
    top = max(2, n // 2)
    values, vectors = _laplacian(joint[np.ix_(live, live)], min(n - 1, top if n_vectors is None else n_vectors))
    used = 2 + int(np.diff(values)[1:top].argmax()) if n_vectors is None else n_vectors
    linkage = hierarchy.linkage(_unit_rows(vectors[:, :used]), "ward")
    units = np.flatnonzero(live)
    return JointTree(linkage, units, *_joins(linkage, units < p))


def _joins(linkage: np.ndarray, first: Bool[np.ndarray, " live"]) -> tuple[np.ndarray, np.ndarray]:
    """For each leaf the number of joins and the height at which its branch is mixed first."""
    n = len(first)
    members: list[list[int]] = [[i] for i in range(n)]
    depth, height, steps = np.full(n, -1), np.full(n, np.inf), np.zeros(n, np.int64)
    for row in linkage:
        joined = members[int(row[0])] + members[int(row[1])]
        steps[joined] += 1
        if len({bool(first[i]) for i in joined}) == 2:
            fresh = [i for i in joined if depth[i] < 0]
            depth[fresh], height[fresh] = steps[fresh], row[2]
        members.append(joined)
    return depth, height


def cluster_mixing(labels: Int[np.ndarray, " both"], p: int, n_null: int = N_NULL, random_state: int = 0) -> Mixing:
    """How far clusters hold units of both sites, the first ``p`` being of a; label -1 is left out.

    Cost O(n_null (p + q)). Raises InputError where one site has no unit with a label, or no cluster has two units.
    """
    import torch

    labels = np.asarray(labels)
    if labels.ndim != 1 or not 0 < p < len(labels):
        raise InputError(
            f"labels have shape {labels.shape} and p is {p}; one label a unit, and units of both sites, are needed"
        )
    known = labels >= 0
    own = (np.arange(len(labels)) < p)[known]
    _, groups = np.unique(labels[known], return_inverse=True)
    if own.all() or not own.any() or np.bincount(groups).max() < 2:
        raise InputError(
            "clusters with units of both sites, at least one with two units, are needed to tell how they mix"
        )
    counts, shared, mixing = _mixed(groups, own)
    null = [_mixed(groups, each.numpy())[1:] for each in permutations(torch.from_numpy(own), n_null, random_state)]
    table = np.array(null).reshape(-1, 2)
    return Mixing(counts, shared, mixing, table[:, 1], table[:, 0])


def _mixed(groups: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, float, float]:
    counts = np.stack(
        [np.bincount(groups[own], minlength=groups.max() + 1), np.bincount(groups[~own], minlength=groups.max() + 1)], 1
    )
    several, shares = counts.sum(1) > 1, counts / counts.sum(0)
    mixing = 2 * shares.min(1) / shares.sum(1)
    return counts, float((counts[several] > 0).all(1).mean()), float((mixing * counts.sum(1)).sum() / counts.sum())


def cluster_overlap(
    moments: JointMoments, labels: Int[np.ndarray, " both"], rtol: float = 1e-6
) -> dict[int, np.ndarray]:
    """Canonical correlations between the two halves of every cluster with units of both sites, largest first.

    All ones: the smaller half's span lies inside that of the larger. Directions with less than ``rtol`` of a half's variance are left
    out. Cost O(m^3) for m units of a cluster. With few samples for many units they are high by themselves.
    """
    labels = np.asarray(labels)
    if labels.shape != moments.mean.shape:
        raise InputError(f"labels have shape {labels.shape}, the moments are of {len(moments.mean)} units")
    joint, found = moments.joint, {}
    for label in np.unique(labels[labels >= 0]):
        units = np.flatnonzero(labels == label)
        a, b = units[units < moments.p], units[units >= moments.p]
        if len(a) and len(b):
            left, right = _whitener(joint[np.ix_(a, a)], rtol), _whitener(joint[np.ix_(b, b)], rtol)
            values = linalg.svdvals(left.T @ joint[np.ix_(a, b)] @ right)
            found[int(label)] = np.clip(values, 0, 1)
    return found


def _whitener(correlation: np.ndarray, rtol: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(correlation)
    kept = values > rtol * values.sum()
    return vectors[:, kept] / np.sqrt(values[kept])


def _joint(within_a: Any, between: Any, within_b: Any) -> tuple[np.ndarray, Bool[np.ndarray, " both"]]:
    a, ab, b = (np.asarray(each, dtype=np.float64) for each in (within_a, between, within_b))
    p, q = len(a), len(b)
    if a.shape != (p, p) or b.shape != (q, q) or ab.shape != (p, q):
        raise InputError(
            f"correlations have shapes {a.shape}, {ab.shape}, {b.shape}; (p, p), (p, q), (q, q) are needed"
        )
    if p + q > MAX_UNITS:
        raise InputError(f"{p + q} units were given, joint clusters take at most {MAX_UNITS}; choose units")
    joint = np.abs(np.block([[a, ab], [ab.T, b]]))
    np.fill_diagonal(joint, 0)
    live = ~((joint == 0) | np.isnan(joint)).all(1)
    if live.sum() < 3:
        raise InputError(f"{int(live.sum())} units vary, at least three are needed for clusters")
    if not np.isfinite(joint[np.ix_(live, live)]).all():
        raise InputError("correlations of units that vary hold NaN or infinity, expected numbers")
    return joint, live


def _laplacian(affinity: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues 0 to ``last``, rising, and their vectors."""
    scale = 1 / np.sqrt(affinity.sum(1))
    return linalg.eigh(np.eye(len(affinity)) - affinity * scale * scale[:, None], subset_by_index=[0, last])


def _unit_rows(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)


def _cluster(vectors: np.ndarray, k: int, random_state: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    chosen: Any = KMeans(k, random_state=random_state, n_init=cast(Any, 10))
    return chosen.fit_predict(_unit_rows(vectors))
