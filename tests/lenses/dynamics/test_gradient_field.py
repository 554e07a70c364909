"""The expected gradient field against autograd and sampling, and weights at known angles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.data.structured_tasks import separable_xor, unstructured_task
from netloupe.lenses.dynamics.gradient_field import (
    expected_gradient_field,
    gradient_field,
    specialisation,
    weight_axes,
)
from netloupe.models.shallow import ShallowNet
from netloupe.nn.activations import activation

TASK = unstructured_task(4, 20, seed=3)
GRID = np.random.default_rng(0).standard_normal((6, 2)) * 0.4


@pytest.mark.parametrize("name", ["tanh", "relu", "hardtanh", "softplus", "noisy_relu", "identity"])
def test_the_field_is_the_gradient_of_a_network_that_knows_nothing(name: str):
    """With the readout's logit at zero the output is 1/2, and one descent step moves weights along the field."""
    plane = weight_axes(TASK.means, TASK.labels).plane
    found = expected_gradient_field(TASK.means, TASK.labels, name, 0.7, GRID, bias=0.1)
    for point, wanted in zip(GRID, found):
        weight = torch.from_numpy(point @ plane).requires_grad_()
        x, y = torch.from_numpy(TASK.means), torch.from_numpy(TASK.labels[:, 0])
        hidden = activation(name)(x @ weight + 0.1)
        logit = 0.7 * (hidden - hidden.detach())
        loss = F.softplus(-y * logit).mean()
        (slope,) = torch.autograd.grad(loss, weight)
        np.testing.assert_allclose(-slope.numpy() @ plane.T, wanted, atol=1e-10)


@pytest.mark.parametrize("name", ["tanh", "relu", "clip"])
def test_the_field_over_noise_is_the_mean_over_noise(name: str):
    plane = weight_axes(TASK.means, TASK.labels).plane
    rng = np.random.default_rng(1)
    grid = GRID[:3]
    found = expected_gradient_field(TASK.means, TASK.labels, name, 1.0, grid, noise=0.6)
    module = activation(name)
    total = np.zeros_like(found)
    n = 60_000
    for mu, label in zip(TASK.means, TASK.labels[:, 0]):
        x = mu + 0.6 * rng.standard_normal((n, 20))
        for index, point in enumerate(grid):
            slope = module.deriv(torch.from_numpy(x @ (point @ plane))).numpy()
            total[index] += label / 2 * (slope[:, None] * (x @ plane.T)).mean(0) / 4
    np.testing.assert_allclose(found, total, atol=0.02)
    zero = expected_gradient_field(TASK.means, TASK.labels, name, 1.0, grid, noise=1e-9)
    np.testing.assert_allclose(zero, expected_gradient_field(TASK.means, TASK.labels, name, 1.0, grid), atol=1e-6)


def test_the_noisy_field_of_a_rectifier_is_its_closed_form():
    """``E f' = Phi(m / s)`` and ``E f' z = phi(m / s)``."""
    from scipy.stats import norm

    plane = weight_axes(TASK.means, TASK.labels).plane
    found = expected_gradient_field(TASK.means, TASK.labels, "relu", 1.0, GRID, noise=0.4)
    inside = TASK.means @ plane.T
    length = np.linalg.norm(GRID, axis=1)
    ratio = GRID @ inside.T / (0.4 * length[:, None])
    pull = TASK.labels[:, 0] / 8
    wanted = (norm.cdf(ratio) * pull) @ inside + 0.4 * (norm.pdf(ratio) @ pull)[:, None] * GRID / length[:, None]
    np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_axes():
    axes = weight_axes(TASK.means, TASK.labels)
    plus, minus = TASK.means[:2].mean(0), TASK.means[2:].mean(0)
    assert abs(axes.inter @ (plus - minus)) == pytest.approx(np.linalg.norm(plus - minus))
    np.testing.assert_allclose(axes.plane @ axes.plane.T, np.eye(2), atol=1e-12)
    for first, second in ((0, 1), (2, 3)):
        difference = TASK.means[first] - TASK.means[second]
        difference -= difference @ axes.inter * axes.inter
        np.testing.assert_allclose(difference @ axes.intra.T @ axes.intra, difference, atol=1e-10)


