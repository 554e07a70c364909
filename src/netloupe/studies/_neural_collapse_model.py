"""The claims of the neural-collapse study about the near-feature model: flow, minimiser, spectrum, first order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.lenses.geometry.collapse_operator import block_singular_values, collapse_operator, collapse_spectrum
from netloupe.lenses.geometry.near_collapse import (
    CentralPath,
    central_path,
    collapsed_solution,
    near_feature_minimiser,
    optimal_classifier,
)
from netloupe.lenses.geometry.neural_collapse import neural_collapse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PENALTIES = ((0.1, 0.01), (0.01, 0.0), (1.0, 0.1))
"""pairs ``(lambda_w, lambda_h)`` of the flow and of the minimiser"""
BETAS = (1.0, 10.0, 100.0, 1000.0)
HUGE = 1e6
"""a classifier penalty that leaves no classifier, so that the model only shrinks"""
SPECTRUM_SIZES = ((4, 10, 10), (3, 7, 5))
SPECTRUM_LAMBDA_W = float(np.sqrt(2))
SPECTRUM_LAMBDAS_H = (0.05, 0.2, 0.5)
SPECTRUM_BETA = 100.0
DELTAS = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class ModelSettings:
    """How long the flow runs (in Euler steps of 1e-3) and how many starting points are drawn."""

    n_steps: int
    record: int
    n_seeds: int

    def seeds(self, seed: int) -> range:
        """One number for each starting point."""
        return range(seed * 100, seed * 100 + self.n_seeds)


def model_claims(settings: ModelSettings, seed: int) -> Iterator[Claim]:
    """Flow theorem, corollary with its scaling, spectrum, and first-order accuracy."""
    seeds = settings.seeds(seed)
    yield flow_claim(settings, seeds)
    yield from corollary_claims(seeds)
    yield spectrum_claim(seeds)
    yield first_order_claim(seeds)


def gaussian_start(
    seed: int, n_classes: int = 4, n_units: int = 20, n_per_class: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(sample, unit)`` without any class structure, and their labels."""
    labels = np.repeat(np.arange(n_classes), n_per_class)
    return np.random.default_rng(seed).standard_normal((len(labels), n_units)), labels


def monotone_share(path: CentralPath) -> float:
    """Share of recorded steps at which all three inequalities of the flow theorem hold."""
    falling = (np.diff(path.nc1_trace) < 0) & (np.diff(path.within_scaled) < 0) & (np.diff(path.between_scaled) > 0)
    return float(falling.mean())


def both_ways(settings: ModelSettings, seed: int, penalties: tuple[float, float]) -> tuple[CentralPath, CentralPath]:
    """The flow down the loss and the climb up it, from the same features."""
    features, labels = gaussian_start(seed)
    down, up = (
        central_path(features, labels, *penalties, n_steps=settings.n_steps, record=settings.record, sign=sign)
        for sign in (1, -1)
    )
    return down, up


def flow_claim(settings: ModelSettings, seeds: Sequence[int]) -> Claim:
    """Along the flow the class spread falls relative to the spread of the means, whatever the start."""
    shares, climbing, shown = [], [], []
    for seed in seeds:
        paths = [both_ways(settings, seed, pair) for pair in PENALTIES]
        shares.append(float(np.mean([monotone_share(down) for down, _ in paths])))
        climbing.append(float(np.mean([(np.diff(up.nc1_trace) < 0).mean() for _, up in paths])))
        shown = shown or paths

    def plot(axes: Axes) -> None:
        for index, ((down, up), (lambda_w, lambda_h)) in enumerate(zip(shown, PENALTIES)):
            label = f"$\\lambda_W$ {lambda_w:g}, $\\lambda_H$ {lambda_h:g}"
            axes.plot(down.time, down.nc1_trace, color=f"C{index}", label=label)
            axes.plot(up.time, up.nc1_trace, color=f"C{index}", linestyle=":")
        axes.set(yscale="log", xlabel="time (dotted: climbing, the control)", ylabel="NC1 by traces")
        axes.legend(frameon=False, fontsize="small")

    stopped = sum(up.diverged_at is not None for _, up in shown)
    return Claim(
        name="flow",
        statement="Along the gradient flow of the free-feature loss, at every recorded step the ratio of within- to "
        "between-class variance falls, and so does the within-class variance, and the between-class variance rises, "
        "once shrinkage is taken out; measured is the share of steps at which all three hold.",
        **over_seeds(shares),
        bar=Bar(">=", 1.0),
        control=float(np.mean(climbing)),
        control_statement="share of steps at which the ratio falls when the loss is climbed instead; no step may",
        control_bar=Bar(">", 0.0),
        note=f"Gaussian features, 20 units, 4 classes of 10, {len(PENALTIES)} pairs of penalties, "
        f"{settings.n_steps / 1000:g} units of time in Euler steps of 0.001; "
        f"{stopped} of {len(shown)} climbs left the finite numbers and were judged up to there.",
        plot=plot,
    )


