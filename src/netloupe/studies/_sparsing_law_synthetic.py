"""The claims of the sparsing-law study that need no training: thresholds of a random layer, laws from their own numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.lenses.activity.cett import activation_ratio, cett_at, cett_threshold
from netloupe.lenses.dynamics.sparsing_law import LAWS, compare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGETS = (0.05, 0.1, 0.2, 0.4)
# the paper's table 2: alpha, b, c, A0 for ReLU, with D in billions of tokens
RELU_LAWS = {
    "0.1B": (0.101, -0.0151, 3.20, 0.0614), "0.2B": (0.449, -3.05, 0.286, 0.0674), "0.4B": (0.683, -3.46, 0.0790, 0.0690),
    "0.8B": (1.01, -3.49, 0.00797, 0.0721), "1.2B": (1.33, -3.89, 9.03e-4, 0.0782), "2.4B": (1.53, -3.46, 1.56e-4, 0.0648),
}  # fmt: skip
SILU_LAWS = {
    "0.1B": (0.479, 0.102, 0.409), "0.2B": (0.844, 0.208, 0.390), "0.4B": (1.03, 0.420, 0.385),
    "0.8B": (0.995, 0.562, 0.383), "1.2B": (0.967, 0.538, 0.382),
}  # fmt: skip
TOKENS = np.linspace(10, 300, 30)
NOISE = 0.02


def threshold_claim(seeds: range) -> Claim:
    """1: the threshold that is found has the error that was asked for."""
    worst, least, told, first = [], [], [], None
    for seed in seeds:
        a, w_out = random_layer(seed)
        found = [cett_at(a, w_out, cett_threshold(a, w_out, target)) for target in TARGETS]
        worst.append(max(abs(one - target) for one, target in zip(found, TARGETS, strict=True)))
        least.append(min(abs(cett_at(a, w_out, 0.0) - target) for target in TARGETS))
        told.append((activation_ratio(a, w_out, "cett", 0.0), float((a != 0).double().mean())))
        first = (a, w_out) if first is None else first
    assert first is not None
    ratio, nonzero = told[0]
    return Claim(
        "threshold-exact",
        "The threshold found for a wanted relative error of a feed-forward layer has that error (measured: largest "
        "deviation over the errors 0.05, 0.1, 0.2 and 0.4).",
        **over_seeds(worst),
        bar=Bar("<=", 1e-3),
        control=float(np.mean(least)),
        control_statement="Threshold 0, whose error is 0: its smallest deviation from the same four.",
        note=f"Random gated layer with ReLU, 64 to 256 units, 2,000 tokens, {len(worst)} draws. At an error of 0 the "
        f"activation ratio is {ratio:.4f} and the share of neurons that are not exactly zero {nonzero:.4f}.",
        plot=lambda axes: _plot_curve(axes, *first),
    )


def random_layer(
    seed: int, n_tokens: int = 2000, d_model: int = 64, d_ff: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the output projection of a random gated ReLU layer reads, ``(token, unit)``, and that projection."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n_tokens, d_model, generator=draw)
    gate, up = (torch.randn(d_ff, d_model, generator=draw) / d_model**0.5 for _ in range(2))
    return (x @ gate.T).relu() * (x @ up.T), torch.randn(d_model, d_ff, generator=draw) / d_ff**0.5


def _plot_curve(axes: Axes, a: torch.Tensor, w_out: torch.Tensor) -> None:
    targets = np.linspace(0.01, 0.9, 20)
    ratios = [activation_ratio(a, w_out, "cett", float(target)) for target in targets]
    axes.plot(targets, ratios, color="C0")
    axes.plot(
        TARGETS, [activation_ratio(a, w_out, "cett", target) for target in TARGETS], "o", color="C1", label="tested"
    )
    axes.set(xlabel="relative error of the layer", ylabel="share of neurons kept", ylim=(0, None))
    axes.legend(frameon=False, fontsize="small")


def published() -> list[tuple[str, str, Callable[[np.ndarray], np.ndarray], float]]:
    """The eleven laws of the paper: family, name, curve, limit."""
    found: list[tuple[str, str, Callable[[np.ndarray], np.ndarray], float]] = []
    for name, (alpha, b, c, limit) in RELU_LAWS.items():
        found.append(
            (
                "logspace",
                f"ReLU {name}",
                lambda d, p=(alpha, b, c, limit): np.exp(p[1] - p[2] * d ** p[0]) + p[3],
                limit,
            )
        )
    for name, (alpha, c, limit) in SILU_LAWS.items():
        found.append(("convergent", f"SiLU {name}", lambda d, p=(alpha, c, limit): p[2] - p[1] * d ** -p[0], limit))
    return found


def noisy(curve: Callable[[np.ndarray], np.ndarray], draw: np.random.Generator) -> np.ndarray:
    """A law at 30 amounts of data up to 300 billion tokens, with 2 % noise."""
    return curve(TOKENS) * (1 + NOISE * draw.standard_normal(len(TOKENS)))


def limit_claim(seeds: range) -> Claim:
    """5a: fitted to series made from the published laws, their limits come back."""
    errors, shuffled, first = [], [], []
    for seed in seeds:
        draw = np.random.default_rng(seed)
        found, lost = [], []
        for family, name, curve, limit in published():
            series = noisy(curve, draw)
            law = LAWS[family]().fit(TOKENS.tolist(), series.tolist())
            found.append(abs(law.limit_ - limit) / limit)
            mixed = LAWS[family]().fit(TOKENS.tolist(), draw.permutation(series).tolist())
            lost.append(abs(mixed.limit_ - limit) / limit)
            if seed == seeds[0]:
                first.append((family, name, series, law, limit))
        errors.append(float(np.median(found)))
        shuffled.append(float(np.median(lost)))
    told = ", ".join(f"{name} {law.limit_:.4f} for {limit}" for _, name, _, law, limit in first)

    def plot(axes: Axes) -> None:
        for index, (family, _, series, law, _) in enumerate(first):
            if index % 2 == 0:
                colour = "C0" if family == "logspace" else "C1"
                axes.plot(TOKENS, series, ".", color=colour, markersize=3)
                axes.plot(TOKENS, law.predict(TOKENS), color=colour, linewidth=1)
        axes.plot([], [], color="C0", label="ReLU: falls")
        axes.plot([], [], color="C1", label="SiLU: rises")
        axes.set(xlabel="training tokens (billions)", ylabel="activation ratio", ylim=(0, 0.5))
        axes.legend(frameon=False, fontsize="small", loc="center right")

    return Claim(
        "limits-recovered",
        "Fitted to series made from the eleven published laws with 2 % noise, the fitters find the limits again "
        "(measured: median relative error of the limit).",
        **over_seeds(errors),
        bar=Bar("<=", 0.05),
        control=float(np.mean(shuffled)),
        control_statement="The same series in random order, which have no trend towards a limit.",
        note=f"30 points from 10 to 300 billion tokens, {len(errors)} draws of the noise. First draw: {told}.",
        plot=plot,
    )


def family_claim(seeds: range) -> Claim:
    """5b: AIC tells which of the two laws made a series."""
    right, named, tables = [], [], []
    for seed in seeds:
        draw = np.random.default_rng(seed)
        table = []
        for family, name, curve, limit in published():
            found = compare(TOKENS.tolist(), noisy(curve, draw).tolist(), interval=False)
            level = noisy(lambda d, at=limit: np.full(len(d), at), draw)
            flat = compare(TOKENS.tolist(), level.tolist(), interval=False)
            table.append((name, family, found, flat))
        tables.append(table)
        right.append(float(sum(found.family == family for _, family, found, _ in table)))
        named.append(float(sum(flat.family != "undetermined" for _, _, _, flat in table)))
    wrong = sorted(
        {f"{name} ({found.family})" for table in tables for name, family, found, _ in table if found.family != family}
    )

    def plot(axes: Axes) -> None:
        names = [name for name, *_ in tables[0]]
        gaps = [found.aic["convergent"] - found.aic["logspace"] for _, _, found, _ in tables[0]]
        axes.barh(names, np.arcsinh(gaps), color=["C0" if name.startswith("ReLU") else "C1" for name in names])
        axes.axvline(0, color="k", linewidth=0.8)
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize="small")
        axes.set(xlabel="asinh of the AIC gap; right: ReLU's law fits better")

    return Claim(
        "families-told",
        "The lower AIC names the law that a series was made from: the falling one for ReLU, the rising one for SiLU "
        "(measured: number of the eleven that are named rightly).",
        **over_seeds(right),
        bar=Bar(">=", 9.0),
        control=float(np.mean(named)),
        control_statement="Eleven constant series at the same limits: how many are given to a law at all.",
        note=f"30 points from 10 to 300 billion tokens, 2 % noise, {len(right)} draws. Named wrongly at least once: "
        f"{', '.join(wrong) or 'none'}. A fit that an F-test does not put above a constant counts as undetermined.",
        plot=plot,
    )
