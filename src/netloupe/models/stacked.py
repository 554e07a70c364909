"""Many small perceptrons trained as one: a stack of copies that share nothing but the clock.

Training twenty initialisations of a network of 300 weights one after the other spends its time on overhead. Here each
layer of all copies is one batched product; each copy's numbers are those of a network trained by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from netloupe.core.batches import Batch
from netloupe.core.errors import InputError

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Activations:
    """An elementwise activation with the width of its initial weights, ``gain / sqrt(fan_in)``."""

    function: Activation
    gain: float


def _centred_softplus(x: Tensor) -> Tensor:
    return F.softplus(x) - math.log(2)


ACTIVATIONS: dict[str, Activations] = {
    "tanh": Activations(torch.tanh, 1.0),
    "relu": Activations(torch.relu, 2.0),
    "softplus": Activations(F.softplus, 2.0),
    "elu": Activations(F.elu, 2.0),
    "prelu": Activations(torch.relu, 2.0),  # and a learned slope for negative values
    "swish": Activations(F.silu, 2.0),
    "abs": Activations(torch.abs, 1.0),
    "centred softplus": Activations(_centred_softplus, 2.0),
}
"""those of arXiv 1902.09037, with the gains of its code"""


class StackedMLP(nn.Module):
    """``len(seeds)`` perceptrons of the same widths, each with its own weights.

    ``forward`` takes ``(sample, unit)``, the same for all copies, or ``(copy, sample, unit)``, and gives logits ``(copy,
    sample, class)``; ``layers`` gives every hidden layer too. Weights start at truncated normals (two standard
    deviations) of width ``gain / sqrt(fan_in)``, biases at zero; copy ``i`` depends on ``seeds[i]`` alone.

    Args:
        widths: inputs, hidden layers, classes. activation: a name of ``ACTIVATIONS``, or one for each copy (neighbours
            with one activation are computed together).
        batch_norm: batch normalisation of the last hidden layer, after its activation, over each copy's own batch.
    """

    def __init__(
        self, widths: Sequence[int], activation: str | Sequence[str], seeds: Sequence[int], batch_norm: bool = False
    ) -> None:
        super().__init__()
        names = [activation] * len(seeds) if isinstance(activation, str) else list(activation)
        if len(widths) < 2 or not seeds or len(names) != len(seeds) or set(names) - set(ACTIVATIONS):
            raise InputError(
                f"widths {tuple(widths)}, {len(seeds)} seeds and activations {sorted(set(names))}; at least two widths, "
                f"one seed and one of {', '.join(ACTIVATIONS)} for each copy are needed"
            )
        self.widths, self.seeds = tuple(widths), tuple(seeds)
        self.groups: list[tuple[str, int]] = []
        for name in names:
            if self.groups and self.groups[-1][0] == name:
                self.groups[-1] = (name, self.groups[-1][1] + 1)
            else:
                self.groups.append((name, 1))
        drawn = [_draw(widths, ACTIVATIONS[name].gain, seed) for name, seed in zip(names, seeds)]
        self.weights = nn.ParameterList([torch.stack(layer) for layer in zip(*drawn)])
        self.biases = nn.ParameterList([torch.zeros(len(seeds), 1, width) for width in widths[1:]])
        hidden = widths[1:-1] if "prelu" in names else []
        self.slopes = nn.ParameterList([torch.full((len(seeds), 1, width), 0.25) for width in hidden])
        self.norm: _StackedNorm | None = _StackedNorm(len(seeds), widths[-2]) if batch_norm else None

    def forward(self, inputs: Tensor) -> Float[Tensor, "copy sample class"]:
        """Logits."""
        return self.layers(inputs)[-1]

    def layers(self, inputs: Tensor) -> list[Float[Tensor, "copy sample unit"]]:
        """Every hidden layer after its activation, then the logits."""
        x = inputs if inputs.ndim == 3 else inputs.expand(len(self.seeds), *inputs.shape)
        found = []
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, x, weight)
            if index < len(self.weights) - 1:
                x = self._activate(x, index)
            if index == len(self.weights) - 2 and self.norm is not None:
                x = self.norm(x)
            found.append(x)
        return found

    def _activate(self, x: Tensor, layer: int) -> Tensor:
        parts, start = [], 0
        for name, size in self.groups:
            own = slice(start, start + size)
            part = x if size == len(x) else x[own]
            start += size
            if name == "prelu":
                parts.append(torch.where(part > 0, part, self.slopes[layer][own] * part))
            else:
                parts.append(ACTIVATIONS[name].function(part))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class _StackedNorm(nn.Module):
    """Batch norm for ``(copy, sample, unit)``: each copy by its own batch, running averages with momentum 0.01."""

    def __init__(self, n_copies: int, width: int) -> None:
        super().__init__()
        self.gain, self.shift = (nn.Parameter(torch.full((n_copies, 1, width), value)) for value in (1.0, 0.0))
        self.norm = nn.BatchNorm1d(n_copies * width, eps=1e-3, momentum=0.01, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised."""
        copies, samples, width = x.shape
        flat = self.norm(x.transpose(0, 1).reshape(samples, copies * width))
        return self.gain * flat.view(samples, copies, width).transpose(0, 1) + self.shift


