"""Perceptrons for the feature-merging study: planted duplicates, and nets trained with weight decay at several widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.nulls import untrained
from netloupe.core.training import accuracy, train
from netloupe.core.units import pruned, selected, tensors_of, unit_groups, with_tensors
from netloupe.data.digits import digits_split
from netloupe.data.fashion_mnist import fashion_mnist
from netloupe.lenses.similarity.feature_merging import MergeResult
from netloupe.models.small import mlp

DECAY, RATE = 1e-3, 1e-3
SPLIT = 0.1  # copies share their outgoing weights half and half, give or take so much


@dataclass(frozen=True)
class Setting:
    """A preset. ``width``: of the net of claims 2, 3 and 6 (two layers); ``widths``: those compared; ``depth``: layers of claim 5."""

    data: str
    width: int
    widths: tuple[int, ...]
    depth: int
    n_seeds: int
    steps: int
    betas: tuple[float, ...]
    n_test: int | None = None


@dataclass(frozen=True)
class Data:
    """Training and test samples, flat or not, as the perceptrons take both."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def example(self) -> Tensor:
        """One sample, to trace with."""
        return self.test[0][:1]

    def accuracy(self, model: nn.Module) -> float:
        """Share of test samples that are right."""
        return accuracy(model, *self.test)


@dataclass(frozen=True)
class Nets:
    """Trained networks and untrained ones of the same shape, by seed."""

    trained: list[nn.Module]
    untrained: list[nn.Module]
    accuracies: list[float] = field(default_factory=list)


def load(setting: Setting) -> Data:
    """Digits, or Fashion-MNIST from where it lies."""
    if setting.data == "digits":
        seen, test = digits_split()
        return Data(seen, test)
    return Data(fashion_mnist("train"), fashion_mnist("test"))


def train_nets(setting: Setting, data: Data, widths: Sequence[int], seeds: Sequence[int]) -> Nets:
    """Perceptrons with these hidden layers by Adam with weight decay, one a seed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adam = partial(torch.optim.Adam, lr=RATE, weight_decay=DECAY)
    nets, before, right = [], [], []
    for seed in seeds:
        model = mlp(data.train[0][0].numel(), widths, 10, random_state=seed).to(device)
        before.append(untrained(model, seed + 500))
        train(model, data.train, steps=setting.steps, batch_size=64, optimizer=adam, seed=seed)
        nets.append(model.eval())
        right.append(data.accuracy(model))
    return Nets(nets, before, right)


def activations(model: nn.Module, inputs: Tensor, groups: Sequence[str]) -> dict[str, Tensor]:
    """What the units of each group do, after their activation function."""
    sites = {name: name.replace("fc", "act") for name in groups}
    parts: dict[str, list[Tensor]] = {name: [] for name in groups}
    for batch in capture(model, inputs, list(sites.values()), batch_size=1024):
        for name, site in sites.items():
            parts[name].append(batch.activations[site].cpu())
    return {name: torch.cat(each) for name, each in parts.items()}


def without_smallest(model: nn.Module, data: Data, result: MergeResult, random_state: int | None = None) -> nn.Module:
    """As many units a layer fewer as ``result`` merged: those of smallest ``|in| |out|``, or random ones."""
    found = model
    for name, n in result.original.items():
        group = next(each for each in unit_groups(found, data.example) if each.name == name)
        tensors = tensors_of(found)
        sizes = [
            torch.cat([a.rows(tensors[a.parameter], n) for a in group.weights(tensors) if a.role == role], 1).norm(
                dim=1
            )
            for role in ("out", "in")
        ]
        score = sizes[0] * sizes[1]
        if random_state is not None:
            score = torch.rand(n, generator=torch.Generator().manual_seed(random_state + n)).to(score)
        kept = score.argsort(descending=True)[: result.complexity[name]].sort().values
        found = pruned(found, group, kept)
    return found


def with_copies(
    model: nn.Module, example: Tensor, share: float, flip: bool, random_state: int
) -> tuple[nn.Module, dict[str, int]]:
    """A share of the units of every group twice, their outgoing weights split about evenly between the two.

    ``flip``: the copies' incoming weights have the other sign, so that they are another unit. Returns the network and the widths before.
    """
    draw = torch.Generator().manual_seed(random_state)
    groups = unit_groups(model, example)
    tensors = tensors_of(model)
    for group in groups:
        chosen = torch.randperm(group.n, generator=draw)[: max(1, int(share * group.n))]
        tensors = selected(tensors, group, torch.cat([torch.arange(group.n), chosen]))
        part = 0.5 + SPLIT * (torch.rand(len(chosen), generator=draw) - 0.5)
        wide = group.n + len(chosen)
        for axis in group.axes:
            rows = axis.rows(tensors[axis.parameter], wide).clone()
            if axis.role == "in":
                rows[chosen] *= part[:, None].to(rows)
                rows[group.n :] *= 1 - part[:, None].to(rows)
            elif flip and axis.role == "out":
                rows[group.n :] *= -1
            tensors[axis.parameter] = axis.put(rows, tensors[axis.parameter], wide)
    return with_tensors(model, tensors), {group.name: group.n for group in groups}
