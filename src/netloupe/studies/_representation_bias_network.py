"""Perceptrons that must report two independent features, many trained as one batch, and what is measured on each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.batches import Batch
from netloupe.core.errors import InputError
from netloupe.core.training import train
from netloupe.data.abstract_features import binary_features
from netloupe.lenses.control.steering import FlipCurve, flip_curve
from netloupe.lenses.information.variance import MATCHED, variance_explained


@dataclass(frozen=True)
class Run:
    """One network: its features, its seed (weights and data), and how its training favours one of them.

    ``first``: the feature whose loss alone counts in the first half of training. ``prevalence``: share of training
    samples that carry each feature's label; 0 is a feature that is never trained.
    """

    kinds: tuple[str, ...]
    seed: int
    first: int | None = None
    prevalence: tuple[float, ...] = (1.0, 1.0)
    dropout: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How all networks of a stack are trained. ``slope``: of the leaky ReLU for negative values."""

    widths: tuple[int, ...]
    slope: float
    optimiser: Literal["adam", "sgd"]
    rate: float
    steps: int
    n_train: int = 8192
    n_test: int = 4096
    batch_size: int = 128


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network on its test samples. ``representation``: the last hidden layer, after its activation.

    ``halfway``: the same after half of the steps (runs with ``first``), ``looks``: (step, representation) during training.
    """

    run: Run
    representation: Float[Tensor, "sample unit"]
    values: Int[np.ndarray, "sample feature"]
    head: Callable[[Tensor], Tensor]
    loss: tuple[float, ...]
    halfway: Tensor | None = None
    looks: tuple[tuple[int, Tensor], ...] = ()

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Held-out share of variance of each feature."""
        return self.shares_of(self.representation)

    def shares_of(self, representation: Tensor, total: float | None = None) -> tuple[float, ...]:
        """The same for another representation of the test samples."""
        return tuple(variance_explained(representation, column, total=total) for column in self.values.T)

    def accuracies(self, representation: Tensor | None = None) -> tuple[float, ...]:
        """Share of test samples whose output is right, feature by feature."""
        said = self.head(self.representation if representation is None else representation) > 0
        return tuple((said.numpy() == self.values.astype(bool)).mean(0).tolist())

    @property
    def matched(self) -> bool:
        """Whether every trained feature is right in 99 % of test samples."""
        return all(right >= MATCHED for right, share in zip(self.accuracies(), self.run.prevalence) if share > 0)

    @property
    def gap(self) -> float:
        """Share of the first feature less that of the second."""
        return self.shares[0] - self.shares[1]

    @property
    def ratio(self) -> float:
        """Share of the first feature over that of the second; infinite where the second has none."""
        return self.shares[0] / self.shares[1] if self.shares[1] > 0 else math.inf

    def projected(self, basis: Float[Tensor, "unit direction"]) -> tuple[float, ...]:
        """Accuracies with the representation reduced to a few orthonormal directions around its mean."""
        mean = self.representation.mean(0)
        return self.accuracies((self.representation - mean) @ basis @ basis.T + mean)

    def components(self, k: int) -> Float[Tensor, "unit direction"]:
        """The ``k`` principal directions."""
        centred = (self.representation - self.representation.mean(0)).double()
        return torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -k:].float()

    def flips(self, feature: int) -> FlipCurve:
        """Turning a feature on by its mean difference."""
        return flip_curve(self.representation, self.values, self.head, feature)


