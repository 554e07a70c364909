"""Calling a network with a batch: on inputs of its own, and with one sentence where it cannot be called."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.batches import Batch, moved
from netloupe.core.errors import ForwardError, InputError, NetloupeError
from netloupe.core.values import flatten, unreadable


def run(model: nn.Module, batch: Batch) -> Any:
    """``model(*args, **kwargs)``.

    Raises
    ------
    InputError where the network takes other arguments; ForwardError for what the network itself refuses (shapes,
    number types, tokens out of range). Other exceptions of the network's own pass through.
    """
    try:
        return model(*batch.args, **batch.kwargs)
    except NetloupeError:
        raise
    except TypeError as error:
        mismatch = _other_arguments(model, batch)
        if mismatch is None:
            raise
        raise InputError(mismatch) from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise ForwardError(_refusal(model, batch, error)) from error


def with_own_inputs(batch: Batch) -> Batch:
    """The batch with copies of its inputs: a network that writes into them changes neither the data nor a second pass.

    A tensor that is given twice stays one tensor, which attention looks at.
    """
    copies: dict[int, Tensor] = {}

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in copies:
            copies[id(value)] = value.detach().clone().requires_grad_(value.requires_grad)
        return copies[id(value)]

    return Batch(moved(batch.args, own), moved(batch.kwargs, own), batch.labels, batch.mask, batch.n_samples)


def _other_arguments(model: nn.Module, batch: Batch) -> str | None:
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*batch.args, **batch.kwargs)
    except TypeError as error:
        given = f"{len(batch.args)} positional inputs" if batch.args else f"the inputs {sorted(batch.kwargs)}"
        return (
            f"the network's forward takes {signature}, but a batch gives {given} ({error}); "
            "give batches as tuples or dictionaries that fit it"
        )
    return None


def _refusal(model: nn.Module, batch: Batch, error: Exception) -> str:
    inputs = [tensor for _, tensor in flatten((batch.args, batch.kwargs))]
    weights = [tensor for tensor in model.parameters() if tensor.is_floating_point()]
    kinds = {tensor.dtype for tensor in inputs if tensor.is_floating_point()}
    shown = ", ".join(f"{tuple(t.shape) if not t.is_nested else 'nested'} {t.dtype}" for t in inputs[:4])
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if weights and kinds and not kinds & {tensor.dtype for tensor in weights}:
        advice = f"; the network computes in {weights[0].dtype}, convert the inputs or the network"
    elif any(tensor.device.type == "meta" for tensor in weights):
        advice = "; the network lies on the device 'meta', which holds no numbers: load its weights first"
    else:
        advice = "; give inputs that the network can be called with"
    return f"the network cannot be run on inputs {shown}: {lines[0].rstrip('.;: ')}{advice}".replace("torch.", "")


class Holders:
    """Tells which tensors of a finished pass share memory with something that outlives it.

    A network may write its answer into a table of its own (a cache, a preallocated result) and hand out a view of it;
    the next batch then overwrites what the last one was. Storage that is held by more than the tensors of the pass
    is such memory.
    """

    def __init__(self, model: nn.Module, of_the_pass: Iterable[Tensor]) -> None:
        self._attributes = _attribute_memory(model)
        unique = {id(tensor): tensor for tensor in of_the_pass if unreadable(tensor) is None}
        self._known = Counter(tensor.untyped_storage().data_ptr() for tensor in unique.values())
        self._ids = set(unique)

    def outlives(self, raw: Tensor) -> bool:
        """Whether somebody else holds the memory of ``raw``."""
        storage = raw.untyped_storage()
        if storage.nbytes() == 0:
            return False
        if storage.data_ptr() in self._attributes:
            return True
        holders = _storage_uses(storage) - _OVERHEAD
        base = raw._base if raw._is_view() else None
        if base is not None and id(base) not in self._ids:
            if sys.getrefcount(base) > _REFERENCES_OF_A_BASE:
                return True
            holders -= 1  # kept alive by its view alone
        return holders > self._known[storage.data_ptr()]


def _attribute_memory(model: nn.Module) -> set[int]:
    """Where the tensors and arrays lie that modules keep as plain attributes, also in short containers."""
    found: set[int] = set()
    for module in model.modules():
        for name, value in vars(module).items():
            if name in _OF_EVERY_MODULE:
                continue
            if isinstance(value, np.ndarray):
                found.add(value.ctypes.data)
            elif isinstance(value, Tensor) or (isinstance(value, (dict, list, tuple)) and len(value) <= _SHORT):
                tensors = (tensor for _, tensor in flatten(value) if unreadable(tensor) is None)
                found |= {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return found


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_SHORT = 256  # longer containers are vocabularies and the like, too long to look through in every pass
_uses: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


def _storage_uses(storage: torch.UntypedStorage) -> int:
    return sys.maxsize if _uses is None else _uses(storage._cdata)


def _calibrated() -> tuple[int, int]:
    """What the counters say of a tensor, and of a view's base, that nobody else holds."""
    alone = torch.empty(1)
    storage = alone.untyped_storage()
    overhead = _storage_uses(storage) - 1 if _uses is not None else 0
    view = torch.empty(2).view(2, 1)
    base = view._base if view._is_view() else None
    return overhead, sys.getrefcount(base)


_OVERHEAD, _REFERENCES_OF_A_BASE = _calibrated()


def last_linear(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """Path and module of the linear layer that is registered last, which in most networks is the head; None without one."""
    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None
