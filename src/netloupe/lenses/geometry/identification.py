"""Which region, or layer, do these distances come from? Told across individuals by the nearest class centroid.

Source: Lin and Kriegeskorte, arXiv 2309.11028: leave-one-subject-out identification from transformed dissimilarity matrices,
a bootstrap over subjects and stimuli that all transforms share, and a map of accuracy over the family's quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.spatial import procrustes
from scipy.spatial.distance import cdist

from netloupe.core.dissimilarity import samples_of_pairs
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.geotopology import rank_minmax, squashed
from netloupe.lenses.geometry.identification_scores import (
    Responses,
    Transform,
    accuracy_of,
    centroid_scores,
    transformed,
)
from netloupe.lenses.geometry.topology import CORNERS, Corner, corner_parameters, region_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = ("subject", "session", "stimulus")


class RepresentationIdentifier:
    """Leave-one-subject-out identification of regions by the nearest centroid of transformed distances.

    Every subject is left out in turn; a region's centroid is the mean of its transformed vectors over the other subjects, and each
    left-out vector goes to the nearest (Euclidean; the first of equals).

    Args:
        transform: of one condensed vector, for example ``geo_topological`` with its quantiles set; None takes them as they are.

    After ``fit``: ``regions_`` the names in order, ``predicted_`` one for each vector, ``confusion_`` ``(region, predicted)``
    counts, ``sensitivity_`` and ``specificity_`` ``(region,)``, ``within_across_`` mean
    distance of a left-out vector to the others of its region over that to the others of all other regions.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        self.transform = transform

    def fit(self, vectors: Any, subject: Any, region: Any) -> RepresentationIdentifier:
        """Learns and judges, one subject left out at a time.

        Args:
            vectors: ``(response, pair)``, condensed distances between the same stimuli, or :class:`Dissimilarities`. subject, region:
                ``(response,)``.

        Cost: one transform a response, O(m R p) for m responses of R regions. Raises InputError for fewer than two subjects or regions, or
        a region that some subject lacks; NonFiniteError for NaN.
        """
        data = Responses.of(vectors, subject, region)
        data.require_all_regions()
        self.vectors_ = transformed(data.vectors, self.transform)
        self.regions_ = data.names
        self._subject, self._region = data.subject, data.region
        scores = centroid_scores(self.vectors_, data.subject, data.region, len(data.names))
        chosen = scores.argmin(1)
        self.predicted_ = data.names[chosen]
        k = len(data.names)
        self.confusion_ = np.bincount(data.region * k + chosen, minlength=k * k).reshape(k, k)
        return self

    def predict(self, vectors: Any) -> np.ndarray:
        """The region with the nearest centroid over all fitted subjects, of each new vector ``(response, pair)``."""
        self._need_fit()
        given = transformed(np.atleast_2d(np.asarray(vectors, dtype=np.float64)), self.transform)
        if given.shape[1] != self.vectors_.shape[1]:
            raise InputError(
                f"vectors have {given.shape[1]} pairs and those fitted {self.vectors_.shape[1]}; the same stimuli are needed"
            )
        k = len(self.regions_)
        centroids = np.stack([self.vectors_[self._region == r].mean(0) for r in range(k)])
        return self.regions_[cdist(given, centroids).argmin(1)]

    def score(self) -> float:
        """Share of left-out vectors that are identified."""
        self._need_fit()
        return float(np.trace(self.confusion_) / self.confusion_.sum())

    @property
    def sensitivity_(self) -> Float[np.ndarray, " region"]:
        """Share of each region's vectors that are called by its name."""
        self._need_fit()
        return np.diag(self.confusion_) / self.confusion_.sum(1)

    @property
    def specificity_(self) -> Float[np.ndarray, " region"]:
        """Share of the other regions' vectors that are not."""
        self._need_fit()
        wrong = self.confusion_.sum(0) - np.diag(self.confusion_)
        return 1 - wrong / (self.confusion_.sum() - self.confusion_.sum(1))

    @property
    def within_across_(self) -> float:
        """Mean over left-out vectors of the mean distance to their own region's others over that to other regions' others."""
        self._need_fit()
        table = cdist(self.vectors_, self.vectors_)
        others = self._subject[:, None] != self._subject
        own = self._region[:, None] == self._region
        within, across = ((table * part).sum(1) / part.sum(1) for part in (others & own, others & ~own))
        return float((within / across).mean())

    def _need_fit(self) -> None:
        if not hasattr(self, "confusion_"):
            raise InputError("the identifier has not been fitted; call fit(vectors, subject, region) first")


