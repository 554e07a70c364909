"""Encoding models: how well does a site predict responses - voxels, neurons, or another network's units?

Source: Naselaris et al. (2011), doi 10.1016/j.neuroimage.2010.07.073; the readouts compared in arXiv 2410.14031. Noise ceilings as
in Allen et al. (2022), doi 10.1038/s41593-021-00962-x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.rows import Rows, as_rows
from netloupe.core.splits import folds as split_folds
from netloupe.lenses.similarity.ridge import FoldMoments, mean_of_folds, nested
from netloupe.lenses.similarity.scores import normalised_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_KERNEL = 8192  # samples; a site of more units than samples is turned into as many coordinates as samples
RELATIVE_ALPHAS = tuple(10.0**power for power in np.arange(-6, 3.5, 0.5))


@dataclass(frozen=True, eq=False)
class EncodingResult(Finding):
    """Linear prediction of many targets. Arrays have one entry a target, NaN where a target never varies.

    ``fold_correlation`` ``(fold, target)`` is of out-of-fold predictions with the responses of each fold, ``correlation`` its
    mean over folds (over all folds together it would be biased below 0, for the means of what is left out and of what is kept
    move against each other), ``r_squared`` the share of variance explained out of fold. ``alpha``, ``coef`` ``(unit, target)`` and
    ``intercept`` are of the final fit on everything. ``ceiling`` is the correlation that a perfect model would have, where given.
    """

    correlation: Float[np.ndarray, " target"]
    r_squared: Float[np.ndarray, " target"]
    fold_correlation: Float[np.ndarray, "fold target"]
    alpha: Float[np.ndarray, " target"]
    coef: Float[np.ndarray, "unit target"]
    intercept: Float[np.ndarray, " target"]
    ceiling: Float[np.ndarray, " target"] | None
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "correlation": "mean over targets of the correlation of out-of-fold predictions with the responses",
        "explained": "median over targets of the share of variance explained out of fold",
        "undefined_targets": "share of targets that never vary, which have no correlation",
        "normalised": "mean over targets of the correlation divided by its noise ceiling",
    }

    def summary(self) -> dict[str, float]:
        """``correlation``, ``explained``, ``undefined_targets`` and, where there is a ceiling, ``normalised``."""
        found = {
            "correlation": float(np.nanmean(self.correlation)),
            "explained": float(np.nanmedian(self.r_squared)),
            "undefined_targets": float(np.isnan(self.correlation).mean()),
        }
        if self.ceiling is not None:
            found["normalised"] = float(np.nanmean(normalised_score(self.correlation, self.ceiling)))
        return found

    def predict(self, features: Float[Tensor, "sample unit"] | Any) -> Float[np.ndarray, "sample target"]:
        """Responses to other samples under the final fit."""
        rows = as_rows(features, ndim=(2,))
        if rows.n_units != len(self.coef):
            raise InputError(f"features have {rows.n_units} units, the model was fitted on {len(self.coef)}")
        return np.concatenate([batch.values.double().numpy() @ self.coef + self.intercept for batch in rows])

    def plot(self, axes: Axes) -> None:
        """How many targets have which correlation, against their ceilings where they are known."""
        sound = self.correlation[~np.isnan(self.correlation)]
        axes.hist(sound, bins=min(40, max(5, len(sound) // 4)), range=(min(0.0, float(sound.min(initial=0))), 1.0))
        axes.axvline(float(np.nanmean(self.correlation)), color="C1", label="mean")
        if self.ceiling is not None:
            axes.axvline(float(np.nanmean(self.ceiling)), color="0.5", linestyle="--", label="mean ceiling")
        axes.legend(frameon=False)
        axes.set(xlabel="out-of-fold correlation", ylabel="targets")


@lens(
    question="How well does one site, or network, linearly predict each unit of the other?",
    needs=("features", "other"),
    pooled=True,
    min_samples=15,
    invariances=("unit permutation", "rotation", "scale", "translation"),
)
def encoding(
    features: Float[Tensor, "sample unit"] | Any, other: Float[Tensor, "sample target"] | Any
) -> EncodingResult:
    """:func:`fit_ridge_cv` with five random folds and penalties from 1e-6 to 1e3 of the features' mean variance.

    Args:
        features, other: ``(sample, unit)`` and ``(sample, target)`` of the same samples.

    Cost: O(n p (p + v) + 16 p^3) for p units and v targets; streams. Raises InputError as :func:`fit_ridge_cv`.
    """
    return fit_ridge_cv(features, other)


def fit_ridge_cv(
    features: Float[Tensor, "sample unit"] | Any,
    responses: Float[Tensor, "sample target"] | Any,
    alphas: Sequence[float] | None = None,
    groups: Any = None,
    *,
    n_splits: int = 5,
    ceiling: Float[np.ndarray, " target"] | None = None,
    random_state: int = 0,
) -> EncodingResult:
    """Ridge regression ``min |y - x b - c|^2 + alpha |b|^2`` of every target, with a penalty for each target.

    Nested cross-validation: predictions of a fold come from the other folds, and so does the penalty used for it.

    Args:
        features: ``(sample, unit)``; not standardised.
        responses: ``(sample, target)`` of the same samples; NaN marks a response that is missing.
        alphas: penalties as in scikit-learn's ``Ridge``; by default 19 from 1e-6 to 1e3 times the features' total variance
            over their number of units (``trace(S) / p``), so that they follow the features' scale.
        groups: ``(sample,)``; whole groups (subjects, sessions, scenes) stay in one fold.
        n_splits: folds, at least 3. ceiling: ``(target,)`` correlations of a perfect model (:func:`noise_ceiling`).

    Returns:
        :class:`EncodingResult`. Targets with the same missing responses are fitted together.

    Cost: one pass, O(n p (p + v)), then n_splits^2 / 2 eigendecompositions O(p^3) and O(alphas p^2 v) for each split; memory
    8 n_splits (p^2 + p v) bytes. More units than samples (up to 8,192 samples) are turned into as many coordinates as samples
    first, in memory. Raises InputError for shapes that do not fit, too few samples or groups, negative
    penalties, responses none of which varies, or a target with fewer than two responses in some fold; NonFiniteError for NaN in features.
    """
    x = as_rows(features, ndim=(2,), min_samples=2 * n_splits)
    y, missing = _responses(responses, x.n_samples)
    if alphas is not None and (not len(alphas) or min(alphas) < 0 or not np.isfinite(alphas).all()):
        raise InputError(f"alphas are {list(alphas)}, expected one or more penalties that are not negative")
    if n_splits < 3:
        raise InputError(f"n_splits is {n_splits}; choosing a penalty and judging it needs at least three folds")
    if ceiling is not None and np.shape(ceiling) != (y.shape[1],):
        raise InputError(f"the ceiling has shape {np.shape(ceiling)}, there are {y.shape[1]} targets")
    fold = np.zeros(x.n_samples, dtype=np.int64)
    for index, (_, judged) in enumerate(split_folds(x.n_samples, n_splits, groups=groups, random_state=random_state)):
        fold[judged.numpy()] = index
    x, turn = _narrow(x)
    parts = [(None, np.arange(y.shape[-1]))] if missing is None else _patterns(missing)
    made = [_fit(x, y, fold, keep, targets, alphas, n_splits) for keep, targets in parts]
    order = np.argsort(np.concatenate([targets for _, targets in parts]))
    total, explained, each, best, coef, intercept = (
        np.concatenate(pieces, axis=-1)[..., order] for pieces in zip(*made, strict=True)
    )
    if np.isnan(total).all():
        raise InputError("no response varies over the samples in any fold, so there is nothing to predict")
    return EncodingResult(
        total, explained, each, best, coef if turn is None else turn @ coef, intercept,
        None if ceiling is None else np.asarray(ceiling, dtype=np.float64), x.n_samples,
        context=Context(n_samples=x.n_samples, seed=random_state, options={"n_splits": n_splits}),
    )  # fmt: skip


def _responses(responses: Any, n_samples: int) -> tuple[Any, Bool[np.ndarray, "sample target"] | None]:
    """Responses that can be sliced by sample, and which are missing (None where none is)."""
    if getattr(responses, "ndim", 2) == 1:
        responses = responses[:, None]
    y = responses
    if isinstance(y, (np.ndarray, Tensor, list, tuple)):
        y = np.asarray(torch.as_tensor(np.asarray(y) if isinstance(y, (list, tuple)) else y).double())
    if len(y.shape) != 2 or y.shape[0] != n_samples or 0 in y.shape:
        raise InputError(f"responses have shape {tuple(y.shape)}, expected (sample, target) with {n_samples} samples")
    if not isinstance(y, np.ndarray):
        return as_rows(y, ndim=(2,)).source, None
    if np.isinf(y).any():
        raise InputError("a response is infinite; give a finite number, or NaN for a response that is missing")
    missing = np.isnan(y)
    return y, missing if missing.any() else None


def _narrow(x: Rows) -> tuple[Rows, Float[np.ndarray, "unit axis"] | None]:
    """Features in as many coordinates as samples where they have more units, and the axes of these coordinates.

    Ridge regression sees only inner products of samples, so nothing is lost.
    """
    if x.n_units <= x.n_samples or x.n_samples > MAX_KERNEL:
        return x, None
    values = x.array().double().numpy()
    middle = values.mean(0)
    own, vectors = np.linalg.eigh((values - middle) @ (values - middle).T)
    sound = own > 1e-12 * max(own.max(), 1e-300)
    if not sound.any():
        return x, None
    axes = (values - middle).T @ (vectors[:, sound] / np.sqrt(own[sound]))
    return as_rows(values @ axes, ndim=(2,)), axes


def _patterns(missing: Bool[np.ndarray, "sample target"]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Targets with the same missing samples together: the samples to keep, and the targets."""
    found: dict[bytes, list[int]] = {}
    for target, column in enumerate(missing.T):
        found.setdefault(np.packbits(column).tobytes(), []).append(target)
    return [(~missing[:, members[0]], np.array(members)) for members in found.values()]


