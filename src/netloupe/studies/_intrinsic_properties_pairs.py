"""The claims of the intrinsic-properties study about pairs of classes of real images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.study import Bar, Claim
from netloupe.lenses.geometry.intrinsic_dimension import mle_dimension, twonn_dimension
from netloupe.lenses.geometry.label_sharpness import label_sharpness
from netloupe.lenses.geometry.scaling import rank_correlation
from netloupe.lenses.verification.fgsm import LEVELS, Vulnerability, vulnerability
from netloupe.studies._intrinsic_properties_network import Recipe, Task, Trained, hidden, train_tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MEASURED = 1000


@dataclass(frozen=True)
class Pairs:
    """Samples in [0, 1] and their classes, the pairs that are told apart, training samples of each pair, and networks of each."""

    x: Float[Tensor, "sample unit"]
    y: Int[Tensor, " sample"]
    pairs: tuple[tuple[int, int], ...]
    n_train: int
    n_seeds: int

    def of(self, pair: tuple[int, int], seed: int) -> Task:
        """A pair's samples in random order, the first ``n_train`` for training."""
        rows = torch.cat([torch.nonzero(self.y == one)[:, 0] for one in pair])
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        x, y = self.x[rows], (self.y[rows] == pair[1]).long()
        cut = self.n_train
        return Task(x[:cut], y[:cut], x[cut : cut + 2 * MOST_MEASURED], y[cut : cut + 2 * MOST_MEASURED], seed)


def draw_pairs(n_classes: int, n_pairs: int, seed: int) -> tuple[tuple[int, int], ...]:
    """Different pairs of classes, at random; all of them where so many are asked for."""
    every = list(combinations(range(n_classes), 2))
    order = np.random.default_rng(seed).permutation(len(every))[:n_pairs]
    return tuple(every[i] for i in sorted(order))


def pair_claims(pairs: Pairs, recipe: Recipe, seed: int, what: str) -> Iterator[Claim]:
    """Sharpness foretells how easily networks are attacked, and layers have fewer dimensions than the data."""
    runs = [(index, seed * 100 + s) for index in range(len(pairs.pairs)) for s in range(pairs.n_seeds)]
    trained = train_tasks([pairs.of(pairs.pairs[index], s) for index, s in runs], recipe, seed)
    accuracy = float(np.mean([one.accuracy for one in trained]))
    common = (
        f"{what}, {len(pairs.pairs)} pairs of classes, {pairs.n_train} training samples, {pairs.n_seeds} networks each; mean test accuracy "
        f"{accuracy:.3f}. "
    )
    yield _attack_claim(pairs, runs, trained, common)
    yield from _layers_claims(pairs, runs, trained, common)


def _per_pair(pairs: Pairs, runs: Sequence[tuple[int, int]], values: Sequence[float]) -> np.ndarray:
    return np.array(
        [np.mean([v for (index, _), v in zip(runs, values) if index == i]) for i in range(len(pairs.pairs))]
    )


def _attack_claim(pairs: Pairs, runs: Sequence[tuple[int, int]], trained: Sequence[Trained], common: str) -> Claim:
    attacked: list[Vulnerability] = [
        vulnerability(one.model, (one.task.x_test, one.task.y_test), LEVELS, (0.0, 1.0)) for one in trained
    ]
    penalty = _per_pair(pairs, runs, [one.penalty for one in attacked])
    noise = _per_pair(pairs, runs, [one.noise_loss - one.clean_loss for one in attacked])
    sharp = _per_pair(pairs, runs, [label_sharpness(one.task.x, one.task.y).sharpness for one in trained])
    clean = _per_pair(pairs, runs, [one.clean_loss for one in attacked])

    def plot(axes: Axes) -> None:
        axes.plot(sharp, penalty, "o", color="C0", markersize=4, label="worst direction")
        axes.plot(sharp, noise, "x", color="C7", markersize=4, label="random signs (control)")
        axes.set(xlabel="label sharpness of the training samples", ylabel="rise of the test loss")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        "attack", "Pairs of classes with sharper labels make networks that are easier to attack; measured is the rank correlation over "
        "pairs of label sharpness and the rise of the test loss by one step of the sign of its gradient.",
        rank_correlation(sharp, penalty), Bar(">=", 0.5), rank_correlation(sharp, noise),
        "the same for random signs of the same size",
        note=common + f"Step 2/255. Sharpness {sharp.min():.2f} to {sharp.max():.2f}; rise {penalty.min():.2g} to {penalty.max():.2g}, "
        f"of random signs {noise.min():.2g} to {noise.max():.2g}. Sharpness and clean loss correlate by "
        f"{rank_correlation(sharp, clean):.2f}, clean loss and rise by {rank_correlation(clean, penalty):.2f}.",
        plot=plot,
    )  # fmt: skip


