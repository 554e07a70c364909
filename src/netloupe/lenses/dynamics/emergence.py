"""The curve along which a number emerges over training, fitted: an early peak that decays, or a slow logarithmic climb.

``f(t) = A exp(-lambda x) log x + K`` with ``x = gamma t + t0``: one curve of five parameters for the ratio of the largest to the
median activation in every layer. Source: Gallego-Feliciano et al., "Hidden Dynamics of Massive Activations in Transformer
Training", arXiv 2508.03616. It serves any number watched over training.

How the parameters depend on the architecture is in :mod:`netloupe.lenses.dynamics.emergence_predictor`, offered here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.lenses.dynamics.emergence_predictor import ArchitecturePredictor, PredictorScores, architecture_features

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ArchitecturePredictor",
    "CurveComparison",
    "ExpLogCurve",
    "PredictorScores",
    "StepResponse",
    "architecture_features",
    "compare_curves",
    "peak_time_of",
]

Regime = Literal["early peak", "log increase"]
FEWEST = 6
_BETAS, _SHIFTS = np.geomspace(1e-3, 100, 14), np.geomspace(1e-5, 10, 14)
_BEST = 3  # ends of the coarse search that are refined


def peak_time_of(lam: float, gamma: float, t0: float) -> float | None:
    """Where ``exp(-lambda x) log x``, ``x = gamma t + t0``, is largest: ``(exp(W(1 / lambda)) - t0) / gamma``.

    ``f'(t) = 0`` at ``x log x = 1 / lambda``; ``W`` is Lambert's function. None for ``lambda = 0``, where the curve rises for ever.
    May be negative (before training) or beyond its end. Raises InputError for a negative ``lambda`` or ``gamma`` not above 0.
    """
    if not (lam >= 0 and gamma > 0 and math.isfinite(t0)):
        raise InputError(f"lambda is {lam}, gamma {gamma} and t0 {t0}; expected at least 0, above 0 and finite")
    if lam == 0:
        return None
    # exp(W(z)) = z / W(z), and W(exp(y)) without overflow is Wright's omega
    x = 1 / (lam * float(np.real(special.wrightomega(-math.log(lam)))))
    return (x - t0) / gamma


class ExpLogCurve:
    """Least-squares fit of ``f(t) = A exp(-lambda (gamma t + t0)) log(gamma t + t0) + K`` with ``lambda >= 0``.

    Fitted as ``exp(-beta t) (A1 log(t + tau0) + A2) + K``, with time and values scaled to [0, 1]: for fixed ``beta`` and ``tau0`` this
    is linear in the other three, so a search in two dimensions (a grid and ``n_restarts`` random starts, the best refined)
    finds what a search in five would lose; ``scipy.optimize.curve_fit`` with the exact Jacobian polishes.

    Args:
        n_restarts: random starts beside the grid.
        random_state: of the starts.

    Attributes after ``fit``: ``A_, lambda_, gamma_, t0_, K_`` and the fitted form ``beta_, tau0_, A1_, A2_``; ``r2_``, ``rss_``, ``aic_``
    (``n log(RSS / n) + 10``). The five are sloppy: very different ``A, gamma, t0`` give the same curve, so compare predictions and
    :meth:`peak_time`, not parameters.
    """

    def __init__(self, n_restarts: int = 20, random_state: int = 0) -> None:
        if n_restarts < 0:
            raise InputError(f"n_restarts is {n_restarts}, expected at least 0")
        self.n_restarts, self.random_state = n_restarts, random_state

    def fit(self, t: Sequence[float], r: Sequence[float]) -> Self:
        """Fits values ``r`` at increasing times ``t`` from 0 on; returns ``self``.

        Cost: 20 to 50 ms. Raises InputError for fewer than 6 points, times that are negative or do not increase, and
        values that are not finite.
        """
        times, values = _checked(t, r)
        end, low, size = float(times.max()), float(values.min()), float(np.ptp(values))
        x, y = times / end, (values - low) / (size or 1.0)
        beta, tau0 = self._search(x, y)
        a1, a2, k = _linear_part(x, y, beta, tau0)[0]
        a1, a2, beta, tau0, k = _polished(x, y, (float(a1), float(a2), beta, tau0, float(k)))
        scale = size or 1.0
        self.beta_, self.tau0_ = beta / end, end * tau0
        self.A1_, self.A2_ = scale * a1, scale * (a2 - a1 * math.log(end))
        self.K_ = scale * k + low
        self._name_parameters()
        self.rss_, self.r2_, self.aic_ = _quality(values, self.predict(times), 5)
        return self

    def predict(self, t: Any) -> Float[np.ndarray, " time"]:
        """The fitted curve at other times."""
        times = np.atleast_1d(np.asarray(t, dtype=float))
        return np.exp(-self.beta_ * times) * (self.A1_ * np.log(times + self.tau0_) + self.A2_) + self.K_

    def peak_time(self) -> float | None:
        """Time of the curve's maximum; None where there is none (``lambda = 0``, or a trough instead). May lie outside training."""
        if self.beta_ <= 0 or self.A1_ <= 0:
            return None
        # beta (log u + A2 / A1) = 1 / u at u = t + tau0, so u = 1 / (beta omega(A2 / A1 - log beta))
        omega = float(np.real(special.wrightomega(self.A2_ / self.A1_ - math.log(self.beta_))))
        return 1 / (self.beta_ * omega) - self.tau0_ if omega > 0 else None

    def regime(self, t_end: float) -> Regime:
        """``early peak`` where the maximum lies inside training, else ``log increase``."""
        peak = self.peak_time()
        return "early peak" if peak is not None and 0 < peak < t_end else "log increase"

    def jacobian(self, t: Any) -> Float[np.ndarray, "time parameter"]:
        """Derivatives of the fitted form with respect to ``A1, A2, beta, tau0, K``."""
        return _jacobian(np.atleast_1d(np.asarray(t, dtype=float)), self.A1_, self.A2_, self.beta_, self.tau0_, self.K_)

    def _search(self, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        draw = np.random.default_rng(self.random_state)
        betas, shifts = (grid.ravel() for grid in np.meshgrid(_BETAS, _SHIFTS))
        betas = np.concatenate([betas, 10 ** draw.uniform(-3, 2, self.n_restarts)])
        shifts = np.concatenate([shifts, 10 ** draw.uniform(-5, 1, self.n_restarts)])
        rss = _reduced_rss(x, y, betas, shifts)
        best: tuple[float, float, float] | None = None
        for start in np.argsort(rss, kind="stable")[:_BEST]:
            found = optimize.least_squares(
                lambda p: _linear_part(x, y, math.exp(p[0]), math.exp(p[1]))[1],
                [math.log(betas[start]), math.log(shifts[start])],
                bounds=([math.log(1e-6), math.log(1e-6)], [math.log(1e3), math.log(1e3)]),
                max_nfev=60,
            )
            if best is None or found.cost < best[0]:
                best = float(found.cost), math.exp(found.x[0]), math.exp(found.x[1])
        assert best is not None
        return best[1], best[2]

    def _name_parameters(self) -> None:
        """The parameters of the paper's form; NaN where ``A1 = 0`` leaves them open, infinite where they overflow."""
        if self.A1_ == 0:
            self.A_ = self.lambda_ = self.gamma_ = self.t0_ = math.nan
            return
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            self.gamma_ = float(np.exp(np.float64(self.A2_ / self.A1_)))
            self.t0_ = self.gamma_ * self.tau0_
            self.lambda_ = float(np.float64(self.beta_) / self.gamma_)
            self.A_ = float(self.A1_ * np.exp(np.float64(self.beta_ * self.tau0_)))


class StepResponse:
    """Rival curves: how a linear system of first or second order answers a step, both from 0 to ``K``.

    Order 1: ``K (1 - exp(-t / tau))``. Order 2, with damping ``zeta`` and frequency ``omega``: under-damped
    ``K (1 - exp(-zeta omega t) sin(w t + acos zeta) / sqrt(1 - zeta^2))`` with ``w = omega sqrt(1 - zeta^2)``, critical
    ``K (1 - exp(-omega t) (1 + omega t))``, over-damped ``K (1 - (r1 exp(r2 t) - r2 exp(r1 t)) / (r1 - r2))`` with
    ``r1,2 = -omega (zeta -+ sqrt(zeta^2 - 1))``. As in the paper there is no offset, so that a series that starts far from 0 is
    fitted badly and ``r2_`` may be negative.

    Args:
        order: 1 or 2.

    Attributes after ``fit``: ``K_``, ``tau_`` or ``zeta_`` and ``omega_``; ``rss_``, ``r2_``, ``aic_``.
    """

    def __init__(self, order: int = 1) -> None:
        if order not in (1, 2):
            raise InputError(f"order is {order}, expected 1 or 2")
        self.order = order

    def fit(self, t: Sequence[float], r: Sequence[float]) -> Self:
        """Least squares over all times; ``K`` is linear, the rest is searched from a grid. Errors as :class:`ExpLogCurve`."""
        times, values = _checked(t, r)
        end = float(times.max())
        x = times / end
        rates = np.geomspace(0.1, 1e4, 60)
        grid = (
            [(rate,) for rate in rates]
            if self.order == 1
            else [(z, w) for z in np.geomspace(0.05, 10, 12) for w in rates[::3]]
        )
        shapes = np.stack([self._shape(x, *point) for point in grid])
        rss = [_scaled(shape, values)[1] for shape in shapes]
        best: tuple[float, np.ndarray] | None = None
        for start in np.argsort(rss, kind="stable")[:_BEST]:
            found = optimize.least_squares(
                lambda p: self._residuals(x, values, np.exp(p)), np.log(grid[start]), bounds=(-12, 12), max_nfev=100
            )
            if best is None or found.cost < best[0]:
                best = float(found.cost), np.exp(found.x)
        assert best is not None
        self._point, self._end = tuple(best[1].tolist()), end
        self.K_ = _scaled(self._shape(x, *self._point), values)[0]
        if self.order == 1:
            self.tau_ = end / self._point[0]
        else:
            self.zeta_, self.omega_ = self._point[0], self._point[1] / end
        self.rss_, self.r2_, self.aic_ = _quality(values, self.predict(times), self.order + 1)
        return self

    def predict(self, t: Any) -> Float[np.ndarray, " time"]:
        """The fitted curve at other times."""
        return self.K_ * self._shape(np.atleast_1d(np.asarray(t, dtype=float)) / self._end, *self._point)

    def _residuals(self, x: np.ndarray, values: np.ndarray, point: np.ndarray) -> np.ndarray:
        shape = self._shape(x, *point)
        return _scaled(shape, values)[0] * shape - values

    def _shape(self, x: np.ndarray, *point: float) -> np.ndarray:
        """The response of height 1."""
        return -np.expm1(-point[0] * x) if self.order == 1 else step_of_second_order(x, *point)


def step_of_second_order(t: Float[np.ndarray, " time"], zeta: float, omega: float) -> Float[np.ndarray, " time"]:
    """Step response of height 1 with damping ``zeta`` and frequency ``omega``; 0 at the start, 1 in the end."""
    if abs(zeta - 1) < 1e-6:
        return 1 - np.exp(-omega * t) * (1 + omega * t)
    if zeta < 1:
        root = math.sqrt(1 - zeta * zeta)
        return 1 - np.exp(-zeta * omega * t) * np.sin(omega * root * t + math.acos(zeta)) / root
    root = math.sqrt(zeta * zeta - 1)
    slow, fast = -omega * (zeta - root), -omega * (zeta + root)
    return 1 - (slow * np.exp(fast * t) - fast * np.exp(slow * t)) / (slow - fast)


@dataclass(frozen=True, eq=False)
class CurveComparison(Finding):
    """One series under three curves: ``aic`` and ``r2`` of each, the one with the lowest AIC, and what the exp-log curve says.

    ``times`` and ``values`` ``(point,)`` are the series; ``fitted``: each curve's values there. ``peak`` is None where the curve has
    none. ``parameters``: ``A, lambda, gamma, t0, K``.
    """

    best: str
    aic: dict[str, float]
    r2: dict[str, float]
    regime: str
    peak: float | None
    parameters: dict[str, float]
    times: np.ndarray
    values: np.ndarray
    fitted: np.ndarray

    meanings: ClassVar[dict[str, str]] = {
        "r2": "share of variance that the exp-log curve explains",
        "aic_advantage": "AIC of the better step response less that of the exp-log curve; above 0 the latter wins",
        "early_peak": "1 where the curve peaks inside the series, 0 where it still climbs",
        "peak_time": "when it peaks",
        "limit": "value that the curve tends to",
        "r2_step1": "the same share for a first-order step response; may be negative",
        "r2_step2": "the same share for a second-order step response; may be negative",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        found = {
            "r2": self.r2["exp-log"],
            "aic_advantage": min(self.aic["step 1"], self.aic["step 2"]) - self.aic["exp-log"],
            "early_peak": float(self.regime == "early peak"),
            "limit": self.parameters["K"],
            "r2_step1": self.r2["step 1"],
            "r2_step2": self.r2["step 2"],
        }
        return found if self.peak is None else found | {"peak_time": self.peak}

    def plot(self, axes: Axes) -> None:
        """The series and the three curves, and the peak where it lies inside."""
        axes.plot(self.times, self.values, "ko", markersize=3, label="measured")
        for row, (name, style) in enumerate(zip(self.aic, ("C1-", "C0:", "C2:"), strict=True)):
            axes.plot(self.times, self.fitted[row], style, label=name)
        if self.peak is not None and self.regime == "early peak":
            axes.axvline(self.peak, color="C7", linestyle="--", linewidth=0.8, label="peak")
        axes.set(xlabel="step", ylabel="value")
        axes.locator_params(axis="x", nbins=6)
        axes.legend(frameon=False, fontsize="small")


def compare_curves(t: Sequence[float], r: Sequence[float], n_restarts: int = 20) -> CurveComparison:
    """Fits :class:`ExpLogCurve` and both :class:`StepResponse` and compares them by AIC and R^2; errors as in ``fit``."""
    curve = ExpLogCurve(n_restarts).fit(t, r)
    fits: dict[str, Any] = {"exp-log": curve, "step 1": StepResponse(1).fit(t, r), "step 2": StepResponse(2).fit(t, r)}
    times, values = np.asarray(t, dtype=float), np.asarray(r, dtype=float)
    return CurveComparison(
        best=min(fits, key=lambda name: fits[name].aic_),
        aic={name: fit.aic_ for name, fit in fits.items()},
        r2={name: fit.r2_ for name, fit in fits.items()},
        regime=curve.regime(float(times.max())),
        peak=curve.peak_time(),
        parameters={"A": curve.A_, "lambda": curve.lambda_, "gamma": curve.gamma_, "t0": curve.t0_, "K": curve.K_},
        times=times,
        values=values,
        fitted=np.stack([fit.predict(times) for fit in fits.values()]),
    )


def _curve(t: np.ndarray, a1: float, a2: float, beta: float, tau0: float, k: float) -> np.ndarray:
    return np.exp(-beta * t) * (a1 * np.log(t + tau0) + a2) + k


def _jacobian(t: np.ndarray, a1: float, a2: float, beta: float, tau0: float, k: float) -> np.ndarray:
    decay, log = np.exp(-beta * t), np.log(t + tau0)
    inner = a1 * log + a2
    return np.stack([decay * log, decay, -t * decay * inner, decay * a1 / (t + tau0), np.ones_like(t)], 1)


def _design(x: np.ndarray, beta: Any, tau0: Any) -> np.ndarray:
    """Columns of the linear part, each of length 1; ``(..., point, 3)``."""
    beta, tau0 = np.asarray(beta)[..., None], np.asarray(tau0)[..., None]
    decay = np.exp(-beta * x)
    return np.stack(np.broadcast_arrays(decay * np.log(x + tau0), decay, np.ones_like(decay)), -1)


def _reduced_rss(x: np.ndarray, y: np.ndarray, betas: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Least residual of every start at once: what is left of ``y`` outside the span of the three columns."""
    q, _ = np.linalg.qr(_design(x, betas, shifts))
    inside = np.einsum("spc,p->sc", q, y)
    return float(y @ y) - np.sum(inside**2, 1)


def _linear_part(x: np.ndarray, y: np.ndarray, beta: float, tau0: float) -> tuple[np.ndarray, np.ndarray]:
    """The best ``A1, A2, K`` and the residuals they leave."""
    design = _design(x, beta, tau0)
    lengths = np.linalg.norm(design, axis=0)
    coefficients = np.linalg.lstsq(design / lengths, y, rcond=1e-12)[0] / lengths
    return coefficients, design @ coefficients - y


def _polished(
    x: np.ndarray, y: np.ndarray, start: tuple[float, float, float, float, float]
) -> tuple[float, float, float, float, float]:
    """All five parameters together from the searched start; the start where nothing better is found."""
    low = [-np.inf, -np.inf, 0.0, 1e-6, -np.inf]
    clipped = [max(value, bound) for value, bound in zip(start, low, strict=True)]
    curve: Callable[..., np.ndarray] = _curve
    try:
        with np.errstate(all="ignore"):
            found: Any = optimize.curve_fit(
                curve, x, y, clipped, jac=_jacobian, bounds=(low, np.inf), method="trf", max_nfev=200, x_scale="jac"
            )[0]
    except (RuntimeError, ValueError, np.linalg.LinAlgError):
        return start
    better = np.sum((_curve(x, *found) - y) ** 2) <= np.sum((_curve(x, *start) - y) ** 2)
    return tuple(float(value) for value in found) if better else start  # type: ignore[return-value]


def _scaled(shape: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The height that fits best, and the residual sum of squares."""
    size = float(shape @ shape)
    height = float(shape @ values) / size if size > 0 else 0.0
    return height, float(np.sum((height * shape - values) ** 2))


def _quality(values: np.ndarray, fitted: np.ndarray, n_parameters: int) -> tuple[float, float, float]:
    """Residual sum of squares, R^2 (1 where nothing varies and nothing is missed, never clipped), AIC."""
    rss, total = float(np.sum((values - fitted) ** 2)), float(np.sum((values - values.mean()) ** 2))
    r2 = 1 - rss / total if total > 0 else (1.0 if rss <= 1e-24 else 0.0)
    return rss, r2, len(values) * math.log(max(rss, 1e-300) / len(values)) + 2 * n_parameters


def _checked(t: Sequence[float], r: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    times, values = np.asarray(t, dtype=float), np.asarray(r, dtype=float)
    if times.ndim != 1 or times.shape != values.shape or len(times) < FEWEST:
        raise InputError(f"t and r have shapes {times.shape} and {values.shape}, expected at least {FEWEST} pairs")
    if not (np.isfinite(times).all() and np.isfinite(values).all()):
        raise InputError("t or r holds NaN or infinity (a layer whose median is 0 has no ratio); leave such points out")
    if times[0] < 0 or not (np.diff(times) > 0).all():
        raise InputError("t is negative or does not increase; give each step once, in order")
    return times, values
