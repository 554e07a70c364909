"""The residual perceptron."""

from __future__ import annotations

import pytest
import torch

from netloupe.core.capture import capture
from netloupe.core.errors import InputError
from netloupe.models.residual import ResidualMLP


def test_every_block_adds_its_branch_to_its_input():
    model, x = ResidualMLP(12, 8, 3, 4, random_state=0), torch.randn(5, 3, 4)
    sites = [f"blocks.{i}{end}" for i in range(3) for end in ("", ":in", ".branch")]
    seen = next(iter(capture(model, x, [*sites, "features", "stem"])))
    for i in range(3):
        torch.testing.assert_close(seen[f"blocks.{i}"], seen[f"blocks.{i}:in"] + seen[f"blocks.{i}.branch"])
    torch.testing.assert_close(seen["blocks.0:in"], seen["stem"])
    torch.testing.assert_close(seen["features"], seen["blocks.2"].relu())
    torch.testing.assert_close(model(x), model.head(seen["features"]))


def test_seeds_and_sizes():
    state = torch.get_rng_state()
    one, same, other = (ResidualMLP(4, 8, 2, 3, random_state=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.stem.weight, same.stem.weight)
    assert not torch.equal(one.stem.weight, other.stem.weight)
    with pytest.raises(InputError, match="at least 1"):
        ResidualMLP(4, 0)
