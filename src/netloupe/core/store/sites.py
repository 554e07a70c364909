"""Reading one recorded site: slices without copying, random rows, shuffled batches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netloupe.core.errors import StoreError
from netloupe.core.store.files import saying
from netloupe.core.store.layout import Layout
from netloupe.core.store.mapping import side_by_side
from netloupe.core.store.shardfile import check_header

_MAPPED_SHARDS = 256  # mappings kept for random rows of shards that cannot be joined; the oldest goes first
_BLOCK_BYTES = 64 * 2**20  # shuffled batches are gathered in blocks of about this size


class StoredSite:
    """One site of a store, as rows on disk. Indexing gives torch tensors whose first axis is the sample.

    A slice inside one shard is a memory-mapped view: no copy, read from disk when touched. Every such view is a private
    mapping of its own, so that writing into it changes neither the file nor what a later read returns. What spans
    shards or picks single rows is read into new memory.
    """

    def __init__(self, layout: Layout, name: str, samples: int) -> None:
        self.name = name
        self.spec = layout.sites[name]
        self.dtype: torch.dtype = self.spec.torch_dtype
        self.shape: tuple[int, ...] = (samples, *self.spec.row_shape)
        self.axes: tuple[str, ...] = ("sample", *(self.spec.axes or ()))
        self._layout = layout
        self._rows_per_shard = layout.rows_per_shard
        self._offsets: dict[int, int] = {}
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all values, without the files' headers."""
        return len(self) * self.spec.row_bytes

    def __repr__(self) -> str:
        return f"StoredSite({self.name!r}, shape={self.shape}, dtype={self.spec.dtype})"

    def __getitem__(self, index: Any) -> Tensor:
        """Rows by number, slice, or array of numbers (or booleans, one per sample).

        Negative numbers count from the end. StoreError where a number is out of range.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._span(start, max(start, stop))
            return self.rows(np.arange(start, stop, step))
        if isinstance(index, int | np.integer):
            return self.rows(np.array([index]))[0]
        return self.rows(index)

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Rows ``start`` to ``stop`` in order, ``size`` at a time (the last batch may be shorter)."""
        if size < 1:
            raise StoreError(f"a batch needs at least 1 row, not {size}; give a positive size")
        start, stop, _ = slice(start, stop).indices(len(self))
        for first in range(start, stop, size):
            yield self._span(first, min(first + size, stop))

    def rows(self, indices: Any) -> Tensor:
        """The rows with these numbers, in this order, repeats allowed, in new memory: ``(n, *row_shape)``."""
        wanted = self._row_numbers(indices)
        width = self.spec.row_bytes // self.spec.numpy_dtype.itemsize
        # numpy asks for huge pages where torch does not, which halves the cost of filling a large answer
        out = np.empty((len(wanted), width), self.spec.numpy_dtype)
        if self._whole is None:
            self._gather_by_shard(wanted, out)
        else:
            # clip: the numbers were checked above, and with the default numpy would fill a buffer of its own first
            np.take(self._whole, wanted, axis=0, out=out, mode="clip")
        return torch.from_numpy(out).view(self.dtype).view(len(wanted), *self.spec.row_shape)

    @cached_property
    def _whole(self) -> np.ndarray | None:
        """All rows, flat, as one mapping; None where the shards cannot be laid end to end."""
        files = [self._shard(index) for index in range(-(-len(self) // self._rows_per_shard))]
        row = self.spec.row_bytes
        last = (len(self) - (len(files) - 1) * self._rows_per_shard) * row
        joined = side_by_side(files, self._rows_per_shard * row, last) if files else None
        return None if joined is None else joined.view(self.spec.numpy_dtype).reshape(len(self), -1)

    def _gather_by_shard(self, wanted: np.ndarray, out: np.ndarray) -> None:
        shards = wanted // self._rows_per_shard
        order = np.argsort(shards, kind="stable")
        edges = [0, *(np.flatnonzero(np.diff(shards[order])) + 1), len(wanted)]
        for first, last in pairwise(edges):
            places = order[first:last]
            if len(places):
                shard = int(shards[places[0]])
                out[places] = self._mapped(shard)[wanted[places] - shard * self._rows_per_shard]

    def shuffled(self, batch_size: int, seed: int, epochs: int = 1, start_batch: int = 0) -> Iterator[Tensor]:
        """Batches of random rows; every row once per epoch, in an order that ``seed`` and the epoch alone decide.

        ``start_batch`` skips that many batches without reading them, to go on with an interrupted training. The last
        batch of an epoch may be shorter. Memory: 8 bytes per sample for the order, and about 64 MiB of rows,
        since several batches are gathered at once. A batch is a view of those rows: clone it to keep it for long.
        """
        if batch_size < 1 or epochs < 0 or start_batch < 0:
            raise StoreError(
                f"shuffled batches need batch_size >= 1, epochs >= 0 and start_batch >= 0, "
                f"not {batch_size}, {epochs} and {start_batch}"
            )
        per_epoch = -(-len(self) // batch_size)
        per_block = max(1, _BLOCK_BYTES // (batch_size * self.spec.row_bytes))
        for epoch in range(start_batch // max(1, per_epoch), epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            skipped = max(0, start_batch - epoch * per_epoch)
            for block in range(skipped, per_epoch, per_block):
                rows = self.rows(order[block * batch_size : (block + per_block) * batch_size])
                yield from rows.split(batch_size)

    def _row_numbers(self, indices: Any) -> np.ndarray:
        wanted = np.asarray(indices)
        if wanted.size == 0:
            wanted = wanted.astype(np.int64)
        if wanted.dtype == np.bool_:
            if wanted.shape != (len(self),):
                raise StoreError(
                    f"site '{self.name}' has {len(self)} samples but the selection has shape {wanted.shape}; give one "
                    f"boolean per sample"
                )
            return np.flatnonzero(wanted)
        if wanted.ndim != 1 or not np.issubdtype(wanted.dtype, np.integer):
            raise StoreError(
                f"site '{self.name}' needs a flat array of row numbers, not {wanted.dtype} of shape {wanted.shape}"
            )
        wanted = wanted.astype(np.int64)
        wrong = (wanted < -len(self)) | (wanted >= len(self))
        if wrong.any():
            raise StoreError(
                f"site '{self.name}' has no row {wanted[wrong][0]}; its rows are numbered 0 to {len(self) - 1}"
            )
        return np.where(wanted < 0, wanted + len(self), wanted)

    def _span(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``: a private mapping where they lie in one shard, else read into new memory."""
        shard, first = divmod(start, self._rows_per_shard)
        if start == stop:
            return torch.empty((0, *self.spec.row_shape), dtype=self.dtype)
        if first + stop - start <= self._rows_per_shard:
            return self._view(shard, first, stop - start).view(stop - start, *self.spec.row_shape)
        out = torch.empty((stop - start, *self.spec.row_shape), dtype=self.dtype)
        data = out.reshape(-1).view(torch.uint8).numpy().data
        while start < stop:
            shard, first = divmod(start, self._rows_per_shard)
            rows = min(stop - start, self._rows_per_shard - first)
            self._read_into(shard, first, data[: rows * self.spec.row_bytes])
            data = data[rows * self.spec.row_bytes :]
            start += rows
        return out

    def _view(self, shard: int, first: int, rows: int) -> Tensor:
        """Rows of one shard, flat, as a new private mapping."""
        path, offset = self._shard(shard)
        begin = offset + first * self.spec.row_bytes
        end = begin + rows * self.spec.row_bytes
        # unlike Python's own mappings this one keeps no file open, so any number of views can be alive
        with saying(f"read shard {path}"):
            return torch.from_file(str(path), shared=False, size=end, dtype=torch.uint8)[begin:].view(self.dtype)

    def _read_into(self, shard: int, first: int, data: memoryview) -> None:
        path, offset = self._shard(shard)
        with open(path, "rb", buffering=0) as file:
            file.seek(offset + first * self.spec.row_bytes)
            while data:
                count = file.readinto(data)
                if not count:
                    raise StoreError(f"shard {path} ended early; restore it from a copy or record again")
                data = data[count:]

    def _shard(self, index: int) -> tuple[Path, int]:
        """Path of a shard and where its values begin; its size and header are checked the first time."""
        path = self._layout.shard(self.name, index)
        if index not in self._offsets:
            rows = min(self._rows_per_shard, len(self) - index * self._rows_per_shard)
            self._offsets[index] = check_header(path, self.spec, rows, self._rows_per_shard)
        return path, self._offsets[index]

    def _mapped(self, index: int) -> np.ndarray:
        """A shard's rows, flat, as a mapping that is kept for the next call."""
        if index in self._maps:
            self._maps.move_to_end(index)
            return self._maps[index]
        rows = min(self._rows_per_shard, len(self) - index * self._rows_per_shard)
        values = self._view(index, 0, rows).view(torch.uint8).numpy().view(self.spec.numpy_dtype)
        self._maps[index] = values.reshape(rows, -1)
        if len(self._maps) > _MAPPED_SHARDS:
            self._maps.popitem(last=False)
        return self._maps[index]
