"""The claims of the massive-activations study that look into a network, and the one about architectures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from netloupe.core.capture import capture
from netloupe.core.intervene import Edit, intervene
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.lenses.activity.massive import is_massive, massive_stats, pin
from netloupe.lenses.dynamics.emergence import ArchitecturePredictor, ExpLogCurve, architecture_features
from netloupe.studies._massive_activations_setting import Settings, Text, Trajectory, still, watch_ratios

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# width, layers, heads, hidden width of nine networks of the Pythia family: 188 layers
FAMILY = (
    (128, 6, 4, 512), (512, 6, 8, 2048), (768, 12, 12, 3072), (1024, 24, 16, 4096), (2048, 16, 8, 8192),
    (2048, 24, 16, 8192), (2560, 32, 32, 10240), (4096, 32, 32, 16384), (5120, 36, 40, 20480),
)  # fmt: skip
N_PLANTED = 20
CHANGE = 0.1
"""relative change of the next block's norm from which a replacement counts as felt"""


def growth_claims(settings: Settings, text: Text, trajectories: Sequence[Trajectory], seed: int) -> Iterator[Claim]:
    """Claim 4: the last layer's ratio is learned, and follows the curve."""
    grown = [float(one.ratios[-1, -1] / one.ratios[0, -1]) for one in trajectories]
    frozen = watch_ratios(still(settings), text, seed * 100, rate=0.0)
    unmoved = float(frozen.ratios[-1, -1] / frozen.ratios[0, -1])
    first = trajectories[0]
    layers = "; ".join(
        f"layer {i}: {r[0]:.2f}, highest {r.max():.2f} at {first.steps[r.argmax()]:.0f}, last {r[-1]:.2f}"
        for i, r in enumerate(first.ratios.T)
    )
    yield Claim(
        "ratio-grows",
        "The ratio of the largest to the median value after the last block is learned and not there at the start (measured: "
        "its last value over its first).",
        **over_seeds(grown),
        bar=Bar(">=", settings.growth),
        control=unmoved,
        control_statement="The same network with learning rate 0.",
        note=f"Byte language model of {settings.n_layers} layers, width {settings.d_model}, {settings.steps} steps of "
        f"{settings.batch} x {settings.context} bytes, mean over {settings.n_windows} sequences. First seed: {layers}. "
        f"Independent normal numbers have {first.reference:.2f}; standard error of the last ratio "
        f"{first.errors[-1, -1]:.2f}. Change with learning rate 0: {unmoved - 1:.0e}.",
        plot=lambda axes: _plot_layers(axes, first),
    )
    fits = [ExpLogCurve().fit(one.steps.tolist(), one.ratios[:, -1].tolist()) for one in trajectories]
    draw = np.random.default_rng(seed + 2)
    noise = [
        ExpLogCurve().fit(first.steps.tolist(), draw.standard_normal(len(first.steps)).tolist()).r2_ for _ in range(20)
    ]
    every = [ExpLogCurve().fit(first.steps.tolist(), column.tolist()) for column in first.ratios.T]
    told = ", ".join(f"{fit.r2_:.2f} ({fit.regime(float(first.steps[-1]))})" for fit in every)

    def plot(axes: Axes) -> None:
        grid = np.linspace(0, first.steps[-1], 300)
        for layer, fit in enumerate(every):
            axes.plot(first.steps, first.ratios[:, layer], "o", markersize=3, color=f"C{layer}")
            axes.plot(
                grid, fit.predict(grid), color=f"C{layer}", linewidth=1, label=f"block {layer}, $R^2$ {fit.r2_:.2f}"
            )
        axes.set(xlabel="step", ylabel="largest / median value")
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "trajectory-fits",
        "The five-parameter curve describes how the last layer's ratio moves over training (measured: R^2 of the fit).",
        **over_seeds([fit.r2_ for fit in fits]),
        bar=Bar(">=", 0.8),
        control=float(np.median(noise)),
        control_statement="White noise at the same steps, median of 20 series.",
        note=f"{len(first.steps)} looks. By layer, first seed: {told}. Largest R^2 of the noise {max(noise):.2f}.",
        plot=plot,
    )


