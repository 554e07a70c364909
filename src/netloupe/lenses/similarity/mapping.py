"""How few units of one site predict each unit of another: sparse linear maps fitted from moments.

Source: Li, Yosinski, Clune, Lipson and Hopcroft, "Convergent Learning", arXiv 1511.07543 (its mapping layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.alignment import joint_moments, paired_rows
from netloupe.core.errors import InputError
from netloupe.core.statistics import JointMoments
from netloupe.lenses.similarity.mapping_kernels import lasso_gram

ALPHAS = (0.0, 1e-5, 1e-4, 1e-3, 10**-2.8, 10**-2.6, 10**-2.4, 10**-2.2, 1e-2, 1e-1)
"""strengths of arXiv 1511.07543's code; for its second layer also 10^-3.8 to 10^-3.2"""
COUNTED = 1e-3  # a weight below this counts as none


class SparseMapper:
    """Predicts every unit of b by a sparse mix of the units of a, all units standardised to mean 0 and variance 1.

    For each unit j of b: ``min_w 1/2 E (b_j - w'a)^2 + alpha |w|_1``; a prediction of zero costs 0.5. For convolutional layers, with
    every position an observation, this is a 1 x 1 convolution. Coordinate descent on the Gram matrix with Newton steps, to a
    duality gap: the minimum that the paper's stochastic gradients approach, without tiny weights that never become zero.

    Args:
        alpha: strength of the penalty; 0 is least squares of smallest norm.
        solver: ``gram-cd``, the only one.
        tol: largest duality gap (a share of the target's variance). max_iter: most rounds of sweeps and Newton steps.

    After fitting: ``coef_`` ``(q, p)`` for standardised units (0 for dead ones), ``half_mse_`` ``(q,)`` on the fitted data (NaN for dead
    targets), ``n_nonzero_`` ``(q,)`` weights above 0.001, ``gap_`` and ``n_iter_`` ``(q,)`` (rounds), ``converged_``, ``moments_``.

    Cost: O(n (p + q)^2) for the moments, then O(p^2 + s^3) a target and round for s weights that are not zero (alpha = 0:
    O(p^3 + q p^2)). Streams.
    """

    def __init__(self, alpha: float = 1e-3, solver: str = "gram-cd", tol: float = 1e-6, max_iter: int = 10_000) -> None:
        if not (alpha >= 0 and np.isfinite(alpha)) or solver != "gram-cd" or not tol > 0 or max_iter < 1:
            raise InputError(
                f"alpha {alpha}, solver {solver!r}, tol {tol}, max_iter {max_iter}: alpha >= 0, 'gram-cd' and positive tol and "
                f"max_iter are needed"
            )
        self.alpha, self.solver, self.tol, self.max_iter = float(alpha), solver, float(tol), int(max_iter)

    def fit(
        self,
        features: Float[Tensor, "sample *position unit"] | Any,
        other: Float[Tensor, "sample *position other"] | Any,
    ) -> Self:
        """Fits ``other`` from ``features``, ``(sample, unit)`` or ``(sample, position, unit)`` of the same samples."""
        return self.fit_moments(joint_moments(*paired_rows(features, other, min_samples=2, ndim=(2, 3))))

    def fit_moments(self, moments: JointMoments, start: Float[np.ndarray, "unit_b unit_a"] | None = None) -> Self:
        """Fits site b of ``CrossMoments(...).result()`` from its site a; ``start`` are weights to begin with."""
        p, q = moments.p, len(moments.mean) - moments.p
        if moments.dead_a.all() or moments.dead_b.all():
            raise InputError("no unit of one site varies over the samples, so nothing can be predicted")
        gram, cross = np.ascontiguousarray(moments.within_a), np.ascontiguousarray(moments.between.T)
        self.moments_ = moments
        if self.alpha == 0:
            # rounding of the correlations is about p eps; directions below that hold no information
            self.coef_ = cross @ np.linalg.pinv(gram, rcond=p * 1e-14, hermitian=True) * ~moments.dead_a
            self.gap_, self.n_iter_ = np.zeros(q), np.ones(q, np.int64)
        else:
            self.coef_ = np.zeros((q, p)) if start is None else np.array(start, dtype=np.float64)
            self.gap_, self.n_iter_ = lasso_gram(gram, cross, self.alpha, self.coef_, self.tol, self.max_iter)
        self.half_mse_ = self.score_moments(moments)
        return self

    @property
    def converged_(self) -> bool:
        """Whether every target reached ``tol``."""
        return bool((self.gap_ <= self.tol).all())

    @property
    def n_nonzero_(self) -> Int[np.ndarray, " unit_b"]:
        """Weights above 0.001 for each target."""
        return (np.abs(self.coef_) > COUNTED).sum(1)

    def score_moments(self, moments: JointMoments) -> Float[np.ndarray, " unit_b"]:
        """``(q,)`` half mean squared error on other data, standardised as the fitted data were; NaN for dead targets."""
        known, p = self._fitted(), self.coef_.shape[1]
        if moments.p != p or len(moments.mean) != len(known.mean):
            raise InputError(f"moments are of {moments.p} and {len(moments.mean) - moments.p} units, the map of others")
        inverse = np.divide(1, known.deviation, out=np.zeros_like(known.deviation), where=known.deviation > 0)
        shift = (moments.mean - known.mean) * inverse
        second = moments.scatter / moments.count * inverse * inverse[:, None] + np.outer(shift, shift)
        fitted = ((self.coef_ @ second[:p, :p]) * self.coef_).sum(1)
        error = np.diagonal(second)[p:] - 2 * (self.coef_ * second[p:, :p]).sum(1) + fitted
        return np.where(known.dead_b, np.nan, 0.5 * np.maximum(error, 0.0))

    def score(self, features: Any, other: Any) -> Float[np.ndarray, " unit_b"]:
        """:meth:`score_moments` of arrays as in :meth:`fit`."""
        return self.score_moments(joint_moments(*paired_rows(features, other, min_samples=1, ndim=(2, 3))))

    def predict(self, features: Float[Any, "sample *position unit"]) -> Float[np.ndarray, "sample *position other"]:
        """Units of b in their own scale, from an array of units of a."""
        known = self._fitted()
        rows = np.asarray(features, dtype=np.float64)
        if rows.shape[-1] != known.p:
            raise InputError(f"features have {rows.shape[-1]} units, the map was fitted on {known.p}")
        spread_a, spread_b = known.deviation[: known.p], known.deviation[known.p :]
        standard = np.divide(rows - known.mean_a, spread_a, out=np.zeros_like(rows), where=spread_a > 0)
        return standard @ self.coef_.T * spread_b + known.mean_b

    def _fitted(self) -> JointMoments:
        if not hasattr(self, "moments_"):
            raise InputError("this SparseMapper is not fitted; call fit or fit_moments first")
        return self.moments_


