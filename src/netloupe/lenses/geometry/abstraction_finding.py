"""The abstraction metrics of a site in one answer, with what chance would give.

Source: Bernardi et al., doi 10.1016/j.cell.2020.09.031; Alleman, Lindsey and Fusi, arXiv 2401.13558. Definitions are told in
:mod:`netloupe.lenses.geometry.abstraction`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.core.statistics import LabelMoments
from netloupe.lenses.geometry.abstraction import parallelism_of
from netloupe.lenses.geometry.dichotomies import near_balanced, training_sets
from netloupe.lenses.geometry.margins import decision_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_SAMPLES = 4096
MOST_PROBLEMS = 2000
BLOCKS = 10
NULLS = 20
RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Abstraction(Finding):
    """Parallelism, cross-condition generalisation and decodability of dichotomies of the classes.

    ``dichotomies`` int8 ``(dichotomy, class)``: +1, -1, and 0 for a class left out because their number is odd. ``parallelism``,
    ``ccgp`` and ``accuracy`` float64 ``(dichotomy,)``; the first two empty below four classes. ``null``,
    ``null_best``: mean and largest parallelism of random points with the same spectrum; None where there is none.
    """

    dichotomies: Int[np.ndarray, "dichotomy class"]
    parallelism: Float[np.ndarray, " dichotomy"]
    ccgp: Float[np.ndarray, " dichotomy"]
    accuracy: Float[np.ndarray, " dichotomy"]
    null: float | None
    null_best: float | None
    standard_error: float | None
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "parallelism": "how parallel the differences are that a division of the classes makes, 1 for parallel, averaged over divisions",
        "standard_error": "its standard error over samples",
        "parallelism_null": "the same for random class means with the same spectrum",
        "parallelism_best": "the division that is coded most in parallel",
        "parallelism_best_null": "the same for random class means with the same spectrum",
        "ccgp": "how often a reader fitted on some classes tells the sides of the others; 0.5 is chance",
        "ccgp_best": "the same for the division that generalises best",
        "shattering": "held-out accuracy of a linear reader, averaged over divisions of the classes",
        "shattering_worst": "the same for the division that is hardest to read",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains; only the last two below four classes."""
        found = {"shattering": float(self.accuracy.mean()), "shattering_worst": float(self.accuracy.min())}
        if not len(self.parallelism):
            return found
        lead = {
            "parallelism": float(self.parallelism.mean()), "standard_error": self.standard_error,
            "parallelism_null": self.null, "parallelism_best": float(self.parallelism.max()),
            "parallelism_best_null": self.null_best, "ccgp": float(self.ccgp.mean()), "ccgp_best": float(self.ccgp.max()),
        }  # fmt: skip
        return {name: value for name, value in {**lead, **found}.items() if value is not None}

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        text = (
            f"A linear reader tells the two sides of a division of the {self.dichotomies.shape[1]} classes on {found['shattering']:.1%} "
            f"of held-out samples, averaged over {len(self.accuracy)} divisions, and on {found['shattering_worst']:.1%} for the hardest."
        )
        if not len(self.parallelism) or self.null is None:
            return text
        error = f" (standard error {self.standard_error:.2g})" if self.standard_error is not None else ""
        return (
            f"Divisions of the classes are coded in parallel to {found['parallelism']:.3f}{error}, where random means with the "
            f"same spectrum give {self.null:.3f} and 1 is parallel; a reader fitted on some classes is right about the others in "
            f"{found['ccgp']:.1%} of cases (chance 50%). {text}"
        )

    def plot(self, axes: Axes) -> None:
        """Every division: its parallelism against how well it generalises, or its accuracy where there is no parallelism."""
        if not len(self.parallelism):
            axes.bar(np.arange(len(self.accuracy)), self.accuracy, color="C0")
            axes.axhline(0.5, color="0.4", linestyle=":")
            axes.set(xlabel="division of the classes", ylabel="held-out accuracy", ylim=(0, 1.02))
            return
        dots = axes.scatter(self.parallelism, self.ccgp, c=self.accuracy, vmin=0.5, vmax=1, cmap="viridis", s=18)
        if self.null is not None:
            axes.axvline(self.null, color="0.4", linestyle=":", label="parallelism of random means")
        axes.axhline(0.5, color="0.7", linewidth=1, label="chance")
        axes.figure.colorbar(dots, ax=axes, label="held-out accuracy")
        axes.set(xlabel="parallelism of a division", ylabel="generalisation to other classes", ylim=(-0.02, 1.02))
        axes.legend(frameon=False, fontsize="small")


