"""The perturbation operator against Kronecker products, an autograd Hessian, re-solved models and its spectrum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import svdvals

from netloupe.core.errors import InputError
from netloupe.lenses.geometry import collapse_operator as module
from netloupe.lenses.geometry.collapse_operator import block_singular_values, collapse_operator, collapse_spectrum
from netloupe.lenses.geometry.near_collapse import collapsed_solution, near_feature_minimiser, optimal_classifier

SIZES = [(4, 10, 10), (3, 7, 5)]


def gaussian(n_classes, n_units, n_per_class, seed=0):
    labels = np.repeat(np.arange(n_classes), n_per_class)
    return np.random.default_rng(seed).standard_normal((len(labels), n_units)), labels


def kronecker_operator(features, weight, labels, lambda_w, lambda_h, beta):
    """The first-order operator as written in column-stacked matrices, features ``(unit, sample)``."""
    columns, n_samples, n_units = features.T, *features.shape
    n_classes = len(weight)
    residual = weight @ columns - np.eye(n_classes)[labels].T
    pairs = [(i, k) for i in range(n_units) for k in range(n_classes)]
    errors = np.stack([np.outer(np.eye(n_units)[i], residual[k]).ravel(order="F") for i, k in pairs], axis=1)
    mixed = errors.T + np.kron(columns, weight)
    inner = np.kron(columns @ columns.T, np.eye(n_classes))
    inner += n_samples // n_classes * lambda_w * np.eye(n_units * n_classes)
    reaction = mixed.T @ np.linalg.solve(inner, mixed)
    size = n_samples * n_units
    bent = np.kron(np.eye(n_samples), weight.T @ weight)
    return (1 - lambda_h / beta) * np.eye(size) - bent / beta + reaction / beta


def as_matrix(operator):
    return np.asarray(operator @ np.eye(operator.shape[0]))


def test_operator_equals_its_kronecker_form():
    features, labels = gaussian(3, 5, 4)
    labels = labels[np.random.default_rng(1).permutation(len(labels))]
    weight = optimal_classifier(features, labels, 0.3)
    operator = collapse_operator(features, weight, labels, 0.3, 0.2, 50.0)
    expected = kronecker_operator(features, weight, labels, 0.3, 0.2, 50.0)
    np.testing.assert_allclose(as_matrix(operator), expected, atol=1e-13)


def test_exact_operator_equals_the_inverse_autograd_hessian():
    features, labels = gaussian(3, 4, 3)
    lambda_w, lambda_h, beta = 0.3, 0.2, 2.0
    solution = near_feature_minimiser(features, labels, lambda_w, lambda_h, beta)
    targets, origin = torch.eye(3, dtype=torch.float64)[torch.tensor(labels)], torch.tensor(features)

    def loss(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        tie = lambda_h * values.square().sum() + beta * (values - origin).square().sum()
        return ((values @ weight.T - targets).square().sum() + tie + 3 * lambda_w * weight.square().sum()) / 18

    blocks = torch.autograd.functional.hessian(loss, (torch.tensor(solution.features), torch.tensor(solution.weight)))
    (ff, fw), (wf, ww) = [[block.reshape(rows, -1) for block in row] for row, rows in zip(blocks, (36, 12))]  # type: ignore[union-attr]
    expected = beta / 9 * torch.linalg.inv(ff - fw @ torch.linalg.inv(ww) @ wf)
    operator = collapse_operator(solution.features, solution.weight, labels, lambda_w, lambda_h, beta, exact=True)
    np.testing.assert_allclose(as_matrix(operator), expected, atol=1e-11)


@pytest.mark.parametrize("exact", [False, True])
def test_matrix_free_and_assembled_operators_agree(monkeypatch, exact):
    features, labels = gaussian(3, 6, 4)
    solution = near_feature_minimiser(features, labels, 0.3, 0.2, 3.0)
    arguments = (solution.features, solution.weight, labels, 0.3, 0.2, 3.0)
    dense = as_matrix(collapse_operator(*arguments, exact=exact))
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    free = collapse_operator(*arguments, exact=exact)
    vector = np.random.default_rng(5).standard_normal(features.size)
    np.testing.assert_allclose(free @ vector, dense @ vector, atol=1e-11)
    np.testing.assert_allclose(free.rmatvec(vector), dense.T @ vector, atol=1e-11)
    np.testing.assert_allclose(as_matrix(free), dense, atol=1e-11)
    np.testing.assert_allclose(free @ np.eye(features.size)[:, :5], dense[:, :5], atol=1e-11)


def test_large_operators_are_applied_without_a_matrix():
    """40 000 coordinates: the matrix alone would take 12.8 GB."""
    features, weight, labels = collapsed_solution(10, 40, 100, 0.5, 0.3)
    operator = collapse_operator(features, weight, labels, 0.5, 0.3, 100.0)
    inside = np.zeros_like(features)
    inside[0], inside[1] = weight[0], -weight[0]  # a change inside class 0, in the span of the class means
    level = 1 - np.sqrt(0.3 / 0.5) / 100
    np.testing.assert_allclose(operator @ inside.ravel(), level * inside.ravel(), atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("lambda_w", "lambda_h"), [(np.sqrt(2), 0.05), (np.sqrt(2), 0.3), (0.5, 0.5), (0.2, 1.0)])
def test_spectrum_at_collapse_matches_the_closed_form(sizes, lambda_w, lambda_h):
    features, weight, labels = collapsed_solution(*sizes, lambda_w, lambda_h, 7)
    operator = collapse_operator(features, weight, labels, lambda_w, lambda_h, 100.0)
    spectrum = collapse_spectrum(*sizes, lambda_w, lambda_h, 100.0)
    assert spectrum.multiplicities.sum() == sizes[1] * sizes[2]
    assert spectrum.values[-1] == pytest.approx(1 - np.sqrt(lambda_h / lambda_w) / 100)
    for index in (0, sizes[0] - 1):
        inside = block_singular_values(operator, labels, index, index)
        np.testing.assert_allclose(inside, spectrum.expanded(), atol=1e-9)
    across = block_singular_values(operator, labels, 0, 1)
    np.testing.assert_allclose(across[0], spectrum.cross, atol=1e-9)
    np.testing.assert_allclose(across[1:], 0, atol=1e-9)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    n_classes=st.integers(2, 4),
    extra=st.integers(0, 3),
    n_per_class=st.integers(2, 4),
    lambda_w=st.floats(0.05, 3),
    joint=st.floats(0.05, 1.0),
    beta=st.floats(0.5, 1000),
)
def test_spectrum_holds_for_any_size_and_penalty(n_classes, extra, n_per_class, lambda_w, joint, beta):
    lambda_h = joint**2 / lambda_w * (1 - 1e-12)
    sizes = (n_classes, n_classes + extra, n_per_class)
    features, weight, labels = collapsed_solution(*sizes, lambda_w, lambda_h)
    operator = collapse_operator(features, weight, labels, lambda_w, lambda_h, beta)
    spectrum = collapse_spectrum(*sizes, lambda_w, lambda_h, beta)
    scale = max(1.0, spectrum.values[0])
    inside = block_singular_values(operator, labels, 1, 1)
    np.testing.assert_allclose(inside, spectrum.expanded(), atol=1e-9 * scale)


def test_features_away_from_collapse_have_another_spectrum():
    features, labels = gaussian(4, 10, 10)
    weight = optimal_classifier(features, labels, 0.5)
    operator = collapse_operator(features, weight, labels, 0.5, 0.3, 100.0)
    inside = block_singular_values(operator, labels, 0, 0)
    assert np.abs(inside - collapse_spectrum(4, 10, 10, 0.5, 0.3, 100.0).expanded()).max() > 1e-4


def test_operator_predicts_the_solved_model():
    features, weight, labels = collapsed_solution(4, 10, 10, 0.5, 0.3)
    noise = np.random.default_rng(0).standard_normal(features.shape)
    errors = {}
    for size in (1e-3, 1.0):
        moved = near_feature_minimiser(features + size * noise, labels, 0.5, 0.3, 100.0).features - features
        for exact in (False, True):
            operator = collapse_operator(features, weight, labels, 0.5, 0.3, 100.0, exact=exact)
            wrong = moved.ravel() - operator @ (size * noise.ravel())
            errors[size, exact] = np.linalg.norm(wrong) / (size * np.linalg.norm(noise))
    assert errors[1e-3, False] < 1e-4
    assert errors[1e-3, True] < errors[1e-3, False]
    assert errors[1.0, False] > 10 * errors[1e-3, False]


def test_first_order_error_falls_with_the_square_of_beta():
    features, weight, labels = collapsed_solution(3, 7, 5, 0.5, 0.3)
    gaps = []
    for beta in (1e2, 1e3):
        first, exact = (collapse_operator(features, weight, labels, 0.5, 0.3, beta, exact=e) for e in (False, True))
        gaps.append(svdvals(as_matrix(first) - as_matrix(exact))[0])
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.05)


def test_bad_input_is_refused_in_one_sentence():
    features, weight, labels = collapsed_solution(3, 6, 4, 0.5, 0.3)
    operator = collapse_operator(features, weight, labels, 0.5, 0.3, 10.0)
    cases = [
        (lambda: collapse_operator(features, weight.T, labels, 0.5, 0.3, 10.0), "transpose"),
        (lambda: collapse_operator(features, weight, labels, 0.5, 0.3, -1.0), "beta is -1"),
        (lambda: block_singular_values(operator, labels, 0, 3), "classes 0 and 3"),
        (lambda: block_singular_values(operator, labels[:7], 0, 1), "matching"),
        (lambda: collapse_spectrum(3, 6, 4, 2.0, 1.0, 10.0), "at most 1"),
        (lambda: collapse_spectrum(3, 6, 4, 2.0, 0.0, 10.0), "above 0"),
        (lambda: collapse_spectrum(3, 2, 4, 0.5, 0.3, 10.0), "as many units"),
    ]
    for call, fragment in cases:
        with pytest.raises(InputError, match=fragment) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_exact_operator_needs_a_minimum():
    """Zero features are a saddle of the weakly penalised loss, so no minimiser moves with the input there."""
    features, labels = np.zeros((12, 6)), np.repeat(np.arange(3), 4)
    with pytest.raises(InputError, match="no strict minimum"):
        collapse_operator(features, np.zeros((3, 6)), labels, 0.1, 0.1, 0.1, exact=True)
