"""The networks of the intrinsic-properties study: many two-class perceptrons, each with data of its own, trained as one stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.batches import Batch
from netloupe.core.training import train
from netloupe.models.small import mlp
from netloupe.models.stacked import StackedMLP

PENALTY = 1e-4
"""weight decay, as published"""


@dataclass(frozen=True)
class Recipe:
    """Perceptrons of ``widths`` trained by Adam at 0.001 for ``steps`` batches of 64, whatever the number of samples."""

    widths: tuple[int, ...] = (128, 128, 128)
    steps: int = 1500
    batch_size: int = 64
    rate: float = 1e-3


class Task(NamedTuple):
    """Two classes: training and test samples, flattened, and the seed of the network that learns them."""

    x: Float[Tensor, "sample unit"]
    y: Int[Tensor, " sample"]
    x_test: Float[Tensor, "sample unit"]
    y_test: Int[Tensor, " sample"]
    seed: int


@dataclass(frozen=True)
class Trained:
    """A task, its network, and the network's test loss (mean cross-entropy) and accuracies."""

    task: Task
    model: nn.Module
    fresh: nn.Module
    loss: float
    accuracy: float
    train_accuracy: float


def train_tasks(tasks: Sequence[Task], recipe: Recipe, seed: int = 0) -> list[Trained]:
    """A network for each task; every one takes as many steps, so that few samples are seen more often."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    widths = (tasks[0].x.shape[1], *recipe.widths, 2)
    stack = StackedMLP(widths, "relu", [task.seed for task in tasks]).to(device)
    start = [weight.detach().cpu().clone() for weight in stack.weights]
    sizes = torch.tensor([len(task.x) for task in tasks])
    x = torch.stack([_filled(task.x, int(sizes.max())) for task in tasks]).to(device)
    y = torch.stack([_filled(task.y, int(sizes.max())) for task in tasks]).to(device)
    rows = torch.arange(len(tasks), device=device)[:, None]

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = stack

        def forward(self, chosen: Tensor) -> Tensor:
            return self.stack(x[rows, chosen.T])

    def feed(_: int, draw: torch.Generator) -> tuple[Tensor]:
        return (
            (torch.rand(recipe.batch_size, len(tasks), generator=draw) * sizes).long().clamp(max=int(sizes.max()) - 1),
        )

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        target = y[rows, batch.args[0].T]
        value = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / recipe.batch_size
        return value + 0.5 * PENALTY * sum(weight.pow(2).sum() for weight in stack.weights)

    adam = torch.optim.Adam(stack.parameters(), recipe.rate, fused=True)
    train(Chosen(), feed, steps=recipe.steps, optimizer=adam, loss=loss, seed=seed)
    ends = [[part.detach().cpu() for part in parts] for parts in (stack.weights, stack.biases)]
    zeros = [torch.zeros_like(bias) for bias in ends[1]]
    return [
        _judged(task, _network(widths, ends[0], ends[1], i), _network(widths, start, zeros, i))
        for i, task in enumerate(tasks)
    ]


def _filled(values: Tensor, size: int) -> Tensor:
    return values[torch.arange(size) % len(values)]


def _network(widths: Sequence[int], weights: Sequence[Tensor], biases: Sequence[Tensor], copy: int) -> nn.Sequential:
    """One copy as a network of torch's own layers."""
    model = mlp(widths[0], widths[1:-1], widths[-1], random_state=0)
    linear = [module for module in model if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for layer, weight, bias in zip(linear, weights, biases):
            layer.weight.copy_(weight[copy].T)
            layer.bias.copy_(bias[copy, 0])
    return model.eval()


@torch.no_grad()
def _judged(task: Task, model: nn.Module, fresh: nn.Module) -> Trained:
    logits = model(task.x_test)
    return Trained(
        task, model, fresh, float(F.cross_entropy(logits.double(), task.y_test)),
        float((logits.argmax(1) == task.y_test).double().mean()),
        float((model(task.x).argmax(1) == task.y).double().mean()),
    )  # fmt: skip


@torch.no_grad()
def hidden(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Every hidden layer after its rectifier."""
    found, value = [], x
    assert isinstance(model, nn.Sequential)
    for module in model:
        value = module(value)
        if isinstance(module, nn.ReLU):
            found.append(value)
    return found
