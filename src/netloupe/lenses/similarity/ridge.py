"""Ridge regression of many targets from moments of folds: one pass over the data, then any penalty and any split.

Source: nested cross-validation as in Stone (1974), doi 10.1111/j.2517-6161.1974.tb00994.x; the moment form is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError
from netloupe.core.statistics import CrossCovariance, CrossCovarianceResult


class Fitted(NamedTuple):
    """A linear map ``y = x coef + intercept`` of every target."""

    coef: Float[np.ndarray, "unit target"]
    intercept: Float[np.ndarray, " target"]


@dataclass(frozen=True)
class Sums:
    """Sums of predictions ``p`` and responses ``y``, both less the responses' mean over all rows, for every target."""

    count: float
    p: np.ndarray
    y: np.ndarray
    pp: np.ndarray
    yy: np.ndarray
    py: np.ndarray

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count, self.p + other.p, self.y + other.y, self.pp + other.pp, self.yy + other.yy,
            self.py + other.py,
        )  # fmt: skip

    @property
    def correlation(self) -> Float[np.ndarray, " target"]:
        """Pearson's correlation; NaN where either never varies."""
        spread = (self.pp - self.p**2 / self.count) * (self.yy - self.y**2 / self.count)
        sound = spread > 1e-18 * np.maximum(self.pp * self.yy, 1e-300)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (self.py - self.p * self.y / self.count) / np.sqrt(np.maximum(spread, 0))
        return np.where(sound, np.clip(found, -1, 1), np.nan)

    @property
    def r_squared(self) -> Float[np.ndarray, " target"]:
        """1 less the squared error over the responses' variance; NaN for a response that never varies."""
        spread = self.yy - self.y**2 / self.count
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(spread > 0, 1 - (self.yy - 2 * self.py + self.pp) / spread, np.nan)


