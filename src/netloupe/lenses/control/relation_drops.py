"""What each group of facts loses when each group's units are off, against random units; how it grows with their number.

Source: Liu et al., "On Relation-Specific Neurons in Large Language Models", arXiv 2502.17355. The interval over subjects and the random
units of equal number are added here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import hypergeom
from torch import nn

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.splits import bootstrap
from netloupe.core.unit_sets import UnitSpace
from netloupe.lenses.control.deactivate import Questions, Value, answer, answer_without

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Metric = Literal["logprob", "accuracy", "margin"]


@dataclass(frozen=True, eq=False)
class DropMatrix(Finding):
    """Losses of relation i with the units of relation j off.

    ``drops`` float64 ``(relation, set)``: row i, column j; negative where switching off helped. ``random`` float64
    ``(relation, draw)``: the same for random sets. ``before`` float64 ``(relation,)``: the metric with all units. ``excess`` and its
    95 % interval over subjects ``(2,)``: own sets' loss less random sets'. ``specific_interval`` ``(2,)``: own less other
    relations' sets. ``p_values`` float64 ``(relation, set)``: two-sided, of the paired difference from random sets. For
    ``accuracy`` drops are relative, ``(before - after) / before``, NaN where nothing was right before.
    """

    drops: Float[np.ndarray, "relation set"]
    random: Float[np.ndarray, "relation draw"]
    before: Float[np.ndarray, " relation"]
    p_values: Float[np.ndarray, "relation set"]
    excess_interval: Float[np.ndarray, "2"]
    specific_interval: Float[np.ndarray, "2"]
    metric: str
    n_units: int
    size: int

    meanings: ClassVar[dict[str, str]] = {
        "intra": "what a relation loses when its own units are off, mean over relations",
        "inter": "what it loses when another relation's are",
        "random": "what it loses when as many random units are",
        "excess_low": "own units' loss less that of random units: lower end of its 95 % interval over subjects",
        "excess_high": "upper end",
        "diagonal": "share of relations that lose most by their own units",
        "helped": "share of other relations' sets that helped when they were off",
    }

    @property
    def intra(self) -> float:
        """Mean of the diagonal."""
        return float(np.nanmean(np.diag(self.drops)))

    @property
    def inter(self) -> float:
        """Mean off the diagonal."""
        return float(np.nanmean(self.drops[~np.eye(len(self.drops), dtype=bool)]))

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        off = ~np.eye(len(self.drops), dtype=bool)
        known = np.isfinite(self.drops).all(1)
        best = self.drops[known].argmax(1) == np.flatnonzero(known)
        return {
            "intra": self.intra, "inter": self.inter, "random": float(np.nanmean(self.random)),
            "excess_low": float(self.excess_interval[0]), "excess_high": float(self.excess_interval[1]),
            "diagonal": float(best.mean()) if len(best) else float("nan"),
            "helped": float((self.drops[off] < 0).mean()),
        }  # fmt: skip

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        return (
            f"With {self.size} of {self.n_units} units off, a relation loses {found['intra']:.3g} ({self.metric}) by its own units, "
            f"{found['inter']:.3g} by another relation's and {found['random']:.3g} by random ones: "
            f"{found['intra'] - found['random']:.3g} more than random (95 % interval over subjects {found['excess_low']:.3g} to "
            f"{found['excess_high']:.3g}). {100 * found['diagonal']:.0f} % of relations lose most by their own units."
        )

    def plot(self, axes: Axes) -> None:
        """The matrix, with random sets in a last column."""
        shown = np.column_stack([self.drops, np.nanmean(self.random, 1)])
        image = axes.imshow(shown, cmap="Reds", vmin=0)
        n = len(self.drops)
        axes.set(xlabel="whose units are off", ylabel="asked about", xticks=[*range(n), n], yticks=range(n))
        axes.set_xticklabels([*map(str, range(n)), "random"], fontsize="x-small")
        axes.figure.colorbar(image, ax=axes, label=f"loss ({self.metric})", fraction=0.046)


def drop_matrix(
    model: nn.Module,
    space: UnitSpace,
    sets: Sequence[Any],
    questions: Questions,
    *,
    metric: Metric = "logprob",
    random: int = 5,
    matched: bool = False,
    value: Value = "zero",
    n_draws: int = 1000,
    random_state: int = 0,
    **options: Any,
) -> DropMatrix:
    """Every relation with every relation's units off: ``D[i, j] = m_i - m_i^(-j)``, for accuracy over ``m_i``.

    Args:
        model: a causal language model. space: which number is which unit. sets: units of relation j at place j, all of one size.
        questions: with ``relations`` from 0 and about **other subjects** than those the units were ranked on.
        metric: ``accuracy`` as published; ``logprob`` and ``margin`` also see what a small, redundant network loses.
        random: random sets of that size; ``matched`` draws as many from each site as the sets of relation 0, 1, ... have.
        value: what units are held at. n_draws: of the bootstrap over subjects. options: ``n_tokens``, ``batch_size``.

    Cost: ``1 + R + random`` passes over the questions. Raises InputError for sets of different sizes, relations without
    questions, and fewer than one random set.
    """  # fmt: skip
    n, sizes = len(sets), {len(np.unique(one)) for one in sets}
    if n < 2 or len(sizes) != 1 or random < 1:
        raise InputError(
            f"{n} sets of sizes {sorted(sizes)} and {random} random ones; two of one size and one random are needed"
        )
    y = np.asarray(questions.relations)
    missing = sorted(set(range(n)) ^ set(y.tolist()))
    if missing:
        raise InputError(f"relation {missing[0]} has questions or a set but not both; give one set for each relation")
    size = sizes.pop()
    draws = [space.random(size, random_state + index, sets[index % n] if matched else None) for index in range(random)]
    base = answer(model, questions, **options).metric(metric)
    lost = np.stack(
        [base - answer_without(model, questions, space, one, value, **options).metric(metric) for one in sets]
    )
    by_chance = np.stack(
        [base - answer_without(model, questions, space, one, value, **options).metric(metric) for one in draws]
    )
    before = _means(base[None], y, n)[:, 0]
    scale = np.where(before > 0, before, np.nan) if metric == "accuracy" else np.ones(n)
    drops, chance = _means(lost, y, n) / scale[:, None], _means(by_chance, y, n) / scale[:, None]
    weights = _subject_weights(np.asarray(questions.subjects), n_draws, random_state)
    p_values = np.stack([_p_values(lost[j] - by_chance.mean(0), y, n, weights) for j in range(n)], axis=1)
    others = (lost.sum(0) - lost[y, np.arange(len(y))]) / (n - 1)
    own = lost[y, np.arange(len(y))]
    excess = _interval((own - by_chance.mean(0)) / scale[y], weights)
    specific = _interval((own - others) / scale[y], weights)
    return DropMatrix(drops, chance, before, p_values, excess, specific, metric, len(space), size)


def _means(values: np.ndarray, y: np.ndarray, n: int) -> np.ndarray:
    """Mean over each relation's questions: ``(relation, row)``."""
    return np.stack([values[:, y == relation].mean(1) for relation in range(n)])


