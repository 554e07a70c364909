"""Shares of variance beside scikit-learn's regression, and RSA beside scipy's distances and rank correlation.

    python bench/representation_bias.py [--units 256] [--samples 2000 4000 8000 16000] [--stimuli 256 512 1024 2048]

Peers: ``LinearRegression`` from the one-hot label to the representation with ``r2_score(multioutput="variance_weighted")``, on
the same split; ``pdist`` of both sites and ``spearmanr``. The answers are compared before anything is timed; scikit-learn
centres the evaluated samples by their own mean, which is converted. The limits are one pass over the values, and the sort.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from support.timing import alternate, print_growth, print_table

from netloupe.lenses.information.variance import label_variance, variance_explained
from netloupe.lenses.similarity.rsa import rsa


def by_regression(x: np.ndarray, labels: np.ndarray, fit: np.ndarray) -> float:
    onehot = np.eye(labels.max() + 1)[labels]
    said = LinearRegression(fit_intercept=False).fit(onehot[fit], x[fit]).predict(onehot[~fit])
    return float(r2_score(x[~fit], said, multioutput="variance_weighted"))


def by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.asarray(spearmanr(pdist(x), pdist(y)))[0])


def shares(n: int, units: int, repeats: int, times: dict[str, list[float]]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, n)
    x = rng.standard_normal((n, units)) + 0.5 * rng.standard_normal((10, units))[labels] + 3
    fit = rng.random(n) < 0.5
    own, peer = ((x[~fit] - x[part].mean(0)) ** 2 for part in (fit, ~fit))
    wanted = 1 - (1 - by_regression(x, labels, fit)) * peer.sum() / own.sum()
    gap = abs(variance_explained(x, labels, fit=fit) - wanted)
    if gap > 1e-10 or abs(variance_explained(x, labels) - wanted) > 0.05:
        raise SystemExit(f"the answers differ by {gap:.1e}")
    print(f"{n} samples, {units} units, 10 classes; same answer within {gap:.0e}")
    sides = {
        "scikit-learn": partial(by_regression, x, labels, fit),
        "variance_explained, split": partial(variance_explained, x, labels, fit=fit),
        "variance_explained": partial(variance_explained, x, labels),
        "label_variance (with error)": partial(label_variance, x, labels),
    }
    _time(sides, repeats, times)


def similarity(n: int, units: int, repeats: int, times: dict[str, list[float]]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, units))
    y = x @ rng.standard_normal((units, units)) / units**0.5 + rng.standard_normal((n, units))
    gap = abs(rsa(x, y).correlation - by_scipy(x, y))
    if gap > 1e-8:
        raise SystemExit(f"the answers differ by {gap:.1e}")
    print(f"{n} stimuli, {units} units; same answer within {gap:.0e}")
    _time({"scipy": partial(by_scipy, x, y), "rsa (with error)": partial(rsa, x, y)}, repeats, times)


def _time(sides: dict, repeats: int, times: dict[str, list[float]]) -> None:
    seconds = alternate(sides, repeats)
    print_table(seconds, next(iter(sides)))
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--samples", type=int, nargs="+", default=[2000, 4000, 8000, 16000])
    parser.add_argument("--stimuli", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print_growth(
        [
            (lambda n, times: shares(n, options.units, options.repeats, times), options.samples),
            (lambda n, times: similarity(n, options.units, options.repeats, times), options.stimuli),
        ]
    )


if __name__ == "__main__":
    main()