def _profile(model: nn.Module, x: Tensor) -> np.ndarray:
    """``(estimator, layer)``: maximum likelihood and TwoNN of the data and of every hidden layer."""
    layers = [x[:MOST_MEASURED], *(layer[:MOST_MEASURED] for layer in hidden(model, x))]
    return np.array(
        [[estimate(layer, n_boot=1).value for layer in layers] for estimate in (mle_dimension, twonn_dimension)]
    )


def _layers_claims(
    pairs: Pairs, runs: Sequence[tuple[int, int]], trained: Sequence[Trained], common: str
) -> Iterator[Claim]:
    """One estimator for data and layers, so that its bias is the same on both sides."""
    first = [i for i, (_, s) in enumerate(runs) if s == runs[0][1]]
    after, before = (
        np.array([_profile(getattr(trained[i], which), trained[i].task.x) for i in first])
        for which in ("model", "fresh")
    )

    def share(profiles: np.ndarray, estimator: int) -> float:
        return float((np.diff(profiles[:, estimator], axis=1) < 0).all(1).mean())

    def below(profiles: np.ndarray, estimator: int) -> float:
        return float((profiles[:, estimator, -1] < profiles[:, estimator, 0]).mean())

    def plot(axes: Axes) -> None:
        for profiles, colour, label in ((after, "C0", "trained"), (before, "C7", "untrained (control)")):
            depth = np.arange(profiles.shape[2])
            axes.plot(depth, profiles[:, 0].T, color=colour, alpha=0.15, linewidth=1)
            axes.plot(depth, profiles[:, 0].mean(0), "o-", color=colour, label=label)
            axes.plot(depth, profiles[:, 1].mean(0), "s--", color=colour, markersize=3, label=f"{label}, TwoNN")
        axes.set(xlabel="hidden layer (0: the data)", ylabel="intrinsic dimension", xticks=range(after.shape[2]))
        axes.set_ylim(top=1.25 * float(max(after.max(), before.max())))
        axes.legend(frameon=False, fontsize="x-small", loc="upper left", ncol=2)

    def means(profiles: np.ndarray) -> str:
        return "; ".join(", ".join(f"{value:.2f}" for value in row) for row in profiles.mean(0))

    mixed = float((after[:, 1, -1] < after[:, 0, 0]).mean())
    note = (
        common
        + f"Training samples, maximum likelihood; means from data to last layer: {means(after)} (then TwoNN); untrained: "
        f"{means(before)}. By TwoNN the last layer is below the data in {below(after, 1):.2f} of pairs, and falls throughout in "
        f"{share(after, 1):.2f}; layers by TwoNN against data by maximum likelihood, as published: {mixed:.2f}."
    )
    yield Claim(
        "layers-last", "The last hidden layer has a lower dimension than the data; measured is the share of pairs.",
        below(after, 0), Bar(">=", 0.9), below(before, 0), "the same of untrained networks", note=note, plot=plot,
    )  # fmt: skip
    yield Claim(
        "layers-depth", "The dimension falls from the data to the first hidden layer and with every layer after it; measured is the "
        "share of pairs.",
        share(after, 0), Bar(">=", 0.9), share(before, 0), "the same of untrained networks", note=note, plot=plot,
    )  # fmt: skip
