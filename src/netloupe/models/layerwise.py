"""Training a perceptron one layer at a time, so that every layer can be looked at as a step of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from netloupe.core.errors import InputError
from netloupe.core.isolation import random_state as seeded
from netloupe.core.training import History, Loss, Schedule, train


@dataclass(frozen=True, eq=False)
class Stage:
    """The network after one more layer.

    ``depth`` counts hidden layers. ``network`` runs from the raw inputs to logits, with sites ``fc1, act1, ..., head``;
    all but its newest layer and head are frozen, and it shares the frozen layers with the stages before and after
    it. ``features`` ``(sample, unit)`` are the newest layer's, after its activation. ``history`` is None for a
    layer that was added without training.
    """

    depth: int
    network: nn.Sequential
    features: Float[Tensor, "sample unit"]
    history: History | None


def grow_layerwise(
    inputs: Float[Tensor, "sample ..."],
    labels: Int[Tensor, " sample"],
    widths: Sequence[int],
    *,
    steps: int,
    n_trained: int | None = None,
    batch_size: int = 64,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    loss: Loss | None = None,
    schedule: Schedule | Callable[[int], float] = "constant",
    head_bias: bool = True,
    activation: Callable[[], nn.Module] = nn.ReLU,
    random_state: int = 0,
) -> Iterator[Stage]:
    """Trains hidden layer 1 with a linear head, freezes it, adds layer 2 with a new head, and so on.

    A stage is yielded as soon as it is trained. Frozen layers are run once and not in every step, so a stage
    costs ``steps`` passes through one hidden layer whatever the depth. Method: arXiv 2210.16658, which asks
    whether every layer brings the features of a class closer together.

    Args:
        inputs: ``(sample, ...)``, flattened; the layers are made on their device.
        labels: ``(sample,)`` integers ``0..K-1``.
        widths: units of each hidden layer.
        steps: optimiser steps for each layer.
        n_trained: how many of the first layers are trained, all by default; the others stay as they were drawn, a
            control that adds depth alone.
        batch_size, loss, schedule: as in :func:`netloupe.core.training.train`.
        optimizer: made anew for each stage from the parameters of its layer and head; default Adam, 1e-3.
        head_bias: whether the heads have a bias.
        activation: what follows each hidden layer.
        random_state: seed of initial weights and of the order of samples; the global random state is left alone.

    Raises InputError for arrays that do not fit, no widths, or ``n_trained`` outside 0 to the number of layers.
    """
    n_trained = len(widths) if n_trained is None else n_trained
    classes = torch.as_tensor(labels)
    if classes.ndim != 1 or len(inputs) != len(classes) or len(classes) == 0 or classes.is_floating_point():
        raise InputError(
            f"inputs have shape {tuple(inputs.shape)} and labels {tuple(classes.shape)} of {classes.dtype}, but one "
            "whole-number label for each input is expected; give them in equal numbers."
        )
    if not widths or min(widths) < 1 or not 0 <= n_trained <= len(widths):
        raise InputError(
            f"widths are {tuple(widths)} and n_trained is {n_trained}, but at least one positive width and n_trained "
            f"from 0 to {len(widths)} are expected; change them."
        )
    fit = partial(train, steps=steps, batch_size=batch_size, optimizer=optimizer, loss=loss, schedule=schedule)
    return _stages(inputs.flatten(1), classes, tuple(widths), n_trained, fit, head_bias, activation, random_state)


def _stages(
    features: Tensor,
    labels: Tensor,
    widths: tuple[int, ...],
    n_trained: int,
    fit: Callable[..., History],
    head_bias: bool,
    activation: Callable[[], nn.Module],
    random_state: int,
) -> Iterator[Stage]:
    body: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    n_classes = int(labels.max()) + 1
    for depth, width in enumerate(widths, start=1):
        seed = random_state * 1_009 + depth
        with seeded(seed):
            layer = nn.Linear(features.shape[1], width).to(features.device)
            head = nn.Linear(width, n_classes, bias=head_bias).to(features.device)
        act, history = activation(), None
        if depth <= n_trained:
            history = fit(nn.Sequential(layer, act, head), (features, labels), seed=seed)
        with torch.no_grad():
            features = torch.cat([act(layer(part)) for part in features.split(4096)])
        body[f"fc{depth}"], body[f"act{depth}"] = layer, act
        yield Stage(depth, nn.Sequential(OrderedDict([*body.items(), ("head", head)])), features, history)
        layer.requires_grad_(False)