def _subject_weights(subjects: np.ndarray, n_draws: int, random_state: int) -> np.ndarray:
    """How often each question is in each bootstrap draw of subjects; the first row is the sample itself."""
    draws = bootstrap(len(subjects), n_draws, subjects, random_state)
    return np.stack([np.ones(len(subjects)), *(np.bincount(rows, minlength=len(subjects)) for rows in draws)])


def _interval(values: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, "2"]:
    known = np.isfinite(values)
    means = weights[1:, known] @ values[known] / np.maximum(weights[1:, known].sum(1), 1)
    return np.quantile(means, [0.025, 0.975])


def _p_values(values: np.ndarray, y: np.ndarray, n: int, weights: np.ndarray) -> np.ndarray:
    """Two-sided bootstrap p-value, for each relation, that the mean is 0."""
    found = []
    for relation in range(n):
        own = y == relation
        means = weights[1:, own] @ values[own] / np.maximum(weights[1:, own].sum(1), 1)
        tail = min((means <= 0).sum(), (means >= 0).sum())
        found.append(min(1.0, 2 * (1 + tail) / (1 + len(means))))
    return np.array(found)


def size_curve(
    model: nn.Module,
    space: UnitSpace,
    order: Int[np.ndarray, "relation unit"],
    questions: Questions,
    sizes: Sequence[int],
    **options: Any,
) -> list[DropMatrix]:
    """:func:`drop_matrix` of the first k units of every relation's ``order``, for each k of ``sizes``."""  # fmt: skip
    return [drop_matrix(model, space, [row[:k] for row in order], questions, **options) for k in sizes]


