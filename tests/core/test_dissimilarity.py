"""Dissimilarity matrices beside scipy, their ranks, resampling, and rsatoolbox's objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from netloupe.core import dissimilarity as module
from netloupe.core.dissimilarity import (
    Dissimilarities,
    average_ranks,
    crossnobis,
    dissimilarity,
    pair_index,
    samples_of_pairs,
)
from netloupe.core.errors import InputError, MissingExtraError, NonFiniteError, StoreError

SCIPY = {"euclidean": "euclidean", "squared euclidean": "sqeuclidean", "correlation": "correlation", "cosine": "cosine"}


@pytest.mark.parametrize("metric", SCIPY)
@pytest.mark.parametrize("seed", range(3))
def test_scipy_gives_the_same(metric, seed: int, monkeypatch: pytest.MonkeyPatch):
    x = np.random.default_rng(seed).standard_normal((53, 9)) + 30
    wanted = pdist(x, SCIPY[metric])
    np.testing.assert_allclose(dissimilarity(x, metric), wanted, rtol=1e-9, atol=1e-10)
    monkeypatch.setattr(module, "BLOCK", 7)
    np.testing.assert_allclose(dissimilarity(x, metric), wanted, rtol=1e-9, atol=1e-10)


def test_a_far_offset_and_near_duplicates_keep_their_digits():
    x = np.random.default_rng(0).standard_normal((20, 5))
    x[1] = x[0] + 1e-7
    x[2] = x[0]
    np.testing.assert_allclose(dissimilarity(x + 1e6), pdist(x + 1e6), rtol=1e-6)
    assert dissimilarity(x)[1] == 0


def test_a_file_holds_the_pairs(tmp_path: Path):
    x = np.random.default_rng(0).standard_normal((40, 5))
    found = dissimilarity(x, out=tmp_path / "pairs.npy", max_samples=3)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "pairs.npy"), dissimilarity(x))
    with pytest.raises(StoreError, match="could not be written"):
        dissimilarity(x, out=tmp_path / "none" / "pairs.npy")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=60))
def test_ranks_are_scipys(values):
    if len(set(values)) == 1:
        with pytest.raises(InputError, match="equally far apart"):
            average_ranks(np.array(values, dtype=float))
        return
    np.testing.assert_array_equal(average_ranks(np.array(values, dtype=float)), rankdata(values))


def test_ranks_leave_undefined_pairs_alone():
    np.testing.assert_array_equal(average_ranks(np.array([3.0, np.nan, 1.0, 3.0])), [2.5, np.nan, 1, 2.5])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6))
def test_a_bootstrap_draw_is_the_table_of_the_drawn_samples(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3))
    all_pairs = Dissimilarities(pdist(x), samples={"label": np.arange(n)}, matrices={"site": np.array(["a"])})
    drawn = rng.integers(0, n, n)
    taken = all_pairs.take(drawn)
    wanted = squareform(pdist(x))[np.ix_(drawn, drawn)][np.triu_indices(n, 1)]
    same = drawn[np.triu_indices(n, 1)[0]] == drawn[np.triu_indices(n, 1)[1]]
    assert np.isnan(taken.values[0][same]).all()
    np.testing.assert_array_equal(taken.values[0][~same], wanted[~same])
    np.testing.assert_array_equal(taken.samples["label"], drawn)


def test_square_and_condensed_are_one_thing():
    x = np.random.default_rng(0).standard_normal((2, 8, 3))
    made = Dissimilarities.from_square(np.stack([squareform(pdist(one)) for one in x]), matrices={"site": ["a", "b"]})
    assert (len(made), made.n_samples) == (2, 8)
    np.testing.assert_array_equal(made.values[1], pdist(x[1]))
    np.testing.assert_array_equal(Dissimilarities.from_square(made.square()).values, made.values)
    assert made[1].matrices["site"].tolist() == ["b"]
    assert len(made[[True, False]]) == 1
    both = Dissimilarities.stack([made, made[0]])
    assert both.matrices["site"].tolist() == ["a", "b", "a"]
    np.testing.assert_array_equal(made.ranked().values[0], rankdata(made.values[0]))
    places, same = pair_index(np.array([3, 2]), np.array([1, 2]), 8)
    assert made.values[0][places[0]] == pytest.approx(np.linalg.norm(x[0, 1] - x[0, 3]))
    assert same.tolist() == [False, True]


class Lookalike:
    """What rsatoolbox's RDMs offers, so that the conversion is tested where it is not installed."""

    def __init__(self, dissimilarities, dissimilarity_measure=None, rdm_descriptors=None, pattern_descriptors=None):
        self.dissimilarities, self.dissimilarity_measure = dissimilarities, dissimilarity_measure
        self.rdm_descriptors, self.pattern_descriptors = rdm_descriptors or {}, pattern_descriptors or {}
        self.n_cond = samples_of_pairs(dissimilarities.shape[1])


