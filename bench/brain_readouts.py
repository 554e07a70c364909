"""Encoding models beside scikit-learn's ridge regression, and factorised readouts beside the full product.

    python bench/brain_readouts.py [--repeats 5]

Same input, same answer checked, one thread; a time is the median of runs in turn.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.linear_model import Ridge
from support.timing import alternate, exponent, print_table
from threadpoolctl import threadpool_limits

from netloupe.core.splits import folds
from netloupe.domains.brain.readouts import FactorizedReadout
from netloupe.lenses.similarity.encoding import fit_ridge_cv
from netloupe.lenses.similarity.scores import voxel_correlation

ALPHAS = tuple(10.0**power for power in range(-1, 6))
SPLITS = 5


def problem(n: int, p: int, v: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of unequal variance and voxels with much noise."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((n, p)) * np.linspace(0.2, 3, p)
    return x, x @ draw.standard_normal((p, v)) + np.sqrt(p) * 3 * draw.standard_normal((n, v))


def by_scikit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Nested cross-validation with scikit-learn's Ridge: all voxels of one penalty in one fit."""
    split = np.zeros(len(x), int)
    for k, (_, judged) in enumerate(folds(len(x), SPLITS)):
        split[judged.numpy()] = k
    found = np.zeros((SPLITS, y.shape[1]))
    for k in range(SPLITS):
        errors = np.zeros((len(ALPHAS), y.shape[1]))
        for j in range(SPLITS):
            if j != k:
                train, judged = (split != k) & (split != j), split == j
                for a, alpha in enumerate(ALPHAS):
                    errors[a] += ((Ridge(alpha).fit(x[train], y[train]).predict(x[judged]) - y[judged]) ** 2).sum(0)
        best = errors.argmin(0)
        predicted = np.zeros((int((split == k).sum()), y.shape[1]))
        for a in np.unique(best):
            mine = best == a
            predicted[:, mine] = (
                Ridge(ALPHAS[a])
                .fit(x[split != k], y[split != k][:, mine])
                .predict(x[split == k])
                .reshape(-1, mine.sum())
            )
        found[k] = voxel_correlation(predicted, y[split == k])
    return found.mean(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    with threadpool_limits(1):
        x, y = problem(3000, 200, 500)
        gap = np.abs(by_scikit(x, y) - fit_ridge_cv(x, y, ALPHAS).correlation).max()
        assert gap < 1e-6, gap
        print(
            f"ridge, 3,000 samples, 200 units, 500 voxels, nested 5-fold; largest difference of correlations {gap:.1e}"
        )
        print_table(
            alternate(
                {"netloupe": lambda: fit_ridge_cv(x, y, ALPHAS), "scikit-learn": lambda: by_scikit(x, y)}, repeats
            ),
            "scikit-learn",
        )
        sizes = np.array([4000, 8000, 16000, 32000])
        times = []
        for n in sizes:
            big = problem(int(n), 100, 200)
            times.append(
                float(np.median(alternate({"one": lambda big=big: fit_ridge_cv(*big, ALPHAS)}, repeats)["one"]))
            )
        print(f"  exponent in samples: {exponent(sizes, np.array(times)):.2f}")
        maps, readout = torch.randn(64, 32, 28, 28), FactorizedReadout((32, 28, 28), 1000, init=1.0)
        weight = (readout.masks()[:, None] * readout.features[:, :, None, None]).flatten(1).detach()

        def full() -> torch.Tensor:
            return maps.flatten(1) @ weight.T

        with torch.no_grad():
            gap = float((readout(maps) - full()).abs().max() / full().abs().max())
            assert gap < 1e-4, gap
            print(
                f"factorised readout, 64 maps of 32 x 28 x 28, 1,000 voxels; largest difference {gap:.1e} of the largest value"
            )
            print_table(alternate({"netloupe": lambda: readout(maps), "full product": full}, repeats), "full product")


if __name__ == "__main__":
    main()
