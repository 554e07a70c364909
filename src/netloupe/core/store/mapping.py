"""All shards of a site as one array: their files mapped side by side into one stretch of addresses.

A gather from many arrays copies every row twice (out of its shard, then to its place in the answer); from one array it
copies once. Shards whose values begin and end at page boundaries can be laid end to end, so that the gap a header makes
between two files does not exist in memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_HUGE = 2**21  # where address and file offset agree modulo this, the kernel can map cached files in pages of this size
_MAP_FIXED = 0x10  # the same on Linux, macOS and the BSDs; Python's mmap module does not export it


def side_by_side(files: Sequence[tuple[Path, int]], shard_bytes: int, last_bytes: int) -> np.ndarray | None:
    """Read-only bytes of ``files`` (path, offset of the values) end to end, each of ``shard_bytes`` but the last.

    None where this machine's pages do not fit the files or it cannot hold so many mappings; nothing is read until used.
    """
    page = mmap.PAGESIZE
    if sys.maxsize < 2**32 or (len(files) > 1 and shard_bytes % page) or any(offset % page for _, offset in files):
        return None
    total = shard_bytes * (len(files) - 1) + last_bytes
    # this mapping owns the stretch: when the array goes, it releases the files mapped over it as well
    region = mmap.mmap(-1, total + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    array = np.frombuffer(region, np.uint8)
    begin = (files[0][1] - array.ctypes.data) % _HUGE
    array = array[begin : begin + total]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    for index, (path, offset) in enumerate(files):
        size = shard_bytes if index + 1 < len(files) else last_bytes
        wanted = array.ctypes.data + index * shard_bytes
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            got = libc.mmap(wanted, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, offset)
        finally:
            os.close(descriptor)
        if got != wanted:
            return None
    return array