def test_rsatoolbox_objects_convert_both_ways(monkeypatch: pytest.MonkeyPatch):
    try:
        from rsatoolbox.rdm import RDMs
    except ImportError:
        import sys
        from types import ModuleType

        with pytest.raises(MissingExtraError, match=r"netloupe\[rsa\]"):
            Dissimilarities(np.ones((1, 3))).to_rsatoolbox()
        package, inner = ModuleType("rsatoolbox"), ModuleType("rsatoolbox.rdm")
        RDMs = inner.RDMs = Lookalike
        monkeypatch.setitem(sys.modules, "rsatoolbox", package)
        monkeypatch.setitem(sys.modules, "rsatoolbox.rdm", inner)
    values = np.random.default_rng(0).random((2, 6))
    made = Dissimilarities(values, "correlation", {"label": np.array(list("abcd"))}, {"site": np.array(["x", "y"])})
    theirs = made.to_rsatoolbox()
    assert isinstance(theirs, RDMs)
    back = Dissimilarities.from_rsatoolbox(theirs)
    np.testing.assert_array_equal(back.values, values)
    assert back.metric == "correlation"
    assert back.samples["label"].tolist() == list("abcd")
    assert back.matrices["site"].tolist() == ["x", "y"]
    with pytest.raises(InputError, match="expected an rsatoolbox RDMs"):
        Dissimilarities.from_rsatoolbox(values)


def crossnobis_by_pairs(x, condition, fold, precision):
    """The definition, pair of folds by pair of folds."""
    names, parts = np.unique(condition), np.unique(fold)
    found = np.zeros((len(names), len(names)))
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            gaps = [
                x[(condition == a) & (fold == f)].mean(0) - x[(condition == b) & (fold == f)].mean(0) for f in parts
            ]
            pairs = [one @ precision @ two for s, one in enumerate(gaps) for t, two in enumerate(gaps) if s != t]
            found[i, j] = np.mean(pairs)
    return squareform(found, checks=False)


@pytest.mark.parametrize("seed", range(3))
def test_crossnobis_is_its_definition_and_unbiased(seed: int):
    rng = np.random.default_rng(seed)
    condition, fold = np.repeat(np.arange(5), 9), np.tile(np.repeat(np.arange(3), 3), 5)
    mixing = rng.standard_normal((6, 6))
    precision = mixing @ mixing.T
    x = rng.standard_normal((45, 6))
    found, names = crossnobis(x, condition, fold, precision)
    np.testing.assert_allclose(found, crossnobis_by_pairs(x, condition, fold, precision), atol=1e-9)
    assert names.tolist() == list(range(5))
    nothing = [crossnobis(rng.standard_normal((45, 6)), condition, fold)[0].mean() for _ in range(300)]
    assert abs(np.mean(nothing)) < 4 * np.std(nothing) / np.sqrt(300)
    assert np.mean([pdist(rng.standard_normal((5, 6))).mean() for _ in range(5)]) > 1, "plain distances are biased"


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda x: dissimilarity(x, "manhattan"), "expected one of euclidean"),
        (lambda x: dissimilarity(x, max_samples=9), "at most 9"),
        (lambda x: dissimilarity(x[:1]), "at least 2"),
        (lambda x: dissimilarity(np.where(x > 2, np.nan, x) * np.nan), "nan"),
        (lambda x: dissimilarity(np.vstack([x, np.zeros(3)]), "cosine"), "zero in all units"),
        (lambda x: dissimilarity(np.vstack([x, np.ones(3)]), "correlation"), "same value in all units"),
        (lambda x: Dissimilarities(np.ones((1, 4))), "4 pairs are not all pairs"),
        (lambda x: Dissimilarities(np.array([[1, np.inf, 1]])), "infinite"),
        (lambda x: Dissimilarities(np.ones((1, 3)), samples={"label": [1, 2]}), "describes 2 samples, there are 3"),
        (lambda x: Dissimilarities(np.ones((1, 3))).take([0]), "two or more"),
        (lambda x: Dissimilarities(np.ones((1, 3))).take([0, 5]), "below 3"),
        (lambda x: Dissimilarities.from_square(x), "expected \\(sample, sample\\)"),
        (lambda x: Dissimilarities.from_square([[0, 1], [2, 0]]), "not symmetric"),
        (lambda x: Dissimilarities.from_square([[1, 1], [1, 0]]), "diagonal"),
        (lambda x: Dissimilarities.stack([]), "nothing to stack"),
        (lambda x: Dissimilarities.stack([Dissimilarities(np.ones(3)), Dissimilarities(np.ones(6))]), "same samples"),
        (lambda x: crossnobis(x, np.arange(10) % 2, np.zeros(10)), "at least two of each"),
        (lambda x: crossnobis(x, np.arange(10) % 2, np.arange(10) % 2), "no measurement of condition"),
        (lambda x: crossnobis(x, np.zeros(3), np.zeros(3)), "one value for each of 10"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(made, sentence: str):
    with pytest.raises((InputError, NonFiniteError), match=sentence) as raised:
        made(np.random.default_rng(0).standard_normal((10, 3)))
    assert "\n" not in str(raised.value)
