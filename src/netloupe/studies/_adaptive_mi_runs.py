"""The networks of the adaptive-mi study: trained as a stack, and the information of their layers over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.training import train
from netloupe.data.szt import ib_task
from netloupe.lenses.information.estimators import akde_mi, binned_mi, ebab_edges, fixed_edges, range_edges
from netloupe.lenses.information.plane import log_spaced
from netloupe.models.stacked import Indexed, StackedAdam, StackedMLP, stacked_loss

WIDTHS = (12, 10, 7, 5, 4, 3, 2)
HIDDEN = (1, 2, 3, 4, 5)
"""numbers of the hidden layers; the softmax is layer 6"""
BATCH = 256
POOL = 0.8
"""share of the patterns that may be trained on; the others are the test of every run"""
RATE = 2e-3
PENALTY, TINY_PENALTY = 0.015, 1e-6
S0S = (1e-4, 1e-3, 1e-2)
HUGE_S0 = 10.0


@dataclass(frozen=True)
class Copy:
    """One network of a stack: how it starts, learns, and on what."""

    activation: str
    seed: int
    rate: float = RATE
    penalty: float = 0.0
    share: float = POOL
    shuffled: bool = False


@dataclass(frozen=True)
class Settings:
    """How large a preset is."""

    epochs: int
    looks: int
    """steps at which the layers are measured, spaced evenly in the logarithm"""
    n_tanh: int
    n_relu: int
    n_pairs: int
    n_claimed: int
    """tanh runs of the first and the last claim"""
    rates: tuple[float, ...]
    shares: tuple[float, ...]
    n_smooth: int
    kernel_looks: int
    kernel_thin: int = 1
    """the kernel estimator sees every so many-th pattern"""
    n_permutations: int = 2000
    rate: float = RATE
    smooth: tuple[str, ...] = ("elu", "swish", "centred softplus")
    fashion: bool = False

    @property
    def steps(self) -> int:
        """Optimiser steps of every run, however small its share of the data."""
        return self.epochs * (int(POOL * 4096) // BATCH)


@dataclass
class Trained:
    """A trained copy: layers at each look, from its weights, and what was measured of them."""

    copy: Copy
    steps: list[int]
    accuracy: float
    weights: list[list[Tensor]]
    inputs: Tensor
    labels: np.ndarray
    widths: Sequence[int]
    measured: dict[str, np.ndarray] = field(default_factory=dict)

    def layers(self, look: int) -> list[np.ndarray]:
        """Five hidden layers and the softmax on all inputs, ``(sample, unit)`` float32."""
        stack = StackedMLP(self.widths, self.copy.activation, [0])
        with torch.no_grad():
            for parameter, value in zip([*stack.weights, *stack.biases, *stack.slopes], self.weights[look]):
                parameter.copy_(value[None])
            found = stack.layers(self.inputs)
        return [*(layer[0].numpy() for layer in found[:-1]), found[-1][0].softmax(1).numpy()]

    def over_time(self, name: str, measure: Callable[[int, list[np.ndarray]], list[float]]) -> np.ndarray:
        """``(look, layer)`` of a number, computed once."""
        if name not in self.measured:
            self.measured[name] = np.array([measure(look, self.layers(look)) for look in range(len(self.steps))])
        return self.measured[name]

    @property
    def ebab(self) -> Float[np.ndarray, "look layer"]:
        """``I(X;T)`` in bits with adaptive bins."""
        return self.over_time("ebab", lambda _, layers: [self._binned(t, ebab_edges(t)) for t in layers])

    @property
    def fixed(self) -> Float[np.ndarray, "look layer"]:
        """``I(X;T)`` with 30 edges from -1 to 1."""
        return self.over_time("fixed", lambda _, layers: [self._binned(t, fixed_edges(-1, 1)) for t in layers])

    @property
    def global_range(self) -> Float[np.ndarray, "look layer"]:
        """``I(X;T)`` of the hidden layers with 30 edges from 0 to the largest activation of all of them at any look."""
        maxima = self.over_time("maxima", lambda _, layers: [float(t.max()) for t in layers[:-1]])
        edges = range_edges(maxima, "global")
        return self.over_time(
            "global", lambda look, layers: [self._binned(t, edges[look, i]) for i, t in enumerate(layers[:-1])]
        )

    def kernel(self, s0: float, looks: Sequence[int], thin: int = 1) -> Float[np.ndarray, "look layer"]:
        """``I(X;T)`` with Gaussian noise of variance ``s0 max|T|``, at some looks and on every ``thin``-th pattern."""
        labels = self.labels[::thin]
        return np.array([[akde_mi(t[::thin], labels, s0).i_xt for t in self.layers(look)] for look in looks])

    @property
    def drop(self) -> Float[np.ndarray, " layer"]:
        """``I(X;T)`` before training less that after it."""
        return self.ebab[0] - self.ebab[-1]

    def _binned(self, t: np.ndarray, edges: np.ndarray) -> float:
        return binned_mi(t, self.labels, edges).i_xt


class Feed:
    """Batches of sample numbers ``(sample, copy)``: every copy goes through its own data in its own order."""

    def __init__(self, n_samples: int, copies: Sequence[Copy], batch: int = BATCH) -> None:
        self.batch = batch
        self.seeds = [copy.seed for copy in copies]
        orders = [torch.randperm(n_samples, generator=_generator(copy.seed, 0)) for copy in copies]
        n_pool = int(POOL * n_samples)
        self.tests = [order[n_pool:] for order in orders]
        self.own = [order[: max(batch, int(copy.share * n_samples))] for copy, order in zip(copies, orders)]
        self._epoch: list[tuple[int, Tensor]] = [(-1, order) for order in orders]

    def __call__(self, step: int, _generator_of_step: torch.Generator) -> tuple[Tensor]:
        columns = []
        for index, (seed, own) in enumerate(zip(self.seeds, self.own)):
            epoch, place = divmod(step, len(own) // self.batch)
            if self._epoch[index][0] != epoch:
                order = torch.randperm(len(own), generator=_generator(seed, epoch + 1))
                self._epoch[index] = (epoch, own[order])
            columns.append(self._epoch[index][1][place * self.batch : (place + 1) * self.batch])
        return (torch.stack(columns, 1),)


def train_stack(
    copies: Sequence[Copy],
    inputs: Tensor,
    labels: Tensor,
    steps: int,
    looks: int,
    widths: Sequence[int] = WIDTHS,
    seen: Tensor | None = None,
    seen_labels: Tensor | None = None,
) -> list[Trained]:
    """Trains all copies at once. ``seen`` are the samples that layers are measured on, by default all inputs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stack = StackedMLP(widths, [copy.activation for copy in copies], [copy.seed for copy in copies])
    network = Indexed(stack, inputs).to(device)
    own = torch.stack([_labels_of(copy, labels) for copy in copies]).to(device)
    penalties = torch.tensor([copy.penalty for copy in copies], device=device)
    feed, at, kept = Feed(len(inputs), copies), log_spaced(steps, looks), []

    def keep(model: nn.Module, step: int) -> dict[str, float]:
        if step in at:
            kept.append([p.detach().cpu().clone() for p in [*stack.weights, *stack.biases, *stack.slopes]])
        return {}

    train(
        network,
        feed,
        steps=steps,
        optimizer=StackedAdam(network.parameters(), [copy.rate for copy in copies]),
        loss=stacked_loss(stack, own, penalties if bool(penalties.any()) else None),
        watch=keep,
        watch_every=1,
    )
    with torch.no_grad():
        chosen = torch.stack(feed.tests, 1).to(device)
        hits = (network(chosen).argmax(-1) == own.gather(1, chosen.T)).float().mean(1).tolist()
    seen, seen_labels = (inputs, labels) if seen is None or seen_labels is None else (seen, seen_labels)
    return [
        Trained(copy, at, hit, [[value[i] for value in look] for look in kept], seen, seen_labels.numpy(), widths)
        for i, (copy, hit) in enumerate(zip(copies, hits))
    ]


