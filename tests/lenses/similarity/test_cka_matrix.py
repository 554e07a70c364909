"""Many sites at once give the numbers that every pair gives alone."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core import arrangement as module
from netloupe.core.errors import InputError
from netloupe.lenses.similarity.cka import cka, cka_matrix


def sites(seed: int, n: int, widths: list[int]) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 3, generator=made)
    return [
        torch.randn(n, d, generator=made) + shared @ torch.randn(3, d, generator=made) + 10 * index
        for index, d in enumerate(widths)
    ]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.integers(2, 24), st.lists(st.integers(1, 30), min_size=2, max_size=4))
def test_same_as_each_pair_alone(seed: int, n: int, widths: list[int]) -> None:
    features = sites(seed, n, widths)
    found = cka_matrix(features)
    assert set(found) == set(combinations(range(len(widths)), 2))
    for (i, j), finding in found.items():
        assert finding == cka(features[i], features[j])


@pytest.mark.parametrize("widths", [[5, 7], [40, 60], [5, 60]])
def test_matches_the_sample_by_sample_definition(widths: list[int]) -> None:
    n = 20
    x, y = (site.double().numpy() for site in sites(1, n, widths))
    centring = np.eye(n) - 1 / n
    grams = [site @ site.T for site in (x, y)]
    centred = [centring @ gram @ centring for gram in grams]
    biased = (centred[0] * centred[1]).sum() / np.prod([np.linalg.norm(gram) for gram in centred])

    def unbiased(k: np.ndarray, l: np.ndarray) -> float:
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
        ends = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ l.sum(0)) / (n - 2)
        return ((k * l).sum() + ends) / (n * (n - 3))

    debiased = unbiased(*grams) / np.sqrt(unbiased(grams[0], grams[0]) * unbiased(grams[1], grams[1]))
    found = cka_matrix([x, y])[0, 1]
    assert found.biased == pytest.approx(biased, rel=1e-9)
    assert found.debiased == pytest.approx(debiased, rel=1e-9)


def test_rows_read_again_give_what_rows_kept_give(monkeypatch: pytest.MonkeyPatch) -> None:
    features = sites(2, 50, [4, 9, 70])
    kept = cka_matrix(features)
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    assert cka_matrix(features) == kept


def test_gram_and_covariance_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    features = sites(3, 30, [64, 80])
    by_gram = cka_matrix(features)[0, 1]
    monkeypatch.setattr(module, "_GRAM_SAMPLES", 0)
    by_covariance = cka_matrix(features)[0, 1]
    assert by_gram.biased == pytest.approx(by_covariance.biased, rel=1e-11)
    assert by_gram.debiased == pytest.approx(by_covariance.debiased, rel=1e-9)


def test_a_constant_site_leaves_its_pairs_out() -> None:
    features = [*sites(4, 12, [3, 5]), torch.full((12, 4), 0.1)]
    assert set(cka_matrix(features)) == {(0, 1)}
    with pytest.raises(InputError, match="same for every sample"):
        cka(features[0], features[2])


def test_different_numbers_of_samples_are_refused() -> None:
    with pytest.raises(InputError, match="features have 6 samples and other 5"):
        cka(torch.rand(6, 2), torch.rand(5, 2))
    with pytest.raises(InputError, match="features 0 have 6 samples and features 2 5"):
        cka_matrix([torch.rand(6, 2), torch.rand(6, 3), torch.rand(5, 2)])
    assert cka_matrix([]) == {}
