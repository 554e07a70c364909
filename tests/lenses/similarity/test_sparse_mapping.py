"""Sparse maps from moments: scikit-learn's lasso, closed forms of least squares, exact copies, and the lens."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Lasso, LinearRegression

from netloupe.core.errors import InputError
from netloupe.core.statistics import CrossMoments
from netloupe.lenses.similarity.mapping import ALPHAS, SparseMapper, mapping_path, weakest_within
from netloupe.lenses.similarity.sparse_mapping import sparse_mapping

SEEDS = [0, 1, 2]


def units(seed: int, n: int = 300, p: int = 12, q: int = 4) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    a = draw.normal(size=(n, p)) @ draw.normal(size=(p, p)) + 5
    return a, a @ draw.normal(size=(p, q)) + 4 * draw.normal(size=(n, q)) - 2


def standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", [1e-3, 1e-2, 0.1, 0.5])
def test_is_the_lasso(seed: int, alpha: float):
    a, b = units(seed)
    found = SparseMapper(alpha, tol=1e-12).fit(a, b)
    wanted = Lasso(alpha=alpha, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(standard(a), standard(b))
    np.testing.assert_allclose(found.coef_, wanted.coef_, atol=1e-7)
    assert found.converged_
    missed = standard(b) - standard(a) @ found.coef_.T
    np.testing.assert_allclose(found.half_mse_, 0.5 * (missed**2).mean(0), atol=1e-12)
    np.testing.assert_allclose(found.predict(a), (standard(b) - missed) * b.std(0) + b.mean(0), atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_penalty_it_is_least_squares(seed: int):
    a, b = units(seed)
    found = SparseMapper(0).fit(a, b)
    r2 = [LinearRegression().fit(a, b[:, j]).score(a, b[:, j]) for j in range(b.shape[1])]
    np.testing.assert_allclose(found.half_mse_, 0.5 * (1 - np.array(r2)), atol=1e-10)
    np.testing.assert_allclose(found.predict(a), LinearRegression().fit(a, b).predict(a), atol=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_moments_give_the_held_out_error(seed: int):
    a, b = units(seed)
    found = SparseMapper(0.02).fit(a[:200], b[:200])
    missed = (b[200:] - found.predict(a[200:])) / b[:200].std(0)
    wanted = 0.5 * (missed**2).mean(0)
    np.testing.assert_allclose(found.score(a[200:], b[200:]), wanted, atol=1e-12)
    parts = CrossMoments().update(a[200:230], b[200:230]).update(a[230:], b[230:])
    np.testing.assert_allclose(found.score_moments(parts.result()), wanted, atol=1e-12)


def test_a_permuted_copy_takes_one_unit_a_row():
    draw = np.random.default_rng(0)
    a, order = draw.normal(size=(200, 9)), draw.permutation(9)
    found = SparseMapper(0.05).fit(a, 3 * a[:, order] - 1)
    assert (found.n_nonzero_ == 1).all()
    np.testing.assert_array_equal(np.abs(found.coef_).argmax(1), order)
    np.testing.assert_allclose(found.coef_.max(1), 0.95)  # the penalty takes alpha from the only weight
    np.testing.assert_allclose(found.half_mse_, 0.5 * 0.05**2)


def test_dead_units_and_the_zero_map():
    a, b = units(0)
    a[:, 3], b[:, 1] = 2.0, 7.0
    for alpha in (0.0, 0.01):
        found = SparseMapper(alpha).fit(a, b)
        assert (found.coef_[:, 3] == 0).all()
        assert (found.coef_[1] == 0).all()
        assert np.isnan(found.half_mse_[1])
        assert np.isfinite(np.delete(found.half_mse_, 1)).all()
        np.testing.assert_allclose(found.predict(a)[:, 1], 7.0)
    np.testing.assert_allclose(np.delete(SparseMapper(10).fit(a, b).half_mse_, 1), 0.5)


def test_path_warm_starts_and_choice():
    a, b = units(1)
    moments = CrossMoments().update(a, b).result()
    path = mapping_path(moments, ALPHAS, tol=1e-10)
    assert [mapper.alpha for mapper in path] == list(ALPHAS)
    for mapper in path[1:]:
        alone = SparseMapper(mapper.alpha, tol=1e-10).fit_moments(moments)
        np.testing.assert_allclose(mapper.coef_, alone.coef_, atol=1e-4)
    errors = [mapper.half_mse_.mean() for mapper in path]
    assert (np.diff(errors) >= -1e-12).all()
    assert weakest_within(path, 1000) == 0
    chosen = weakest_within(path, 11)
    assert path[chosen].n_nonzero_.mean() <= 11
    assert all(m.n_nonzero_.mean() > 11 for m in path if m.alpha < path[chosen].alpha)
    assert weakest_within(path, -1) == int(np.argmin([m.n_nonzero_.mean() for m in path]))


def test_positions_are_observations():
    draw = np.random.default_rng(2)
    a, b = draw.normal(size=(50, 4, 3)), draw.normal(size=(50, 4, 2))
    whole = SparseMapper(0.01).fit(a, b)
    np.testing.assert_allclose(whole.coef_, SparseMapper(0.01).fit(a.reshape(200, 3), b.reshape(200, 2)).coef_)
    assert whole.predict(a).shape == b.shape


def test_the_lens_finds_few_units_and_nothing_in_shuffled_samples():
    draw = np.random.default_rng(0)
    a = draw.normal(size=(500, 30))
    b = a[:, :10] + a[:, 10:20] + 0.1 * draw.normal(size=(500, 10))
    found = sparse_mapping(a, b)
    numbers = found.summary()
    assert numbers["few_error"] < 0.1
    assert numbers["units_used"] <= 8
    assert 0 < numbers["standard_error"] < 0.02
    assert found.converged
    assert found.n_samples == (400, 100)
    apart = sparse_mapping(a, b[draw.permutation(500)]).summary()
    assert apart["best_error"] > 0.4
    three = sparse_mapping(a[:, None].repeat(2, 1), b[:, None].repeat(2, 1)).summary()
    assert three["few_error"] == pytest.approx(numbers["few_error"], abs=1e-9)
    assert three["standard_error"] == pytest.approx(numbers["standard_error"])


def test_bad_input_is_one_sentence():
    a, b = units(0)
    cases = [
        (lambda: SparseMapper(-1), "alpha -1"),
        (lambda: SparseMapper(solver="sgd"), "'gram-cd'"),
        (lambda: SparseMapper().predict(a), "not fitted"),
        (lambda: SparseMapper().fit(a, b[:-1]), "same samples"),
        (lambda: SparseMapper().fit(np.ones_like(a), b), "no unit of one site varies"),
        (lambda: SparseMapper().fit(a, b).predict(a[:, :3]), "fitted on 12"),
        (lambda: SparseMapper().fit(a, b).score(b, a), "moments are of 4 and 12"),
        (lambda: mapping_path(CrossMoments().update(a, b).result(), []), "alphas is empty"),
        (lambda: sparse_mapping(np.ones((9, 5000)), np.ones((9, 2))), "at most 4096"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
