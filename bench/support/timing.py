"""Alternating runs and their medians: a machine that slows down slows all sides alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from threadpoolctl import threadpool_limits


def alternate(
    sides: Mapping[str, Callable[[], object]],
    repeats: int,
    warm_up: int = 1,
    between: Callable[[], object] = lambda: None,
) -> dict[str, np.ndarray]:
    """Seconds of each side, ``repeats`` times in turn after ``warm_up`` rounds that are not counted.

    ``between`` runs after every run and is not timed: it clears away what a run left.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(warm_up + repeats):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if round_ >= warm_up:
                seconds[name].append(time.perf_counter() - started)
            between()
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(one: np.ndarray, other: np.ndarray) -> float:
    """Median over rounds of ``one / other``."""
    return float(np.median(one / other))


def print_table(seconds: Mapping[str, np.ndarray], beside: str) -> None:
    """Median time of every side and its ratio to one of them."""
    width = max(map(len, seconds))
    for name, values in seconds.items():
        print(
            f"  {name:<{width}}  {1e3 * np.median(values):10.1f} ms   {ratio(values, seconds[beside]):7.3f} x {beside}"
        )


def exponent(sizes: np.ndarray, seconds: np.ndarray) -> float:
    """Slope of log seconds on log size: 1 is linear."""
    return float(np.polyfit(np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float)), 1)[0])


def print_growth(
    runs: Sequence[tuple[Callable[[int, dict[str, list[float]]], object], Sequence[int]]],
) -> None:
    """Runs each ``run(n, times)`` at its sizes on one thread, and prints with what power of ``n`` every time that it noted grows."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for run, sizes in runs:
            times: dict[str, list[float]] = {}
            for n in sizes:
                run(n, times)
            if len(sizes) > 1:
                for name, values in times.items():
                    print(f"{name:<36} grows as n^{exponent(np.array(sizes), np.array(values)):.2f}")
