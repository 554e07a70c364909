"""The claims of the sparsing-law study that train byte language models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.core.trajectory import monotonicity
from netloupe.lenses.activity.cett import PplSparsity, SparsityProbe, common_cett, sparsest, token_agreement
from netloupe.lenses.activity.sparsity_pareto import SparsityPareto, sparsity_pareto
from netloupe.lenses.dynamics.sparsing_law import FEWEST, compare, two_segment
from netloupe.nn.ffn import Activation
from netloupe.studies._sparsing_law_setting import (
    ACTIVATIONS,
    Settings,
    Text,
    build,
    probe_of,
    probes_at,
    train_model,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

P = 0.01
GRID = tuple(np.round(np.arange(0.05, 0.601, 0.05), 2).tolist())
RIVALS = ("topk", "fat")
ROUNDING = 1e-6
STILL = 3
"""steps with learning rate 0, each looked at: nothing moves, so that more would say no more"""
LAST = 5
"""checkpoints whose mean perplexity ratio sets the error of all of them"""
EXHAUSTIVE = 8
"""most points whose orders are all tried"""


@dataclass(frozen=True)
class Watched:
    """One trained network: ``steps`` and ``ratios`` at its looks, its sparsity at the end and before training."""

    steps: np.ndarray
    ratios: np.ndarray
    nonzero: np.ndarray
    final: PplSparsity
    untrained: PplSparsity
    pareto: SparsityPareto
    still: np.ndarray
    """ratios with learning rate 0"""
    half_loss: float
    """loss at the first look"""


def model_claims(settings: Settings, text: Text, seeds: range) -> Iterator[Claim]:
    """Claims 1b, 2, 3 and 4, all of the same networks."""
    watched = {(name, seed): watch(settings, text, name, seed) for seed in seeds for name in ACTIVATIONS}
    yield perplexity_claim(watched)
    yield rules_claim(watched)
    yield sparser_claim(watched)
    yield quality_claim(watched)
    yield trend_claim(settings, text, watched)


def watch(settings: Settings, text: Text, activation: Activation, seed: int) -> Watched:
    """Trains a network and measures all that the claims need of it; its weights are then let go."""
    trained = train_model(settings, text, activation, seed)
    steps, ratios, probes = at_one_error(probes_at(trained, text))
    still = train_model(settings, text, activation, seed, steps=STILL, every=1, rate=0.0)
    _, still_ratios, untrained = at_one_error(probes_at(still, text))
    return Watched(
        steps,
        ratios,
        np.array([np.mean([curve.ratio[0] for curve in probe.curves.values()]) for probe in probes]),
        sparsest(probes[-1], P),
        sparsest(untrained[0], P),
        sparsity_pareto(probes[-1], ratios=GRID, random_state=seed),
        still_ratios,
        probes[0].loss_dense,
    )


def at_one_error(looks: list[tuple[int, SparsityProbe]]) -> tuple[np.ndarray, np.ndarray, list[SparsityProbe]]:
    """Steps and activation ratios of a run's looks, all at the CETT of the last five."""
    probes = [probe for _, probe in looks]
    cett = common_cett(probes[-LAST:], P, tol=1e-3)
    return np.array([step for step, _ in looks]), np.array([probe.at_cett(cett).ratio for probe in probes]), probes


def pairs(watched: dict[tuple[str, int], Watched]) -> list[tuple[Watched, Watched]]:
    """ReLU and SiLU network of every seed."""
    seeds = dict.fromkeys(seed for _, seed in watched)
    return [(watched["relu", seed], watched["silu", seed]) for seed in seeds]


def perplexity_claim(watched: dict[tuple[str, int], Watched]) -> Claim:
    """1b: the search ends at the perplexity that was asked for."""
    off = [abs(one.final.ppl_ratio - 1 - P) for one in watched.values()]
    probes = ", ".join(f"{name} {len(one.final.probed)}" for (name, _), one in list(watched.items())[:2])

    def plot(axes: Axes) -> None:
        for index, name in enumerate(ACTIVATIONS):
            for (activation, _), one in watched.items():
                if activation == name:
                    probed = one.final.probed
                    axes.plot(probed[:, 0], probed[:, 2], "o-", markersize=3, color=f"C{index}", label=name)
        axes.axhline(1 + P, color="C7", linestyle="--")
        axes.set(xlabel="relative error of every layer (CETT)", ylabel="perplexity ratio", ylim=(0.995, 1 + 6 * P))
        _legend_once(axes)

    return Claim(
        "perplexity-exact",
        "The search over the layers' common relative error ends where the perplexity has risen by 1 % (measured: "
        "largest distance of the perplexity ratio from 1.01).",
        measured=max(off),
        values=tuple(off),
        bar=Bar("<=", 1e-3),
        control=P,
        control_statement="Threshold 0, whose perplexity ratio is 1 exactly.",
        note=f"{len(off)} networks. Passes over the validation text that the search took: {probes}.",
        plot=plot,
    )


