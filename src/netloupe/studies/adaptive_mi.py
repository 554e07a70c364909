"""Adaptive Estimators Show Information Compression in Deep Neural Networks (arXiv 1902.09037).

Eight claims: tanh networks compress; the estimator decides what is said of ReLU networks; an average over
initialisations hides what single ReLU networks do; weight decay compresses them (a claim in two parts); only the last
layer's compression goes with generalisation; adaptive noise ranks layers as adaptive bins do; smooth activations that do
not saturate compress too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from netloupe.core.errors import InputError
from netloupe.core.study import Bar, Claim, Preset, over_seeds
from netloupe.lenses.information.plane import compression_scores
from netloupe.studies._adaptive_mi_fashion import fashion_claim
from netloupe.studies._adaptive_mi_runs import (
    HIDDEN,
    HUGE_S0,
    PENALTY,
    S0S,
    TINY_PENALTY,
    Runs,
    Settings,
    Trained,
    all_runs,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCURATE = 0.9
NAMES = [*(f"layer {i}" for i in HIDDEN), "softmax"]

SETTINGS: dict[Preset, Settings] = {
    "smoke": Settings(
        epochs=12, looks=3, n_tanh=3, n_relu=3, n_pairs=2, n_claimed=2, rates=(1e-3, 4e-3), shares=(0.2, 0.8),
        n_smooth=1, kernel_looks=2, n_permutations=200, rate=8e-3,
        kernel_thin=4,
    ),
    "small": Settings(
        epochs=600, looks=24, n_tanh=10, n_relu=10, n_pairs=5, n_claimed=5, rates=(1e-3, 4e-3),
        shares=(0.1, 0.2, 0.4, 0.6, 0.8), n_smooth=5, kernel_looks=8,
    ),
    "full": Settings(
        epochs=8000, looks=100, n_tanh=50, n_relu=50, n_pairs=50, n_claimed=50, rates=(2e-4, 4e-4, 8e-4, 1.6e-3),
        shares=(0.1, 0.2, 0.4, 0.6, 0.8), n_smooth=50, kernel_looks=20, rate=4e-4,
        smooth=("elu", "swish", "centred softplus", "softplus", "prelu", "abs"), fashion=True,
    ),
}  # fmt: skip


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` use the twelve-bit task; ``full`` also trains on Fashion-MNIST, from the folder that
    ``NETLOUPE_DATA`` names, on a GPU if there is one. Raises SubjectError where its files are missing.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    settings = SETTINGS[preset]
    runs = all_runs(settings, seed)
    common = (
        f"Twelve-bit task with a random quadratic rule, networks 12-10-7-5-4-3-2, Adam at {settings.rate:g}, "
        f"{settings.steps} steps of 256; layers measured on all 4,096 patterns."
    )
    yield tanh_claim(runs, settings, common)
    yield estimator_claim(runs, common)
    yield averaging_claim(runs, common)
    yield from penalty_claims(runs, common)
    yield generalisation_claim(runs, settings, seed, common)
    yield kernel_claim(runs, settings, common)
    yield smooth_claim(runs, common)
    yield fashion_claim(settings, seed)


def tanh_claim(runs: Runs, settings: Settings, common: str) -> Claim:
    """Saturating networks lose information about the input in their upper hidden layers."""
    chosen = runs.tanh[: settings.n_claimed]
    drops = [float(each.drop[3:5].mean()) if each.accuracy >= ACCURATE else 0.0 for each in chosen]

    def plot(axes: Axes) -> None:
        _curves(axes, chosen, "ebab")
        axes.set(ylabel="I(X;T), bits")

    return Claim(
        name="tanh",
        statement="With adaptive bins, tanh networks that learn the task lose bits about the input in their upper "
        "hidden layers; measured is I(X;T) before training less that after it, mean of layers 4 and 5; a network with "
        "a test accuracy below 0.9 counts as 0.",
        **over_seeds(drops),
        bar=Bar(">=", 1.5),
        control=float(abs(runs.frozen.drop[3:5].mean())),
        control_statement="the same network at a learning rate of 0",
        control_bar=Bar(">", 0.5),
        note=f"{common} Test accuracies {_span([each.accuracy for each in chosen])}; drops whatever the accuracy "
        f"{_span([float(each.drop[3:5].mean()) for each in chosen])}; of a network trained on labels in random order "
        f"{runs.shuffled.drop[3:5].mean():.2f} (accuracy {runs.shuffled.accuracy:.2f}).",
        plot=plot,
    )


def estimator_claim(runs: Runs, common: str) -> Claim:
    """One range for all layers and adaptive bins tell different stories of the same ReLU networks."""
    more, opposite = [], []
    for each in runs.relu:
        change, ranged = each.ebab[-1, :5] - each.ebab[0, :5], each.global_range[-1] - each.global_range[0]
        more.append(bool((each.ebab[:, :3] > each.global_range[:, :3]).mean() == 1.0))
        opposite.append(bool((change * ranged < 0).any()))
    agreement = [_rank(each.ebab[-1, :5], each.fixed[-1, :5]) for each in runs.tanh]

    def plot(axes: Axes) -> None:
        steps = np.maximum(runs.relu[0].steps, 0.5)
        for index in range(5):
            axes.plot(steps, np.mean([r.ebab[:, index] for r in runs.relu], 0), color=f"C{index}", label=NAMES[index])
            axes.plot(
                steps, np.mean([r.global_range[:, index] for r in runs.relu], 0), color=f"C{index}", linestyle=":"
            )
        axes.set(xscale="log", xlabel="step (dotted: one range for all layers)", ylabel="I(X;T), bits", ylim=(-3, 12.5))
        axes.legend(frameon=False, fontsize="small", ncol=3, loc="lower left")

    return Claim(
        name="estimator",
        statement="The estimator decides what is said of ReLU networks; measured is the share of initialisations for "
        "which adaptive bins give layers 1 to 3 more bits than one range for all layers at every step, and the two "
        "disagree in the sign of the change over training for at least one hidden layer.",
        **over_seeds([float(a and b) for a, b in zip(more, opposite)]),
        bar=Bar(">=", 0.5),
        control=float(np.mean(agreement)),
        control_statement="rank correlation over layers, after training, between adaptive bins and bins over [-1, 1] in "
        "tanh networks, where both must agree (at least 0.7)",
        control_bar=Bar("<", 0.7),
        note=f"{common} More bits in layers 1 to 3: {np.mean(more):.0%} of {len(more)}; opposite signs: "
        f"{np.mean(opposite):.0%}.",
        plot=plot,
    )


def averaging_claim(runs: Runs, common: str) -> Claim:
    """ReLU initialisations go different ways, so that their mean shows no phase."""
    relu = np.array([-each.drop[:5] for each in runs.relu])
    tanh = np.array([-each.drop[:5] for each in runs.tanh])

    def wide(changes: np.ndarray) -> np.ndarray:
        return changes.std(0, ddof=1) >= np.abs(changes.mean(0))

    def plot(axes: Axes) -> None:
        for name, changes, shift, color in (("ReLU", relu, -0.15, "C0"), ("tanh", tanh, 0.15, "C1")):
            places = np.array(HIDDEN) + shift
            axes.plot(np.repeat(places[None], len(changes), 0), changes, ".", color=color, alpha=0.4)
            axes.errorbar(places, changes.mean(0), changes.std(0, ddof=1), fmt="s", color=color, label=name, capsize=3)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(xlabel="hidden layer", ylabel="change of I(X;T), bits")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        name="averaging",
        statement="Averaging hides what ReLU networks do; measured is in how many of the five hidden layers the standard "
        "deviation over initialisations of the change of I(X;T) is at least its mean's size.",
        measured=float(wide(relu).sum()),
        bar=Bar(">=", 3),
        control=float(wide(tanh)[3:].sum()),
        control_statement="the same count over layers 4 and 5 of tanh networks, of which no layer may qualify",
        control_bar=Bar(">=", 1),
        note=f"{common} {len(relu)} ReLU and {len(tanh)} tanh initialisations. Mean changes, ReLU: {_row(relu.mean(0))}, "
        f"standard deviations {_row(relu.std(0, ddof=1))}; tanh: {_row(tanh.mean(0))}, {_row(tanh.std(0, ddof=1))}.",
        plot=plot,
    )


def penalty_claims(runs: Runs, common: str) -> Iterator[Claim]:
    """Weight decay compresses ReLU networks, and levels their upper layers."""
    without = runs.relu[: len(runs.penalised)]
    finals = {
        name: np.array([each.ebab[-1] for each in group])
        for name, group in (("none", without), ("penalty", runs.penalised), ("tiny", runs.barely))
    }

    def lower(name: str) -> list[float]:
        return (finals["none"][:, 2:5] - finals[name][:, 2:5] >= 2.0).all(1).astype(float).tolist()

    def gaps(name: str) -> list[float]:
        return (finals[name][:, 3:].max(1) - finals[name][:, 3:].min(1)).tolist()

    def plot_compression(axes: Axes) -> None:
        labels = {"none": "no penalty", "penalty": f"penalty {PENALTY:g}", "tiny": f"penalty {TINY_PENALTY:g}"}
        for index, (name, found) in enumerate(finals.items()):
            shift = 0.15 * (index - 1)
            axes.plot(np.repeat(np.arange(1, 7)[None] + shift, len(found), 0), found, ".", color=f"C{index}", alpha=0.4)
            axes.plot(np.arange(1, 7) + shift, found.mean(0), "s-", color=f"C{index}", label=labels[name])
        axes.set_xticks(range(1, 7), [*map(str, HIDDEN), "softmax"])
        axes.set(xlabel="layer", ylabel="final I(X;T), bits")
        axes.legend(frameon=False, fontsize="small")

    def plot_levels(axes: Axes) -> None:
        steps = np.maximum(runs.penalised[0].steps, 0.5)
        for index in (3, 4, 5):
            axes.plot(
                steps, np.mean([r.ebab[:, index] for r in runs.penalised], 0), color=f"C{index}", label=NAMES[index]
            )
            axes.plot(steps, np.mean([r.ebab[:, index] for r in without], 0), color=f"C{index}", linestyle=":")
        axes.set(xscale="log", xlabel="step (dotted: no penalty)", ylabel="I(X;T), bits")
        axes.legend(frameon=False, fontsize="small")

    note = (
        f"{common} Penalty c/2 sum W^2 on all but the last layer. Final I(X;T) of layers 3, 4, 5 and the softmax without "
        f"penalty {_row(finals['none'][:, 2:].mean(0))}, with {_row(finals['penalty'][:, 2:].mean(0))}; test accuracy "
        f"{_span([r.accuracy for r in without])} and {_span([r.accuracy for r in runs.penalised])}."
    )
    falls = (finals["none"][:, 2:5] - finals["penalty"][:, 2:5] >= 2.0).mean(0)
    cause = (
        f" Each layer by itself falls by 2 bits in {_row(100 * falls, 0)} % of the pairs; without penalty layer 5 is "
        f"{finals['none'][:, 4].mean() - finals['none'][:, 5].mean():.1f} bits over the softmax, which is where it can fall to."
    )
    yield Claim(
        name="penalty",
        statement=f"A squared weight penalty of {PENALTY:g} makes ReLU networks compress; measured is the share of paired "
        "initialisations that end at least 2 bits lower in each of layers 3 to 5.",
        **over_seeds(lower("penalty")),
        bar=Bar(">=", 0.8),
        control=float(np.mean(lower("tiny"))),
        control_statement=f"the same at a penalty of {TINY_PENALTY:g}",
        note=note + cause,
        plot=plot_compression,
    )
    yield Claim(
        name="penalty-levels",
        statement="Under that penalty the upper layers end at one level; measured is the gap in final I(X;T) between the "
        "highest and the lowest of layer 4, layer 5 and the softmax.",
        **over_seeds(gaps("penalty")),
        bar=Bar("<=", 1.0),
        control=float(np.mean(gaps("tiny"))),
        control_statement=f"the same at a penalty of {TINY_PENALTY:g}",
        note=note,
        plot=plot_levels,
    )


def generalisation_claim(runs: Runs, settings: Settings, seed: int, common: str) -> Claim:
    """Compression of the last layer goes with test accuracy, that of hidden layers does not."""
    scores = np.array([compression_scores(each.ebab) for each in runs.varied])
    accuracies = np.array([each.accuracy for each in runs.varied])
    rho = _correlations(scores, accuracies)
    draw = np.random.default_rng(seed)
    null = np.array([_correlations(scores, draw.permutation(accuracies)) for _ in range(settings.n_permutations)])
    margins = np.abs(null[:, 5]) - np.abs(null[:, :5]).max(1)
    margin = float(abs(rho[5]) - np.abs(rho[:5]).max())
    p_values = [float((1 + (np.abs(null[:, i]) >= abs(rho[i])).sum()) / (1 + len(null))) for i in range(6)]

    cause = (
        ""
        if margin > 0
        else " Few patterns and high rates lower the accuracy and at once change what early layers keep, so these follow it too."
    )

    def plot(axes: Axes) -> None:
        axes.bar(range(6), rho, color=["C0"] * 5 + ["C1"])
        band = np.quantile(np.abs(null), 0.95, axis=0)
        axes.errorbar(range(6), np.zeros(6), band, fmt="none", color="0.4", capsize=6, label="95% of permutations")
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xticks(range(6), [*map(str, HIDDEN), "softmax"])
        axes.set(xlabel="layer", ylabel="rank correlation with test accuracy")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        name="generalisation",
        statement="Only the last layer's compression goes with generalisation; measured is the size of the rank "
        "correlation between compression score and test accuracy of the softmax layer, less the largest of a hidden layer.",
        measured=margin,
        bar=Bar(">", 0.0),
        control=float(margins.mean()),
        control_statement="the same with accuracies in random order, mean over permutations",
        note=f"{common} {len(scores)} tanh and ReLU runs of learning rates {_row(settings.rates, 4)} on shares "
        f"{_row(settings.shares, 1)} of the patterns; test accuracies {_span(accuracies.tolist())}. Correlations of layers "
        f"1 to 5 and the softmax {_row(rho)} (below 0: runs that compress more do worse on the test), p "
        f"{_row(p_values, 3)}; random orders reach this margin with p "
        f"{(1 + (margins >= margin).sum()) / (1 + len(margins)):.3f}." + cause,
        plot=plot,
    )


def kernel_claim(runs: Runs, settings: Settings, common: str) -> Claim:
    """Noise that follows the layer's activity ranks layers and steps as adaptive bins do."""
    chosen = runs.tanh[: settings.n_claimed]
    looks = np.unique(np.linspace(0, len(chosen[0].steps) - 1, settings.kernel_looks).round().astype(int)).tolist()
    found = [each.kernel(S0S[1], looks, settings.kernel_thin) for each in chosen]
    ranks = [_rank(noisy, each.ebab[looks]) for noisy, each in zip(found, chosen)]
    others = {
        s0: _rank(chosen[0].kernel(s0, looks, settings.kernel_thin), chosen[0].ebab[looks]) for s0 in (S0S[0], S0S[2])
    }
    huge = max(float(each.kernel(HUGE_S0, [0, len(each.steps) - 1], settings.kernel_thin).max()) for each in chosen)

    def plot(axes: Axes) -> None:
        for index, name in enumerate(NAMES):
            adaptive = np.concatenate([each.ebab[looks, index] for each in chosen])
            axes.plot(
                adaptive, np.concatenate([noisy[:, index] for noisy in found]), ".", label=name, color=f"C{index}"
            )
        axes.plot([0, 12], [0, 12], color="0.6", linewidth=0.8)
        axes.set(xlabel="I(X;T), adaptive bins, bits", ylabel="I(X;T), adaptive noise, bits")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        name="kernel",
        statement="Gaussian noise that grows with a layer's activity ranks layers and steps as adaptive bins do; measured "
        "is the rank correlation over all layers and looks of a tanh network.",
        **over_seeds(ranks),
        bar=Bar(">=", 0.7),
        control=huge,
        control_statement=f"the largest I(X;T) anywhere with noise larger than the signal, s0 = {HUGE_S0:g}: below 1 bit",
        control_bar=Bar(">=", 1.0),
        note=f"{common} Variance s0 max|T| with s0 = {S0S[1]:g}, {len(looks)} looks; for the first network s0 = {S0S[0]:g} "
        f"gives {others[S0S[0]]:.2f} and {S0S[2]:g} gives {others[S0S[2]]:.2f}.",
        plot=plot,
    )