@dataclass(frozen=True, eq=False)
class Identification(Finding):
    """Accuracies of several transforms on the same bootstrap samples.

    ``names`` of the transforms; ``accuracy`` float64 ``(transform,)`` on all data; ``draws`` ``(draw, transform)``; ``chance`` one over the
    number of regions.
    """

    names: tuple[str, ...]
    accuracy: Float[np.ndarray, " transform"]
    draws: Float[np.ndarray, "draw transform"]
    chance: float
    over: tuple[str, ...]

    meanings: ClassVar[dict[str, str]] = {
        "best": "share of left-out responses whose region is identified, by the best transform",
        "standard_error": "its bootstrap standard error",
        "first": "the same by the transform that was given first",
        "difference": "the best less the first",
        "p_value": "chance of such a difference without one (two-sided)",
        "chance": "what guessing would identify",
    }

    def difference(self, one: str, other: str) -> tuple[float, tuple[float, float], float]:
        """Accuracy of ``one`` less that of ``other``, its 95 % bootstrap interval, and the two-sided p-value of ``t = difference /
        standard deviation of the bootstrap differences`` (degrees of freedom: draws less 1). Raises InputError for unknown names."""
        if one not in self.names or other not in self.names:
            raise InputError(f"'{one}' and '{other}' are not both among the transforms {', '.join(self.names)}")
        i, j = self.names.index(one), self.names.index(other)
        differences = self.draws[:, i] - self.draws[:, j]
        found = float(self.accuracy[i] - self.accuracy[j])
        low, high = np.quantile(differences, (0.025, 0.975))
        spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
        p = (
            1.0
            if found == 0
            else 0.0
            if spread == 0
            else float(2 * stats.t.sf(abs(found) / spread, len(differences) - 1))
        )
        return found, (float(low), float(high)), p

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        best = int(self.accuracy.argmax())
        gain, _, p = self.difference(self.names[best], self.names[0])
        return {
            "best": float(self.accuracy[best]), "standard_error": float(self.draws[:, best].std(ddof=1)) if len(self.draws) > 1 else 0.0,
            "first": float(self.accuracy[0]), "difference": gain, "p_value": p, "chance": self.chance,
        }  # fmt: skip

    def paragraph(self) -> str:
        """The answer in plain words."""
        found, best = self.summary(), self.names[int(self.accuracy.argmax())]
        text = (
            f"{best}: the region of {found['best']:.1%} of left-out responses is identified (bootstrap standard error "
            f"{found['standard_error']:.1%} over {' and '.join(self.over)}; chance {self.chance:.1%})."
        )
        if best == self.names[0]:
            return text
        return f"{text} {self.names[0]}: {found['first']:.1%}, a difference with p = {found['p_value']:.2g}."

    def plot(self, axes: Axes) -> None:
        """Accuracy of each transform with its 95 % bootstrap interval."""
        low, high = np.quantile(self.draws, (0.025, 0.975), axis=0)
        place = np.arange(len(self.names))
        axes.barh(place, self.accuracy, color="C0", alpha=0.5)
        axes.hlines(place, low, high, color="k")
        axes.axvline(self.chance, color="0.4", linestyle=":")
        axes.set_yticks(place, self.names)
        axes.set(xlabel="share identified (dotted: chance)", xlim=(0, 1.02))


