"""Squashed distances and shortest paths: closed forms, scipy, the authors' code and rsatoolbox on one input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.geotopology import (
    geo_topological,
    geo_topological_sigmoid,
    geodesic,
    rank_minmax,
    squashed,
)


def distances(seed: int = 7, n: int = 6, d: int = 3) -> np.ndarray:
    return pdist(np.random.default_rng(seed).standard_normal((n, d)))


# Numbers of the authors' code (arXiv 2309.11028) for distances(7): quantiles 0.25 and 0.7; alpha 10, beta 0.5; ranks of path lengths
OFFICIAL = {
    "lu": [0.07936507936507933, 0.0, 0.0, 0.0, 0.8730158730158732, 1.0, 0.7142857142857143, 0.3968253968253968, 1.0, 0.23809523809523814, 1.0, 1.0, 0.5555555555555556, 1.0, 0.0],
    "sigmoid": [0.10500058502026478, 0.027346786796182875, 0.013576916943744353, 0.05431326613264064, 0.8066786301976914, 0.9456867338673594, 0.67134745348273, 0.32865254651727, 0.8949994149797352, 0.19332136980230874, 0.9726532132038171, 0.9933071490757153, 0.5, 0.9864230830562556, 0.0066928509242848554],
    "p_shortest": [5.5, 2.0, 1.0, 3.5, 13.0, 9.0, 7.5, 10.0, 13.0, 3.5, 7.5, 13.0, 5.5, 13.0, 13.0],
    "p_nearest": [10.0, 2.0, 1.0, 10.0, 10.0, 10.0, 10.0, 4.0, 10.0, 3.0, 10.0, 10.0, 10.0, 10.0, 10.0],
    "k_nearest": [8.5, 8.5, 1.0, 8.5, 8.5, 8.5, 8.5, 8.5, 8.5, 8.5, 8.5, 8.5, 8.5, 8.5, 8.5],
    "twostep": [4.0, 1.0, 7.5, 2.0, 11.0, 5.0, 10.0, 7.5, 14.0, 6.0, 3.0, 12.0, 9.0, 15.0, 13.0],
    "lengths": [0.2857142857142857, 0.14285714285714285, 0.07142857142857142, 0.21428571428571427, 0.6428571428571429, 0.42857142857142855, 0.3571428571428571, 0.42857142857142855, 0.7142857142857143, 0.21428571428571427, 0.3571428571428571, 0.7857142857142858, 0.2857142857142857, 0.7142857142857143, 0.8571428571428572],
}  # fmt: skip


def test_numbers_of_the_authors_code():
    v = distances()
    found = {
        "lu": geo_topological(v, 0.25, 0.7),
        "sigmoid": geo_topological_sigmoid(v),
        "p_shortest": geodesic(v, p=0.4, disconnected="max", official=True),
        "p_nearest": geodesic(v, "p_nearest", p=0.4, disconnected="max", official=True),
        "k_nearest": geodesic(v, "k_nearest", k=1, disconnected="max", official=True),
        "twostep": geodesic(geo_topological(v, 0.1, 0.7), "twostep", disconnected="max", official=True),
        "lengths": geodesic(v, p=0.8, rank_after=False, official=True),
    }
    for name, wanted in OFFICIAL.items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-12, err_msg=name)


def test_numbers_of_rsatoolbox():
    """Its transform of ranks; its path lengths lack the closest pairs' edges, as the authors' do."""
    paths = [0.30952380952380953, 0.0714285714285714, 0.5, 0.19047619047619047, 0.9047619047619049, 0.38095238095238093,
             0.7857142857142858, 0.5, 1.2142857142857144, 0.4285714285714286, 0.26190476190476186, 0.9761904761904763,
             0.6666666666666667, 1.4047619047619049, 1.0952380952380953]  # fmt: skip
    v = distances()
    np.testing.assert_allclose(geo_topological(rankdata(v), 0.25, 0.7, "none"), OFFICIAL["lu"], atol=1e-12)
    squeezed = geo_topological(v, 0.1, 0.7)
    np.testing.assert_allclose(geodesic(squeezed, "twostep", rank_after=False, official=True), paths, atol=1e-12)
    # it overwrites what it has just mapped where the upper quantile is below 1; the mathematics does not
    np.testing.assert_allclose(
        geo_topological(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), 0, 0.75, "none"),
        [0, 0.1 / 0.375, 0.2 / 0.375, 0.3 / 0.375, 1, 1],
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(4, 20), st.floats(0, 1), st.floats(0, 1))
def test_squashing_is_its_definition(seed: int, n: int, one: float, two: float):
    v = distances(seed, n)
    lower, upper = sorted((one, two))
    r = (rankdata(v) - 1) / (len(v) - 1)
    np.testing.assert_allclose(rank_minmax(v), r, atol=1e-12)
    low, high = np.quantile(r, [lower, upper])
    found = geo_topological(v, lower, upper)
    if high > low:
        middle = (r >= low) & (r <= high)
        np.testing.assert_allclose(found[middle], (r[middle] - low) / (high - low), atol=1e-9)
    assert (found[r < low - 1e-12] == 0).all()
    assert (found[r > high + 1e-12] == 1).all()
    # only the order of distances counts
    np.testing.assert_allclose(geo_topological(np.exp(3 * v) + 1, lower, upper), found, atol=1e-12)


def test_the_family_holds_the_rdm_and_adjacency():
    v = distances(1, 9)
    np.testing.assert_allclose(geo_topological(v, 0, 1), rank_minmax(v), atol=1e-12)
    np.testing.assert_allclose(geo_topological(v, 0, 1, "minmax"), (v - v.min()) / np.ptp(v), atol=1e-12)
    for level in (0.0, 0.3, 1.0):
        step = geo_topological(v, level, level)
        assert set(np.unique(step)) <= {0.0, 1.0}
        assert step.mean() == pytest.approx(1 - level, abs=1.5 / len(v))
    steep = geo_topological_sigmoid(v, alpha=1e6, beta=0.3)
    np.testing.assert_allclose(steep, (rank_minmax(v) > 0.3).astype(float), atol=1e-9)


def test_two_far_clusters_are_a_block_matrix():
    x = np.concatenate(
        [np.random.default_rng(0).standard_normal((4, 2)), 100 + np.random.default_rng(1).standard_normal((3, 2))]
    )
    cluster = np.repeat([0, 1], [4, 3])
    one, two = np.triu_indices(7, 1)
    level = (cluster[one] == cluster[two]).mean()
    np.testing.assert_array_equal(geo_topological(pdist(x), level, level), cluster[one] != cluster[two])


@pytest.mark.parametrize("n", [12, 150])
def test_paths_round_a_ring(n: int):
    angle = 2 * np.pi * np.arange(n) / n
    v = pdist(np.column_stack([np.cos(angle), np.sin(angle)]))
    one, two = np.triu_indices(n, 1)
    hops = np.minimum(two - one, n - two + one)
    edge = 2 * np.sin(np.pi / n)
    for keep, options in (("k_nearest", {"k": 2}), ("p_nearest", {"p": 2 / n}), ("p_shortest", {"p": 1.5 / (n - 1)})):
        found = geodesic(v, keep, normalise="none", rank_after=False, **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, hops * edge, rtol=1e-9)
        np.testing.assert_array_equal(geodesic(v, keep, normalise="none", **options), rankdata(hops))  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [5, 130])  # by both algorithms of shortest paths
def test_edges_of_length_zero_join_samples(n: int):
    place = np.arange(n) // 2 * 1.0  # pairs in one place, a step from each to the next
    v = pdist(place[:, None])
    found = geodesic(v, p=float((v <= 1).mean()), normalise="none", rank_after=False)
    np.testing.assert_allclose(found, v)
    squeezed = squareform(geodesic(geo_topological(distances(3, 8), 0.3, 1.0), "twostep", rank_after=False))
    assert (squareform(squeezed) == 0).sum() >= 0.3 * 28 - 1  # the closest pairs stay at distance zero
    lost = geodesic(geo_topological(distances(3, 8), 0.3, 1.0), "twostep", rank_after=False, official=True)
    assert (lost > 0).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(4, 14), st.floats(0.2, 1))
def test_path_lengths_are_those_of_a_plain_recursion(seed: int, n: int, p: float):
    v = distances(seed, n)
    r = rank_minmax(v)
    table = squareform(np.where(r <= np.quantile(r, p), r, np.inf))
    for k in range(n):
        table = np.minimum(table, table[:, [k]] + table[[k]])
    wanted = squareform(table, checks=False)
    wanted[np.isinf(wanted)] = wanted[np.isfinite(wanted)].max()
    np.testing.assert_allclose(geodesic(v, p=p, rank_after=False, disconnected="max"), wanted, atol=1e-12)


def test_parts_are_counted_and_filled():
    x = np.array([0.0, 1.0, 2.0, 100.0, 101.0])[:, None]
    v = pdist(x)
    with pytest.raises(InputError, match="has 2 parts"):
        geodesic(v, p=0.4)
    lengths = squareform(geodesic(v, p=0.4, normalise="none", rank_after=False, disconnected="max"))
    np.testing.assert_allclose(lengths[0], [0, 1, 2, 2, 2])
    ranks = squareform(geodesic(v, p=0.4, normalise="none", disconnected="max"))
    assert ranks[0, 3] == ranks[1, 4] == 7.5  # six pairs without a path share ranks 5 to 10
    assert ranks[0, 2] == 4


def test_pairs_that_are_not_defined():
    v = distances()
    v[3] = np.nan
    for function in (rank_minmax, geo_topological, geo_topological_sigmoid):
        with pytest.raises(NonFiniteError, match="missing='keep'"):
            function(v)
        found = function(v, missing="keep")
        assert np.isnan(found[3])
        np.testing.assert_allclose(np.delete(found, 3), function(np.delete(v, 3)))
    step = geo_topological(v, 0.5, 0.5, missing="keep")
    assert np.isnan(step[3])
    with pytest.raises(NonFiniteError):
        geodesic(v)
    np.testing.assert_array_equal(squashed(np.array([0.0, np.nan, 2.0]), 1, 1), [0, np.nan, 1])


def test_refusals():
    v = distances()
    cases = [
        (lambda: geo_topological(v, 0.6, 0.4), "quantiles"),
        (lambda: geo_topological(v, -0.1, 0.4), "quantiles"),
        (lambda: geo_topological(v, 0.1, float("nan")), "quantiles"),
        (lambda: geo_topological(v, normalise="both"), "normalise"),  # type: ignore[arg-type]
        (lambda: geo_topological(np.ones(6)), "equally far"),
        (lambda: geo_topological(np.ones(6), normalise="minmax"), "equally far"),
        (lambda: geo_topological(v[None]), "condensed"),
        (lambda: geo_topological(np.full(6, np.nan), missing="keep"), "no pair"),
        (lambda: geo_topological(v, missing="drop"), "missing"),  # type: ignore[arg-type]
        (lambda: geo_topological(np.where(v > 1, np.inf, v)), "infinite"),
        (lambda: geo_topological_sigmoid(v, alpha=0), "alpha"),
        (lambda: geodesic(v, "shortest"), "keep is"),  # type: ignore[arg-type]
        (lambda: geodesic(v, p=0), "p is"),
        (lambda: geodesic(v, "k_nearest", k=6), "nearest of 6"),
        (lambda: geodesic(v, "p_nearest", p=0.1), "0 nearest"),
        (lambda: geodesic(v[:5]), "pairs"),
        (
            lambda: geodesic(np.array([1.0, 1.0, 1.0, 1.0, 1.0, 2.0]), "twostep", normalise="none", disconnected="max"),
            "no edge",
        ),
    ]
    for bad, words in cases:
        with pytest.raises(InputError, match=words):
            bad()
