"""Networks with one hidden layer, drawn and trained as in the study of task geometry, one by one or many at once.

Source: Alleman, Lindsey and Fusi, arXiv 2401.13558.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.nn.activations import activation

Weights = Literal["uniform", "normal"]
Readout = Literal["uniform", "normal", "sphere", "balanced"]


class ShallowNet(nn.Module):
    """``J f(W x + b1) + b2`` with sites ``hidden`` (before) and ``act`` (after the activation), and the readout ``head``.

    Args:
        n_inputs, width, n_outputs: d, N, m.
        activation: a name of :data:`netloupe.nn.activations.SHAPES`, or a module.
        freeze_output: J and b2 stay as drawn, so that all learning is in the hidden layer (the regime of the weight analysis).
        weights: W from U(-1, 1) or N(0, 1), over sqrt(d). readout: J from U(-1, 1) or N(0, 1), over sqrt(N); ``sphere``: rows
            of length 1; ``balanced``: every unit +1 or -1 over sqrt(N), as many of each sign pattern as possible.
        random_state: seeds the draw without touching the global random state.

    Biases are normal, over sqrt(d) and sqrt(N). Raises InputError for sizes below 1 or unknown names.
    """

    def __init__(
        self,
        n_inputs: int,
        width: int,
        n_outputs: int = 1,
        activation: str | nn.Module = "relu",
        freeze_output: bool = False,
        weights: Weights = "uniform",
        readout: Readout = "uniform",
        random_state: int = 0,
    ) -> None:
        super().__init__()
        if min(n_inputs, width, n_outputs) < 1:
            raise InputError(f"sizes {n_inputs}, {width} and {n_outputs} were given, at least 1 of each is needed")
        if weights not in ("uniform", "normal") or readout not in ("uniform", "normal", "sphere", "balanced"):
            raise InputError(
                f"weights are '{weights}' and readout '{readout}'; expected uniform or normal, for the readout also sphere "
                "or balanced"
            )
        generator = torch.Generator().manual_seed(random_state)
        with torch.random.fork_rng(devices=[]):  # linear layers initialise themselves first
            self.hidden = nn.Linear(n_inputs, width)
            self.act = _module(activation)
            self.head = nn.Linear(width, n_outputs)
        with torch.no_grad():
            self.hidden.weight.copy_(_draw(weights, (width, n_inputs), generator) / math.sqrt(n_inputs))
            self.hidden.bias.copy_(torch.randn(width, generator=generator) / math.sqrt(n_inputs))
            self.head.weight.copy_(_readout(readout, n_outputs, width, generator))
            self.head.bias.copy_(torch.randn(n_outputs, generator=generator) / math.sqrt(width))
        for parameter in self.head.parameters():
            parameter.requires_grad_(not freeze_output)

    @property
    def freeze_output(self) -> bool:
        """Whether the readout stays as drawn."""
        return not self.head.weight.requires_grad

    def forward(self, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "sample target"]:
        """Logits."""
        return self.head(self.act(self.hidden(x)))


def _module(given: str | nn.Module) -> nn.Module:
    return activation(given) if isinstance(given, str) else given


def _draw(kind: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    if kind == "normal":
        return torch.randn(shape, generator=generator)
    return 2 * torch.rand(shape, generator=generator) - 1


def _readout(kind: str, n_outputs: int, width: int, generator: torch.Generator) -> Tensor:
    if kind == "balanced":
        patterns = 1 - 2 * ((torch.arange(2**n_outputs)[:, None] >> torch.arange(n_outputs)) & 1)
        order = torch.randperm(width, generator=generator)
        return patterns[order % len(patterns)].T.float() / math.sqrt(width)
    if kind == "sphere":
        rows = torch.randn((n_outputs, width), generator=generator)
        return rows / rows.norm(dim=1, keepdim=True)
    return _draw(kind, (n_outputs, width), generator) / math.sqrt(width)


class ShallowStack(nn.Module):
    """Shallow networks of one size and one activation, trained as one; each copy's numbers are those it would have alone.

    ``forward`` takes ``(copy, sample, unit)`` and gives logits ``(copy, sample, target)``; ``hidden`` the hidden layer. ``weight``
    ``(copy, unit, width)``, ``bias`` ``(copy, 1, width)``, ``readout`` and ``offset`` likewise.
    """

    def __init__(self, networks: Sequence[ShallowNet]) -> None:
        super().__init__()
        if (
            not networks
            or len({(tuple(net.head.weight.shape), tuple(net.hidden.weight.shape)) for net in networks}) > 1
        ):
            raise InputError(f"{len(networks)} networks were given; at least one, and all of one size, are needed")
        self.weight = nn.Parameter(torch.stack([net.hidden.weight.detach().T for net in networks]))
        self.bias = nn.Parameter(torch.stack([net.hidden.bias.detach()[None] for net in networks]))
        frozen = networks[0].freeze_output
        self.readout = nn.Parameter(torch.stack([net.head.weight.detach().T for net in networks]), not frozen)
        self.offset = nn.Parameter(torch.stack([net.head.bias.detach()[None] for net in networks]), not frozen)
        self.act = networks[0].act

    def hidden(self, x: Float[Tensor, "copy sample unit"]) -> Float[Tensor, "copy sample width"]:
        """After the activation."""
        return self.act(torch.baddbmm(self.bias, x, self.weight))

    def forward(self, x: Float[Tensor, "copy sample unit"]) -> Float[Tensor, "copy sample target"]:
        """Logits."""
        return torch.baddbmm(self.offset, self.hidden(x), self.readout)

    def copy_to(self, networks: Sequence[ShallowNet]) -> None:
        """Writes each copy's weights into its network."""
        with torch.no_grad():
            for index, net in enumerate(networks):
                net.hidden.weight.copy_(self.weight[index].T)
                net.hidden.bias.copy_(self.bias[index, 0])
                net.head.weight.copy_(self.readout[index].T)
                net.head.bias.copy_(self.offset[index, 0])


