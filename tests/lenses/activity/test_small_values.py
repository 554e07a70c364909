"""Shares above a threshold against counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netloupe.lenses.activity.small_values import small_values


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_those_of_counting(seed: int) -> None:
    draw = np.random.default_rng(seed)
    features = draw.standard_normal((500, 40)) * draw.uniform(0.01, 3, 40)
    found = small_values(features)
    rms = np.sqrt((features**2).mean())
    assert found.rms == pytest.approx(rms, rel=1e-12)
    for share, limit in zip(found.above, found.thresholds):
        low, high = ((np.abs(features) > limit * rms * (1 + e)).mean() for e in (found.error, -found.error))
        assert low <= share <= high


def test_normal_numbers_and_padding_and_zeros() -> None:
    features = torch.randn(400, 25, 40, generator=torch.Generator().manual_seed(0))
    expected = torch.erfc(torch.tensor([0.001, 0.01, 0.1, 1.0]) / 2**0.5)
    np.testing.assert_allclose(small_values(features).above, expected, atol=4e-3)
    mask = torch.ones(400, 25, dtype=torch.bool)
    mask[:, 20:] = False
    padded = features.masked_fill(~mask[..., None], 1e6)
    np.testing.assert_array_equal(small_values(padded, mask).above, small_values(features[:, :20]).above)
    nothing = small_values(torch.zeros(5, 3)).summary()
    assert nothing["above_tenth"] == 0
    assert nothing["rms"] == 0
