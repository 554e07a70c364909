"""CCGP and shattering beside a loop over scikit-learn's classifiers, and kernel alignment beside double-centred kernels.

    python bench/task_geometry.py [--conditions 8] [--units 64] [--samples 200 400 800 1600]

Peers: ``LinearSVC(C=1)`` fitted for every dichotomy and every subset of conditions in turn; the cosine of double-centred kernels.
The answers are compared before anything is timed, with the peer's tolerance set to 1e-10; it is timed with its default. The limit is
the solver: a Newton step costs O(n r^2), r the smaller of samples and units.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from sklearn.svm import LinearSVC
from support.timing import alternate, exponent, print_table
from threadpoolctl import threadpool_limits

from netloupe.core.arrangement import Arrangement, aligned_rows, alignment
from netloupe.lenses.geometry.abstraction import ccgp, dichotomies, shattering_dimension
from netloupe.lenses.geometry.alignment import feature_alignment

Case = tuple[np.ndarray, np.ndarray]


def case(n: int, conditions: int, units: int) -> Case:
    rng = np.random.default_rng(0)
    condition = np.arange(n) % conditions
    return rng.standard_normal((conditions, units))[condition] + rng.standard_normal((n, units)), condition


def loop_ccgp(x: np.ndarray, condition: np.ndarray, sides: np.ndarray, **options: Any) -> float:
    k, scores = len(sides) // 4, []
    for a in combinations(np.flatnonzero(sides), k):
        for b in combinations(np.flatnonzero(~sides), k):
            mask = np.isin(condition, [*a, *b])
            model = LinearSVC(**options).fit(x[mask], sides[condition[mask]])
            scores.append(model.score(x[~mask], sides[condition[~mask]]))
    return float(np.mean(scores))


def loop_shattering(x: np.ndarray, condition: np.ndarray, conditions: int, **options: Any) -> float:
    fit = np.arange(len(x)) // conditions % 2 == 0
    models = [(LinearSVC(**options).fit(x[fit], row[condition[fit]]), row) for row in dichotomies(conditions)]
    return float(np.mean([model.score(x[~fit], row[condition[~fit]]) for model, row in models]))


def centred_cosine(x: np.ndarray, y: np.ndarray) -> float:
    kernels = [side @ side.T for side in (x, y)]
    a, b = (k - k.mean(0) - k.mean(1)[:, None] + k.mean() for k in kernels)
    return float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def compare(n: int, conditions: int, units: int, repeats: int, times: dict[str, list[float]]) -> None:
    x, condition = case(n, conditions, units)
    sides = np.arange(conditions) % 2 == 0
    exact = {"tol": 1e-10, "max_iter": 10**6}
    gaps = (
        ccgp(x, condition, sides) - loop_ccgp(x, condition, sides, **exact),
        shattering_dimension(x, condition).mean - loop_shattering(x, condition, conditions, **exact),
        feature_alignment(x, condition).target - centred_cosine(x, np.eye(conditions)[condition]),
    )
    if max(map(abs, gaps)) > 1e-9:
        raise SystemExit(f"the answers differ by {gaps}")
    print(f"{n} samples of {conditions} conditions, {units} units; same answers within {max(map(abs, gaps)):.0e}")
    onehot = np.eye(conditions)[condition]
    groups = (
        {
            "ccgp, scikit-learn": partial(loop_ccgp, x, condition, sides),
            "ccgp": partial(ccgp, x, condition, sides),
        },
        {
            "shattering, scikit-learn": partial(loop_shattering, x, condition, conditions),
            "shattering": partial(shattering_dimension, x, condition),
        },
        {
            "double-centred kernels": partial(centred_cosine, x, onehot),
            "alignment": lambda: alignment(*(Arrangement(rows) for rows in aligned_rows([x, onehot], ("x", "y")))),
            "feature_alignment (with error)": partial(feature_alignment, x, condition),
        },
    )
    for group in groups:
        seconds = alternate(group, repeats)
        print_table(seconds, next(iter(group)))
        for side, values in seconds.items():
            times.setdefault(side, []).append(float(np.median(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditions", type=int, default=8)
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 400, 800, 1600, 3200])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        times: dict[str, list[float]] = {}
        for n in options.samples:
            if n < 4 * options.conditions:
                compare_means(options.conditions, options.units, options.repeats)
            else:
                compare(n, options.conditions, options.units, options.repeats, times)
        sizes = np.array([n for n in options.samples if n >= 4 * options.conditions])
        if len(sizes) > 1:
            for name, values in times.items():
                print(f"{name:<28} grows as n^{exponent(sizes, np.array(values)):.2f}")


def compare_means(conditions: int, units: int, repeats: int) -> None:
    """Noise-free means: thousands of tiny problems."""
    x, condition = case(conditions, conditions, units)
    table = dichotomies(conditions)
    own, peer = (
        [way(x, condition, row) for row in table] for way in (ccgp, partial(loop_ccgp, tol=1e-10, max_iter=10**6))
    )
    if not np.allclose(own, peer, atol=1e-9):
        raise SystemExit("the answers differ")
    print(f"means of {conditions} conditions, {units} units, all {len(table)} dichotomies; same answers")
    sides = {
        "ccgp of means, scikit-learn": lambda: [loop_ccgp(x, condition, row) for row in table],
        "ccgp of means": lambda: [ccgp(x, condition, row) for row in table],
    }
    print_table(alternate(sides, repeats), next(iter(sides)))


if __name__ == "__main__":
    main()