def rules_claim(watched: dict[tuple[str, int], Watched]) -> Claim:
    """2: at an equal ratio no other rule costs less."""

    def share(one: SparsityPareto, rule: str) -> float:
        # where every non-zero neuron is kept all rules are one and the same, to rounding
        return float(
            np.mean([all(one.at(rule, r) <= one.at(rival, r) * (1 + ROUNDING) for rival in RIVALS) for r in GRID])
        )

    shares = [(share(relu.pareto, "cett") + share(silu.pareto, "cett")) / 2 for relu, silu in pairs(watched)]
    chance = [(share(relu.pareto, "random") + share(silu.pareto, "random")) / 2 for relu, silu in pairs(watched)]
    relu, silu = (one.pareto for one in pairs(watched)[0])
    told = "; ".join(
        f"{name} " + ", ".join(f"{rule} {one.at(rule, 0.2):.4f}" for rule in one.rules)
        for name, one in (("ReLU", relu), ("SiLU", silu))
    )
    apart = ", ".join(f"{share(r.pareto, 'cett'):.2f} / {share(s.pareto, 'cett'):.2f}" for r, s in pairs(watched))

    def plot(axes: Axes) -> None:
        for rule, colour in zip(relu.rules, ("C0", "C1", "C2", "C7"), strict=True):
            for one, style in ((relu, "-"), (silu, ":")):
                rise = np.array([one.at(rule, r) - 1 for r in GRID])
                axes.plot(
                    GRID, np.where(rise > 1e-6, rise, np.nan), style, color=colour, label=rule if one is relu else None
                )
        axes.set(yscale="log", xlabel="share of neurons kept (dotted: SiLU)", ylabel="rise of the perplexity")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        "cett-dominates",
        "Leaving out the shortest outputs with one relative error for all layers raises the perplexity no more than a "
        "fixed number of neurons (top-k) or one threshold on the activation (FAT) at the same activation ratio (measured: "
        "share of the ratios 0.05 to 0.6, over ReLU and SiLU, where it is no worse than either).",
        **over_seeds(shares),
        bar=Bar(">=", 0.8),
        control=float(np.mean(chance)),
        control_statement="As many neurons drawn at random on each token, held against the same two.",
        note=f"Perplexity ratios with a fifth of the neurons kept, first seed: {told}. Share of ratios by seed, "
        f"ReLU / SiLU: {apart}. A ReLU network keeps no more than its "
        "non-zero neurons, so that all rules but the random one meet at 1 there.",
        plot=plot,
    )


def sparser_claim(watched: dict[tuple[str, int], Watched]) -> Claim:
    """3a: the ReLU network needs far fewer neurons."""
    quotients, gaps = [], []
    for relu, silu in pairs(watched):
        quotients.append(relu.final.ratio / silu.final.ratio if silu.final.ratio > 0 else math.nan)
        gaps.append(abs(relu.untrained.ratio - silu.untrained.ratio))
    told = ", ".join(f"{relu.final.ratio:.3f} / {silu.final.ratio:.3f}" for relu, silu in pairs(watched))
    relu, silu = pairs(watched)[0]
    agreement = _agreement(relu.final, silu.final)

    def plot(axes: Axes) -> None:
        for one, name, colour in ((relu, "ReLU", "C0"), (silu, "SiLU", "C1")):
            ordered = np.sort(one.final.frequency)[::-1]
            axes.plot(
                np.linspace(0, 1, len(ordered)), ordered, color=colour, label=f"{name}, mean {one.final.ratio:.3f}"
            )
        axes.set(xlabel="units, busiest first (share)", ylabel="share of tokens it is kept on", ylim=(0, 1.02))
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        "relu-sparser",
        "At a perplexity risen by 1 % a ReLU network needs a much smaller share of its neurons than a SiLU network "
        "(measured: ratio of the two activation ratios).",
        **over_seeds(quotients),
        bar=Bar("<=", 0.6),
        control=float(np.mean(gaps)),
        control_statement="Untrained networks: the two activation ratios differ by no more than 0.02.",
        control_bar=Bar(">", 0.02),
        note=f"Activation ratios, ReLU / SiLU: {told}; exact zeros of ReLU {1 - relu.final.nonzero.mean():.3f}. Untrained: "
        f"{relu.untrained.ratio:.3f} and {silu.untrained.ratio:.3f}, perplexity ratio without any feed-forward layer "
        f"{relu.untrained.ppl_ratio:.3f} and {silu.untrained.ppl_ratio:.3f}. Correlation of the two networks' ratios over "
        f"byte values: {agreement}.",
        plot=plot,
    )


