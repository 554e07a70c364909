"""Tables of distances and their rank correlation, beside scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from netloupe.core.errors import InputError
from netloupe.lenses.similarity.rsa import MAX_SAMPLES, rsa


@pytest.mark.parametrize("seed", range(3))
def test_scipy_gives_the_same(seed: int):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((60, 9)) + 30
    y = x[:, :4] ** 2 + 20 * rng.standard_normal((60, 4))
    for metric in ("euclidean", "correlation"):
        wanted = spearmanr(pdist(x, metric), pdist(y, metric))[0]
        assert rsa(x, y, metric=metric).correlation == pytest.approx(wanted, abs=1e-8)


def test_ties_share_their_rank():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 2, (50, 3)).astype(float), rng.integers(0, 2, (50, 4)).astype(float)
    assert rsa(x, y).correlation == pytest.approx(spearmanr(pdist(x), pdist(y))[0], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_itself_turned_and_something_else(seed: int):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((80, 6))
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    assert rsa(x, x).correlation == pytest.approx(1, abs=1e-12)
    assert rsa(x, 3 * x @ turn + 2).correlation == pytest.approx(1, abs=1e-6)
    found = rsa(x, rng.standard_normal((80, 6)))
    assert abs(found.correlation) < 4 * found.standard_error + 0.02


def test_the_standard_error_is_the_jackknife_and_close_to_the_spread():
    rng = np.random.default_rng(1)
    mix = rng.standard_normal((5, 5))
    found, errors = [], []
    for _ in range(150):
        x = rng.standard_normal((60, 5))
        one = rsa(x, x @ mix + rng.standard_normal((60, 5)))
        found.append(one.correlation)
        errors.append(one.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.25)


def test_bad_input_is_one_sentence():
    x = np.random.default_rng(0).standard_normal((10, 3))
    flat = x.copy()
    flat[2] = 1
    cases = [
        lambda: rsa(x, x[:9]),
        lambda: rsa(x[:3], x[:3]),
        lambda: rsa(x, np.ones((10, 2))),
        lambda: rsa(np.eye(10), x),
        lambda: rsa(x, x, metric="city"),  # type: ignore[arg-type]
        lambda: rsa(flat, flat, metric="correlation"),
        lambda: rsa(np.zeros((MAX_SAMPLES + 1, 1)), np.zeros((MAX_SAMPLES + 1, 1))),
    ]
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)
