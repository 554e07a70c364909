"""Unit matching beside numpy's corrcoef, networkx, scikit-learn's lasso, histogram2d and SpectralClustering.

    python bench/convergent_learning.py [--repeats 5]

Same input, same answer checked, one thread; a time is the median of runs in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import networkx
import numpy as np
import torch
from sklearn.cluster import SpectralClustering
from sklearn.linear_model import enet_path
from sklearn.metrics import adjusted_rand_score
from support.timing import alternate, exponent, print_table
from threadpoolctl import threadpool_limits

from netloupe.core.statistics import CrossMoments
from netloupe.lenses.similarity.joint_clusters import joint_spectral_clusters
from netloupe.lenses.similarity.mapping import mapping_path
from netloupe.lenses.similarity.matching import match_units
from netloupe.lenses.similarity.mutual_information import pairwise_mi

Pair = tuple[np.ndarray, np.ndarray]


def units(n: int, p: int, q: int, seed: int = 0) -> Pair:
    """Rectified units of two sites that share causes."""
    draw = np.random.default_rng(seed)
    causes = draw.standard_normal((n, 24))
    a, b = (causes @ draw.standard_normal((24, d)) + 2 * draw.standard_normal((n, d)) for d in (p, q))
    return np.maximum(a, 0).astype(np.float32), np.maximum(b, 0).astype(np.float32)


def streamed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlations through CrossMoments, in batches."""
    moments = CrossMoments()
    for start in range(0, len(a), 8192):
        moments.update(a[start : start + 8192], b[start : start + 8192])
    return moments.result().joint


def by_networkx(scores: np.ndarray) -> np.ndarray:
    """The maximum-weight perfect matching as a general graph problem."""
    graph, p = networkx.Graph(), len(scores)
    graph.add_weighted_edges_from((i, p + j, scores[i, j]) for i in range(p) for j in range(p))
    pairs = networkx.max_weight_matching(graph, maxcardinality=True)
    order = np.empty(p, np.int64)
    for edge in pairs:
        order[min(edge)] = max(edge) - p
    return order


def by_histogram2d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairwise information with numpy's histogram for each pair, the same bins found once a unit."""

    def codes(column: np.ndarray) -> np.ndarray:
        silent = np.abs(column) < 1e-6
        edges = np.quantile(column[~silent], np.linspace(0, 1, 10 - int(silent.any()) + 1)[1:-1])
        found = np.searchsorted(edges, column, side="right") + int(silent.any())
        found[silent] = 0
        return found

    one, two = ([codes(column) for column in each.T.astype(np.float64)] for each in (a, b))
    found = np.empty((len(one), len(two)))
    for i, x in enumerate(one):
        for j, y in enumerate(two):
            joint = np.histogram2d(x, y, bins=[np.arange(11), np.arange(11)])[0] / len(x)
            rows, columns = joint.sum(1), joint.sum(0)
            held = joint > 0
            found[i, j] = (joint[held] * np.log(joint[held] / np.outer(rows, columns)[held])).sum()
    return found


def by_sklearn(moments: np.ndarray, p: int, alphas: np.ndarray, n: int) -> np.ndarray:
    """Lasso paths, target by target, on the same Gram matrix."""
    gram, cross = np.ascontiguousarray(moments[:p, :p] * n), np.ascontiguousarray(moments[p:, :p] * n)
    stand_in = np.zeros((n, p))
    found = []
    for target in cross:
        y = np.zeros(n)
        y[0] = np.sqrt(n)  # only its length is used: the products come from Xy
        given: dict[str, Any] = {"alphas": alphas, "precompute": gram, "Xy": target, "tol": 1e-6, "max_iter": 20_000}
        path = enet_path(stand_in, y, l1_ratio=1.0, check_input=False, **given)
        found.append(path[1])
    return np.array(found)


def compare(title: str, sides: dict[str, Callable[[], object]], repeats: int, beside: str) -> dict[str, np.ndarray]:
    """Prints one table."""
    print(title)
    seconds = alternate(sides, repeats)
    print_table(seconds, beside)
    return seconds


def check(name: str, gap: float, allowed: float) -> None:
    """Prints the difference of two answers and stops where it is too large."""
    print(f"  {name}: difference {gap:.1e}")
    if not gap <= allowed:
        raise SystemExit(f"{name} differ by {gap:.1e}, at most {allowed:.0e} is allowed")


