"""V-information and feature complexity: closed forms, the peer, streaming, leaks, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.preprocessing import StandardScaler

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.store import SiteSpec, Store, StoreWriter
from netloupe.lenses.information import readability
from netloupe.lenses.information.readability import linear_readability
from netloupe.lenses.information.vinfo import (
    RidgeGram,
    feature_complexity,
    temporal_score,
    v_information,
)


def masks(n: int, n_test: int) -> tuple[np.ndarray, np.ndarray]:
    fitted = np.arange(n) < n - n_test
    return fitted, ~fitted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alpha", [0.1, 1.0, 30.0])
def test_same_as_separate_ridge_fits(seed: int, alpha: float):
    rng = np.random.default_rng(seed)
    x, z = rng.standard_normal((90, 7)) * [1, 5, 0.1, 1, 1, 2, 3] + 10, rng.standard_normal((90, 4))
    z += x @ rng.standard_normal((7, 4))
    scaler = StandardScaler().fit(x[:60])
    expected = [Ridge(alpha).fit(scaler.transform(x[:60]), z[:60, k]) for k in range(4)]
    predicted = np.stack([one.predict(scaler.transform(x[60:])) for one in expected], 1)
    share = 1 - ((z[60:] - predicted) ** 2).sum(0) / ((z[60:] - z[:60].mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(v_information(x, z, alpha=alpha, split=masks(90, 30), clip=False), share, rtol=1e-9)


def test_without_a_penalty_it_is_least_squares_and_in_sample_the_explained_variance():
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((200, 5)), rng.standard_normal((200, 3))
    z += x[:, :3]
    gram = RidgeGram(0.0).partial_fit(x, z)
    peer = LinearRegression().fit(x, z)
    np.testing.assert_allclose(gram.weights[0], peer.coef_.T, atol=1e-10)
    explained = gram.score(x, z) * z.var(0)  # what seeing the layer takes off the variance
    np.testing.assert_allclose(explained, z.var(0) - ((z - peer.predict(x)) ** 2).mean(0), atol=1e-10)
    np.testing.assert_allclose(RidgeGram(1e-9).partial_fit(x, z).score(x, z), gram.score(x, z), atol=1e-8)
    origin = RidgeGram(0.0, center=False).partial_fit(x + 3, z)
    np.testing.assert_allclose(
        origin.weights[0], LinearRegression(fit_intercept=False).fit(x + 3, z).coef_.T, atol=1e-10
    )


@pytest.mark.parametrize(("seed", "first"), [(0, 1), (1, 3), (2, 5)])
def test_a_feature_that_appears_at_layer_m_has_complexity_m_minus_one_over_n(seed: int, first: int):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((3000, 2))
    layers = {
        f"layer {place}": rng.standard_normal((3000, 4)) if place < first else z @ rng.standard_normal((2, 4)) + 2
        for place in range(1, 6)
    }
    found = feature_complexity(layers, z, alpha=1e-6)
    np.testing.assert_allclose(found.complexity, (first - 1) / 5, atol=0.01)
    assert found.layers == tuple(layers)
    last = (first - 1) / 4 if first < 5 else 1.0
    np.testing.assert_allclose(found.without_last, last, atol=0.01)
    late = temporal_score(dict(enumerate(layers.values())), z, alpha=1e-6)
    np.testing.assert_array_equal(late.complexity, found.complexity)
    assert late.layers == ("0", "1", "2", "3", "4")


def test_noise_and_parity_have_their_closed_forms():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((20_000, 3))
    for share in (0.2, 0.7):
        z = np.sqrt(share) * x[:, 0] + np.sqrt(1 - share) * rng.standard_normal(20_000)
        assert v_information(x, z) == pytest.approx([share], abs=0.03)
    signs = rng.choice([-1.0, 1.0], (4000, 2))
    parity = signs.prod(1)
    assert v_information(signs, parity) == pytest.approx([0.0], abs=0.01)
    assert v_information(np.column_stack([signs, parity]), parity) == pytest.approx([1.0], abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60))
def test_merging_in_parts_is_fitting_at_once(seed: int, cut: int):
    rng = np.random.default_rng(seed)
    x, z = rng.standard_normal((60, 5)) + 100, rng.standard_normal((60, 3))
    whole = RidgeGram().partial_fit(x, z)
    merged = RidgeGram().partial_fit(x[:cut], z[:cut]).merge(RidgeGram().partial_fit(x[cut:], z[cut:]))
    np.testing.assert_allclose(merged.weights[0], whole.weights[0], atol=1e-9)
    assert merged.n_samples == 60


def test_scale_of_units_and_features_does_not_matter():
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((100, 6)), rng.standard_normal((100, 3))
    z[:, 0] += x[:, 0]
    found = v_information(x, z, clip=False)
    np.testing.assert_allclose(v_information(x * 10.0 ** np.arange(6) + 5, 1e3 * z - 7, clip=False), found, rtol=1e-8)
    np.testing.assert_allclose(v_information(torch.tensor(x), torch.tensor(z), clip=False), found, rtol=1e-12)


def test_judged_samples_are_not_used_in_the_fit():
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((80, 4)), rng.standard_normal((80, 2))
    split = masks(80, 20)
    gram = RidgeGram().partial_fit(x[:60], z[:60])
    np.testing.assert_allclose(v_information(x, z, split=split, clip=False), gram.score(x[60:], z[60:]), rtol=1e-10)
    doubled = z.copy()
    doubled[60:] *= 2  # a change of what is judged changes the score, and not the fit
    np.testing.assert_allclose(
        v_information(x, doubled, split=split, clip=False), gram.score(x[60:], doubled[60:]), rtol=1e-10
    )


def test_wide_layers_get_nothing_for_free():
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((120, 85)), rng.standard_normal((120, 20))
    inside = RidgeGram().partial_fit(x[:90], z[:90]).score(x[:90], z[:90])
    assert inside.mean() > 0.8
    assert v_information(x, z, clip=False).mean() < 0.05
    assert v_information(x, z).min() == 0


def test_constant_features_have_no_complexity_and_it_is_said():
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((100, 4)), rng.standard_normal((100, 3))
    z[:, 1] = 0.3
    found = feature_complexity({"a": x, "b": x + z[:, :1]}, z)
    assert np.isnan(found.complexity[1])
    assert found.n_constant == 1
    assert "1 features do not vary" in found.paragraph()
    assert np.isfinite(list(found.summary().values())).all()
    constant_layer = feature_complexity({"a": np.ones((100, 2))}, z[:, :1])
    assert constant_layer.complexity == pytest.approx([1.0], abs=0.05)
    with pytest.raises(InputError, match="no feature varies"):
        feature_complexity({"a": x}, np.ones((100, 2)))


def test_stored_sites_larger_than_a_batch(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((300, 5)))
    z = x[:, :2] + 0.1 * torch.from_numpy(rng.standard_normal((300, 2)))
    with StoreWriter(tmp_path / "s", {"x": SiteSpec.like(x), "z": SiteSpec.like(z)}, rows_per_shard=32) as writer:
        for start in range(0, 300, 50):
            writer.append({"x": x[start : start + 50], "z": z[start : start + 50]})
    store = Store(tmp_path / "s")
    np.testing.assert_allclose(v_information(store["x"], store["z"]), v_information(x, z), rtol=1e-10)


def test_the_lens_and_its_limit_on_width(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 6))
    other = np.column_stack([x @ rng.standard_normal((6, 3)), rng.standard_normal((200, 3))])
    found = linear_readability(x, other)
    assert found.per_unit[:3].min() > 0.99
    assert found.per_unit[3:].max() < 0.1
    assert found.summary()["readable_half"] == 0.5
    assert linear_readability(other, x).summary()["readable"] < 0.8
    monkeypatch.setattr(readability, "MOST_UNITS", 4)
    narrow = linear_readability(x, other)
    assert narrow.per_unit.shape == (4,)
    assert narrow == linear_readability(x, other)
    with pytest.raises(InputError, match="later site is the same"):
        linear_readability(x, np.ones((200, 2)))


def test_refusals():
    x, z = torch.randn(60, 4), torch.randn(60, 2)
    for bad, words in [
        (lambda: RidgeGram(-1.0), "alpha is -1"),
        (lambda: v_information(torch.randn(60, 50), z, alpha=0.0), "every feature would be explained"),
        (lambda: v_information(x[:30], z[:30]), "at least 2 and 10"),
        (lambda: v_information(x, z[:50]), "same samples"),
        (lambda: v_information(x, z, split=1.5), "split is 1.5"),
        (lambda: v_information(x, z, split=(np.ones(60, bool), np.ones(60, bool))), "both fitted and judged"),
        (lambda: v_information(x, z, split=(np.ones(9, bool), np.ones(9, bool))), "two bool arrays"),
        (lambda: v_information(torch.randn(60, 4, 2), z), "expected"),
        (lambda: feature_complexity({}, z), "no layers"),
        (lambda: RidgeGram().merge(RidgeGram(2.0)), "cannot be merged"),
        (lambda: RidgeGram().partial_fit(x, z).score(x[:, :3], z), "the fit has 4"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(NonFiniteError):
        v_information(x.masked_fill(torch.eye(60, 4).bool(), float("nan")), z)
