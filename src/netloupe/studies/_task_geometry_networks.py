"""The task-geometry study's networks: shallow ones on structured tasks, perceptrons on images, and what is measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netloupe.core.training import train
from netloupe.data.structured_tasks import StructuredTask
from netloupe.lenses.dynamics.gradient_field import Specialisation, specialisation
from netloupe.lenses.geometry.abstraction import ccgp, parallelism_score, shattering_dimension
from netloupe.lenses.geometry.alignment import feature_alignment, kernel_alignment
from netloupe.models.shallow import ShallowNet, train_stack
from netloupe.models.stacked import Indexed, StackedAdam, StackedMLP, stacked_loss
from netloupe.nn.activations import WithDerivative

N_TEST = 400


@dataclass(frozen=True)
class Recipe:
    """How shallow networks are trained: plain gradient descent, noise 0.3, readout frozen."""

    width: int = 128
    dim: int = 120
    steps: int = 3000
    n_train: int = 5000
    batch: int = 200
    lr: float = 0.3


@dataclass(frozen=True)
class Trained:
    """A network with its task, and its hidden weights before training and at some steps on the way."""

    task: StructuredTask
    net: ShallowNet
    initial: Tensor
    initial_bias: Tensor
    path: Tensor

    def hidden(self, inputs: np.ndarray) -> np.ndarray:
        """Hidden layer, float64."""
        with torch.no_grad():
            x = torch.from_numpy(inputs).float().to(self.net.hidden.weight.device)
            return self.net.act(self.net.hidden(x)).cpu().double().numpy()

    @property
    def numbers(self) -> Geometry:
        """Of the noise-free means."""
        return measured(self.hidden(self.task.means), self.task)

    @property
    def accuracy(self) -> float:
        """On new samples, averaged over targets."""
        _, inputs, labels = self.task.sample(N_TEST, seed=1)
        with torch.no_grad():
            said = self.net(torch.from_numpy(inputs).float().to(self.net.hidden.weight.device)).cpu().numpy()
        return float(((said > 0) == (labels > 0)).mean())

    @property
    def untrained_decoding(self) -> float:
        """Held-out accuracy on dichotomies that were not trained, from noisy samples."""
        condition, inputs, _ = self.task.sample(N_TEST, seed=2)
        return shattering_dimension(self.hidden(inputs), condition, trained=self.task.labels.T).mean_untrained

    def weights(self, trained: bool = True) -> Specialisation:
        """Where the hidden weights lie, after training or before."""
        weight = self.net.hidden.weight if trained else self.initial
        bias = self.net.hidden.bias if trained else self.initial_bias
        return specialisation(weight.double(), self.task.means, self.task.labels[:, 0], bias.double(), self.net.act)


@dataclass(frozen=True)
class Geometry:
    """Centred kernel alignments with targets and inputs, parallelism and CCGP of the first target."""

    target: float
    input: float
    parallelism: float
    ccgp: float


def measured(hidden: np.ndarray, task: StructuredTask) -> Geometry:
    """All four from the means of the conditions."""
    kernel, side = hidden @ hidden.T, task.labels[:, 0]
    return Geometry(
        kernel_alignment(kernel, task.labels @ task.labels.T),
        kernel_alignment(kernel, task.means @ task.means.T),
        parallelism_score(hidden, side),
        ccgp(hidden, np.arange(len(side)), side),
    )


def train_shallow(
    tasks: Sequence[StructuredTask],
    activation: str | WithDerivative,
    recipe: Recipe,
    shuffled: Sequence[bool] = (),
    freeze_output: bool = True,
    looks: int = 0,
) -> list[Trained]:
    """One network for each task, all as one stack; ``shuffled`` marks those whose labels are dealt out at random to samples."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs, labels = [], []
    for index, task in enumerate(tasks):
        _, x, y = task.sample(recipe.n_train)
        if shuffled and shuffled[index]:
            y = y[np.random.default_rng((task.seed, 9)).permutation(len(y))]
        inputs.append(torch.from_numpy(x).float())
        labels.append(torch.from_numpy(y).float())
    x, y = torch.stack(inputs).to(device), torch.stack(labels).to(device)
    nets = [
        ShallowNet(task.means.shape[1], recipe.width, y.shape[2], activation, freeze_output, random_state=task.seed).to(
            device
        )
        for task in tasks
    ]
    initial = [(net.hidden.weight.detach().clone(), net.hidden.bias.detach().clone()) for net in nets]
    paths: list[Tensor] = []
    order = torch.Generator().manual_seed(tasks[0].seed)
    batches: list[Tensor] = []

    def draw(step: int) -> tuple[Tensor, Tensor]:
        if not batches:
            batches.extend(torch.randperm(recipe.n_train, generator=order).split(recipe.batch))
        chosen = batches.pop().to(device)
        return x[:, chosen], y[:, chosen]

    def watch(step: int, stack: Any) -> None:
        paths.append(stack.weight.detach().transpose(1, 2).cpu().clone())

    every = max(1, recipe.steps // looks) if looks else 0
    train_stack(nets, draw, recipe.steps, recipe.lr, watch=watch if looks else None, watch_every=every)
    path = torch.stack(paths) if paths else torch.zeros(0, len(nets), recipe.width, recipe.dim)
    return [
        Trained(task, net, weight, bias, path[:, index])
        for index, (task, net, (weight, bias)) in enumerate(zip(tasks, nets, initial))
    ]


@dataclass(frozen=True)
class ImageRecipe:
    """Perceptrons on images: widths of the hidden layers, Adam at 1e-3."""

    hidden: tuple[int, ...] = (128, 128)
    steps: int = 600
    batch: int = 64
    n_train: int = 10_000
    n_test: int = 1000


@dataclass(frozen=True)
class Depth:
    """``target`` and ``input`` alignment on new images, ``(activation, seed, hidden layer)`` with tanh first; ``accuracy``
    ``(activation, seed)``."""

    target: np.ndarray
    input: np.ndarray
    accuracy: np.ndarray


def image_depth(
    data: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
    recipe: ImageRecipe,
    n_seeds: int,
    seed: int,
    trained: bool = True,
) -> Depth:
    """Tanh and ReLU perceptrons of one size, side by side, after training or before."""
    (inputs, labels), (new, new_labels) = data
    inputs, labels, new, new_labels = (
        inputs[: recipe.n_train],
        labels[: recipe.n_train],
        new[: recipe.n_test],
        new_labels[: recipe.n_test],
    )
    names = ["tanh"] * n_seeds + ["relu"] * n_seeds
    seeds = list(range(seed, seed + n_seeds)) * 2
    classes = int(labels.max()) + 1
    stack = StackedMLP((inputs.shape[1], *recipe.hidden, classes), names, seeds).to(inputs.device)
    if trained:
        draws = [torch.Generator().manual_seed(1000 + each) for each in seeds]

        def batch(step: int, generator: torch.Generator) -> Tensor:
            chosen = [torch.randint(len(inputs), (recipe.batch,), generator=draw) for draw in draws]
            return torch.stack(chosen, 1).to(inputs.device)

        wanted = labels.expand(len(seeds), -1)
        train(
            Indexed(stack, inputs), batch, steps=recipe.steps, loss=stacked_loss(stack, wanted),
            optimizer=StackedAdam(stack.parameters(), [1e-3] * len(seeds)), seed=seed,
        )  # fmt: skip
    with torch.no_grad():
        layers = [layer.cpu() for layer in stack.layers(new)]
    new, new_labels = new.cpu(), new_labels.cpu()
    accuracy = (layers[-1].argmax(2) == new_labels).double().mean(1).cpu().numpy()
    found = [[feature_alignment(copy, new_labels, new) for copy in layer] for layer in layers[:-1]]
    shape = (len(recipe.hidden), 2, n_seeds)
    target = np.array([[one.target for one in row] for row in found]).reshape(shape)
    kept = np.array([[one.input for one in row] for row in found], dtype=np.float64).reshape(shape)
    return Depth(np.moveaxis(target, 0, 2), np.moveaxis(kept, 0, 2), accuracy.reshape(2, n_seeds))
