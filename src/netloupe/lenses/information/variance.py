"""How much of a representation's variance a label or an abstract feature explains.

Source: Lampinen, Chan and Hermann, "Learned feature representations are biased by complexity, learning order, position, and
more", arXiv 2405.05847. Their warning belongs to the number: variance is not importance. A network that computes two
features equally well may give one of them several times the variance of the other.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.core.statistics import LabelMoments, LabelMomentsResult, Statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MATCHED = 0.99  # features that the network gets right less often are not compared on equal terms
UNBALANCED = 0.95
CORRELATED = 0.05


@dataclass(frozen=True, eq=False)
class LabelVariance(Finding):
    """``share`` corrected for chance, ``raw`` uncorrected; ``classes`` are the labels seen, ``between`` float64
    ``(class,)`` each one's part of the uncorrected share."""

    share: float
    standard_error: float
    raw: float
    chance: float
    between: Float[np.ndarray, " class"]
    classes: Int[np.ndarray, " class"]
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "label_share": "share of the representation's variance that the label explains, corrected for chance",
        "standard_error": "its standard error over samples",
        "raw_share": "the same without the correction",
        "chance_share": "the uncorrected share that labels without meaning would have",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        values = (self.share, self.standard_error, self.raw, self.chance)
        return dict(zip(self.meanings, values, strict=True))

    def paragraph(self) -> str:
        """The answer in plain words."""
        return (
            f"The label explains {100 * self.share:.1f} % (standard error {100 * self.standard_error:.2g} %) of the "
            f"representation's variance over {len(self.classes)} classes and {self.n_samples} samples, corrected for chance "
            f"({100 * self.chance:.2g} %). Little variance does not mean that the network makes little use of it."
        )

    def plot(self, axes: Axes) -> None:
        """Every class's part of the uncorrected share."""
        axes.bar(np.arange(len(self.classes)), self.between, color="C0")
        step = max(1, len(self.classes) // 20)
        axes.set_xticks(np.arange(len(self.classes))[::step], [str(label) for label in self.classes[::step]])
        axes.set(xlabel="class", ylabel="share of the variance", title=f"all classes, corrected: {self.share:.3f}")


def _conclude(statistics: Mapping[str, Statistic]) -> LabelVariance:
    moments = statistics["labels"]
    assert isinstance(moments, LabelMoments)
    found = moments.result()
    classes = np.flatnonzero(found.counts)
    n, k = found.count, len(classes)
    if k < 2:
        raise InputError(f"labels hold {k} class, at least 2 are needed for a label to explain anything")
    if n - k < 2:
        raise InputError(f"{n} samples of {k} classes were given, at least {k + 2} samples are needed")
    counts, offset = found.counts[classes], found.means[classes] - found.global_mean
    parts = counts * (offset**2).sum(1)
    within, between = found.within_total, float(parts.sum())
    total = within + between
    _require_variance(total, n, found.means[classes])
    error = _standard_error(found.within, counts, offset, within, between)
    share = 1 - (within / (n - k)) / (total / (n - 1))
    return LabelVariance(share, error, between / total, (k - 1) / (n - 1), parts / total, classes, n)


def _standard_error(
    scatter: np.ndarray, counts: np.ndarray, offset: np.ndarray, within: float, between: float
) -> float:
    """Delta method for ``W / (W + B)`` with normal noise of one covariance S around fixed class means.

    ``var W = 2 v tr S^2`` with ``v = n - k``; ``var B = 2 (k-1) tr S^2 + 4 sum_c n_c o_c' S o_c``. ``tr S^2`` and the last
    sum are freed of what noise adds to their plug-in values.
    """
    n, k = int(counts.sum()), len(counts)
    v = n - k
    square = v**2 / ((v - 1) * (v + 2)) * (np.vdot(scatter, scatter) / v**2 - (within / v) ** 2 / v)
    square = max(float(square), 0.0)
    slope = float(counts @ np.einsum("cd,cd->c", offset @ (scatter / v), offset)) - (k - 1) * square
    var_within, var_between = 2 * v * square, 2 * (k - 1) * square + 4 * max(slope, 0.0)
    variance = (between**2 * var_within + within**2 * var_between) / (within + between) ** 4
    return float((n - 1) / v * np.sqrt(variance))


@lens(
    question="How much of the representation's variance does the label explain?",
    needs=("features", "labels"),
    pooled=True,
    min_samples=4,
    invariances=("unit permutation", "sample permutation", "rotation", "scale", "translation"),
    statistics={"labels": lambda: LabelMoments(second="full")},
    conclude=_conclude,
)
def label_variance(features: Float[Tensor, "sample unit"] | Any, labels: Int[Tensor, " sample"] | Any) -> LabelVariance:
    """The share of variance explained by class means, free of the upward bias of few samples (epsilon squared).

    With the scatters ``W`` within classes and ``T`` in all, ``share = 1 - [W / (n - k)] / [T / (n - 1)]``: about 0 for labels
    without meaning (and then as often negative as positive), exactly ``R^2`` of the class means in the limit. A closed form
    in place of a split into fitted and held-out samples, so that it needs no seed and no order of samples. The measure is
    that of arXiv 2405.05847; the standard error takes noise as normal with one covariance for all classes.

    Args:
        features: ``(sample, unit)``: tensor, array or stored site. labels: ``(sample,)`` integers from 0.

    Cost: one pass, O(n d^2) time and O(d^2 + k d) memory for the standard error; streams. :func:`variance_explained` gives
    a share alone in O(n d). Raises InputError for no labels, one class, fewer than ``k + 2`` samples, or no variance.
    """
    rows = as_rows(features, labels, ndim=(2,), min_samples=4)
    if rows.labels is None:
        raise InputError("no labels were given; one class index for each sample is needed")
    moments = LabelMoments(second="full")
    for batch in rows:
        moments.update(batch.values, labels=batch.labels)
    return _conclude({"labels": moments})


def held_out_share(found: LabelMomentsResult, total: float | None = None) -> float:
    """``R^2`` of class means with every sample predicted from the others, from per-class sums alone (mergeable).

    ``1 - sum_c W_c (n_c / (n_c - 1))^2 / (T (n / (n - 1))^2)``: leaving a sample out moves its class mean away from it by
    exactly ``1 / (n_c - 1)`` of its residual. ``total``: variance (mean squared length of a centred sample) to divide by in
    place of the data's own. Cost O(k d). Raises InputError for one class, a class of one sample, or no variance.
    """
    if found.second == "full":
        raise InputError("LabelMoments kept second='full', which pools classes; build it with second='trace'")
    seen = np.flatnonzero(found.counts)
    counts, n = found.counts[seen].astype(float), found.count
    if len(seen) < 2 or counts.min() < 2:
        raise InputError(
            f"the feature's values occur {found.counts[seen].tolist()[:6]} times; two values, each twice, are needed"
        )
    within = found.within[seen].reshape(len(seen), -1).sum(1)
    alone = (found.within_total + found.between_total) * (n / (n - 1)) ** 2
    _require_variance(alone, n, found.means[seen])
    rest = float(within @ (counts / (counts - 1)) ** 2)
    return (alone - rest) / (alone if total is None else n * _positive(total))


def variance_explained(
    features: Float[Tensor, "sample unit"] | Any,
    f: Any,
    *,
    fit: Bool[np.ndarray, " sample"] | None = None,
    total: float | None = None,
    form: Literal["ratio", "sample"] = "ratio",
) -> float:
    """Held-out share of the representation's variance that a feature explains: ``1 - sum |x - W f|^2 / sum |x - mean|^2``.

    The regression is from the feature to the representation (arXiv 2405.05847), summed over units, so that a unit counts by
    its variance. A held-out share may be slightly negative; it is not clipped.

    Args:
        features: ``(sample, unit)``. f: integers or booleans ``(sample,)`` are classes, predicted by class means; floats
            ``(sample,)`` or ``(sample, column)`` are regressed linearly with an intercept.
        fit: samples to fit on; the others are evaluated, centred by the mean of the fitted. None: each sample is predicted
            from all others (exact leave-one-out), which needs no split.
        total: variance to divide by in place of the data's own, such as the final one, for curves over training.
        form: ``ratio`` of sums, or ``sample``: the mean over samples of each one's own ratio, unstable where samples lie
            near the mean (with ``fit`` only).

    Cost: O(n d) for classes, which stream without ``fit``; O(n d c) and all samples in memory otherwise. Raises InputError
    for a constant feature, a value seen once, or no variance.
    """
    if form not in ("ratio", "sample") or (form == "sample" and (fit is None or total is not None)):
        raise InputError(f"form is '{form}', expected 'ratio', or 'sample' together with fit and without total")
    f = np.asarray(f.cpu() if isinstance(f, Tensor) else f)
    rows = as_rows(features, ndim=(2,), min_samples=4)
    if f.ndim not in (1, 2) or len(f) != rows.n_samples:
        raise InputError(f"the feature has shape {f.shape}, expected one value for each of {rows.n_samples} samples")
    classes = f.dtype.kind in "iub" and f.ndim == 1
    if classes:
        codes = _codes(f)
        if fit is None:
            moments = LabelMoments(second="trace")
            for batch in rows:
                moments.update(batch.values, labels=codes[batch.samples])
            return held_out_share(moments.result(), total)
        design = np.eye(int(codes.max()) + 1)[codes.numpy()]
    else:
        if f.dtype.kind not in "fiub" or not np.isfinite(f).all():
            raise InputError("the feature holds values that are not finite numbers; give integers or finite floats")
        design = np.column_stack([np.ones(len(f)), f.astype(np.float64)])
        if not np.ptp(design[:, 1:], 0).any():
            raise InputError("the feature is the same for every sample, so it can explain nothing")
    values = rows.array().double().numpy()
    return _by_regression(values, design, fit, total, form, classes)


def _by_regression(
    values: np.ndarray, design: np.ndarray, fit: np.ndarray | None, total: float | None, form: str, classes: bool
) -> float:
    n, raw = len(values), values
    if fit is None:
        basis, size, _ = np.linalg.svd(design, full_matrices=False)
        basis = basis[:, size > size[0] * n * np.finfo(float).eps]
        values = values - values.mean(0)
        leverage = np.minimum((basis**2).sum(1), 1 - 1e-12)
        rest = ((values - basis @ (basis.T @ values)) ** 2).sum(1) / (1 - leverage) ** 2
        alone = (values**2).sum(1) * (n / (n - 1)) ** 2
    else:
        fit = np.asarray(fit)
        if fit.dtype != bool or fit.shape != (n,) or fit.all() or fit.sum() < 2:
            raise InputError(
                f"fit is {fit.dtype} of shape {fit.shape}, expected a mask of {n} samples that leaves some out"
            )
        inside, outside = values[fit], values[~fit]
        mean = inside.mean(0)
        if (
            classes
        ):  # columns that do not overlap: least squares is the mean of each; a class not fitted is the mean of all
            counts = design[fit].sum(0)
            weights = (design[fit].T @ inside - counts[:, None] * mean) / np.maximum(counts, 1)[:, None]
        else:
            weights = np.linalg.lstsq(design[fit], inside - mean, rcond=None)[0]
        outside -= mean
        alone = np.einsum("nd,nd->n", outside, outside)
        outside -= design[~fit] @ weights
        rest = np.einsum("nd,nd->n", outside, outside)
    _require_variance(float(alone.sum()), len(alone), raw)
    if form == "sample":
        return float(np.mean(1 - rest / np.maximum(alone, np.finfo(float).tiny)))
    return float((alone.sum() - rest.sum()) / (alone.sum() if total is None else len(alone) * _positive(total)))


@dataclass(frozen=True, eq=False)
class VarianceProfile(Finding):
    """How features and their products share out a representation's variance.

    ``names`` and ``share`` ``(term,)``: the ``n_features`` features, then products of two and more. ``unique`` ``(feature,)``:
    what a feature explains beyond all the others; equal to its share where features are independent. ``warnings``: what
    stands against comparing them.
    """

    names: tuple[str, ...]
    share: Float[np.ndarray, " term"]
    unique: Float[np.ndarray, " feature"]
    n_features: int
    warnings: tuple[str, ...] = ()

    meanings: ClassVar[dict[str, str]] = {
        "gap": "difference of the largest and the smallest share of variance among the features",
        "largest_share": "share of the variance that the feature with most of it explains",
        "smallest_share": "the same of the feature with least",
        "interaction_share": "share explained by products of features",
        "unexplained_share": "share that neither explains",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        own, products = self.share[: self.n_features], float(self.share[self.n_features :].sum())
        values = (np.ptp(own), own.max(), own.min(), products, 1 - own.sum() - products)
        return {name: float(value) for name, value in zip(self.meanings, values, strict=True)}

    def paragraph(self) -> str:
        """The bias in plain words."""
        own = self.share[: self.n_features]
        most, least = self.names[int(own.argmax())], self.names[int(own.argmin())]
        text = (
            f"Feature '{most}' explains {100 * own.max():.1f} % of the variance and '{least}' {100 * own.min():.1f} %: "
            "what looks large in this representation need not matter more."
        )
        return " ".join([text, *self.warnings])

    def plot(self, axes: Axes) -> None:
        """A bar for every feature and product."""
        colours = ["C0" if index < self.n_features else "C7" for index in range(len(self.names))]
        axes.barh(self.names, self.share, color=colours)
        axes.invert_yaxis()
        axes.set(xlabel="share of the variance (held out)")


def variance_profile(
    features: Float[Tensor, "sample unit"] | Any,
    factors: Int[np.ndarray, "sample feature"] | Any,
    interactions: int = 2,
    *,
    names: Sequence[str] | None = None,
    accuracy: Sequence[float] | None = None,
    fit: Bool[np.ndarray, " sample"] | None = None,
    total: float | None = None,
) -> VarianceProfile:
    """:func:`variance_explained` for each yes/no feature and each product of up to ``interactions`` of them.

    For independent balanced features the shares add up to at most 1, and with all products to what any function of the
    features can explain.

    Args:
        features: ``(sample, unit)``. factors: ``(sample, feature)``, two values each. accuracy: the network's, one a
            feature; below 0.99 the comparison is marked as not matched. fit, total: as in :func:`variance_explained`.

    Warns (and keeps in ``warnings``) for a feature with one value in over 95 % of samples and for two that correlate by
    more than 0.05: then the shares overlap, and ``unique`` is what to read. Cost: O(n d) a term. Raises InputError for a
    factor that does not have two values.
    """
    table = np.asarray(factors.cpu() if isinstance(factors, Tensor) else factors)
    if table.ndim != 2 or any(len(np.unique(column)) != 2 for column in table.T):
        raise InputError(
            f"factors have shape {table.shape}, expected (sample, feature) with exactly two values in each column"
        )
    signs = np.where(table == table.max(0), 1.0, -1.0)
    k = signs.shape[1]
    names = tuple(names) if names is not None else tuple(f"feature {index}" for index in range(k))
    if len(names) != k or (accuracy is not None and len(accuracy) != k):
        raise InputError(
            f"{k} features were given with {len(names)} names; one name and one accuracy for each is needed"
        )
    terms = [each for order in range(1, max(interactions, 1) + 1) for each in combinations(range(k), order)]
    shares = [variance_explained(features, signs[:, each].prod(1), fit=fit, total=total) for each in terms]
    if k == 1:
        unique = np.array(shares[:1])
    else:
        everything = variance_explained(features, signs, fit=fit, total=total)
        unique = np.array(
            [everything - variance_explained(features, np.delete(signs, j, 1), fit=fit, total=total) for j in range(k)]
        )
    found = _doubts(signs, names, accuracy)
    for text in found:
        warnings.warn(text, stacklevel=2)
    labels = tuple(" x ".join(names[j] for j in each) for each in terms)
    return VarianceProfile(labels, np.array(shares), unique, k, found)


def _doubts(signs: np.ndarray, names: tuple[str, ...], accuracy: Sequence[float] | None) -> tuple[str, ...]:
    found = []
    for name, column in zip(names, signs.T):
        if max((column > 0).mean(), (column < 0).mean()) > UNBALANCED:
            found.append(f"One value of feature '{name}' makes up more than 95 % of the samples.")
    related = np.corrcoef(signs.T) if len(names) > 1 else np.eye(1)
    for i, j in combinations(range(len(names)), 2):
        if abs(related[i, j]) > CORRELATED:
            found.append(
                f"Features '{names[i]}' and '{names[j]}' correlate by {related[i, j]:.2f}: their shares overlap."
            )
    for name, value in zip(names, accuracy or ()):
        if value < MATCHED:
            found.append(f"Not matched: feature '{name}' is right in only {100 * value:.1f} % of samples.")
    return tuple(found)


def _codes(f: np.ndarray) -> Int[Tensor, " sample"]:
    """Classes counted from 0."""
    if f.dtype.kind != "b" and f.min() >= 0 and f.max() < 4096:
        return torch.from_numpy(f.astype(np.int64))
    return torch.from_numpy(np.unique(f, return_inverse=True)[1].astype(np.int64))


def _require_variance(total: float, n: int, values: np.ndarray) -> None:
    """More variation than the rounding of values that are all alike."""
    rounding = n * values.shape[1] * (np.finfo(np.float64).eps * float(np.abs(values).max(initial=0.0))) ** 2
    if not total > 16 * rounding:
        raise InputError("the representation is the same for every sample, so there is no variance to explain")


def _positive(total: float) -> float:
    if not total > 0:
        raise InputError(f"total is {total}, expected a positive variance")
    return total
