"""Claims of the local-interaction-basis study, each with its control."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from netloupe.core.losses import next_token_loss
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.core.training import train
from netloupe.data.bytes_text import byte_batches, stdlib_bytes
from netloupe.data.modular_addition import two_blocks
from netloupe.lenses.dictionary.lib import InteractionBasis, Kind, interaction_basis
from netloupe.lenses.dictionary.lib_edges import AblationCurve, ablate_nodes, interaction_edges
from netloupe.models.gpt import ByteGPT
from netloupe.studies._local_interaction_basis_networks import (
    NOISE,
    Cut,
    bytes_network,
    kept_information,
    needed,
    rotated,
    with_noise,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIB, PCA = "local interaction basis", "principal components"
TURNED, PCA_TURNED, AGAIN = "its span, rotated", "principal components, rotated", "its span, rotated again"


def bars(rows: dict[str, Sequence[float]], ticks: Sequence[str], label: str, log: bool = False) -> Callable:
    """One group of bars for each tick, one bar for each name."""

    def plot(axes: Axes) -> None:
        place, width = np.arange(len(ticks)), 0.8 / len(rows)
        for i, (name, values) in enumerate(rows.items()):
            axes.bar(place + (i - (len(rows) - 1) / 2) * width, values, width, label=name)
        axes.set_xticks(place, ticks)
        axes.set(ylabel=label)
        if log:
            axes.set_yscale("log")
        axes.margins(y=0.35)  # room for the legend
        axes.legend(frameon=False, fontsize="small")

    return plot


def blocks_purity(seed: int, kind: Kind, factorial: bool = True) -> tuple[np.ndarray, Tensor]:
    """How much of each feature lies in one block (its larger share of squared weight), and the edges to the next layer."""
    net = two_blocks(factorial=factorial, random_state=seed)
    acts, size = [net.x, net.layer(net.x)], net.x.shape[1] // 2
    basis = interaction_basis(acts, [net.layer], basis=kind)
    directions = (net.rotation.T @ basis.C[0][:-1, 1:]).pow(2)
    share = directions[:size].sum(0) / directions.sum(0)
    edges = interaction_edges(basis, 0, net.x, net.layer)[:, 1:]
    return torch.maximum(share, 1 - share).numpy(), edges


def acting(edges: Tensor) -> int:
    """Edges that are not zero up to rounding."""
    return int((edges > 1e-12 * edges.max()).sum())


def block_claims(seeds: Sequence[int]) -> list[Claim]:
    """Two independent blocks under a hidden rotation."""
    own = [blocks_purity(seed, "jacobian") for seed in seeds]
    pca = [blocks_purity(seed, "pca") for seed in seeds]
    drawn = [float(blocks_purity(seed, "jacobian", factorial=False)[0].min()) for seed in seeds]

    def plot(axes: Axes) -> None:
        for i, (found, name) in enumerate(((own, LIB), (pca, PCA))):
            values = np.concatenate([each for each, _ in found])
            axes.plot(np.arange(len(values)), values, "o", label=name, color=f"C{i}")
        axes.set(xlabel="feature", ylabel="share in its own block", ylim=(0.45, 1.05))
        axes.legend(frameon=False, fontsize="small")

    counts, pca_counts = [acting(edges) for _, edges in own], [acting(edges) for _, edges in pca]
    ticks = [f"seed {seed}" for seed in seeds]
    return [
        Claim(
            "blocks-purity",
            "of two independent blocks under a hidden rotation, every feature lies in one",
            **over_seeds([float(each.min()) for each, _ in own]),
            bar=Bar(">=", 1 - 1e-6),
            control=float(np.mean([each.min() for each, _ in pca])),
            control_statement="principal components of the same activations",
            note=f"The least pure feature. Drawn at random in place of every pair, the blocks correlate by chance: {np.mean(drawn):.3f}.",
            plot=plot,
        ),
        Claim(
            "blocks-edges",
            "of 60 edges to the next layer the 30 inside blocks act, and no other",
            **over_seeds(counts),
            bar=Bar("==", 30),
            control=float(np.mean(pca_counts)),
            control_statement="principal components",
            plot=bars({LIB: counts, PCA: pca_counts}, ticks, "edges that act"),
        ),
    ]


def addition_claims(networks: Sequence[Cut], p: int, seeds: Sequence[int]) -> list[Claim]:
    """Modular addition: fewer edges, fewer directions, none of noise."""
    own = [network.basis("jacobian") for network in networks]
    pca = [network.basis("pca") for network in networks]
    turned, again, pca_turned = (
        [rotated(rotated(basis, 0, seed + shift), 1, seed + shift + 1) for basis, seed in zip(bases, seeds)]
        for bases, shift in ((own, 0), (own, 10), (pca, 0))
    )
    counts = {
        name: [needed(network, basis, network.accuracy, 0.01) for network, basis in zip(networks, bases)]
        for name, bases in ((LIB, own), (TURNED, turned), (PCA, pca), (PCA_TURNED, pca_turned), (AGAIN, again))
    }
    sums = {name: np.array([sum(each) for each in found], float) for name, found in counts.items()}
    drawn = {name: found.tolist() for name, found in sums.items() if name != AGAIN}
    whole = float(np.mean([network.accuracy(network.judged[-1]) for network in networks]))
    pairs = ", ".join("+".join(map(str, each)) for each in counts[LIB])
    pca_pairs = ", ".join("+".join(map(str, each)) for each in counts[PCA])
    dims, pca_dims = [basis.C[1].shape[1] for basis in own], [basis.C[1].shape[1] for basis in pca]
    noisy = [with_noise(network, seed) for network, seed in zip(networks, seeds)]
    shares = [noise_share(network.basis("jacobian"), network) for network in noisy]
    pca_shares = [noise_share(network.basis("pca"), network) for network in noisy]
    ticks = [f"seed {seed}" for seed in seeds]
    return [
        Claim(
            "addition-edges",
            "modular addition within 1 % of its accuracy needs at most 0.6 of the edges that principal components need",
            **over_seeds((sums[LIB] / sums[PCA]).tolist()),
            bar=Bar("<=", 0.6),
            control=float(np.mean(sums[PCA_TURNED] / sums[PCA])),
            control_statement="principal components rotated at random inside their span",
            note=(
                f"Edges into the hidden layer and out of it: {pairs}; principal components {pca_pairs}. Accuracy {whole:.4f}. Features "
                f"of the same span rotated at random need {np.mean(sums[TURNED] / sums[PCA]):.3f}: there are fewer of them."
            ),
            plot=bars(drawn, ticks, "edges needed", log=True),
        ),
        Claim(
            "addition-rotation",
            "these edges are at most 0.6 of what the same span needs in directions drawn at random",
            **over_seeds((sums[LIB] / sums[TURNED]).tolist()),
            bar=Bar("<=", 0.6),
            control=float(np.mean(sums[AGAIN] / sums[TURNED])),
            control_statement="a second drawing of directions against the first",
            note="What is left of the gain when directions that do not matter are dropped on both sides.",
            plot=bars({name: drawn[name] for name in (LIB, TURNED)}, ticks, "edges needed"),
        ),
        Claim(
            "hidden-dimensions",
            "of the hidden layer no more directions are kept than outputs and a constant",
            **over_seeds(dims),
            bar=Bar("<=", p + 1),
            control=float(np.mean(pca_dims)),
            control_statement="principal components, which keep every direction that varies",
            plot=bars({LIB: dims, PCA: pca_dims}, ticks, "directions kept"),
        ),
        Claim(
            "noise-inputs",
            f"{NOISE} inputs of noise that the network ignores have no share in any feature",
            measured=max(shares),
            values=tuple(shares),
            bar=Bar("<=", 1e-9),
            control=float(np.mean(pca_shares)),
            control_statement="principal components, which keep every direction that varies",
            note="The largest share of squared weight over seeds.",
            plot=bars({LIB: [max(s, 1e-40) for s in shares], PCA: pca_shares}, ticks, "share of noise", log=True),
        ),
    ]


def noise_share(basis: InteractionBasis, network: Cut) -> float:
    """Share of the squared weights of input features that lies on the noise."""
    d = network.acts[0].shape[1]
    weights = basis.C[0][:d, basis.n_constant[0] :].pow(2)
    return float(weights[-NOISE:].sum() / weights.sum())


def importance_claims(networks: Sequence[Cut]) -> list[Claim]:
    """Features taken out in the order of importance, at the input and both hidden layers."""
    kinds: dict[str, tuple[Kind, bool]] = {
        LIB: ("jacobian", False), PCA: ("pca", False), "least important first": ("jacobian", True),
    }  # fmt: skip
    curves = {name: [[*_curves(network, *kind)] for network in networks] for name, kind in kinds.items()}
    widths = [each.shape[1] for each in networks[0].acts[:-1]]
    areas = {
        name: np.array([np.mean([_area(c, w) for c, w in zip(of_one, widths)]) for of_one in found])
        for name, found in curves.items()
    }
    whole = np.array([network.accuracy(network.judged[-1]) for network in networks])
    best = np.array([[_at_half(curve) for curve in of_one] for of_one in curves[LIB]])
    worst = np.array([[_at_half(curve) for curve in of_one] for of_one in curves["least important first"]])
    cost, reversed_cost = whole - best.mean(1), whole - worst.mean(1)

    def plot(axes: Axes) -> None:
        for i, (name, found) in enumerate(curves.items()):
            for layer in range(len(widths)):
                curve = found[0][layer]
                axes.plot(
                    curve.kept,
                    curve.scores,
                    color=f"C{i}",
                    ls=("-", "--", ":")[layer % 3],
                    label=None if layer else name,
                )
        axes.set(
            xlabel="features kept (input solid, hidden dashed, dotted)", ylabel="held-out accuracy", xscale="symlog"
        )
        axes.legend(frameon=False, fontsize="small")

    ticks = ["input", *(f"hidden {i}" for i in range(1, len(widths)))]
    halves = bars(
        {"more important half": best.mean(0).tolist(), "less important half": worst.mean(0).tolist()},
        ticks,
        "accuracy with",
    )
    by_layer = ", ".join(f"{name} {value:.3f}" for name, value in zip(ticks, whole.mean() - best.mean(0)))
    return [
        Claim(
            "importance-area",
            "kept in the order of importance, features give at least the area under the accuracy curve of principal components",
            **over_seeds((areas[LIB] - areas[PCA]).tolist()),
            bar=Bar(">=", 0),
            control=float(np.mean(areas["least important first"] - areas[PCA])),
            control_statement="the same features, the least important first",
            note=f"Mean of three layers; accuracy of the whole network {whole.mean():.3f}.",
            plot=plot,
        ),
        Claim(
            "importance-half",
            "taking out the less important half of a layer's features costs less than 1 % of accuracy",
            **over_seeds(cost.tolist()),
            bar=Bar("<", 0.01),
            control=float(reversed_cost.mean()),
            control_statement="taking out the more important half",
            note=f"Cost at each layer: {by_layer}.",
            plot=halves,
        ),
        Claim(
            "importance-reversed",
            "with the less important half of a layer's features alone accuracy falls below 0.3",
            **over_seeds(worst.mean(1).tolist()),
            bar=Bar("<", 0.3),
            control=float(best.mean()),
            control_statement="the more important half alone",
            plot=halves,
        ),
    ]


def _curves(network: Cut, kind: Kind, reverse: bool) -> list[AblationCurve]:
    basis = network.basis(kind)
    return [
        ablate_nodes(
            basis, layer, network.judged[layer], network.rest(layer), network.accuracy,
            counts=range(basis.n_features[layer] + 1), reverse=reverse,
        )
        for layer in range(len(network.maps))
    ]  # fmt: skip


def _area(curve: AblationCurve, width: int) -> float:
    """Over 0 to all units: what was dropped without effect adds nothing."""
    return float(np.interp(np.arange(width + 1), curve.kept, curve.scores).mean())


def _at_half(curve: AblationCurve) -> float:
    return float(curve.scores[-(-int(curve.kept[-1]) // 2)])


def language_claim(steps: int, seed: int) -> Claim:
    """Edges that a language model on bytes needs; a difference is not expected. ``steps`` 0 leaves it untested."""
    statement = "a small language model needs about as many edges in either basis: |log(LIB / PCA)| at most log 1.25"
    control = "the two blocks of the first claim, where the basis does help, by the same measure"
    bar = Bar("<=", math.log(1.25))
    edges, pca_edges = acting(blocks_purity(seed, "jacobian")[1]), acting(blocks_purity(seed, "pca")[1])
    known = abs(math.log(edges / pca_edges))
    if not steps:
        return Claim(
            "language-model", statement, None, bar, known, control, note="A language model is trained at small."
        )
    model = ByteGPT(64, 2, 4, 128, 64, random_state=seed)
    train(
        model, byte_batches(stdlib_bytes("train"), 64, 16), steps=steps, loss=next_token_loss, seed=seed, schedule="cosine",
        optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1), clip=1.0,
    )  # fmt: skip
    network = bytes_network(model, ("tokens", "blocks.0", "blocks.1", "head"))
    score = kept_information(network)
    bases: dict[str, Kind] = {LIB: "jacobian", PCA: "pca"}
    counts = {name: needed(network, network.basis(kind), score, 0.05, pairs=2) for name, kind in bases.items()}
    ratio = sum(counts[LIB]) / sum(counts[PCA])
    return Claim(
        "language-model", statement, abs(math.log(ratio)), bar, known, control,
        note=f"Each byte alone, KL within 0.05 nats: {counts[LIB]} edges against {counts[PCA]}, ratio {ratio:.3f}.",
        plot=bars({name: list(found) for name, found in counts.items()}, ["into block 1", "into block 2"], "edges needed"),
    )  # fmt: skip
