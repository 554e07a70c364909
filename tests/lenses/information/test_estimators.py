"""Binned and kernel estimators against closed forms, sums over samples, and the paper's own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.metrics import mutual_info_score

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.statistics import restore
from netloupe.core.store import SiteSpec, Store, StoreWriter
from netloupe.lenses.information.distinct import Distinct
from netloupe.lenses.information.estimators import (
    adaptive_edges,
    akde_mi,
    binned_mi,
    ebab_edges,
    fixed_edges,
    kde_mi,
    noise_variance,
    range_edges,
    row_symbols,
    saturated,
    symbol_entropy,
    symbol_information,
)

SEEDS = pytest.mark.parametrize("seed", range(4))
OFFICIAL = [
    (1, "relu", [0.0, 0.00020164294983260334, 0.21364299952983856, 0.5937480926513672, 2.042771577835083,
                 3.7516350746154785], (5.94104202166364, 0.6359457981757606)),
    (2, "tanh", [-1.000001, -0.9948919415473938, -0.6920931935310364, -0.12633264064788818, 0.9474228024482727,
                 0.9960306286811829], (8.482608334584203, 0.9181877953204012)),
]  # fmt: skip
"""seed, activation, edges number 0, 1, 7, 15, 30, 31, and bits, from the functions of the public code"""
OFFICIAL_FIXED = (8.380369503626675, 0.9166780203160725)


def patterns(seed: int, n_bits: int = 6) -> tuple[np.ndarray, np.ndarray]:
    signs = 2.0 * (np.arange(2**n_bits)[:, None] >> np.arange(n_bits) & 1) - 1
    return signs, np.random.default_rng(seed).permutation(np.arange(len(signs)) % 4)


@SEEDS
def test_an_injective_layer_carries_log2_n_in_every_estimator_with_enough_resolution(seed):
    x, y = patterns(seed)
    t = np.tanh(x @ np.random.default_rng(seed).standard_normal((6, 8)))
    for found in (
        binned_mi(t, y, ebab_edges(t)), binned_mi(t, y, fixed_edges(-1, 1, 300)), kde_mi(t, y, 1e-9), akde_mi(t, y, 1e-9),
        akde_mi(t, y, 1e-9, bound="lower"),
    ):  # fmt: skip
        assert found.i_xt == pytest.approx(6.0, abs=1e-9)
        assert found.i_ty == pytest.approx(2.0, abs=1e-9)


def test_a_constant_layer_carries_nothing_and_the_labels_themselves_carry_their_entropy():
    y = np.repeat([0, 1, 2], [10, 20, 34])
    p = np.array([10, 20, 34]) / 64
    entropy = -(p * np.log2(p)).sum()
    for value in (0.0, 2.5, -1.0):
        flat = np.full((64, 3), value)
        assert binned_mi(flat, y, ebab_edges(flat)) == (0.0, 0.0)
        assert akde_mi(flat, y) == pytest.approx((0.0, 0.0), abs=1e-12)
    own = y[:, None].astype(float)
    assert binned_mi(own, y, ebab_edges(own)) == pytest.approx((entropy, entropy))
    assert kde_mi(own, y, 1e-6) == pytest.approx((entropy, entropy))
    assert binned_mi(own, y, ebab_edges(own), base=np.e) == pytest.approx((entropy * np.log(2),) * 2)


@SEEDS
def test_plug_in_numbers_are_those_of_counting_and_of_scikit_learn(seed):
    draw = np.random.default_rng(seed)
    t, y = draw.integers(0, 3, (200, 3)).astype(float), draw.integers(0, 4, 200)
    found = binned_mi(t, y, np.array([0.0, 1.0, 2.0]))
    _, symbols, counts = np.unique(t, axis=0, return_inverse=True, return_counts=True)
    assert found.i_xt == pytest.approx(-(counts / 200 * np.log2(counts / 200)).sum())
    assert found.i_ty == pytest.approx(mutual_info_score(symbols.reshape(-1), y) / np.log(2))
    groups = np.arange(200) // 4
    assert binned_mi(t, y, np.array([0.0, 1.0, 2.0]), x_ids=groups).i_xt == pytest.approx(
        mutual_info_score(symbols.reshape(-1), groups) / np.log(2)
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), n=st.integers(4, 80), d=st.integers(1, 4), n_bins=st.integers(1, 40))
def test_bins_hold_equally_many_different_values_and_the_zeros_their_own(seed, n, d, n_bins):
    draw = np.random.default_rng(seed)
    t = np.maximum(draw.standard_normal((n, d)), 0)
    edges = ebab_edges(t, n_bins)
    u = np.unique(t[t > 0])
    if len(u) == 0:
        assert edges.tolist() == [0.0]
        return
    assert len(edges) == n_bins + 2
    if len(u) > n_bins:
        inner = np.histogram(u, edges[1:])[0]
        assert inner.max() - inner.min() <= 1
    bins = np.searchsorted(edges, t, side="right")
    assert (bins[t == 0] == 1).all()
    assert (bins[t > 0] > 1).all()
    assert (bins[t == u[-1]] == n_bins + 2).all()
    assert (bins == n_bins + 2).sum() == (t == u[-1]).sum()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 5))
def test_adaptive_bins_do_not_see_an_increasing_map_nor_the_order_of_units_and_samples(seed, d):
    draw = np.random.default_rng(seed)
    t, y = draw.standard_normal((60, d)), np.arange(60) % 3
    expected = binned_mi(t, y, ebab_edges(t))
    mapped = np.exp(t)
    assert binned_mi(mapped, y, ebab_edges(mapped)) == expected
    rows, units = draw.permutation(60), draw.permutation(d)
    moved = t[rows][:, units]
    assert binned_mi(moved, y[rows], ebab_edges(moved)) == pytest.approx(expected, abs=1e-12)


def test_the_paper_s_code_gives_the_same_edges_and_bits():
    for seed, kind, picked, bits in OFFICIAL:
        draw = np.random.default_rng(seed)
        h = draw.standard_normal((500, 2))
        t = (np.maximum(h, 0) if kind == "relu" else np.tanh(h)).astype(np.float32)
        y = (h.sum(1) + 0.5 * draw.standard_normal(500) > 0).astype(int)
        edges = ebab_edges(t, low=0.0 if kind == "relu" else -1.000001)
        np.testing.assert_allclose(edges[[0, 1, 7, 15, 30, 31]], picked, rtol=1e-6)
        assert binned_mi(t, y, edges) == pytest.approx(bits, abs=1e-9)
        assert binned_mi(t, y, ebab_edges(t)) == pytest.approx(bits, abs=1e-9), "our own low is as good"
    assert binned_mi(t, y, fixed_edges(-1, 1, 30)) == pytest.approx(OFFICIAL_FIXED, abs=1e-9)


def test_the_paper_s_kernel_formulas_give_the_same_bits():
    t, y = np.random.default_rng(77).standard_normal((60, 4)) * 0.3, np.arange(60) % 3
    expected = {
        ("upper", 0.01): (5.695869418492306, 1.4249100447437504), ("upper", 0.05): (4.173861845815978, 0.6954940895256047),
        ("lower", 0.01): (4.513544156317419, 0.8302634801219496), ("lower", 0.05): (1.8905430369092269, 0.11553291518692921),
    }  # fmt: skip
    for (bound, s2), bits in expected.items():
        assert kde_mi(t, y, s2, bound) == pytest.approx(bits, abs=1e-10)


@SEEDS
def test_kernel_bits_are_the_mixture_bounds_as_written(seed):
    draw = np.random.default_rng(seed)
    t, y, s2 = draw.standard_normal((40, 3)) + 7, np.arange(40) % 2, 0.3

    def entropy(rows: np.ndarray, variance: float) -> float:
        squared = ((rows[:, None] - rows[None]) ** 2).sum(-1)
        logs = logsumexp(-squared / (2 * variance), axis=1) - np.log(len(rows)) - 1.5 * np.log(2 * np.pi * variance)
        return 1.5 - logs.mean()

    noise = 1.5 * (np.log(2 * np.pi * s2) + 1)
    for bound, factor, shift in (("upper", 1, 0.0), ("lower", 4, 1.5 * np.log(0.25))):
        h = entropy(t, factor * s2) + shift
        within = sum(0.5 * (entropy(t[y == c], factor * s2) + shift) for c in (0, 1))
        found = kde_mi(t, y, s2, bound, block=7)
        assert found == pytest.approx(((h - noise) / np.log(2), (h - within) / np.log(2)), abs=1e-10)


def test_two_far_clusters_small_and_large_noise_and_order_of_the_bounds():
    draw = np.random.default_rng(5)
    t = draw.standard_normal((64, 2)) + 100 * (np.arange(64) % 2)[:, None]
    y = np.arange(64) % 2
    assert akde_mi(t, y, 1e-12).i_xt == pytest.approx(6.0)
    assert kde_mi(t, y, 100.0) == pytest.approx((1.0, 1.0), abs=0.05)
    assert kde_mi(t, y, 1e9) == pytest.approx((0.0, 0.0), abs=1e-4)
    for s2 in (0.01, 0.1, 1.0, 10.0):
        assert kde_mi(t, y, s2, "upper").i_xt >= kde_mi(t, y, s2, "lower").i_xt


@pytest.mark.parametrize("ratio", [0.3, 1.0, 4.0])
def test_the_bounds_bracket_a_gaussian_channel(ratio):
    t = np.random.default_rng(0).standard_normal((3000, 2))
    exact = np.log2(1 + ratio)  # d/2 log2(1 + var/s2) with d = 2
    upper, lower = (kde_mi(t, np.arange(3000) % 2, 1 / ratio, bound).i_xt for bound in ("upper", "lower"))
    assert lower < exact < upper


def test_noise_scales_with_the_layer():
    t, y = np.random.default_rng(0).standard_normal((50, 3)), np.arange(50) % 2
    top = np.abs(t).max()
    assert noise_variance(t, 1e-3) == pytest.approx(1e-3 * top)
    assert noise_variance(t, 1e-3, "max2") == pytest.approx(1e-3 * top**2)
    assert noise_variance(t, 1e-3, "none") == 1e-3
    assert noise_variance(0 * t) == 1e-3
    assert akde_mi(17 * t, y, scaling="max2") == pytest.approx(akde_mi(t, y, scaling="max2"), abs=1e-9)
    assert akde_mi(17 * t, y, 0.1).i_xt > akde_mi(t, y, 0.1).i_xt + 0.1
    official = akde_mi(t, y, scaling="official")
    assert (
        official
        == akde_mi(t, y, scaling="official", random_state=0)
        != akde_mi(t, y, scaling="official", random_state=1)
    )


def test_ranges_are_the_maxima_they_say():
    maxima = np.array([[1.0, 4.0], [3.0, 2.0], [0.0, 0.0]])
    tops = {kind: range_edges(maxima, kind, 5)[..., -1].tolist() for kind in ("global", "epoch", "running")}
    assert tops == {"global": [[4.0, 4.0]] * 3, "epoch": [[4, 4], [3, 3], [1, 1]], "running": [[1, 4], [3, 4], [3, 4]]}
    assert range_edges(maxima, "global", 5)[0, 0].tolist() == [0, 1, 2, 3, 4]


def test_values_outside_fixed_bins_share_the_outer_ones():
    edges = fixed_edges(-1, 1, 3)
    symbols = row_symbols(np.array([[-9.0], [-2.0], [-1.0], [0.5], [1.0], [7.0]]), edges)
    assert symbols[0] == symbols[1] != symbols[2]
    assert symbols[4] == symbols[5] != symbols[3]


def test_a_store_in_shards_and_a_dtype_change_nothing(tmp_path):
    t, y = torch.randn(70, 5, generator=torch.Generator().manual_seed(0)), np.arange(70) % 3
    with StoreWriter(tmp_path / "s", {"t": SiteSpec.like(t)}, rows_per_shard=16) as writer:
        for start in range(0, 70, 9):
            writer.append({"t": t[start : start + 9]})
    stored = Store(tmp_path / "s")["t"]
    assert np.array_equal(ebab_edges(stored), ebab_edges(t.double()))
    assert binned_mi(stored, y, ebab_edges(stored)) == binned_mi(t, y, ebab_edges(t))
    half = t.bfloat16()
    assert binned_mi(half, y, ebab_edges(half)) == binned_mi(half.double(), y, ebab_edges(half.double()))


def test_too_many_values_leave_a_fair_sample_of_them_and_say_so():
    t = np.random.default_rng(0).standard_normal((5000, 4)) ** 3
    whole, (sketch, exact) = ebab_edges(t), adaptive_edges(t, limit=2000)
    assert not exact
    ranks = np.searchsorted(np.sort(t.ravel()), sketch[1:-1]) / t.size
    np.testing.assert_allclose(ranks, np.arange(30) / 30, atol=0.06)
    assert not np.array_equal(whole, sketch)
    y = np.arange(5000) % 2
    one, two = (binned_mi(t[:, :1], y, edges).i_xt for edges in (whole, sketch))
    assert one == pytest.approx(two, abs=0.1)


@SEEDS
def test_distinct_values_merge_in_any_order_and_survive_a_checkpoint(seed):
    draw = np.random.default_rng(seed)
    parts = [draw.integers(-300, 300, (40, 3)).astype(np.float32) / 7 for _ in range(5)]
    whole = Distinct(limit=100)
    for part in parts:
        whole.update(part)
    pieces = [Distinct(limit=100).update(part) for part in draw.permutation(np.array(parts))]
    merged = pieces[0]
    for piece in pieces[1:]:
        merged = merged.merge(piece)
    assert np.array_equal(whole.result().values, merged.result().values)
    assert whole.result().share == merged.result().share < 1
    assert len(whole.result().values) <= 100
    again = restore(whole.state())
    assert np.array_equal(again.result().values, whole.result().values)
    exact = Distinct().update(parts[0]).result()
    assert exact.exact
    assert np.array_equal(exact.values, np.unique(parts[0]).astype(float))
    assert len(Distinct().update(np.array([[0.0, -0.0]])).result().values) == 1


def test_saturation_line():
    assert saturated(10.0, 1024)
    assert saturated(9.9, 1024)
    assert not saturated(9.89, 1024)
    assert symbol_entropy(np.arange(8)) == 3.0
    assert symbol_information(np.arange(8), np.arange(8) % 2) == 1.0


def test_bad_input_is_refused():
    t, y = np.random.default_rng(0).standard_normal((10, 2)), np.arange(10) % 2
    edges = fixed_edges(-1, 1)
    broken = t.copy()
    broken[3, 1] = np.nan
    for call in (
        lambda: ebab_edges(broken), lambda: binned_mi(broken, y, edges), lambda: kde_mi(broken, y, 1.0),
        lambda: akde_mi(np.where(np.isnan(broken), np.inf, broken), y),
    ):  # fmt: skip
        with pytest.raises(NonFiniteError, match="sample 3, unit 1"):
            call()
    for call, words in (
        (lambda: ebab_edges(t[:, :0]), "at least one sample and one unit"),
        (lambda: ebab_edges(t, 0), "n_bins is 0"),
        (lambda: ebab_edges(t, low=0.0), "smallest value"),
        (lambda: fixed_edges(1, 1), "low < high"),
        (lambda: binned_mi(t, y[:-1], edges), "one label for each of 10"),
        (lambda: binned_mi(t, y + 0.5, edges), "whole numbers"),
        (lambda: binned_mi(t, np.arange(10), edges), "has one sample"),
        (lambda: binned_mi(t, None, edges), "labels are missing"),
        (lambda: binned_mi(t, y, edges[::-1]), "ascending"),
        (lambda: binned_mi(t, y, edges, x_ids=y[:3]), "x_ids"),
        (lambda: kde_mi(t, y, 0.0), "s2 > 0"),
        (lambda: kde_mi(t, y, 1.0, "middle"), "upper or lower"),
        (lambda: kde_mi(np.zeros((20_001, 1)), np.arange(20_001) % 2, 1.0), "takes at most 20000"),
        (lambda: akde_mi(t, y, -1.0), "s0 > 0"),
        (lambda: range_edges(np.ones(3), "global"), r"\(step, layer\)"),
        (lambda: Distinct(limit=1), "at least 2"),
        (lambda: Distinct().result(), "seen no rows"),
    ):
        with pytest.raises(InputError, match=words):
            call()
