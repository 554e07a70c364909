"""The one interface over all estimators, and the lens that asks it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.feature_selection import mutual_info_classif
from sklearn.metrics.cluster import expected_mutual_information
from sklearn.metrics.cluster._supervised import contingency_matrix

from netloupe.core.errors import InputError
from netloupe.lenses.information import estimators
from netloupe.lenses.information.diffusion import diffusion_spectral_entropy, suggest_sigma
from netloupe.lenses.information.label_information import label_information
from netloupe.lenses.information.mutual_information import (
    ESTIMATORS,
    KDE,
    KNN,
    AdaptiveBinned,
    AdaptiveKDE,
    Binned,
    DiffusionSpectral,
    as_estimator,
)


def clusters(seed: int, n: int = 90, d: int = 4, apart: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return draw.standard_normal((n, d)) + apart * draw.standard_normal((3, d))[y], y


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_every_estimator_finds_more_in_true_labels_than_in_shuffled_ones(name):
    t, y = clusters(0, d=1)
    chosen = as_estimator(DiffusionSpectral(sigma=2.0) if name == "diffusion" else name)
    found = chosen.mutual_information(t, y)
    shuffled = np.random.default_rng(1).permutation(y)
    entropy, both = chosen.over_labelings(t, np.stack([y, shuffled]))
    assert both[0] == pytest.approx(found.i_ty, abs=1e-9)
    assert both[1] == pytest.approx(chosen.mutual_information(t, shuffled).i_ty, abs=1e-9)
    assert both[0] > both[1] + 0.2
    if name != "knn":
        assert found.i_xt == pytest.approx(entropy) == pytest.approx(chosen.entropy(t))
        assert 0 <= found.i_xt <= np.log2(90) + 1e-9
    else:
        assert np.isnan(found.i_xt)


def test_estimators_are_what_their_functions_say():
    t, y = clusters(1, d=2)
    pairs = [
        (Binned(-5, 5, 12), estimators.binned_mi(t, y, estimators.fixed_edges(-5, 5, 12))),
        (AdaptiveBinned(9), estimators.binned_mi(t, y, estimators.ebab_edges(t, 9))),
        (KDE(0.4, "lower"), estimators.kde_mi(t, y, 0.4, "lower")),
        (AdaptiveKDE(s0=0.1, scaling="max2"), estimators.akde_mi(t, y, 0.1, "max2")),
    ]
    for estimator, expected in pairs:
        assert estimator.mutual_information(t, y) == pytest.approx(expected)
    assert not AdaptiveBinned(distinct_limit=50).edges(t).exact
    assert DiffusionSpectral(sigma=None).entropy(t) == pytest.approx(
        diffusion_spectral_entropy(t, sigma=suggest_sigma(t))
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 3])
def test_nearest_neighbours_are_scikit_learn_s_for_one_unit(seed, k):
    t, y = clusters(seed, 200, 1, 1.5)
    t = t / t.std()  # scikit-learn rescales and adds noise of 1e-10
    expected = mutual_info_classif(t, y, n_neighbors=k, discrete_features=False, random_state=0)[0] / np.log(2)
    assert max(KNN(k).mutual_information(t, y).i_ty, 0) == pytest.approx(expected, abs=1e-3)


def test_nearest_neighbour_entropy_of_a_gaussian_is_its_closed_form():
    t = np.random.default_rng(0).standard_normal((4000, 2)) * [1.0, 3.0]
    exact = 0.5 * np.log2((2 * np.pi * np.e) ** 2 * 9)
    assert KNN().entropy(t) == pytest.approx(exact, abs=0.08)


def test_chance_is_the_exact_expectation_over_permutations():
    draw = np.random.default_rng(0)
    t, y = draw.integers(0, 4, (300, 2)).astype(float), draw.integers(0, 5, 300)
    found = label_information(t, y, Binned(0, 3, 4), n_permutations=400)
    symbols = estimators.row_symbols(t, estimators.fixed_edges(0, 3, 4))
    exact = expected_mutual_information(contingency_matrix(symbols, y, sparse=True), 300) / np.log(2)
    error = found.null.std() / np.sqrt(400)
    assert found.null.mean() == pytest.approx(exact, abs=4 * error)
    summary = found.summary()
    assert abs(summary["bits_above_chance"]) < 4 * summary["chance_spread"]
    assert summary["p_value"] > 0.01
    assert next(iter(summary)) == "bits_above_chance"


def test_labels_that_are_there_are_found_and_named():
    t, y = clusters(2, 300, 1, 20.0)
    found = label_information(t, y, AdaptiveBinned(6))
    assert found.label_entropy == pytest.approx(np.log2(3))
    assert found.summary()["bits_above_chance"] > 1.2
    assert found.summary()["p_value"] == pytest.approx(1 / 101)
    assert "above chance" in found.paragraph()
    assert "saturated" not in found.paragraph()


def test_a_wide_layer_is_called_saturated():
    t, y = np.random.default_rng(0).standard_normal((200, 50)), np.arange(200) % 4
    found = label_information(t, y)
    assert found.saturated
    assert found.summary()["saturated"] == 1.0
    assert found.summary()["bits_above_chance"] == pytest.approx(0, abs=1e-9)
    assert "It is saturated" in found.paragraph()


@pytest.mark.parametrize("estimator", [KDE(1.0), DiffusionSpectral(2.0), KNN()], ids=lambda each: each.name)
def test_other_estimators_go_through_the_lens(estimator):
    t, y = clusters(0, 60, 2)
    found = label_information(t, y, estimator, n_permutations=5)
    assert found.estimator == estimator.name
    assert found.summary()["bits_above_chance"] > 0.3
    assert found.context.options["n_permutations"] == 5
    assert all(np.isfinite(value) for value in found.summary().values())


def test_edges_from_a_sample_of_the_values_are_told():
    t, y = clusters(0)
    found = label_information(t, y, AdaptiveBinned(distinct_limit=40))
    assert not found.exact
    assert "sample of the different values" in found.paragraph()


def test_bad_input_is_refused():
    t, y = clusters(0)
    wide = np.zeros((10_001, 1)) + np.arange(10_001)[:, None]
    for call, words in (
        (lambda: label_information(t, 0 * y), "all labels are equal"),
        (lambda: label_information(t, y, n_permutations=1), "n_permutations is 1"),
        (lambda: label_information(t, y, "nsb"), "there is no estimator 'nsb'"),
        (lambda: label_information(t[:3], y[:3]), "at least 4"),
        (lambda: KNN().mutual_information(np.repeat(t, 2, 0), np.repeat(y, 2)), "equal rows"),
        (lambda: KNN(k=90).entropy(t), "1 <= k < samples"),
        (lambda: KNN().entropy(wide), "takes at most 10000"),
        (lambda: DiffusionSpectral().entropy(wide), "takes at most 2000"),
        (
            lambda: KDE(limit=None).mutual_information(np.zeros((20_001, 1)), np.arange(20_001) % 2),
            "takes at most 20000",
        ),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_labels_of_any_names_are_classes():
    t, y = clusters(0)
    assert label_information(torch.tensor(t), torch.tensor(y * 7 - 3)) == label_information(t, y)
