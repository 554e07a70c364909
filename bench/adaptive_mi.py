"""Binned and kernel mutual information beside what they are usually computed by.

    python bench/adaptive_mi.py [--samples 512 1024 2048 4096] [--units 10] [--repeats 5]

Peer of the bins: the loop over inputs that information-plane code runs, one ``np.unique`` for every distinct input and
label. Peer of the kernel: the same bounds written with torch's ``cdist`` and ``logsumexp``. Every answer is compared
before it is timed; one thread.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from support.timing import alternate, exponent, print_table, ratio
from threadpoolctl import threadpool_limits

from netloupe.lenses.information.estimators import binned_mi, ebab_edges, kde_mi
from netloupe.lenses.information.label_information import label_information

S2 = 1e-2
Pair = tuple[float, float]


def make(n_samples: int, n_units: int) -> tuple[np.ndarray, np.ndarray]:
    """A tanh layer of distinct inputs, and two labels."""
    draw = np.random.default_rng(n_samples)
    hidden = draw.standard_normal((n_samples, n_units))
    return np.tanh(1.5 * hidden).astype(np.float32), (hidden[:, 0] + draw.standard_normal(n_samples) > 0).astype(int)


def loop_edges(t: np.ndarray, n_bins: int = 30) -> np.ndarray:
    """The edges, one by one."""
    low = float(np.nextafter(float(t.min()), -np.inf))
    u = np.sort(np.setdiff1d(np.unique(t.ravel()), [low]))
    return np.array([low, *(u[k * len(u) // n_bins] for k in range(n_bins)), u[-1]], dtype=np.float64)


def rows_entropy(binned: np.ndarray) -> float:
    packed = np.ascontiguousarray(binned).view(np.dtype((np.void, binned.dtype.itemsize * binned.shape[1])))
    shares = np.unique(packed, return_counts=True)[1] / len(binned)
    return float(-(shares * np.log2(shares)).sum())


def by_loop(t: np.ndarray, y: np.ndarray) -> Pair:
    """``H(T|X)`` and ``H(T|Y)`` from one call of ``np.unique`` for every input and every label."""
    edges, inputs = loop_edges(t), np.arange(len(t))
    binned = edges[np.clip(np.digitize(t.ravel(), edges) - 1, 0, None)].reshape(t.shape)
    total = rows_entropy(binned)

    def given(groups: np.ndarray) -> float:
        return sum((groups == g).mean() * rows_entropy(binned[groups == g]) for g in np.unique(groups))

    return total - given(inputs), total - given(y)


def ours(t: np.ndarray, y: np.ndarray) -> Pair:
    return binned_mi(t, y, ebab_edges(t))


def by_logsumexp(t: np.ndarray, y: np.ndarray) -> Pair:
    """The upper bound as written: one distance matrix for all samples and one for each class."""
    rows = torch.from_numpy(t).double()
    width = rows.shape[1]

    def entropy(part: torch.Tensor) -> float:
        exponents = -(torch.cdist(part, part) ** 2) / (2 * S2)
        logs = torch.logsumexp(exponents, 1) - math.log(len(part)) - width / 2 * math.log(2 * math.pi * S2)
        return width / 2 - float(logs.mean())

    noise = width / 2 * (math.log(2 * math.pi * S2) + 1)
    total = entropy(rows)
    within = sum(float((y == c).mean()) * entropy(rows[torch.from_numpy(y == c)]) for c in np.unique(y))
    return (total - noise) / math.log(2), (total - within) / math.log(2)


def kernel(t: np.ndarray, y: np.ndarray) -> Pair:
    return kde_mi(t, y, S2)


def compare(
    name: str,
    sides: dict[str, Callable[[np.ndarray, np.ndarray], Pair]],
    sizes: list[int],
    n_units: int,
    repeats: int,
    limit: float,
) -> None:
    """Answers, then times and their growth."""
    first, peer = sides
    table: dict[str, list[float]] = {side: [] for side in sides}
    for n_samples in sizes:
        t, y = make(n_samples, n_units)
        gap = float(np.abs(np.subtract(sides[first](t, y), sides[peer](t, y))).max())
        if gap > limit:
            raise SystemExit(f"{name}: the answers differ by {gap:.1e} bits")
        seconds = alternate({side: partial(f, t, y) for side, f in sides.items()}, repeats)
        print(
            f"{name}, n = {n_samples}: answers within {gap:.1e} bits, peer/ours {ratio(seconds[peer], seconds[first]):.1f}"
        )
        print_table(seconds, first)
        for side, values in seconds.items():
            table[side].append(float(np.median(values)))
    for side, values in table.items():
        print(f"{name}, {side}: time grows as n^{exponent(np.array(sizes), np.array(values)):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--units", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        compare(
            "bins",
            {"netloupe": ours, "loop over inputs": by_loop},
            options.samples,
            options.units,
            options.repeats,
            1e-9,
        )
        compare(
            "kernel",
            {"netloupe": kernel, "cdist and logsumexp": by_logsumexp},
            options.samples,
            options.units,
            options.repeats,
            1e-6,
        )
        for n_samples, n_units in ((1797, 64), (256, 384)):
            t, y = make(n_samples, n_units)
            seconds = alternate({"label_information": partial(label_information, t, y)}, options.repeats)
            print(f"lens, n = {n_samples}, d = {n_units}: {np.median(seconds['label_information']):.3f} s")


if __name__ == "__main__":
    main()
