"""Running a network as a guest: everything that a pass could change is put back afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Mode = Literal["eval", "train", "keep"]


class Buffers:
    """Puts a network's buffers back after a pass: batch-norm statistics, counters, and what a network binds anew.

    Copies are kept from pass to pass and made again only of buffers that somebody else has changed since.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._copies: dict[tuple[int, str], tuple[Tensor, int, Tensor]] = {}

    @contextmanager
    def kept(self, always: bool = False) -> Iterator[None]:
        """``always`` restores also what shows no sign of a change (a write through ``.data`` shows none)."""
        before = {
            (id(module), name): (module, buffer, self._copy(module, name, buffer))
            for module in self.model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and not is_lazy(buffer)
        }
        try:
            yield
        finally:
            for (key, name), (module, buffer, (version, copy)) in before.items():
                if name in module._buffers and module._buffers[name] is not buffer and not is_lazy(buffer):
                    module._buffers[name] = buffer
                if always or buffer.is_inference() or buffer._version != version:
                    with torch.no_grad():
                        buffer.copy_(copy)
                    self._copies[key, name] = (buffer, 0 if buffer.is_inference() else buffer._version, copy)

    def _copy(self, module: nn.Module, name: str, buffer: Tensor) -> tuple[int, Tensor]:
        version = -1 if buffer.is_inference() else buffer._version
        known = self._copies.get((id(module), name))
        if known is None or known[0] is not buffer or known[1] != version or version < 0:
            known = buffer, version, buffer.detach().clone()
            self._copies[id(module), name] = known
        return version, known[2]


@contextmanager
def guest(
    model: nn.Module, mode: Mode = "eval", seed: int | None = 0, buffers: Buffers | None = None
) -> Iterator[None]:
    """Sets train/eval mode and random state for a block and restores both and the buffers, also after an exception.

    Modes are set flag by flag and not through ``model.train()``, which some networks override with side effects.
    ``seed=None`` leaves the random state alone. ``buffers`` saves copies where many blocks follow each other.
    """
    flags = [(module, module.training) for module in model.modules()]
    may_learn = mode == "train" or (mode == "keep" and any(flag for _, flag in flags))
    with (buffers or Buffers(model)).kept(always=may_learn):
        try:
            if mode != "keep":
                for module, flag in flags:
                    if flag != (mode == "train"):
                        module.training = mode == "train"
            with random_state(seed):
                yield
        finally:
            for module, flag in flags:
                if module.training != flag:
                    module.training = flag


@contextmanager
def random_state(seed: int | None) -> Iterator[None]:
    """Seeds torch, numpy and random for a block and restores what they were before it."""
    if seed is None:
        yield
        return
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002 - restores the global one
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def pinned_threads(n_threads: int = 1) -> Iterator[None]:
    """A fixed number of threads of torch and of BLAS for a block: the same numbers everywhere, and on a busy machine many
    times faster.

    Small networks gain nothing from a second thread, and two threads that wait for each other on a shared core lose all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with threadpool_limits(n_threads, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a network that has neither."""
    tensor = next(model.parameters(), None)
    tensor = next(model.buffers(), None) if tensor is None else tensor
    return tensor.device if tensor is not None and tensor.device.type != "meta" else torch.device("cpu")
