"""Running a network as a guest: everything that a pass could change is put back afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import nn

Mode = Literal["eval", "train", "keep"]


@contextmanager
def guest(model: nn.Module, mode: Mode = "eval", seed: int | None = 0) -> Iterator[None]:
    """Sets train/eval mode and random state for a block and restores both, also after an exception.

    With ``mode="train"`` buffers (batch-norm statistics) are restored as well. Modes are set flag by flag and
    not through ``model.train()``, which some networks override with side effects. ``seed=None`` leaves the
    random state alone.
    """
    flags = [(module, module.training) for module in model.modules()]
    may_learn = mode == "train" or (mode == "keep" and any(flag for _, flag in flags))
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()] if may_learn else []
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
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


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
    """A fixed number of torch threads for a block: the same numbers everywhere, and on a busy machine many times faster.

    Small networks gain nothing from a second thread, and two threads that wait for each other on a shared core lose all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a network that has neither."""
    tensor = next(model.parameters(), None)
    tensor = next(model.buffers(), None) if tensor is None else tensor
    return tensor.device if tensor is not None and tensor.device.type != "meta" else torch.device("cpu")
