"""Lazy neurons: how few MLP units fire, where that comes from, and what enforcing it does.

Source: Li et al., "The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers", arXiv 2210.06313.
The smoke and small presets use handwritten digits and random data; full uses Fashion-MNIST, a larger transformer with
sweeps over its size, and a language model on bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from netloupe.core.study import Bar, Claim, Preset
from netloupe.lenses.dynamics.descent_pressure import (
    BuildHead,
    DescentPressure,
    activation_gradient_sign,
    random_linear_head,
    squared_error_pressure,
)
from netloupe.studies._lazy_neuron_emergence import emergence_claims
from netloupe.studies._lazy_neuron_full import full_claims
from netloupe.studies._lazy_neuron_setting import SETTINGS, Settings, load_images
from netloupe.studies._lazy_neuron_topk import topk_claims

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_UNITS, N_CLASSES = 64, 10
SLOPE_BAR = 0.03


def run(preset: Preset, seed: int) -> Iterator[Claim]:
    """The six claims of the paper in the order of their numbers, some in parts."""
    settings = SETTINGS[preset]
    images = load_images(settings)
    yield from pressure_claims(settings, seed)
    yield from emergence_claims(settings, images, seed)
    yield from topk_claims(settings, images, seed)
    if preset == "full":
        yield from full_claims(settings, images, seed)


def pressure_claims(settings: Settings, seed: int) -> Iterator[Claim]:
    """1: at initialisation, descent lowers every active unit on average and leaves inactive ones alone."""
    p = pre_activations(seed)
    draw = partial(activation_gradient_sign, p=p, n_draws=settings.n_draws, random_state=seed)
    yield _sign_claim(draw(random_linear_head(N_UNITS, N_CLASSES)), draw(_labelled_head()))
    squared, shifted = (draw(random_linear_head(N_UNITS, N_CLASSES, "squared_error", mean=mean)) for mean in (0.0, 1.0))
    yield _slope_claim(squared, shifted)
    smooth = draw(random_linear_head(N_UNITS, N_CLASSES), activation=F.gelu)
    yield _silent_claim(squared, smooth)


def pre_activations(seed: int) -> torch.Tensor:
    """``(64,)``: half positive and half negative, between 0.5 and 1.5 from 0, where sampling error hides no sign."""
    generator = torch.Generator().manual_seed(seed)
    size = 0.5 + torch.rand(N_UNITS, generator=generator, dtype=torch.float64)
    return size * torch.where(torch.randperm(N_UNITS, generator=generator) % 2 == 0, 1.0, -1.0)


def _labelled_head() -> BuildHead:
    """All samples have label 0, whose row of ``V`` has mean 1. (A mean of all rows cancels in the softmax.)"""
    mean = torch.zeros(N_CLASSES, N_UNITS)
    mean[0] = 1.0
    return random_linear_head(N_UNITS, N_CLASSES, mean=mean, label=0)


def _sign_claim(found: DescentPressure, control: DescentPressure) -> Claim:
    numbers = found.summary()
    return Claim(
        "pressure-cross-entropy",
        "With random zero-mean weights above, the expected gradient of the cross-entropy is positive for every active "
        "unit, so descent lowers all of them (measured: share of active units with a positive mean).",
        numbers["pushed_down"],
        Bar(">=", 1.0),
        control.summary()["pushed_down"],
        "The label is fixed and its weights have mean +1: descent then raises active units.",
        note=f"{found.n_draws} draws, {N_UNITS} units; beyond chance (z > 1.96): {numbers['surely_down']:.2f}.",
        plot=found.plot,
    )


def slope(found: DescentPressure) -> float:
    """Mean gradient regressed on the closed form of the squared error, through the origin; 1 where they agree."""
    expected = squared_error_pressure(found.pre_activations, N_CLASSES, 1 / N_UNITS)
    return float(found.mean_gradient @ expected / (expected @ expected))


def _slope_claim(found: DescentPressure, control: DescentPressure) -> Claim:
    return Claim(
        "pressure-squared-error",
        "For the squared error the expected gradient is the number of outputs times the variance of the weights times "
        "the activation (measured: distance of the regression slope from 1).",
        abs(slope(found) - 1),
        Bar("<=", SLOPE_BAR),
        abs(slope(control) - 1),
        "All weights have mean +1.",
        note=f"Slope {slope(found):.4f}; the control's is {slope(control):.1f}.",
        plot=partial(_plot_slope, found=found),
    )


def _plot_slope(axes: Axes, found: DescentPressure) -> None:
    expected = squared_error_pressure(found.pre_activations, N_CLASSES, 1 / N_UNITS)
    axes.plot(expected, found.mean_gradient, "o", markersize=3)
    axes.plot([0, expected.max()], [0, expected.max()], color="0.4", linewidth=0.8, label="slope 1")
    axes.set(xlabel="closed form", ylabel="mean gradient")
    axes.legend(frameon=False, fontsize="small")


def _silent_claim(found: DescentPressure, control: DescentPressure) -> Claim:
    return Claim(
        "pressure-inactive",
        "An inactive unit gets no gradient at all, so nothing brings it back (measured: the largest mean gradient of "
        "an inactive unit).",
        found.summary()["inactive_pressure"],
        Bar("==", 0.0),
        control.summary()["inactive_pressure"],
        "GELU in place of ReLU, which passes gradient to negative values.",
        note="Exact, whatever the number of draws: the derivative of ReLU is 0 there.",
        plot=partial(_plot_silent, found=found, control=control),
    )


def _plot_silent(axes: Axes, found: DescentPressure, control: DescentPressure) -> None:
    for each, label, style in ((found, "ReLU", "o"), (control, "GELU", "x")):
        quiet = ~each.active
        axes.plot(each.pre_activations[quiet], each.mean_gradient[quiet], style, markersize=4, label=label)
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set(xlabel="pre-activation of inactive units", ylabel="mean gradient")
    axes.margins(y=0.2)
    axes.legend(frameon=False, fontsize="small")
