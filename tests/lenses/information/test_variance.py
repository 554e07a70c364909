"""Shares of variance: closed forms, scikit-learn, leave-one-out by hand, and what chance gives."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.statistics import LabelMoments
from netloupe.data.abstract_features import binary_features
from netloupe.lenses.information.variance import held_out_share, label_variance, variance_explained, variance_profile

SEEDS = pytest.mark.parametrize("seed", range(4))


def planted(seed: int, n: int = 4096, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``sum_j c_j f_j u_j`` with orthonormal u_j; shares are ``c_j^2 / (sum c^2 + noise)``."""
    rng = np.random.default_rng(seed)
    _, values = binary_features(n, ("bit", "xor", "majority"), seed=seed)
    size = rng.uniform(0.5, 3, 3)
    directions = np.linalg.qr(rng.standard_normal((10, 3)))[0].T
    x = (2 * values - 1) * size @ directions + 5 * rng.standard_normal(10)
    x += np.sqrt(noise / 10) * rng.standard_normal(x.shape)
    return x, values, size**2 / ((size**2).sum() + noise)


@SEEDS
@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_planted_shares(seed: int, noise: float):
    x, values, shares = planted(seed, noise=noise)
    for j in range(3):
        assert variance_explained(x, values[:, j]) == pytest.approx(shares[j], abs=2e-3 if noise == 0 else 0.02)
        assert label_variance(x, values[:, j]).share == pytest.approx(shares[j], abs=2e-3 if noise == 0 else 0.02)
    profile = variance_profile(x, values, interactions=3)
    assert profile.share[:3] == pytest.approx(shares, abs=0.02)
    assert profile.unique == pytest.approx(shares, abs=0.02)
    assert np.abs(profile.share[3:]).max() < 0.01
    assert profile.summary()["gap"] == pytest.approx(np.ptp(shares), abs=0.02)


@SEEDS
def test_leave_one_out_is_what_it_says(seed: int):
    rng = np.random.default_rng(seed)
    n, labels = 30, np.arange(30) % 3
    x = rng.standard_normal((n, 4)) + labels[:, None] + 100
    rest = alone = 0.0
    for i in range(n):
        others = np.arange(n) != i
        rest += ((x[i] - x[others & (labels == labels[i])].mean(0)) ** 2).sum()
        alone += ((x[i] - x[others].mean(0)) ** 2).sum()
    assert variance_explained(x, labels) == pytest.approx(1 - rest / alone, abs=1e-10)
    onehot = np.eye(3)[labels]
    assert variance_explained(x, onehot) == pytest.approx(1 - rest / alone, abs=1e-10)
    z = rng.standard_normal((n, 2))
    rest = 0.0
    for i in range(n):
        others = np.arange(n) != i
        rest += ((x[i] - LinearRegression().fit(z[others], x[others]).predict(z[i : i + 1])[0]) ** 2).sum()
    assert variance_explained(x, z) == pytest.approx(1 - rest / alone, abs=1e-10)


@SEEDS
def test_a_split_gives_what_scikit_learn_gives(seed: int):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 300)
    x = rng.standard_normal((300, 7)) * np.arange(1, 8) + np.linspace(0, 2, 5)[labels][:, None]
    fit = rng.random(300) < 0.6
    onehot = np.eye(5)[labels]
    said = LinearRegression(fit_intercept=False).fit(onehot[fit], x[fit]).predict(onehot[~fit])
    wanted = 1 - ((x[~fit] - said) ** 2).sum() / ((x[~fit] - x[fit].mean(0)) ** 2).sum()
    assert variance_explained(x, labels, fit=fit) == pytest.approx(wanted, abs=1e-12)
    # scikit-learn centres by the mean of the evaluated samples, which can only make the share smaller
    peer = r2_score(x[~fit], said, multioutput="variance_weighted")
    assert peer <= wanted
    assert wanted == pytest.approx(peer, abs=0.05)
    single = 1 - ((x[~fit] - said) ** 2).sum(1) / ((x[~fit] - x[fit].mean(0)) ** 2).sum(1)
    assert variance_explained(x, labels, fit=fit, form="sample") == pytest.approx(single.mean(), abs=1e-10)


def test_identity_chance_and_total():
    f = np.where(np.arange(200) % 2 == 0, 1.0, -1.0)
    assert variance_explained(f[:, None], f) == pytest.approx(1, abs=1e-12)
    assert variance_explained(f[:, None], (f > 0).astype(int)) == pytest.approx(1, abs=1e-12)
    rng = np.random.default_rng(0)
    held, corrected, raw = [], [], []
    for _ in range(300):
        x, labels = rng.standard_normal((60, 8)), rng.permutation(np.arange(60) % 6)
        found = label_variance(x, labels)
        held.append(variance_explained(x, labels))
        corrected.append(found.share)
        raw.append(found.raw)
    assert np.mean(held) < -0.05, "about -k/n"
    assert abs(np.mean(corrected)) < 4 * np.std(corrected) / np.sqrt(300)
    assert np.mean(raw) == pytest.approx(found.chance, abs=0.01)
    x = rng.standard_normal((500, 3)) + 2 * f[: 500 if len(f) >= 500 else None].repeat(5)[:500, None]
    g = f.repeat(5)[:500]
    own = float(((x - x.mean(0)) ** 2).sum(1).mean())
    once, scaled = variance_explained(x, g), variance_explained(x, g, total=2 * own)
    assert scaled == pytest.approx(once * (500 / 499) ** 2 / 2, rel=1e-9)
    assert variance_explained(x, (g > 0).astype(int), total=2 * own) == pytest.approx(scaled, abs=1e-5)


