"""Networks that differ in their seed alone, and the joint moments of what their units do on the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.nulls import untrained
from netloupe.core.statistics import CrossMoments, JointMoments
from netloupe.core.training import accuracy, train
from netloupe.data.digits import digits
from netloupe.data.fashion_mnist import fashion_mnist
from netloupe.models.resnet import ResNet18
from netloupe.models.small import DigitsCNN, mlp

Moments = dict[str, JointMoments]
N_DIGITS_SEEN = 1000  # the last images, of other writers than those trained on


@dataclass(frozen=True)
class Setting:
    """A preset. ``sites``: layers compared, input first; ``conv``: a convolutional network and the layer for mutual information."""

    data: str
    build: Callable[[int], nn.Module]
    sites: tuple[str, ...]
    n_nets: int
    steps: int
    conv: Callable[[int], nn.Module]
    conv_site: str
    conv_steps: int
    mi_rows: int
    alphas: tuple[float, ...]
    batch_size: int = 64


def _perceptron(n_inputs: int, widths: tuple[int, ...], seed: int) -> nn.Module:
    return mlp(n_inputs, widths, 10, random_state=seed)


def _digits_cnn(width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitsCNN(width=width)


ALPHAS = (0.0, *np.geomspace(1e-4, 0.5, 24).tolist())
SETTINGS: dict[str, Setting] = {
    "smoke": Setting(
        "digits", partial(_perceptron, 64, (64, 64)), ("act1", "act2"), 2, 500,
        partial(_digits_cnn, 16), "relu1", 60, 4000, ALPHAS[::2],
    ),
    "small": Setting(
        "digits", partial(_perceptron, 64, (128, 128, 128)), ("act1", "act2", "act3"), 4, 2000,
        partial(_digits_cnn, 64), "relu1", 300, 20_000, ALPHAS,
    ),
    "full": Setting(
        "Fashion-MNIST", partial(_perceptron, 784, (128, 128, 128)), ("act1", "act2", "act3"), 4, 20_000,
        lambda seed: ResNet18(n_channels=1, random_state=seed), "relu", 10_000, 200_000, ALPHAS,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Networks:
    """``trained`` and, weight for weight as they began, ``untrained``; ``seen`` are images none was trained on."""

    trained: list[nn.Module]
    untrained: list[nn.Module]
    seen: Tensor
    accuracies: list[float]
    device: torch.device

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of different networks."""
        return list(combinations(range(len(self.trained)), 2))


def train_networks(setting: Setting, seed: int, convolutional: bool = False) -> Networks:
    """``n_nets`` networks (two convolutional ones) with seeds of their own for weights and order of the data."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if setting.data == "digits":
        images, labels = digits()
        train_set = images[:-N_DIGITS_SEEN], labels[:-N_DIGITS_SEEN]
        seen, seen_labels = images[-N_DIGITS_SEEN:], labels[-N_DIGITS_SEEN:]
    else:
        train_set, (seen, seen_labels) = fashion_mnist("train"), fashion_mnist("test")
    build, steps = (setting.conv, setting.conv_steps) if convolutional else (setting.build, setting.steps)
    trained, before, right = [], [], []
    for number in range(2 if convolutional else setting.n_nets):
        own = 1000 * seed + number
        model = build(own).to(device)
        # a seed of its own: an untrained copy with the weights that training began with would share what it kept
        before.append(untrained(model, own + 500))
        train(model, train_set, steps=steps, batch_size=setting.batch_size, seed=own)
        trained.append(model.eval())
        right.append(accuracy(model, seen, seen_labels))
    return Networks(trained, before, seen, right, device)


def site_moments(
    one: nn.Module, other: nn.Module, images: Tensor, sites: Sequence[str], seen_by_other: Tensor | None = None
) -> Moments:
    """Joint moments of every site in two networks, in one pass; positions are observations.

    ``seen_by_other``: other images for the second network, such as the same in another order.
    """
    found = {site: CrossMoments() for site in sites}
    given = images if seen_by_other is None else seen_by_other
    for a, b in zip(_captured(one, images, sites), _captured(other, given, sites), strict=True):
        for site, moments in found.items():
            moments.update(a.activations[site], b.activations[site])
    return {site: moments.result() for site, moments in found.items()}


def rows_of(model: nn.Module, images: Tensor, site: str, n_rows: int, seed: int) -> Tensor:
    """``(row, unit)``: observations of one site at random images and positions, the same for every network."""
    kept = []
    per_image: int | None = None
    draw = torch.Generator().manual_seed(seed)
    for batch in _captured(model, images, [site]):
        values = batch.activations[site]
        positions = values.shape[1] if values.ndim == 3 else 1
        per_image = per_image or max(1, min(positions, -(-n_rows // len(images))))
        rows = values.reshape(len(values), positions, -1)
        chosen = torch.rand(len(rows), positions, generator=draw).argsort(1)[:, :per_image]
        kept.append(rows.cpu().gather(1, chosen[..., None].expand(-1, -1, rows.shape[-1])).flatten(0, 1))
    return torch.cat(kept)[:n_rows].double()


def _captured(model: nn.Module, images: Tensor, sites: Sequence[str]):
    return capture(model, images, list(sites), batch_size=500)