class _Drops(NamedTuple):
    """``NC1(H0) - NC1(H)`` by traces, over ``NC1(H0)``, for one start: ``(penalty pair, beta)``."""

    tied: np.ndarray
    shrinking: np.ndarray


def relative_drops(seed: int, penalties: Sequence[tuple[float, float]]) -> np.ndarray:
    """By which share NC1~ is lower in the near-feature minimiser than at the start, ``(penalty pair, beta)``."""
    features, labels = gaussian_start(seed)
    before = neural_collapse(features, labels).nc1_trace
    found = [[near_feature_minimiser(features, labels, *pair, beta).features for beta in BETAS] for pair in penalties]
    return np.array([[1 - neural_collapse(after, labels).nc1_trace / before for after in row] for row in found])


def scaling_error(drops: np.ndarray, first: int) -> float:
    """How far the drop at ``BETAS[first]`` is from ten times that at the next beta; the worst pair of penalties."""
    if (drops <= 0).any():
        return float("nan")
    return float(np.abs(drops[:, first] / drops[:, first + 1] / 10 - 1).max())


def corollary_claims(seeds: Sequence[int]) -> Iterator[Claim]:
    """The minimiser tied to given features is nearer to collapse than they are, by an amount that falls as 1/beta."""
    drops = [
        _Drops(relative_drops(seed, PENALTIES), relative_drops(seed, [(HUGE, pair[1]) for pair in PENALTIES]))
        for seed in seeds
    ]
    tied, shrinking = drops[0]

    def plot_drops(axes: Axes) -> None:
        for index, (lambda_w, lambda_h) in enumerate(PENALTIES):
            label = f"$\\lambda_W$ {lambda_w:g}, $\\lambda_H$ {lambda_h:g}"
            axes.loglog(BETAS, tied[index], "o-", color=f"C{index}", label=label)
        largest = np.maximum(np.abs(shrinking).max(0), 1e-16)
        axes.loglog(BETAS, largest, "s:", color="C7", label="without a classifier (control)")
        axes.set(xlabel=r"$\beta$", ylabel="relative drop of NC1 by traces")
        axes.legend(frameon=False, fontsize="small")

    def plot_scaling(axes: Axes) -> None:
        for index, (lambda_w, lambda_h) in enumerate(PENALTIES):
            label = f"$\\lambda_W$ {lambda_w:g}, $\\lambda_H$ {lambda_h:g}"
            axes.semilogx(BETAS, tied[index] * BETAS, "o-", color=f"C{index}", label=label)
        axes.axvspan(100, 1000, color="C2", alpha=0.1)
        axes.set(xlabel=r"$\beta$ (shaded: where the claim is made)", ylabel=r"$\beta$ times the relative drop")
        axes.legend(frameon=False, fontsize="small")

    common = f"Gaussian features, 20 units, 4 classes of 10, beta {', '.join(f'{beta:g}' for beta in BETAS)}."
    yield Claim(
        name="corollary",
        statement="The near-feature minimiser is nearer to collapse than the features it is tied to; measured is the "
        "smallest relative drop of NC1 by traces over all strengths of the tie and pairs of penalties.",
        **over_seeds([float(found.tied.min()) for found in drops]),
        bar=Bar(">", 0.0),
        control=float(np.mean([np.abs(found.shrinking).max() for found in drops])),
        control_statement="largest relative change of NC1 by traces where the classifier's penalty is 1e6, so that the "
        "features only shrink; unchanged to 1e-3",
        control_bar=Bar(">", 1e-3),
        note=common,
        plot=plot_drops,
    )
    yield Claim(
        name="corollary-scaling",
        statement="For a strong tie that gain falls as 1/beta; measured is how far the ratio of the gains at beta 100 "
        "and 1000 is from 10, as a share of 10, at the worst pair of penalties.",
        **over_seeds([scaling_error(found.tied, 2) for found in drops]),
        bar=Bar("<=", 0.2),
        control=float(np.mean([scaling_error(found.tied, 0) for found in drops])),
        control_statement="the same between beta 1 and 10, where the tie is too weak for the law",
        note=common,
        plot=plot_scaling,
    )


def spectrum_errors(sizes: tuple[int, int, int], lambda_h: float, seed: int) -> tuple[float, float]:
    """Largest distance of the operator's singular values from the closed form: at collapse, and at random features."""
    n_classes, n_units, n_per_class = sizes
    spectrum = collapse_spectrum(*sizes, SPECTRUM_LAMBDA_W, lambda_h, SPECTRUM_BETA)
    inside = spectrum.expanded()
    outside = np.zeros_like(inside)
    outside[0] = spectrum.cross
    collapsed, weight, labels = collapsed_solution(*sizes, SPECTRUM_LAMBDA_W, lambda_h, seed)
    random, _ = gaussian_start(seed, n_classes, n_units, n_per_class)
    found = []
    for features, rows in ((collapsed, weight), (random, optimal_classifier(random, labels, SPECTRUM_LAMBDA_W))):
        operator = collapse_operator(features, rows, labels, SPECTRUM_LAMBDA_W, lambda_h, SPECTRUM_BETA)
        worst = 0.0
        for to in range(n_classes):
            values = block_singular_values(operator, labels, to, 0)
            worst = max(worst, float(np.abs(values - (inside if to == 0 else outside)).max()))
        found.append(worst)
    return found[0], found[1]


