"""The massive-activation probe beside plain ways to the same numbers, and how long many curve fits take.

    python bench/massive_activations.py [--positions 128 256 512 1024] [--samples 16] [--units 384] [--repeats 7] [--threads 1]

Peers of the probe, all for the three largest absolute values and the median of every sample: a full sort and
``torch.median`` (what the published analysis does), ``torch.topk`` and ``torch.median``, and numpy's partition. The limit is one
copy of the values. ``torch.median`` takes the lower of two middle values, so it is compared with the sorted values instead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from support.timing import alternate, exponent, print_table, ratio
from torch import Tensor

from netloupe.lenses.activity.massive import MassiveTracker, massive_stats
from netloupe.lenses.dynamics.emergence import ExpLogCurve

N_FITS = 188


def by_sorting(h: Tensor) -> tuple[Tensor, Tensor]:
    """Everything in order, of which three values are kept; the lower median."""
    flat = h.abs().flatten(1)
    return torch.sort(flat, descending=True).values[:, :3], torch.median(flat, 1).values


def by_selection(h: Tensor) -> tuple[Tensor, Tensor]:
    """``topk`` and the lower median."""
    flat = h.abs().flatten(1)
    return flat.topk(3).values, torch.median(flat, 1).values


def by_partition(h: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """numpy's selection of both middle values, and the largest three."""
    flat = np.abs(h.numpy().reshape(len(h), -1))
    n = flat.shape[1]
    flat.partition([(n - 1) // 2, n // 2, n - 3, n - 2, n - 1], axis=1)
    return flat[:, : n - 4 : -1], (flat[:, (n - 1) // 2] + flat[:, n // 2]) / 2


def require_same(h: Tensor) -> None:
    """All ways agree, the median up to its convention."""
    found = massive_stats(h)
    top, median = by_partition(h)
    lower = np.sort(np.abs(h.numpy().reshape(len(h), -1)), axis=1)[:, (h[0].numel() - 1) // 2]
    result = MassiveTracker().update(h).result()
    same = np.array_equal(found["top"].numpy(), top) and np.allclose(found["median"].numpy(), median, rtol=1e-6)
    same &= all(torch.equal(way(h)[0], found["top"]) for way in (by_sorting, by_selection))
    same &= all(np.array_equal(way(h)[1].numpy(), lower) for way in (by_sorting, by_selection))
    same &= np.allclose(result.top, top.mean(0), rtol=1e-6) and np.isclose(result.median, median.mean(), rtol=1e-6)
    if not same:
        raise SystemExit("the ways disagree")


def sides(h: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed."""
    return {
        "sort and median": lambda: by_sorting(h),
        "topk and median": lambda: by_selection(h),
        "numpy partition": lambda: by_partition(h),
        "massive_stats": lambda: massive_stats(h),
        "MassiveTracker": lambda: MassiveTracker().update(h),
        "one copy": lambda: h.abs(),
    }


def time_fits() -> None:
    """As many fits as the paper's layers, on noisy curves."""
    draw, t = np.random.default_rng(0), np.concatenate([[0.0], 2.0 ** np.arange(10), np.linspace(1000, 143_000, 26)])
    started = time.process_time()
    worst = 1.0
    for _ in range(N_FITS):
        x = draw.uniform(1e-5, 2e-4) * t + draw.uniform(0.5, 1.2)
        y = np.exp(-draw.uniform(0.05, 1) * x) * np.log(x)
        y += 0.02 * np.ptp(y) * draw.standard_normal(len(t))
        worst = min(worst, ExpLogCurve().fit(t.tolist(), y.tolist()).r2_)
    print(f"{N_FITS} curve fits: {time.process_time() - started:.1f} CPU seconds, smallest R^2 {worst:.4f}")


def main() -> None:
    """Print times, ratios and the growth with the number of values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--units", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table: dict[str, list[float]] = {}
    for n_positions in options.positions:
        h = torch.randn(options.samples, n_positions, options.units, generator=torch.Generator().manual_seed(0))
        require_same(h)
        print(f"{options.samples} samples of {n_positions} x {options.units} values, {options.threads} thread(s)")
        times = alternate(sides(h), options.repeats)
        print_table(times, "topk and median")
        print(f"  topk and median / massive_stats: {ratio(times['topk and median'], times['massive_stats']):.2f}")
        for name, seconds in times.items():
            table.setdefault(name, []).append(float(np.median(seconds)))
    for name, seconds in table.items() if len(options.positions) > 1 else ():
        print(f"{name}: time grows as values^{exponent(np.array(options.positions), np.array(seconds)):.2f}")
    time_fits()


if __name__ == "__main__":
    main()
