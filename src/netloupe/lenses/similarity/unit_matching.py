"""Do two sites, or two networks, have the same units? Matching of all units, with what chance would give.

Source: Li, Yosinski, Clune, Lipson and Hopcroft, arXiv 1511.07543.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.alignment import joint_moments, paired_rows
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.rows import Rows
from netloupe.core.statistics import CrossMoments
from netloupe.lenses.similarity.matching import match_units, matched_error, null_correlations, redundancy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_NULL = 10
N_SHUFFLES = 2  # with positions every null is a pass over the data


@dataclass(frozen=True, eq=False)
class UnitMatching(Finding):
    """Both matchings of two sites. Arrays in the order of the units of a, -1 and NaN for units without a partner.

    ``partner``: one-to-one partner, ``partner_score`` their correlation; ``best``: the unit of b most like it,
    ``best_score``; ``within_a``: its largest correlation with another unit of a. ``null_full``, ``null_best``: mean scores where samples
    do not correspond, one a repetition.
    """

    partner: Int[np.ndarray, " unit_a"]
    partner_score: Float[np.ndarray, " unit_a"]
    best: Int[np.ndarray, " unit_a"]
    best_score: Float[np.ndarray, " unit_a"]
    within_a: Float[np.ndarray, " unit_a"]
    null_full: Float[np.ndarray, " repeat"]
    null_best: Float[np.ndarray, " repeat"]
    standard_error: float
    n_units: tuple[int, int]
    dead: tuple[int, int]
    n_positions: int

    meanings: ClassVar[dict[str, str]] = {
        "matched": "mean correlation of units matched one to one, 1 where every unit has an exact counterpart",
        "standard_error": "standard error of that mean over samples",
        "best": "mean correlation of each unit with the most similar one, partners may be shared",
        "chance": "the one-to-one mean where the samples do not correspond",
        "above_half": "share of one-to-one pairs with a correlation above 0.5",
        "below_fifth": "share of one-to-one pairs with a correlation below 0.2: units without a counterpart",
    }

    def summary(self) -> dict[str, float]:
        """``matched`` with its standard error, ``best``, ``chance`` and shares."""
        scores = self.partner_score[~np.isnan(self.partner_score)]
        return {
            "matched": float(scores.mean()),
            "standard_error": self.standard_error,
            "best": float(np.nanmean(self.best_score)),
            "chance": float(self.null_full.mean()),
            "above_half": float((scores > 0.5).mean()),
            "below_fifth": float((scores < 0.2).mean()),
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        numbers = self.summary()
        dead = f" {sum(self.dead)} units never vary and are left out." if any(self.dead) else ""
        return (
            f"Matched one to one, units correlate at {numbers['matched']:.3f} on average (standard error "
            f"{numbers['standard_error']:.2g}), where chance gives {numbers['chance']:.3f}; with partners shared, at "
            f"{numbers['best']:.3f}. {100 * numbers['above_half']:.0f} % of pairs lie above 0.5, "
            f"{100 * numbers['below_fifth']:.0f} % below 0.2.{dead} An untrained network also matches above chance: compare with one."
        )

    def plot(self, axes: Axes) -> None:
        """Both curves of sorted scores, and the mean that chance gives."""
        for name, scores in (("best partner", self.best_score), ("one to one", self.partner_score)):
            known = np.sort(scores[~np.isnan(scores)])[::-1]
            axes.plot(np.arange(1, len(known) + 1), known, label=name)
        axes.axhline(self.null_full.mean(), color="0.6", linestyle="--", linewidth=1, label="chance, mean")
        axes.set(xlabel="unit, best first", ylabel="correlation with its partner")
        axes.legend(frameon=False, fontsize=7)


@lens(
    question="Which units of one site, or of one network, reappear in the other?",
    needs=("features", "other"),
    pooled=True,
    min_samples=4,
    invariances=("sample permutation", "scale", "translation"),
)
def unit_matching(
    features: Float[Tensor, "sample unit"] | Any,
    other: Float[Tensor, "sample unit_other"] | Any,
    *,
    n_null: int = N_NULL,
    random_state: int = 0,
) -> UnitMatching:
    """Correlates every unit with every unit of the other site and matches them, one to one and each with its best.

    With correlations ``C_ij``: ``max_pi mean_i C_{i, pi(i)}`` over one-to-one ``pi``, and ``mean_i max_j C_ij``. Units that never
    vary are left out. Chance: the same after breaking the correspondence of samples (a Gaussian with the exact covariance of
    shuffled correlations; with positions, samples shuffled within batches).

    Args:
        features, other: ``(sample, unit)`` of the same samples, any widths; or both ``(sample, position, unit)`` with the same
            positions, each then an observation. Pooled and unpooled answers are different questions.
        n_null: repetitions of the null (at most 2 with positions).

    Cost: O(n (p + q)^2) and a second pass of O(n min(p, q)); O(min(p, q)^2 max(p, q)) for each matching; streams. Raises InputError
    for other shapes, different samples, fewer than four, or where no unit varies.
    """
    if n_null < 1:
        raise InputError(f"n_null is {n_null}, at least 1 is needed: a matching without its null is not a finding")
    x, z = paired_rows(features, other, min_samples=4, ndim=(2, 3))
    moments = joint_moments(x, z)
    if moments.dead_a.all() or moments.dead_b.all():
        raise InputError("no unit of one site varies over the samples, so there is nothing to match")
    table = moments.between
    full, best = match_units(table, "full"), match_units(table, "semi")
    positions = x.shape[1] if len(x.shape) == 3 else 1
    if positions == 1:
        nulls = null_correlations(moments, n_null, random_state)
    else:
        nulls = [_shuffled(x, z, random_state + i) for i in range(min(n_null, N_SHUFFLES))]
    # a dead unit's null row is 0 up to rounding, exactly as its own
    dead = moments.dead_a[:, None] | moments.dead_b
    nulls = [np.where(dead, 0.0, null) for null in nulls]
    means = np.array([[match_units(null, kind).scores.mean() for null in nulls] for kind in ("full", "semi")])
    error = matched_error(_blocks(x, z), moments, full.pairs, x.n_samples)
    p = moments.p
    partner_score, best_score = np.full(p, np.nan), np.full(p, np.nan)
    partner_score[full.pairs[:, 0]], best_score[best.pairs[:, 0]] = full.scores, best.scores
    within = redundancy(moments.within_a) if p > 1 else np.full(p, np.nan)
    return UnitMatching(
        full.order(), partner_score, best.order(), best_score, within, means[0], means[1], error, full.n_units,
        (int(moments.dead_a.sum()), int(moments.dead_b.sum())), positions, context=Context(seed=random_state),
    )  # fmt: skip


def _blocks(x: Rows, z: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for one, two in zip(x, z, strict=True):
        yield one.values.double().numpy(), two.values.double().numpy()


def _shuffled(x: Rows, z: Rows, seed: int) -> np.ndarray:
    """Correlations with the samples of each batch of the second site in random order, positions kept."""
    moments, draw = CrossMoments(), np.random.default_rng(seed)
    for one, two in zip(x, z, strict=True):
        moments.update(one.values, two.values[draw.permutation(len(two.values))])
    return moments.correlation()
