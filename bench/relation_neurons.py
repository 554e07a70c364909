"""Average precision of every unit at once beside scikit-learn's, one unit at a time.

    python bench/relation_neurons.py [--units 400] [--samples 300 600 1200 2400]

Both give the same numbers to 1e-12, also with tied responses, before anything is timed. The limit is one sort of n numbers a unit.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from support.timing import alternate, exponent, print_table, ratio
from threadpoolctl import threadpool_limits

from netloupe.lenses.naming.relation_units import average_precision_columns


def one_by_one(responses: np.ndarray, positives: np.ndarray) -> np.ndarray:
    return np.array([average_precision_score(positives, column) for column in responses.T])


def sorted_only(responses: np.ndarray) -> np.ndarray:
    return np.sort(responses.T, axis=1)


def measure(n: int, n_units: int, repeats: int, times: dict[str, list[float]]) -> None:
    rng = np.random.default_rng(n)
    positives = np.arange(n) < n // 5
    responses = rng.standard_normal((n, n_units)).astype(np.float32) + 0.3 * positives[:, None]
    for given in (responses, np.round(responses, 1)):
        error = np.abs(average_precision_columns(given, positives) - one_by_one(given, positives)).max()
        if not error <= 1e-12:
            raise SystemExit(f"the answers differ by {error}")
    sides = {
        "scikit-learn, a loop": partial(one_by_one, responses, positives),
        "average_precision_columns": partial(average_precision_columns, responses, positives),
        "one sort": partial(sorted_only, responses),
    }
    seconds = alternate(sides, repeats)
    print(f"{n} prompts, {n_units} units; largest difference {error:.1g}")
    print_table(seconds, "scikit-learn, a loop")
    print(f"  {ratio(seconds['scikit-learn, a loop'], seconds['average_precision_columns']):.1f} times faster")
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=400)
    parser.add_argument("--samples", type=int, nargs="+", default=[300, 600, 1200, 2400])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {}
    with threadpool_limits(1):
        for n in options.samples:
            measure(n, options.units, options.repeats, times)
    if len(options.samples) > 1:
        for name, values in times.items():
            print(f"{name:<30} grows as n^{exponent(np.array(options.samples), np.array(values)):.2f}")


if __name__ == "__main__":
    main()
