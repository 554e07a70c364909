"""Curves with known answers: evaluating a whole set, and explaining a curve, each beside the plain way.

    python bench/find.py [--sizes 250 500 1000]

A set of curves is asked for 256 points each, beside a loop over the points; and 20 calls are explained by families, beside scikit-learn's
Gaussian process on the same 20 points, with the share of curves that each solves.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from support.timing import alternate, print_growth, print_table, ratio

from netloupe.data.find import Function, grading_points
from netloupe.data.find_numeric import evaluate, make_numeric
from netloupe.lenses.naming.find import Session
from netloupe.lenses.naming.find_interpreters import FamilyFitter, spread_grid
from netloupe.lenses.naming.find_scores import score_numeric


def at_once(functions: list[Function]) -> np.ndarray:
    return np.stack([one.expected(grading_points()) for one in functions])


def one_by_one(functions: list[Function]) -> np.ndarray:
    return np.array([[float(evaluate(f.truth.family, f.truth.params, x)) for x in grading_points()] for f in functions])


def families(functions: list[Function]) -> float:
    return float(
        np.mean([score_numeric(f, FamilyFitter(20, intervals="none")(Session(f.fresh()))).success for f in functions])
    )


def gaussian_process(functions: list[Function]) -> float:
    solved = []
    for f in functions:
        x = spread_grid(f.truth.domain, 20)
        y = np.array(f.fresh().many(x.tolist()))
        model = GaussianProcessRegressor(ConstantKernel() * RBF(10.0) + WhiteKernel(), normalize_y=True).fit(
            x[:, None], y
        )
        solved.append(score_numeric(f, lambda at, model=model: model.predict(at[:, None])).success)
    return float(np.mean(solved))


def evaluated(n: int, times: dict[str, list[float]]) -> None:
    functions = make_numeric(n, 0, noise=0, corrupt=0, approximate=0)
    if not np.array_equal(at_once(functions[:20]), one_by_one(functions[:20]), equal_nan=True):
        one, other = at_once(functions[:20]), one_by_one(functions[:20])
        if not np.allclose(one, other, rtol=1e-12, atol=0, equal_nan=True):
            raise SystemExit("the two ways differ")
    seconds = alternate(
        {"loop over points": partial(one_by_one, functions), "expected": partial(at_once, functions)}, 3
    )
    print(f"{n} curves at 256 points")
    print_table(seconds, "loop over points")
    print(f"  {ratio(seconds['loop over points'], seconds['expected']):.0f} times faster")
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def explained(n: int, times: dict[str, list[float]]) -> None:
    functions = make_numeric(n, 1, compose=0, noise="normal")
    functions = [f for f in functions if np.isfinite(f.expected(spread_grid(f.truth.domain, 20))).all()]
    sides = {"Gaussian process": partial(gaussian_process, functions), "FamilyFitter": partial(families, functions)}
    print(
        f"{len(functions)} noisy curves, 20 calls each; solved: "
        + ", ".join(f"{name} {run():.1%}" for name, run in sides.items())
    )
    seconds = alternate(sides, 3)
    print_table(seconds, "Gaussian process")
    print(f"  {ratio(seconds['Gaussian process'], seconds['FamilyFitter']):.1f} times faster")
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 500, 1000])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    print_growth([(evaluated, options.sizes), (explained, [max(size // 10, 2) for size in options.sizes])])


if __name__ == "__main__":
    main()
