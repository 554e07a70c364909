"""Neural-collapse numbers beside their plain numpy formula with a ``d x d`` pseudo-inverse.

    python bench/neural_collapse.py [--units 512] [--classes 10] [--samples 2000 4000 8000 16000] [--repeats 5]

Both get the same float32 features and run in turn on one thread; a time is the median of its runs, in CPU seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from netloupe.core.statistics import LabelMoments
from netloupe.lenses.geometry.neural_collapse import collapse_of_moments, neural_collapse

Answer = dict[str, float]
Inputs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make_inputs(n_samples: int, n_units: int, n_classes: int, random_state: int = 0) -> Inputs:
    """Noisy clusters, their labels, and a classifier that partly agrees with them."""
    rng = np.random.default_rng(random_state)
    labels = rng.permutation(np.arange(n_samples) % n_classes)
    means = rng.standard_normal((n_classes, n_units))
    features = means[labels] + 3 * rng.standard_normal((n_samples, n_units))
    weight = means + rng.standard_normal(means.shape)
    return features.astype(np.float32), labels, weight, -np.sum(means**2, axis=1) / 2


def plain(features: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Answer:
    """The definitions, written as one would in a notebook: full scatter matrices in float64."""
    values, n_classes = features.astype(np.float64), int(labels.max()) + 1
    means = np.stack([values[labels == k].mean(axis=0) for k in range(n_classes)])
    centred, inside = means - means.mean(axis=0), values - means[labels]
    within, between = inside.T @ inside / len(values), centred.T @ centred / n_classes
    gram = centred @ centred.T
    simplex = (np.eye(n_classes) - 1 / n_classes) / np.sqrt(n_classes - 1)
    nearest = np.stack([np.sum((values - mean) ** 2, axis=1) for mean in means], axis=1).argmin(axis=1)
    return {
        "nc1": float(np.trace(within @ np.linalg.pinv(between, rcond=1e-12, hermitian=True)) / n_classes),
        "nc1_trace": float(np.trace(within) / np.trace(between)),
        "nc2": float(np.linalg.norm(gram / np.linalg.norm(gram) - simplex)),
        "nc3": float(np.linalg.norm(weight / np.linalg.norm(weight) - centred / np.linalg.norm(centred))),
        "nc4": float(np.mean((values @ weight.T + bias).argmax(axis=1) != nearest)),
    }


def two_passes(features: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Answer:
    """The lens on arrays: all numbers, no ``d x d`` matrix."""
    found = neural_collapse(features, labels, weight, bias)
    return {name: getattr(found, name) for name in ("nc1", "nc1_trace", "nc2", "nc3", "nc4")}


def one_pass(features: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Answer:
    """The lens on moments with the full scatter: one reading, without NC4."""
    found = collapse_of_moments(LabelMoments(second="full").update(features, labels=labels).result(), weight)
    return {name: getattr(found, name) for name in ("nc1", "nc1_trace", "nc2", "nc3")}


def alternate(methods: dict[str, Callable[..., Answer]], inputs: Inputs, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each method, run in turn so that a busy spell hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            begin = time.process_time()
            method(*inputs)
            times[name].append(time.process_time() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


def largest_difference(answer: Answer, wanted: Answer) -> float:
    """Largest relative difference over the numbers that ``answer`` has."""
    return max(abs(value - wanted[name]) / max(abs(wanted[name]), 1e-12) for name, value in answer.items())


def main() -> None:
    """Print times, ratios, differences and the fitted growth with the number of samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--samples", type=int, nargs="+", default=[2000, 4000, 8000, 16000])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = {"plain": plain, "two passes": two_passes, "one pass": one_pass}
    table: dict[str, list[float]] = {name: [] for name in methods}
    print(f"d = {options.units}, K = {options.classes}, one thread, median of {options.repeats} runs in turn")
    with threadpool_limits(1):
        for n_samples in options.samples:
            inputs = make_inputs(n_samples, options.units, options.classes)
            wanted = plain(*inputs)
            times = alternate(methods, inputs, options.repeats)
            for name, seconds in times.items():
                table[name].append(seconds)
                gap, ratio = largest_difference(methods[name](*inputs), wanted), times["plain"] / seconds
                print(f"N = {n_samples:6d}  {name:10s} {seconds:8.4f} s  plain/this {ratio:6.2f}  difference {gap:.1e}")
                if gap > 1e-8:
                    raise SystemExit(f"{name} differs from the plain formula by {gap:.1e}")
    if len(options.samples) > 1:
        for name, seconds in table.items():
            slope = np.polyfit(np.log(options.samples), np.log(seconds), 1)[0]
            print(f"{name:10s} time grows as N^{slope:.2f}")


if __name__ == "__main__":
    main()
