"""How the activation ratio moves with data and with shape: two laws of training data, and a line that ends at a knot.

Networks with ReLU grow sparser with data, ``A(D) = exp(b - c D^alpha) + A0``; those with SiLU denser, ``A(D) = A0 - c D^-alpha``;
both towards a limit ``A0``. Source: Luo et al., "Sparsing Law: Towards Large Language Models with Greater Activation
Sparsity", arXiv 2411.02335, which fits them with ``D`` in billions of tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.trajectory import Fit, fit_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Family = Literal["logspace", "convergent", "undetermined"]
ALPHAS = (0.1, 0.3, 1.0, 2.0)  # starts of the search; alpha is what a bad start loses
FALLS = (0.3, 1.0, 3.0, 6.0)
FEWEST = 6
SIGNIFICANCE = 0.05
_ENDLESS = 10.0  # a limit that may be so many times the largest ratio seen has no upper end


class _Law(ABC):
    """What both laws share: scaling, the search from several starts, and what the data leave open.

    Attributes, after ``fit``: ``alpha_``, ``c_``, ``b_`` (0 where the law has none), ``limit_`` (A0), ``rss_``, ``r2_``, ``aic_``, and
    ``determined_``: whether the law explains the series better than a constant does (F-test, 5 %). Where it does not,
    ``alpha_`` and ``c_`` are NaN and ``limit_`` is the mean.
    """

    name: ClassVar[Family]
    n_parameters: ClassVar[int]
    bounds: ClassVar[tuple[list[float], list[float]]]
    """of the parameters on data scaled to at most 1; without them a series that has no trend keeps the search for ever"""

    alpha_: float
    c_: float
    b_: float
    limit_: float
    rss_: float
    r2_: float
    aic_: float
    determined_: bool

    def fit(self, tokens: Sequence[float], ratios: Sequence[float]) -> Self:
        """Least squares; returns ``self``.

        Args:
            tokens: training data so far, positive, in any unit (``c_`` and ``b_`` are in that unit); warm-up left out.
            ratios: activation ratio there.

        Cost: four starts of a search over three or four numbers, some 10 ms. Raises InputError for fewer than 6 points,
        values that are not finite, and tokens that are not positive and distinct.
        """
        d, a = _checked(tokens, ratios)
        self._d, self._a, self._scale = d, a, float(d.max())
        x = d / self._scale
        found = self._search(x, a)
        total = float(np.sum((a - a.mean()) ** 2))
        self.rss_, self.aic_ = found.rss, found.aic
        self.r2_ = 1 - found.rss / total if total > 0 else 0.0
        self.determined_ = self._beats_a_constant(found.rss, total)
        self._parameters = found.parameters
        self._keep(found.parameters)
        if not self.determined_:
            self.alpha_, self.c_, self.b_, self.limit_ = math.nan, math.nan, 0.0, float(a.mean())
        return self

    def predict(self, tokens: Any) -> Float[np.ndarray, " point"]:
        """The law at other amounts of data; the mean where it is not determined."""
        d = np.atleast_1d(np.asarray(tokens, dtype=float))
        if not self.determined_:
            return np.full(d.shape, self.limit_)
        return self._curve(d / self._scale, *self._parameters)

    def limit_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Profile interval of the limit: all ``A0`` for which the rest of the law still fits nearly as well.

        ``RSS(A0) <= RSS (1 + F / (n - p))`` with the ``level`` quantile of ``F(1, n - p)``. The upper end may be infinite and the
        lower end 0, which says that the series is too short to know its limit.
        """
        if not self.determined_:
            half = float(stats.sem(self._a) * stats.t.ppf((1 + level) / 2, len(self._a) - 1))
            return self.limit_ - half, self.limit_ + half
        free = len(self._a) - self.n_parameters
        allowed = self.rss_ * (1 + stats.f.ppf(level, 1, free) / free)
        ends = []
        for direction in (-1, 1):
            self._near = np.array(self._parameters[:-1])
            ends.append(self._end(direction, allowed))
        return ends[0], ends[1]

    def _end(self, direction: int, allowed: Any) -> float:
        inside, step = self.limit_, 1e-3 * max(float(np.ptp(self._a)), 1e-12)
        for _ in range(40):
            outside = inside + direction * step
            if outside <= 0:
                if self._profile(1e-12) <= allowed:
                    return 0.0
                outside = 1e-12
            if self._profile(outside) > allowed:
                for _ in range(14):
                    middle = (inside + outside) / 2
                    inside, outside = (inside, middle) if self._profile(middle) > allowed else (middle, outside)
                return (inside + outside) / 2
            inside, step = outside, 2 * step
            if inside > _ENDLESS * self._a.max():
                return math.inf
        return math.inf

    def _profile(self, limit: float) -> float:
        """The least residual with this limit, from where the last one was found."""
        x, fixed = self._d / self._scale, math.log(limit)

        def residuals(p: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore", invalid="ignore"):
                return np.nan_to_num(self._curve(x, *p, fixed) - self._a, nan=1e3, posinf=1e3, neginf=-1e3)

        low, high = (np.array(bound[:-1], dtype=float) for bound in self.bounds)
        start = np.clip(self._near, low + 1e-9, high - 1e-9)
        found = optimize.least_squares(residuals, start, bounds=(low, high), max_nfev=100, x_scale="jac")
        self._near = found.x
        return float(2 * found.cost)

    def _beats_a_constant(self, rss: float, total: float) -> bool:
        extra, free = self.n_parameters - 1, len(self._a) - self.n_parameters
        if total <= 1e-24 * max(float(np.sum(self._a**2)), 1e-300):
            return False
        if rss <= 1e-14 * total:
            return True
        return bool(stats.f.sf((total - rss) / extra / (rss / free), extra, free) < SIGNIFICANCE)

    def _search(self, x: np.ndarray, a: np.ndarray) -> Fit:
        with np.errstate(over="ignore", invalid="ignore"):
            return fit_curve(self._curve, x.tolist(), a.tolist(), self._starts(x, a), self.name, self.bounds)

    @abstractmethod
    def _curve(self, x: np.ndarray, *parameters: float) -> np.ndarray:
        """The ratio at data ``x``, in units of the largest amount; the limit comes last, as its logarithm."""

    @abstractmethod
    def _starts(self, x: np.ndarray, a: np.ndarray) -> list[list[float]]:
        """Where the search begins."""

    @abstractmethod
    def _keep(self, parameters: tuple[float, ...]) -> None:
        """Sets the attributes that the fit leaves."""


class LogspacePowerLaw(_Law):
    """``A(D) = exp(b - c D^alpha) + A0`` with positive ``c``, ``alpha``, ``A0``: a ratio that falls, as with ReLU.

    For one ``alpha`` and ``c`` the law is linear in ``exp(b)`` and ``A0``: that gives the starts, from ``alpha`` 0.1, 0.3, 1 and 2.
    """

    name: ClassVar[Family] = "logspace"
    n_parameters: ClassVar[int] = 4
    bounds: ClassVar[tuple[list[float], list[float]]] = ([-5, -7, -25, -25], [3, 7, 25, 7])

    def _curve(self, x: np.ndarray, *parameters: float) -> np.ndarray:
        log_alpha, log_c, b, log_limit = parameters
        return np.exp(b - np.exp(log_c) * x ** np.exp(log_alpha)) + np.exp(log_limit)

    def _starts(self, x: np.ndarray, a: np.ndarray) -> list[list[float]]:
        starts = []
        for alpha in ALPHAS:
            tried = [_linear(np.exp(-fall * x**alpha), a) for fall in FALLS]
            best = int(np.argmin([rss for _, _, rss in tried]))
            size, limit, _ = tried[best]
            starts.append(
                [math.log(alpha), math.log(FALLS[best]), math.log(max(size, 1e-6)), math.log(max(limit, 1e-6))]
            )
        return starts

    def _keep(self, parameters: tuple[float, ...]) -> None:
        self.alpha_, self.b_, self.limit_ = math.exp(parameters[0]), parameters[2], math.exp(parameters[3])
        self.c_ = math.exp(parameters[1] - self.alpha_ * math.log(self._scale))


class ConvergentPowerLaw(_Law):
    """``A(D) = A0 - c D^-alpha`` with positive ``c``, ``alpha``, ``A0``: a ratio that rises and saturates, as with SiLU."""

    name: ClassVar[Family] = "convergent"
    n_parameters: ClassVar[int] = 3
    bounds: ClassVar[tuple[list[float], list[float]]] = ([-5, -25, -25], [3, 7, 7])

    def _curve(self, x: np.ndarray, *parameters: float) -> np.ndarray:
        log_alpha, log_c, log_limit = parameters
        return np.exp(log_limit) - np.exp(log_c) * x ** -np.exp(log_alpha)

    def _starts(self, x: np.ndarray, a: np.ndarray) -> list[list[float]]:
        starts = []
        for alpha in ALPHAS:
            size, limit, _ = _linear(-(x**-alpha), a)
            starts.append([math.log(alpha), math.log(max(size, 1e-6)), math.log(max(limit, 1e-6))])
        return starts

    def _keep(self, parameters: tuple[float, ...]) -> None:
        self.alpha_, self.b_, self.limit_ = math.exp(parameters[0]), 0.0, math.exp(parameters[2])
        self.c_ = math.exp(parameters[1] + self.alpha_ * math.log(self._scale))


LAWS: dict[str, type[_Law]] = {"logspace": LogspacePowerLaw, "convergent": ConvergentPowerLaw}


@dataclass(frozen=True, eq=False)
class LawComparison(Finding):
    """Both laws on one series: which explains it, and where it would end.

    ``family`` is the determined law with the lower AIC, or ``undetermined``. ``parameters``: of each determined law ``alpha``, ``b``,
    ``c``, ``limit``. ``tokens`` and ``ratios`` ``(point,)`` are the series.
    """

    family: str
    aic: dict[str, float]
    r2: dict[str, float]
    parameters: dict[str, tuple[float, float, float, float]]
    limit: float
    limit_interval: tuple[float, float] | None
    tokens: np.ndarray
    ratios: np.ndarray

    meanings: ClassVar[dict[str, str]] = {
        "limit": "activation ratio that the series tends to",
        "limit_low": "lower end of its 95 % profile interval",
        "limit_high": "upper end; missing where the data set none",
        "alpha": "exponent of the data in the chosen law",
        "r2": "share of variance that the chosen law explains",
        "aic_difference": "AIC of the other law less that of the chosen one; below 2 they are hardly to be told apart",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains; those of the law only where one is determined."""
        found = {"limit": self.limit}
        if self.limit_interval is not None:
            low, high = self.limit_interval
            found |= {"limit_low": low} | ({"limit_high": high} if math.isfinite(high) else {})
        if self.family in self.parameters:
            other = next(name for name in self.aic if name != self.family)
            found |= {
                "alpha": self.parameters[self.family][0],
                "r2": self.r2[self.family],
                "aic_difference": self.aic[other] - self.aic[self.family],
            }
        return found

    def plot(self, axes: Axes) -> None:
        """The series, the chosen law and its limit."""
        axes.plot(self.tokens, self.ratios, "o", markersize=4, color="C0", label="measured")
        if self.family in LAWS:
            grid = np.geomspace(self.tokens.min(), self.tokens.max(), 200)
            alpha, b, c, limit = self.parameters[self.family]
            curve = np.exp(b - c * grid**alpha) + limit if self.family == "logspace" else limit - c * grid**-alpha
            axes.plot(grid, curve, color="C1", label=f"{self.family} law")
        axes.axhline(self.limit, color="C7", linestyle="--", label=f"limit {self.limit:.3f}")
        axes.set(xscale="log", xlabel="training data", ylabel="activation ratio")
        axes.legend(frameon=False, fontsize="small")


def compare(tokens: Sequence[float], ratios: Sequence[float], interval: bool = True) -> LawComparison:
    """Fits both laws and chooses by AIC among those that beat a constant; arguments and errors as in ``fit``.

    ``interval`` False leaves out the profile interval of the limit, which takes most of the time (up to a second).
    """
    laws = {name: law().fit(tokens, ratios) for name, law in LAWS.items()}
    determined = [name for name, law in laws.items() if law.determined_]
    family = min(determined, key=lambda name: laws[name].aic_) if determined else "undetermined"
    chosen = laws[family if determined else "convergent"]
    return LawComparison(
        family,
        {name: law.aic_ for name, law in laws.items()},
        {name: law.r2_ for name, law in laws.items()},
        {name: (law.alpha_, law.b_, law.c_, law.limit_) for name, law in laws.items() if law.determined_},
        chosen.limit_,
        chosen.limit_interval() if interval else None,
        np.asarray(tokens, dtype=float),
        np.asarray(ratios, dtype=float),
    )


class TwoSegment(NamedTuple):
    """``y = intercept + slope min(x, knot)``: a line up to the knot, ``level`` from there on."""

    knot: float
    slope: float
    intercept: float
    level: float
    rss: float
    r2: float

    def predict(self, x: Any) -> Float[np.ndarray, " point"]:
        """The fitted values."""
        return self.intercept + self.slope * np.minimum(np.asarray(x, dtype=float), self.knot)


def two_segment(x: Sequence[float], y: Sequence[float], n_knots: int = 400, fewest: int = 2) -> TwoSegment:
    """Least squares of a line that turns into a constant at a knot, by a grid of ``n_knots`` from the ``fewest``-th x to the last.

    This is how the activation ratio depends on width over depth at a fixed number of parameters. A knot at the largest
    ``x`` says that no end of the line was seen. Raises InputError for fewer than 4 points, values that are not finite, or
    fewer than 3 different ``x``.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 4 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError(f"x and y have shapes {a.shape} and {b.shape}, expected at least 4 pairs of finite numbers")
    places = np.unique(a)
    if len(places) < 3 or not 2 <= fewest <= len(places):
        raise InputError(
            f"x has {len(places)} different values, {fewest} of them for the line; at least 3, and 2 for the line, are needed"
        )
    best: TwoSegment | None = None
    total = float(np.sum((b - b.mean()) ** 2))
    for knot in np.linspace(places[fewest - 1], places[-1], n_knots):
        slope, intercept, rss = _linear(np.minimum(a, knot), b)
        if best is None or rss < best.rss * (1 - 1e-12):
            r2 = 1 - rss / total if total > 0 else math.nan
            best = TwoSegment(float(knot), slope, intercept, intercept + slope * float(knot), rss, r2)
    assert best is not None
    return best


def _linear(column: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, intercept and residual sum of squares of ``y`` on one column."""
    design = np.stack([column, np.ones_like(column)], 1)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    return float(coefficients[0]), float(coefficients[1]), float(np.sum((design @ coefficients - y) ** 2))


def _checked(tokens: Sequence[float], ratios: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    d, a = np.asarray(tokens, dtype=float), np.asarray(ratios, dtype=float)
    if d.ndim != 1 or d.shape != a.shape or len(d) < FEWEST:
        raise InputError(f"tokens and ratios have shapes {d.shape} and {a.shape}, expected at least {FEWEST} pairs")
    if not (np.isfinite(d).all() and np.isfinite(a).all()):
        raise InputError("tokens or ratios hold NaN or infinity; leave such checkpoints out")
    if d.min() <= 0 or len(np.unique(d)) != len(d):
        raise InputError("tokens are not positive and distinct; give each checkpoint once and leave step 0 out")
    return d, a