def spectrum_claim(seeds: Sequence[int]) -> Claim:
    """At collapse all singular values of the perturbation operator's class blocks are known."""
    cases = [(sizes, lambda_h) for sizes in SPECTRUM_SIZES for lambda_h in SPECTRUM_LAMBDAS_H]
    errors = np.array([[spectrum_errors(*case, seed) for case in cases] for seed in seeds])
    return Claim(
        name="spectrum",
        statement="At collapse every singular value of the first-order perturbation operator's class blocks equals "
        "its closed form; measured is the largest distance.",
        **over_seeds(errors[:, :, 0].max(1).tolist()),
        bar=Bar("<=", 1e-9),
        control=float(errors[:, :, 1].min()),
        control_statement="the same at random features that are not collapsed; the smallest over all settings",
        note=f"K, d, n = 4, 10, 10 and 3, 7, 5; lambda_w sqrt(2), lambda_h "
        f"{', '.join(f'{value:g}' for value in SPECTRUM_LAMBDAS_H)}, beta {SPECTRUM_BETA:g}; blocks from class 0.",
        plot=_spectrum_plot(seeds[0]),
    )


def _spectrum_plot(seed: int) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        sizes = SPECTRUM_SIZES[0]
        for index, lambda_h in enumerate(SPECTRUM_LAMBDAS_H):
            features, weight, labels = collapsed_solution(*sizes, SPECTRUM_LAMBDA_W, lambda_h, seed)
            operator = collapse_operator(features, weight, labels, SPECTRUM_LAMBDA_W, lambda_h, SPECTRUM_BETA)
            values = block_singular_values(operator, labels, 0, 0)
            theory = collapse_spectrum(*sizes, SPECTRUM_LAMBDA_W, lambda_h, SPECTRUM_BETA).expanded()
            axes.plot(theory, color=f"C{index}", label=f"$\\lambda_H$ {lambda_h:g}")
            axes.plot(values, "o", color=f"C{index}", markersize=5, markerfacecolor="none", markevery=3)
        axes.set(xlabel="singular value, largest first (line: closed form)", ylabel="within-class block")
        axes.legend(frameon=False, fontsize="small")

    return plot


def first_order_errors(lambda_h: float, seed: int) -> np.ndarray:
    """``|dH - F dH0| / |dH0|`` for a random change of the collapsed features of each size in ``DELTAS``."""
    features, weight, labels = collapsed_solution(*SPECTRUM_SIZES[0], SPECTRUM_LAMBDA_W, lambda_h, seed)
    operator = collapse_operator(features, weight, labels, SPECTRUM_LAMBDA_W, lambda_h, SPECTRUM_BETA)
    noise = np.random.default_rng(seed).standard_normal(features.shape)
    found = []
    for delta in DELTAS:
        moved = near_feature_minimiser(
            features + delta * noise, labels, SPECTRUM_LAMBDA_W, lambda_h, SPECTRUM_BETA
        ).features
        missed = (moved - features).ravel() - operator @ (delta * noise.ravel())
        found.append(np.linalg.norm(missed) / (delta * np.linalg.norm(noise)))
    return np.array(found)


def first_order_claim(seeds: Sequence[int]) -> Claim:
    """The operator predicts where the minimiser goes when the given features move a little."""
    errors = np.array([[first_order_errors(lambda_h, seed) for lambda_h in SPECTRUM_LAMBDAS_H] for seed in seeds])
    worst = errors.max(1)
    small = float(worst[:, 0].mean())

    def plot(axes: Axes) -> None:
        for index, lambda_h in enumerate(SPECTRUM_LAMBDAS_H):
            axes.loglog(DELTAS, errors[0, index], "o-", color=f"C{index}", label=f"$\\lambda_H$ {lambda_h:g}")
        axes.axhline(1e-4, color="C7", linestyle="--", label="bar")
        axes.set(xlabel="size of the change of each feature", ylabel="relative error of the first order")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        name="first-order",
        statement="Near collapse the first-order operator predicts how the minimiser follows a small change of its "
        "input; measured is the error over the change's norm, at changes of 0.001 and the worst lambda_h.",
        **over_seeds(worst[:, 0].tolist()),
        bar=Bar("<", 1e-4),
        control=float(worst[:, -1].mean()),
        control_statement="the same at changes of 1, far from collapse; at least ten times the measured error",
        control_bar=Bar("<", 10 * small),
        note=f"K, d, n = 4, 10, 10; lambda_w sqrt(2), lambda_h "
        f"{', '.join(f'{value:g}' for value in SPECTRUM_LAMBDAS_H)}, beta {SPECTRUM_BETA:g}.",
        plot=plot,
    )
