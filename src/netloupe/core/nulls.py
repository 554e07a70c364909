"""The three controls that nearly every claim needs: an untrained network, a permutation, a random direction.

An untrained network already matches units and carries labels to a surprising degree; a number without its null is not a
finding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.isolation import random_state as seeded


def untrained(model: nn.Module, random_state: int = 0) -> nn.Module:
    """A copy of ``model`` with every part initialised anew, as its own ``reset_parameters`` does.

    The original is untouched. Raises InputError where a part owns parameters and cannot initialise them: build such
    a network from its constructor instead.
    """
    fresh = copy.deepcopy(model)
    with seeded(random_state):
        for name, module in fresh.named_modules():
            own = [key for key, _ in module.named_parameters(recurse=False)]
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif own:
                raise InputError(
                    f"part '{name or type(module).__name__}' has parameters ({', '.join(own)}) and no reset_parameters; "
                    "build an untrained network from its constructor"
                )
    return fresh


def permuted(values: Tensor, random_state: int = 0) -> Tensor:
    """The same values in random order along the first axis: labels that mean nothing, samples that do not correspond."""
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(random_state))]


def random_direction(like: Float[Tensor, " unit"], random_state: int = 0) -> Float[Tensor, " unit"]:
    """A random direction with the length and the support (which entries are non-zero) of ``like``."""
    vector = torch.as_tensor(like)
    if vector.ndim != 1 or not bool(vector.any()):
        raise InputError(f"a direction of shape {tuple(vector.shape)} that is not all zero is needed")
    draw = torch.randn(vector.shape, generator=torch.Generator().manual_seed(random_state), dtype=torch.float64)
    draw = torch.where(vector != 0, draw, torch.zeros_like(draw))
    return (draw / draw.norm() * vector.double().norm()).to(vector.dtype)


def permutation_p_value(
    statistic: Callable[[Tensor], float], values: Tensor, n_permutations: int = 999, random_state: int = 0
) -> tuple[float, np.ndarray]:
    """``(1 + #{permuted >= observed}) / (1 + n)`` and the permuted statistics: how often chance does as well."""
    if n_permutations < 1:
        raise InputError(f"n_permutations is {n_permutations}, at least 1 is needed")
    observed = statistic(values)
    null = np.array([statistic(shuffled) for shuffled in permutations(values, n_permutations, random_state)])
    return float((1 + (null >= observed).sum()) / (1 + n_permutations)), null


def permutations(values: Tensor, n: int, random_state: int = 0) -> Iterator[Tensor]:
    """``n`` independent permutations along the first axis."""
    generator = torch.Generator().manual_seed(random_state)
    for _ in range(n):
        yield values[torch.randperm(len(values), generator=generator)]
