"""Reading many features from a layer at once beside one ridge regression each.

    python bench/v_complexity.py [--units 256] [--features 100] [--samples 2000 4000 8000 16000] [--repeats 5]

Peers: a separate scikit-learn ``Ridge`` for every feature, and one ``Ridge`` for all of them, each on units standardised by
the fitted samples. The answers are compared before anything is timed. The limit is the Gram matrix, ``2 n d^2`` operations.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from support.timing import alternate, exponent, print_table
from threadpoolctl import threadpool_limits

from netloupe.lenses.information.vinfo import v_information

Split = tuple[np.ndarray, np.ndarray]


def shares(z: np.ndarray, predicted: np.ndarray, split: Split) -> np.ndarray:
    truth = z[split[1]]
    return 1 - ((truth - predicted) ** 2).sum(0) / ((truth - z[split[0]].mean(0)) ** 2).sum(0)


def one_each(x: np.ndarray, z: np.ndarray, split: Split) -> np.ndarray:
    """As one would in a notebook: a fit for every feature."""
    scaler = StandardScaler().fit(x[split[0]])
    inside, outside = scaler.transform(x[split[0]]), scaler.transform(x[split[1]])
    return shares(z, np.stack([Ridge(1.0).fit(inside, column[split[0]]).predict(outside) for column in z.T], 1), split)


def all_at_once(x: np.ndarray, z: np.ndarray, split: Split) -> np.ndarray:
    """The best of scikit-learn: one fit of a table of targets."""
    scaler = StandardScaler().fit(x[split[0]])
    return shares(
        z, Ridge(1.0).fit(scaler.transform(x[split[0]]), z[split[0]]).predict(scaler.transform(x[split[1]])), split
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--samples", type=int, nargs="+", default=[2000, 4000, 8000, 16000])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {}
    with threadpool_limits(1):
        for n in options.samples:
            rng = np.random.default_rng(0)
            x = rng.standard_normal((n, options.units))
            z = x[:, :20] @ rng.standard_normal((20, options.features)) + 3 * rng.standard_normal((n, options.features))
            fitted = rng.random(n) < 0.75
            split = fitted, ~fitted
            ours = partial(v_information, x, z, split=split, clip=False)
            wanted, answer = one_each(x, z, split), ours()
            gap = max(float(np.abs(other - wanted).max()) for other in (answer, all_at_once(x, z, split)))
            if gap > 1e-9:
                raise SystemExit(f"the answers differ by {gap:.1e}")
            sides = {
                "one ridge each": partial(one_each, x, z, split),
                "one ridge": partial(all_at_once, x, z, split),
                "v_information": ours,
            }
            seconds = alternate(sides, options.repeats)
            print(f"{n} samples, {options.units} units, {options.features} features; same answers within {gap:.0e}")
            print_table(seconds, "one ridge each")
            rate = 2 * 0.75 * n * options.units**2 / 1e9 / np.median(seconds["v_information"])
            print(f"  v_information: {rate:.1f} GFLOP/s counted by its Gram matrix")
            for name, values in seconds.items():
                times.setdefault(name, []).append(float(np.median(values)))
    if len(options.samples) > 1:
        for name, values in times.items():
            print(f"{name:<15} grows as n^{exponent(np.array(options.samples), np.array(values)):.2f}")


if __name__ == "__main__":
    main()
