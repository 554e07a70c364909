"""The claims of the massive-activations study about the curve itself, on series whose parameters are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from netloupe.core.study import Bar, Claim
from netloupe.lenses.dynamics.emergence import CurveComparison, ExpLogCurve, compare_curves, peak_time_of
from netloupe.studies._massive_activations_setting import END, TIMES, Formula, Settings, Trajectory, draw_formula, noisy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def curve_claims(settings: Settings, seed: int) -> Iterator[Claim]:
    """Claims 1 and 2."""
    draw = np.random.default_rng(seed)
    formulas = [draw_formula(draw, early=index % 2 == 0) for index in range(settings.n_curves)]
    series = [noisy(formula, draw) for formula in formulas]
    fits = [ExpLogCurve().fit(TIMES.tolist(), values.tolist()) for values in series]
    yield fit_claim(formulas, series, fits, draw)
    yield peak_claim(formulas, series, fits, draw)
    yield formula_claim(settings, draw)


def fit_claim(
    formulas: Sequence[Formula], series: Sequence[np.ndarray], fits: Sequence[ExpLogCurve], draw: np.random.Generator
) -> Claim:
    """1a: the curve can be fitted."""
    r2 = np.array([fit.r2_ for fit in fits])
    noise = np.array([_r2_of_noise(draw, len(TIMES)) for _ in series])

    def plot(axes: Axes) -> None:
        for index in range(4):
            colour, scale = f"C{index}", np.ptp(series[index])
            axes.plot(TIMES / END, (series[index] - series[index].min()) / scale, ".", color=colour, markersize=4)
            grid = np.linspace(0, END, 400)
            axes.plot(grid / END, (fits[index].predict(grid) - series[index].min()) / scale, color=colour, linewidth=1)
        axes.set(xlabel="share of training", ylabel="ratio, scaled to [0, 1]")

    return Claim(
        "curve-fits",
        "The exponentially decaying logarithm can be fitted to series made from it with noise of 2 % of their range "
        "(measured: smallest R^2 of all series).",
        measured=float(r2.min()),
        bar=Bar(">=", 0.97),
        control=float(np.median(noise)),
        control_statement="White noise, to which five parameters must not fit well: median R^2 at most 0.35.",
        control_bar=Bar(">", 0.35),
        note=f"{len(series)} series of 37 points, half of them peaking early; median R^2 {np.median(r2):.4f}. White noise, as "
        f"many series: largest R^2 {noise.max():.2f}.",
        plot=plot,
    )


def peak_claim(
    formulas: Sequence[Formula], series: Sequence[np.ndarray], fits: Sequence[ExpLogCurve], draw: np.random.Generator
) -> Claim:
    """1b: and where it peaks is recovered."""
    early = [index for index, formula in enumerate(formulas) if formula.peak < END]
    errors = np.array([_peak_error(fits[index], formulas[index]) for index in early])
    shuffled = [ExpLogCurve().fit(TIMES.tolist(), draw.permutation(series[index]).tolist()) for index in early]
    lost = np.array([_peak_error(fit, formulas[index]) for fit, index in zip(shuffled, early, strict=True)])
    regimes = sum(
        fit.regime(END) == ("early peak" if f.peak < END else "log increase")
        for fit, f in zip(fits, formulas, strict=True)
    )

    def plot(axes: Axes) -> None:
        true = [formulas[index].peak / END for index in early]
        axes.plot(
            true,
            _peaks([fits[index] for index in early]) / END,
            "o",
            markersize=4,
            label="fitted",
        )
        axes.plot([0, 0.5], [0, 0.5], color="C7", linewidth=0.8, label="equal")
        axes.set(xlabel="true time of the peak (share of training)", ylabel="fitted time of the peak")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        "peak-found",
        "Though the parameters are sloppy, the time of the peak is recovered (measured: median relative error over series "
        "that peak inside training).",
        measured=float(np.median(errors)),
        bar=Bar("<=", 0.05),
        control=float(np.median(lost)),
        control_statement="The same values in random order.",
        note=f"{len(early)} series, largest error {errors.max():.3f}; {regimes} of {len(fits)} series put in the right regime.",
        plot=plot,
    )


def _peaks(fits: Sequence[ExpLogCurve]) -> np.ndarray:
    """Times of the peaks, NaN where there is none."""
    found = [fit.peak_time() for fit in fits]
    return np.array([np.nan if peak is None else peak for peak in found])


def _peak_error(fit: ExpLogCurve, formula: Formula) -> float:
    """Relative error, at most 10; 10 where no peak is found."""
    peak = fit.peak_time()
    return 10.0 if peak is None else min(abs(peak / formula.peak - 1), 10.0)


def _r2_of_noise(draw: np.random.Generator, n: int) -> float:
    times = TIMES if n == len(TIMES) else np.arange(n, dtype=float)
    return ExpLogCurve().fit(times.tolist(), draw.standard_normal(n).tolist()).r2_


def formula_claim(settings: Settings, draw: np.random.Generator) -> Claim:
    """2: the closed form is where a fine grid has its largest value."""
    off, peakless = [], 0
    for _ in range(settings.n_formulas):
        lam, t0 = 10 ** draw.uniform(-4, 1), draw.uniform(0.1, 2)
        x = peak_time_of(lam, 1.0, 0.0)
        assert x is not None
        gamma = 10 ** draw.uniform(-6, 2)
        peak = peak_time_of(lam, gamma, min(t0, 0.9 * x))
        assert peak is not None
        grid = np.linspace(0, 3 * peak, settings.grid)
        values = Formula(1.0, lam, gamma, min(t0, 0.9 * x), 0.0)(grid)
        off.append(abs(grid[int(values.argmax())] - peak) / (grid[1] - grid[0]))
        peakless += peak_time_of(0.0, gamma, t0) is not None

    def plot(axes: Axes) -> None:
        for index, lam in enumerate((0.05, 0.2, 0.8)):
            grid = np.linspace(0, 30, 600)
            curve = Formula(1.0, lam, 1.0, 1.0, 0.0)
            axes.plot(grid, curve(grid), color=f"C{index}", label=f"$\\lambda$ = {lam}")
            axes.plot([curve.peak], curve(np.array([curve.peak])), "kv", markersize=5)
        axes.set(xlabel="t", ylabel="$e^{-\\lambda(t+1)}\\log(t+1)$")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        "peak-formula",
        "The curve peaks at (exp(W(1 / lambda)) - t0) / gamma, W being Lambert's function (measured: largest distance from the "
        "maximum on a grid, in grid steps).",
        measured=float(max(off)),
        bar=Bar("<=", 1.0),
        control=float(peakless),
        control_statement="Curves with lambda = 0, which rise for ever: how many are given a peak.",
        control_bar=Bar(">", 0.0),
        note=f"{len(off)} random curves, lambda from 0.0001 to 10, {settings.grid:,} grid points up to three times the peak.",
        plot=plot,
    )


def step_claim(settings: Settings, trajectories: Sequence[Trajectory], seed: int) -> Claim:
    """3: AIC prefers the curve to step responses where there is an early peak, and not where there is none."""
    draw = np.random.default_rng(seed + 1)
    n = settings.n_curves // 2
    synthetic = [compare_curves(TIMES.tolist(), noisy(draw_formula(draw, early=True), draw).tolist()) for _ in range(n)]
    learned = [
        compare_curves(one.steps.tolist(), one.ratios[:, layer].tolist())
        for one in trajectories for layer in range(one.ratios.shape[1])
    ]  # fmt: skip
    peaking = [one for one in learned if one.regime == "early peak"]
    steps = [_of_a_step(draw) for _ in range(n)]
    measured = _share_won([*synthetic, *peaking])

    def plot(axes: Axes) -> None:
        synthetic[0].plot(axes)

    return Claim(
        "beats-steps",
        "On curves that peak early AIC prefers the exponentially decaying logarithm to first- and second-order step responses "
        "(measured: share of synthetic and learned curves).",
        measured=measured,
        bar=Bar(">=", 0.8),
        control=_share_won(steps),
        control_statement="Series made from a first-order step response: share on which the curve wins nevertheless.",
        note=f"{n} synthetic series: won {_share_won(synthetic):.2f}, mean R^2 {_mean_r2(synthetic)} (curve, first, second order). "
        f"{len(peaking)} of {len(learned)} layers of the trained networks peak early"
        f"{f', won {_share_won(peaking):.2f}' if peaking else ''}; all layers: won {_share_won(learned):.2f}, mean R^2 "
        f"{_mean_r2(learned)}. Step responses start at 0, which a ratio never does.",
        plot=plot,
    )


def _of_a_step(draw: np.random.Generator) -> CurveComparison:
    height, tau = draw.uniform(1, 50), END * draw.uniform(0.05, 0.5)
    return compare_curves(TIMES.tolist(), noisy(lambda t: height * -np.expm1(-t / tau), draw).tolist())


def _share_won(found: Sequence[CurveComparison]) -> float:
    return float(np.mean([one.best == "exp-log" for one in found])) if found else 0.0


def _mean_r2(found: Sequence[CurveComparison]) -> str:
    """Of the three curves in turn."""
    return " / ".join(f"{np.mean([one.r2[name] for one in found]):.2f}" for name in found[0].r2)
