"""Feed-forward blocks of transformers, and the same blocks with their weak neurons switched off.

A block ends in an output projection ``W_out a``, a sum of one vector for each neuron: ``a_i`` times column ``i``. A neuron
whose vector is short on a token can be left out there. Source: Luo et al., "Sparsing Law: Towards Large Language Models
with Greater Activation Sparsity", arXiv 2411.02335.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.nn.replace import Replacement, replace

Activation = Literal["relu", "silu", "gelu"]
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def activation_named(name: Activation) -> nn.Module:
    """A new activation module; InputError for a name that is not relu, silu or gelu."""
    if name not in _ACTIVATIONS:
        raise InputError(f"activation is '{name}', expected one of {', '.join(get_args(Activation))}")
    return _ACTIVATIONS[name]()


class FeedForward(nn.Module):
    """``down(act(up(x)))`` on ``(..., d_model)``, with sites ``up, act, down``; ``down:in`` is what ``W_out`` reads.

    Args:
        d_model, d_ff: width of input and output, and of the hidden layer.
        activation: relu, silu or gelu.
        bias: whether the projections have one.

    Raises InputError for sizes below 1 and an unknown activation.
    """

    def __init__(self, d_model: int, d_ff: int, activation: Activation = "relu", bias: bool = False) -> None:
        super().__init__()
        if min(d_model, d_ff) < 1:
            raise InputError(f"d_model is {d_model} and d_ff {d_ff}, expected positive widths")
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.act = activation_named(activation)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The block's output."""
        return self.down(self.act(self.up(x)))


class GatedFeedForward(FeedForward):
    """``down(act(gate(x)) * up(x))``, with sites ``gate, act, up, down``; arguments as in :class:`FeedForward`.

    ``act`` is the gate's activation alone; the product, which ``W_out`` reads, is ``down:in``.
    """

    def __init__(self, d_model: int, d_ff: int, activation: Activation = "silu", bias: bool = False) -> None:
        super().__init__(d_model, d_ff, activation, bias)
        self.gate = nn.Linear(d_model, d_ff, bias=bias)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The block's output."""
        return self.down(self.act(self.gate(x)) * self.up(x))


def neuron_cuts(weight: Float[Tensor, "d_model d_ff"], eps: float) -> Float[Tensor, " d_ff"]:
    """The cut on ``|a_i|`` that is a cut of ``eps`` on the neuron's output: ``eps / |W_out[:, i]|``.

    Infinite where a column is zero: such a neuron says nothing and is always free to be dropped.
    """
    if not math.isfinite(eps) or eps < 0:
        raise InputError(f"eps is {eps}, expected a finite length of at least 0")
    lengths = torch.linalg.vector_norm(weight.detach().double(), dim=0)
    return torch.where(lengths > 0, eps / lengths.clamp_min(torch.finfo(torch.float64).tiny), torch.inf).to(
        weight.dtype
    )


class ThresholdedLinear(nn.Module):
    """A linear layer that leaves out each input whose contribution to the output is shorter than ``eps``.

    Input ``i`` of a row counts only where ``|a_i| >= eps / |W[:, i]|``; the cuts are the buffer ``cuts`` ``(unit,)``, made
    once from the weights at that time. With ``eps = 0`` it is the layer itself. ``linear`` is kept, not copied.
    Raises InputError for an ``eps`` that is negative or not finite.
    """

    cuts: Tensor

    def __init__(self, linear: nn.Linear, eps: float) -> None:
        super().__init__()
        self.linear, self.eps = linear, float(eps)
        self.register_buffer("cuts", neuron_cuts(linear.weight, eps))

    @property
    def weight(self) -> Tensor:
        """``(out, in)`` of the layer inside."""
        return self.linear.weight

    def kept(self, a: Float[Tensor, "... unit"]) -> Float[Tensor, "... unit"]:
        """Bool: which inputs count."""
        return a.abs() >= self.cuts

    def forward(self, a: Float[Tensor, "... unit"]) -> Float[Tensor, "... out"]:
        """The layer's output without the weak inputs."""
        return F.linear(torch.where(self.kept(a), a, 0.0), self.linear.weight, self.linear.bias)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"eps={self.eps:.4g}"


class ThresholdedFFN(nn.Module):
    """A feed-forward block with the weak neurons of every token switched off, by a cut for each neuron.

    Neuron ``i`` is dropped on a token where ``|a_i| |W_out[:, i]| < eps``; ``eps`` comes from
    :func:`netloupe.lenses.activity.cett.cett_threshold` or ``ppl_sparsity``. The block given stays as it is; weights
    are shared with it.

    Args:
        ffn: a block whose submodule ``output`` is the ``nn.Linear`` that makes the output from the neurons.
        eps: shortest output that counts, in the unit of the block's output; 0 keeps everything.
        output: name of the output projection.

    Raises InputError where there is no such layer, and for an ``eps`` that is negative or not finite.
    """

    def __init__(self, ffn: nn.Module, eps: float, output: str = "down") -> None:
        super().__init__()
        projection = getattr(ffn, output, None)
        if not isinstance(projection, nn.Linear):
            names = [name for name, module in ffn.named_children() if isinstance(module, nn.Linear)]
            raise InputError(
                f"the block has no linear layer '{output}', expected the name of its output projection; "
                f"there are {', '.join(names) or 'none'}"
            )
        self.ffn = copy.copy(ffn)
        self.ffn._modules = {**ffn._modules, output: ThresholdedLinear(projection, eps)}
        self.output = output

    @property
    def cuts(self) -> Float[Tensor, " d_ff"]:
        """The cut on ``|a_i|`` of every neuron."""
        return self.ffn.get_submodule(self.output).get_buffer("cuts")

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The block's output without the weak neurons of each token."""
        return self.ffn(x)


def threshold_model(model: nn.Module, thresholds: Mapping[str, float]) -> Replacement:
    """Puts a :class:`ThresholdedLinear` in place of output projections of ``model``, in place.

    Args:
        model: any network.
        thresholds: path of each ``nn.Linear`` (as ``PplSparsity.thresholds`` has them) and its ``eps``.

    Raises InputError for a path that is not there, a module that is no ``nn.Linear`` and a bad ``eps``, before
    anything is changed.
    """
    paths = dict(model.named_modules())
    for path, eps in thresholds.items():
        linear = paths.get(path)
        if not isinstance(linear, nn.Linear):
            found = "not there" if linear is None else f"a {type(linear).__name__}"
            raise InputError(f"'{path}' is {found}, expected the path of a torch.nn.Linear of this network")
        neuron_cuts(linear.weight, eps)
    made = {id(paths[path]): eps for path, eps in thresholds.items()}

    def thresholded(linear: nn.Module) -> nn.Module:
        assert isinstance(linear, nn.Linear)
        return ThresholdedLinear(linear, made[id(linear)])

    return replace(model, lambda path, module: path in thresholds, thresholded)
