"""The probes: closed forms of usable information, leakage, chance, determinism, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.data import digits
from netloupe.lenses.information import usable
from netloupe.lenses.information.probes import LinearProbe, MLPProbe, draws_of, interval, judge
from netloupe.lenses.information.usable import usable_information


def two_gaussians(n: int, distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)
    features = rng.standard_normal((n, 3))
    features[:, 0] += distance * (labels - 0.5)
    return features, labels


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_probe_finds_the_information_of_two_gaussians(seed: int):
    """The posterior is logistic in the features, so usable and mutual information are one number."""
    features, labels = two_gaussians(8000, 2.0, seed)
    grid = np.linspace(-8, 8, 20001)
    likelihood = [np.exp(-((grid - m) ** 2) / 2) / np.sqrt(2 * np.pi) for m in (-1.0, 1.0)]
    mixed = sum(likelihood) / 2
    exact = sum(float(np.sum(0.5 * p * np.log2(p / mixed)) * (grid[1] - grid[0])) for p in likelihood)
    found = judge(LinearProbe(), features, labels, random_state=seed)
    assert found.bits_interval[0] - 0.01 < exact < found.bits_interval[1] + 0.01
    assert found.bits == pytest.approx(exact, abs=0.04)
    assert found.accuracy == pytest.approx(0.8413, abs=0.03)  # Phi(1)
    assert abs(found.chance_bits) < 0.03
    assert found.chance_accuracy == pytest.approx(0.5, abs=0.06)
    assert found.label_bits == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("seed", range(2))
def test_parity_is_for_the_perceptron_alone(seed: int):
    rng = np.random.default_rng(seed)
    features = rng.choice([-1.0, 1.0], (1200, 2)) + 0.1 * rng.standard_normal((1200, 2))
    labels = (features[:, 0] * features[:, 1] > 0).astype(int)
    assert abs(judge(LinearProbe(), features, labels, random_state=seed).bits) < 0.02
    assert judge(MLPProbe(), features, labels, random_state=seed).bits > 0.95


def test_bits_are_entropy_less_cross_entropy_and_scikit_learn_agrees():
    features, labels = digits(flat=True)
    probe = LinearProbe(C=0.1).fit(features[:1000], labels[:1000])
    x = features.double().numpy()
    mean, spread = x[:1000].mean(0), x[:1000].std(0)
    scaled = (x - mean) / np.where(spread > 0, spread, 1)
    peer = LogisticRegression(C=0.1, max_iter=200).fit(scaled[:1000], labels[:1000])
    given = peer.predict_proba(scaled[1000:])
    np.testing.assert_allclose(probe.predict_proba(features[1000:]), given, atol=1e-6)
    prior = np.bincount(labels[:1000]) / 1000
    rest = labels[1000:].numpy()
    entropy, cross = -np.log2(prior[rest]).mean(), -np.log2(given[np.arange(len(rest)), rest]).mean()
    assert probe.usable_information(features[1000:], rest) == pytest.approx(entropy - cross, abs=1e-5)
    assert probe.score(features[1000:], rest) == pytest.approx((given.argmax(1) == rest).mean())


@pytest.mark.parametrize("probe", [LinearProbe(), MLPProbe(16)])
def test_nothing_of_the_judged_samples_is_used_in_fitting(probe):
    features, labels = two_gaussians(400, 2.0, 0)
    first = judge(probe, features, labels, chance=False)
    changed = features.copy()
    changed[first.judged] = 1e6  # had they been used, standardisation or weights would show it
    fitted = np.setdiff1d(np.arange(400), first.judged)
    again = judge(probe, changed, labels, chance=False)
    np.testing.assert_array_equal(again.judged, first.judged)
    one, other = (clone(probe).fit(x[fitted], labels[fitted]) for x in (features, changed))
    np.testing.assert_array_equal(one.predict_proba(features), other.predict_proba(features))


def test_labels_may_be_any_whole_numbers_and_answers_repeat():
    features, labels = two_gaussians(300, 3.0, 1)
    named = np.where(labels == 0, -7, 40)
    one, other = (judge(MLPProbe(random_state=3), features, y) for y in (labels, named))
    assert one.bits == other.bits == judge(MLPProbe(random_state=3), torch.tensor(features), labels).bits
    assert set(LinearProbe().fit(features, named).predict(features)) == {-7, 40}


def test_the_interval_covers_the_mean_it_is_of():
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(200):
        values = rng.exponential(size=150)
        low, high = interval(values, draws_of(150, 300, trial))
        covered.append(low <= 1.0 <= high)
    assert 0.88 < np.mean(covered) < 0.99


def test_constant_units_offsets_and_few_samples_do_no_harm():
    features, labels = two_gaussians(40, 6.0, 0)
    wide = np.hstack([features + 1e8, np.full((40, 2), 3.0)])
    for probe in (LinearProbe(), MLPProbe()):
        assert np.isfinite(judge(probe, wide, labels).bits)
    assert judge(LinearProbe(), wide, labels).accuracy > 0.9
    few = np.arange(8) % 2
    assert np.isfinite(judge(LinearProbe(), features[:8], few).bits)
    assert judge(LinearProbe(), np.ones((40, 3)), labels).bits == pytest.approx(0, abs=1e-9)


def test_matched_size():
    for wanted, n_units, n_classes in ((1462, 16, 4), (5000, 40, 10), (3, 50, 10)):
        h = MLPProbe.matched(wanted, n_units, n_classes)
        size = h * (n_units + 1) + n_classes * (h + 1)
        assert h == 1 or abs(size - wanted) <= (n_units + 1 + n_classes) / 2


def test_refusals():
    features, labels = two_gaussians(40, 1.0, 0)
    for bad, words in [
        (lambda: LinearProbe().fit(features, np.zeros(40, int)), "at least 2 classes"),
        (lambda: LinearProbe().fit(features, np.arange(40)), "2 samples each"),
        (lambda: LinearProbe(C=0.0).fit(features, labels), "C is 0"),
        (lambda: MLPProbe(0).fit(features, labels), "n_hidden is 0"),
        (lambda: LinearProbe().fit(features, labels).predict(features[:, :2]), "fitted to 3"),
        (lambda: LinearProbe().fit(features, labels).usable_information(features, labels + 1), "not among"),
        (lambda: LinearProbe().fit(features[:, :, None], labels), "expected"),
        (lambda: judge(LinearProbe(), features, labels, share=2), "share"),
        (lambda: judge(LinearProbe(), features, None), "no labels"),
        (lambda: usable_information(features[:9], [0, 0, 0, 1, 1, 1, 1, 1, 1]), "at least 2 classes with 4"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(NonFiniteError):
        judge(LinearProbe(), np.where(np.eye(40, 3) > 0, np.nan, features), labels)


def test_the_lens_reads_a_stated_number_of_samples(monkeypatch: pytest.MonkeyPatch):
    features, labels = two_gaussians(500, 3.0, 0)
    whole = usable_information(features, labels)
    assert whole.n_fitted + whole.n_judged == 500
    assert whole.linear_bits > 0.5
    assert "A linear reader can use" in whole.paragraph()
    monkeypatch.setattr(usable, "MOST_SAMPLES", 100)
    some = usable_information(features, labels)
    assert some.n_fitted + some.n_judged == 100
    assert some == usable_information(features, labels)
