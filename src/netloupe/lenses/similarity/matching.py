"""Which units of one site reappear in another: one-to-one and one-to-best matching on correlations.

Source: Li, Yosinski, Clune, Lipson and Hopcroft, "Convergent Learning: Do different neural networks learn the same
representations?", arXiv 1511.07543.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.core.statistics import JointMoments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["semi", "full"]
QUANTILES = (0.05, 0.5, 0.95)
Matrix = Float[np.ndarray, "unit_a unit_b"]


@dataclass(frozen=True, eq=False)
class MatchResult(Finding):
    """Pairs of units, best first, with their scores.

    ``pairs`` ``(pair, 2)``: unit of a, unit of b. ``scores`` ``(pair,)``: their entries in the matrix, with sign.
    ``unmatched_a``, ``unmatched_b``: units in no pair (in semi-matching: of b, those that no unit of a is most like), dead ones
    included. ``null_quantiles``: 5, 50 and 95 % of the mean score where nothing corresponds, empty without a null.
    """

    kind: str
    pairs: Int[np.ndarray, "pair 2"]
    scores: Float[np.ndarray, " pair"]
    unmatched_a: Int[np.ndarray, " alone_a"]
    unmatched_b: Int[np.ndarray, " alone_b"]
    n_units: tuple[int, int]
    dead: tuple[int, int]
    absolute: bool
    null_quantiles: Float[np.ndarray, " quantile"]
    p_value: float | None = None

    meanings: ClassVar[dict[str, str]] = {
        "matched": "mean score of the matched pairs, 1 where every unit has an exact counterpart",
        "above_half": "share of pairs with a score above 0.5",
        "below_fifth": "share of pairs with a score below 0.2: units without a counterpart",
        "null": "median of the mean score where samples do not correspond",
        "p_value": "how often samples that do not correspond match as well",
    }

    def summary(self) -> dict[str, float]:
        """Mean score, the shares above 0.5 and below 0.2, and the null where there is one."""
        sizes = np.abs(self.scores) if self.absolute else self.scores
        found = {
            "matched": float(sizes.mean()),
            "above_half": float((sizes > 0.5).mean()),
            "below_fifth": float((sizes < 0.2).mean()),
        }
        if len(self.null_quantiles):
            found["null"] = float(self.null_quantiles[1])
        return found if self.p_value is None else {**found, "p_value": self.p_value}

    def paragraph(self) -> str:
        """The answer in plain words."""
        numbers = self.summary()
        how = "one to one" if self.kind == "full" else "each with its best"
        text = (
            f"{len(self.pairs)} pairs of {self.n_units[0]} and {self.n_units[1]} units, matched {how}, have a mean score of "
            f"{numbers['matched']:.3f}; {100 * numbers['above_half']:.0f} % lie above 0.5."
        )
        return text if "null" not in numbers else f"{text} Without correspondence it would be {numbers['null']:.3f}."

    def plot(self, axes: Axes) -> None:
        """Scores, best first."""
        axes.plot(np.arange(1, len(self.scores) + 1), self.scores, label=f"{self.kind} matching")
        if len(self.null_quantiles):
            axes.axhspan(self.null_quantiles[0], self.null_quantiles[-1], color="0.85", label="no correspondence")
        axes.set(xlabel="pair, best first", ylabel="score")
        axes.legend(frameon=False, fontsize=7)

    def order(self) -> Int[np.ndarray, " unit_a"]:
        """``(p,)``: for each unit of a its partner in b, -1 for none."""
        found = np.full(self.n_units[0], -1)
        found[self.pairs[:, 0]] = self.pairs[:, 1]
        return found


class MatchCurve(NamedTuple):
    """Scores sorted, best first: of semi-matching and of one-to-one matching. Where they part, partners are shared."""

    semi: Float[np.ndarray, " pair"]
    full: Float[np.ndarray, " pair"]


def match_units(
    correlation: Matrix,
    kind: Kind = "full",
    absolute: bool = False,
    null: Iterable[Matrix] | None = None,
) -> MatchResult:
    """Matches units of a (rows) to units of b (columns) on a table of similarities.

    ``full``: one to one, so that the sum of scores is largest (the assignment problem); the surplus of the larger site stays
    alone. ``semi``: each unit of a with the unit of b that is most like it; several may share one.

    Args:
        correlation: ``(p, q)``: correlations (``CrossMoments.correlation()``) or mutual informations. Rows and columns that
            are all 0 or all NaN are dead units and are left out.
        absolute: match on the size of entries (ReLU units can be opposed; the paper keeps the sign).
        null: tables where nothing corresponds (:func:`null_correlations`), each matched in the same way.

    Cost: O(p q) for ``semi``, O(min(p, q)^2 max(p, q)) for ``full``, once more for each null. Raises InputError for another
    shape or kind, or where every unit is dead; NonFiniteError for single NaN.
    """
    table, live_a, live_b = _live(correlation)
    rows, columns = _match(table, kind, absolute)
    scores = table[rows, columns]
    order = np.argsort(-(np.abs(scores) if absolute else scores), kind="stable")
    pairs = np.stack([np.flatnonzero(live_a)[rows], np.flatnonzero(live_b)[columns]], axis=1)[order]
    quantiles, p_value = np.empty(0), None
    if null is not None:
        means = [_mean(_sized(each, correlation)[np.ix_(live_a, live_b)], kind, absolute) for each in null]
        if not means:
            raise InputError("null holds no table, give at least one or None")
        observed = float((np.abs(scores) if absolute else scores).mean())
        quantiles = np.quantile(means, QUANTILES)
        p_value = (1 + sum(mean >= observed for mean in means)) / (1 + len(means))
    p, q = np.shape(correlation)
    return MatchResult(
        kind, pairs, scores[order], _others(p, pairs[:, 0]), _others(q, pairs[:, 1]), (p, q),
        (int((~live_a).sum()), int((~live_b).sum())), absolute, quantiles, p_value,
    )  # fmt: skip


def self_match(correlation: Float[np.ndarray, "unit unit"], kind: Kind = "full", absolute: bool = False) -> MatchResult:
    """Matches a site's units among themselves, no unit with itself: how redundant they are.

    Args:
        correlation: ``(p, p)``, its diagonal is not used. Other arguments as in :func:`match_units`; a one-to-one matching is
            a permutation without fixed points (:func:`permutation_cycles`).

    Cost as :func:`match_units`. Raises InputError too where the table is not square or fewer than two units vary.
    """
    table = np.array(correlation, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise InputError(f"correlation has shape {np.shape(correlation)}, a square table is needed")
    np.fill_diagonal(table, 0.0)
    # a unit that correlates with no other varies all the same: only its own diagonal tells it from a dead one
    varies = np.diagonal(np.nan_to_num(np.asarray(correlation, dtype=np.float64))) != 0
    if varies.sum() < 2:
        raise InputError(f"{int(varies.sum())} units vary, at least two are needed to match them among themselves")
    inner = table[np.ix_(varies, varies)]
    _require_finite(inner)
    rows, columns = _match(inner, kind, absolute, diagonal=False)
    scores = inner[rows, columns]
    order = np.argsort(-(np.abs(scores) if absolute else scores), kind="stable")
    names = np.flatnonzero(varies)
    pairs, p, dead = np.stack([names[rows], names[columns]], axis=1)[order], len(table), int((~varies).sum())
    alone = _others(p, pairs[:, 0]), _others(p, pairs[:, 1])
    return MatchResult(kind, pairs, scores[order], *alone, (p, p), (dead, dead), absolute, np.empty(0))


def match_curve(correlation: Matrix, absolute: bool = False) -> MatchCurve:
    """Sorted scores of both kinds of matching of one table (arguments and errors as in :func:`match_units`)."""
    semi, full = (match_units(correlation, kind, absolute).scores for kind in ("semi", "full"))
    return MatchCurve(semi, full)


def match_agreement(one: MatchResult, other: MatchResult) -> float:
    """Share of units of a, matched in both, that have the same partner: for example by correlation and by information."""
    if one.n_units != other.n_units:
        raise InputError(f"matchings of {one.n_units} and of {other.n_units} units cannot be compared")
    a, b = one.order(), other.order()
    both = (a >= 0) & (b >= 0)
    if not both.any():
        raise InputError("no unit is matched in both matchings")
    return float((a == b)[both].mean())


def permutation_cycles(order: Sequence[int] | Int[np.ndarray, " unit"]) -> list[tuple[int, ...]]:
    """The cycles of a permutation ``i -> order[i]``, each from its smallest member on, in the order of these.

    Raises InputError where ``order`` is not a permutation of 0, 1, ...
    """
    follow = np.asarray(order)
    if follow.ndim != 1 or not np.array_equal(np.sort(follow), np.arange(len(follow))):
        raise InputError("order is not a permutation of 0, 1, ...; each number is needed once")
    seen, found = np.zeros(len(follow), bool), []
    for start in range(len(follow)):
        cycle, at = [], start
        while not seen[at]:
            seen[at] = True
            cycle.append(at)
            at = int(follow[at])
        if cycle:
            found.append(tuple(cycle))
    return found


def redundancy(correlation: Float[np.ndarray, "unit unit"], absolute: bool = False) -> Float[np.ndarray, " unit"]:
    """``(p,)``: each unit's largest correlation with another unit of its own site; NaN for dead units (zero diagonal)."""
    table = np.array(correlation, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
        raise InputError(f"correlation has shape {table.shape}, a square table of at least two units is needed")
    dead = np.nan_to_num(np.diagonal(table)) == 0
    table = np.abs(table) if absolute else table
    np.fill_diagonal(table, -np.inf)
    table[:, dead] = -np.inf
    found = table.max(1)
    found[dead | np.isinf(found)] = np.nan
    return found


def null_correlations(moments: JointMoments, n: int = 20, random_state: int = 0) -> list[Matrix]:
    """``n`` tables of correlations as they would be if the samples of b were in random order.

    Over permutations the products ``A'PB`` have mean 0 and covariance ``(A'A)_ik (B'B)_jl / (n - 1)``; drawn here as a
    Gaussian with these two, so that no sample is read again and units that go together still do. Rows must be independent: with
    many positions a sample they are not, and the null is too narrow (shuffle whole samples instead).

    Cost: O(p^3 + q^3) once and O(p q (p + q)) each. Raises InputError for fewer than 3 rows.
    """
    if moments.count < 3:
        raise InputError(f"moments are of {moments.count} rows, at least 3 are needed")
    root_a, root_b = _root(moments.within_a), _root(moments.within_b)
    draw = np.random.default_rng(random_state)
    shape, width = (len(root_a), len(root_b)), np.sqrt(moments.count - 1)
    return [np.clip(root_a @ draw.standard_normal(shape) @ root_b / width, -1, 1) for _ in range(n)]


def _root(correlation: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(correlation)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _live(correlation: Matrix) -> tuple[np.ndarray, Bool[np.ndarray, " a"], Bool[np.ndarray, " b"]]:
    """The table of units that vary, and which they are."""
    table = np.asarray(correlation, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise InputError(f"correlation has shape {table.shape}, expected (unit of a, unit of b), at least one of each")
    empty = np.isnan(table) | (table == 0)
    live_a, live_b = ~empty.all(1), ~empty.all(0)
    if not live_a.any():
        raise InputError("no unit varies, so there is nothing to match; use other samples or another site")
    inner = table[np.ix_(live_a, live_b)]
    _require_finite(inner)
    return inner, live_a, live_b


def _require_finite(table: np.ndarray) -> None:
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise NonFiniteError(f"correlation is {table[row, column]} for a pair of units that vary, expected numbers")


def _sized(null: Matrix, correlation: Matrix) -> np.ndarray:
    table = np.asarray(null, dtype=np.float64)
    if table.shape != np.shape(correlation):
        raise InputError(f"a null has shape {table.shape} and the table {np.shape(correlation)}; they must agree")
    return np.nan_to_num(table)


def _match(table: np.ndarray, kind: str, absolute: bool, diagonal: bool = True) -> tuple[np.ndarray, np.ndarray]:
    if kind not in ("semi", "full"):
        raise InputError(f"kind is {kind!r}, expected 'semi' or 'full'")
    wanted = np.abs(table) if absolute else table.copy()
    if not diagonal:  # low enough that a permutation without fixed points is always better
        np.fill_diagonal(wanted, wanted.min() - len(wanted) * (np.ptp(wanted) + 1))
    if kind == "semi":
        return np.arange(len(wanted)), wanted.argmax(1)
    rows, columns = linear_sum_assignment(wanted, maximize=True)
    return np.asarray(rows), np.asarray(columns)


def _mean(table: np.ndarray, kind: Kind, absolute: bool) -> float:
    found = table[_match(table, kind, absolute)]
    return float((np.abs(found) if absolute else found).mean())


def _others(count: int, taken: np.ndarray) -> np.ndarray:
    return np.setdiff1d(np.arange(count), taken)


def matched_error(
    blocks: Iterable[tuple[Any, Any]], moments: JointMoments, pairs: Int[np.ndarray, "pair 2"], n_samples: int
) -> float:
    """Standard error of the mean correlation of given pairs, over samples (positions of a sample stay together).

    The delta method: a sample moves a correlation r by ``z_a z_b - r (z_a^2 + z_b^2) / 2``, averaged here over pairs and positions.

    Args:
        blocks: batches ``(values of a, values of b)`` of all ``n_samples`` samples, as arrays.

    Cost O(n k) for k pairs; a second pass over the data.
    """
    a, b = pairs.T
    scores = moments.between[a, b]
    total = squares = 0.0
    for one, other in blocks:
        z_a = (one[..., a] - moments.mean_a[a]) / moments.deviation[: moments.p][a]
        z_b = (other[..., b] - moments.mean_b[b]) / moments.deviation[moments.p :][b]
        moved = (z_a * z_b - 0.5 * scores * (z_a**2 + z_b**2)).reshape(len(one), -1).mean(1)
        total, squares = total + float(moved.sum()), squares + float((moved**2).sum())
    return float(np.sqrt(max(squares / n_samples - (total / n_samples) ** 2, 0.0) / n_samples))
