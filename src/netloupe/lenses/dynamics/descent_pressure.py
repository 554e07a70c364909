"""Which way the first step of training pushes activations: the expected gradient over random layers above them.

Source: Li et al., "The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers", arXiv 2210.06313,
theorem on the gradient at initialisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Context, Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Head = Callable[[Tensor], Tensor]
BuildHead = Callable[[torch.Generator], Head]
Z95 = 1.96


@dataclass(frozen=True, eq=False)
class DescentPressure(Finding):
    """The gradient of the loss with respect to pre-activations, averaged over ``n_draws`` random heads.

    ``pre_activations``, ``mean_gradient`` and ``z_score`` are float64 of one shape, ``(unit,)`` or ``(sample, unit)``.
    A positive gradient means that descent lowers the unit. ``z_score`` is the mean over its standard error, 0 where
    every draw gave 0.
    """

    pre_activations: np.ndarray
    mean_gradient: np.ndarray
    z_score: np.ndarray
    n_draws: int

    meanings: ClassVar[dict[str, str]] = {
        "pushed_down": "share of active units that descent lowers on average",
        "surely_down": "share of active units lowered beyond chance (z above 1.96)",
        "surely_up": "share of active units raised beyond chance (z below -1.96)",
        "mean_pressure": "mean gradient of the active units; positive lowers them",
        "inactive_pressure": "largest absolute mean gradient of an inactive unit",
    }

    @property
    def active(self) -> np.ndarray:
        """Bool, shape of ``pre_activations``: where it is above 0."""
        return self.pre_activations > 0

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains; NaN for the active units where none is."""
        gradient, z = self.mean_gradient[self.active], self.z_score[self.active]
        shares = [float(np.mean(values)) if len(z) else float("nan") for values in (gradient > 0, z > Z95, z < -Z95)]
        quiet = np.abs(self.mean_gradient[~self.active])
        return {
            "pushed_down": shares[0],
            "surely_down": shares[1],
            "surely_up": shares[2],
            "mean_pressure": float(gradient.mean()) if len(gradient) else float("nan"),
            "inactive_pressure": float(quiet.max(initial=0.0)),
        }

    def plot(self, axes: Axes) -> None:
        """Mean gradient of every unit over its pre-activation, with 95 % intervals."""
        x, y, z = (np.ravel(values) for values in (self.pre_activations, self.mean_gradient, self.z_score))
        error = np.divide(np.abs(y), np.abs(z), out=np.zeros_like(y), where=z != 0) * Z95
        axes.errorbar(x, y, error, fmt="o", markersize=3, linewidth=0.8, color="C0")
        axes.axhline(0, color="0.4", linewidth=0.8)
        axes.set(xlabel="pre-activation", ylabel="mean gradient (positive: lowered)")


def activation_gradient_sign(
    build_head: BuildHead,
    p: Float[Tensor, " unit"] | Float[Tensor, "sample unit"] | Any,
    n_draws: int = 2000,
    *,
    activation: Callable[[Tensor], Tensor] = F.relu,
    random_state: int = 0,
) -> DescentPressure:
    """``E_V[dL/dp]``: does gradient descent lower or raise the units of a layer, on average over what lies above it?

    For ``L = loss(V relu(p))`` with cross-entropy or squared error and entries of ``V`` independent with mean zero, the
    expectation is positive for every ``p_i > 0``: descent lowers active units, and since inactive ones get no
    gradient, activity shrinks before anything is learned (arXiv 2210.06313). With a head that is drawn otherwise the
    sign is open, which this measures.

    Args:
        build_head: draws one head: ``build_head(generator) -> head``, and ``head(activations) -> scalar loss``.
            :func:`random_linear_head` makes the theorem's.
        p: pre-activations, ``(unit,)`` or ``(sample, unit)``; computed in float64.
        n_draws: heads drawn, at least 2. The error of the mean falls as ``1 / sqrt(n_draws)``.
        activation: what turns ``p`` into activations, ReLU by default.
        random_state: seed of the generator that ``build_head`` gets; the global random state is not used.

    Cost: ``n_draws`` forward and backward passes through the head. Raises InputError for fewer than 2 draws, empty
    ``p``, a head whose answer is no scalar or does not depend on the activations, NonFiniteError for NaN or infinity.
    """
    given = torch.as_tensor(p).detach().double()
    if given.ndim not in (1, 2) or given.numel() == 0 or n_draws < 2:
        raise InputError(
            f"p has shape {tuple(given.shape)} and n_draws is {n_draws}, expected (unit,) or (sample, unit) with at "
            "least one value, and at least 2 draws"
        )
    if not bool(torch.isfinite(given).all()):
        raise NonFiniteError("p holds NaN or infinity; drop such samples or look for an overflow in the network")
    generator = torch.Generator().manual_seed(random_state)
    mean, squares = torch.zeros_like(given), torch.zeros_like(given)
    for draw in range(1, n_draws + 1):
        gradient = _gradient(build_head(generator), given, activation)
        step = gradient - mean
        mean += step / draw
        squares += step * (gradient - mean)
    error = (squares / (n_draws - 1) / n_draws).sqrt()
    score = torch.where(error > 0, mean / error, torch.where(mean == 0, 0.0, mean.sign() * torch.inf))
    context = Context(
        n_samples=given.shape[0] if given.ndim == 2 else 1, seed=random_state, options={"n_draws": n_draws}
    )
    return DescentPressure(given.numpy(), mean.numpy(), score.numpy(), n_draws, context=context)


