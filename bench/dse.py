"""Diffusion spectral entropy and mutual information beside the plain formula and, where it is installed, dse-dsmi.

    python bench/dse.py [--samples 500 1000 2000] [--units 64] [--repeats 5]

The plain formula scales the kernel by two products with diagonal matrices and takes all eigenvalues, as published code
does. Every answer is compared before it is timed; one thread.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import pairwise_distances
from support.timing import alternate, exponent, print_table, ratio
from threadpoolctl import threadpool_limits

from netloupe.lenses.information.diffusion import (
    diffusion_matrix,
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
    gaussian_kernel,
)
from netloupe.lenses.information.diffusion_entropy import diffusion_entropy

try:  # licensed for non-commercial use: timed where the user has installed it, never needed
    import dse_dsmi  # type: ignore[import-not-found]
except ImportError:
    dse_dsmi = None

SIGMA = 4.0
OFFICIAL: dict[str, Any] = {"sigma": SIGMA, "official": True}


def make(n_samples: int, n_units: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten overlapping clusters and their labels."""
    draw = np.random.default_rng(n_samples)
    labels = np.arange(n_samples) % 10
    return draw.standard_normal((n_samples, n_units)) + draw.standard_normal((10, n_units))[labels], labels


def plain_matrix(z: np.ndarray) -> np.ndarray:
    kernel = np.exp(-(pairwise_distances(z) ** 2) / (2 * SIGMA**2))
    scale = np.diag(kernel.sum(1) ** -0.5)
    return scale @ kernel @ scale


def plain_entropy(z: np.ndarray) -> float:
    values = np.abs(np.linalg.eigvalsh(plain_matrix(z)))
    shares = values / values.sum() + np.finfo(float).eps
    return float(-(shares * np.log2(shares)).sum())


def plain_information(z: np.ndarray, labels: np.ndarray) -> float:
    """With the draws of Python's generator, seeded anew for each class."""
    total = 0.0
    for label in np.unique(labels):
        inside, generator = labels == label, random.Random(0)
        drawn = [plain_entropy(z[generator.sample(range(len(z)), int(inside.sum()))]) for _ in range(5)]
        total += inside.mean() * (np.mean(drawn) - plain_entropy(z[inside]))
    return float(total)


def timed(name: str, sides: dict[str, Callable[[], object]], repeats: int, table: dict[str, list[float]]) -> None:
    seconds = alternate(sides, repeats)
    for side in sides:
        if side != "netloupe":
            print(f"  {name}: {side} / netloupe {ratio(seconds[side], seconds['netloupe']):.2f}")
    print_table(seconds, "netloupe")
    for side, values in seconds.items():
        table.setdefault(f"{name}, {side}", []).append(float(np.median(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, list[float]] = {}
    with threadpool_limits(1):
        for n in options.samples:
            z, labels = make(n, options.units)
            matrices = {
                "netloupe": lambda z=z: diffusion_matrix(gaussian_kernel(z, SIGMA)),
                "plain": lambda z=z: plain_matrix(z),
            }
            entropies: dict[str, Callable[[], float]] = {
                "netloupe": lambda z=z: diffusion_spectral_entropy(z, **OFFICIAL),
                "plain": lambda z=z: plain_entropy(z),
            }
            informations: dict[str, Callable[[], float]] = {
                "netloupe": lambda z=z, y=labels: diffusion_spectral_mutual_information(z, y, **OFFICIAL)[0],
                "plain": lambda z=z, y=labels: plain_information(z, y),
            }
            if dse_dsmi is not None:
                entropies["dse-dsmi"] = lambda z=z: dse_dsmi.diffusion_spectral_entropy(z, gaussian_kernel_sigma=SIGMA)
                informations["dse-dsmi"] = lambda z=z, y=labels: dse_dsmi.diffusion_spectral_mutual_information(
                    z, y, gaussian_kernel_sigma=SIGMA
                )[0]
            gaps = [float(np.abs(matrices["netloupe"]() - matrices["plain"]()).max())]
            gaps += [
                abs(side() - group["netloupe"]()) for group in (entropies, informations) for side in group.values()
            ]
            if max(gaps) > 1e-6:
                raise SystemExit(f"the answers differ by {max(gaps):.1e}")
            print(f"n = {n}: all answers within {max(gaps):.1e}")
            for name, sides in (("matrix", matrices), ("entropy", entropies), ("information", informations)):
                timed(name, sides, options.repeats, table)
        for name, seconds in table.items():
            print(f"{name}: time grows as n^{exponent(np.array(options.samples), np.array(seconds)):.2f}")
        for n, d in ((1797, 64), (256, 384)):
            z, labels = make(n, d)
            seconds = alternate({"lens": lambda z=z, y=labels: diffusion_entropy(z, y)}, options.repeats)["lens"]
            print(f"lens, n = {n}, d = {d}: {np.median(seconds):.3f} s")


if __name__ == "__main__":
    main()
