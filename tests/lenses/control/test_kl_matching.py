"""Steering strength at a given divergence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netloupe.core.errors import InputError
from netloupe.lenses.control.kl_matching import _bisect, divergence, kl_matched_alpha


class Bigram(nn.Module):
    """Logits that are the embedding itself, so that steering adds to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5, 2)
        nn.init.zeros_(self.tokens.weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.tokens(ids)


@pytest.mark.parametrize("target", [0.025, 0.1, 0.5])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_closed_form_of_two_tokens(target: float, sign: float):
    ids = torch.tensor([[1, 2, 3], [4, 0, 1]])
    found = kl_matched_alpha(Bigram(), "tokens", torch.tensor([3.0 * sign, 0.0]), ids, target, tol=1e-6, steps=40)
    assert found.converged
    assert found.kl == pytest.approx(target, abs=1e-6)
    # from (1/2, 1/2) to (s, 1 - s): KL = -log(4 s (1 - s)) / 2, so s (1 - s) = exp(-2 KL) / 4
    s = 0.5 + 0.5 * np.sqrt(1 - np.exp(-2 * target))
    assert found.alpha == pytest.approx(np.log(s / (1 - s)), abs=1e-4)
    assert found.n_runs <= 43


def test_what_cannot_be_reached_is_said():
    ids = torch.tensor([[1, 2]])
    far = kl_matched_alpha(Bigram(), "tokens", torch.tensor([1.0, 1.0]), ids, 0.1)  # moves nothing
    assert not far.converged
    assert far.alpha == 2000
    wavy = _bisect(lambda a: abs(np.sin(a)), 0.5, 1.0, 3.0, 30, 1e-3, lambda: 0)
    assert wavy.converged
    assert abs(np.sin(wavy.alpha)) == pytest.approx(0.5, abs=1e-3)
    jump = _bisect(lambda a: float(a > 2), 0.5, 1.0, 5.0, 8, 1e-3, lambda: 0)
    assert not jump.converged
    assert divergence(torch.zeros(1, 2), torch.tensor([[torch.inf, 0]])) == float("inf")
    assert divergence(torch.zeros(1, 2), torch.zeros(1, 2)) == 0
    for target, low in ((0.0, 1.0), (0.1, 5000.0)):
        with pytest.raises(InputError, match="low < high"):
            kl_matched_alpha(Bigram(), "tokens", torch.ones(2), ids, target, low)
    with pytest.raises(InputError, match="no logits"):
        kl_matched_alpha(
            nn.Sequential(nn.Embedding(5, 2), nn.Flatten(1), nn.Unflatten(1, (1, 2, 2))), "0", torch.ones(2), ids, 0.1
        )
