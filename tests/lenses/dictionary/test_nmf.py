"""Non-negative dictionaries, what atoms are like, and their groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import NMF

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.dictionary.nmf import NonNegativeDictionary, hoyer, meta_features


def planted(seed: int, n_atoms: int = 4, n_units: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sparse codes of atoms on disjoint units: the factors are then unique up to scale and order."""
    rng = np.random.default_rng(seed)
    codes = rng.exponential(size=(300, n_atoms)) * (rng.random((300, n_atoms)) < 0.4)
    atoms = np.zeros((n_atoms, n_units))
    for index in range(n_atoms):
        atoms[index, 3 * index : 3 * index + 3] = rng.uniform(0.5, 1.5, 3)
    return codes, atoms, codes @ atoms


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"batch_size": 64, "max_iter": 800}])
def test_planted_atoms_are_found(seed: int, options: dict):
    codes, atoms, features = planted(seed)
    model = NonNegativeDictionary(4, **options).fit(features)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (model.components_, atoms)]
    match = linear_sum_assignment(-(unit[0] @ unit[1].T))
    assert (unit[0] @ unit[1].T)[match].min() > 0.98
    assert model.reconstruction_ > 0.98
    found = model.transform(features)[:, match[0]]
    assert min(np.corrcoef(found[:, k], codes[:, match[1][k]])[0, 1] for k in range(4)) > 0.98
    np.testing.assert_allclose(model.decode(model.encode(features)), features, atol=0.15 * features.max())


def test_it_is_scikit_learns_and_exact_codes_are_at_least_as_good():
    _, _, features = planted(0)
    features = features + 0.05 * np.random.default_rng(1).random(features.shape)
    ours = NonNegativeDictionary(5, random_state=2).fit(features)
    peer = NMF(5, init="nndsvda", max_iter=400, random_state=2).fit(features)
    np.testing.assert_allclose(ours.components_, peer.components_, rtol=1e-6)
    np.testing.assert_allclose(ours.transform(features[:9]), peer.transform(features[:9]), rtol=1e-6)
    exact = NonNegativeDictionary(5, solver="nnls", random_state=2).fit(features)
    errors = [((features - one.decode(one.transform(features))) ** 2).sum() for one in (exact, ours)]
    assert errors[0] <= errors[1] * (1 + 1e-6)
    assert (exact.transform(features) >= 0).all()


def test_more_atoms_than_units_and_a_tensor():
    _, _, features = planted(0, n_units=12)
    model = NonNegativeDictionary(20, max_iter=50).fit(torch.tensor(features))
    assert model.components_.shape == (20, 12)
    assert model.fit_transform(features).shape == (300, 20)


def test_hoyer_and_groups():
    np.testing.assert_allclose(hoyer(np.array([[0, 3.0, 0, 0], [2, 2, 2, 2]])), [1, 0], atol=1e-12)
    assert np.isnan(hoyer(np.zeros((1, 4)))).all()
    rng = np.random.default_rng(0)
    centres = 10 * rng.random((3, 5))
    atoms = np.repeat(centres, 6, axis=0) + 0.01 * rng.random((18, 5))
    complexity = np.repeat([0.7, 0.1, 0.4], 6)
    complexity[0] = np.nan
    found = meta_features(atoms, complexity, 3)
    np.testing.assert_allclose(found.complexity, [0.1, 0.4, 0.7])
    np.testing.assert_array_equal(found.groups, np.repeat([2, 0, 1], 6))


def test_refusals():
    features = np.abs(np.random.default_rng(0).standard_normal((20, 4)))
    for bad, words in [
        (lambda: NonNegativeDictionary(2).fit(features - 1), "behind a rectifier"),
        (lambda: NonNegativeDictionary(0).fit(features), "n_atoms is 0"),
        (lambda: NonNegativeDictionary(2, solver="guess").fit(features), "descent or nnls"),  # type: ignore[arg-type]
        (lambda: NonNegativeDictionary(2).fit(np.zeros((5, 3))), "all activations are 0"),
        (lambda: NonNegativeDictionary(2).fit(features).transform(features[:, :3]), "the dictionary 4"),
        (lambda: NonNegativeDictionary(2).fit(features[:0]), "at least one sample"),
        (lambda: hoyer(np.ones((3, 1))), "at least 2"),
        (lambda: meta_features(features, np.ones(20), 21), "at most as many groups"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(NonFiniteError):
        NonNegativeDictionary(2).fit(np.where(np.eye(20, 4) > 0, np.nan, features))
