"""Batch norms folded into the layers before them: the same network in eval mode, with fewer parts."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from netloupe.core.errors import InputError
from netloupe.core.isolation import guest
from netloupe.core.units_tracing import inputs_of, traced

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold_batch_norms(model: nn.Module, example: Any) -> tuple[nn.Module, list[str]]:
    """A copy of ``model`` in which every batch norm is part of the linear or convolutional layer that alone feeds it.

    ``w <- w gamma / sqrt(var + eps)`` for each unit, ``b <- (b - mean) gamma / sqrt(var + eps) + beta``; the norm becomes an identity.
    Exact for eval mode, to rounding; the result has running statistics no more and cannot be trained as before.

    Args:
        example: an input to trace with.

    Returns:
        The copy and the names of the norms that could not be folded: those behind something else, or whose layer is read elsewhere.

    Raises InputError where torch.fx cannot trace the network.
    """
    found = copy.deepcopy(model)
    for module in found.modules():
        module.training = False
    with guest(found, "eval"), torch.no_grad():
        nodes = list(traced(found, inputs_of(found, example)).graph.nodes)
    left = []
    for node in nodes:
        norm = found.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        before = node.args[0]
        layer = found.get_submodule(str(before.target)) if before.op == "call_module" else None
        alone = len(before.users) == 1 and sum(each.target == node.target for each in nodes) == 1
        flat = isinstance(layer, nn.Linear) and norm.num_features != layer.out_features  # units are on another axis
        if not isinstance(layer, LAYERS) or not alone or norm.running_var is None or flat:
            left.append(str(node.target))
            continue
        _fold(layer, norm)
        found.set_submodule(str(node.target), nn.Identity())
    return found, left


def _fold(layer: Any, norm: Any) -> None:
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        if len(scale) != layer.weight.shape[0]:
            raise InputError(f"a batch norm of {len(scale)} units follows a layer of {layer.weight.shape[0]}")
        kept = layer.weight.dtype
        if layer.bias is not None:
            shift = shift + layer.bias.double() * scale
        shaped = scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        layer.weight.copy_((layer.weight.double() * shaped).to(kept))
        layer.bias = nn.Parameter(shift.to(kept), requires_grad=layer.weight.requires_grad)