def mapping_path(
    moments: JointMoments, alphas: Sequence[float] = ALPHAS, tol: float = 1e-6, max_iter: int = 10_000
) -> list[SparseMapper]:
    """A :class:`SparseMapper` for each strength, in the order given; strong penalties are fitted first and start the weaker.

    Cost as :class:`SparseMapper`, less by the warm starts. Raises InputError for no strengths or negative ones.
    """
    if not len(alphas):
        raise InputError("alphas is empty, at least one strength is needed")
    found: dict[float, SparseMapper] = {}
    start = None
    for alpha in sorted({float(each) for each in alphas}, reverse=True):
        found[alpha] = SparseMapper(alpha, tol=tol, max_iter=max_iter).fit_moments(moments, start)
        start = found[alpha].coef_
    return [found[float(alpha)] for alpha in alphas]


def weakest_within(path: Sequence[SparseMapper], n_units: float) -> int:
    """Which map has the weakest penalty among those that use at most ``n_units`` units a target on average; the sparsest where none does.

    It is chosen by its weights alone, so that errors on other data stay what they are.
    """
    used = [float(mapper.n_nonzero_.mean()) for mapper in path]
    within = [i for i, count in enumerate(used) if count <= n_units]
    return min(within, key=lambda i: path[i].alpha) if within else int(np.argmin(used))
