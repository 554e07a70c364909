"""Unit matching: permuted copies, brute force, networkx, chance, and the lens."""

from __future__ import annotations

from itertools import permutations as all_permutations

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.statistics import CrossMoments
from netloupe.lenses.similarity.matching import (
    match_agreement,
    match_curve,
    match_units,
    matched_error,
    null_correlations,
    permutation_cycles,
    redundancy,
    self_match,
)
from netloupe.lenses.similarity.unit_matching import unit_matching

SEEDS = [0, 1, 2]


def table(seed: int, p: int = 6, q: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (p, q))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("absolute", [False, True])
def test_full_matching_is_the_best_of_all_permutations(seed: int, absolute: bool):
    scores = table(seed)
    sized = np.abs(scores) if absolute else scores
    best = max(sum(sized[i, j] for i, j in enumerate(order)) for order in all_permutations(range(6)))
    found = match_units(scores, "full", absolute)
    order = found.order()
    assert sum(sized[i, order[i]] for i in range(6)) == pytest.approx(best)
    assert found.summary()["matched"] == pytest.approx(best / 6)


@pytest.mark.parametrize("seed", SEEDS)
def test_full_matching_is_that_of_networkx(seed: int):
    scores = table(seed, 30, 30)
    graph = networkx.Graph()
    graph.add_weighted_edges_from((i, 30 + j, scores[i, j]) for i in range(30) for j in range(30))
    pairs = {min(edge): max(edge) - 30 for edge in networkx.max_weight_matching(graph, maxcardinality=True)}
    assert dict(match_units(scores).pairs.tolist()) == pairs


def test_the_paper_authors_order_on_seeded_input():
    # the permutation that the published code finds for this table, without its diagonal
    scores = np.corrcoef(_after_table(7).normal(size=(12, 40)))
    assert self_match(scores).order().tolist() == [7, 2, 1, 9, 8, 6, 5, 0, 4, 3, 11, 10]


def _after_table(seed: int) -> np.random.Generator:
    draw = np.random.default_rng(seed)
    for size in ((3000, 3), (3, 4), (3000, 4), (3000,), (12, 12)):
        draw.normal(size=size)
    return draw


def test_published_cycles_of_seeded_input():
    order = [2, 1, 5, 8, 11, 10, 0, 3, 4, 9, 7, 6]
    assert permutation_cycles(order) == [(0, 2, 5, 10, 7, 3, 8, 4, 11, 6), (1,), (9,)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_permuted_scaled_copy_is_matched_exactly(seed: int):
    draw = np.random.default_rng(seed)
    a, order = draw.normal(size=(200, 12)), draw.permutation(12)
    b = a[:, order] * draw.uniform(0.1, 10, 12) + draw.normal(size=12)
    scores = CrossMoments().update(a, b).correlation()
    for kind in ("semi", "full"):
        found = match_units(scores, kind)
        np.testing.assert_allclose(found.scores, 1)
        np.testing.assert_array_equal(order[found.order()], np.arange(12))
    semi, full = match_curve(scores)
    np.testing.assert_allclose(semi, full)


def test_semi_matching_shares_partners_and_never_scores_less():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, -0.5]])
    semi, full = match_units(scores, "semi"), match_units(scores, "full")
    assert semi.pairs.tolist() == [[0, 0], [1, 0], [2, 0]]
    assert semi.unmatched_b.tolist() == [1]
    assert sorted(full.pairs.tolist()) == [[0, 0], [1, 1]]
    assert full.unmatched_a.tolist() == [2]
    assert full.scores.tolist() == [0.9, 0.2]
    assert match_agreement(semi, full) == 0.5
    assert match_units(-scores, "semi", absolute=True).scores.tolist() == [-0.9, -0.8, 0.5]


def test_dead_units_are_left_out():
    scores = table(0, 4, 5)
    scores[1], scores[:, 3] = 0, np.nan
    scores[1, 3] = np.nan
    found = match_units(scores)
    assert found.dead == (1, 1)
    assert 1 in found.unmatched_a
    assert 3 in found.unmatched_b
    alive = match_units(np.delete(np.delete(scores, 1, 0), 3, 1))
    np.testing.assert_allclose(found.scores, alive.scores)


