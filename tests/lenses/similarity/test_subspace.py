"""Canonical correlations and Procrustes beside scikit-learn, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.cross_decomposition import CCA as ScikitCCA

from netloupe.core.errors import InputError
from netloupe.lenses.similarity.subspace import canonical, cca, procrustes, white


@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_scikit_learns(seed: int):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, 5)) @ rng.standard_normal((5, 5))
    y = x[:, :3] @ rng.standard_normal((3, 4)) + rng.standard_normal((300, 4))
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    one, two = white(centred_x.T @ centred_x), white(centred_y.T @ centred_y)
    found = canonical(one, two, centred_x.T @ centred_y, 300)
    a, b = ScikitCCA(4, max_iter=100_000, tol=1e-12).fit(x, y).transform(x, y)
    wanted = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(4)]
    np.testing.assert_allclose(found.correlations, wanted, atol=1e-4)
    np.testing.assert_allclose(
        [np.corrcoef(centred_x @ found.axes_a[:, i], centred_y @ found.axes_b[:, i])[0, 1] for i in range(4)],
        found.correlations, atol=1e-9,
    )  # fmt: skip


def test_any_linear_map_is_the_same_and_small_directions_are_cut():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6))
    found = cca(x, x @ rng.standard_normal((6, 6)))
    assert found.correlations[: min(found.n_kept)] == pytest.approx(1, abs=0.2)
    assert cca(x, x @ np.diag([1, 2, 3, 2, 1, 1])).mean == pytest.approx(1)
    tiny = np.hstack([x, 1e-3 * rng.standard_normal((500, 3))])
    assert cca(tiny, x).n_kept == (6, 6)


def test_unrelated_sites_are_at_the_chance_level():
    rng = np.random.default_rng(0)
    made = [cca(rng.standard_normal((200, 12)), rng.standard_normal((200, 8))) for _ in range(60)]
    squared = np.array([one.mean_squared for one in made])
    assert abs(squared.mean() - made[0].chance) < 4 * squared.std() / np.sqrt(60)


def test_projection_weights_favour_what_the_first_site_consists_of():
    rng = np.random.default_rng(0)
    shared, own = rng.standard_normal((2, 400, 1))
    x = np.hstack([shared + 0.01 * rng.standard_normal((400, 8)), own])
    y = np.hstack([shared, rng.standard_normal((400, 1))])
    found = cca(x, y)
    assert found.weighted > found.mean + 0.2


@pytest.mark.parametrize("seed", range(3))
def test_procrustes_is_scipys(seed: int):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((80, 6)) + 3, rng.standard_normal((80, 6)) * 4
    x_, y_ = ((one - one.mean(0)) / np.linalg.norm(one - one.mean(0)) for one in (x, y))
    assert procrustes(x, y).similarity == pytest.approx(orthogonal_procrustes(x_, y_)[1])
    assert procrustes(x, y[:, :2]).similarity == pytest.approx(
        procrustes(x, np.hstack([y[:, :2], np.zeros((80, 4))])).similarity
    )
    angles = [procrustes(*pair).angle for pair in ((x, y), (y, x**2), (x, x**2))]
    assert angles[2] <= angles[0] + angles[1] + 1e-9, "a distance keeps the triangle inequality"


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda x: cca(x[:12], x[:12, ::-1] + 1), "by counting alone"),
        (lambda x: cca(x, np.ones((50, 2))), "same for every sample"),
        (lambda x: procrustes(x, np.ones((50, 2))), "same for every sample"),
        (lambda x: procrustes(x, x[:40]), "40"),
        (lambda x: cca(x[:1], x[:1]), "at least 2"),
        (lambda x: cca(x * np.nan, x), "nan"),
    ],
)
def test_bad_input_is_one_sentence(ask, sentence: str):
    with pytest.raises(InputError, match=sentence):
        ask(np.random.default_rng(0).standard_normal((50, 8)))
