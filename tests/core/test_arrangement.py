"""Kernel alignment, its chance level and its standard error against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core import arrangement as module
from netloupe.core.arrangement import (
    Arrangement,
    aligned_rows,
    alignment,
    alignment_error,
    chance_alignment,
    kernel_alignment,
)
from netloupe.core.errors import InputError, NonFiniteError


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    h = np.eye(len(x)) - 1 / len(x)
    k, l = h @ x @ x.T @ h, h @ y @ y.T @ h
    return float((k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum()))


def two(seed: int, n: int, d: int, m: int) -> tuple[np.ndarray, np.ndarray, Arrangement, Arrangement]:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)) + 2, rng.standard_normal((n, m))
    y[:, 0] += x[:, 0]
    a, b = (Arrangement(rows) for rows in aligned_rows([x, y], ("one", "other")))
    return x, y, a, b


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(4, 25), st.integers(1, 40), st.integers(1, 4))
def test_alignment_is_that_of_the_kernels(seed: int, n: int, d: int, m: int):
    x, y, a, b = two(seed, n, d, m)
    wanted = plain_cka(x, y)
    assert alignment(a, b).biased == pytest.approx(wanted, rel=1e-9)
    assert kernel_alignment(x @ x.T, y @ y.T) == pytest.approx(wanted, rel=1e-9)
    centred = [each - each.mean(0) for each in (x, y)]
    assert kernel_alignment(*(each @ each.T for each in centred), center=False) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("by_gram", [True, False])
def test_the_error_is_the_jackknife(d: int, by_gram: bool, monkeypatch: pytest.MonkeyPatch):
    if not by_gram:
        monkeypatch.setattr(module, "_GRAM_SAMPLES", 0)
    x, y, a, b = two(d, 15, d, 2)
    left = np.array([plain_cka(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(15)])
    wanted = np.sqrt(14 / 15 * ((left - left.mean()) ** 2).sum())
    assert alignment_error(a, b) == pytest.approx(wanted, rel=1e-9)


def test_chance_is_the_mean_over_orders():
    x, y, a, b = two(5, 6, 4, 2)
    from itertools import permutations

    found = [plain_cka(x, y[list(order)]) for order in permutations(range(6))]
    assert chance_alignment(a, b) == pytest.approx(np.mean(found), rel=1e-9)


def test_participation_of_a_known_spectrum():
    x = np.concatenate([np.diag([3.0, 2.0, 1.0]), -np.diag([3.0, 2.0, 1.0])])
    a = Arrangement(aligned_rows([x], ["one"])[0])
    assert a.participation == pytest.approx((9 + 4 + 1) ** 2 / (81 + 16 + 1), rel=1e-12)


def test_kernels_that_cannot_be_aligned():
    kernel, flat = np.diag([1.0, 2.0, 3.0]), np.full((3, 3), 7.0)
    assert kernel_alignment(kernel, flat, official=True) == 0
    with pytest.raises(InputError, match="zero once centred"):
        kernel_alignment(kernel, flat)
    with pytest.raises(InputError, match="same items"):
        kernel_alignment(kernel, np.eye(4))
    with pytest.raises(InputError, match="one row and one column"):
        kernel_alignment(kernel, np.ones((3, 2)))
    with pytest.raises(NonFiniteError):
        kernel_alignment(kernel, np.diag([1.0, np.nan, 2.0]))
    with pytest.raises(InputError, match="same samples"):
        aligned_rows([np.ones((3, 1)), np.ones((4, 1))], ("one", "other"))