def test_standard_error_is_the_spread_over_samples():
    rng = np.random.default_rng(5)
    root = np.diag([3.0, 1.0, 0.5, 0.2]) @ np.linalg.qr(rng.standard_normal((4, 4)))[0]
    means = rng.standard_normal((3, 4))
    labels = np.arange(240) % 3
    found = [label_variance(means[labels] + rng.standard_normal((240, 4)) @ root, labels) for _ in range(400)]
    spread = np.std([each.share for each in found])
    assert np.mean([each.standard_error for each in found]) == pytest.approx(spread, rel=0.12)


def test_per_class_sums_merge():
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((100, 5)) + 3, np.arange(100) % 4
    one, two = (LabelMoments(second="trace") for _ in range(2))
    one.update(x[:33], labels=labels[:33])
    two.update(x[33:], labels=labels[33:])
    assert held_out_share(one.merge(two).result()) == pytest.approx(variance_explained(x, labels), abs=1e-12)
    full = LabelMoments(second="full")
    full.update(x, labels=labels)
    with pytest.raises(InputError, match="trace"):
        held_out_share(full.result())


def test_an_interaction_is_found_as_a_product():
    rng = np.random.default_rng(2)
    _, values = binary_features(2000, ("bit", "xor"), seed=2)
    signs = 2 * values - 1
    x = np.column_stack([signs[:, 0], 2 * signs.prod(1)]) + 0.01 * rng.standard_normal((2000, 2))
    profile = variance_profile(x, values, names=("a", "b"))
    assert profile.names == ("a", "b", "a x b")
    assert profile.share == pytest.approx([0.2, 0, 0.8], abs=2e-3)
    assert profile.warnings == ()
    assert "'a' explains 19.9 %" in profile.paragraph()


def test_what_stands_against_a_comparison_is_said():
    rng = np.random.default_rng(3)
    a = rng.integers(0, 2, 1000)
    b = np.where(rng.random(1000) < 0.3, a, rng.integers(0, 2, 1000))
    rare = (rng.random(1000) < 0.02).astype(int)
    x = rng.standard_normal((1000, 4)) + a[:, None]
    with pytest.warns(UserWarning, match="overlap|Not matched"):
        profile = variance_profile(x, np.column_stack([a, b]), accuracy=(1.0, 0.97))
    assert any("Not matched" in text for text in profile.warnings)
    assert profile.share[1] > 0.01 > profile.unique[1], "the second is seen only through the first"
    with pytest.warns(UserWarning, match="95 %"):
        variance_profile(x, np.column_stack([a, rare]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        variance_profile(x, a[:, None])


def test_bad_input_is_one_sentence():
    x, labels = np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2
    hole = x.copy()
    hole[3, 1] = np.nan
    cases = [
        lambda: label_variance(x, None),
        lambda: label_variance(x, np.zeros(20, int)),
        lambda: label_variance(x, np.arange(20)),
        lambda: label_variance(np.full((20, 3), 7.3), labels),
        lambda: variance_explained(np.full((20, 3), 1e6 + 0.1), labels),
        lambda: variance_explained(np.full((20, 3), 0.1), labels.astype(float)),
        lambda: variance_explained(x, np.ones(20)),
        lambda: variance_explained(x, np.zeros(20, int)),
        lambda: variance_explained(x, np.arange(20) // 19),
        lambda: variance_explained(x, labels[:5]),
        lambda: variance_explained(x, labels.astype(float) / 0),
        lambda: variance_explained(x, labels, fit=np.ones(20, bool)),
        lambda: variance_explained(x, labels, form="mean"),  # type: ignore[arg-type]
        lambda: variance_explained(x, labels, form="sample"),
        lambda: variance_explained(x, labels, total=0.0),
        lambda: variance_profile(x, labels),
        lambda: variance_profile(x, np.arange(40).reshape(20, 2)),
        lambda: variance_profile(x, labels[:, None], names=("a", "b")),
    ]
    for case in cases:
        with np.errstate(all="ignore"), pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)
    with pytest.raises(NonFiniteError):
        variance_explained(hole, labels)


def test_a_collapsed_class_has_all_the_variance():
    labels = torch.arange(30) % 3
    found = label_variance(torch.eye(3)[labels], labels)
    assert found.share == pytest.approx(1)
    assert found.standard_error == 0
    dead = torch.cat([torch.eye(3)[labels], torch.zeros(30, 2)], 1)
    assert label_variance(dead, labels).share == pytest.approx(1), "a unit that never varies counts for nothing"