def _fit(
    x: Rows, y: Any, fold: np.ndarray, keep: np.ndarray | None, targets: np.ndarray, alphas: Any, n_splits: int
) -> tuple[np.ndarray, ...]:
    """Correlation, explained variance, correlation of each fold, penalty, coefficients and intercept of some targets."""
    counts = np.bincount(fold if keep is None else fold[keep], minlength=n_splits)
    if counts.min() < 2:
        raise InputError(
            f"target {targets[0]} has {counts.min()} responses in one of {n_splits} folds, at least two are needed in each; "
            "leave it out or use fewer folds"
        )
    moments = FoldMoments(n_splits)
    for batch in x:
        at = slice(int(batch.samples[0]), int(batch.samples[-1]) + 1)
        responses = torch.as_tensor(y[at]).double().numpy()
        inside = np.ones(len(responses), dtype=bool) if keep is None else keep[at]
        moments.update(batch.values.double().numpy()[inside], responses[inside][:, targets], fold[at][inside])
    scatter = moments.moments(moments.order).scatter_a
    if scatter is None or not np.trace(scatter) > 0:
        raise InputError("features are the same for every sample, so nothing can be predicted from them")
    if alphas is None:
        alphas = [each * float(np.trace(scatter)) / x.n_units for each in RELATIVE_ALPHAS]
    total, each, final, best = nested(moments, alphas)
    return mean_of_folds(each), total.r_squared, each, best, final.coef, final.intercept
