"""How the loss on new samples falls with their number and rises with their dimension: the law L ~ K N^(-1/d), fitted.

Source: Konz and Mazurowski, "The Effect of Intrinsic Dataset Properties on Generalization", arXiv 2401.08865: with an
interpolating network ``log L <= -(1/d) log N + log K_F + const``, for d of the data and for d of a layer's activations alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float
from scipy import stats

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class GeneralisationLaw(Finding):
    """``log L = slope * (log N) / d + intercept[domain]``, by least squares.

    ``intercepts`` and ``intercept_errors`` ``(domain,)``; ``per_dimension``, ``per_dimension_errors`` ``(domain,)``: slope of
    ``log L`` against d with numbers of samples held apart, NaN where d does not vary at one N. ``x, y, codes`` are what
    was fitted: ``(log N) / d``, ``log L`` and each row's domain.
    """

    slope: float
    slope_error: float
    intercepts: np.ndarray
    intercept_errors: np.ndarray
    per_dimension: np.ndarray
    per_dimension_errors: np.ndarray
    domains: tuple[str, ...]
    r2: float
    x: np.ndarray
    y: np.ndarray
    codes: np.ndarray

    meanings: ClassVar[dict[str, str]] = {
        "slope": "change of the log loss per unit of (log samples) / dimension; the bound's is -1",
        "slope_error": "its standard error",
        "r2": "share of the variance of the log loss that the law explains",
        "largest_gap": "largest difference of two domains' log losses at equal samples and dimension",
        "gap_error": "standard error of that difference",
        "per_dimension": "change of the log loss per direction at an equal number of samples, on average over domains",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        found = {"slope": self.slope, "slope_error": self.slope_error, "r2": self.r2}
        if len(self.domains) > 1:
            high, low = int(self.intercepts.argmax()), int(self.intercepts.argmin())
            found["largest_gap"] = float(self.intercepts[high] - self.intercepts[low])
            found["gap_error"] = float(np.hypot(self.intercept_errors[high], self.intercept_errors[low]))
        if np.isfinite(self.per_dimension).any():
            found["per_dimension"] = float(np.nanmean(self.per_dimension))
        return found

    def plot(self, axes: Axes) -> None:
        """Log loss against (log N) / d with each domain's line."""
        for index, name in enumerate(self.domains):
            own = self.codes == index
            axes.plot(self.x[own], self.y[own], "o", markersize=3, color=f"C{index}", label=name)
            ends = np.array([self.x[own].min(), self.x[own].max()])
            axes.plot(ends, self.slope * ends + self.intercepts[index], color=f"C{index}")
        axes.set(xlabel="(log samples) / dimension", ylabel="log loss")
        axes.legend(frameon=False, fontsize="small")


def fit_generalisation_law(
    loss: Float[Any, " run"], n: Float[Any, " run"], d: Float[Any, " run"], domain: Sequence[Any] | None = None
) -> GeneralisationLaw:
    """Fits ``log L = slope * (log N) / d + intercept[domain]`` to runs.

    Args:
        loss: test losses, above 0, ``(run,)``. n: training samples. d: intrinsic dimension of the data, or of a layer.
        domain: a name for each run; one line's slope is shared, and each domain has its intercept. None is one domain.

    Cost: O(run). Raises InputError for lengths that differ, values that are not positive, no more runs than parameters, or
    ``(log N) / d`` that is the same in every run; NonFiniteError for NaN.
    """
    arrays = [np.asarray(value, dtype=np.float64) for value in (loss, n, d)]
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        raise InputError(
            f"loss, n and d have shapes {[array.shape for array in arrays]}; one number of each for every run is needed"
        )
    if not all(np.isfinite(array).all() for array in arrays):
        raise NonFiniteError("loss, n or d holds NaN or infinity; leave diverged runs out")
    losses, sizes, dims = arrays
    if (losses <= 0).any() or (sizes < 1).any() or (dims <= 0).any():
        raise InputError(
            "losses and dimensions must be above 0 and numbers of samples at least 1, for their logarithms are fitted"
        )
    names, codes = np.unique(
        np.asarray(["all"] * len(losses) if domain is None else [str(one) for one in domain]), return_inverse=True
    )
    if len(codes) != len(losses):
        raise InputError(f"{len(codes)} domains were given for {len(losses)} runs; one for each is needed")
    x, y = np.log(sizes) / dims, np.log(losses)
    if len(x) <= len(names) + 1:
        raise InputError(
            f"{len(x)} runs of {len(names)} domains cannot tell {len(names) + 1} parameters; give more runs"
        )
    beta, covariance, rss = _least_squares(np.column_stack([x, np.eye(len(names))[codes]]), y)
    errors = np.sqrt(np.diag(covariance))
    slopes = np.array([_per_dimension(dims[codes == i], y[codes == i], sizes[codes == i]) for i in range(len(names))])
    total = float(((y - y.mean()) ** 2).sum())
    return GeneralisationLaw(
        float(beta[0]), float(errors[0]), beta[1:], errors[1:], slopes[:, 0], slopes[:, 1], tuple(names.tolist()),
        1 - rss / total if total > 0 else 0.0, x, y, codes.astype(np.int64),
    )  # fmt: skip


def _least_squares(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise InputError(
            "(log n) / d is the same in every run of every domain, so that no slope can be fitted; vary n or d"
        )
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    rss = float(((y - design @ beta) ** 2).sum())
    return beta, rss / max(1, len(y) - design.shape[1]) * np.linalg.inv(design.T @ design), rss


def _per_dimension(d: np.ndarray, y: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Slope of log loss on d with an intercept for each number of samples, and its standard error."""
    _, place = np.unique(sizes, return_inverse=True)
    groups = np.eye(place.max() + 1)[place]
    centred = d - groups @ (groups.T @ d / groups.sum(0))
    freedom = len(d) - groups.shape[1] - 1
    if not (centred**2).sum() > 1e-12 * (d**2).sum() or freedom < 1:
        return np.nan, np.nan
    slope = float(centred @ y / (centred @ centred))
    residual = y - groups @ (groups.T @ y / groups.sum(0)) - slope * centred
    return slope, float(np.sqrt(residual @ residual / freedom / (centred @ centred)))


def rank_correlation(x: Float[Any, " run"], y: Float[Any, " run"]) -> float:
    """Spearman's correlation; 0 where one of both is constant."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise InputError(f"two rows of equal length, of at least 2, are needed, got shapes {a.shape} and {b.shape}")
    if not np.ptp(a) or not np.ptp(b):
        return 0.0
    return round(float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1]), 12)  # 1 where the order is the same
