"""The data of the tRSA study: distances at the layers of networks of several seeds, and of subjects with stretched manifolds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from netloupe.core.geotopology import geo_topological, geodesic, rank_minmax
from netloupe.core.training import train
from netloupe.data.manifolds import arc, distorted_subjects
from netloupe.lenses.geometry.identification import RepresentationIdentifier
from netloupe.lenses.geometry.rdm import rdm
from netloupe.models.stacked import Indexed, StackedAdam, StackedMLP, stacked_loss

Transform = Callable[[np.ndarray], np.ndarray]
RGTM = (0.05, 0.15)
TRANSFORMS: dict[str, Transform | None] = {
    "distances": None,
    "ranked": rank_minmax,
    "geo-topological": partial(geo_topological, lower=RGTM[0], upper=RGTM[1]),
    "geodesic": partial(geodesic, p=0.1, disconnected="max"),
}


@dataclass(frozen=True)
class Responses:
    """Condensed distances ``(response, pair)`` with the subject (a network's seed) and region (its layer, a shape) of each."""

    vectors: np.ndarray
    subject: np.ndarray
    region: np.ndarray

    def accuracy(self, transform: Transform | None = None) -> float:
        """Share identified, leaving one subject out at a time."""
        return RepresentationIdentifier(transform).fit(self.vectors, self.subject, self.region).score()

    def permuted(self, rng: np.random.Generator) -> Responses:
        """The regions of each subject in random order."""
        region = self.region.copy()
        for who in np.unique(self.subject):
            own = np.flatnonzero(self.subject == who)
            region[own] = rng.permutation(region[own])
        return Responses(self.vectors, self.subject, region)

    def noisy(self, level: float, rng: np.random.Generator) -> Responses:
        """Normal noise of ``level`` times the standard deviation of all distances on each of them, and no distance below 0."""
        noise = level * self.vectors.std() * rng.standard_normal(self.vectors.shape)
        return Responses(np.maximum(self.vectors + noise, 0), self.subject, self.region)

    def of(self, subjects: np.ndarray) -> Responses:
        """Some of the subjects."""
        kept = np.isin(self.subject, subjects)
        return Responses(self.vectors[kept], self.subject[kept], self.region[kept])


@dataclass(frozen=True)
class Networks:
    """Perceptrons on images: hidden layers, Adam at 1e-3."""

    n_seeds: int = 8
    hidden: tuple[int, ...] = (100, 100, 100)
    steps: int = 600
    batch: int = 64
    n_train: int = 10_000
    n_stimuli: int = 62


def layer_responses(
    data: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], networks: Networks, seed: int
) -> tuple[Responses, float]:
    """Distances of the first test images at every hidden layer of every seed, and the networks' mean test accuracy."""
    (inputs, labels), (new, new_labels) = data
    inputs, labels = inputs[: networks.n_train], labels[: networks.n_train]
    seeds = list(range(seed, seed + networks.n_seeds))
    stack = StackedMLP((inputs.shape[1], *networks.hidden, int(labels.max()) + 1), "relu", seeds).to(inputs.device)
    draws = [torch.Generator().manual_seed(1000 + each) for each in seeds]

    def batch(step: int, generator: torch.Generator) -> Tensor:
        chosen = [torch.randint(len(inputs), (networks.batch,), generator=draw) for draw in draws]
        return torch.stack(chosen, 1).to(inputs.device)

    train(
        Indexed(stack, inputs), batch, steps=networks.steps, loss=stacked_loss(stack, labels.expand(len(seeds), -1)),
        optimizer=StackedAdam(stack.parameters(), [1e-3] * len(seeds)), seed=seed,
    )  # fmt: skip
    with torch.no_grad():
        *hidden, logits = (layer.cpu() for layer in stack.layers(new))
    accuracy = float((logits.argmax(2) == new_labels.cpu()).double().mean())
    vectors = [rdm(layer[copy, : networks.n_stimuli]) for copy in range(len(seeds)) for layer in hidden]
    subject, region = np.divmod(np.arange(len(vectors)), len(hidden))
    return Responses(np.stack(vectors), subject, region), accuracy


def manifold_responses(
    stretch: float, n_subjects: int, n_points: int, noise: float, seed: int, share: float = 5 / 6
) -> Responses:
    """Ring, arc (``share`` of a circle) and two rings as subjects with stretched axes see them."""
    shapes = ("ring", arc(n_points, share), "two_rings")
    found = distorted_subjects(shapes, n_subjects, n_points, stretch, noise, seed=seed)
    return Responses(np.stack([rdm(each) for each in found.features]), found.subject, found.shape)
