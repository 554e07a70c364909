"""Tensors inside nested values: what a module takes and gives, and the same with one tensor exchanged."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Side = Literal["in", "out"]
_MAIN_KEYS = ("last_hidden_state", "hidden_states", "logits")


def unreadable(raw: Tensor) -> str | None:
    """Why a tensor has no rows that could be read or changed; None for an ordinary one."""
    if raw.is_nested:
        return "is a nested tensor, whose samples differ in length"
    if raw.layout != torch.strided:
        return f"is a {str(raw.layout).removeprefix('torch.')} tensor, not a dense one"
    if torch._C._functorch.is_functorch_wrapped_tensor(raw):  # pyright: ignore[reportAttributeAccessIssue]
        return "exists only inside vmap or another function transform"
    return None


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor in a nested output with its key (``""`` for a bare tensor, ``1.0`` inside tuples)."""
    if isinstance(value, Tensor):
        return [(prefix, value)]
    found: list[tuple[str, Tensor]] = []
    for key, inner in _children(value):
        found += flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _children(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def entries_of(value: Any, side: Side) -> list[tuple[str, Tensor]]:
    """Tensors of an output, or of inputs ``(args, kwargs)`` under their position or keyword."""
    if side == "out":
        return flatten(value)
    args, kwargs = value
    return flatten({**dict(enumerate(args)), **kwargs})


def exchange(value: Any, side: Side, key: str, tensor: Tensor) -> Any:
    """``value`` (an output, or inputs) with one tensor exchanged."""
    if side == "out":
        return replace_at(value, key, tensor)
    args, kwargs = value
    head = key.partition(".")[0]
    if head.isdigit() and int(head) < len(args):
        return replace_at(tuple(args), key, tensor), kwargs
    return args, replace_at(dict(kwargs), key, tensor)


def inner_lengths(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> frozenset[int]:
    """Lengths of all axes but the first of a network's inputs."""
    readable = [tensor for _, tensor in entries_of(inputs, "in") if not unreadable(tensor)]
    return frozenset(size for tensor in readable for size in tensor.shape[1:])


def main_tensor(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor | None:
    """The first tensor among a module's inputs."""
    found = entries_of(inputs, "in")
    return found[0][1] if found else None


def main_key(entries: Sequence[tuple[str, Tensor]]) -> str | None:
    """The key of the tensor that a bare module name stands for: a known name, else the first with samples."""
    keys = dict(entries)
    for key in _MAIN_KEYS:
        if key in keys:
            return key
    return next((key for key, tensor in entries if tensor.ndim > 0), entries[0][0] if entries else None)


def replace_at(value: Any, key: str, tensor: Tensor) -> Any:
    """``value`` with the tensor under ``key`` exchanged; containers are rebuilt, never changed in place."""
    if key == "":
        return tensor
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value)
        for name, inner in value.items():
            if (rest := _inside(key, name)) is not None:
                changed[name] = replace_at(inner, rest, tensor)
        return changed
    if isinstance(value, (tuple, list)):
        items = [
            inner if (rest := _inside(key, index)) is None else replace_at(inner, rest, tensor)
            for index, inner in enumerate(value)
        ]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    head, _, rest = key.partition(".")
    return dataclasses.replace(value, **{head: replace_at(getattr(value, head), rest, tensor)})


def _inside(key: str, name: Any) -> str | None:
    """What is left of a key below an entry (names may hold dots themselves); None where it leads elsewhere."""
    if key == str(name):
        return ""
    return key[len(str(name)) + 1 :] if key.startswith(f"{name}.") else None