@pytest.mark.parametrize("seed", SEEDS)
def test_self_matching_has_no_fixed_point_and_is_the_best_such(seed: int):
    within = np.corrcoef(np.random.default_rng(seed).normal(size=(6, 20)))
    best = max(
        sum(within[i, j] for i, j in enumerate(order))
        for order in all_permutations(range(6))
        if all(i != j for i, j in enumerate(order))
    )
    found = self_match(within)
    assert (found.pairs[:, 0] != found.pairs[:, 1]).all()
    assert found.scores.sum() == pytest.approx(best)
    own = within - 2 * np.eye(6)
    np.testing.assert_allclose(redundancy(within), own.max(1))
    order = self_match(within, "semi").order()
    np.testing.assert_array_equal(order, own.argmax(1))


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(9)))
def test_cycles_lead_back(order: list[int]):
    cycles = permutation_cycles(order)
    assert sorted(i for cycle in cycles for i in cycle) == list(range(9))
    for cycle in cycles:
        assert [order[i] for i in cycle] == [*cycle[1:], cycle[0]]
        assert cycle[0] == min(cycle)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_drawn_null_has_the_spread_of_shuffled_samples(seed: int):
    draw = np.random.default_rng(seed)
    a = draw.normal(size=(60, 4)) @ draw.normal(size=(4, 4))
    b = draw.exponential(size=(60, 3)) @ draw.normal(size=(3, 3))
    moments = CrossMoments().update(a, b).result()
    drawn = np.stack(null_correlations(moments, 4000, seed)).reshape(4000, -1)
    shuffled = np.stack([CrossMoments().update(a, b[draw.permutation(60)]).correlation().ravel() for _ in range(4000)])
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(shuffled.T), atol=0.0022)
    exact = np.kron(moments.within_a, moments.within_b) / 59
    np.testing.assert_allclose(np.cov(drawn.T), exact, atol=0.0022)


def test_a_null_gives_quantiles_and_a_p_value():
    draw = np.random.default_rng(0)
    a = draw.normal(size=(100, 5))
    related, apart = (
        CrossMoments().update(a, b).result() for b in (a + draw.normal(size=a.shape), draw.normal(size=a.shape))
    )
    found = match_units(related.between, null=null_correlations(related, 19))
    assert found.p_value == pytest.approx(1 / 20)
    assert (np.diff(found.null_quantiles) > 0).all()
    assert found.summary()["matched"] > found.null_quantiles[-1]
    assert (match_units(apart.between, null=null_correlations(apart, 19)).p_value or 0) > 0.05


def test_standard_error_covers_the_truth():
    """Over many draws the spread of the mean matched correlation is what single draws say."""
    draw = np.random.default_rng(0)
    means, errors = [], []
    pairs = np.stack([np.arange(4), np.arange(4)], 1)
    for _ in range(300):
        a = draw.normal(size=(120, 4))
        b = 0.6 * a + 0.8 * draw.normal(size=(120, 4))
        moments = CrossMoments().update(a, b).result()
        means.append(np.diag(moments.between).mean())
        errors.append(matched_error([(a[:50], b[:50]), (a[50:], b[50:])], moments, pairs, 120))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.12)


@pytest.mark.parametrize("positions", [False, True])
def test_the_lens(positions: bool):
    draw = np.random.default_rng(3)
    shape = (300, 9) if positions else (300,)
    a = draw.normal(size=(*shape, 6))
    b = np.concatenate([a[..., [3, 1, 0]], draw.normal(size=(*shape, 2))], -1)
    b[..., 4] = 2.0
    found = unit_matching(a, b)
    assert found.partner[[3, 1, 0]].tolist() == [0, 1, 2]
    assert found.dead == (0, 1)
    assert found.n_positions == (9 if positions else 1)
    numbers = found.summary()
    assert numbers["matched"] == pytest.approx(found.partner_score[~np.isnan(found.partner_score)].mean())
    assert abs(numbers["chance"]) < 0.15
    assert numbers["above_half"] == 0.75
    assert 0 < numbers["standard_error"] < 0.05
    assert found.best[3] == 0
    assert found == unit_matching(a, b)


def test_positions_of_a_sample_stay_together_in_the_error():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(200, 4)), draw.normal(size=(200, 4))
    once = unit_matching(a, b)
    repeated = unit_matching(np.repeat(a[:, None], 5, 1), np.repeat(b[:, None], 5, 1))
    assert repeated.standard_error == pytest.approx(once.standard_error)


def test_bad_input_is_one_sentence():
    good = table(0)
    broken = good.copy()
    broken[0, 1] = np.nan
    cases = [
        (lambda: match_units(good, "half"), "expected 'semi' or 'full'"),
        (lambda: match_units(good[0]), "expected \\(unit of a, unit of b\\)"),
        (lambda: match_units(np.zeros((3, 3))), "no unit varies"),
        (lambda: match_units(good, null=[]), "null holds no table"),
        (lambda: match_units(good, null=[good[:2]]), "they must agree"),
        (lambda: self_match(good[:3]), "square"),
        (lambda: self_match(np.diag([1.0, 0.0])), "at least two"),
        (lambda: permutation_cycles([0, 0]), "not a permutation"),
        (lambda: redundancy(good[:1]), "square"),
        (lambda: match_agreement(match_units(good), match_units(good[:5])), "cannot be compared"),
        (lambda: unit_matching(np.eye(6), np.eye(6), n_null=0), "n_null is 0"),
        (lambda: unit_matching(np.ones((6, 2)), np.eye(6)), "no unit of one site varies"),
        (lambda: unit_matching(np.eye(6), np.eye(6)[:5]), "same samples"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(NonFiniteError, match="for a pair of units that vary"):
        match_units(broken)
