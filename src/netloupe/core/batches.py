"""From whatever a user calls data to batches a network can be called with.

Accepted: one array or tensor; ``(inputs, labels)`` arrays; a dictionary of arrays (Hugging Face encodings);
or any iterable of batches (a ``DataLoader``). A batch is a tensor, a dictionary of keyword arguments, or a
tuple whose last entry is the labels when the network does not take that many inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.sites import flatten

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
MASK_KEY = "attention_mask"


@dataclass(frozen=True)
class Batch:
    """What one forward call gets, and what belongs to its samples."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None
    mask: Tensor | None  # (sample, time), True where the input is real
    n_samples: int

    def to(self, device: torch.device) -> Batch:
        """The same batch with its inputs on ``device``."""
        return Batch(_move(self.args, device), _move(self.kwargs, device), self.labels, self.mask, self.n_samples)

    def digest(self) -> bytes:
        """16 bytes that stand for the inputs: a resumed recording compares them."""
        state = xxhash.xxh3_128()
        for key, tensor in flatten((self.args, self.kwargs)):
            state.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
            state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().reshape(-1).data)
        return state.digest()


def batches_of(data: Any, batch_size: int = 64) -> Iterable[Any]:
    """``data`` as an iterable of raw batches; arrays are cut into ``batch_size`` rows."""
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, expected at least 1")
    if isinstance(data, Mapping):
        return _ArrayBatches({key: _column(key, value) for key, value in data.items()}, batch_size)
    if _is_array(data) or _is_array_pair(data):
        return _ArrayBatches(data, batch_size)
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise InputError(
            f"data is a {type(data).__name__}, expected an array, (inputs, labels), a dictionary of arrays, "
            "or an iterable of batches such as a DataLoader"
        )
    return data


def _column(key: Any, value: Any) -> Any:
    """Lists of numbers, as tokenizers give them, as a tensor."""
    if not isinstance(value, (list, tuple)):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"'{key}' holds lists of different lengths or no numbers; pad them to one length first"
        ) from None


class _ArrayBatches:
    """Arrays cut into consecutive batches; can be iterated again and indexed."""

    def __init__(self, data: Any, batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size
        columns = (
            list(data.values())
            if isinstance(data, Mapping)
            else list(data)
            if isinstance(data, (tuple, list))
            else [data]
        )
        lengths = {len(column) for column in columns if _is_array(column) and column.ndim > 0}
        if len(lengths) != 1:
            raise InputError(f"the arrays have {sorted(lengths)} samples, expected the same number in each")
        self.n_samples = lengths.pop()

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        if isinstance(self.data, Mapping):
            return {key: column[rows] if _is_array(column) else column for key, column in self.data.items()}
        if isinstance(self.data, (tuple, list)):
            return tuple(column[rows] for column in self.data)
        return self.data[rows]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def count_batches(batches: Iterable[Any]) -> int | None:
    """How many batches there are, where that can be told without reading them."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:
        return None


def prepare(raw: Any, model: nn.Module, batch_axis: int = 0) -> Batch:
    """Sorts one raw batch into positional arguments, keyword arguments, labels and padding mask.

    ``batch_axis`` is the axis of the inputs that holds samples (1 for time-first inputs).
    """
    if _is_array(raw):
        args, kwargs, labels, mask = (_tensor(raw),), {}, None, None
    elif isinstance(raw, Mapping):
        args, kwargs, labels, mask = _from_mapping(raw, model)
    elif isinstance(raw, (tuple, list)) and raw:
        args, kwargs, labels, mask = _from_sequence(raw, model)
    else:
        raise InputError(
            f"a batch is a {type(raw).__name__}, expected a tensor, a tuple (inputs, labels) or a dictionary of tensors"
        )
    tensors = [tensor for _, tensor in flatten((args, kwargs)) if tensor.ndim > 0]
    if not tensors:
        raise InputError("a batch holds no tensor with a sample axis; each batch needs inputs of shape (sample, ...)")
    if tensors[0].ndim <= batch_axis:
        raise InputError(f"inputs have shape {tuple(tensors[0].shape)}, which has no axis {batch_axis} for samples")
    n_samples = int(tensors[0].shape[batch_axis])
    if labels is not None and len(labels) != n_samples:
        raise InputError(f"a batch has {n_samples} samples but {len(labels)} labels; each sample needs one label")
    return Batch(args, kwargs, labels, None if mask is None else mask.bool(), n_samples)


def _from_mapping(raw: Mapping[Any, Any], model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any], Any, Any]:
    names, takes_any = forward_parameters(model)
    label_key = next((key for key in LABEL_KEYS if key in raw), None)
    labels = _labels(raw[label_key]) if label_key is not None else None
    mask = _tensor(raw[MASK_KEY]) if raw.get(MASK_KEY) is not None else None
    inputs = {str(key): _tensor(value) for key, value in raw.items() if key != label_key}
    accepted = {key: value for key, value in inputs.items() if takes_any or key in names}
    if not accepted and len(inputs) == 1:
        return tuple(inputs.values()), {}, labels, mask
    if not accepted:
        raise InputError(
            f"a batch has the keys {sorted(inputs)}, but the network's forward takes {names}; rename the keys"
        )
    return (), accepted, labels, mask


def _from_sequence(raw: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any], Any, Any]:
    names, _ = forward_parameters(model, required_only=True)
    n_inputs = len(raw) if len(raw) == 1 or len(raw) <= len(names) else len(raw) - 1
    labels = _labels(raw[-1]) if n_inputs < len(raw) else None
    first = raw[0]
    if n_inputs == 1 and isinstance(first, Mapping):
        args, kwargs, inner_labels, mask = _from_mapping(first, model)
        return args, kwargs, labels if labels is not None else inner_labels, mask
    return tuple(_tensor(value) for value in raw[:n_inputs]), {}, labels, None


def forward_parameters(model: nn.Module, required_only: bool = False) -> tuple[list[str], bool]:
    """Names of the inputs of ``model.forward``, and whether it takes any keyword."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return [], True
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [p.name for p in named if not required_only or p.default is p.empty], takes_any


def _labels(value: Any) -> Tensor | None:
    """Labels as a tensor where they are one number a sample; anything richer is not a label."""
    try:
        labels = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return labels if labels.ndim == 1 else None


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value)) if value.flags.writeable else torch.tensor(value)
    return value


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _is_array_pair(value: Any) -> bool:
    """``(inputs, labels)`` arrays of one data set - not a list of batches, whose entries are alike."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and _is_array(value[0])
        and _is_array(value[1])
        and len(value[0]) == len(value[1])
        and value[1].ndim <= value[0].ndim
    )


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _move(inner, device) for key, inner in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_move(inner, device) for inner in value)
    if isinstance(value, list):
        return [_move(inner, device) for inner in value]
    move = getattr(value, "to", None)
    return move(device) if callable(move) else value
