"""Batches cut so short that all sites of a network fit in memory at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from netloupe.core.batches import batches_of, prepare
from netloupe.core.capture import list_sites

HELD_BYTES = 192 * 2**20  # what the sites of one batch may take; a pass holds about three times this at its peak
_LOOK = 2  # samples that are enough to see how large the sites of one are


def within_memory(batches: Any, model: nn.Module, sites: Sequence[str] | None, held: int = HELD_BYTES) -> Iterable[Any]:
    """``batches``, cut where one batch's activations at all ``sites`` would take more than ``held`` bytes.

    One short forward pass tells how large the sites are. Each sample is seen in the same order, so only the rounding of
    sums can differ. A batch of another form than tensors, tuples and dictionaries of tensors is passed on whole.
    """
    whole = batches_of(batches)
    first = next(iter(whole), None)
    if first is None:
        return whole
    n_samples = prepare(first, model).n_samples
    look = _rows(first, slice(0, _LOOK), n_samples)
    infos = list_sites(model, [look], list(sites) if sites else None)
    per_sample = sum(info.n_positions * info.n_units * 4 for info in infos)
    most = max(_LOOK, held // max(per_sample, 1))
    return whole if n_samples <= most else _Cut(whole, model, most)


class _Cut:
    """Batches of at most ``most`` samples; can be iterated again."""

    def __init__(self, batches: Iterable[Any], model: nn.Module, most: int) -> None:
        self.batches, self.model, self.most = batches, model, most

    def __iter__(self) -> Iterator[Any]:
        for raw in self.batches:
            n_samples = prepare(raw, self.model).n_samples
            for start in range(0, n_samples, self.most):
                yield _rows(raw, slice(start, start + self.most), n_samples)


def _rows(raw: Any, rows: slice, n_samples: int) -> Any:
    """Some samples of a raw batch; what does not have an entry for each sample stays whole."""
    if isinstance(raw, (Tensor, np.ndarray)):
        return raw[rows] if raw.ndim > 0 and len(raw) == n_samples else raw
    if isinstance(raw, Mapping):
        return {key: _rows(value, rows, n_samples) for key, value in raw.items()}
    if isinstance(raw, (tuple, list)) and not hasattr(raw, "_fields"):
        return type(raw)(_rows(value, rows, n_samples) for value in raw)
    return raw
