"""Nearest neighbours beside scikit-learn's exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.neighbours import nearest


def by_sklearn(x: np.ndarray, k: int) -> np.ndarray:
    return NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(x).kneighbors()[0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 90), st.integers(1, 30), st.sampled_from([1, 5, 32, 1000]), st.booleans())
def test_scikit_learn_gives_the_same(seed: int, n: int, d: int, block: int, single: bool):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * 10.0 ** rng.integers(-12, 12) + rng.standard_normal(d)
    x = x.astype(np.float32) if single else x
    k = int(rng.integers(1, n))
    found = nearest(x, k, block=block)
    np.testing.assert_allclose(
        found.distances, by_sklearn(x.astype(np.float64), k), rtol=1e-9, atol=1e-12 * np.abs(x).max()
    )
    again = np.sqrt(((x.astype(np.float64)[found.indices] - x.astype(np.float64)[:, None]) ** 2).sum(2))
    np.testing.assert_allclose(found.distances, again, rtol=1e-12)
    assert (found.indices != np.arange(n)[:, None]).all()


def test_tight_clusters_far_apart_are_searched_again_in_float64():
    rng = np.random.default_rng(0)
    x = np.concatenate([1000 + rng.standard_normal((300, 20)), -1000 + 1e-4 * rng.standard_normal((300, 20))])
    np.testing.assert_allclose(nearest(x, 5).distances, by_sklearn(x, 5), rtol=1e-9)
    twice = np.concatenate([x, x])
    assert (nearest(twice, 1).distances == 0).all()


def test_huge_and_tiny_numbers():
    x = np.random.default_rng(0).standard_normal((40, 3))
    plain = nearest(x, 3)
    with np.errstate(all="raise"):
        for scale in (1e-250, 1e-30, 1e30, 1e250):
            found = nearest(scale * x, 3)
            np.testing.assert_allclose(found.distances, scale * plain.distances, rtol=1e-9)
            assert np.array_equal(found.indices, plain.indices)
        large = nearest((1e30 * x).astype(np.float32), 3)
    np.testing.assert_allclose(large.distances, 1e30 * plain.distances, rtol=1e-4)


def test_anchors():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    whole = nearest(x, 4)
    for anchors in ([5, 3, 199], 50, 500):
        some = nearest(x, 4, anchors, block=64)
        assert np.array_equal(some.distances, whole.distances[some.anchors])
        assert np.array_equal(some.indices, whole.indices[some.anchors])
    assert nearest(x, 4, 50).anchors.shape == (50,)
    assert nearest(x, 4, 500).anchors.shape == (200,)


def test_bad_input_is_one_sentence():
    x = np.random.default_rng(0).random((10, 3))
    broken = x.copy()
    broken[1, 1] = np.nan
    for case in (
        lambda: nearest(x, 10), lambda: nearest(x, 0), lambda: nearest(x[:1], 1), lambda: nearest(x, 2, block=0),
        lambda: nearest(x, 2, 0), lambda: nearest(x, 2, [10]), lambda: nearest(x, 2, [0.5]), lambda: nearest(x[:, 0], 2),
    ):  # fmt: skip
        with pytest.raises(InputError):
            case()
    with pytest.raises(NonFiniteError):
        nearest(broken, 2)
