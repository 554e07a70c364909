"""The claims of the moment-probing study about tokens whose class is written in one known place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.data.planted_tokens import planted_tokens
from netloupe.lenses.information.moment_probe import MomentProbe, SecondOrder, second_order_gain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_CLASSES, N_UNITS, N_POSITIONS = 4, 16, 49


@dataclass(frozen=True)
class PlantedSettings:
    """How many samples (a quarter of them held out), how long the head trains, how many draws of the classes."""

    n_samples: int
    n_epochs: int
    n_seeds: int


def planted_claims(settings: PlantedSettings, seed: int) -> Iterator[Claim]:
    """The probe reads covariances that a linear one cannot see, and gains nothing where there are none to read."""
    seeds = range(seed * 100, seed * 100 + settings.n_seeds)
    covariance = [found(settings, "covariance", one) for one in seeds]
    mean = [found(settings, "mean", one) for one in seeds]
    head = (
        f"Gaussian tokens, {N_POSITIONS} positions, {N_UNITS} units, {N_CLASSES} classes, {settings.n_samples} samples, a "
        f"quarter held out; a head of {covariance[0].n_parameters[1]} parameters with 64 channels in 4 heads."
    )

    def plot_covariance(axes: Axes) -> None:
        _bars(axes, covariance)

    def plot_mean(axes: Axes) -> None:
        _bars(axes, mean)

    equal = np.mean([one.mlp_accuracy for one in covariance])
    yield Claim(
        name="covariance",
        statement="Where the class is written in the tokens' covariance alone, moment probing reads it and a linear "
        "probe of their mean is at chance; measured is the held-out accuracy of moment probing.",
        **over_seeds([one.moment_accuracy for one in covariance]),
        bar=Bar(">=", 0.95),
        control=float(np.mean([one.mean_accuracy for one in covariance])),
        control_statement="the linear probe on the same tokens, which must not exceed chance (0.25) by more than 0.05",
        control_bar=Bar(">", 1 / N_CLASSES + 0.05),
        note=f"{head} An equally large perceptron on the mean reaches {equal:.2f}: the mean of few tokens still "
        "betrays their covariance to a nonlinear reader.",
        plot=plot_covariance,
    )
    yield Claim(
        name="mean",
        statement="Where the class is written in the mean alone, moment probing has nothing to add; measured is its "
        "accuracy less that of the linear probe.",
        **over_seeds([one.gain_accuracy for one in mean]),
        bar=Bar("<=", 0.02),
        control=float(np.mean([one.gain_accuracy for one in covariance])),
        control_statement="the same difference where the class is in the covariance, which must be larger",
        note=head,
        plot=plot_mean,
    )


def found(settings: PlantedSettings, where: str, seed: int) -> SecondOrder:
    """The three readers on one draw of planted tokens."""
    tokens, labels = planted_tokens(where, settings.n_samples, N_CLASSES, N_UNITS, N_POSITIONS, seed)  # type: ignore[arg-type]
    probe = MomentProbe(hidden=64, epochs=settings.n_epochs, random_state=seed)
    return second_order_gain(tokens, labels, probe, random_state=seed)


def _bars(axes: Axes, runs: list[SecondOrder]) -> None:
    names = ["mean, linear", "mean, perceptron", "moment probe"]
    values = [[one.mean_accuracy, one.mlp_accuracy, one.moment_accuracy] for one in runs]
    axes.bar(names, np.mean(values, 0), color=["C7", "C2", "C0"])
    for row in values:
        axes.plot(names, row, "o", color="0.2", markersize=3)
    axes.axhline(1 / N_CLASSES, color="C3", linestyle=":", label="chance")
    axes.set(ylabel="held-out accuracy", ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize="small")