def bootstrap_identification(
    vectors: Any,
    subject: Any,
    region: Any,
    transforms: Mapping[str, Transform | None] | None = None,
    n_boot: int = 1000,
    over: Sequence[str] = ("subject", "stimulus"),
    seed: int = 0,
) -> Identification:
    """Identification accuracy of several transforms with a bootstrap that they share, so that differences are paired.

    Vectors are transformed once; then subjects (or sessions: single responses, as in the authors' code) and stimuli are drawn with
    replacement. A pair of stimuli counts as often as it was drawn, and pairs of a stimulus with itself are no pairs: filling
    them with their mean, the authors' alternative to dropping them, adds nothing to any distance. Copies of a subject are left
    out together.

    Args:
        vectors, subject, region: as in :meth:`RepresentationIdentifier.fit`. transforms: by name; by default distances and their ranks.
        n_boot: draws. over: which of ``subject``, ``session`` and ``stimulus`` to draw. seed: of the draws.

    Cost: O(n_boot m R p) for each transform. Raises InputError for unknown levels, and as :meth:`RepresentationIdentifier.fit`.
    """
    if not over or set(over) - set(LEVELS) or {"subject", "session"} <= set(over) or n_boot < 1:
        raise InputError(
            f"over is {tuple(over)} with {n_boot} draws; some of {', '.join(LEVELS)} (not both of the first two) and at least 1 "
            "are needed"
        )
    data = Responses.of(vectors, subject, region)
    data.require_all_regions()
    named: Mapping[str, Transform | None] = transforms or {"distances": None, "ranked": rank_minmax}
    tables = [transformed(data.vectors, transform) for transform in named.values()]
    k = len(data.names)
    whole = np.array([accuracy_of(table, data.subject, data.region, k) for table in tables])
    rng, draws = np.random.default_rng(seed), np.empty((n_boot, len(tables)))
    n_stimuli = samples_of_pairs(data.vectors.shape[1])
    first, second = np.triu_indices(n_stimuli, 1)
    for row in draws:
        chosen = _drawn(data, over, rng)
        weight = np.ones(data.vectors.shape[1])
        if "stimulus" in over:
            times = np.bincount(rng.integers(0, n_stimuli, n_stimuli), minlength=n_stimuli)
            weight = (times[first] * times[second]).astype(np.float64)
        root, used = np.sqrt(weight[weight > 0]), weight > 0
        for column, table in enumerate(tables):
            row[column] = accuracy_of(table[np.ix_(chosen, used)] * root, data.subject[chosen], data.region[chosen], k)
    return Identification(tuple(named), whole, draws, 1 / k, tuple(over), context=Context(seed=seed))


