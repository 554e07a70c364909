"""How few units of one site are enough to predict each unit of another?

Source: Li, Yosinski, Clune, Lipson and Hopcroft, arXiv 1511.07543.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from netloupe.core.alignment import paired_rows
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.rows import Rows
from netloupe.core.splits import holdout
from netloupe.core.statistics import CrossMoments
from netloupe.lenses.similarity.mapping import SparseMapper, mapping_path, weakest_within

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 8
WIDE, WEAKEST = 128, 1e-2
PATH = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 0.02, 0.05, 0.1, 0.2, 0.3)
"""strengths up to where units that go together leave a handful of weights; the paper's end at 0.1"""
MAX_UNITS = 4096


@dataclass(frozen=True, eq=False)
class SparseMapping(Finding):
    """A path of sparse maps. Rows of ``held_out`` and ``n_nonzero`` are the strengths ``alphas``, columns the units of b.

    ``held_out``: half squared error on samples not fitted (0.5: no better than the mean; NaN for units that never vary).
    ``few``: row of the strongest map on average within ``few_units`` units a target. ``mean_squares``: half squared error there, by
    held-out sample, gives the ``standard_error``.
    """

    alphas: Float[np.ndarray, " alpha"]
    held_out: Float[np.ndarray, "alpha unit_b"]
    n_nonzero: Float[np.ndarray, "alpha unit_b"]
    few: int
    few_units: int
    standard_error: float
    n_units: tuple[int, int]
    n_samples: tuple[int, int]
    converged: bool

    meanings: ClassVar[dict[str, str]] = {
        "few_error": "held-out half squared error of predicting a unit from at most 8 units on average; 0.5 is no better than its mean",
        "standard_error": "its standard error over held-out samples",
        "units_used": "units used for a target there, on average",
        "best_error": "the smallest held-out half squared error at any strength",
        "best_units": "units used for a target there, on average",
    }

    def summary(self) -> dict[str, float]:
        """The error with few units, and the smallest."""
        errors, used = np.nanmean(self.held_out, 1), self.n_nonzero.mean(1)
        best = int(errors.argmin())
        return {
            "few_error": float(errors[self.few]),
            "standard_error": self.standard_error,
            "units_used": float(used[self.few]),
            "best_error": float(errors[best]),
            "best_units": float(used[best]),
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        n = self.summary()
        return (
            f"{n['units_used']:.1f} of {self.n_units[0]} units on average predict a unit of the other site with a half squared error of "
            f"{n['few_error']:.3f} (standard error {n['standard_error']:.2g}; its mean costs 0.5) on samples not fitted; the best map, of "
            f"{n['best_units']:.1f} units, with {n['best_error']:.3f}."
        )

    def plot(self, axes: Axes) -> None:
        """Held-out error against the number of units used."""
        used, errors = self.n_nonzero.mean(1), np.nanmean(self.held_out, 1)
        order = np.argsort(used, kind="stable")
        axes.plot(used[order], errors[order], "o-", markersize=3)
        axes.axhline(0.5, color="0.6", linestyle="--", linewidth=1)
        axes.set(xlabel="units used for a target, mean", ylabel="held-out half squared error", ylim=(0, None))


@lens(
    question="How few units of one site, or network, are enough to predict each unit of the other?",
    needs=("features", "other"),
    pooled=True,
    min_samples=8,
    invariances=("scale", "translation"),
)
def sparse_mapping(
    features: Float[Tensor, "sample unit"] | Any,
    other: Float[Tensor, "sample unit_other"] | Any,
    *,
    alphas: Sequence[float] | None = None,
    held_out: float = 0.2,
    random_state: int = 0,
) -> SparseMapping:
    """Lasso of every unit of the other site on all units of the first, at many strengths, judged on samples not fitted.

    ``min_w 1/2 E (b_j - w'a)^2 + alpha |w|_1`` on units of mean 0 and variance 1
    (:class:`~netloupe.lenses.similarity.mapping.SparseMapper`).

    Args:
        features, other: ``(sample, unit)`` of the same samples, any widths; or both ``(sample, position, unit)`` with the same
            positions, each then an observation.
        alphas: strengths; by default 0 to 0.3, and from 0.01 on for sites of more than 128 units or of more units than a quarter of
            the samples, where weaker ones leave most units in and take minutes. held_out: share of samples that the maps are judged on.

    Cost: O(n (p + q)^2) for the moments, O(q (p^2 + s^3)) a round of the solver with s units used, a second pass over held-out
    samples; streams. Takes at most 4,096 units a site. Raises InputError for other shapes or strengths, different samples, fewer
    than eight, or where no unit varies.
    """
    x, z = paired_rows(features, other, min_samples=8, ndim=(2, 3))
    if max(x.n_units, z.n_units) > MAX_UNITS:
        raise InputError(
            f"sites of {x.n_units} and {z.n_units} units were given, sparse_mapping takes at most {MAX_UNITS}; choose units"
        )
    judged = np.zeros(x.n_samples, bool)
    judged[holdout(x.n_samples, held_out, random_state=random_state)[1].numpy()] = True
    fitted, others = CrossMoments(), CrossMoments()
    for one, two, mine in _blocks(x, z, judged):
        for statistic, rows in ((fitted, ~mine), (others, mine)):
            if rows.any():
                statistic.update(one[rows], two[rows])
    if alphas is None:
        wide = x.n_units > WIDE or 4 * x.n_units > x.n_samples
        alphas = [alpha for alpha in PATH if alpha >= WEAKEST or not wide]
    path, test = mapping_path(fitted.result(), alphas), others.result()
    errors = np.stack([mapper.score_moments(test) for mapper in path])
    used = np.stack([mapper.n_nonzero_ for mapper in path]).astype(np.float64)
    few = weakest_within(path, FEW)
    error = _error(path[few], _blocks(x, z, judged), int(judged.sum()))
    return SparseMapping(
        np.array(alphas, dtype=np.float64), errors, used, few, FEW, error, (x.n_units, z.n_units),
        (int((~judged).sum()), int(judged.sum())), all(mapper.converged_ for mapper in path), context=Context(seed=random_state),
    )  # fmt: skip


def _blocks(x: Rows, z: Rows, judged: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    start = 0
    for one, two in zip(x, z, strict=True):
        stop = start + len(one.values)
        yield one.values.double().numpy(), two.values.double().numpy(), judged[start:stop]
        start = stop


def _error(mapper: SparseMapper, blocks: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]], count: int) -> float:
    """Standard error over held-out samples of the mean half squared error."""
    known = mapper.moments_
    spread, live = known.deviation[known.p :], ~known.dead_b
    total = squares = 0.0
    for one, two, mine in blocks:
        missed = (two[mine] - mapper.predict(one[mine]))[..., live] / spread[live]
        cost = 0.5 * (missed**2).reshape(len(missed), -1).mean(1) if len(missed) else np.zeros(0)
        total, squares = total + float(cost.sum()), squares + float((cost**2).sum())
    return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0) / count))