def test_specialisation_at_known_angles():
    axes = weight_axes(TASK.means, TASK.labels)
    angles = np.array([0.0, 0.3, np.pi / 2])
    off = np.linalg.svd(np.concatenate([axes.inter[None], axes.intra]))[2][-1]  # outside the conditions' space
    weight = np.outer(np.cos(angles), axes.inter) + np.outer(np.sin(angles), axes.intra[1]) + 4 * off
    found = specialisation(weight, TASK.means, TASK.labels)
    np.testing.assert_allclose(found.cosine, np.abs(np.cos(angles)), atol=1e-9)
    lone = np.linalg.pinv(TASK.means).T  # responds with 1 to one condition and 0 to the others
    peaked = specialisation(lone, TASK.means, TASK.labels, activation="relu")
    np.testing.assert_allclose(peaked.selectivity, np.sqrt(3), atol=1e-6)
    assert peaked.summary()["most_possible"] == pytest.approx(np.sqrt(3))
    half = (lone[0] + lone[1])[None]
    assert specialisation(half, TASK.means, TASK.labels).selectivity[0] == pytest.approx(1)
    dead = specialisation(lone, TASK.means, TASK.labels, bias=np.full(4, -5.0), activation=nn.ReLU())
    assert dead.summary()["unresponsive"] == 1
    assert "selectivity" not in dead.summary()
    assert dead.paragraph()


def test_findings_are_saved_and_drawn(tmp_path):
    net = ShallowNet(20, 8, activation="relu")
    one = specialisation(net.hidden.weight, TASK.means, TASK.labels, net.hidden.bias, net.act)
    paths = np.stack([net.hidden.weight.detach().numpy()] * 3)
    other = gradient_field(TASK.means, TASK.labels, net.act, 0.5, noise=0.3, n_points=5, paths=paths)
    for finding in (one, other, gradient_field(TASK.means, TASK.labels, "tanh", 0.5)):
        assert Finding.load(finding.save(tmp_path / "f")) == finding
        assert set(finding.summary()) <= set(finding.meanings)
        finding.plot(Figure().subplots())
    assert other.field.shape == (25, 2)


def test_refusals():
    xor = separable_xor(30, 0.0)
    square = np.array([[0, 0], [0, 1], [1, 0], [1, 1.0]])
    cases = [
        (lambda: weight_axes(xor.means, xor.labels), "coincide"),
        (lambda: weight_axes(square, [0, 0, 0, 0]), "one label"),
        (lambda: weight_axes(np.eye(2), [0, 1]), "do not differ"),
        (lambda: weight_axes(square, [0, 1]), "one label a condition"),
        (lambda: expected_gradient_field(TASK.means, TASK.labels, "tanh", 1.0, np.zeros((3, 3))), "grid has shape"),
        (lambda: expected_gradient_field(TASK.means, TASK.labels, "tanh", 1.0, GRID, noise=-1), "noise is"),
        (
            lambda: expected_gradient_field(TASK.means, TASK.labels, "tanh", 1.0, GRID, axes=np.ones((2, 20))),
            "orthonormal",
        ),
        (lambda: expected_gradient_field(TASK.means, TASK.labels, "step", 1.0, GRID), "activation 'step'"),
        (lambda: specialisation(np.ones((3, 4)), TASK.means, TASK.labels), "weight has shape"),
        (lambda: specialisation(np.zeros((3, 20)), TASK.means, TASK.labels), "right angles"),
        (lambda: gradient_field(TASK.means, TASK.labels, "tanh", 0.0), "extent"),
    ]
    for bad, words in cases:
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(NonFiniteError):
        weight_axes(TASK.means * np.nan, TASK.labels)
