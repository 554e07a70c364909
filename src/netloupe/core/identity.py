"""What a network is, so that a recording or a pattern can refuse another one."""

from __future__ import annotations

from typing import Any

import torch
import xxhash
from torch import nn
from torch.nn.parameter import is_lazy

from netloupe.core.hooks import unwrap


def fingerprint(model: nn.Module) -> str:
    """32 hexadecimal characters that change when any parameter, buffer, name, shape or dtype does. Reads every weight once."""
    state = xxhash.xxh3_128()
    model = unwrap(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            state.update(f"{name} not yet made".encode())
            continue
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.device.type != "meta" and tensor.numel():
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Class, number of parameters and fingerprint of a network."""
    inner = unwrap(model)
    return {
        "class": f"{type(inner).__module__}.{type(inner).__qualname__}",
        "parameters": sum(parameter.numel() for parameter in inner.parameters() if not is_lazy(parameter)),
        "fingerprint": fingerprint(inner),
    }
