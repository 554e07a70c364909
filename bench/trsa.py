"""Geo-topological and geodesic transforms beside rsatoolbox, identification beside scikit-learn's nearest centroid.

    python bench/trsa.py [--stimuli 62 125 250 500] [--repeats 3] [--path FOLDER]

Peers: rsatoolbox's ``rank_transform`` with ``geotopological_transform``, and ``geodesic_transform`` (networkx; ``--path`` is a folder that
has it where it is not installed); ``NearestCentroid`` fitted for every subject. rsatoolbox loses edges of length zero, so that its
paths are compared with ``official=True``, where all are finite; the default is what is timed. Distances that differ by less than 1e-10
of the largest share a rank here, so that answers may differ by a rank. The limits are the sort of n^2 / 2
distances, and n^3 for the paths.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import pdist
from sklearn.neighbors import NearestCentroid
from support.timing import alternate, exponent, print_table
from threadpoolctl import threadpool_limits

from netloupe.core.geotopology import geo_topological, geodesic
from netloupe.lenses.geometry.identification import RepresentationIdentifier

MOST_FOR_NETWORKX = 250


def toolbox() -> tuple[Any, Any] | None:
    """rsatoolbox's matrices and their transforms, if it is there."""
    try:
        return import_module("rsatoolbox.rdm").RDMs, import_module("rsatoolbox.rdm.transform")
    except ImportError:
        print("rsatoolbox is not installed: its side is left out")
        return None


def by_toolbox(tools: tuple[Any, Any], v: np.ndarray, paths: bool) -> Any:
    matrices, transform = tools
    found = transform.geotopological_transform(transform.rank_transform(matrices(v[None])), 0.2, 0.8)
    return (transform.geodesic_transform(found) if paths else found).get_vectors()[0]


def squashing(tools: Any, n: int, repeats: int, times: dict[str, list[float]]) -> None:
    v = pdist(np.random.default_rng(0).standard_normal((n, 10)))
    own: dict[str, Any] = {"geo_topological": partial(geo_topological, v)}
    if tools:
        gap = np.abs(by_toolbox(tools, v, False) - geo_topological(v)).max()
        if gap > 2 / len(v):
            raise SystemExit(f"the answers differ by {gap:.1e}")
        print(f"{n} stimuli; same answer within {gap:.0e}")
        own = {"rsatoolbox, squashed": partial(by_toolbox, tools, v, False), **own}
    _time(own, repeats, times)


def walking(tools: Any, n: int, repeats: int, times: dict[str, list[float]]) -> None:
    v = pdist(np.random.default_rng(0).standard_normal((n, 10)))

    def paths(official: bool = False) -> np.ndarray:
        return geodesic(geo_topological(v), "twostep", rank_after=False, disconnected="max", official=official)

    own: dict[str, Any] = {"geodesic": paths}
    if tools and n <= MOST_FOR_NETWORKX:
        peer = by_toolbox(tools, v, True)
        gap = np.abs(peer - paths(official=True))[np.isfinite(peer)].max()
        if gap > 4 / len(v):
            raise SystemExit(f"the answers differ by {gap:.1e}")
        print(f"{n} stimuli; same path lengths within {gap:.0e}")
        own = {"rsatoolbox, paths": partial(by_toolbox, tools, v, True), **own}
    _time(own, repeats, times)


def identifying(n: int, repeats: int, times: dict[str, list[float]], n_subjects: int = 16, n_regions: int = 8) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((n_regions, n, 10))
    vectors = np.stack([pdist(each + rng.standard_normal(each.shape)) for _ in range(n_subjects) for each in base])
    subject, region = np.divmod(np.arange(len(vectors)), n_regions)

    def loop() -> float:
        said = region.copy()
        for who in range(n_subjects):
            out = subject == who
            said[out] = NearestCentroid().fit(vectors[~out], region[~out]).predict(vectors[out])
        return float((said == region).mean())

    def own() -> float:
        return RepresentationIdentifier().fit(vectors, subject, region).score()

    if loop() != own():
        raise SystemExit(f"the answers differ: {loop()} and {own()}")
    print(f"{n} stimuli, {n_subjects} subjects, {n_regions} regions; same accuracy {own():.3f}")
    _time({"scikit-learn, identification": loop, "identification": own}, repeats, times)


def _time(sides: dict[str, Any], repeats: int, times: dict[str, list[float]]) -> None:
    seconds = alternate(sides, repeats)
    print_table(seconds, next(iter(sides)))
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stimuli", type=int, nargs="+", default=[62, 125, 250, 500])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--path", default="")
    options = parser.parse_args()
    if options.path:
        sys.path.insert(0, options.path)
    torch.set_num_threads(1)
    tools, times = toolbox(), {}
    with threadpool_limits(1):
        for n in options.stimuli:
            squashing(tools, n, options.repeats, times)
            walking(tools, n, options.repeats, times)
            identifying(n, options.repeats, times)
    for name, values in times.items():
        if len(values) > 1:
            print(f"{name:<28} grows as n^{exponent(np.array(options.stimuli[: len(values)]), np.array(values)):.2f}")


if __name__ == "__main__":
    main()