def _drawn(data: Responses, over: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Rows of a bootstrap sample with at least two subjects."""
    everyone = np.arange(len(data.subject))
    if "subject" not in over and "session" not in over:
        return everyone
    while True:
        if "session" in over:
            chosen = rng.integers(0, len(everyone), len(everyone))
        else:
            names = np.unique(data.subject)
            chosen = np.concatenate([everyone[data.subject == name] for name in rng.choice(names, len(names))])
        if len(np.unique(data.subject[chosen])) > 1:
            return chosen


@dataclass(frozen=True, eq=False)
class IdentificationMap(Finding):
    """Accuracy over the triangle of quantiles: ``lower`` and ``upper`` float64 ``(level,)``, ``accuracy`` ``(level, level)`` with the lower
    quantile first, NaN where there is no cell."""

    lower: Float[np.ndarray, " level"]
    upper: Float[np.ndarray, " level"]
    accuracy: Float[np.ndarray, "level level"]
    chance: float

    meanings: ClassVar[dict[str, str]] = {
        "ranked": "share identified from ranked distances, all of them (quantiles 0 and 1)",
        **{corner: f"mean share identified in the corner '{corner}' of the triangle" for corner in CORNERS},
        "highest": "the best cell, an optimistic number for it was chosen on these data",
        "chance": "what guessing would identify",
    }

    def corner_means(self) -> dict[Corner, float]:
        """Mean accuracy over the cells of each corner."""
        members: dict[Corner, list[float]] = {}
        for i, j in np.argwhere(np.isfinite(self.accuracy)):
            members.setdefault(region_of(float(self.lower[i]), float(self.upper[j])), []).append(
                float(self.accuracy[i, j])
            )
        return {corner: float(np.mean(members[corner])) for corner in CORNERS if corner in members}

    def best(self) -> tuple[float, float]:
        """Quantiles of the best cell; of equals, those nearest to their common middle."""
        top = np.argwhere(self.accuracy == np.nanmax(self.accuracy))
        cells = np.column_stack([self.lower[top[:, 0]], self.upper[top[:, 1]]])
        chosen = cells[((cells - cells.mean(0)) ** 2).sum(1).argmin()]
        return float(chosen[0]), float(chosen[1])

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        ranked = {"ranked": float(self.accuracy[0, -1])} if np.isfinite(self.accuracy[0, -1]) else {}
        corners: dict[str, float] = {str(name): value for name, value in self.corner_means().items()}
        return {**ranked, **corners, "highest": float(np.nanmax(self.accuracy)), "chance": self.chance}

    def paragraph(self) -> str:
        """The answer in plain words."""
        means = ", ".join(f"{corner} {value:.1%}" for corner, value in self.corner_means().items())
        return f"Mean share identified by corner of the triangle: {means} (chance {self.chance:.1%})."

    def plot(self, axes: Axes) -> None:
        """The triangle."""
        image = axes.pcolormesh(self.lower, self.upper, self.accuracy.T, cmap="viridis", shading="nearest")
        axes.figure.colorbar(image, ax=axes, label="share identified")
        axes.plot(*self.best(), "r+", label="best cell")
        axes.set(xlabel="lower quantile", ylabel="upper quantile")
        axes.legend(frameon=False, fontsize="small", loc="lower right")


def identification_map(
    vectors: Any, subject: Any, region: Any, step: float = 0.05, after: Transform | None = None
) -> IdentificationMap:
    """Leave-one-subject-out accuracy for all quantiles ``lower <= upper`` on a grid; distances are ranked once.

    Cells whose quantiles sum to 0.01 or less, or 1.99 or more, hold no information and are left out.

    Args:
        vectors, subject, region: as in :meth:`RepresentationIdentifier.fit`. step: of the grid.
        after: what follows the squashing, for example ``geodesic`` with ``keep="twostep"``; a cell that it refuses is NaN.

    Cost: 1 / (2 step^2) identifications. Raises InputError for a step outside (0, 0.5], and as that method.
    """
    if not 0 < step <= 0.5:
        raise InputError(f"step is {step}, expected a number above 0 and at most 0.5")
    data = Responses.of(vectors, subject, region)
    data.require_all_regions()
    ranks = transformed(data.vectors, rank_minmax)
    levels = np.round(np.linspace(0, 1, round(1 / step) + 1), 10)
    bounds = np.quantile(ranks, levels, axis=1)
    accuracy = np.full((len(levels), len(levels)), np.nan)
    for i, lower in enumerate(levels):
        for j, upper in enumerate(levels):
            if upper < lower or not 0.01 < lower + upper < 1.99:
                continue
            found = np.stack([squashed(row, bounds[i, m], bounds[j, m]) for m, row in enumerate(ranks)])
            with suppress(InputError):  # a step, for one, leaves nothing for paths to measure
                accuracy[i, j] = accuracy_of(transformed(found, after), data.subject, data.region, len(data.names))
    return IdentificationMap(levels, levels.copy(), accuracy, 1 / len(data.names), context=Context())


def corner_accuracy(vectors: Any, subject: Any, region: Any, corner: Corner, n_draws: int = 10, seed: int = 0) -> float:
    """Mean accuracy over quantiles drawn from a corner (:func:`corner_parameters`): nothing is chosen on the data.

    Errors as :meth:`RepresentationIdentifier.fit`.
    """
    data = Responses.of(vectors, subject, region)
    data.require_all_regions()
    ranks = transformed(data.vectors, rank_minmax)
    scores = []
    for levels in corner_parameters(corner, n_draws, seed):
        bounds = np.quantile(ranks, levels, axis=1)
        found = np.stack([squashed(row, *bounds[:, m]) for m, row in enumerate(ranks)])
        scores.append(accuracy_of(found, data.subject, data.region, len(data.names)))
    return float(np.mean(scores))


def arrangement_map(
    vectors: Float[np.ndarray, "response pair"], reference: Any = None, random_state: int = 0
) -> Float[np.ndarray, "response 2"]:
    """Responses in a plane by metric multidimensional scaling of the distances between their vectors.

    ``reference`` ``(response, 2)`` is another such map, onto which this one is turned, moved and scaled (Procrustes). Cost
    O(m^2 (p + iterations)). Raises InputError for fewer than three responses or another shape of the reference.
    """
    from sklearn.manifold import smacof

    table = np.asarray(vectors, dtype=np.float64)
    if table.ndim != 2 or len(table) < 3 or (reference is not None and np.shape(reference) != (len(table), 2)):
        raise InputError(
            f"vectors have shape {table.shape} and the reference {np.shape(reference)}; (response, pair) of three responses and "
            "(response, 2) are needed"
        )
    options: Any = {"n_components": 2, "n_init": 2, "random_state": random_state, "normalized_stress": False}
    points = np.asarray(smacof(cdist(table, table), **options)[0])
    return points if reference is None else procrustes(np.asarray(reference, dtype=np.float64), points)[1]
