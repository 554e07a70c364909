"""The near-collapse model against its closed forms, finite differences, and gradients by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.geometry.near_collapse import (
    central_path,
    collapsed_solution,
    near_feature_minimiser,
    optimal_classifier,
    reduced_loss,
    reduced_loss_gradient,
)

CPU_PAIRS = [(0.1, 0.01), (0.01, 0.0), (1.0, 0.1)]


def gaussian(n_classes=4, n_units=20, n_per_class=10, seed=0):
    labels = np.repeat(np.arange(n_classes), n_per_class)
    return np.random.default_rng(seed).standard_normal((len(labels), n_units)), labels


def autograd_loss(features, weight, targets, lambda_w, lambda_h, n_per_class):
    misfit = (features @ weight.T - targets).square().sum() + lambda_h * features.square().sum()
    return (misfit + n_per_class * lambda_w * weight.square().sum()) / (2 * len(features))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n_classes=st.integers(2, 5),
    extra=st.integers(0, 4),
    n_per_class=st.integers(2, 5),
    lambda_w=st.floats(0.01, 5),
    joint=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
def test_collapsed_solution_has_its_closed_form_and_no_gradient(n_classes, extra, n_per_class, lambda_w, joint, seed):
    lambda_h = joint**2 / lambda_w
    features, weight, labels = collapsed_solution(n_classes, n_classes + extra, n_per_class, lambda_w, lambda_h, seed)
    means = features[::n_per_class]
    rho = (1 - joint) * np.sqrt(lambda_w / lambda_h)
    np.testing.assert_allclose(means @ means.T, rho * np.eye(n_classes), atol=1e-10 * max(1, rho))
    np.testing.assert_array_equal(features, means[labels])
    np.testing.assert_allclose(
        optimal_classifier(features, labels, lambda_w), weight, atol=1e-10 * np.abs(weight).max()
    )
    gradient = reduced_loss_gradient(features, labels, lambda_w, lambda_h)
    np.testing.assert_allclose(gradient, 0, atol=1e-11 * max(1, np.abs(weight).max()))


def test_collapsed_solution_is_not_beaten_by_other_features():
    lambda_w, lambda_h = 0.3, 0.2
    features, _, labels = collapsed_solution(3, 6, 4, lambda_w, lambda_h)
    best = reduced_loss(features, labels, lambda_w, lambda_h)
    rng = np.random.default_rng(1)
    for scale in (1e-3, 0.1, 1.0, 10.0):
        moved = features + scale * rng.standard_normal(features.shape)
        assert reduced_loss(moved, labels, lambda_w, lambda_h) > best


def test_strong_penalties_give_zero():
    features, weight, _ = collapsed_solution(3, 5, 2, 2.0, 0.6)
    assert not features.any()
    assert not weight.any()


def test_rotation_follows_the_seed():
    first, same, other = (collapsed_solution(3, 5, 2, 0.5, 0.5, seed).features for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0.01


def test_rotation_favours_no_orthant():
    """A QR routine left to itself fixes the sign of the first coordinate."""
    first = [collapsed_solution(3, 5, 2, 0.5, 0.5, seed).features[0, 0] for seed in range(20)]
    assert min(first) < 0 < max(first)


def test_classifier_and_gradient_agree_with_autograd():
    features, labels = gaussian(3, 7, 5)
    lambda_w, lambda_h = 0.4, 0.3
    tensor = torch.tensor(features, requires_grad=True)
    targets = torch.eye(3, dtype=torch.float64)[torch.tensor(labels)]
    weight = torch.tensor(optimal_classifier(features, labels, lambda_w), requires_grad=True)
    loss = autograd_loss(tensor, weight, targets, lambda_w, lambda_h, 5)
    loss.backward()
    assert weight.grad is not None
    assert tensor.grad is not None
    np.testing.assert_allclose(weight.grad.numpy(), 0, atol=1e-14)
    np.testing.assert_allclose(reduced_loss_gradient(features, labels, lambda_w, lambda_h), tensor.grad, atol=1e-14)
    assert reduced_loss(features, labels, lambda_w, lambda_h) == pytest.approx(loss.item(), rel=1e-13)


def test_gradient_agrees_with_finite_differences_of_the_reduced_loss():
    features, labels = gaussian(3, 5, 4, seed=3)
    direction = np.random.default_rng(4).standard_normal(features.shape)
    ahead, behind = (reduced_loss(features + sign * 1e-5 * direction, labels, 0.2, 0.1) for sign in (1, -1))
    slope = np.sum(reduced_loss_gradient(features, labels, 0.2, 0.1) * direction)
    assert (ahead - behind) / 2e-5 == pytest.approx(slope, rel=1e-7)


def test_classifier_survives_a_penalty_lost_in_rounding():
    """Collapsed features of huge scale: each row must still map its own class mean to one."""
    features, _, labels = collapsed_solution(3, 30, 4, 0.5, 0.3)
    found = optimal_classifier(features * 1e12, labels, 0.5)
    np.testing.assert_allclose(features * 1e12 @ found.T, np.eye(3)[labels], atol=1e-6)


def test_inputs_may_be_tensors_one_hot_and_in_any_order():
    features, labels = gaussian(3, 5, 4)
    order = np.random.default_rng(0).permutation(len(labels))
    plain = reduced_loss_gradient(features, labels, 0.2, 0.1)
    mixed = reduced_loss_gradient(torch.tensor(features[order]), np.eye(3)[labels[order]], 0.2, 0.1)
    np.testing.assert_allclose(mixed, plain[order], atol=1e-15)


@pytest.mark.parametrize(("lambda_w", "lambda_h"), CPU_PAIRS)
def test_flow_moves_all_three_numbers_the_proven_way(lambda_w, lambda_h):
    features, labels = gaussian()
    path = central_path(features, labels, lambda_w, lambda_h, n_steps=1500, record=50)
    assert path.diverged_at is None
    assert len(path.time) == 31
    assert path.time[-1] == pytest.approx(1.5)
    assert (np.diff(path.nc1_trace) < 0).all()
    assert (np.diff(path.within_scaled) < 0).all()
    assert (np.diff(path.between_scaled) > 0).all()
    assert (np.diff(path.loss) < 0).all()


@pytest.mark.parametrize(("lambda_w", "lambda_h"), CPU_PAIRS)
def test_reversed_flow_undoes_collapse(lambda_w, lambda_h):
    features, labels = gaussian()
    path = central_path(features, labels, lambda_w, lambda_h, n_steps=1500, record=50, sign=-1)
    assert (np.diff(path.nc1_trace) > 0).all()
    assert (np.diff(path.loss) > 0).all()


def test_flow_without_a_classifier_is_pure_shrinkage():
    features, labels = gaussian(3, 6, 4)
    path = central_path(features, labels, 1e9, 0.5, n_steps=200, record=100)
    np.testing.assert_allclose(path.features, features * (1 - 0.5e-3) ** 200, rtol=1e-7)
    np.testing.assert_allclose(path.nc1_trace, path.nc1_trace[0], rtol=1e-7)
    # Euler's shrinkage (1 - lambda_h step)^2k differs from the exponential by lambda_h^2 step t = 5e-5
    np.testing.assert_allclose(path.within_scaled, path.within[0], rtol=1e-4)
    np.testing.assert_allclose(path.between_scaled, path.between[0], rtol=1e-4)


def test_flow_that_explodes_stops_and_says_when():
    features, labels = gaussian(3, 6, 4)
    path = central_path(features, labels, 1.0, 2.0, step=1e100, n_steps=50, record=1)
    assert path.diverged_at is not None
    assert len(path.time) == path.diverged_at
    assert np.isfinite(path.features).all()


@pytest.mark.parametrize("beta", [0.5, 10.0, 1e4])
def test_collapsed_features_are_a_fixed_point(beta):
    features, weight, labels = collapsed_solution(4, 10, 10, 0.5, 0.3)
    solution = near_feature_minimiser(features, labels, 0.5, 0.3, beta)
    assert solution.converged
    np.testing.assert_allclose(solution.features, features, atol=1e-10)
    np.testing.assert_allclose(solution.weight, weight, atol=1e-10)


@pytest.mark.parametrize("beta", [1.0, 10.0, 100.0, 1000.0])
def test_minimiser_is_stationary_and_nearer_to_collapse(beta):
    features, labels = gaussian()
    solution = near_feature_minimiser(features, labels, 1.0, 0.1, beta)
    gradient = len(labels) * reduced_loss_gradient(solution.features, labels, 1.0, 0.1)
    assert solution.converged
    np.testing.assert_allclose(gradient + beta * (solution.features - features), 0, atol=1e-11 * beta)
    before = central_path(features, labels, 1.0, 0.1, n_steps=1).nc1_trace[0]
    after = central_path(solution.features, labels, 1.0, 0.1, n_steps=1).nc1_trace[0]
    assert after < before


def test_without_a_tie_target_the_minimiser_is_the_collapsed_solution():
    """A zero target turns the tie into a larger feature penalty, so the minimum has a closed form."""
    start, labels = gaussian(3, 6, 4)
    solution = near_feature_minimiser(np.zeros_like(start), labels, 0.2, 0.1, 0.4, start=start)
    expected = collapsed_solution(3, 6, 4, 0.2, 0.5)
    assert solution.converged
    np.testing.assert_allclose(
        solution.features @ solution.features.T, expected.features @ expected.features.T, atol=1e-9
    )
    assert solution.loss == pytest.approx(reduced_loss(expected.features, labels, 0.2, 0.5), rel=1e-12)


def test_solver_out_of_iterations_says_so():
    features, labels = gaussian()
    solution = near_feature_minimiser(features, labels, 1.0, 0.1, 1.0, max_iter=2)
    assert not solution.converged
    assert solution.n_iterations == 2
    assert solution.residual > 1e-12


def test_bad_input_is_refused_in_one_sentence():
    features, labels = gaussian(3, 6, 4)
    broken = features.copy()
    broken[0, 0] = np.nan
    cases = [
        (lambda: optimal_classifier(features, labels[:-1], 0.1), "one target per sample"),
        (lambda: optimal_classifier(features[:-1], labels[:-1], 0.1), "equal counts"),
        (lambda: optimal_classifier(features[:, :2], labels, 0.1), "as many units as classes"),
        (lambda: optimal_classifier(features, labels + 1, 0.1), "renumber"),
        (lambda: optimal_classifier(features, np.zeros(12), 0.1), "2 classes"),
        (lambda: optimal_classifier(features, np.ones((12, 3)), 0.1), "one-hot"),
        (lambda: optimal_classifier(features.ravel(), labels, 0.1), "2 axes"),
        (lambda: optimal_classifier(features, labels, 0.0), "lambda_w is 0"),
        (lambda: optimal_classifier(broken, labels, 0.1), "NaN"),
        (lambda: reduced_loss(features, labels, 0.1, -1.0), "lambda_h is -1"),
        (lambda: collapsed_solution(3, 2, 4, 0.1, 0.1), "as many units as classes"),
        (lambda: collapsed_solution(3, 4, 4, 0.1, 0.0), "lambda_h is 0"),
        (lambda: central_path(features, labels, 0.1, 0.1, sign=2), "sign is 2"),
        (lambda: near_feature_minimiser(features, labels, 0.1, 0.1, 0.0), "beta is 0"),
        (lambda: near_feature_minimiser(features, labels, 0.1, 0.1, 1.0, start=features[:, :5]), "equal shapes"),
    ]
    for call, fragment in cases:
        with pytest.raises(InputError, match=fragment) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(NonFiniteError):
        optimal_classifier(broken, labels, 0.1)