def plain(activation: str, seeds: Sequence[int], **options: float) -> list[Copy]:
    """One copy for each seed."""
    return [replace(Copy(activation, seed), **options) for seed in seeds]


@dataclass
class Runs:
    """Every network of the study."""

    tanh: list[Trained]
    frozen: Trained
    shuffled: Trained
    relu: list[Trained]
    penalised: list[Trained]
    barely: list[Trained]
    varied: list[Trained]
    smooth: dict[str, list[Trained]]


def all_runs(settings: Settings, seed: int) -> Runs:
    """Trains them, in two stacks: saturating, and rectified or smooth."""
    inputs, labels = ib_task("quadratic", seed)
    first = 1000 * seed
    grid = [(rate, share) for rate in settings.rates for share in settings.shares]
    seeds = range(first, first + max(settings.n_tanh, settings.n_relu))

    def varied(activation: str, offset: int) -> list[Copy]:
        return [Copy(activation, first + offset + i, rate, 0.0, share) for i, (rate, share) in enumerate(grid)]

    rate = settings.rate
    still = [Copy("tanh", first, 0.0), Copy("tanh", first, rate, shuffled=True)]
    saturating = [*plain("tanh", seeds[: settings.n_tanh], rate=rate), *still, *varied("tanh", 100)]
    pairs = seeds[: settings.n_pairs]
    rectified = [
        *plain("relu", seeds[: settings.n_relu], rate=rate),
        *plain("relu", pairs, rate=rate, penalty=PENALTY),
        *plain("relu", pairs, rate=rate, penalty=TINY_PENALTY),
        *varied("relu", 200),
        *(copy for name in settings.smooth for copy in plain(name, seeds[: settings.n_smooth], rate=rate)),
    ]
    one, two = (
        train_stack(copies, inputs, labels, settings.steps, settings.looks) for copies in (saturating, rectified)
    )
    n, m, k, v = settings.n_tanh, settings.n_relu, settings.n_pairs, len(grid)
    rest = two[m + 2 * k + v :]
    return Runs(
        one[:n], one[n], one[n + 1], two[:m], two[m : m + k], two[m + k : m + 2 * k],
        [*one[n + 2 :], *two[m + 2 * k : m + 2 * k + v]],
        {name: rest[i * settings.n_smooth : (i + 1) * settings.n_smooth] for i, name in enumerate(settings.smooth)},
    )  # fmt: skip


def _labels_of(copy: Copy, labels: Tensor) -> Tensor:
    return labels[torch.randperm(len(labels), generator=_generator(copy.seed, -1))] if copy.shuffled else labels


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch + 7)
