"""Activations as a lens reads them: arrays in memory and recordings on disk behind one face.

A lens writes ``for batch in as_rows(features, labels): ...`` as often as it needs a pass and works on tensors,
arrays and stores larger than memory alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError


@dataclass(frozen=True)
class RowBatch:
    """Consecutive samples: values ``(sample, [position,] unit)``, and what belongs to them."""

    values: Tensor
    labels: Tensor | None
    mask: Tensor | None
    samples: Tensor


@dataclass(frozen=True)
class Rows:
    """Re-iterable activations with labels and mask; made by :func:`as_rows`."""

    source: Any
    labels: Tensor | None
    mask: Any
    batch_size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """``(sample, [position,] unit)``."""
        return tuple(self.source.shape)

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return self.shape[0]

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.shape[-1]

    def __iter__(self) -> Iterator[RowBatch]:
        for start in range(0, self.n_samples, self.batch_size):
            stop = min(start + self.batch_size, self.n_samples)
            values = self.source[start:stop]
            if isinstance(values, np.ndarray) and min(values.strides) < 0:
                values = values.copy()  # a reversed view, which torch cannot hold
            values = torch.as_tensor(values)
            _require_finite(values, self.mask, start, stop)
            yield RowBatch(
                values,
                None if self.labels is None else self.labels[start:stop],
                None if self.mask is None else torch.as_tensor(self.mask[start:stop]),
                torch.arange(start, stop),
            )

    def array(self, limit: int | None = None, what: str = "this lens") -> Tensor:
        """Everything at once, for a lens that cannot stream; refuses more than ``limit`` samples."""
        if limit is not None and self.n_samples > limit:
            raise InputError(
                f"{what} holds all samples in memory and takes at most {limit}, got {self.n_samples}; draw a sample"
            )
        return torch.cat([batch.values for batch in self])


def as_rows(
    features: Any,
    labels: Any = None,
    mask: Any = None,
    *,
    ndim: tuple[int, ...] = (2, 3),
    min_samples: int = 1,
    batch_size: int = 4096,
) -> Rows:
    """Checks activations and makes them iterable.

    ``features`` is a tensor, an array or a stored site, ``(sample, unit)`` or ``(sample, position, unit)``;
    ``labels`` integers ``(sample,)``; ``mask`` booleans ``(sample, position)``. Raises InputError in one sentence
    for another shape, no samples, fewer than ``min_samples``, or lengths that do not match.
    """
    if isinstance(features, Rows):
        return features
    if isinstance(features, (list, tuple)):
        features = np.asarray(features)
    if not hasattr(features, "shape") or not hasattr(features, "__getitem__"):
        raise InputError(f"features are a {type(features).__name__}, expected a tensor, an array or a stored site")
    shape = tuple(features.shape)
    if len(shape) not in ndim:
        wanted = " or ".join({2: "(sample, unit)", 3: "(sample, position, unit)"}[n] for n in ndim)
        raise InputError(f"features have shape {shape}, expected {wanted}")
    if 0 in shape:
        raise InputError(f"features have shape {shape}, at least one sample and one unit are needed")
    if shape[0] < min_samples:
        raise InputError(f"features have {shape[0]} samples, at least {min_samples} are needed")
    if isinstance(features, np.ndarray) and features.dtype.kind not in "fiub":
        raise InputError(f"features have dtype {features.dtype}, expected numbers")
    per_row = int(np.prod(shape[1:]))
    size = max(1, min(batch_size, 2**24 // max(per_row, 1)))
    return Rows(features, _labels(labels, shape[0]), _mask(mask, shape), size)


def _labels(labels: Any, n_samples: int) -> Tensor | None:
    if labels is None:
        return None
    found = torch.as_tensor(np.asarray(labels) if isinstance(labels, (list, tuple)) else labels)
    if found.ndim != 1 or len(found) != n_samples:
        raise InputError(f"labels have shape {tuple(found.shape)}, expected one label for each of {n_samples} samples")
    if found.is_floating_point():
        if not bool(torch.equal(found, found.round())):
            raise InputError("labels are not whole numbers; give one class index for each sample")
        found = found.long()
    return found


def _mask(mask: Any, shape: tuple[int, ...]) -> Any:
    if mask is None:
        return None
    if len(shape) != 3 or tuple(mask.shape) != shape[:2]:
        raise InputError(f"the mask has shape {tuple(mask.shape)}, features of shape {shape} need {shape[:2]}")
    return mask


def _require_finite(values: Tensor, mask: Any, start: int, stop: int) -> None:
    if not values.is_floating_point() or bool(torch.isfinite(values.sum())):
        return
    bad = ~torch.isfinite(values)
    if mask is not None:
        bad &= torch.as_tensor(mask[start:stop]).bool()[..., None]
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        raise NonFiniteError(
            f"features are {float(values[tuple(place)])} at sample {start + place[0]}, unit {place[-1]}; "
            "remove such samples or look for an overflow in the network"
        )


class PositionRows:
    """Activations ``(sample, position, unit)`` read as rows ``(sample * position, unit)``, padding left out.

    Takes slices and arrays of row numbers, and reads only the samples these need. With a mask it holds one number a row.
    Raises InputError for other shapes and a mask that leaves nothing.
    """

    def __init__(self, source: Any, mask: Any = None) -> None:
        if len(source.shape) != 3:
            raise InputError(f"features have shape {tuple(source.shape)}, expected (sample, position, unit)")
        found = _mask(mask, tuple(source.shape))
        self.source, self.n_positions = source, int(source.shape[1])
        self.kept = None if found is None else np.flatnonzero(np.asarray(found).reshape(-1))
        n_rows = int(source.shape[0]) * self.n_positions if self.kept is None else len(self.kept)
        if n_rows == 0:
            raise InputError("the mask leaves no position; at least one is needed")
        self.shape = (n_rows, int(source.shape[2]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Tensor:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            chosen = np.arange(start, stop, step)
        else:
            chosen = np.asarray(rows).reshape(-1)
        if not len(chosen):
            return torch.as_tensor(self.source[0:0]).reshape(0, self.shape[1])
        samples, positions = np.divmod(chosen if self.kept is None else self.kept[chosen], self.n_positions)
        if isinstance(rows, slice):
            first = int(samples.min())
            return torch.as_tensor(self.source[first : int(samples.max()) + 1])[samples - first, positions]
        wanted, place = np.unique(samples, return_inverse=True)
        return torch.as_tensor(self.source[wanted])[place, positions]