def _gradient(head: Head, p: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.enable_grad():
        leaf = p.clone().requires_grad_()
        loss = head(activation(leaf))
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise InputError(
                "the head's answer is not one number that depends on the activations; let build_head return a function "
                "from activations to a scalar loss"
            )
        (gradient,) = torch.autograd.grad(loss.reshape(()), leaf)
    if not bool(torch.isfinite(gradient).all()):
        raise NonFiniteError("the gradient of a drawn head is NaN or infinite; draw smaller weights")
    return gradient


def random_linear_head(
    n_units: int,
    n_outputs: int,
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy",
    *,
    std: float | None = None,
    mean: float | Float[Tensor, "output unit"] = 0.0,
    label: int | None = None,
) -> BuildHead:
    """Heads ``V`` with independent normal entries for :func:`activation_gradient_sign`.

    Args:
        n_units, n_outputs: shape of ``V``, ``(n_outputs, n_units)``.
        loss: ``cross_entropy``, or ``squared_error`` = half the squared distance to the one-hot label, summed over
            outputs; both averaged over samples.
        std: of the entries, ``1 / sqrt(n_units)`` by default.
        mean: of the entries, one number or a matrix; the theorem needs 0.
        label: of all samples; None draws one for each sample and draw.

    Raises InputError for sizes below 1, an unknown loss or a label that is not an output.
    """
    if min(n_units, n_outputs) < 1 or loss not in ("cross_entropy", "squared_error"):
        raise InputError(
            f"n_units is {n_units}, n_outputs is {n_outputs} and loss is '{loss}', expected positive sizes and "
            "cross_entropy or squared_error"
        )
    if label is not None and not 0 <= label < n_outputs:
        raise InputError(f"label is {label}, expected 0 to {n_outputs - 1}; or None to draw it")
    spread = n_units**-0.5 if std is None else std
    centre = torch.as_tensor(mean, dtype=torch.float64).expand(n_outputs, n_units)

    def build(generator: torch.Generator) -> Head:
        weight = centre + spread * torch.randn(n_outputs, n_units, generator=generator, dtype=torch.float64)

        def head(activations: Tensor) -> Tensor:
            logits = torch.atleast_2d(activations) @ weight.T
            low, high = (0, n_outputs) if label is None else (label, label + 1)
            labels = torch.randint(low, high, (len(logits),), generator=generator)
            if loss == "cross_entropy":
                return F.cross_entropy(logits, labels)
            return 0.5 * ((logits - F.one_hot(labels, n_outputs)) ** 2).sum(1).mean()

        return head

    return build


def squared_error_pressure(p: Float[Tensor, " unit"] | Any, n_outputs: int, variance: float) -> np.ndarray:
    """Closed form of the expectation for half the squared error: ``n_outputs * variance * relu(p)``, ``(unit,)``.

    ``variance`` is that of the head's entries, which have mean zero and are independent. Twice this where the loss is
    the full square.
    """
    values = np.maximum(torch.as_tensor(p).detach().double().numpy(), 0.0)
    return n_outputs * variance * values
