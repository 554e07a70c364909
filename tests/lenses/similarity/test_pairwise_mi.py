"""Mutual information of units: closed forms, a plain histogram, and the authors' code on seeded input."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.similarity.mutual_information import pairwise_mi

SEEDS = [0, 1, 2]
OFFICIAL = [
    [0.08132562, 0.00422255, -0.00636337, 0.00301915],
    [-0.00519185, 0.01386657, 0.04211259, 0.08689676],
    [0.09204511, 0.08375264, 0.21946825, 0.19143787],
]


def seeded_units() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(7)
    x = np.maximum(draw.normal(size=(3000, 3)), 0.0)
    return x, np.maximum(x @ draw.normal(size=(3, 4)) + 0.5 * draw.normal(size=(3000, 4)) - 0.3, 0)


def test_official_bins_and_bias_give_the_official_numbers():
    np.testing.assert_allclose(pairwise_mi(*seeded_units(), bias="official"), OFFICIAL, atol=6e-9)


def test_gaussians_with_many_bins():
    draw = np.random.default_rng(0)
    for r in (0.0, 0.5, 0.9):
        x = draw.normal(size=(400_000, 1))
        y = r * x + np.sqrt(1 - r**2) * draw.normal(size=x.shape)
        true = -0.5 * np.log(1 - r**2)
        few, many = (pairwise_mi(x, y, bins=bins)[0, 0] for bins in (15, 60))
        assert many == pytest.approx(true, abs=0.015)
        assert abs(many - true) < abs(few - true) or r == 0  # bins only lose information


@pytest.mark.parametrize("levels", [2, 4, 7])
def test_identical_levels_tell_their_entropy(levels: int):
    x = (np.arange(10_000) % levels).astype(float)[:, None]
    for values in (x, x + 1, -x):
        assert pairwise_mi(values, values, bias=None)[0, 0] == pytest.approx(np.log(levels))
    shifted = pairwise_mi(x, x, bias="miller-madow")[0, 0]
    assert shifted == pytest.approx(np.log(levels) - (levels - 1) ** 2 / 20_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_against_a_plain_histogram(seed: int):
    draw = np.random.default_rng(seed)
    x, y = (np.maximum(draw.normal(size=(1501, d)), -0.2 * d) for d in (3, 2))
    x[:, 0] = np.maximum(x[:, 0], 0)

    def codes(column: np.ndarray) -> np.ndarray:
        silent = np.abs(column) < 1e-6
        edges = np.quantile(column[~silent], np.linspace(0, 1, 10 - silent.any() + 1)[1:-1])
        return np.where(silent, -1, np.searchsorted(edges, column, side="right"))

    found = pairwise_mi(x, y, bias=None)
    for i in range(3):
        for j in range(2):
            assert found[i, j] == pytest.approx(mutual_info_score(codes(x[:, i]), codes(y[:, j])), abs=1e-12)


def test_independent_units_have_none_once_corrected():
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(2, 5000, 30))
    corrected, plain = pairwise_mi(x, y), pairwise_mi(x, y, bias=None)
    error = corrected.std() / 30
    assert abs(corrected.mean()) < 3 * error
    assert plain.mean() > 50 * error
    assert plain.mean() == pytest.approx(81 / 10_000, rel=0.02)


def test_pairs_positions_and_monotone_changes():
    x, y = seeded_units()
    whole = pairwise_mi(x, y)
    np.testing.assert_array_equal(pairwise_mi(x, y, pairs=np.array([[2, 1], [0, 3]])), [whole[2, 1], whole[0, 3]])
    np.testing.assert_array_equal(pairwise_mi(x.reshape(300, 10, 3), y.reshape(300, 10, 4)), whole)
    np.testing.assert_allclose(pairwise_mi(x**3 * 1e3, y), whole, atol=2e-3)  # a cube makes small values silent
    assert pairwise_mi(np.zeros((500, 1)), y[:500])[0, 1] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(pairwise_mi(-x, y), whole, atol=0.01)


def test_bad_input_is_one_sentence():
    x, y = seeded_units()
    silent = np.zeros((3000, 1))
    silent[0] = 1
    cases = [
        (lambda: pairwise_mi(x[:100], y[:100]), "100 rows were given for 10 bins"),
        (lambda: pairwise_mi(x, y[:-1]), "same samples"),
        (lambda: pairwise_mi(x, y, bins=1), "bins is 1"),
        (lambda: pairwise_mi(x, y, bias="some"), "bias 'some'"),  # pyright: ignore[reportArgumentType]
        (lambda: pairwise_mi(x, y, pairs=np.array([[3, 0]])), "pairs name units beyond"),
        (lambda: pairwise_mi(x, y, pairs=np.array([0, 1])), "expected whole numbers"),
        (lambda: pairwise_mi(silent, silent, bias="official"), "more than 99.9 %"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(NonFiniteError):
        pairwise_mi(x * np.nan, y)
