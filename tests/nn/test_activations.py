"""Activations with a derivative of their own choosing."""

from __future__ import annotations

import copy

import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.nn.activations import SHAPES, WithDerivative, activation

X = torch.linspace(-3.3, 3.1, 41, dtype=torch.float64)  # no kink falls on a point


@pytest.mark.parametrize("name", SHAPES)
def test_forward_and_derivative(name: str):
    module = activation(name)
    x = X.clone().requires_grad_()
    y = module(x)
    torch.testing.assert_close(y, SHAPES[name].function(X))
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, module.deriv(X))
    torch.testing.assert_close(module.deriv(X), SHAPES[name].derivative(X))
    if name != "noisy_relu":  # there the derivative is another function's
        step = 1e-6
        numeric = (module.function(X + step) - module.function(X - step)) / (2 * step)
        torch.testing.assert_close(slope, numeric, atol=1e-6, rtol=1e-6)
    copy.deepcopy(module)


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_a_replaced_derivative_changes_the_way_back_alone(name: str):
    linear = activation(name, "linear")
    own = activation(name, lambda x: 2 * torch.ones_like(x))
    for module, wanted in ((linear, 1.0), (own, 2.0)):
        x = X.clone().requires_grad_()
        y = module(x)
        torch.testing.assert_close(y, SHAPES[name].function(X))
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(slope, torch.full_like(X, wanted))
    assert "linear gradient" in repr(linear)


def test_widths():
    torch.testing.assert_close(activation("noisy_relu", beta=2.0).deriv(X), SHAPES["noisy_relu"].derivative(X / 2))
    sharp = activation("softplus", beta=50.0)
    torch.testing.assert_close(sharp(X), torch.relu(X), atol=0.02, rtol=0)
    torch.testing.assert_close(sharp.deriv(X), torch.sigmoid(50 * X))
    mine = WithDerivative(torch.sin)
    torch.testing.assert_close(mine.deriv(X), torch.cos(X))


@pytest.mark.parametrize("arguments", [("step",), ("relu", "quadratic"), ("relu", "own", 0.0)])
def test_unknown_ones_are_refused(arguments: tuple):
    with pytest.raises(InputError):
        activation(*arguments)
