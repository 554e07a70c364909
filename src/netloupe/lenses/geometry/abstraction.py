"""Is a distinction between conditions coded in the same way whatever else differs: parallelism, CCGP, shattering.

Source: Bernardi et al., "The geometry of abstraction in the hippocampus and prefrontal cortex", doi 10.1016/j.cell.2020.09.031,
as used by Alleman, Lindsey and Fusi, arXiv 2401.13558.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.geometry.dichotomies import dichotomies, training_sets
from netloupe.lenses.geometry.margins import decision_values

__all__ = ["Shattering", "ccgp", "dichotomies", "parallelism_score", "shattering_dimension"]

MOST_EXACT = 6  # pairs: 720 pairings
Pairing = Literal["auto", "exact", "distance"]


def parallelism_score(features: Float[np.ndarray, "condition unit"] | Any, y: Any, pairing: Pairing = "auto") -> float:
    """Mean cosine between the differences that a dichotomy makes, over pairs of opposite conditions: 1 where they are parallel.

    Conditions of the two sides are paired, ``delta_i = (z_i+ - z_i-) / |.|``, and the mean of ``delta_i . delta_j`` over i < j is
    maximised over pairings. Being a maximum, it is above zero for random points: compare with other dichotomies, or a shuffle.

    Args:
        features: ``(condition, unit)``, means of the conditions. y: ``(condition,)``, the side of each: above its mean, or not.
        pairing: ``exact`` tries all pairings; ``distance`` takes the one with the least sum of squared distances; ``auto``
            is exact for up to 6 pairs.

    Cost O(P^2 N + (P/2)! P^2), or O(P^3) by distance. Raises InputError for sides of different size, fewer than two pairs, or
    opposite conditions that coincide, so that there is no direction between them; NonFiniteError for NaN.
    """
    if pairing not in ("auto", "exact", "distance"):
        raise InputError(f"pairing is '{pairing}', expected auto, exact or distance")
    z = _rows(features)
    side = _side(y, len(z))
    pairs = int(side.sum())
    if 2 * pairs != len(z) or pairs < 2:
        raise InputError(
            f"the dichotomy puts {pairs} of {len(z)} conditions on one side; parallelism needs sides of equal size and at least 2 pairs"
        )
    return float(parallelism_of(z[None], np.where(side, 1, -1)[None], pairing == "distance")[0, 0])


def parallelism_of(
    points: Float[np.ndarray, "set condition unit"], signs: np.ndarray, by_distance: bool = False
) -> Float[np.ndarray, "set dichotomy"]:
    """:func:`parallelism_score` of many dichotomies (``signs`` +1, -1, 0 for conditions left out) of several sets of points."""
    gram = np.einsum("scu,sdu->scd", *[points - points.mean(1, keepdims=True)] * 2)
    found = np.empty((len(points), len(signs)))
    for column, row in enumerate(signs):
        plus, minus = np.flatnonzero(row > 0), np.flatnonzero(row < 0)
        found[:, column] = _best_pairing(gram, plus, minus, by_distance or len(plus) > MOST_EXACT)
    return found


def _best_pairing(gram: np.ndarray, plus: np.ndarray, minus: np.ndarray, by_distance: bool) -> np.ndarray:
    """Inner products of differences come from those of conditions: ``(a - b)(c - d) = ac - ad - bc + bd``."""
    h = len(plus)
    own = np.diagonal(gram, axis1=1, axis2=2)
    squares = own[:, plus, None] + own[:, None, minus] - 2 * gram[:, plus[:, None], minus]
    if (squares <= 1e-12 * own.max(1)[:, None, None]).any():
        raise InputError(
            "two conditions of opposite sides coincide, so that there is no direction from one to the other"
        )
    if by_distance:
        orders = np.stack([linear_sum_assignment(table)[1] for table in squares])[:, None]
    else:
        orders = np.broadcast_to(np.array(list(permutations(range(h)))), (len(gram), *_shape(h)))
    index = np.arange(len(gram))[:, None, None]
    lengths = np.sqrt(squares[index, np.arange(h), orders])
    other = minus[orders]
    # |sum of unit differences|^2 = h + 2 sum over i < j of their cosines
    total = np.zeros(orders.shape[:2])
    for i in range(h):
        for j in range(i):
            a, c, b, d = plus[i], plus[j], other[:, :, i], other[:, :, j]
            product = (
                gram[:, a, c][:, None]
                - gram[index[..., 0], a, d]
                - gram[index[..., 0], b, c]
                + gram[index[..., 0], b, d]
            )
            total += product / (lengths[:, :, i] * lengths[:, :, j])
    return np.clip(total.max(1) / (h * (h - 1) / 2), -1, 1)


def _shape(h: int) -> tuple[int, int]:
    return int(np.prod(np.arange(1, h + 1))), h


def ccgp(
    features: Float[np.ndarray, "sample unit"] | Any,
    cond: Int[np.ndarray, " sample"] | Any,
    y: Any,
    estimator: Any = None,
    *,
    penalty: float = 1.0,
    max_subsets: int | None = None,
    official: bool = False,
    random_state: int = 0,
) -> float:
    """Cross-condition generalisation: how well a linear classifier tells the sides of conditions it was not fitted on.

    It is fitted on ``P // 4`` conditions of each side and judged on the samples of all others, averaged over all such subsets.
    Chance is 0.5; values well below are no noise: the code of the dichotomy is reversed from one context to another, as in an XOR.

    Args:
        features: ``(sample, unit)``, or the means of the conditions. cond: ``(sample,)``, the condition of each.
        y: the side of each condition in rising order ``(condition,)``, or of each sample ``(sample,)``: above its mean, or not.
        estimator: a scikit-learn classifier; by default the objective of ``LinearSVC(C=penalty)``, solved exactly.
        max_subsets: draw so many subsets instead of all. official: the first half of the subsets alone, which the code of arXiv
            2401.13558 takes; of each two that complement one another, one.

    Cost: O(subsets) fits, each as in :func:`netloupe.lenses.geometry.margins.decision_values`. Raises InputError for fewer than 4
    conditions, a side with fewer than 2, unbalanced sides, or a condition without samples.
    """
    z, index, side = _conditions(features, cond, y)
    n_conditions = len(side)
    if n_conditions < 4 or 2 * side.sum() != n_conditions:
        raise InputError(
            f"the dichotomy puts {int(side.sum())} of {n_conditions} conditions on one side; "
            "CCGP needs at least 4 conditions and equal sides"
        )
    # the code of the paper goes through the negative side first, which matters for half of the subsets
    subsets = training_sets(np.flatnonzero(~side), np.flatnonzero(side), max_subsets, official, random_state)
    fitted = np.stack([np.isin(index, subset) for subset in subsets])
    if estimator is not None:
        return float(np.mean([_score(estimator, z, side[index], mask, ~mask) for mask in fitted]))
    signs = np.broadcast_to(np.where(side[index], 1.0, -1.0), fitted.shape)
    right = (decision_values(z, signs, fitted, penalty) > 0) == (signs > 0)
    return float(np.mean([row[~mask].mean() for row, mask in zip(right, fitted)]))


@dataclass(frozen=True)
class Shattering:
    """Held-out accuracy of a linear classifier for each dichotomy: ``accuracy`` and ``trained`` ``(dichotomy,)``, ``dichotomies``
    ``(dichotomy, condition)``; ``trained`` marks those that the network was trained on (or their complement)."""

    accuracy: Float[np.ndarray, " dichotomy"]
    dichotomies: Bool[np.ndarray, "dichotomy condition"]
    trained: Bool[np.ndarray, " dichotomy"]

    @property
    def mean(self) -> float:
        """Over all dichotomies."""
        return float(self.accuracy.mean())

    @property
    def mean_trained(self) -> float:
        """Over those trained on; NaN without any."""
        return float(self.accuracy[self.trained].mean()) if self.trained.any() else float("nan")

    @property
    def mean_untrained(self) -> float:
        """Over the others; NaN without any."""
        return float(self.accuracy[~self.trained].mean()) if not self.trained.all() else float("nan")


def shattering_dimension(
    features: Float[np.ndarray, "sample unit"] | Any,
    cond: Int[np.ndarray, " sample"] | Any,
    max_dichotomies: int | None = None,
    estimator: Any = None,
    *,
    trained: Any = None,
    fit: Bool[np.ndarray, " sample"] | Any = None,
    penalty: float = 1.0,
    random_state: int = 0,
) -> Shattering:
    """Decodability of all balanced dichotomies of the conditions, and of those that were not trained on.

    Args:
        features: ``(sample, unit)``, noisy samples: the means alone are separable in every way where units outnumber conditions.
        cond: ``(sample,)``. max_dichotomies: draw so many. estimator: as in :func:`ccgp`.
        trained: ``(target, condition)`` or ``(condition,)``, the sides of the targets a network was trained on.
        fit: ``(sample,)``, which samples to fit on, judging on the others; by default every second sample of each condition, and
            all samples for both where some condition has but one.

    Cost: one fit for each dichotomy. Raises InputError for an odd number of conditions, a condition without samples to fit on,
    or ``trained`` of another number of conditions.
    """
    z, index, _ = _conditions(features, cond, None)
    n_conditions = int(index.max()) + 1
    table = dichotomies(n_conditions)
    if max_dichotomies is not None and max_dichotomies < len(table):
        chosen = np.random.default_rng(random_state).permutation(len(table))[:max_dichotomies]
        table = table[np.sort(chosen)]
    fitted = _every_second(index) if fit is None else np.asarray(fit, dtype=bool)
    if fitted.shape != index.shape or len(np.unique(index[fitted])) < n_conditions:
        raise InputError(
            f"fit has shape {fitted.shape}; a mark for each of {len(index)} samples, with some of every condition, is needed"
        )
    judged = fitted if fitted.all() else ~fitted
    if estimator is not None:
        accuracy = np.array([_score(estimator, z, row[index], fitted, judged) for row in table])
    else:
        signs = np.where(table, 1.0, -1.0)[:, index]
        values = decision_values(z, signs, np.broadcast_to(fitted, signs.shape), penalty)
        accuracy = ((values > 0) == (signs > 0))[:, judged].mean(1)
    known = np.zeros(len(table), dtype=bool)
    if trained is not None:
        sides = np.atleast_2d(np.asarray(trained, dtype=np.float64))
        if sides.shape[1] != n_conditions:
            raise InputError(
                f"trained has shape {sides.shape}; one row of {n_conditions} conditions for each target is needed"
            )
        for row in sides:
            side = row > row.mean()
            known |= (table == (side if side[0] else ~side)).all(1)
    return Shattering(accuracy, table, known)


def _every_second(index: np.ndarray) -> np.ndarray:
    """The first, third, ... sample of each condition; all where a condition has but one."""
    counts = np.bincount(index)
    order = np.argsort(index, kind="stable")
    rank = np.empty(len(index), dtype=int)
    rank[order] = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank % 2 == 0 if counts.min() > 1 else np.ones(len(index), dtype=bool)


def _score(estimator: Any, z: np.ndarray, side: np.ndarray, fitted: np.ndarray, judged: np.ndarray) -> float:
    from sklearn.base import clone

    model: Any = clone(estimator)
    model.fit(z[fitted], side[fitted])
    return float(model.score(z[judged], side[judged]))


def _rows(features: Any) -> Float[np.ndarray, "row unit"]:
    values = features.detach().cpu().double().numpy() if isinstance(features, Tensor) else features
    z = np.asarray(values, dtype=np.float64)
    if z.ndim != 2 or 0 in z.shape:
        raise InputError(f"features have shape {z.shape}, expected rows of at least one unit")
    if not np.isfinite(z).all():
        raise NonFiniteError("features hold NaN or infinity, but finite numbers are needed; look for an overflow")
    return z


def _side(y: Any, n: int) -> Bool[np.ndarray, " condition"]:
    values = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y, dtype=np.float64)
    if values.shape != (n,) or not np.isfinite(values).all():
        raise InputError(f"y has shape {values.shape}, expected a side for each of {n} conditions")
    return values > values.mean()


def _conditions(features: Any, cond: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, the number of each one's condition from 0, and the side of every condition."""
    z = _rows(features)
    given = np.asarray(cond.detach().cpu() if isinstance(cond, Tensor) else cond)
    if given.shape != (len(z),):
        raise InputError(f"cond has shape {given.shape}, expected a condition for each of {len(z)} samples")
    known, index = np.unique(given, return_inverse=True)
    if y is None:
        return z, index, np.zeros(len(known), dtype=bool)
    values = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y, dtype=np.float64)
    if values.shape == (len(known),):
        return z, index, _side(values, len(known))
    if values.shape == (len(z),):
        means = np.bincount(index, values) / np.bincount(index)
        if not np.array_equal(means[index], values):
            raise InputError("y differs between samples of one condition; a condition lies on one side")
        return z, index, _side(means, len(known))
    raise InputError(
        f"y has shape {values.shape}, but {len(known)} conditions have samples; give each of them, or each sample, a side "
        "(a condition without samples cannot be judged)"
    )
