"""Adaptive selection thresholds beside a plain numpy loop and beside scikit-learn's MiniBatchKMeans, on the same surfaces of events.

    python bench/feast.py [--events 20000 40000 80000 160000] [--features 16] [--patch 9]

The numpy loop is the same rule written row by row; both must choose the same winners before anything is timed. MiniBatchKMeans is
another rule for the same question, with batches of 1,024; on planted clusters both must find the planted directions. The time of making
the surfaces is the same for all and printed apart. Lower limit: one product of a surface with all features for each event.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from support.timing import alternate, print_growth, print_table

from netloupe.data.event_simulation import moving_bars
from netloupe.data.events import SurfaceMaps
from netloupe.lenses.dictionary.adaptive_thresholds import AdaptiveThresholdClusters
from netloupe.lenses.dictionary.feast import Feast

TAU, SENSOR = 10e-3, (34, 34)


def surfaces(events: np.ndarray, patch: int) -> np.ndarray:
    maps = SurfaceMaps(patch, TAU, SENSOR)
    return np.concatenate([maps.rows(events[i : i + 4096])[1] for i in range(0, len(events), 4096)])


def learned(rows: np.ndarray, n: int, backend: Any = "numba", block: int = 1) -> AdaptiveThresholdClusters:
    return AdaptiveThresholdClusters(n, eta=0.01, backend=backend, block=block).fit(rows)


def k_means(rows: np.ndarray, n: int) -> Any:
    model = MiniBatchKMeans(n, batch_size=1024, n_init=1, random_state=0)  # type: ignore[arg-type]
    for start in range(0, len(rows), 1024):
        if len(rows) - start >= n:
            model.partial_fit(rows[start : start + 1024])
    return model


def plain(rows: np.ndarray, n: int) -> AdaptiveThresholdClusters:
    return learned(rows, n, "numpy")


def find_planted(n: int) -> None:
    """Cosines of the planted directions with the found ones; all clusters equally frequent, so that both rules want the same."""
    rng = np.random.default_rng(0)
    centres = np.abs(rng.standard_normal((n, 40))) * (rng.random((n, 40)) < 0.2) + 1e-3
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = np.abs(centres[rng.integers(n, size=40_000)] + 0.02 * rng.standard_normal((40_000, 40)))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ours = AdaptiveThresholdClusters(n, eta=0.01, init="kmeans++").fit(rows).directions_
    theirs = k_means(rows, n).cluster_centers_
    theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    cosines = {name: (centres @ found.T).max(1).mean() for name, found in (("ours", ours), ("k-means", theirs))}
    print(
        "mean cosine of planted directions with the nearest found: "
        + ", ".join(f"{k} {v:.3f}" for k, v in cosines.items())
    )
    if cosines["ours"] < 0.95 or cosines["k-means"] < 0.95:
        raise SystemExit("planted directions were not found")


def compare(n_features: int, patch: int, repeats: int, n_events: int, times: dict[str, list[float]]) -> None:
    events, _ = moving_bars(n_events)
    rows = surfaces(events, patch)
    head = rows[:5000]
    one, other = learned(head, n_features), learned(head, n_features, "numpy")
    if not np.array_equal(one.wins_, other.wins_) or np.abs(one.directions_ - other.directions_).max() > 1e-9:
        raise SystemExit("compiled and plain loops differ")
    sides: dict[str, Any] = {
        "numpy loop": partial(plain, rows, n_features),
        "MiniBatchKMeans": partial(k_means, rows, n_features),
        "ours": partial(learned, rows, n_features),
        "ours, blocks of 64": partial(learned, rows, n_features, block=64),
        "surfaces alone": partial(surfaces, events, patch),
        "Feast, from events": lambda: Feast(
            n_features, patch, TAU, 0.01, per_polarity=False, sensor=SENSOR
        ).fit(events),
    }  # fmt: skip
    seconds = alternate(sides, repeats)
    print(
        f"{n_events} events, {len(rows)} surfaces of {patch} x {patch}, {n_features} features; same winners in both loops"
    )
    print_table(seconds, "numpy loop")
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))
        print(f"    {name:<20} {len(rows) / np.median(values):12,.0f} surfaces a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[20_000, 40_000, 80_000, 160_000])
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--patch", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    find_planted(options.features)
    print_growth([(partial(compare, options.features, options.patch, options.repeats), options.events)])


if __name__ == "__main__":
    main()