class Stack(nn.Module):
    """As many perceptrons as runs, called with sample numbers ``(sample, run)``; logits ``(run, sample, feature)``.

    Weights and biases start uniform in ``+-1/sqrt(fan_in)``, by the run's seed alone.
    """

    def __init__(self, runs: Sequence[Run], recipe: Recipe, inputs: Float[Tensor, "run sample width"]) -> None:
        super().__init__()
        self.slope = recipe.slope
        drawn: list[list[Tensor]] = []
        for run in runs:
            generator = torch.Generator().manual_seed(run.seed)
            layers: list[Tensor] = []
            for fan_in, fan_out in pairwise((inputs.shape[-1], *recipe.widths, len(run.kinds))):
                for shape in ((fan_in, fan_out), (1, fan_out)):
                    layers.append((2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(fan_in))
            drawn.append(layers)
        self.parts = nn.ParameterList([torch.stack(layer) for layer in zip(*drawn)])
        self.register_buffer("inputs", inputs)
        self.register_buffer("dropout", torch.tensor([run.dropout for run in runs])[:, None, None])
        self.register_buffer("rows", torch.arange(len(runs))[:, None])
        self.drops = any(run.dropout for run in runs)

    def forward(self, chosen: Int[Tensor, "sample run"]) -> Float[Tensor, "run sample feature"]:
        """Logits of the chosen samples."""
        x = self.hidden(self.get_buffer("inputs")[self.get_buffer("rows"), chosen.T])
        return torch.baddbmm(self.parts[-1], x, self.parts[-2])

    def hidden(self, x: Float[Tensor, "run sample width"]) -> Float[Tensor, "run sample unit"]:
        """The last hidden layer, after its activation (and dropout, in training)."""
        for weight, bias in zip(list(self.parts)[:-2:2], list(self.parts)[1:-2:2]):
            x = F.leaky_relu(torch.baddbmm(bias, x, weight), self.slope)
            if self.drops and self.training:
                rate = self.get_buffer("dropout")
                x = x * (torch.rand_like(x) >= rate) / (1 - rate)
        return x


def train_runs(runs: Sequence[Run], recipe: Recipe, seed: int = 0, looks: int = 0) -> list[Trained]:
    """Trains all runs at once by binary cross-entropy summed over features, with Adam, or SGD with momentum 0.9.

    ``looks``: how often the first run's representation is kept during training. Runs of equal seed and kinds have the
    same samples. Raises InputError where prevalences do not fit the features.
    """
    if any(len(run.prevalence) != len(run.kinds) or len(run.kinds) != len(runs[0].kinds) for run in runs):
        raise InputError("every run needs as many prevalences as features, and all runs of a stack as many features")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sets = [[binary_features(n, run.kinds, seed=2 * run.seed + part) for run in runs]
            for part, n in enumerate((recipe.n_train, recipe.n_test))]  # fmt: skip
    x, y = (torch.from_numpy(np.stack([drawn[i] for drawn in sets[0]])) for i in (0, 1))
    tests = torch.from_numpy(np.stack([drawn[0] for drawn in sets[1]])).to(device)
    generator = torch.Generator().manual_seed(seed)
    prevalence = torch.tensor([run.prevalence for run in runs])[:, None]
    labelled = (torch.rand(y.shape, generator=generator) < prevalence).float().to(device)
    staged = torch.tensor(
        [[1.0 if run.first in (None, j) else 0.0 for j in range(y.shape[2])] for run in runs], device=device
    )[:, None]
    stack, y = Stack(runs, recipe, x).to(device), y.float().to(device)
    if recipe.optimiser == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(stack.parameters(), recipe.rate, fused=True)
    else:
        optimizer = torch.optim.SGD(stack.parameters(), recipe.rate, momentum=0.9, fused=True)
    rows, kept = stack.get_buffer("rows"), []

    def represent() -> Tensor:
        stack.eval()
        with torch.no_grad():
            return stack.hidden(tests).cpu()

    def keep(_: nn.Module, step: int) -> dict[str, float]:
        kept.append((step, represent()[0].clone()))  # not a view, which would keep all runs in memory
        return {}

    def part(steps: int, counts: Tensor, part_seed: int) -> None:
        def loss(logits: Tensor, batch: Batch) -> Tensor:
            chosen = batch.args[0].T
            values = F.binary_cross_entropy_with_logits(logits, y[rows, chosen], reduction="none")
            return (values * labelled[rows, chosen] * counts).mean(1).sum()

        def feed(_: int, draw: torch.Generator) -> tuple[Tensor]:
            return (torch.randint(recipe.n_train, (recipe.batch_size, len(runs)), generator=draw),)

        train(stack, feed, steps=steps, optimizer=optimizer, loss=loss, seed=part_seed,
              watch=keep if looks else None, watch_every=max(1, steps // max(looks, 1)))  # fmt: skip

    halfway = None
    if bool((staged == 0).any()):
        part(recipe.steps // 2, staged, 2 * seed)
        halfway = represent()
        part(recipe.steps - recipe.steps // 2, torch.ones_like(staged), 2 * seed + 1)
    else:
        part(recipe.steps, torch.ones_like(staged), 2 * seed)
    return _read(runs, stack, represent(), halfway, sets[1], y, recipe, tuple(kept))


def untrained(runs: Sequence[Run], recipe: Recipe) -> list[Trained]:
    """The same networks before training."""
    tests = [binary_features(recipe.n_test, run.kinds, seed=2 * run.seed + 1) for run in runs]
    stack = Stack(runs, recipe, torch.from_numpy(np.stack([drawn[0] for drawn in tests])))
    with torch.no_grad():
        found = stack.hidden(stack.get_buffer("inputs"))
    return [Trained(run, phi, drawn[1], lambda x: x, ()) for run, phi, drawn in zip(runs, found, tests)]


def _read(
    runs: Sequence[Run], stack: Stack, found: Tensor, halfway: Tensor | None, tests: Sequence, y: Tensor, recipe: Recipe,
    looks: tuple[tuple[int, Tensor], ...],
) -> list[Trained]:  # fmt: skip
    weight, bias = (part.detach().cpu().clone() for part in list(stack.parts)[-2:])
    with torch.no_grad():
        every = torch.arange(min(recipe.n_train, 2048), device=y.device)[:, None].expand(-1, len(runs))
        losses = F.binary_cross_entropy_with_logits(stack(every), y[:, : len(every)], reduction="none").mean(1).tolist()

    def head(index: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x @ weight[index] + bias[index]

    return [
        Trained(
            run, found[i], tests[i][1], head(i), tuple(losses[i]), None if halfway is None else halfway[i], looks if i == 0 else ()
        )
        for i, run in enumerate(runs)
    ]  # fmt: skip
