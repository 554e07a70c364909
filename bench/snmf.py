"""Semi-NMF's iterations beside those of the plain alternating algorithm, and its error beside scikit-learn's NMF.

    python bench/snmf.py [--samples 1000 2000 4000 8000] [--units 400] [--features 20]

The peer is the algorithm as it is usually written: both factors updated with whole matrices, and the error from the whole
residual, in torch and in the same number type. Both start alike and must end alike before anything is timed. On non-negative
data the error of semi-NMF must not exceed that of scikit-learn's NMF with as many features. The limit is two matrix products.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from sklearn.decomposition import NMF
from support.timing import alternate, exponent, print_table

from netloupe.lenses.dictionary.snmf import SemiNMF


def plain(x: torch.Tensor, k: int, iterations: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """All units kept."""
    a = x.T.contiguous()
    codes = torch.rand(len(x), k, generator=torch.Generator().manual_seed(0)).to(x.dtype).clamp_min(1e-6)
    best = (codes, codes, float("inf"))
    for _ in range(iterations):
        directions = a @ codes @ torch.linalg.inv(codes.T @ codes + 1e-6 * torch.eye(k, dtype=x.dtype))
        size = codes.norm(dim=0).clamp_min(1e-8)
        codes, directions = codes / size, directions * size
        p, q = a.T @ directions, directions.T @ directions
        up = (p.abs() + p) / 2 + codes @ ((q.abs() - q) / 2)
        down = (p.abs() - p) / 2 + codes @ ((q.abs() + q) / 2) + 1e-6
        codes = codes * torch.sqrt(up / down)
        error = float((a - directions @ codes.T).norm() ** 2)
        if error < best[2]:
            best = (directions.clone(), codes.clone(), error)
    return best


def ours(x: torch.Tensor, k: int, iterations: int) -> SemiNMF:
    return SemiNMF(k, 1.0, max_iter=iterations, patience=iterations, tol=0.0, dtype="float32").fit(x)


def compare(n: int, d: int, k: int, iterations: int, repeats: int, times: dict[str, list[float]]) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((n, k)) @ rng.standard_normal((k, d)) + 0.1 * rng.standard_normal((n, d))).float()
    found, peer = ours(x, k, 5), plain(x, k, 5)
    gap = abs(found.loss_ - peer[2]) / peer[2]
    if gap > 1e-3 or not np.allclose(found.directions_.T, peer[0], rtol=1e-2, atol=1e-3 * float(peer[0].abs().max())):
        raise SystemExit(f"the answers differ by {gap:.1e}")
    print(f"{n} samples, {d} units, {k} features, {iterations} iterations; same error within {gap:.0e}")
    sides: dict[str, Any] = {"plain": partial(plain, x, k, iterations), "SemiNMF": partial(ours, x, k, iterations)}
    seconds = alternate(sides, repeats)
    print_table(seconds, "plain")
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def beside_nmf(n: int, d: int, k: int) -> None:
    x = np.random.default_rng(1).random((n, d))
    errors = {
        "NMF": float(NMF(cast(Any, k), init="nndsvda", max_iter=400).fit(x).reconstruction_err_ ** 2),
        "SemiNMF": SemiNMF(k, 1.0, "svd", max_iter=400).fit(x).loss_,
    }
    print(f"squared error on non-negative data: {errors}")
    if errors["SemiNMF"] > errors["NMF"]:
        raise SystemExit("semi-NMF is worse than NMF, of which it is a relaxation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--units", type=int, default=400)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    beside_nmf(300, 40, 8)
    times: dict[str, list[float]] = {}
    for n in options.samples:
        compare(n, options.units, options.features, options.iterations, options.repeats, times)
    if len(options.samples) > 1:
        for name, values in times.items():
            print(f"{name:<10} grows as n^{exponent(np.array(options.samples), np.array(values)):.2f}")


if __name__ == "__main__":
    main()