def smooth_claim(runs: Runs, common: str) -> Claim:
    """Compression does not need saturation: it shows on average for activations that are unbounded and smooth."""
    claimed = [name for name in ("elu", "swish", "centred softplus") if name in runs.smooth]
    drops = {name: np.array([each.drop[3:5].mean() for each in runs.smooth[name]]) for name in runs.smooth}
    drops["relu"] = np.array([each.drop[3:5].mean() for each in runs.relu])

    def plot(axes: Axes) -> None:
        for index, found in enumerate(drops.values()):
            axes.plot(np.full(len(found), index), found, ".", color="C0", alpha=0.4)
            axes.plot(index, found.mean(), "s", color="C0")
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xticks(range(len(drops)), [name.replace(" ", "\n") for name in drops])
        axes.set(ylabel="drop of I(X;T) in layers 4, 5, bits", xlim=(-0.5, len(drops) - 0.5))

    return Claim(
        name="smooth",
        statement="ELU, Swish and centred softplus networks compress on average, although they do not saturate; measured "
        "is the smallest of the three mean drops of I(X;T) over training, mean of layers 4 and 5.",
        measured=float(min(drops[name].mean() for name in claimed)),
        bar=Bar(">", 0.0),
        control=float(runs.frozen.drop[3:5].mean()),
        control_statement="a network at a learning rate of 0",
        note=f"{common} Mean drops: "
        + ", ".join(
            f"{name} {found.mean():.2f} (sd {found.std(ddof=min(1, len(found) - 1)):.2f}, n {len(found)})"
            for name, found in drops.items()
        )
        + ". The paper gives no size, so the bar is the sign; it trains 8,000 epochs at 0.0004 and averages 50 networks.",
        plot=plot,
    )


def _curves(axes: Axes, runs: Sequence[Trained], name: str) -> None:
    steps = np.maximum(runs[0].steps, 0.5)
    for index, layer in enumerate(NAMES):
        values = np.array([getattr(each, name)[:, index] for each in runs])
        axes.plot(steps, values.mean(0), color=f"C{index}", label=layer)
        axes.fill_between(steps, values.min(0), values.max(0), color=f"C{index}", alpha=0.15)
    axes.set(xscale="log", xlabel="step")
    axes.legend(frameon=False, fontsize="small", ncol=2)


def _correlations(scores: np.ndarray, accuracies: np.ndarray) -> np.ndarray:
    """Spearman of each layer; 0 where a layer's scores are all equal."""
    ranked, other = rankdata(scores, axis=0), rankdata(accuracies[:, None], axis=0)
    ranked, other = ranked - ranked.mean(0), other - other.mean(0)
    size = np.sqrt((ranked**2).sum(0) * (other**2).sum(0))
    return np.where(size > 0, (ranked * other).sum(0) / np.where(size > 0, size, 1.0), 0.0)


def _rank(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def _row(values: Sequence[float] | np.ndarray, digits: int = 2) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"
