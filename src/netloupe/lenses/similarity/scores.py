"""Scores of encoding models: correlation with missing responses, noise ceilings, and models compared voxel by voxel.

Source: noise ceilings as in Allen et al. (2022), doi 10.1038/s41593-021-00962-x; comparison by sign flips as in Nichols and
Holmes (2002), doi 10.1002/hbm.1058; the partition of voxels follows arXiv 2410.14031.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def voxel_correlation(
    predicted: Float[np.ndarray, "sample target"],
    responses: Float[np.ndarray, "sample target"],
    mask: Bool[np.ndarray, "sample target"] | None = None,
) -> Float[np.ndarray, " target"]:
    """Pearson's correlation of every target over the samples where its response is known (not NaN, and inside ``mask``).

    NaN for a target that has fewer than two responses or never varies. Cost O(n v). Raises InputError for shapes that differ.
    """
    p, y = (np.asarray(each, dtype=np.float64) for each in (predicted, responses))
    if p.shape != y.shape or p.ndim != 2:
        raise InputError(
            f"predictions have shape {p.shape} and responses {y.shape}, expected (sample, target) for both"
        )
    known = ~np.isnan(y) & ~np.isnan(p)
    if mask is not None:
        if np.shape(mask) != y.shape:
            raise InputError(f"the mask has shape {np.shape(mask)}, responses have {y.shape}")
        known &= np.asarray(mask, dtype=bool)
    n = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        p, y = (np.where(known, each, 0) for each in (p, y))
        p, y = (np.where(known, each - each.sum(0) / n, 0) for each in (p, y))
        squares = [(each**2).sum(0) for each in (p, y)]
        found = (p * y).sum(0) / np.sqrt(squares[0] * squares[1])
    scale = [np.nanmax(np.abs(np.where(known, each, 0)), axis=0, initial=0) for each in (predicted, responses)]
    varies = [square > n * (1e-13 * s) ** 2 for square, s in zip(squares, scale, strict=True)]
    return np.where((n >= 2) & varies[0] & varies[1], np.clip(found, -1, 1), np.nan)


def noise_ceiling(repeats: Float[np.ndarray, "target sample repeat"]) -> Float[np.ndarray, " target"]:
    """The correlation that a perfect model of the signal has with the mean over repeats: ``sqrt(s / (s + e / r))``.

    ``e`` is the variance between repeats of one sample, and ``s`` that between samples less ``e / r``, at least 0. Repeats may
    be missing (NaN); ``1 / r`` is then the mean over samples of one over their number of repeats.

    Args:
        repeats: ``(target, sample, repeat)``; samples with a single repeat tell of the spread between samples only.

    Returns:
        Ceilings in [0, 1]; NaN for a target with fewer than two samples, or none that was repeated.

    Cost O(size). Raises InputError for another shape or infinity.
    """
    y = np.asarray(repeats, dtype=np.float64)
    if y.ndim != 3:
        raise InputError(f"repeats have shape {y.shape}, expected (target, sample, repeat)")
    if np.isinf(y).any():
        raise InputError("a response is infinite; give a finite number, or NaN for a repeat that is missing")
    count = (~np.isnan(y)).sum(2)
    seen, again = count >= 1, count >= 2
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(y, 2) / count
        within = np.nansum((y - mean[..., None]) ** 2, 2)
        noise = np.where(again, within, 0).sum(1) / np.where(again, count - 1, 0).sum(1)
        centre = np.where(seen, mean, 0).sum(1) / seen.sum(1)
        total = np.where(seen, (mean - centre[:, None]) ** 2, 0).sum(1) / (seen.sum(1) - 1)
        share = np.where(seen, 1 / np.maximum(count, 1), 0).sum(1) / seen.sum(1)
        found = np.sqrt(np.clip(total - noise * share, 0, None) / total)
    return np.where((seen.sum(1) >= 2) & again.any(1) & (total > 0), found, np.nan)


def normalised_score(
    correlation: Float[np.ndarray, " target"], ceiling: Float[np.ndarray, " target"]
) -> Float[np.ndarray, " target"]:
    """Correlation over its ceiling; NaN where the ceiling is not above 0, for there is nothing to predict. May exceed 1."""
    r, most = np.asarray(correlation, dtype=np.float64), np.asarray(ceiling, dtype=np.float64)
    if r.shape != most.shape:
        raise InputError(f"correlations have shape {r.shape} and ceilings {most.shape}, expected the same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(most > 0, r / most, np.nan)


@dataclass(frozen=True, eq=False)
class ModelComparison(Finding):
    """Models compared over the same voxels. ``difference`` ``(model, model)`` is the mean over voxels of row less column, and
    ``p_value`` how often flipping the sign of voxels at random gives a mean as far from 0 (two-sided)."""

    names: tuple[str, ...]
    mean: Float[np.ndarray, " model"]
    difference: Float[np.ndarray, "model model"]
    p_value: Float[np.ndarray, "model model"]
    n_targets: int

    meanings: ClassVar[dict[str, str]] = {
        "best_score": "mean score over targets of the best model",
        "lead": "its lead over the next model",
        "p_value": "how often chance gives such a lead, if targets were independent",
    }

    def summary(self) -> dict[str, float]:
        """``best_score``, its ``lead`` and the ``p_value`` of the lead."""
        order = np.argsort(-self.mean, kind="stable")
        lead = float(self.difference[order[0], order[1]]), float(self.p_value[order[0], order[1]])
        return {"best_score": float(self.mean[order[0]]), "lead": lead[0], "p_value": lead[1]}

    def plot(self, axes: Axes) -> None:
        """Mean scores as bars."""
        axes.barh(self.names, self.mean)
        axes.set(xlabel="mean score over targets")


def compare_models(
    scores: Float[np.ndarray, "model target"],
    names: Sequence[str] | None = None,
    n_permutations: int = 1000,
    random_state: int = 0,
) -> ModelComparison:
    """Differences between models over the targets that all of them score, with sign-flip p-values.

    Neighbouring voxels are not independent, so the p-values are too small for real recordings; read them as a screen.

    Args:
        scores: ``(model, target)``; NaN leaves a target out. names: one a model.

    Cost O(models^2 n v). Raises InputError for fewer than two models or no common target.
    """
    found = np.asarray(scores, dtype=np.float64)
    if found.ndim != 2 or len(found) < 2:
        raise InputError(f"scores have shape {found.shape}, expected (model, target) with at least two models")
    labels = tuple(names) if names is not None else tuple(f"model {i}" for i in range(len(found)))
    if len(labels) != len(found):
        raise InputError(f"there are {len(labels)} names for {len(found)} models")
    found = found[:, ~np.isnan(found).any(0)]
    if not found.shape[1]:
        raise InputError("no target has a score under every model")
    signs = np.random.default_rng(random_state).choice((-1.0, 1.0), (n_permutations, found.shape[1]))
    difference, p_value = np.zeros((len(found), len(found))), np.ones((len(found), len(found)))
    for i, j in combinations(range(len(found)), 2):
        gap = found[i] - found[j]
        null = np.abs(signs @ gap) / len(gap)
        p_value[i, j] = p_value[j, i] = (1 + (null >= abs(gap.mean()) - 1e-15).sum()) / (1 + n_permutations)
        difference[i, j], difference[j, i] = gap.mean(), -gap.mean()
    return ModelComparison(
        labels, found.mean(1), difference, p_value, found.shape[1], context=Context(seed=random_state)
    )


@dataclass(frozen=True, eq=False)
class VoxelPartition(Finding):
    """Which model describes each target best: ``zone`` ``(target,)`` is the model's index, -1 where none leads clearly."""

    names: tuple[str, ...]
    zone: Int[np.ndarray, " target"]

    meanings: ClassVar[dict[str, str]] = {
        "assigned": "share of targets for which one model leads clearly",
        "largest_zone": "share of targets in the largest zone",
    }

    def summary(self) -> dict[str, float]:
        """``assigned`` and ``largest_zone``."""
        shares = [float((self.zone == i).mean()) for i in range(len(self.names))]
        return {"assigned": float((self.zone >= 0).mean()), "largest_zone": max(shares)}

    def plot(self, axes: Axes) -> None:
        """How many targets each model describes best."""
        counts = [(self.zone == i).sum() for i in range(len(self.names))] + [(self.zone < 0).sum()]
        axes.barh([*self.names, "none clearly"], counts, color=["C0"] * len(self.names) + ["0.7"])
        axes.set(xlabel="targets")