def train_stack(
    networks: Sequence[ShallowNet],
    draw: Callable[[int], tuple[Float[Tensor, "copy sample unit"], Float[Tensor, "copy sample target"]]],
    steps: int,
    lr: float = 0.1,
    tolerance: float = 0.0,
    epoch: int = 25,
    watch: Callable[[int, ShallowStack], None] | None = None,
    watch_every: int = 0,
) -> int:
    """Plain gradient descent on the logistic loss, in place, all networks in step with each other.

    Args:
        draw: ``step -> (inputs, labels)`` of all copies, labels -1 and +1. lr: step size for the mean loss of a batch, summed over
            targets. tolerance: stop when no parameter has changed by more within ``epoch`` steps; 0 never stops.
        watch: called with step and stack every ``watch_every`` steps and before the first.

    Returns:
        Steps taken. The networks share one activation; freeze_output is that of the first.
    """
    stack = ShallowStack(networks)
    stack.to(networks[0].head.weight.device)
    moving: list[Tensor] = [parameter for parameter in stack.parameters() if parameter.requires_grad]
    before = [each.detach().clone() for each in moving]
    taken = steps
    for step in range(steps):
        if watch is not None and watch_every and step % watch_every == 0:
            watch(step, stack)
        inputs, labels = draw(step)
        loss = F.softplus(-labels * stack(inputs)).sum() / inputs.shape[1]
        gradients = torch.autograd.grad(loss, moving)
        with torch.no_grad():
            torch._foreach_add_(moving, gradients, alpha=-lr)
        if tolerance and (step + 1) % epoch == 0:
            changed = max(float((new - old).detach().abs().max()) for new, old in zip(moving, before))
            if changed <= tolerance:
                taken = step + 1
                break
            before = [each.detach().clone() for each in moving]
    if watch is not None and watch_every:
        watch(taken, stack)
    stack.copy_to(networks)
    return taken
