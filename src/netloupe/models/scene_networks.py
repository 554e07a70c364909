"""Small CNNs that learn to see planted scenes (:mod:`netloupe.data.scenes`), and what they learn them by."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.batches import Batch
from netloupe.core.training import train
from netloupe.data.scenes import COLOURS, LETTERS, SHAPES, TEXTURES, Scenes

SITES = ("relu2", "relu3")
"""whose units are described, in every network"""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def convolutional(widths: Sequence[int], n_outputs: int, seed: int, norm: bool = False) -> nn.Sequential:
    """Three convolutions (16 x 16, 8 x 8 and 8 x 8 positions), the maximum over positions and a linear map."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before = 3
        for index, (wide, (size, stride)) in enumerate(zip(widths, ((5, 2), (3, 2), (3, 1)), strict=True), start=1):
            layers[f"conv{index}"] = nn.Conv2d(before, wide, size, stride, size // 2)
            if norm:
                layers[f"norm{index}"] = nn.BatchNorm2d(wide)
            layers[f"relu{index}"] = nn.ReLU()
            before = wide
        layers |= {"pool": nn.AdaptiveMaxPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(before, n_outputs)}
        return nn.Sequential(layers)


class Mixer(nn.Module):
    """Another architecture: patches of 4 x 4 pixels, then two residual blocks of a depthwise and a pointwise convolution.

    ``relu2`` and ``relu3`` are the blocks' activation functions, GELU here; the name is that of the other networks' sites.
    """

    def __init__(self, width: int, n_outputs: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches, self.norm = nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width)
            self.deep2, self.deep3 = (nn.Conv2d(width, width, 3, 1, 1, groups=width) for _ in range(2))
            self.wide2, self.wide3 = (nn.Conv2d(width, width, 1) for _ in range(2))
            self.norm2, self.norm3 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.relu2, self.relu3 = nn.GELU(), nn.GELU()
            self.head = nn.Linear(width, n_outputs)

    def forward(self, images: Float[Tensor, "sample 3 height width"]) -> Float[Tensor, "sample output"]:
        """Logits."""
        x = self.norm(self.patches(images)).relu()
        x = x + self.relu2(self.norm2(self.wide2(self.deep2(x))))
        x = x + self.relu3(self.norm3(self.wide3(self.deep3(x))))
        return self.head(x.amax((-1, -2)))


def seen(scenes: Scenes) -> Float[Tensor, "scene property"]:
    """What networks that are described learn to see: each attribute, each pair of attributes on one object, each letter."""
    sizes = (len(COLOURS), len(TEXTURES), len(SHAPES))
    parts = []
    for axis, size in enumerate(sizes):
        parts.append(_any(scenes.attributes[..., axis], size, scenes.attributes[..., 0] >= 0))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        pair = scenes.attributes[..., one] * sizes[other] + scenes.attributes[..., other]
        parts.append(_any(pair, sizes[one] * sizes[other], scenes.attributes[..., 0] >= 0))
    parts.append(_any(scenes.letters[:, None], len(LETTERS), scenes.letters[:, None] >= 0))
    return torch.cat(parts, 1)


def _any(values: Int[Tensor, "scene object"], size: int, here: Tensor) -> Float[Tensor, "scene value"]:
    found = torch.zeros(len(values), size)
    for place in range(values.shape[1]):
        rows = torch.nonzero(here[:, place])[:, 0]
        found[rows, values[rows, place]] = 1
    return found


def learn_to_see(network: nn.Module, scenes: Scenes, steps: int, seed: int) -> nn.Module:
    """Trains ``network`` in place on :func:`seen` (binary cross-entropy) and returns it in evaluation mode."""
    wanted = seen(scenes).to(DEVICE)

    def loss(output: Any, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return nn.functional.binary_cross_entropy_with_logits(output, wanted[batch.labels.to(DEVICE)])

    network.to(DEVICE)
    numbers = torch.arange(len(scenes))
    train(network, (scenes.images, numbers), steps=steps, loss=loss, schedule="cosine", seed=seed, optimizer=_adam)
    return network.eval()


def learn_shapes(network: nn.Module, scenes: Scenes, steps: int, seed: int) -> nn.Module:
    """Trains ``network`` to name the shape of the only object; returns it in evaluation mode."""
    network.to(DEVICE)
    train(
        network, (scenes.images, scenes.attributes[:, 0, 2]), steps=steps, schedule="cosine", seed=seed, optimizer=_adam
    )
    return network.eval()


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=3e-3)