class FoldMoments:
    """Joint moments of every fold; all splits and penalties follow from them.

    Memory 8 k (p^2 + p v) bytes for k folds, p units and v targets.
    """

    def __init__(self, n_folds: int) -> None:
        self._folds = [CrossCovariance(own=True) for _ in range(n_folds)]
        self._merged: dict[tuple[int, ...], CrossCovarianceResult] = {}
        self._spectra: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def update(self, x: np.ndarray, y: np.ndarray, fold: Int[np.ndarray, " sample"]) -> None:
        """Rows of both, and the fold of each."""
        for index, statistic in enumerate(self._folds):
            inside = fold == index
            if inside.any():
                statistic.update(x[inside], y[inside])

    @cached_property
    def order(self) -> tuple[int, ...]:
        """All folds."""
        return tuple(range(len(self._folds)))

    def without(self, *left_out: int) -> tuple[int, ...]:
        """All folds but some."""
        return tuple(fold for fold in self.order if fold not in left_out)

    def moments(self, folds: tuple[int, ...]) -> CrossCovarianceResult:
        """Moments over some folds together."""
        if folds not in self._merged:
            joint = CrossCovariance(own=True)
            for fold in folds:
                joint.merge(self._folds[fold])
            self._merged[folds] = joint.result()
        return self._merged[folds]

    def spectrum(self, folds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues and eigenvectors of the features' scatter over some folds."""
        if folds not in self._spectra:
            scatter = self.moments(folds).scatter_a
            assert scatter is not None  # own=True keeps it
            values, vectors = np.linalg.eigh(scatter)
            self._spectra[folds] = np.maximum(values, 0), vectors
        return self._spectra[folds]

    def fit(self, folds: tuple[int, ...], alphas: Float[np.ndarray, " target"]) -> Fitted:
        """``(S + alpha I)^-1 s`` with a penalty for every target."""
        found = self.moments(folds)
        values, vectors = self.spectrum(folds)
        coef = np.zeros_like(found.scatter)
        turned = vectors.T @ found.scatter
        for alpha in np.unique(alphas):
            mine = alphas == alpha
            coef[:, mine] = vectors @ (turned[:, mine] * _shrink(values, alpha)[:, None])
        return Fitted(coef, found.mean_b - found.mean_a @ coef)

    def sums(self, made: Fitted, folds: tuple[int, ...]) -> Sums:
        """How a fit predicts some folds."""
        found = self.moments(folds)
        assert found.scatter_a is not None
        n, centre = found.count, self.moments(self.order).mean_b
        p, y = found.mean_a @ made.coef + made.intercept - centre, found.mean_b - centre
        spread = np.einsum("pv,pv->v", made.coef, found.scatter_a @ made.coef)
        joint = np.einsum("pv,pv->v", made.coef, found.scatter)
        return Sums(float(n), n * p, n * y, spread + n * p**2, found.squares_b + n * y**2, joint + n * p * y)

    def path(self, train: tuple[int, ...], judged: tuple[int, ...], alphas: Sequence[float]) -> np.ndarray:
        """Squared error ``(alpha, target)`` on ``judged`` of fits on ``train``."""
        mine, other = self.moments(train), self.moments(judged)
        values, vectors = self.spectrum(train)
        assert other.scatter_a is not None
        turned = vectors.T @ mine.scatter
        inner, joint = vectors.T @ other.scatter_a @ vectors, vectors.T @ other.scatter
        gap_x, gap_y = (other.mean_a - mine.mean_a) @ vectors, other.mean_b - mine.mean_b
        errors = []
        for alpha in alphas:
            coef = turned * _shrink(values, alpha)[:, None]
            spread = np.einsum("pv,pv->v", coef, inner @ coef)
            error = other.squares_b - 2 * np.einsum("pv,pv->v", coef, joint) + spread
            errors.append(error + other.count * (gap_y - gap_x @ coef) ** 2)
        return np.stack(errors)

    def choose(self, folds: tuple[int, ...], alphas: Sequence[float]) -> Float[np.ndarray, " target"]:
        """For every target the penalty with the least squared error, each of the folds judged by fits on the others."""
        total = sum(self.path(tuple(f for f in folds if f != judged), (judged,), alphas) for judged in folds)
        return np.asarray(alphas)[np.argmin(total, axis=0)]


def mean_of_folds(each: Float[np.ndarray, "fold target"]) -> Float[np.ndarray, " target"]:
    """Mean correlation over the folds in which it is defined; NaN where there is none."""
    known = ~np.isnan(each)
    with np.errstate(invalid="ignore"):
        return np.where(known, each, 0).sum(0) / known.sum(0)


def _shrink(values: np.ndarray, alpha: float) -> np.ndarray:
    """``1 / (value + alpha)``; without a penalty, directions that are rounding get nothing (least norm)."""
    floor = 1e-12 * max(float(values.max(initial=0.0)), 1e-300)
    with np.errstate(divide="ignore"):
        return np.where(values + alpha > floor, 1 / np.maximum(values + alpha, floor), 0.0)


def nested(
    moments: FoldMoments, alphas: Sequence[float]
) -> tuple[Sums, Float[np.ndarray, "fold target"], Fitted, np.ndarray]:
    """Out-of-fold sums, correlation in each fold, and the final fit with its penalties.

    Penalties for a fold are chosen on the other folds alone: a score never saw the data it was tuned on.
    """
    if len(moments.order) < 3:
        raise InputError(
            f"{len(moments.order)} folds were given; choosing a penalty and judging it needs at least three"
        )
    judged = []
    for fold in moments.order:
        train = moments.without(fold)
        judged.append(moments.sums(moments.fit(train, moments.choose(train, alphas)), (fold,)))
    total = judged[0]
    for one in judged[1:]:
        total = total + one
    best = moments.choose(moments.order, alphas)
    each = np.stack([one.correlation for one in judged])
    return total, each, moments.fit(moments.order, best), best
