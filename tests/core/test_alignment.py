"""Linear CKA of a site with single features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.alignment import vector_cka
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.similarity.cka import cka


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 30), st.integers(1, 8))
def test_it_is_the_biased_cka_with_a_single_column(seed: int, n: int, d: int):
    rng = np.random.default_rng(seed)
    x, z = rng.standard_normal((n, d)) + 4, rng.standard_normal((n, 3))
    z[:, 0] += x[:, 0]
    found = vector_cka(x, z)
    assert found == pytest.approx([cka(x, z[:, [k]]).biased for k in range(3)], rel=1e-9, abs=1e-12)
    rotation, _ = np.linalg.qr(rng.standard_normal((d, d)))
    np.testing.assert_allclose(vector_cka(3 * x @ rotation + 1, -2 * z + 5), found, rtol=1e-8, atol=1e-12)


def test_known_values_and_refusals():
    z = torch.arange(10.0)
    assert vector_cka(torch.outer(z, torch.tensor([1.0, -2.0, 0.5])), z) == pytest.approx([1.0])
    assert np.isnan(vector_cka(torch.ones(10, 2), z)).all()
    assert np.isnan(vector_cka(torch.randn(10, 2), torch.ones(10))).all()
    with pytest.raises(InputError, match="same samples"):
        vector_cka(torch.randn(10, 2), torch.randn(9, 2))
    with pytest.raises(InputError):
        vector_cka(torch.randn(1, 2), torch.randn(1, 2))
    with pytest.raises(NonFiniteError):
        vector_cka(torch.full((4, 2), float("nan")), torch.randn(4, 2))
