"""Data sets with their signal taken away: which effects of training need one?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from netloupe.core.errors import InputError


def random_labels(labels: Tensor, n_classes: int | None = None, share: float = 1.0, random_state: int = 0) -> Tensor:
    """Labels of a random ``share`` of the samples drawn anew, once, uniformly over all classes (also the true one)."""
    if not 0 <= share <= 1:
        raise InputError(f"share is {share}, expected a number from 0 to 1")
    generator = torch.Generator().manual_seed(random_state)
    classes = int(labels.max()) + 1 if n_classes is None else n_classes
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    changed = labels.clone()
    changed[chosen] = torch.randint(classes, (len(chosen),), generator=generator).to(labels)
    return changed


def random_inputs(inputs: Tensor, random_state: int = 0) -> Tensor:
    """Every pixel replaced, once, by a uniform random number in [0, 1]."""
    return torch.rand(inputs.shape, generator=torch.Generator().manual_seed(random_state)).to(inputs.dtype)


def fresh_random(
    shape: tuple[int, ...], n_classes: int, batch_size: int
) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """Endless data without signal for ``train``: in every step new uniform inputs and new uniform labels."""

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs = torch.rand((batch_size, *shape), generator=generator)
        return inputs, torch.randint(n_classes, (batch_size,), generator=generator)

    return draw


def gaussian_noise(inputs: Tensor, std: float, random_state: int = 0) -> Tensor:
    """Inputs plus normal noise, clipped to [0, 1]."""
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(random_state))
    return (inputs + std * noise).clamp(0, 1)


def impulse_noise(inputs: Tensor, share: float, random_state: int = 0) -> Tensor:
    """A random ``share`` of the pixels set to 0 or 1 with equal chance."""
    generator = torch.Generator().manual_seed(random_state)
    hit = torch.rand(inputs.shape, generator=generator) < share
    salt = (torch.rand(inputs.shape, generator=generator) < 0.5).to(inputs.dtype)
    return torch.where(hit, salt, inputs)


def shot_noise(inputs: Tensor, photons: float, random_state: int = 0) -> Tensor:
    """Pixels in [0, 1] as Poisson counts at ``photons`` for full brightness, clipped to [0, 1]."""
    generator = torch.Generator().manual_seed(random_state)
    return (torch.poisson(inputs.clamp(0, 1) * photons, generator=generator) / photons).clamp(0, 1)
