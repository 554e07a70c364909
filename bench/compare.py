"""``netloupe compare`` of two networks of 12 sites on 10,000 samples, and its site-by-site map beside plain numpy.

    python bench/compare.py [--samples 10000] [--units 256]

The goal is 60 s on two idle cores, from recordings to the finished page.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from support.timing import alternate, print_table
from torch import nn

from netloupe.core.recording import record
from netloupe.lenses.similarity.site_map import site_map
from netloupe.report.compare_page import write_comparison
from netloupe.report.comparison import compare


def network(units: int, depth: int, seed: int) -> nn.Module:
    """A perceptron of ``depth`` layers that still varies at the end."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(64 if i == 0 else units, units), nn.ReLU()]
        nn.init.normal_(layers[-2].weight, std=(2 / layers[-2].in_features) ** 0.5)  # type: ignore[arg-type]
    return nn.Sequential(*layers).eval()


def numpy_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased linear CKA by the two Gram matrices, as usually written."""

    def debiased(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        ones = np.ones(n)
        return float(
            (k * m).sum()
            + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
            - 2 * (ones @ k @ m @ ones) / (n - 2)
        )

    a, b = x @ x.T, y @ y.T
    return debiased(a, b) / np.sqrt(debiased(a, a) * debiased(b, b))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--units", type=int, default=256)
    given = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(given.samples, 8, generator=draw) @ torch.randn(8, 64, generator=draw)
    sites = [str(2 * i + 1) for i in range(12)]
    with tempfile.TemporaryDirectory() as folder:
        for seed in (0, 1):
            record(network(given.units, 12, seed), data, sites, to=Path(folder) / str(seed), batch_size=512)
        started = time.perf_counter()
        found = compare(f"{folder}/0", f"{folder}/1")
        measured = time.perf_counter() - started
        write_comparison(found, Path(folder))
        total = time.perf_counter() - started
        print(
            f"12 x 12 sites of {given.units} units, {given.samples} samples: {measured:.1f} s, with the page {total:.1f} s (goal 60)"
        )
        print(
            f"  mean of the best matches: {', '.join(f'{name} {value:.2f}' for name, value in found.map.summary().items())}"
        )
    x, y = (np.random.default_rng(i).standard_normal((2000, given.units)) for i in (0, 1))
    y[:, :20] += x[:, :20]
    gap = abs(site_map({"a": x}, {"b": y}, ["cka"]).of("cka")[0, 0] - numpy_cka(x, y))
    assert gap < 1e-9, gap
    print(f"one pair, CKA with its interval and ceiling, 2,000 samples; difference {gap:.1e}")
    sides = {"netloupe": lambda: site_map({"a": x}, {"b": y}, ["cka"]), "numpy, Gram matrices": lambda: numpy_cka(x, y)}
    print_table(alternate(sides, 3), "numpy, Gram matrices")


if __name__ == "__main__":
    main()