def _agreement(one: PplSparsity, other: PplSparsity) -> str:
    return f"{token_agreement(one, other):.2f}" if (one.token_count >= 5).sum() >= 3 else "too few tokens"


def quality_claim(watched: dict[tuple[str, int], Watched]) -> Claim:
    """3b: and it is no worse a language model."""
    differences = [abs(relu.final.loss_dense / silu.final.loss_dense - 1) for relu, silu in pairs(watched)]
    early = [abs(relu.half_loss / relu.final.loss_dense - 1) for relu, _ in pairs(watched)]
    told = ", ".join(f"{r.final.loss_dense:.3f} / {s.final.loss_dense:.3f}" for r, s in pairs(watched))

    def plot(axes: Axes) -> None:
        for index, (relu, silu) in enumerate(pairs(watched)):
            axes.bar([index - 0.2], [relu.final.loss_dense], 0.4, color="C0", label="ReLU")
            axes.bar([index + 0.2], [silu.final.loss_dense], 0.4, color="C1", label="SiLU")
            axes.plot([index - 0.2], [relu.half_loss], "kv", markersize=4, label="ReLU, first look")
        axes.set(xlabel="seed", ylabel="validation loss (nats a byte)", xticks=range(len(pairs(watched))))
        axes.set_ylim(0, 1.4 * max(relu.half_loss for relu, _ in pairs(watched)))
        _legend_once(axes)

    return Claim(
        "equal-quality",
        "After the same steps ReLU and SiLU networks predict equally well (measured: relative difference of their "
        "validation losses).",
        **over_seeds(differences),
        bar=Bar("<=", 0.02),
        control=float(np.mean(early)),
        control_statement="The ReLU network at its first look against itself at the end.",
        note=f"Losses in nats a byte, ReLU / SiLU: {told}.",
        plot=plot,
    )


def trend_claim(settings: Settings, text: Text, watched: dict[tuple[str, int], Watched]) -> Claim:
    """4: with data ReLU grows sparser, SiLU denser."""
    signed, still = [], []
    for relu, silu in pairs(watched):
        signed.append(min(-monotonicity(relu.ratios.tolist()), monotonicity(silu.ratios.tolist())))
        still.append(min(-monotonicity(relu.still.tolist()), monotonicity(silu.still.tolist())))
    told = "; ".join(
        f"{name} seed {seed}: " + " ".join(f"{ratio:.3f}" for ratio in one.ratios)
        for (name, seed), one in watched.items()
    )
    per_step = settings.batch * settings.context
    limits = [
        f"{name} seed {seed}: {_law(one, per_step)}"
        for (name, seed), one in watched.items()
        if len(one.steps) >= FEWEST
    ]
    limits += _other_sizes(settings, text)

    def plot(axes: Axes) -> None:
        highest = 0.0
        for (name, _), one in watched.items():
            colour, kilobytes = "C0" if name == "relu" else "C1", one.steps * per_step / 1000
            axes.plot(kilobytes, one.ratios, "o-", markersize=3, color=colour, label=name)
            if name == "relu":
                axes.plot(kilobytes, one.nonzero, ":", color="C7", label="relu, not exactly zero")
            highest = max(highest, float(one.ratios.max()), float(one.nonzero.max()) if name == "relu" else 0.0)
        axes.set(xlabel="training data (thousand bytes)", ylabel="activation ratio", ylim=(0, 1.35 * highest))
        _legend_once(axes)

    return Claim(
        "opposite-trends",
        "With more training data the activation ratio of a ReLU network falls and that of a SiLU network rises (measured: "
        "the smaller of the two rank correlations with data, ReLU's sign turned, in the seed where it is smallest; above 0 "
        "only if both hold in every seed).",
        measured=min(signed),
        values=tuple(signed),
        bar=Bar(">", 0.0),
        control=min(still),
        control_statement=f"Learning rate 0, {STILL} looks.",
        note=f"All looks after {settings.warmup} steps of warm-up, at the one CETT that raises the mean perplexity of the last "
        f"{LAST} by 1 %. Ratios every {settings.every} steps: {told}. Laws: {'; '.join(limits) or 'too few looks'}.",
        plot=plot,
    )


