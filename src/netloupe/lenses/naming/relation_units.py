"""Units that tell one group of samples from the others: relation neurons, concept units, expert units.

Source: Liu et al., "On Relation-Specific Neurons in Large Language Models", arXiv 2502.17355, which ranks units by the average
precision of their response, as Kojima et al., arXiv 2404.02431, and Suau et al., arXiv 2110.02802, do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.lens import lens
from netloupe.core.rows import Rows, as_rows
from netloupe.core.statistics.ranking import average_precision

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Score = Literal["ap", "auc", "diff"]
MIN_POSITIVES = 5
_BLOCK_VALUES = 1 << 26  # responses held at a time: 256 MB of float32


def average_precision_columns(responses: Any, positives: Any) -> Float[np.ndarray, " unit"]:
    """Average precision of each column as a detector of ``positives``, float64 ``(unit,)``; exact with ties.

    ``AP = sum_k (R_k - R_(k-1)) P_k`` over the distinct values in falling order (scikit-learn's definition).

    Args:
        responses: ``(sample, unit)``. positives: bool ``(sample,)``.

    Cost: one sort a unit. Raises InputError for shapes that do not fit or no positives, NonFiniteError for NaN.
    """
    return average_precision(responses, np.asarray(positives, dtype=bool))


@dataclass(frozen=True, eq=False)
class UnitRanking(Finding):
    """All units by how well each tells a group from the others.

    ``groups`` int64 ``(group,)``: the labels. ``order`` int64 ``(group, unit)``: units, best first. ``scores`` float64
    ``(group, unit)``: by unit number. ``null`` float64 ``(group,)``: the best score over all units when the group's labels are
    shuffled. ``chance`` float64 ``(group,)``: score of a unit that says nothing. ``score``: ``ap``, ``auc`` or ``diff``.
    """

    groups: Int[np.ndarray, " group"]
    order: Int[np.ndarray, "group unit"]
    scores: Float[np.ndarray, "group unit"]
    null: Float[np.ndarray, " group"]
    chance: Float[np.ndarray, " group"]
    score: str

    meanings: ClassVar[dict[str, str]] = {
        "above_null": "share of units that tell a group better than the best of all units does with shuffled labels, mean over groups",
        "best": "score of the best unit, mean over groups",
        "null": "score of the best unit with shuffled labels, mean over groups",
        "chance": "score of a unit that says nothing, mean over groups",
        "shared": "share of groups' best 1 % of units that two groups have in common, mean over pairs",
    }

    def top(self, group: int, k: int) -> Int[np.ndarray, " member"]:
        """The ``k`` units with the highest scores of a group (its label)."""
        return self.order[self._row(group), : self._size(k)].copy()

    def bottom(self, group: int, k: int) -> Int[np.ndarray, " member"]:
        """The ``k`` units with the lowest scores: they go low for the group."""
        return self.order[self._row(group), ::-1][: self._size(k)].copy()

    def both_ends(self, group: int, k: int) -> Int[np.ndarray, " member"]:
        """``k`` from either end, as arXiv 2404.02431 keeps them."""
        return np.union1d(self.top(group, k), self.bottom(group, k))

    def sets(self, k: int) -> list[Int[np.ndarray, " member"]]:
        """The top ``k`` of every group."""
        return [self.top(int(group), k) for group in self.groups]

    def _row(self, group: int) -> int:
        found = np.flatnonzero(self.groups == group)
        if not len(found):
            raise InputError(f"there is no group {group}; there are {self.groups.tolist()[:12]}")
        return int(found[0])

    def _size(self, k: int) -> int:
        if not 0 < k <= self.order.shape[1]:
            raise InputError(f"k is {k}, expected 1 to {self.order.shape[1]} units")
        return int(k)

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        k = max(1, self.order.shape[1] // 100)
        member = np.zeros_like(self.order, dtype=float)
        np.put_along_axis(member, self.order[:, :k], 1.0, 1)
        found = {
            "above_null": float((self.scores > self.null[:, None]).mean()),
            "best": float(self.scores.max(1).mean()),
            "null": float(self.null.mean()),
            "chance": float(self.chance.mean()),
        }
        if len(self.groups) > 1:
            found["shared"] = float((member @ member.T)[np.triu_indices(len(self.groups), 1)].mean() / k)
        return found

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        words = {
            "ap": "average precision",
            "auc": "area under the ROC curve",
            "diff": "standardised difference of means",
        }
        return (
            f"The best unit for a group reaches {found['best']:.3g} ({words[self.score]}; chance {found['chance']:.3g}, the best of "
            f"all units with shuffled labels {found['null']:.3g}), and {100 * found['above_null']:.3g} % of {self.order.shape[1]} units "
            "lie above that. "
            + (f"Two groups share {100 * found['shared']:.3g} % of their best hundredth. " if "shared" in found else "")
            + "A unit that tells a group apart need not be used: switch it off and see."
        )

    def plot(self, axes: Axes) -> None:
        """Scores in falling order, a line a group."""
        rank = np.arange(1, self.order.shape[1] + 1)
        for row in range(min(len(self.groups), 12)):
            axes.plot(rank, np.sort(self.scores[row])[::-1], lw=1, label=f"group {self.groups[row]}")
        axes.axhline(float(self.null.mean()), color="0.3", ls="--", lw=1, label="best with shuffled labels")
        axes.set(xscale="log", xlabel="units, best first", ylabel=self.score.upper())
        axes.legend(frameon=False, fontsize="x-small")


@lens(
    question="Which units tell one group of samples (a relation, a topic, a class) from the others?",
    needs=("features", "labels"),
    pooled=True,
    min_samples=2 * MIN_POSITIVES,
    invariances=("unit permutation", "scale"),
)
def rank_units(
    features: Float[Tensor, "sample unit"] | Any,
    labels: Int[Tensor, " sample"] | Any,
    groups: Any = None,
    *,
    score: Score = "ap",
    ratio: float | None = 4,
    random_state: int = 0,
) -> UnitRanking:
    """Every unit's score as a detector of every group, and the units in that order.

    Positives are a group's samples, negatives ``ratio`` times as many drawn from the others (all where there are fewer).
    ``ap``: ``sum_k (R_k - R_(k-1)) P_k``, chance ``n+ / n``; ``auc``: the Mann-Whitney statistic over ``n+ n-``, chance 0.5;
    ``diff``: difference of means over the pooled standard deviation, chance 0 (arXiv 2502.17355 uses ``ap`` and ratio 4). Ties
    share one threshold, and units of equal score keep their order. A constant unit has the chance score. The null is the best
    score over all units with the labels shuffled once.

    Args:
        features: ``(sample, unit)`` responses: tensor, array or store. labels: ``(sample,)`` whole numbers.
        groups: labels to rank for; default all.
        ratio: negatives a positive; None takes all. random_state: of the draw of negatives and of the shuffled labels.

    Cost: two sorts of n rows a unit and group. A store is read once for every 256 MB that it holds, never held whole. Raises
    InputError for fewer than two groups or fewer than five samples of one, NonFiniteError for NaN.
    """  # fmt: skip
    if score not in ("ap", "auc", "diff"):
        raise InputError(f"score is '{score}', expected ap, auc or diff")
    if ratio is not None and not ratio > 0:
        raise InputError(f"ratio is {ratio}, expected a positive number of negatives a positive, or None for all")
    rows = as_rows(features, labels, ndim=(2,), min_samples=2 * MIN_POSITIVES)
    if rows.labels is None:
        raise InputError("labels are missing; one group number for each sample is needed")
    y = rows.labels.cpu().numpy()
    wanted = np.unique(y) if groups is None else np.asarray(groups, dtype=np.int64).reshape(-1)
    draw = np.random.default_rng(random_state)
    draws = [_sampled(y, int(group), ratio, draw) for group in wanted]
    found = np.empty((len(wanted), rows.n_units))
    shuffled = np.full(len(wanted), -np.inf)
    for first, block in _column_blocks(rows):
        for index, (chosen, positive, permuted) in enumerate(draws):
            part = block[chosen]
            found[index, first : first + block.shape[1]] = _scores(part, positive, score)
            shuffled[index] = max(shuffled[index], float(_scores(part, permuted, score).max()))
    chance = np.array([{"ap": positive.mean(), "auc": 0.5, "diff": 0.0}[score] for _, positive, _ in draws])
    order = np.argsort(-found, axis=1, kind="stable")
    return UnitRanking(wanted.astype(np.int64), order.astype(np.int64), found, shuffled, chance, score)


def _sampled(
    y: np.ndarray, group: int, ratio: float | None, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to look at, which of them are positive, and the same labels shuffled."""
    positive, negative = np.flatnonzero(y == group), np.flatnonzero(y != group)
    if len(positive) < MIN_POSITIVES or not len(negative):
        raise InputError(
            f"group {group} has {len(positive)} samples and the others {len(negative)}; at least {MIN_POSITIVES} and 1 are needed"
        )
    size = len(negative) if ratio is None else min(len(negative), round(ratio * len(positive)))
    chosen = np.sort(np.concatenate([positive, draw.choice(negative, size, replace=False)]))
    labels = y[chosen] == group
    return chosen, labels, draw.permutation(labels)


def _column_blocks(rows: Rows) -> Any:
    """All samples of some units at a time."""
    step = max(1, min(rows.n_units, _BLOCK_VALUES // rows.n_samples))
    for first in range(0, rows.n_units, step):
        parts = [batch.values[:, first : first + step].detach().cpu() for batch in rows]
        joined = torch.cat(parts)
        yield first, (joined if joined.dtype == torch.float64 else joined.float()).numpy()


def _scores(part: Shaped[np.ndarray, "sample unit"], positive: np.ndarray, score: Score) -> Float[np.ndarray, " unit"]:
    if score == "ap":
        return average_precision(part, positive)
    n = np.array([(~positive).sum(), positive.sum()])
    if score == "auc":
        from scipy.stats import rankdata

        ranks = rankdata(part, axis=0)[positive].sum(0)
        return (ranks - n[1] * (n[1] + 1) / 2) / (n[0] * n[1])
    low, high = part[~positive].astype(np.float64), part[positive].astype(np.float64)
    spread = np.sqrt((n[0] * low.var(0) + n[1] * high.var(0)) / n.sum())
    gap = high.mean(0) - low.mean(0)
    return np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 1e-12 * np.abs(part).max(initial=0))
