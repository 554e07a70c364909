"""Activation functions whose derivative can be set apart from the function: which property of a nonlinearity matters?

Source: Alleman, Lindsey and Fusi, arXiv 2401.13558: saturation on two sides or one, a kink or smoothness at the origin, and
the derivative itself, which is replaced while the function stays what it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netloupe.core.errors import InputError

Function = Callable[[Tensor], Tensor]
Gradient = Literal["own", "linear"]


@dataclass(frozen=True)
class Shape:
    """An elementwise function, its derivative, and the places where the derivative jumps."""

    function: Function
    derivative: Function
    kinks: tuple[float, ...] = ()


def _step(low: float, high: float) -> Function:
    return lambda x: ((x > low) & (x < high)).to(x.dtype)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


SHAPES: dict[str, Shape] = {
    "tanh": Shape(torch.tanh, lambda x: 1 - torch.tanh(x) ** 2),
    "relu": Shape(torch.relu, _step(0.0, math.inf), (0.0,)),
    "hardtanh": Shape(F.hardtanh, _step(-1.0, 1.0), (-1.0, 1.0)),
    "softplus": Shape(F.softplus, torch.sigmoid),
    "sigmoid": Shape(torch.sigmoid, lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x))),
    "clip": Shape(lambda x: x.clamp(0, 1), _step(0.0, 1.0), (0.0, 1.0)),
    "noisy_relu": Shape(torch.relu, _normal_cdf),
    "identity": Shape(lambda x: x, torch.ones_like),
}
"""``noisy_relu`` is a ReLU whose derivative is that of a ReLU averaged over noise in its input, ``(1 + erf(x / sqrt 2)) / 2``"""


class WithDerivative(nn.Module):
    """``function`` going forward, ``derivative`` going back.

    Args:
        function: elementwise. derivative: elementwise, of the input; None takes the function's own, by autograd. kinks: where
            the derivative jumps, for those who integrate over it. name: shown by ``repr``.
    """

    def __init__(
        self,
        function: Function,
        derivative: Function | None = None,
        kinks: tuple[float, ...] = (),
        name: str = "",
    ) -> None:
        super().__init__()
        self.function, self.derivative, self.kinks = function, derivative, tuple(kinks)
        self.name = name or getattr(function, "__name__", type(function).__name__)

    def forward(self, x: Tensor) -> Tensor:
        """``function(x)``, any shape."""
        return self.function(x) if self.derivative is None else _Replaced.apply(x, self.function, self.derivative)

    def deriv(self, x: Tensor) -> Tensor:
        """What a gradient is multiplied with on its way back through ``x``, any shape."""
        if self.derivative is not None:
            return self.derivative(x)
        with torch.enable_grad():
            inputs = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.function(inputs).sum(), inputs)
        return slope

    def extra_repr(self) -> str:
        """Name, and whether the derivative is the function's own."""
        return self.name if self.derivative is None else f"{self.name}, derivative set"


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Function, derivative: Function) -> Tensor:
        ctx.save_for_backward(x)
        ctx.derivative = derivative
        return function(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.derivative(x), None, None


def activation(name: str, gradient: Gradient | Function = "own", beta: float = 1.0) -> WithDerivative:
    """A named activation (``SHAPES``), with its own derivative or another.

    Args:
        gradient: ``own``; ``linear`` passes gradients back as if the function were the identity (the ablation); or a function.
        beta: width of the noise that the derivative of ``noisy_relu`` is averaged over; sharpness of ``softplus``.

    Raises InputError for unknown names and a ``beta`` that is not positive.
    """
    if name not in SHAPES or not (callable(gradient) or gradient in ("own", "linear")) or not beta > 0:
        raise InputError(
            f"activation '{name}' with gradient {gradient!r} and beta {beta} was asked for; one of {', '.join(SHAPES)}, 'own', "
            "'linear' or a function, and a positive number are expected"
        )
    shape = SHAPES[name]
    function, derivative = shape.function, shape.derivative
    if name == "noisy_relu":
        derivative = lambda x: _normal_cdf(x / beta)  # noqa: E731
    elif name == "softplus" and beta != 1:
        function, derivative = (lambda x: F.softplus(x, beta)), (lambda x: torch.sigmoid(beta * x))
    if callable(gradient):
        return WithDerivative(function, gradient, (), name)
    if gradient == "linear":
        return WithDerivative(function, torch.ones_like, (), f"{name}, linear gradient")
    # what autograd finds by itself is the same and faster, except where the derivative is not the function's
    return WithDerivative(function, derivative if name == "noisy_relu" else None, shape.kinks, name)