def _law(one: Watched, per_step: int) -> str:
    found = compare((one.steps * per_step).tolist(), one.ratios.tolist())
    low, high = found.limit_interval or (math.nan, math.nan)
    return f"{found.family}, limit {found.limit:.3f} ({low:.3f} to {high:.3f})"


def _other_sizes(settings: Settings, text: Text) -> list[str]:
    """How the limit moves with the number of parameters: only where a preset has several sizes."""
    told = []
    for shape in settings.sizes:
        for name in ACTIVATIONS:
            one = watch(replace(settings, shape=shape), text, name, 0)
            told.append(
                f"{name}, {shape.n_parameters / 1e6:.0f}M parameters: {_law(one, settings.batch * settings.context)}"
            )
    return told


def shape_claim(settings: Settings, text: Text, seed: int) -> Claim:
    """6: at one number of parameters slim networks are sparser, up to a knot."""
    ratios, before = [], []
    for shape in settings.shapes:
        trained = train_model(
            settings, text, "relu", seed, shape=shape, steps=settings.shape_steps, every=0, batch=settings.shape_batch
        )
        ratios.append(sparsest(probe_of(trained.model, text), P).ratio)
        before.append(sparsest(probe_of(build(settings, "relu", seed, shape), text), P).ratio)
    slimness = np.array([shape.slimness for shape in settings.shapes])
    found = two_segment(slimness.tolist(), ratios, fewest=3)
    below = slimness <= found.knot
    measured, control = _rank(slimness[below], np.array(ratios)[below]), _rank(slimness[below], np.array(before)[below])
    told = ", ".join(
        f"{shape.d_model} x {shape.n_layers}: {ratio:.3f} (untrained {start:.3f})"
        for shape, ratio, start in zip(settings.shapes, ratios, before, strict=True)
    )

    def plot(axes: Axes) -> None:
        grid = np.linspace(slimness.min(), slimness.max(), 100)
        axes.plot(slimness, ratios, "o", color="C0", label="trained")
        axes.plot(slimness, before, "x", color="C7", label="untrained")
        axes.plot(grid, found.predict(grid), color="C1", label=f"knot at {found.knot:.0f}")
        axes.set(xlabel="width / depth", ylabel="activation ratio (ReLU)", ylim=(-0.01, None))
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        "width-depth",
        "At about the same number of parameters the activation ratio of ReLU networks rises with width over depth below "
        "a knot (measured: rank correlation of the two there).",
        measured=measured,
        bar=Bar(">", 0.0),
        control=control,
        control_statement="The same networks before training.",
        note=f"Width x depth: {told}; knot at {found.knot:.0f} with {int(below.sum())} of {len(below)} shapes below it; share "
        f"of the orders of width over depth that correlate as strongly: {_share_of_orders(slimness[below], np.array(ratios)[below]):.3f}.",
        plot=plot,
    )


def _rank(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation; 0 where a number does not vary, NaN for fewer than three points."""
    if len(x) < 3:
        return math.nan
    return 0.0 if np.ptp(x) == 0 or np.ptp(y) == 0 else float(stats.spearmanr(x, y)[0])  # pyright: ignore


def _share_of_orders(x: np.ndarray, y: np.ndarray) -> float:
    """Share of all orders of ``x`` (a thousand drawn ones where there are too many) that correlate at least as strongly."""
    observed, draw = _rank(x, y), np.random.default_rng(0)
    orders = permutations(x) if len(x) <= EXHAUSTIVE else (draw.permutation(x) for _ in range(1000))
    return float(np.mean([_rank(np.array(order), y) >= observed - 1e-12 for order in orders]))


def _legend_once(axes: Axes) -> None:
    """Each label once, however many lines carry it."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False, fontsize="small")
