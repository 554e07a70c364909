"""Joint moments of two sites against numpy, over batches, merges, masks and dead units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.alignment import joint_moments, paired_rows
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.statistics import CrossMoments, restore

SEEDS = [0, 1, 2]


def data(seed: int, n: int = 80, p: int = 5, q: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    a = draw.normal(3, 2, (n, p))
    return a, a[:, :q] * 0.5 + draw.normal(-1, 1, (n, q))


@pytest.mark.parametrize("seed", SEEDS)
def test_against_numpy(seed: int):
    a, b = data(seed)
    found = CrossMoments(5, 3).update(a[:30], b[:30]).update(a[30:], b[30:]).result()
    both = np.concatenate([a, b], 1)
    np.testing.assert_allclose(found.joint, np.corrcoef(both.T), atol=1e-12)
    np.testing.assert_allclose(found.mean, both.mean(0))
    np.testing.assert_allclose(found.deviation, both.std(0))
    np.testing.assert_allclose(found.scatter / found.count, np.cov(both.T, ddof=0), atol=1e-12)
    assert found.within_a.shape == (5, 5)
    assert found.between.shape == (5, 3)
    assert found.within_b.shape == (3, 3)
    np.testing.assert_allclose(found.swapped.between, found.between.T)
    np.testing.assert_allclose(found.swapped.mean_a, found.mean_b)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 79))
def test_merging_is_one_pass(seed: int, cut: int):
    a, b = data(seed)
    whole = CrossMoments().update(a, b).result()
    merged = CrossMoments().update(a[:cut], b[:cut]).merge(CrossMoments().update(a[cut:], b[cut:])).result()
    np.testing.assert_allclose(merged.joint, whole.joint, atol=1e-12)
    np.testing.assert_allclose(merged.mean, whole.mean, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -7e5])
def test_dead_units_correlate_with_nothing(value: float):
    a, b = data(0)
    a[:, 2], b[:, 0] = value, value
    found = CrossMoments()
    for start in range(0, 80, 7):
        found.update(a[start : start + 7], b[start : start + 7])
    moments = found.result()
    assert moments.dead_a.tolist() == [False, False, True, False, False]
    assert moments.dead_b.tolist() == [True, False, False]
    assert (moments.joint[2] == 0).all()
    assert (found.correlation()[:, 0] == 0).all()
    assert np.isfinite(moments.joint).all()


def test_positions_are_rows_and_a_mask_leaves_some_out():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(10, 4, 3)), draw.normal(size=(10, 4, 2))
    flat = CrossMoments().update(a.reshape(40, 3), b.reshape(40, 2)).result()
    np.testing.assert_allclose(CrossMoments().update(a, b).result().joint, flat.joint, atol=1e-12)
    mask = draw.random((10, 4)) < 0.7
    kept = CrossMoments().update(a[mask], b[mask]).result()
    np.testing.assert_allclose(CrossMoments().update(a, b, mask=mask).result().joint, kept.joint, atol=1e-12)


def test_pairs_of_arrays_and_states():
    a, b = data(1)
    found = joint_moments(*paired_rows(torch.tensor(a), b, min_samples=2))
    np.testing.assert_allclose(found.between, CrossMoments().update(a, b).correlation(), atol=1e-12)
    statistic = CrossMoments(5, 3).update(a, b)
    assert restore(statistic.state()) == statistic
    assert statistic.copy() == statistic


def test_bad_input():
    a, b = data(0)
    with pytest.raises(InputError, match="made for p = 4 units and was given 5"):
        CrossMoments(p=4).update(a, b)
    with pytest.raises(InputError, match="made for q = 2"):
        CrossMoments(q=2).update(a, b)
    with pytest.raises(InputError, match="same rows"):
        CrossMoments().update(a, b[:-1])
    with pytest.raises(NonFiniteError):
        CrossMoments().update(a * np.nan, b)
    with pytest.raises(InputError, match="seen no rows"):
        CrossMoments().correlation()
    with pytest.raises(InputError, match="p=4 and p=None"):
        CrossMoments(p=4).merge(CrossMoments())
    with pytest.raises(InputError, match="same positions"):
        paired_rows(np.ones((4, 3, 2)), np.ones((4, 2, 2)), 1, ndim=(2, 3))
    with pytest.raises(InputError, match="same positions"):
        paired_rows(np.ones((4, 3, 2)), np.ones((4, 2)), 1, ndim=(2, 3))