class StackedAdam(Optimizer):
    """Adam with a learning rate for each copy, for parameters whose first axis is the copy.

    Args:
        rates: one a copy; 0 leaves a copy as it was. betas, eps: Adam's.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rates: Sequence[float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, {"lr": 1.0, "rates": tuple(rates), "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        """One step; ``lr`` of the group, which schedules change, multiplies the rates."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            held = [p for p in group["params"] if p.grad is not None]
            if not held:
                continue
            gradients = [p.grad for p in held]
            for p in held:
                if not self.state[p]:
                    self.state[p].update(step=0, first=torch.zeros_like(p), second=torch.zeros_like(p))
                self.state[p]["step"] += 1
            first, second = ([self.state[p][name] for p in held] for name in ("first", "second"))
            (beta1, beta2), count = group["betas"], self.state[held[0]]["step"]
            torch._foreach_lerp_(first, gradients, 1 - beta1)
            torch._foreach_mul_(second, beta2)
            torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
            scale = torch._foreach_sqrt(second)
            torch._foreach_div_(scale, math.sqrt(1 - beta2**count))
            torch._foreach_add_(scale, group["eps"])
            moves = torch._foreach_div(first, scale)
            rates = torch.tensor(group["rates"], dtype=held[0].dtype, device=held[0].device)
            rates = (rates * (group["lr"] / (1 - beta1**count)))[:, None, None]
            torch._foreach_mul_(moves, [rates] * len(moves))
            torch._foreach_sub_(held, moves)
        return loss


def stacked_loss(
    model: StackedMLP, labels: Int[Tensor, "copy sample"], penalties: Float[Tensor, " copy"] | None = None
) -> Callable[[Tensor, Batch], Tensor]:
    """A loss for :func:`netloupe.core.training.train`: the sum over copies of each copy's own mean cross-entropy.

    The network is :class:`Indexed`, so that a batch holds the numbers of the samples, ``(sample, copy)``. ``penalties``
    c adds ``c/2`` times the squared weights of all layers but the last, copy by copy.
    """

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        chosen = batch.args[0].T
        target = labels.gather(1, chosen)
        value = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / chosen.shape[1]
        if penalties is not None:
            squares = torch.stack([weight.pow(2).sum((1, 2)) for weight in list(model.weights)[:-1]]).sum(0)
            value = value + 0.5 * (penalties * squares).sum()
        return value

    return loss


class Indexed(nn.Module):
    """A stack that is called with sample numbers ``(sample, copy)`` in place of the samples themselves."""

    def __init__(self, stack: StackedMLP, inputs: Float[Tensor, "sample unit"]) -> None:
        super().__init__()
        self.stack = stack
        self.register_buffer("inputs", inputs)

    def forward(self, chosen: Int[Tensor, "sample copy"]) -> Float[Tensor, "copy sample class"]:
        """Logits of the chosen samples."""
        inputs: Tensor = self.get_buffer("inputs")
        return self.stack(inputs[chosen.T])


def _draw(widths: Sequence[int], gain: float, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for fan_in, fan_out in pairwise(widths):
        width = gain / math.sqrt(fan_in)
        weight = torch.empty(fan_in, fan_out)
        weights.append(nn.init.trunc_normal_(weight, 0.0, width, -2 * width, 2 * width, generator=generator))
    return weights
