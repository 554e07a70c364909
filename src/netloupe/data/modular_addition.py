"""Modular addition, and a network of two blocks that share nothing: tasks whose right features are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError


def modular_addition(p: int) -> tuple[Float[Tensor, "pair unit"], Int[Tensor, " pair"]]:
    """All ``p^2`` pairs ``(a, b)`` as two one-hot vectors side by side ``(p^2, 2 p)``, and ``(a + b) mod p``.

    Raises InputError for p below 2.
    """
    if p < 2:
        raise InputError(f"p is {p}, addition needs a modulus of at least 2")
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    eye = torch.eye(p)
    return torch.cat([eye[a], eye[b]], 1), (a + b) % p


@dataclass(frozen=True, eq=False)
class TwoBlocks:
    """A hidden layer of two independent blocks, and the layer they feed.

    ``x`` ``(sample, 2 size)``: block coordinates after a hidden ``rotation``; ``weight`` ``(2 n_out, 2 size)`` is block-diagonal
    in block coordinates. The next layer is ``relu(weight rotation^T x)``.
    """

    x: Float[Tensor, "sample unit"]
    rotation: Float[Tensor, "unit unit"]
    weight: Float[Tensor, "out unit"]

    def layer(self, x: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows out"]:
        """The next layer."""
        return torch.relu(x @ self.rotation @ self.weight.T)


def two_blocks(
    n_each: int = 40, size: int = 3, n_out: int = 5, *, factorial: bool = True, random_state: int = 0
) -> TwoBlocks:
    """Two blocks of ``size`` units, each white over its ``n_each`` values, in float64.

    ``factorial`` joins every value of one with every value of the other (``n_each^2`` samples), which makes the blocks
    exactly independent; otherwise as many samples draw both at random. Raises InputError where values cannot be white.
    """
    if n_each <= size or min(size, n_out) < 1:
        raise InputError(f"{n_each} values of {size} units cannot be white; give more values than units")
    generator = torch.Generator().manual_seed(random_state)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def white(values: Tensor) -> Tensor:
        centred = values - values.mean(0)
        return torch.linalg.qr(centred)[0] * len(values) ** 0.5

    n = n_each**2
    one, two = white(normal(n_each, size)), white(normal(n_each, size))
    if factorial:
        first, second = torch.arange(n_each).repeat_interleave(n_each), torch.arange(n_each).repeat(n_each)
    else:
        first, second = (torch.randint(0, n_each, (n,), generator=generator) for _ in range(2))
    rotation = torch.linalg.qr(normal(2 * size, 2 * size))[0]
    weight = torch.block_diag(normal(n_out, size), normal(n_out, size))
    return TwoBlocks(torch.cat([one[first], two[second]], 1) @ rotation.T, rotation, weight)
