"""Walks a batch's rows block by block, each block seen by every statistic while it is in a core's cache.

A block's extent depends only on the batch, never on the number of threads, and floating-point partial sums are
kept per block and combined in block order: one thread and eight give the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch

from netloupe.core.statistics.batch import Batch
from netloupe.core.statistics.kernels import FLOAT32_BITS, all_finite_32, all_finite_64

BLOCK_VALUES = 1 << 17  # 512 KiB of float32: a quarter of a current core's second-level cache
_MIN_VALUES_TO_SHARE = 1 << 16  # below this, handing work to a thread costs more than it saves


class BlockPass:
    """What one statistic does with one batch: blocks on several threads, then one commit.

    ``block`` must not change the statistic itself, so that a batch refused half-way leaves no trace.
    """

    checks_finite = False

    def block(self, worker: int, index: int, start: int, stop: int) -> None:
        """Read rows ``start`` to ``stop``, block number ``index``, on thread number ``worker``."""

    def finite(self) -> bool:
        """Whether all values read were finite; asked only where ``checks_finite`` is True."""
        return True

    def finish(self, worker: int, n_workers: int) -> None:
        """Once all values are known to be finite: this thread's share of work that needs all blocks.

        May change the statistic, in places that no other thread touches.
        """

    def commit(self) -> None:
        """Add what the blocks found to the statistic."""


class FinitePass(BlockPass):
    """Looks for NaN and infinity where no other pass does so as a by-product."""

    checks_finite = True

    def __init__(self, batch: Batch, n_workers: int) -> None:
        self.bits = batch.rows.view(FLOAT32_BITS[batch.rows.dtype.itemsize])
        self.kernel = all_finite_32 if batch.rows.dtype.itemsize == 4 else all_finite_64
        self.found = [True] * n_workers

    def block(self, worker: int, index: int, start: int, stop: int) -> None:
        if not self.kernel(self.bits, start, stop):
            self.found[worker] = False

    def finite(self) -> bool:
        return all(self.found)


def block_rows(n_units: int) -> int:
    """Rows in a block: a multiple of 32."""
    return max(1, round(BLOCK_VALUES / n_units / 32)) * 32


def n_blocks(batch: Batch) -> int:
    """How many blocks ``run`` cuts this batch into."""
    return -(-batch.n_rows // block_rows(batch.n_units))


def run(batch: Batch, begin: Sequence[Callable[[Batch, int], BlockPass]]) -> None:
    """Run every pass over ``batch`` and commit them all, or raise ``NonFiniteError`` and commit none."""
    step, count = block_rows(batch.n_units), n_blocks(batch)
    shared = batch.rows.size >= _MIN_VALUES_TO_SHARE
    workers = max(1, min(torch.get_num_threads(), count)) if shared else 1
    passes = [start(batch, workers) for start in begin]
    if not any(one.checks_finite for one in passes):
        passes.insert(0, FinitePass(batch, workers))

    def read(worker: int) -> None:
        for index in range(worker * count // workers, (worker + 1) * count // workers):
            start = index * step
            stop = min(start + step, batch.n_rows)
            for one in passes:
                one.block(worker, index, start, stop)

    def finish(worker: int) -> None:
        for one in passes:
            one.finish(worker, workers)

    _on_threads(read, workers)
    if not all(one.finite() for one in passes if one.checks_finite):
        batch.refuse_nonfinite()
    _on_threads(finish, workers)
    for one in passes:
        one.commit()


def _on_threads(work: Callable[[int], None], workers: int) -> None:
    """Call ``work`` once per worker number, number 0 on this thread; errors come out here."""
    if workers == 1:
        work(0)
        return
    jobs = [_pool(workers - 1).submit(work, worker) for worker in range(1, workers)]
    try:
        work(0)
    finally:
        wait(jobs)
    for job in jobs:
        job.result()


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(size: int) -> ThreadPoolExecutor:
    """A pool of ``size`` threads that lives as long as the process (a forked child makes its own)."""
    key = (os.getpid(), size)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(size, thread_name_prefix="netloupe-statistics")
    return _pools[key]
