"""One shard: a safetensors file per site, written as a stream and committed as a whole.

The safetensors library writes a file only from tensors that are all in memory. A recording arrives batch by batch, so
the header (eight bytes of length, then JSON) is written here: padded with spaces, which the format allows, to a size
that depends on the full shard alone, so that a shorter last shard can have its row count rewritten in place.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from netloupe.core.errors import StoreError
from netloupe.core.store.files import saying, sync_folder, write_all, write_json
from netloupe.core.store.layout import Layout
from netloupe.core.store.spec import SiteSpec

_ALIGNMENT = 64  # the values start at a multiple of this, enough for every number type and for vector loads
_PAGES = 16384  # ... or, in large shards, of this, which the pages of all common machines divide; see mapping.py
_LARGE = 16 * _PAGES
# hashed and written piece by piece, so that a piece is still in the processor's cache when it is written. A piece of 2 MiB
# is one large page: the kernel caches the file in such pages, which makes the first random reads fast. For larger pieces it
# looks for longer runs of free memory, which takes three times the processor's time beside a network that runs.
_CHUNK = 1 << 21


def _header_json(spec: SiteSpec, rows: int) -> bytes:
    entry = {"dtype": spec.code, "shape": [rows, *spec.row_shape], "data_offsets": [0, rows * spec.row_bytes]}
    return json.dumps({"values": entry}, separators=(",", ":")).encode()


def header(spec: SiteSpec, rows: int, rows_per_shard: int) -> bytes:
    """The bytes before the values of a shard with ``rows`` of at most ``rows_per_shard`` rows."""
    longest = 8 + len(_header_json(spec, rows_per_shard))
    shard_bytes = rows_per_shard * spec.row_bytes
    alignment = _PAGES if shard_bytes >= _LARGE and shard_bytes % _PAGES == 0 else _ALIGNMENT
    size = math.ceil(longest / alignment) * alignment - 8
    return size.to_bytes(8, "little") + _header_json(spec, rows).ljust(size)


def check_header(path: Path, spec: SiteSpec, rows: int, rows_per_shard: int) -> int:
    """Offset of the values in an existing shard; StoreError where its size or header is not what was recorded."""
    expected = header(spec, rows, rows_per_shard)
    size = len(expected) + rows * spec.row_bytes
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno()).st_size
            start = file.read(len(expected))
    except FileNotFoundError:
        raise StoreError(f"shard {path} is missing; restore it from a copy or record again") from None
    except OSError as error:
        raise StoreError(
            f"cannot read shard {path}: {(error.strerror or str(error)).lower()}; check the disk"
        ) from error
    if found != size:
        raise StoreError(f"shard {path} has {found} bytes instead of {size}; restore it from a copy or record again")
    if start != expected:
        raise StoreError(f"shard {path} has a damaged header; restore it from a copy or record again")
    return len(expected)


def held_by_a_writer(partial: Path) -> bool:
    """Whether a living writer has this partial file open."""
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        return True
    finally:
        os.close(descriptor)
    return False


class PartialFile:
    """One site's share of a shard that is still being written, under a name that no reader looks at."""

    def __init__(self, path: Path, spec: SiteSpec, rows_per_shard: int) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self._spec, self._rows_per_shard = spec, rows_per_shard
        self._descriptor: int | None = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._hash = xxhash.xxh3_128()
        self._bytes = 0
        try:
            # writers of different shard ranges do not share a lock; this one refuses two writers of the same shard
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise StoreError(
                f"another writer is recording shard {path}; give every writer a range of shards of its own"
            ) from error
        try:
            os.ftruncate(self._descriptor, 0)
            self.write(memoryview(header(spec, rows_per_shard, rows_per_shard)))
        except OSError:
            self.discard()
            raise

    def write(self, data: memoryview) -> None:
        assert self._descriptor is not None
        for start in range(0, len(data), _CHUNK):
            piece = data[start : start + _CHUNK]
            self._hash.update(piece)
            write_all(self._descriptor, piece)
        self._start_writeback(self._bytes, len(data))
        self._bytes += len(data)

    def _start_writeback(self, offset: int, length: int) -> None:
        """Asks the kernel to send fresh bytes to the disk now, so that little is left to wait for when the shard is synced.

        Linux starts writing dirty pages on this advice and keeps them cached; elsewhere it is at most a hint.
        """
        if hasattr(os, "posix_fadvise") and self._descriptor is not None:
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_DONTNEED)

    def seal(self, rows: int) -> dict[str, Any]:
        """Syncs the bytes and gives them their final name; returns what the commit record says of the file."""
        assert self._descriptor is not None
        if rows != self._rows_per_shard:
            self._shorten(rows)
        os.fsync(self._descriptor)
        self.partial.rename(self.path)
        os.close(self._descriptor)
        self._descriptor = None
        sync_folder(self.path.parent)
        return {"bytes": self._bytes, "xxh3_128": self._hash.hexdigest()}

    def _shorten(self, rows: int) -> None:
        # the header comes first in the checksum, so the one short shard of a store is read back once
        assert self._descriptor is not None
        os.pwrite(self._descriptor, header(self._spec, rows, self._rows_per_shard), 0)
        self._hash = xxhash.xxh3_128()
        for offset in range(0, self._bytes, _CHUNK):
            self._hash.update(os.pread(self._descriptor, _CHUNK, offset))

    def discard(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                with suppress(OSError):
                    self.partial.unlink()
            finally:
                os.close(descriptor)


@dataclass
class PartialShard:
    """The files of one shard across all sites, and the digests of the inputs they came from."""

    layout: Layout
    index: int
    rows: int = 0
    inputs: list[tuple[int, int, str]] = field(default_factory=list)
    files: dict[str, PartialFile] = field(default_factory=dict)

    def open(self) -> PartialShard:
        try:
            with saying(f"write shard {self.index} of {self.layout.path}"):
                for name, spec in self.layout.sites.items():
                    path = self.layout.shard(name, self.index)
                    self.files[name] = PartialFile(path, spec, self.layout.rows_per_shard)
        except BaseException:
            self.discard()
            raise
        return self

    def write(self, payloads: dict[str, Any], start: int, rows: int) -> None:
        """Adds rows ``start`` to ``start + rows`` of a batch's flat bytes to every site's file."""
        with saying(f"write shard {self.index} of {self.layout.path}"):
            for name, spec in self.layout.sites.items():
                data = memoryview(payloads[name])
                self.files[name].write(data[start * spec.row_bytes : (start + rows) * spec.row_bytes])
        self.rows += rows

    def commit(self) -> None:
        """Files first, record last: a shard exists once its record does."""
        try:
            with saying(f"commit shard {self.index} of {self.layout.path}"):
                files = {name: file.seal(self.rows) for name, file in self.files.items()}
                record = {
                    "shard": self.index,
                    "rows": self.rows,
                    "files": files,
                    "inputs": [list(entry) for entry in self.inputs],
                }
                write_json(self.layout.record(self.index), record)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        with ExitStack() as every:  # each file's turn comes, whatever happens to the others
            for file in self.files.values():
                every.callback(file.discard)
