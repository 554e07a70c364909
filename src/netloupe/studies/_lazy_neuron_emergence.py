"""The claims of the lazy-neuron study about sparsity that comes by itself: without signal, with size, in ViTs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.data.ablations import fresh_random, random_inputs, random_labels
from netloupe.lenses.activity.sparsity import activity_report
from netloupe.models.small import mlp
from netloupe.models.vit import ViT
from netloupe.studies._lazy_neuron_setting import (
    BATCH,
    Activity,
    Images,
    Settings,
    adam,
    adamw,
    plot_activity,
    watch_activity,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATE = 1e-3
FRESH_BAR, RANDOM_LABEL_BAR = 0.05, 0.35
N_UNTRAINED = 20
"""networks behind the control of the claim about size; they cost nothing"""
UNTRAINED_RANGE = 0.55 / 0.50
"""largest ratio of untrained shares; of the steps between three widths the smaller is at most half its logarithm"""


def emergence_claims(settings: Settings, images: Images, seed: int) -> Iterator[Claim]:
    """Claims 2, 3 and 4."""
    seeds = range(seed * 100, seed * 100 + settings.n_seeds)
    yield fresh_data_claim(settings, seeds)
    yield random_label_claim(settings, images, seeds)
    yield size_claim(settings, images, seeds)
    yield transformer_claim(settings, images, range(seed * 100, seed * 100 + settings.vit_seeds))


def fresh_data_claim(settings: Settings, seeds: range) -> Claim:
    """2a: with new random inputs and labels in every step nothing can be learned, and yet units fall silent."""
    shape = (1, settings.random_side, settings.random_side)
    held_out, _ = fresh_random(shape, 10, 1000)(0, torch.Generator().manual_seed(10_000))
    every = max(1, settings.steps // 12)

    def run(rate: float, seed: int, widths: tuple[int, ...]) -> Activity:
        model = mlp(math.prod(shape), widths, 10, random_state=seed)
        data = fresh_random(shape, 10, BATCH)
        return watch_activity(model, data, held_out, steps=settings.steps, every=every, optimizer=adam(rate), seed=seed)

    curves = [run(RATE, seed, (settings.width,)) for seed in seeds]
    control = run(0.0, seeds[0], (settings.width,))
    deep = run(RATE, seeds[0], (settings.width,) * 3)
    layers = ", ".join(f"{a:.3f} ({d:.3f})" for a, d in zip(deep.active[-1], deep.dead[-1], strict=True))
    return Claim(
        "no-signal-fresh",
        "Trained on random images with random labels, new in every step, a network's hidden units fall silent though "
        "there is nothing to learn: at most 5 % of activations stay above zero.",
        **over_seeds([float(curve.active[-1, 0]) for curve in curves]),
        bar=Bar("<=", FRESH_BAR),
        control=float(control.active[-1, 0]),
        control_statement="The same network and data with learning rate 0.",
        note=f"Adam {RATE:g}, {settings.steps} steps, width {settings.width}: active share {curves[0].told(0)} before, "
        f"{curves[0].told()} after; three hidden layers after training: {layers} (dead in brackets). Much of this is "
        "dead units, which the paper's large models do not have.",
        plot=partial(plot_activity, curves={"Adam": curves[0], "learning rate 0": control}, bar=FRESH_BAR),
    )


def random_label_claim(settings: Settings, images: Images, seeds: range) -> Claim:
    """2b: labels drawn once at random; beside it true labels, a larger rate, random inputs and larger images."""
    first, true, side = seeds[0], images.train_labels, settings.random_side
    drawn = {seed: random_labels(true, 10, random_state=seed) for seed in seeds}
    run = partial(_watch_labels, settings, images)
    curves = [run(labels, seed) for seed, labels in drawn.items()]
    control = run(drawn[first], first, rate=0.0)
    noise = random_inputs(images.train, first), random_inputs(images.test, first + 1)
    large = tuple(F.interpolate(each, (side, side), mode="bilinear") for each in (images.train, images.test))
    others = {
        "true labels": run(true, first),
        "true labels, Adam 0.01": run(true, first, rate=1e-2),
        "random inputs": run(true, first, inputs=noise),
        f"random labels, {side} x {side} pixels": run(drawn[first], first, inputs=large),
    }
    told = "; ".join(f"{name} {curve.told()}" for name, curve in others.items())
    return Claim(
        "no-signal-labels",
        "Images with labels drawn once at random make hidden units sparse too: at most 35 % of activations stay above "
        "zero.",
        **over_seeds([float(curve.active[-1, 0]) for curve in curves]),
        bar=Bar("<=", RANDOM_LABEL_BAR),
        control=float(control.active[-1, 0]),
        control_statement="The same network and data with learning rate 0.",
        note=f"Adam {RATE:g}, {settings.steps} steps, {images.train[0].numel()} inputs, width {settings.width}: active "
        f"share {curves[0].told(0)} before, {curves[0].told()} after, lowest on the way {curves[0].active.min():.3f}. "
        f"For comparison: {told}. A step lowers a pre-activation in proportion to the squared length of the input, so "
        "small images silence units more slowly than large ones.",
        plot=partial(plot_activity, curves={"random labels": curves[0], **others}, bar=RANDOM_LABEL_BAR),
    )


def _watch_labels(
    settings: Settings,
    images: Images,
    labels: Tensor,
    seed: int,
    rate: float = RATE,
    inputs: tuple[Tensor, ...] | None = None,
) -> Activity:
    train_inputs, test_inputs = (images.train, images.test) if inputs is None else inputs
    return watch_activity(
        mlp(train_inputs[0].numel(), (settings.width,), 10, random_state=seed), (train_inputs, labels), test_inputs,
        steps=settings.steps, every=max(1, settings.steps // 12), optimizer=adam(rate), seed=seed,
    )  # fmt: skip


def margin(fractions: np.ndarray, widths: np.ndarray) -> float:
    """Above 0 exactly when every wider network has a smaller share and a larger number of active units.

    The smallest, over neighbouring widths, of the logarithms of both ratios.
    """
    shares, counts = np.log(fractions), np.log(fractions * widths)
    return float(min(np.min(shares[:-1] - shares[1:]), np.min(counts[1:] - counts[:-1])))


def size_claim(settings: Settings, images: Images, seeds: range) -> Claim:
    """3: wider networks have a smaller share but a larger number of active units."""
    widths, n_inputs = np.array(settings.widths), images.train[0].numel()
    trained = np.zeros((len(seeds), len(widths)))
    dead = np.zeros_like(trained)
    for row, seed in enumerate(seeds):
        for column, width in enumerate(settings.widths):
            curve = watch_activity(
                mlp(n_inputs, (width,), 10, random_state=seed), (images.train, images.train_labels), images.test,
                steps=settings.steps, every=settings.steps, optimizer=adam(RATE), seed=seed,
            )  # fmt: skip
            trained[row, column], dead[row, column] = curve.active[-1, 0], curve.dead[-1, 0]
    starts = range(seeds[0], seeds[0] + N_UNTRAINED)
    untrained = np.array([[_untrained(width, start, images) for width in settings.widths] for start in starts])
    shares = ", ".join(
        f"{width}: {share:.3f} = {share * width:.0f} units (dead {gone:.3f}; untrained {before:.3f})"
        for width, share, gone, before in zip(widths, trained.mean(0), dead.mean(0), untrained.mean(0), strict=True)
    )
    return Claim(
        "larger-is-sparser",
        "The wider the hidden layer, the smaller the share and the larger the number of its active units (measured: "
        "the smallest logarithm of either ratio between neighbouring widths; above 0 only if both hold everywhere).",
        **over_seeds([margin(row, widths) for row in trained]),
        bar=Bar(">", 0.0),
        control=margin(untrained.mean(0), widths),
        control_statement=f"The same widths before training (mean share of {N_UNTRAINED} initialisations), which stay "
        "within a tenth of one another.",
        control_bar=Bar(">", math.log(UNTRAINED_RANGE) / (len(widths) - 1)),
        note=f"True labels, Adam {RATE:g}, {settings.steps} steps; width: active share, mean over {len(seeds)} seeds: "
        f"{shares}. The trend needs training that silences units at all; compare the shares before it.",
        plot=partial(_plot_sizes, widths=widths, trained=trained, untrained=untrained),
    )


def _untrained(width: int, seed: int, images: Images) -> float:
    model = mlp(images.train[0].numel(), (width,), 10, random_state=seed)
    return float(activity_report(model, images.test, batch_size=512).active_fraction[0])


def _plot_sizes(axes: Axes, widths: np.ndarray, trained: np.ndarray, untrained: np.ndarray) -> None:
    for values, label, colour in ((trained, "trained", "C0"), (untrained, "untrained", "C7")):
        axes.errorbar(widths, values.mean(0), values.std(0), fmt="o-", capsize=3, color=colour, label=label)
    for width, share in zip(widths, trained.mean(0), strict=True):
        told = f"{share * width:.0f} units"
        axes.annotate(told, (width, share), (0, 8), textcoords="offset points", fontsize="small", ha="center")
    axes.set(xscale="log", xlabel="width", ylabel="share active", ylim=(0, 1.2), xticks=widths)
    axes.set_xticklabels([str(width) for width in widths])
    axes.minorticks_off()
    axes.margins(x=0.12)
    axes.legend(frameon=False, fontsize="small")


def rank_trend(values: np.ndarray) -> float:
    """Spearman's correlation of ``values`` with their order, exactly -1 or 1 where monotone; 0 where all are equal."""
    if np.ptp(values) == 0:
        return 0.0
    ranks = np.array([np.sum(values < value) + (np.sum(values == value) - 1) / 2 for value in values])
    order = np.arange(len(values))
    if len(np.unique(values)) == len(values):
        n = len(values)
        return float(1 - 6 * np.sum((ranks - order) ** 2) / (n * (n * n - 1)))
    return float(np.corrcoef(ranks, order)[0, 1])


