"""One batch of activations, checked and turned into rows.

Every statistic sees a batch as rows of units: a row is one sample, or one unmasked position of one sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from netloupe.core.errors import InputError, NonFiniteError

Array = torch.Tensor | np.ndarray


@dataclass(frozen=True)
class Batch:
    """Rows ready for the statistics.

    ``rows`` is float32 or float64, C-contiguous, ``(row, unit)``. ``kept`` holds, where a mask took rows out, the
    number of each remaining row in the unmasked order (sample-major); None means all rows are there.
    """

    rows: np.ndarray
    n_samples: int
    n_positions: int
    kept: np.ndarray | None = None
    labels: np.ndarray | None = None
    samples: np.ndarray | None = None

    @property
    def n_rows(self) -> int:
        return self.rows.shape[0]

    @property
    def n_units(self) -> int:
        return self.rows.shape[1]

    @cached_property
    def _flat(self) -> np.ndarray:
        return np.arange(self.n_rows, dtype=np.int64) if self.kept is None else self.kept

    @cached_property
    def sample_in_batch(self) -> np.ndarray:
        """Each row's sample, counted from 0 in this batch."""
        return self._flat if self.n_positions == 1 else self._flat // self.n_positions

    @cached_property
    def positions(self) -> np.ndarray:
        """Each row's position inside its sample; 0 where activations have none."""
        return np.zeros_like(self._flat) if self.n_positions == 1 else self._flat % self.n_positions

    @cached_property
    def row_labels(self) -> np.ndarray:
        """Each row's label."""
        if self.labels is None:
            raise InputError("labels are needed and none were given: pass labels, one integer per sample")
        return self.labels[self.sample_in_batch]

    def row_samples(self, next_sample: int) -> np.ndarray:
        """Each row's index in the data set; ``next_sample`` is the first sample's where none were given."""
        if self.samples is None:
            return self.sample_in_batch + next_sample
        return self.samples[self.sample_in_batch]

    def next_sample(self, current: int) -> int:
        """The index that the sample after this batch has by default."""
        if self.samples is None:
            return current + self.n_samples
        return max(current, int(self.samples.max()) + 1)

    def refuse_nonfinite(self) -> None:
        """Raise ``NonFiniteError`` that names the first NaN or infinity; return when all values are finite."""
        if np.isfinite(self.rows.sum()):
            return None
        for start in range(0, self.n_rows, 1024):
            found = np.argwhere(~np.isfinite(self.rows[start : start + 1024]))
            if len(found):
                row, unit = int(found[0, 0]) + start, int(found[0, 1])
                sample, position = int(self.row_samples(0)[row]), int(self.positions[row])
                place = f"sample {sample}" + (f", position {position}" if self.n_positions > 1 else "")
                where = "of the batch " if self.samples is None else ""
                raise NonFiniteError(
                    f"activations hold {self.rows[row, unit]} at {place} {where}in unit {unit}, expected finite "
                    f"numbers: mask the position or repair the network"
                )
        return None


def prepare(
    values: Array, *, mask: Array | None = None, labels: Array | None = None, samples: Array | None = None
) -> Batch:
    """Check a batch's shapes and types and turn it into rows; see ``Statistic.update`` for the arguments."""
    array = as_float(values)
    if array.ndim not in (2, 3):
        raise InputError(
            f"activations have shape {tuple(array.shape)}, expected (sample, unit) or (sample, position, unit): "
            f"put the unit axis last and flatten positions into one axis"
        )
    if array.shape[-1] == 0:
        raise InputError(f"activations have shape {tuple(array.shape)} and no units: record a site that has some")
    n_samples = array.shape[0]
    n_positions = array.shape[1] if array.ndim == 3 else 1
    kept = _kept_rows(mask, array.shape[:-1])
    rows = array.reshape(n_samples * n_positions, array.shape[-1])
    rows = np.ascontiguousarray(rows if kept is None else rows[kept])
    return Batch(
        rows=rows,
        n_samples=n_samples,
        n_positions=n_positions,
        kept=kept,
        labels=_per_sample(labels, n_samples, "labels"),
        samples=_sample_indices(samples, n_samples),
    )


_EXACT_IN_FLOAT32 = (torch.bfloat16, torch.float16, torch.bool, torch.int8, torch.uint8, torch.int16)


def as_float(values: Array) -> np.ndarray:
    """``values`` in memory as float32 or float64, without rounding integers below 2**53."""
    if isinstance(values, torch.Tensor):
        tensor = values.detach()
        if tensor.is_complex() or tensor.layout != torch.strided or tensor.is_quantized:
            raise InputError(f"activations are a {tensor.dtype} {tensor.layout} tensor, expected dense real numbers")
        if tensor.dtype in _EXACT_IN_FLOAT32:
            tensor = tensor.to(torch.float32)
        elif tensor.dtype not in (torch.float32, torch.float64):
            tensor = tensor.to(torch.float32 if tensor.is_floating_point() else torch.float64)
        return _to_numpy(tensor)
    array = np.asarray(values)
    if array.dtype in (np.float32, np.float64):
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "b" or (array.dtype.kind in "iuf" and array.dtype.itemsize <= 2):
        return array.astype(np.float32)
    if array.dtype.kind in "iuf":
        return array.astype(np.float64)
    raise InputError(f"activations have dtype {array.dtype}, expected real numbers")


def _kept_rows(mask: Array | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if mask is None:
        return None
    array = _to_numpy(mask)
    if array.dtype != np.bool_:
        raise InputError(f"mask has dtype {array.dtype}, expected bool with True at real positions")
    if array.shape != tuple(shape):
        raise InputError(
            f"mask has shape {array.shape}, expected {tuple(shape)}: one bool per "
            f"{'sample and position' if len(shape) == 2 else 'sample, as these activations have no positions'}"
        )
    return None if array.all() else np.flatnonzero(array)


def _per_sample(values: Array | None, n_samples: int, name: str) -> np.ndarray | None:
    if values is None:
        return None
    array = _to_numpy(values)
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"{name} have dtype {array.dtype}, expected integers, one per sample")
    if array.shape != (n_samples,):
        raise InputError(f"{name} have shape {array.shape}, expected ({n_samples},): one integer per sample")
    return array.astype(np.int64, copy=False)


def _sample_indices(samples: Array | None, n_samples: int) -> np.ndarray | None:
    indices = _per_sample(samples, n_samples, "samples")
    if indices is not None and n_samples and indices.min() < 0:
        raise InputError(f"samples hold the index {indices.min()}, expected 0 or more: pass indices into the data set")
    return indices


def _to_numpy(values: Array) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().resolve_neg().numpy()
    return np.asarray(values)
