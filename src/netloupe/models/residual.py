"""A residual perceptron: the smallest network with skip connections and a rectified last layer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.isolation import random_state as seeded


class ResidualUnit(nn.Module):
    """``x + branch(x)``, the branch being linear, ReLU, linear; sites ``branch`` and the unit itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "sample unit"]:
        """The stream behind the block."""
        return x + self.branch(x)


class ResidualMLP(nn.Module):
    """Sites ``stem, blocks.<i>, blocks.<i>.branch, features`` (rectified) and ``head``.

    Args:
        n_inputs, width, n_blocks, n_classes: sizes; inputs are flattened.
        random_state: seed of the initial weights, which leaves the global random state alone; None draws from it.
    """

    def __init__(
        self, n_inputs: int, width: int = 96, n_blocks: int = 6, n_classes: int = 10, random_state: int | None = None
    ) -> None:
        super().__init__()
        if min(n_inputs, width, n_blocks, n_classes) < 1:
            raise InputError(
                f"sizes {(n_inputs, width, n_blocks, n_classes)} were given, expected at least 1 throughout"
            )
        with seeded(random_state):
            self.flatten = nn.Flatten()
            self.stem = nn.Linear(n_inputs, width)
            self.blocks = nn.Sequential(*(ResidualUnit(width) for _ in range(n_blocks)))
            self.features = nn.ReLU()
            self.head = nn.Linear(width, n_classes)

    def forward(self, x: Float[Tensor, "sample ..."]) -> Float[Tensor, "sample class"]:
        """Logits."""
        return self.head(self.features(self.blocks(self.stem(self.flatten(x)))))
