"""Calibration error against closed forms, a plain loop and perfectly calibrated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.lenses.verification.calibration import expected_calibration_error


def two_class(confidence: np.ndarray) -> np.ndarray:
    return np.stack([confidence, 1 - confidence], 1)


@pytest.mark.parametrize(("confidence", "n_right"), [(0.9, 50), (0.6, 100), (1.0, 0), (0.75, 75)])
def test_one_confidence_gives_its_distance_from_accuracy(confidence, n_right):
    labels = (np.arange(100) >= n_right).astype(int)
    found = expected_calibration_error(two_class(np.full(100, confidence)), labels)
    assert found.ece == pytest.approx(abs(n_right / 100 - confidence), abs=1e-12)
    assert (found.counts > 0).sum() == 1
    assert found.summary()["overconfidence"] == pytest.approx(confidence - n_right / 100, abs=1e-12)
    assert found.summary()["accuracy"] == pytest.approx(n_right / 100)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(n=st.integers(1, 60), k=st.integers(1, 6), n_bins=st.integers(1, 20), seed=st.integers(0, 999))
def test_equals_a_plain_loop(n, k, n_bins, seed):
    rng = np.random.default_rng(seed)
    probs, labels = rng.dirichlet(np.full(k, 0.5), n), rng.integers(0, k, n)
    confidence, right = probs.max(1), probs.argmax(1) == labels
    total = 0.0
    for b in range(n_bins):
        inside = (confidence > b / n_bins) & (confidence <= (b + 1) / n_bins)
        if inside.any():
            total += inside.sum() / n * abs(right[inside].mean() - confidence[inside].mean())
    found = expected_calibration_error(probs, labels, n_bins)
    assert found.ece == pytest.approx(total, abs=1e-9)
    assert found.counts.sum() == n
    order = rng.permutation(n)
    assert expected_calibration_error(probs[order], labels[order], n_bins).ece == pytest.approx(total, abs=1e-9)


def test_perfect_calibration_shows_the_error_that_chance_predicts():
    rng = np.random.default_rng(0)
    errors, chances = [], []
    for _ in range(60):
        confidence = rng.uniform(0.5, 1.0, 600)
        found = expected_calibration_error(two_class(confidence), (rng.random(600) > confidence).astype(int))
        errors.append(found.ece)
        chances.append(found.chance)
    assert np.mean(errors) == pytest.approx(np.mean(chances), rel=0.1)


def test_one_class_is_always_right_and_sure():
    found = expected_calibration_error(torch.ones(5, 1), torch.zeros(5, dtype=torch.long))
    assert (found.ece, found.chance) == (0.0, 0.0)


def test_saved_and_drawn(tmp_path):
    found = expected_calibration_error(two_class(np.linspace(0.5, 1, 40)), np.zeros(40, int), 5)
    assert Finding.load(found.save(tmp_path / "ece")) == found
    assert set(found.summary()) == set(found.meanings)
    axes = Figure().subplots()
    found.plot(axes)
    assert len(axes.patches) == 5


GOOD = np.array([[0.25, 0.75], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("probs", "labels", "n_bins", "told", "kind"),
    [
        (GOOD * 3, [0, 1], 15, "apply softmax", InputError),
        (np.array([[1.5, -0.5]]), [0], 15, "apply softmax", InputError),
        (GOOD, [0, 2], 15, "labels run from 0 to 2", InputError),
        (GOOD, [0, -1], 15, "labels run from -1", InputError),
        (GOOD, [0], 15, "labels", InputError),
        (GOOD, None, 15, "no labels", InputError),
        (GOOD, [0, 1], 0, "n_bins is 0", InputError),
        (np.zeros((0, 2)), [], 15, "at least one sample", InputError),
        (np.array([[math.nan, 1.0]]), [0], 15, "nan", NonFiniteError),
    ],
)
def test_refusals_are_one_sentence(probs, labels, n_bins, told, kind):
    with pytest.raises(kind, match=told) as caught:
        expected_calibration_error(probs, labels, n_bins)
    assert "\n" not in str(caught.value)