def _plot_layers(axes: Axes, one: Trajectory) -> None:
    for layer in range(one.ratios.shape[1]):
        axes.errorbar(
            one.steps,
            one.ratios[:, layer],
            one.errors[:, layer],
            color=f"C{layer}",
            linewidth=1,
            label=f"block {layer}",
        )
    axes.axhline(one.reference, color="C7", linestyle="--", label="normal numbers")
    axes.set(xlabel="step", ylabel="largest / median value")
    axes.legend(frameon=False, fontsize="small", ncols=2)


def planted_claims(trajectory: Trajectory, text: Text, seed: int) -> Iterator[Claim]:
    """Claim 5: a planted massive scalar is found where it is; the next block feels its loss, not its mean."""
    model, draw = trajectory.model, np.random.default_rng(seed + 3)
    device = next(model.parameters()).device
    windows = text.validation[:4].to(device)
    with torch.no_grad():
        (captured,) = capture(model, windows, ["blocks.0"])
    hidden = captured["blocks.0"].cpu()
    found, unplanted = [], []
    for _ in range(N_PLANTED):
        unit = int(draw.integers(hidden.shape[-1]))
        planted = hidden.clone()
        planted[:, 0, unit] = planted_size(hidden)
        where = massive_stats(planted, 1)["where"][:, 0]
        flags = is_massive(planted)
        right = (
            bool((where == torch.tensor([0, unit])).all())
            and bool(flags[:, 0, unit].all())
            and int(flags.sum()) == len(planted)
        )
        found.append(right)
        unplanted.append(bool(is_massive(hidden).any()))
    yield Claim(
        "planted-found",
        "A scalar set to 2,000 times the median (at least 150) at the first position is called massive, alone and at its "
        "place (measured: share of plantings).",
        measured=float(np.mean(found)),
        bar=Bar(">=", 1.0),
        control=float(np.mean(unplanted)),
        control_statement="The same states before planting: share in which anything is called massive.",
        note=f"{N_PLANTED} random units after the first block, 4 sequences each.",
        plot=lambda axes: _plot_planted(axes, hidden),
    )
    zeroed, averaged = _felt(trajectory, windows, hidden, draw)
    yield Claim(
        "ablation-felt",
        "Setting massive scalars to zero changes what the next block hands on, setting them to their mean over the data "
        "does not (measured: relative change of its output's norm when planted scalars are zeroed; at least a tenth counts).",
        **over_seeds(zeroed.tolist()),
        bar=Bar(">=", CHANGE),
        control=float(averaged.mean()),
        control_statement="The same scalars set to their mean over the sequences instead.",
        note=f"{N_PLANTED} random units; planted values differ by up to 5 % between sequences. The norm is that of the first "
        "position after the second block, mean over sequences.",
        plot=lambda axes: _plot_felt(axes, zeroed, averaged),
    )


def planted_size(hidden: Tensor) -> Tensor:
    """``max(2000 medians, 150)`` of each sample."""
    return torch.clamp(2000 * massive_stats(hidden, 1)["median"], min=150.0)


