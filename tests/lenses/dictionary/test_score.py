"""Scores of dictionaries by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netloupe.core.dictionary import Dictionary, pca_dictionary
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.dictionary.score import (
    agreement,
    concept_detection,
    core_exclusive,
    feature_support,
    mmcs,
    neurons_for,
    overlap,
    score,
)


def test_recovery_and_support():
    true = np.eye(3)
    assert mmcs(true, -2 * np.eye(3)[[2, 0, 1]]) == pytest.approx(1)
    assert mmcs(true, -np.eye(3), signed=True) == pytest.approx(0)
    assert mmcs(true, [[1.0, 1, 0], [0, 0, 0]]) == pytest.approx(2 / 3 / np.sqrt(2))
    assert neurons_for([[3.0, 4, 0], [1, 1, 1], [0, 0, 5], [0, 0, 0]]).tolist() == [2, 3, 1, 0]
    assert neurons_for([[3.0, 4, 0]], 0.64).tolist() == [1]
    assert feature_support([[0, -1.0], [2, 0]]).tolist() == [[False, True], [True, False]]
    found = core_exclusive([[1, 1, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 1]], [(0, 1)])
    assert found.core[0].tolist() == [0]
    assert [units.tolist() for units in found.exclusive[0]] == [[1], [2]]
    assert overlap([[1, 1, 0], [0, 1, 1]]).tolist() == [[2, 1], [1, 2]]


@pytest.mark.parametrize("seed", range(3))
def test_one_set_of_scores(seed: int):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 6, generator=draw, dtype=torch.float64) + 2
    one = pca_dictionary(x, 3)
    left = float((x - one.reconstruct(x)).pow(2).sum())
    found = score(one, x, true=one, others=[pca_dictionary(x, 6)])
    assert found.explained == pytest.approx(1 - left / float((x - x.mean(0)).pow(2).sum()))
    assert found.relative_error == pytest.approx(left / float(x.pow(2).sum()))
    assert (found.l0, found.dead, found.recovery) == (3, 0, pytest.approx(1))
    assert 0.5 < found.stability < 1
    silent = Dictionary(torch.eye(6, dtype=torch.float64), "relu", bias=torch.full((6,), -99.0, dtype=torch.float64))
    assert score(silent, x)[:4] == (pytest.approx(1 - float(x.pow(2).sum() / (x - x.mean(0)).pow(2).sum())), 1, 0, 1)
    assert np.isnan(score(one, x).recovery)


def test_concept_detection():
    f = np.array([1.0, 0])
    text = np.array([[0, 1.0], [3, 4]])
    assert agreement(text, f).tolist() == pytest.approx([0, 0.6])
    assert agreement(text, f, "r2").tolist() == pytest.approx([0, 0.36])
    assert agreement(text, f, "mse").tolist() == pytest.approx([-1, -10])
    assert agreement([[1.0, 2, 4]], [2.0, 3, 5], "correlation")[0] == pytest.approx(1)
    assert concept_detection([text, text], [np.array([[0.3, np.sqrt(0.91)]])], f) == pytest.approx(np.log(2))
    assert np.isnan(concept_detection([text], [-text], f, "mse"))
    for bad, words in [
        (lambda: concept_detection([], [text], f), "at least one each"),
        (lambda: agreement(text, [1.0]), "direction 1"),
        (lambda: mmcs(np.eye(2), np.eye(3)), "2 and 3"),
        (lambda: neurons_for(np.eye(2), 0), "share is 0"),
        (lambda: core_exclusive(np.eye(3), [(0,)]), "at least two"),
        (lambda: core_exclusive(np.eye(3), [(0, 7)]), "0 to 2"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(NonFiniteError):
        mmcs([[np.nan]], [[1.0]])
