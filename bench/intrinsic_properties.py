"""Nearest neighbours and intrinsic dimensions beside scikit-learn, label sharpness beside scipy, and scikit-dimension if it is there.

    python bench/intrinsic_properties.py [--units 784] [--samples 1250 2500 5000 10000]

Peers: ``NearestNeighbors(algorithm="brute")`` on the same numbers, alone and with the estimator written out on its distances;
``skdim.id.MLE`` and ``TwoNN`` (PyPI: scikit-dimension) where they can be imported; ``pdist`` of all pairs for label sharpness.
The answers are compared before anything is timed. The limit is n^2 d multiplications, of which symmetry leaves half.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from scipy.spatial.distance import pdist
from sklearn.neighbors import NearestNeighbors
from support.timing import alternate, print_growth, print_table

from netloupe.core.neighbours import nearest
from netloupe.data.sharp_manifolds import flat_samples
from netloupe.lenses.geometry.intrinsic_dimension import mle_dimension, twonn_dimension
from netloupe.lenses.geometry.label_sharpness import label_sharpness

K = 20


def by_sklearn(x: np.ndarray, k: int) -> np.ndarray:
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x).kneighbors()[0]


def mle_by_sklearn(x: np.ndarray) -> float:
    logs = np.log(by_sklearn(x, K))
    return float(1 / np.mean((logs[:, -1:] - logs[:, :-1]).sum(1) / (K - 1)))


def sharpness_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    return float((pdist(y[:, None]) / pdist(x)).max())


def dimensions(n: int, units: int, repeats: int, times: dict[str, list[float]]) -> None:
    x = flat_samples(n, 8, units, "gaussian") + 0.01 * np.random.default_rng(0).standard_normal((n, units))
    gap = np.abs(nearest(x, K).distances - by_sklearn(x, K)).max()
    other = abs(mle_dimension(x).value - mle_by_sklearn(x))
    if max(gap, other) > 1e-9:
        raise SystemExit(f"the answers differ by {max(gap, other):.1e}")
    print(f"{n} samples, {units} units; same distances within {gap:.0e}, same dimension within {other:.0e}")
    single = x.astype(np.float32)
    sides = {
        "scikit-learn, 20 neighbours": partial(by_sklearn, x, K),
        "nearest": partial(nearest, x, K),
        "scikit-learn, float32": partial(by_sklearn, single, K),
        "nearest, float32": partial(nearest, single, K),
        "maximum likelihood by scikit-learn": partial(mle_by_sklearn, x),
        "mle_dimension (with interval)": partial(mle_dimension, x),
        "twonn_dimension (with interval)": partial(twonn_dimension, x),
        "mle_dimension, 500 anchors": partial(mle_dimension, x, anchors=500),
    }
    try:
        import skdim

        if abs(skdim.id.MLE(K=K).fit(x).dimension_ - mle_dimension(x).value) > 1e-9:
            raise SystemExit("scikit-dimension says otherwise")
        sides |= {
            "skdim.id.MLE": lambda: skdim.id.MLE(K=K).fit(x),
            "skdim.id.TwoNN": lambda: skdim.id.TwoNN().fit(x),
        }
    except ImportError:
        print("  scikit-dimension is not installed")
    _time(sides, repeats, times)


def sharpness(n: int, units: int, repeats: int, times: dict[str, list[float]]) -> None:
    x, y = flat_samples(n, 8, units), np.arange(n) % 2
    if abs(label_sharpness(x, y, n).sharpness - sharpness_by_scipy(x, y)) > 1e-12:
        raise SystemExit("label sharpness differs")
    print(f"label sharpness of {n} samples, same answer")
    _time(
        {
            "scipy, all pairs": partial(sharpness_by_scipy, x, y),
            "label_sharpness (with quantiles)": partial(label_sharpness, x, y, n),
        },
        repeats,
        times,
    )


def _time(sides: dict, repeats: int, times: dict[str, list[float]]) -> None:
    seconds = alternate(sides, repeats)
    print_table(seconds, next(iter(sides)))
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=784)
    parser.add_argument("--samples", type=int, nargs="+", default=[1250, 2500, 5000, 10000])
    parser.add_argument("--labelled", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print_growth(
        [
            (lambda n, times: dimensions(n, options.units, options.repeats, times), options.samples),
            (lambda n, times: sharpness(n, options.units, options.repeats, times), options.labelled),
        ]
    )


if __name__ == "__main__":
    main()
