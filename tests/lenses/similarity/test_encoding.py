"""Encoding models beside scikit-learn; ceilings, comparison and partition beside closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.core.splits import folds
from netloupe.lenses.similarity.encoding import encoding, fit_ridge_cv
from netloupe.lenses.similarity.scores import (
    bootstrap_correlation,
    compare_models,
    noise_ceiling,
    normalised_score,
    partition_voxels,
    voxel_correlation,
)

ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0)


def problem(seed: int, n: int = 120, p: int = 12, v: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, p)) @ np.diag(np.linspace(0.2, 3, p)) + 5
    noise = np.linspace(0.3, 12, v)
    return x, x @ rng.standard_normal((p, v)) + noise * rng.standard_normal((n, v)) - 40


def by_scikit(x, y, split, alphas=ALPHAS):
    """Nested cross-validation written out: for each fold the penalty by the other folds, then the prediction."""
    predicted, chosen = np.zeros_like(y), []
    for k in range(split.max() + 1):
        errors = np.zeros((len(alphas), y.shape[1]))
        for j in range(split.max() + 1):
            train = (split != k) & (split != j)
            if j != k:
                for a, alpha in enumerate(alphas):
                    made = Ridge(alpha).fit(x[train], y[train]).predict(x[split == j])
                    errors[a] += ((made.reshape(-1, y.shape[1]) - y[split == j]) ** 2).sum(0)
        best = np.asarray(alphas)[errors.argmin(0)]
        chosen.append(best)
        for target, alpha in enumerate(best):
            fit = Ridge(alpha).fit(x[split != k], y[split != k, target])
            predicted[split == k, target] = fit.predict(x[split == k])
    return predicted, np.array(chosen)


def mean_over_folds(predicted, y, split):
    return np.mean([voxel_correlation(predicted[split == k], y[split == k]) for k in range(split.max() + 1)], axis=0)


def folds_of(n: int, n_splits: int) -> np.ndarray:
    split = np.zeros(n, dtype=int)
    for k, (_, judged) in enumerate(folds(n, n_splits)):
        split[judged.numpy()] = k
    return split


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("p", [12, 200])
def test_scikit_learn_gives_the_same(seed: int, p: int):
    x, y = problem(seed, p=p)
    found = fit_ridge_cv(x, y, ALPHAS, n_splits=4)
    predicted, _ = by_scikit(x, y, folds_of(len(x), 4))
    np.testing.assert_allclose(found.correlation, mean_over_folds(predicted, y, folds_of(len(x), 4)), atol=1e-8)
    explained = 1 - ((predicted - y) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(found.r_squared, explained, atol=1e-7)
    final = np.stack([Ridge(a).fit(x, y[:, t]).predict(x) for t, a in enumerate(found.alpha)], axis=1)
    np.testing.assert_allclose(found.predict(x), final, atol=1e-6)


def test_missing_responses_are_left_out_target_by_target():
    x, y = problem(0)
    y[:20, 2] = np.nan
    y[5:40, 4] = np.nan
    found = fit_ridge_cv(x, y, ALPHAS, n_splits=4)
    split = folds_of(len(x), 4)
    for target in (0, 2, 4):
        known = ~np.isnan(y[:, target])
        predicted, _ = by_scikit(x[known], y[known, target : target + 1], split[known])
        wanted = mean_over_folds(predicted, y[known, target : target + 1], split[known])[0]
        assert found.correlation[target] == pytest.approx(wanted, abs=1e-8)


def test_scores_are_out_of_fold_and_of_noise_they_are_nothing():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((100, 60)), rng.standard_normal((100, 200))
    found = fit_ridge_cv(x, y)
    assert abs(found.summary()["correlation"]) < 0.05
    assert np.corrcoef(found.predict(x)[:, 0], y[:, 0])[0, 1] > found.correlation[0]
    copies = np.repeat(rng.standard_normal((20, 60)), 5, axis=0), np.repeat(rng.standard_normal((20, 3)), 5, axis=0)
    leaking, honest = fit_ridge_cv(*copies), fit_ridge_cv(*copies, groups=np.repeat(np.arange(20), 5))
    assert leaking.correlation.mean() > 0.9, "copies of a sample in both folds: this is what groups are for"
    assert honest.correlation.mean() < 0.5


def test_a_lens_and_a_finding(tmp_path):
    x, y = problem(1)
    found = encoding(x, y)
    assert found.correlation[0] > 0.95
    assert Finding.load(found.save(tmp_path / "e")) == found
    with_ceiling = fit_ridge_cv(x, y, ceiling=np.full(7, 0.5))
    assert with_ceiling.summary()["normalised"] == pytest.approx(2 * with_ceiling.summary()["correlation"])
    flat = fit_ridge_cv(x, np.hstack([y, np.ones((120, 1))]))
    assert np.isnan(flat.correlation[-1])
    assert flat.summary()["undefined_targets"] == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda x, y: fit_ridge_cv(x, y[:-1]), "expected \\(sample, target\\) with 120"),
        (lambda x, y: fit_ridge_cv(x, y, [-1.0]), "not negative"),
        (lambda x, y: fit_ridge_cv(x, y, n_splits=2), "at least three"),
        (lambda x, y: fit_ridge_cv(x[:8], y[:8]), "at least 10"),
        (lambda x, y: fit_ridge_cv(x * np.nan, y), "nan at sample 0"),
        (lambda x, y: fit_ridge_cv(np.ones_like(x), y), "same for every sample"),
        (lambda x, y: fit_ridge_cv(x, np.ones_like(y)), "no response varies"),
        (lambda x, y: fit_ridge_cv(x, np.where(np.arange(120)[:, None] > 3, np.nan, y)), "at least two are needed"),
        (lambda x, y: fit_ridge_cv(x, y * np.inf), "infinite"),
        (lambda x, y: fit_ridge_cv(x, y, ceiling=np.ones(3)), "7 targets"),
        (lambda x, y: fit_ridge_cv(x, y, groups=np.zeros(120)), "cannot be split"),
        (lambda x, y: fit_ridge_cv(x, y).predict(x[:, :3]), "3 units"),
        (lambda x, y: voxel_correlation(y, x), "predictions have shape"),
        (lambda x, y: noise_ceiling(y), "expected \\(target, sample, repeat\\)"),
        (lambda x, y: normalised_score(y[0], y[0, :3]), "expected the same"),
        (lambda x, y: compare_models(y[:1]), "at least two models"),
        (lambda x, y: compare_models(y * np.nan), "no target"),
        (lambda x, y: partition_voxels(y, ["one"]), "1 names"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(ask, sentence: str):
    with pytest.raises((InputError, NonFiniteError), match=sentence):
        ask(*problem(0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_correlation_leaves_missing_out(seed: int):
    rng = np.random.default_rng(seed)
    p, y = rng.standard_normal((2, 30, 4)) * 3 + 100
    mask = rng.random((30, 4)) > 0.3
    y[rng.random((30, 4)) > 0.9] = np.nan
    found = voxel_correlation(p, y, mask)
    for t in range(4):
        known = mask[:, t] & ~np.isnan(y[:, t])
        assert found[t] == pytest.approx(np.corrcoef(p[known, t], y[known, t])[0, 1])
    assert np.isnan(voxel_correlation(np.ones((30, 4)), y)).all()


@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
def test_the_ceiling_is_the_correlation_of_the_true_model(ratio: float):
    rng = np.random.default_rng(0)
    signal = np.sqrt(ratio) * rng.standard_normal((200, 300))
    repeats = signal[..., None] + rng.standard_normal((200, 300, 3))
    wanted = np.sqrt(ratio / (ratio + 1 / 3))
    found = noise_ceiling(repeats)
    assert found.mean() == pytest.approx(wanted, abs=0.02)
    true = voxel_correlation(signal.T, repeats.mean(2).T)
    assert normalised_score(true, found).mean() == pytest.approx(1, abs=0.02)
    missing = np.where(rng.random(repeats.shape) > 0.2, repeats, np.nan)
    assert noise_ceiling(missing).mean() == pytest.approx(wanted, abs=0.06)
    assert noise_ceiling(rng.standard_normal((200, 300, 3))).mean() < 0.35
    assert np.isnan(noise_ceiling(np.ones((1, 5, 2)))[0])
    assert np.isnan(normalised_score(np.array([0.5]), np.array([0.0]))[0])


def test_models_are_compared_and_targets_assigned():
    rng = np.random.default_rng(0)
    base = 0.4 + 0.1 * rng.standard_normal(300)
    scores = np.stack([base, base + 0.02 + 0.05 * rng.standard_normal(300), base + 0.05 * rng.standard_normal(300)])
    found = compare_models(scores, ["a", "b", "c"])
    assert found.difference[1, 0] == pytest.approx((scores[1] - scores[0]).mean())
    assert found.p_value[1, 0] < 0.01 < found.p_value[2, 0]
    same = [
        compare_models(rng.standard_normal((2, 40)), n_permutations=99, random_state=i).p_value[0, 1]
        for i in range(200)
    ]
    assert 0.01 <= np.mean(np.array(same) <= 0.05) <= 0.1
    zones = partition_voxels(np.array([[0.5, 0.2, 0.4], [0.1, 0.6, 0.39]]), margin=0.05)
    assert zones.zone.tolist() == [0, 1, -1]
    y = rng.standard_normal((80, 3))
    good = np.stack([y + 0.1 * rng.standard_normal((80, 3)), y + rng.standard_normal((80, 3))])
    draws = bootstrap_correlation(good, y, 50)
    assert partition_voxels(draws.mean(0), draws=draws).zone.tolist() == [0, 0, 0]
    noise = np.stack([y + rng.standard_normal((80, 3)), y + rng.standard_normal((80, 3))])
    assert (partition_voxels(draws.mean(0), draws=bootstrap_correlation(noise, y, 50), confidence=0.999).zone < 0).any()
