"""Which modules of a network see what, and how many multiply-adds a unit costs in a linear layer."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.isolation import Mode, guest
from netloupe.nn.replace import replace

LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def fan_out(layer: nn.Module, stride: bool = True) -> float:
    """Multiply-adds that one changed input unit causes: ``C_out k^2 / groups`` of a convolution, outputs of a linear layer.

    With ``stride`` a convolution's are divided by its strides (the authors' code does not). Units at the border, which
    cause fewer, are counted as all others.
    """
    if isinstance(layer, nn.Linear):
        return float(layer.out_features)
    if not isinstance(layer, LINEAR):
        raise InputError(f"the fan-out of a {type(layer).__name__} is unknown; give a convolution or a linear layer")
    known: Any = layer
    taps = math.prod(known.kernel_size) / (math.prod(known.stride) if stride else 1)
    return known.out_channels / known.groups * taps


@dataclass(frozen=True)
class Call:
    """One module at work."""

    path: str
    module: nn.Module
    input: Tensor
    output: Tensor


class Probe(nn.Module):
    """Stands in for a module and keeps what went in and came out."""

    def __init__(self, module: nn.Module, path: str, calls: list[Call]) -> None:
        super().__init__()
        self.module, self.path, self.calls = module, path, calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own answer."""
        output = self.module(*args, **kwargs)
        first = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        if first is not None and isinstance(output, Tensor):
            self.calls.append(Call(self.path, self.module, first, output))
        return output


def trace(
    model: nn.Module, example: Tensor, kinds: tuple[type[nn.Module], ...] | None = None, mode: Mode = "eval"
) -> list[Call]:
    """Runs a copy of ``model`` on ``example`` and tells which modules (of ``kinds``, or all leaves) saw what, in order."""
    calls: list[Call] = []
    twin = copy.deepcopy(model)
    paths = {id(module): path for path, module in twin.named_modules()}

    def matches(path: str, module: nn.Module) -> bool:
        if kinds is not None:
            return type(module) in kinds
        return not any(True for _ in module.children())

    replace(twin, matches, lambda module: Probe(module, paths[id(module)], calls))
    with guest(twin, mode), torch.no_grad():
        twin(example)
    return calls