def _felt(
    trajectory: Trajectory, windows: Tensor, hidden: Tensor, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Relative change of the next block's norm at the first position, by zeroing and by averaging planted scalars."""
    model, base = trajectory.model, float(planted_size(hidden).mean())
    found = np.zeros((2, N_PLANTED))
    for trial in range(N_PLANTED):
        unit = int(draw.integers(hidden.shape[-1]))
        sizes = base * (1 + 0.05 * draw.uniform(-1, 1, len(windows)))
        planting = [
            edit
            for sample, size in enumerate(sizes)
            for edit in _in_sample(pin("blocks.0", {(0, unit): float(size)}), sample)
        ]
        before = _norm(model, windows, planting)
        for row, value in enumerate((0.0, float(sizes.mean()))):
            after = _norm(model, windows, [*planting, *pin("blocks.0", {(0, unit): value})])
            found[row, trial] = float((after / before - 1).abs().mean())
    return found[0], found[1]


def _in_sample(edits: Sequence[Edit], sample: int) -> list[Edit]:
    return [replace(edit, samples=[sample]) for edit in edits]


def _norm(model: torch.nn.Module, windows: Tensor, edits: Sequence[Edit]) -> Tensor:
    with torch.no_grad(), intervene(model, *edits):
        (captured,) = capture(model, windows, ["blocks.1"])
    return captured["blocks.1"][:, 0].norm(dim=-1).cpu()


def _plot_planted(axes: Axes, hidden: Tensor) -> None:
    values = hidden.abs().flatten().numpy()
    axes.hist(np.log10(np.maximum(values, 1e-6)), bins=60, color="C0")
    axes.axvline(float(planted_size(hidden).mean().log10()), color="C1", label="planted")
    axes.axvline(
        float(np.log10(max(100.0, 1000 * np.median(values)))), color="C7", linestyle="--", label="massive from here"
    )
    axes.set(xlabel="$\\log_{10}$ of the absolute value", ylabel="scalars", yscale="log")
    axes.legend(frameon=False, fontsize="small")


def _plot_felt(axes: Axes, zeroed: np.ndarray, averaged: np.ndarray) -> None:
    axes.semilogy(np.sort(zeroed), "o", markersize=4, label="set to zero")
    axes.semilogy(np.sort(np.maximum(averaged, 1e-9)), "s", markersize=4, color="C7", label="set to their mean")
    axes.axhline(CHANGE, color="C1", linestyle="--", label="bar")
    axes.set(xlabel="planting, by size of the change", ylabel="relative change of the norm")
    axes.legend(frameon=False, fontsize="small")


def table_claim(seed: int) -> Claim:
    """6: the limit of the curve is foretold from the architecture where it depends on it."""
    features, k, networks = synthetic_table(seed)
    predictor = ArchitecturePredictor("best", random_state=seed)
    scores = predictor.evaluate(features, {"K": k}, groups=networks)
    draw = np.random.default_rng(seed + 4)
    shuffled = predictor.evaluate(features, {"K": draw.permutation(k)})

    def plot(axes: Axes) -> None:
        fitted = ArchitecturePredictor(scores.models[0], random_state=seed).fit(features[::2], {"K": k[::2]})
        axes.plot(k[1::2], fitted.predict(features[1::2])["K"], "o", markersize=3)
        axes.plot([k.min(), k.max()], [k.min(), k.max()], color="C7", linewidth=0.8)
        axes.set(xlabel="K in held-out rows", ylabel="foretold K")

    return Claim(
        "architecture",
        "The limit K of the curve can be foretold from a layer's place and its network's shape (measured: R^2 on a held-out fifth "
        "of a synthetic table in which K is a known function of H/d and l L, with noise).",
        measured=scores.of("K"),
        bar=Bar(">=", 0.8),
        control=shuffled.of("K"),
        control_statement="The same table with K permuted: R^2 at most 0.1.",
        control_bar=Bar(">", 0.1),
        note=f"188 layers of nine shapes; chosen by cross-validation: {scores.models[0]}. Leaving whole networks out instead of random "
        f"layers: R^2 {scores.r2_groups[0]:.2f}.",
        plot=plot,
    )


def synthetic_table(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of 188 layers, their K, and the network of each: lower ``H/d`` and larger ``l L`` raise K."""
    parts, networks = [], []
    for index, (width, depth, heads, hidden) in enumerate(FAMILY):
        found, names = architecture_features(np.arange(1, depth + 1), depth, width, heads, hidden)
        parts.append(found)
        networks += [index] * depth
    features = np.concatenate(parts)
    column = {name: features[:, place] for place, name in enumerate(names)}
    k = 2 - 40 * column["H/d"] + 0.8 * np.log1p(column["l*L"])
    k = k + 0.15 * np.std(k) * np.random.default_rng(seed).standard_normal(len(k))
    return features, k, np.array(networks)