@lens(
    question="Are divisions of the classes coded in parallel, so that a reader of some serves for the others?",
    needs=("features", "labels"),
    pooled=True,
    min_samples=4,
    limit=MAX_SAMPLES,
    invariances=("unit permutation", "rotation", "scale", "translation"),
)
def abstraction(
    features: Float[Tensor, "sample unit"] | Any,
    labels: Int[Tensor, " sample"] | Any,
    *,
    max_dichotomies: int = 64,
    random_state: int = 0,
) -> Abstraction:
    """Parallelism score, CCGP and shattering over balanced dichotomies of the classes (arXiv 2401.13558).

    Parallelism and CCGP are those of the class means, seen from their centre and in units of their root mean square; their
    definitions are in :func:`~netloupe.lenses.geometry.abstraction.parallelism_score` and
    :func:`~netloupe.lenses.geometry.abstraction.ccgp`. Shattering is the accuracy on every second sample of each class, classes
    weighing the same, of a ridge regression (penalty a thousandth of the mean squared unit) to +1 and -1 from the others. The
    standard error is the jackknife over ten parts of the samples. With an odd number of classes one is left out in turn.

    Args:
        features: ``(sample, unit)``. labels: ``(sample,)`` integers; two samples or more of each class.
        max_dichotomies: draw so many where there are more. random_state: of that draw, of subsets (at most 2,000 in all), and of
            the 20 random arrangements of the null.

    Cost: O(n d min(n, d) + min(n, d)^3) for the reader, and 2,000 small classifiers; holds at most 4,096 samples. Raises InputError
    for more samples, one class, a class with one sample, or class means that coincide.
    """
    rows = as_rows(features, labels, ndim=(2,), min_samples=4)
    if rows.labels is None:
        raise InputError("no labels were given; the class of each sample is needed")
    if max_dichotomies < 1:
        raise InputError(f"max_dichotomies is {max_dichotomies}, at least 1 is needed")
    classes, index, counts = np.unique(rows.labels.numpy(), return_inverse=True, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise InputError(
            f"{len(classes)} classes with at least {counts.min()} samples each were given; 2 of both are needed"
        )
    x = rows.array(MAX_SAMPLES, "the accuracy of readers").double().numpy()
    x = x - x.mean(0)
    if not np.abs(x).max() > 0:
        raise InputError("the features are the same for every sample, so there is nothing to read")
    x /= np.abs(x).max()
    signs = near_balanced(len(classes), max_dichotomies, random_state)
    rank = _rank_within(index)
    parallelism, generalised = np.zeros(0), np.zeros(0)
    null = null_best = error = None
    if len(classes) >= 4:
        means, without = _means(x, index, rank, len(classes))
        parallelism = parallelism_of(means[None], signs)[0]
        if len(without) > 1:
            left = parallelism_of(without, signs).mean(1)
            error = float(np.sqrt((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum()))
        random = parallelism_of(_random_points(means, random_state), signs)
        null, null_best = float(random.mean()), float(random.max(1).mean())
        generalised = _generalised(means, signs, random_state)
    accuracy = _accuracy(x, index, rank % 2 == 0, signs)
    return Abstraction(
        signs, parallelism, generalised, accuracy, null, null_best, error, len(x), context=Context(seed=random_state)
    )


def _rank_within(index: np.ndarray) -> np.ndarray:
    """The how-manieth of its class each sample is."""
    counts, order = np.bincount(index), np.argsort(index, kind="stable")
    rank = np.empty(len(index), dtype=int)
    rank[order] = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def _means(x: np.ndarray, index: np.ndarray, rank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Class means ``(class, unit)``, and those without each of some parts of the samples ``(part, class, unit)``."""
    parts = min(BLOCKS, int(np.bincount(index).min()))
    moments = LabelMoments(n_classes=k * parts)
    moments.update(torch.from_numpy(x), labels=torch.from_numpy(index * parts + rank % parts))
    found = moments.result()
    counts = found.counts.reshape(k, parts)
    sums = found.means.reshape(k, parts, -1) * counts[..., None]
    total, n = sums.sum(1), counts.sum(1)
    left = (total[:, None] - sums) / (n[:, None] - counts)[..., None] if parts > 1 else np.zeros((k, 0, x.shape[1]))
    return total / n[:, None], left.transpose(1, 0, 2)


def _random_points(means: np.ndarray, random_state: int) -> Float[np.ndarray, "draw class class"]:
    """Points with the spectrum of the means and random directions: all that a rotation of the units leaves alone."""
    k = len(means)
    spread = np.linalg.svd(means - means.mean(0), compute_uv=False)[: k - 1]
    rng = np.random.default_rng(random_state)
    drawn = rng.standard_normal((NULLS, k, k))
    drawn[:, :, 0] = 1
    basis = np.linalg.qr(drawn)[0][:, :, 1 : 1 + len(spread)]
    return basis * spread


def _generalised(means: np.ndarray, signs: np.ndarray, random_state: int) -> Float[np.ndarray, " dichotomy"]:
    """CCGP of every dichotomy of the class means, all classifiers solved together."""
    z = means - means.mean(0)
    z = z / np.sqrt((z * z).sum(1).mean())
    most = max(1, MOST_PROBLEMS // len(signs))
    fitted, owner = [], []
    for number, row in enumerate(signs):
        subsets = training_sets(np.flatnonzero(row < 0), np.flatnonzero(row > 0), most, False, random_state)
        fitted += [np.isin(np.arange(len(z)), subset) for subset in subsets]
        owner += [number] * len(subsets)
    mask, number = np.stack(fitted), np.array(owner)
    sides = signs[number].astype(np.float64)
    right = (decision_values(z, np.where(sides == 0, 1.0, sides), mask) > 0) == (sides > 0)
    judged = ~mask & (sides != 0)
    scores = (right & judged).sum(1) / judged.sum(1)
    return np.bincount(number, scores) / np.bincount(number)


def _accuracy(x: np.ndarray, index: np.ndarray, fit: np.ndarray, signs: np.ndarray) -> Float[np.ndarray, " dichotomy"]:
    """Of ridge regressions to +1 and -1: one factorisation serves all dichotomies."""
    mean = x[fit].mean(0)
    known, new = x[fit] - mean, x[~fit] - mean
    wanted = signs[:, index].astype(np.float64)
    weight = 1 / np.bincount(index[fit])[index[fit]]  # classes weigh the same
    offset = (wanted[:, fit] * weight).sum(1) / weight.sum()
    aims = (wanted[:, fit] - offset[:, None]).T
    penalty = RIDGE * max(float((known**2).mean()), 1e-300) * len(known)
    if known.shape[1] <= len(known):
        factor = cho_factor(known.T @ known + penalty * np.eye(known.shape[1]))
        said = new @ cho_solve(factor, known.T @ aims)
    else:
        factor = cho_factor(known @ known.T + penalty * np.eye(len(known)))
        said = (new @ known.T) @ cho_solve(factor, aims)
    right = ((said + offset > 0) == (wanted[:, ~fit].T > 0)).astype(np.float64)
    members = index[~fit]
    per_class = np.stack([right[members == label].mean(0) for label in range(signs.shape[1])], axis=1)
    return (per_class * (signs != 0)).sum(1) / (signs != 0).sum(1)
