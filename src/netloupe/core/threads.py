"""Independent pieces of work on as many threads as torch has, each with libraries that keep to one thread.

Two threads inside one product of small matrices mostly wait for each other, and on a busy machine for much else; two
products side by side do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from netloupe.core.isolation import pinned_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``function`` of every item, in their order; an exception comes where its result would.

    Pays where most of the time is spent in numpy, BLAS or torch, which let other threads run. Results do not depend on the
    number of threads, for every piece is computed on one.
    """
    n_threads = min(torch.get_num_threads(), len(items))
    with pinned_threads(1):
        if n_threads <= 1:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(n_threads, thread_name_prefix="netloupe") as pool:
            try:
                yield from pool.map(function, items)
            finally:
                pool.shutdown(cancel_futures=True)
