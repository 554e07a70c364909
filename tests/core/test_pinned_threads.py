"""A pinned block has one thread in torch and in BLAS, and puts both back, also after an exception."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from netloupe.core.isolation import pinned_threads


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_torch_and_blas_are_pinned_and_put_back():
    np.ones((4, 4)) @ np.ones((4, 4))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2, user_api="blas"):
            with pytest.raises(ZeroDivisionError), pinned_threads():
                assert torch.get_num_threads() == 1
                assert blas_threads() == {1}
                raise ZeroDivisionError
            assert torch.get_num_threads() == 2
            assert blas_threads() == {2}
    finally:
        torch.set_num_threads(before)