def difference_sets(
    order: Int[np.ndarray, "relation unit"], small: int, large: int
) -> list[Int[np.ndarray, " member"]]:
    """``S(large)`` minus ``S(small)`` of every relation: what the larger set adds. InputError where it adds nothing."""
    if not 0 <= small < large <= order.shape[1]:
        raise InputError(f"sizes are {small} and {large}, expected the smaller first and at most {order.shape[1]}")
    return [row[small:large] for row in order]


@dataclass(frozen=True, eq=False)
class SetOverlap(Finding):
    """How many units each pair of sets shares: ``counts`` int64 ``(set, set)``; ``p_values`` that as many or more are shared by
    sets drawn at random (hypergeometric); ``expected`` float64 ``(set, set)``: ``k_i k_j / U``."""

    counts: Int[np.ndarray, "set set"]
    expected: Float[np.ndarray, "set set"]
    p_values: Float[np.ndarray, "set set"]
    n_units: int

    meanings: ClassVar[dict[str, str]] = {
        "times_chance": "units that two sets share, over what random sets would, mean over pairs",
        "shared": "units that two sets share, mean over pairs",
        "significant": "share of pairs that share more than random sets do, at one in a hundred",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        pairs = np.triu_indices(len(self.counts), 1)
        return {
            "times_chance": float((self.counts[pairs] / self.expected[pairs]).mean()),
            "shared": float(self.counts[pairs].mean()),
            "significant": float((self.p_values[pairs] < 0.01).mean()),
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        return (
            f"Two sets share {found['shared']:.3g} units, {found['times_chance']:.3g} times what random sets among {self.n_units} would; "
            f"{100 * found['significant']:.3g} % of pairs share more than chance at one in a hundred."
        )

    def plot(self, axes: Axes) -> None:
        """The shared units."""
        shown = self.counts.astype(float)
        np.fill_diagonal(shown, np.nan)
        image = axes.imshow(shown, cmap="Blues", vmin=0)
        axes.set(xlabel="relation", ylabel="relation")
        axes.figure.colorbar(image, ax=axes, label="shared units", fraction=0.046)


def overlap_matrix(sets: Sequence[Any], n_units: int) -> SetOverlap:
    """``|S_i and S_j|`` of sets among ``n_units``, with Fisher's test for each pair. InputError for fewer than two, or empty, sets."""
    member = np.zeros((len(sets), n_units), dtype=np.int64)
    for row, one in zip(member, sets, strict=True):
        chosen = np.asarray(one, dtype=np.int64)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= n_units:
            raise InputError(f"a set has {len(chosen)} units, expected some, with numbers from 0 to {n_units - 1}")
        row[chosen] = 1
    if len(sets) < 2:
        raise InputError("an overlap needs at least two sets")
    counts, sizes = member @ member.T, member.sum(1)
    p_values = hypergeom.sf(counts - 1, n_units, sizes[:, None], sizes[None])
    return SetOverlap(counts, np.outer(sizes, sizes) / n_units, p_values, n_units)