def growth(name: str, sizes: list[int], make: Callable[[int], Callable[[], object]], repeats: int) -> None:
    """Prints how the time grows."""
    times = [float(np.median(alternate({"one": make(size)}, repeats)["one"])) for size in sizes]
    print(f"  {name} grows as size^{exponent(np.array(sizes), np.array(times)):.2f} over {sizes}")


def main() -> None:
    """Every part in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    with threadpool_limits(1):
        a, b = units(100_000, 256, 256)
        check("correlations", float(np.abs(streamed(a, b) - np.corrcoef(a.T, b.T)).max()), 1e-9)
        compare(
            "correlations of 256 + 256 units, 100,000 rows", {"streamed": lambda: streamed(a, b), "corrcoef": lambda: np.corrcoef(a.T, b.T)},
            max(2, repeats - 2), "corrcoef",
        )  # fmt: skip
        growth(
            "streamed, in rows", [12_500, 25_000, 50_000, 100_000], lambda n: lambda: streamed(a[:n], b[:n]), repeats
        )
        scores = np.random.default_rng(0).uniform(-1, 1, (48, 48))
        check("matchings", float((match_units(scores).order() != by_networkx(scores)).sum()), 0)
        compare(
            "one-to-one matching of 48 units", {"assignment": lambda: match_units(scores), "networkx": lambda: by_networkx(scores)},
            repeats, "networkx",
        )  # fmt: skip
        tables = {n: np.random.default_rng(n).uniform(-1, 1, (n, n)) for n in (512, 1024, 2048)}
        growth("assignment, in units", list(tables), lambda n: lambda: match_units(tables[n]), repeats)
        x, y = a[:20_000, :16], b[:20_000, :16]
        check("informations", float(np.abs(pairwise_mi(x, y, bias=None) - by_histogram2d(x, y)).max()), 1e-9)
        compare(
            "mutual information of 16 x 16 units, 20,000 rows", {"pairwise_mi": lambda: pairwise_mi(x, y, bias=None), "histogram2d": lambda: by_histogram2d(x, y)},
            max(2, repeats - 2), "histogram2d",
        )  # fmt: skip
        growth(
            "pairwise_mi, in rows",
            [20_000, 40_000, 80_000],
            lambda n: lambda: pairwise_mi(a[:n, :32], b[:n, :32]),
            repeats,
        )
        moments = CrossMoments().update(a[:2000, :128], b[:2000, :64]).result()
        alphas = np.geomspace(0.3, 1e-3, 12)
        ours, theirs = (
            np.stack([m.coef_ for m in mapping_path(moments, alphas.tolist())], -1),
            by_sklearn(moments.joint, 128, alphas, 2000),
        )
        check("lasso paths", float(np.abs(ours - theirs).max()), 5e-3)
        compare(
            "lasso path of 12 strengths, 128 units, 64 targets",
            {"mapping_path": lambda: mapping_path(moments, alphas.tolist()), "enet_path": lambda: by_sklearn(moments.joint, 128, alphas, 2000)},
            repeats, "enet_path",
        )  # fmt: skip
        draw = np.random.default_rng(1)
        causes, of_unit = draw.standard_normal((5000, 20)), np.arange(256) % 20
        one, two = (causes[:, of_unit] + draw.standard_normal((5000, 256)) for _ in range(2))
        joint = CrossMoments().update(one, two).result()
        affinity = np.abs(joint.joint) - np.eye(512)
        tables_ab = joint.within_a, joint.between, joint.within_b

        def own() -> np.ndarray:
            return joint_spectral_clusters(*tables_ab, k=20).labels

        def sklearns() -> np.ndarray:
            return SpectralClustering(
                20, affinity="precomputed", random_state=0, eigen_solver="lobpcg", n_init=10
            ).fit_predict(affinity)

        check("clusters", 1 - float(adjusted_rand_score(own(), sklearns())), 1e-9)
        compare(
            "20 spectral clusters of 512 units",
            {"joint clusters": own, "SpectralClustering": sklearns},
            repeats,
            "SpectralClustering",
        )


if __name__ == "__main__":
    main()