def build_vit(settings: Settings, images: Images, seed: int, **changes: int) -> nn.Module:
    """The preset's vision transformer; ``changes`` replace its sizes."""
    sizes: dict[str, Any] = {
        name: getattr(settings.vit, name) for name in ("patch_size", "d_model", "d_ff", "n_layers", "n_heads")
    } | changes
    return ViT(images.train.shape[-1] + 2 * settings.vit.pad, n_classes=10, random_state=seed, **sizes)


def watch_vit(settings: Settings, images: Images, seed: int, rate: float = RATE, **changes: int) -> Activity:
    """Activity of all MLPs of a transformer during its training, one look each ``vit_steps`` steps."""
    pad = (settings.vit.pad,) * 4
    return watch_activity(
        build_vit(settings, images, seed, **changes), (F.pad(images.train, pad), images.train_labels),
        F.pad(images.test, pad), steps=settings.vit_looks * settings.vit_steps, every=settings.vit_steps,
        optimizer=adamw(rate), seed=seed,
    )  # fmt: skip


def transformer_claim(settings: Settings, images: Images, seeds: range) -> Claim:
    """4: the MLPs of a transformer grow sparser look by look."""
    curves = [watch_vit(settings, images, seed) for seed in seeds]
    control = watch_vit(replace(settings, vit_steps=1), images, seeds[0], rate=0.0)
    path = ", ".join(f"{value:.3f}" for value in curves[0].active.mean(1)[:: max(1, settings.vit_looks // 10)])
    depth = ", ".join(f"{a:.3f} ({d:.3f})" for a, d in zip(curves[0].active[-1], curves[0].dead[-1], strict=True))
    return Claim(
        "transformer",
        "Training a vision transformer lowers the share of active MLP units steadily from its initial value (measured: "
        "rank correlation of the share with training time, initialisation included; -1 is a fall at every look).",
        **over_seeds([rank_trend(curve.active.mean(1)) for curve in curves]),
        bar=Bar("<=", -1.0),
        control=rank_trend(control.active.mean(1)),
        control_statement="The same transformer with learning rate 0, looked at after every step.",
        note=f"AdamW {RATE:g} without decay, a look every {settings.vit_steps} steps of {BATCH} images: mean share "
        f"{path}; at the end by depth {depth} (dead in brackets). Every seed must fall at every look to pass.",
        plot=partial(_plot_depth, curve=curves[0], control=control),
    )


def _plot_depth(axes: Axes, curve: Activity, control: Activity) -> None:
    for site, values in enumerate(curve.active.T):
        axes.plot(curve.step, values, color=f"C{site % 10}", alpha=0.6, linewidth=1, label=f"block {site}")
    axes.plot(curve.step, curve.active.mean(1), "k-", linewidth=2, label="mean")
    axes.axhline(float(control.active.mean()), color="k", linestyle="--", linewidth=1, label="learning rate 0")
    axes.set(xlabel="step", ylabel="share active")
    axes.legend(frameon=False, fontsize="small", ncols=2)