def partition_voxels(
    scores: Float[np.ndarray, "model target"],
    names: Sequence[str] | None = None,
    margin: float = 0.0,
    draws: Float[np.ndarray, "draw model target"] | None = None,
    confidence: float = 0.95,
) -> VoxelPartition:
    """Each target goes to the model with the largest score, if that leads by more than ``margin``.

    Args:
        scores: ``(model, target)``; a target that is NaN under any model is not assigned.
        draws: ``(draw, model, target)`` of :func:`bootstrap_correlation`; then the model must also lead in a share
            ``confidence`` of the draws.

    Cost O(size). Raises InputError for fewer than two models or shapes that do not fit.
    """
    found = np.asarray(scores, dtype=np.float64)
    if found.ndim != 2 or len(found) < 2:
        raise InputError(f"scores have shape {found.shape}, expected (model, target) with at least two models")
    labels = tuple(names) if names is not None else tuple(f"model {i}" for i in range(len(found)))
    if len(labels) != len(found):
        raise InputError(f"there are {len(labels)} names for {len(found)} models")
    known = ~np.isnan(found).any(0)
    filled = np.where(known, found, -np.inf)
    best = np.argmax(filled, axis=0)
    ordered = np.sort(filled, axis=0)
    with np.errstate(invalid="ignore"):
        clear = known & (ordered[-1] - ordered[-2] > margin)
    if draws is not None:
        if np.shape(draws)[1:] != found.shape:
            raise InputError(f"draws have shape {np.shape(draws)}, expected (draw, {found.shape[0]}, {found.shape[1]})")
        clear &= (np.argmax(draws, axis=1) == best).mean(0) >= confidence
    return VoxelPartition(labels, np.where(clear, best, -1).astype(np.int64), context=Context())


def bootstrap_correlation(
    predicted: Float[np.ndarray, "model sample target"],
    responses: Float[np.ndarray, "sample target"],
    n_draws: int = 200,
    random_state: int = 0,
) -> Float[np.ndarray, "draw model target"]:
    """:func:`voxel_correlation` of all models on the same samples drawn with replacement. Cost O(draws models n v)."""
    predictions, y = np.asarray(predicted, dtype=np.float64), np.asarray(responses, dtype=np.float64)
    if predictions.ndim != 3 or predictions.shape[1:] != y.shape:
        raise InputError(f"predictions have shape {predictions.shape}, expected (model, *{y.shape})")
    generator = np.random.default_rng(random_state)
    drawn: list[Any] = []
    for _ in range(n_draws):
        rows = generator.integers(0, len(y), len(y))
        drawn.append([voxel_correlation(one[rows], y[rows]) for one in predictions])
    return np.array(drawn)
