"""Parallelism, CCGP and shattering: closed forms, brute force, scikit-learn, and the numbers of the official code."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.svm import LinearSVC

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.data.structured_tasks import separable_xor
from netloupe.lenses.geometry.abstraction import ccgp, dichotomies, parallelism_score, shattering_dimension
from netloupe.lenses.geometry.abstraction_finding import abstraction
from netloupe.lenses.geometry.dichotomies import near_balanced
from netloupe.lenses.geometry.margins import decision_values


def plain_parallelism(z: np.ndarray, y: np.ndarray) -> float:
    plus, minus = z[y], z[~y]
    best = -2.0
    for order in permutations(range(len(minus))):
        delta = plus - minus[list(order)]
        delta /= np.linalg.norm(delta, axis=1, keepdims=True)
        best = max(best, float(np.mean([delta[i] @ delta[j] for i, j in combinations(range(len(delta)), 2)])))
    return best


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(2, 5), st.integers(1, 9), st.integers(0, 10**6))
def test_parallelism_is_the_best_mean_cosine(pairs: int, units: int, seed: int):
    rng = np.random.default_rng(seed)
    z = 5 + rng.standard_normal((2 * pairs, units))
    y = np.isin(np.arange(2 * pairs), rng.permutation(2 * pairs)[:pairs])
    wanted = plain_parallelism(z, y)
    assert parallelism_score(z, y) == pytest.approx(wanted, abs=1e-9)
    assert parallelism_score(z, y, "distance") <= wanted + 1e-9
    turn, _ = np.linalg.qr(rng.standard_normal((units, units)))
    assert parallelism_score(3 * z @ turn + 1, 1 - 2.0 * y) == pytest.approx(wanted, abs=1e-9)


OFFICIAL = {  # seed: conditions, units, parallelism exact and by its heuristic, and CCGP, by the code of arXiv 2401.13558
    0: (4, 7, 0.5120874178700588, 0.5120874178700587, 0.7),
    1: (6, 20, 0.14841560088907138, 0.14841560088907166, 0.42500000000000004),
    2: (8, 3, 0.6673297963648442, 0.6673297963648444, 0.7055555555555555),
    3: (8, 12, 0.28836644227010594, 0.2754613706620632, 0.6736111111111112),
}


@pytest.mark.parametrize("seed", OFFICIAL)
def test_numbers_of_the_official_code(seed: int):
    conditions, units, exact, by_distance, generalised = OFFICIAL[seed]
    rng = np.random.default_rng(seed)
    z, y = rng.standard_normal((conditions, units)), np.arange(conditions) % 2
    condition = np.arange(10 * conditions) % conditions
    x = z[condition] + rng.standard_normal((10 * conditions, units))
    assert parallelism_score(z, y) == pytest.approx(exact, abs=1e-12)
    assert parallelism_score(z, y, "distance") == pytest.approx(by_distance, abs=1e-12)
    assert ccgp(x, condition, y, official=True) == pytest.approx(generalised, abs=1e-12)
    assert ccgp(x, condition, y[condition], official=True) == pytest.approx(generalised, abs=1e-12)


def test_closed_forms():
    bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    sides = np.linalg.qr(np.random.default_rng(0).standard_normal((9, 2)))[0].T
    plane = bits @ (sides * [[2.0], [1.0]])  # a rectangle, longer along the first bit
    condition, first, xor = np.arange(4), bits[:, 0], bits[:, 0] ^ bits[:, 1]
    assert parallelism_score(plane, first) == pytest.approx(1)
    assert ccgp(plane, condition, first, penalty=100) == 1
    # fitted across a diagonal, a classifier goes by the longer side: right about the others never for the shorter
    assert ccgp(plane, condition, bits[:, 1], penalty=100) == 0.5
    assert parallelism_score(np.eye(4), first) == pytest.approx(0, abs=1e-12)
    square = 2.0 * bits - 1
    assert ccgp(square, condition, xor) == 0
    assert parallelism_score(square, xor) == pytest.approx(-1)
    assert parallelism_score(separable_xor(30, 2.0).means, xor) > 0.5


def test_many_pairs_are_paired_by_distance():
    rng = np.random.default_rng(1)
    base = rng.standard_normal((8, 10))
    z = np.concatenate([base, base + np.eye(10)[0]])
    y = np.arange(16) < 8
    assert parallelism_score(z, y) == pytest.approx(1)
    assert parallelism_score(z, y, "auto") == parallelism_score(z, y, "distance")


@pytest.mark.parametrize(("n", "units", "scale"), [(12, 40, 1.0), (60, 5, 1.0), (60, 5, 0.05), (30, 30, 3.0)])
def test_classifiers_are_linear_svc(n: int, units: int, scale: float):
    rng = np.random.default_rng(n + units)
    x = scale * rng.standard_normal((n, units))
    signs = np.where(rng.random((4, n)) < 0.5, -1.0, 1.0)
    fitted = rng.random((4, n)) < 0.7
    signs[:, :2], fitted[:, :2] = [-1, 1], True
    found = decision_values(x, signs, fitted, 0.7)
    for said, sign, mask in zip(found, signs, fitted):
        model = LinearSVC(C=0.7, tol=1e-10, max_iter=1_000_000).fit(x[mask], sign[mask])
        np.testing.assert_allclose(said, model.decision_function(x), atol=1e-5)


def test_the_solution_is_a_minimum():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((200, 12))
    sign = np.where(x[:, 0] + rng.standard_normal(200) > 0, 1.0, -1.0)
    found = decision_values(x, sign[None], np.ones((1, 200), bool))[0]
    design = np.column_stack([x, np.ones(200)])
    w = np.linalg.lstsq(design, found, rcond=None)[0]
    gradient = w - 2 * design.T @ (sign * np.maximum(1 - sign * found, 0))
    np.testing.assert_allclose(gradient, 0, atol=1e-9)


def noisy(seed: int, conditions: int, units: int, each: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    condition = np.arange(conditions * each) % conditions
    return 1.5 * rng.standard_normal((conditions, units))[condition] + rng.standard_normal(
        (len(condition), units)
    ), condition


@pytest.mark.parametrize("conditions", [4, 6, 8])
def test_ccgp_is_the_loop_over_subsets(conditions: int):
    x, condition = noisy(conditions, conditions, 6)
    y = np.arange(conditions) < conditions // 2
    scores, k = [], conditions // 4
    for a in combinations(np.flatnonzero(y), k):
        for b in combinations(np.flatnonzero(~y), k):
            mask = np.isin(condition, [*a, *b])
            model = LinearSVC(tol=1e-10, max_iter=1_000_000).fit(x[mask], y[condition[mask]])
            scores.append(model.score(x[~mask], y[condition[~mask]]))
    assert ccgp(x, condition, y) == pytest.approx(np.mean(scores), abs=1e-12)
    assert ccgp(x, condition + 5, y, LinearSVC(tol=1e-10, max_iter=1_000_000)) == pytest.approx(
        np.mean(scores), abs=1e-12
    )
    assert 0 <= ccgp(x, condition, y, max_subsets=2, random_state=1) <= 1
    assert 0 <= ccgp(torch.from_numpy(x), torch.from_numpy(condition), y, LinearDiscriminantAnalysis()) <= 1


def test_shattering_is_the_loop_over_dichotomies():
    x, condition = noisy(0, 6, 4)
    found = shattering_dimension(x, condition, trained=np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1]]))
    assert found.dichotomies.shape == (10, 6)
    rank = np.arange(len(x)) // 6
    scores = []
    for row in found.dichotomies:
        model = LinearSVC(tol=1e-10, max_iter=1_000_000).fit(x[rank % 2 == 0], row[condition[rank % 2 == 0]])
        scores.append(model.score(x[rank % 2 == 1], row[condition[rank % 2 == 1]]))
    np.testing.assert_allclose(found.accuracy, scores, atol=1e-12)
    assert found.trained.sum() == 2
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.mean_trained == pytest.approx(found.accuracy[found.trained].mean())
    assert found.mean_untrained == pytest.approx(found.accuracy[~found.trained].mean())
    few = shattering_dimension(x, condition, 3, LinearSVC())
    assert len(few.accuracy) == 3
    assert np.isnan(few.mean_trained)
    assert shattering_dimension(np.eye(6), np.arange(6)).mean == 1  # one sample a condition: fitted and judged alike


def test_dichotomies():
    table = dichotomies(6)
    assert table.shape == (10, 6)
    assert table[:, 0].all()
    assert (table.sum(1) == 3).all()
    assert len({tuple(row) for row in table}) == 10
    assert len(dichotomies(5, balanced=False)) == 15
    for bad in (
        lambda: dichotomies(5),
        lambda: dichotomies(1),
        lambda: dichotomies(30),
        lambda: dichotomies(25, False),
    ):
        with pytest.raises(InputError):
            bad()
    odd = near_balanced(5, 100)
    assert len(odd) == 15
    assert (odd.sum(1) == 0).all()
    assert ((odd == 0).sum(1) == 1).all()
    many = near_balanced(21, 30, random_state=1)
    assert many.shape == (30, 21)
    assert len({row.tobytes() for row in many}) == 30
    assert len(near_balanced(8, 7)) == 7


def test_refusals():
    z, y = np.random.default_rng(0).standard_normal((4, 3)), np.array([0, 0, 1, 1])
    condition = np.arange(4)
    nan = z.copy()
    nan[1, 1] = np.nan
    same = z.copy()
    same[2] = same[0]
    cases = [
        (lambda: parallelism_score(z, [0, 0, 0, 1]), "equal size"),
        (lambda: parallelism_score(z[:2], [0, 1]), "at least 2 pairs"),
        (lambda: parallelism_score(z, [0, 1]), "a side for each"),
        (lambda: parallelism_score(z, y, "best"), "pairing"),  # type: ignore[arg-type]
        (lambda: parallelism_score(same, y), "coincide"),
        (lambda: parallelism_score(z[:, :0], y), "at least one unit"),
        (lambda: ccgp(z, condition, [0, 0, 0, 1]), "equal sides"),
        (lambda: ccgp(z[:2], condition[:2], [0, 1]), "at least 4 conditions"),
        (lambda: ccgp(z[[0, 1, 2, 2, 0]], [0, 1, 2, 2, 0], y), "without samples"),
        (lambda: ccgp(np.tile(z, (2, 1)), np.tile(condition, 2), [0, 0, 1, 1, 0, 1, 1, 1]), "one side"),
        (lambda: ccgp(z, condition[:3], y), "a condition for each"),
        (lambda: shattering_dimension(z[:3], condition[:3]), "even number"),
        (lambda: shattering_dimension(z, condition, trained=[[1, 0]]), "each target"),
        (lambda: shattering_dimension(z, condition, fit=[True, True, True, False]), "some of every condition"),
        (lambda: abstraction(z, [0, 0, 0, 1]), "2 of both"),
        (lambda: abstraction(np.ones((8, 2)), np.arange(8) % 4), "nothing to read"),
        (lambda: abstraction(np.tile(z, (2, 1)), np.arange(8) % 4, max_dichotomies=0), "max_dichotomies"),
    ]
    for bad, words in cases:
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(NonFiniteError):
        parallelism_score(nan, y)


def test_the_lens_is_its_parts():
    x, labels = noisy(2, 6, 9, each=20)
    found = abstraction(x, labels)
    means = np.stack([x[labels == c].mean(0) for c in range(6)])
    table = dichotomies(6)
    assert (found.dichotomies > 0).tolist() == table.tolist()
    np.testing.assert_allclose(found.parallelism, [parallelism_score(means, row) for row in table], atol=1e-9)
    z = means - x.mean(0)
    z = (z - z.mean(0)) / np.sqrt(((z - z.mean(0)) ** 2).sum(1).mean())
    np.testing.assert_allclose(found.ccgp, [ccgp(z, np.arange(6), row) for row in table], atol=1e-9)
    rank = np.arange(len(x)) // 6
    known, new = x[rank % 2 == 0], x[rank % 2 == 1]
    centre = known.mean(0)
    scale = np.abs(x - x.mean(0)).max()
    known, new = (known - centre) / scale, (new - centre) / scale
    ridge = 1e-3 * (known**2).mean() * len(known)
    aims = np.where(table, 1.0, -1.0)[:, labels]
    w = np.linalg.solve(known.T @ known + ridge * np.eye(9), known.T @ aims[:, rank % 2 == 0].T)
    right = (new @ w > 0) == (aims[:, rank % 2 == 1].T > 0)
    np.testing.assert_allclose(found.accuracy, right.mean(0), atol=1e-12)
    assert found.null is not None
    assert found.null_best is not None
    assert found.null < found.null_best
    wide = abstraction(np.column_stack([x, np.zeros((len(x), 200))]), labels)
    np.testing.assert_allclose(wide.accuracy, found.accuracy)  # by the samples' inner products where units are more


def test_the_lens_tells_a_factorised_code_from_a_random_one():
    rng = np.random.default_rng(0)
    bits = (np.arange(8)[:, None] >> np.arange(3)) & 1
    labels = np.arange(400) % 8
    coded = (bits @ rng.standard_normal((3, 40)))[labels] + 0.1 * rng.standard_normal((400, 40))
    random = rng.standard_normal((8, 40))[labels] + 0.1 * rng.standard_normal((400, 40))
    one, other = abstraction(coded, labels).summary(), abstraction(random, labels).summary()
    assert one["parallelism_best"] > 0.9 > 0.5 > other["parallelism_best"]
    assert one["ccgp_best"] > 0.95
    assert one["standard_error"] < 0.1
    assert other["parallelism_null"] == pytest.approx(other["parallelism"], abs=0.1)
    three = abstraction(random[labels < 3], labels[labels < 3])
    assert set(three.summary()) == {"shattering", "shattering_worst"}
    five = abstraction(random[labels < 5], labels[labels < 5])
    assert len(five.parallelism) == 15
