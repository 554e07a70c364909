"""From whatever a user calls data to batches a network can be called with.

Accepted: one array or tensor; ``(inputs, labels)`` arrays; a dictionary of arrays (Hugging Face encodings);
or any iterable of batches (a ``DataLoader``). A batch is a tensor, a dictionary of keyword arguments, or a
tuple whose last entry is the labels when the network does not take that many inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from netloupe.core.errors import InputError
from netloupe.core.values import flatten

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

        def move(value: Any) -> Any:
            found = getattr(value, "to", None)
            return found(device) if callable(found) else value

        return Batch(moved(self.args, move), moved(self.kwargs, move), self.labels, self.mask, self.n_samples)

    def digest(self) -> bytes:
        """16 bytes that stand for the inputs: a resumed recording compares them."""
        state = xxhash.xxh3_128()
        for key, tensor in flatten((self.args, self.kwargs)):
            state.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return state.digest()


def batches_of(data: Any, batch_size: int = 64, batch_axis: int = 0) -> Iterable[Any]:
    """``data`` as an iterable of raw batches; arrays are cut into ``batch_size`` samples along ``batch_axis``."""
    if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}, expected a whole number of at least 1")
    if isinstance(data, Mapping):
        columns = {key: _column(key, value) for key, value in data.items()}
        return _ArrayBatches(columns, int(batch_size), batch_axis)
    if _is_array(data):
        return _ArrayBatches(data, int(batch_size), batch_axis)
    if (columns := _columns(data, batch_axis)) is not None:
        return _ArrayBatches(columns, int(batch_size), batch_axis)
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

    def __init__(self, data: Any, batch_size: int, batch_axis: int = 0) -> None:
        self.data, self.batch_size, self.batch_axis = data, batch_size, batch_axis
        columns = list(data.values()) if isinstance(data, Mapping) else data if isinstance(data, tuple) else [data]
        arrays = [column for column in columns if _is_array(column) and column.ndim > 0]
        if not arrays:
            raise InputError("the data holds no array with a sample axis; give inputs of shape (sample, ...)")
        if arrays[0].ndim <= batch_axis:
            raise InputError(f"inputs have shape {tuple(arrays[0].shape)}, which has no axis {batch_axis} for samples")
        self.n_samples = int(arrays[0].shape[batch_axis])
        lengths = {int(array.shape[self._axis(array)]) for array in arrays}
        if len(lengths) != 1:
            raise InputError(f"the arrays have {sorted(lengths)} samples, expected the same number in each")

    def _axis(self, array: Any) -> int:
        """The axis of samples: labels and the like have it first also beside time-first inputs."""
        found = array.ndim > self.batch_axis and array.shape[self.batch_axis] == self.n_samples
        return self.batch_axis if found else 0

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)

        def cut(column: Any) -> Any:
            if not _is_array(column) or column.ndim == 0:
                return column
            return column[(slice(None),) * self._axis(column) + (rows,)]

        if isinstance(self.data, Mapping):
            return {key: cut(column) for key, column in self.data.items()}
        return tuple(cut(column) for column in self.data) if isinstance(self.data, tuple) else cut(self.data)

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
    if isinstance(raw, PackedSequence):
        raise InputError("a batch is a packed sequence; give padded inputs and let the network pack them")
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
    if any(tensor.is_nested for tensor in tensors):
        raise InputError("a batch holds a nested tensor; pad its samples to one length and declare an attention_mask")
    if not tensors:
        raise InputError("a batch holds no tensor with a sample axis; each batch needs inputs of shape (sample, ...)")
    if tensors[0].ndim <= batch_axis:
        raise InputError(f"inputs have shape {tuple(tensors[0].shape)}, which has no axis {batch_axis} for samples")
    n_samples = int(tensors[0].shape[batch_axis])
    if labels is not None and len(labels) != n_samples:
        raise InputError(f"a batch has {n_samples} samples but {len(labels)} labels; each sample needs one label")
    # copies: loaders may fill the same memory again while a recording is still being written
    return Batch(args, kwargs, None if labels is None else labels.clone(), _mask(mask, n_samples), n_samples)


def default_batch_axis(model: nn.Module) -> int:
    """1 for torch's own recurrent and attention networks that were built with time first, else 0."""
    home = type(model).__module__
    if home not in ("torch.nn.modules.rnn", "torch.nn.modules.transformer", "torch.nn.modules.activation"):
        return 0
    flags = [flag for module in model.modules() if isinstance(flag := getattr(module, "batch_first", None), bool)]
    return int(bool(flags) and not flags[0])


def _mask(mask: Any, n_samples: int) -> Tensor | None:
    """The padding mask ``(sample, time)``; a mask of another form (causal, per head) says nothing about padding."""
    if mask is None or mask.ndim != 2:
        return None
    if len(mask) != n_samples:
        raise InputError(f"attention_mask has {len(mask)} rows, the batch has {n_samples} samples; give one row each")
    if mask.is_floating_point() and not bool((mask >= 0).all()):
        raise InputError(
            "attention_mask holds negative numbers, as masks that are added to scores do; "
            "give 1 where the input is real and 0 where it is padding"
        )
    return mask.ne(0)


def _from_mapping(raw: Mapping[Any, Any], model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any], Any, Any]:
    names, takes_any = forward_parameters(model)
    label_key = next((key for key in LABEL_KEYS if key in raw), None)
    labels = _labels(raw[label_key]) if label_key is not None else None
    mask = _tensor(_column(MASK_KEY, raw[MASK_KEY])) if raw.get(MASK_KEY) is not None else None
    inputs = {str(key): _numbers(value) for key, value in raw.items() if key != label_key}
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
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    return labels if labels.ndim == 1 else None


def _numbers(value: Any) -> Any:
    """Lists as tokenizers give them as a tensor; lists of anything else as they are."""
    if isinstance(value, (list, tuple)):
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            return value
    return _tensor(value)


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise InputError(f"an array of inputs holds {value.dtype}, expected numbers")
        value = value.astype(value.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.ascontiguousarray(value)) if value.flags.writeable else torch.tensor(value)
    return value


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _columns(value: Any, batch_axis: int) -> tuple[Any, ...] | None:
    """Arrays of one data set, ``(inputs, labels)`` or several inputs - not batches, whose entries are all alike."""
    if not isinstance(value, (tuple, list)) or len(value) < 2 or not _is_array(value[0]):
        return None
    first, last = value[0], value[-1]
    if isinstance(value, tuple) and isinstance(last, (list, tuple)) and (labels := _labels(last)) is not None:
        value = (*value[:-1], labels)
    if not all(_is_array(column) and column.ndim > 0 for column in value) or first.ndim <= batch_axis:
        return None
    n_samples = first.shape[batch_axis]
    if any(n_samples not in (len(column), column.shape[min(batch_axis, column.ndim - 1)]) for column in value):
        return None
    if isinstance(value, tuple) and len(value) == 2:
        return value if value[1].ndim <= first.ndim else None
    unlike = any(column.shape[1:] != first.shape[1:] or column.dtype != first.dtype for column in value)
    if isinstance(value, list):  # a list is a list of batches, unless its end can only be the labels
        return tuple(value) if len(value) == 2 and value[1].ndim == 1 < first.ndim else None
    return value if unlike else None


def moved(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested inputs with ``change`` made of every leaf."""
    if isinstance(value, Mapping):
        return {key: moved(inner, change) for key, inner in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(moved(inner, change) for inner in value)
    if isinstance(value, list):
        return [moved(inner, change) for inner in value]
    return change(value)
