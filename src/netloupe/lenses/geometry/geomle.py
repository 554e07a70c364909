"""GeoMLE: maximum-likelihood dimension extrapolated to neighbourhoods of no size (Gomtsyan et al., arXiv 1902.04404).

Used by Konz and Mazurowski, arXiv 2401.08865, as an alternative to a fixed number of neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.neighbours import BLOCK
from netloupe.lenses.geometry.intrinsic_dimension import IntrinsicDimension
from netloupe.lenses.geometry.separate_points import Duplicates, separate

ALPHA = 5e-3


def geomle_dimension(
    X: Float[Tensor, "sample unit"] | Any,
    k1: int = 25,
    k2: int = 55,
    n_boot: int = 20,
    *,
    alpha: float = ALPHA,
    degrees: tuple[int, ...] = (1, 2),
    block: int = BLOCK,
    duplicates: Duplicates = "remove",
    random_state: int = 0,
    official: bool = False,
) -> IntrinsicDimension:
    """Each sample's estimate ``d(k) = (k - 2) / sum_{j<k} log(T_k / T_j)`` regressed on the radius ``T_k``, read at radius 0.

    Neighbours are sought in ``n_boot`` sets drawn with replacement (equal draws count once). For every sample ``d(k)`` and
    ``T_k`` are averaged over the sets, and a ridge regression on the powers ``degrees`` of the radius, weighted by one over
    the standard deviation of ``d(k)`` over sets, gives its value at radius 0; the mean over samples is the answer, and 0
    where that is negative. The interval is that of the mean over samples.

    Args:
        X: ``(sample, unit)``. k1, k2: smallest and largest number of neighbours. n_boot: at least 2 sets.
        alpha, degrees: of the regression. block, duplicates, random_state: as in :func:`mle_dimension`.
        official: draw as the published code does, which never draws the last sample.

    Cost: one search for 2.2 k2 neighbours and O(n_boot n k2). Raises InputError for ``3 <= k1 < k2`` not holding, fewer than two sets,
    or fewer than about 2.5 k2 different samples.
    """
    if not 3 <= k1 < k2 or k2 - k1 < len(degrees) or n_boot < 2 or alpha <= 0:
        raise InputError(
            f"k1 is {k1}, k2 {k2}, n_boot {n_boot} and alpha {alpha}; 3 <= k1 < k2, two sets and alpha > 0 are needed"
        )
    found = separate(X, int(2.2 * k2) + 30, None, block, duplicates, min_samples=2 * k2 + 30, random_state=random_state)
    n, width = found.n, k2
    draw = np.random.RandomState(random_state)
    drawn = [np.unique(draw.randint(0, n - int(official), size=n)) for _ in range(n_boot)]
    dimensions, radii = np.empty((n_boot, n, k2 - k1 + 1)), np.empty((n_boot, n, k2 - k1 + 1))
    for index, chosen in enumerate(drawn):
        inside = np.zeros(n, bool)
        inside[chosen] = True
        distances = _first_inside(found.values, found.distances, inside[found.indices], chosen, width, block)
        logs = np.log(distances)
        sums = np.cumsum(logs, 1)
        k = np.arange(k1, k2 + 1)
        dimensions[index] = (k - 2) / ((k - 1) * logs[:, k - 1] - sums[:, k - 2])
        radii[index] = distances[:, k - 1]
    mean, radius, spread = dimensions.mean(0), radii.mean(0), dimensions.std(0, ddof=1)
    weights = 1 / spread if (spread > 0).all() else np.ones_like(spread)
    each = _at_zero(radius, mean, weights, degrees, alpha)
    value = max(0.0, float(each.mean()))
    half = 1.96 * float(each.std(ddof=1)) / np.sqrt(n)
    curve = np.stack([radius.mean(0), mean.mean(0)], 1)
    return IntrinsicDimension(
        value, max(0.0, value - half), value + half, curve, "GeoMLE", k2, n, found.n_units, found.n_duplicates
    )


def _first_inside(
    values: np.ndarray, distances: np.ndarray, inside: np.ndarray, chosen: np.ndarray, width: int, block: int
) -> np.ndarray:
    """Each sample's ``width`` nearest among those drawn; rows whose list is too short are searched anew."""
    rank = np.cumsum(inside, 1)
    enough = rank[:, -1] >= width
    found = np.empty((len(distances), width))
    keep = inside & (rank <= width)
    found[enough] = distances[enough][keep[enough]].reshape(-1, width)
    for row in np.flatnonzero(~enough):
        others = chosen[chosen != row]
        if len(others) < width:
            raise InputError(
                f"a set of {len(others)} drawn samples has no {width} neighbours; give more samples or a smaller k2"
            )
        near = np.sqrt(((values[others].astype(np.float64) - values[row].astype(np.float64)) ** 2).sum(1))
        found[row] = np.sort(np.partition(near, width - 1)[:width])
    return found


def _at_zero(x: np.ndarray, y: np.ndarray, w: np.ndarray, degrees: tuple[int, ...], alpha: float) -> np.ndarray:
    """Intercept of every row's weighted ridge regression of y on powers of x; the intercept is not penalised."""
    powers = np.stack([x**degree for degree in degrees], -1)
    share = w / w.sum(1, keepdims=True)
    centre, middle = np.einsum("nk,nkp->np", share, powers), (share * y).sum(1)
    centred, moved = powers - centre[:, None], y - middle[:, None]
    gram = np.einsum("nk,nkp,nkq->npq", w, centred, centred) + alpha * np.eye(len(degrees))
    slope = np.linalg.solve(gram, np.einsum("nk,nkp,nk->np", w, centred, moved)[..., None])[..., 0]
    return middle - (centre * slope).sum(1)
