"""Label sharpness and the law of generalisation: closed forms, brute force, planted lines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.data.sharp_manifolds import manifold_dataset
from netloupe.lenses.geometry.label_sharpness import compare_sharpness, label_sharpness
from netloupe.lenses.geometry.scaling import fit_generalisation_law, rank_correlation


@pytest.mark.parametrize("step", [0.1, 1.0, 7.5])
def test_an_xor_grid_has_one_over_its_step(step: float):
    i, j = (axis.ravel() for axis in np.meshgrid(np.arange(6), np.arange(6)))
    found = label_sharpness(step * np.stack([i, j], 1), (i + j) % 2)
    assert found.sharpness == pytest.approx(1 / step)
    assert found.without_pair == pytest.approx(1 / step)


def test_two_points_and_the_pair():
    rng = np.random.default_rng(0)
    x = 100 * rng.standard_normal((50, 3))
    y = np.arange(50) % 2
    x[7] = x[12] + [0.3, 0, 0.4]
    y[7] = 1 - y[12]
    found = label_sharpness(x, y)
    assert found.sharpness == pytest.approx(2.0)
    assert set(found.pair) == {7, 12}
    rest = np.delete(np.arange(50), [7, 12])
    assert found.without_pair == pytest.approx(label_sharpness(x[rest], y[rest]).sharpness)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([("l2", "euclidean"), ("l1", "cityblock"), ("linf", "chebyshev")]))
def test_brute_force(seed: int, metric: tuple[str, str]):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((30, 4)), rng.integers(0, 3, 30)
    found = label_sharpness(x, y, metric=metric[0])  # type: ignore[arg-type]
    one, two = np.triu_indices(30, 1)
    differs = y[one] != y[two]
    ratios = 1 / pdist(x, metric[1])[differs]  # type: ignore[call-overload]
    assert found.sharpness == pytest.approx(ratios.max())
    assert found.quantiles[:, 1] == pytest.approx(np.quantile(ratios, found.quantiles[:, 0]))
    assert found.relative == pytest.approx(np.median(1 / ratios) * ratios.max())
    assert label_sharpness(2 * x, y, metric=metric[0]).sharpness == pytest.approx(found.sharpness / 2)  # type: ignore[arg-type]
    amounts = rng.standard_normal(30)
    numeric = label_sharpness(x, amounts, metric=metric[0], numeric=True)  # type: ignore[arg-type]
    assert numeric.sharpness == pytest.approx((pdist(amounts[:, None]) / pdist(x, metric[1])).max())  # type: ignore[call-overload]
    two_classes = label_sharpness(x, y % 2, numeric=True)
    assert two_classes.sharpness == pytest.approx(label_sharpness(x, y % 2).sharpness)


def test_it_rises_with_samples_and_with_the_frequency_of_labels():
    data = manifold_dataset(2000, 4, sharpness=3)
    few, many = (label_sharpness(data.x, data.y, n) for n in (200, 2000))
    assert few.sharpness < many.sharpness
    assert many.half <= many.sharpness
    assert few.n_samples == 200
    means = [
        np.mean(
            [label_sharpness((d := manifold_dataset(600, 4, sharpness=f, seed=s)).x, d.y).sharpness for s in range(4)]
        )
        for f in (1, 4, 12)
    ]
    assert means == sorted(means)
    one, two = (label_sharpness(data.x, data.y, 500, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one.quantiles, two.quantiles)


def test_identical_images_with_two_labels_are_reported():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 3))
    found = label_sharpness(np.concatenate([x, x[:5]]), np.concatenate([np.arange(20) % 2, 1 - np.arange(5) % 2]))
    assert found.n_equal == 5
    assert np.isfinite(found.sharpness)
    assert "identical" in found.paragraph()
    single = x.astype(np.float32)
    rounded = np.float32(1 / 3) * (np.float32(3) * single[:5])
    near = label_sharpness(np.concatenate([single, rounded]), np.concatenate([np.arange(20) % 2, 1 - np.arange(5) % 2]))
    assert near.n_equal == 5
    assert near.sharpness < 100


def test_comparison_warns_of_another_footing():
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 4)), np.arange(60) % 2
    one, scaled, few = label_sharpness(x, y), label_sharpness(255 * x, y), label_sharpness(x[:30], y[:30])
    assert compare_sharpness({"a": one, "b": one}) == {"a": one.sharpness, "b": one.sharpness}
    with pytest.warns(UserWarning, match="ranges of values"):
        compare_sharpness({"a": one, "b": scaled})
    with pytest.warns(UserWarning, match="numbers of samples"):
        compare_sharpness({"a": one, "b": few})
    with pytest.raises(InputError):
        compare_sharpness({"a": one})


def test_sharpness_refuses():
    x, y = np.random.default_rng(0).random((20, 3)), np.arange(20) % 2
    cases = [
        lambda: label_sharpness(x, np.zeros(20, int)), lambda: label_sharpness(np.ones((20, 3)), y), lambda: label_sharpness(x, y, 3),
        lambda: label_sharpness(x, y, metric="cosine"), lambda: label_sharpness(x, y, quantile=1.0),  # type: ignore[arg-type]
        lambda: label_sharpness(x, None), lambda: label_sharpness(x, y[:-1], numeric=True), lambda: label_sharpness(x, y, 10**6),
    ]  # fmt: skip
    for case in cases:
        with pytest.raises(InputError):
            case()


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_law_is_found(seed: int):
    rng = np.random.default_rng(seed)
    n, d = (axis.ravel() for axis in np.meshgrid([100, 300, 1000], [2.0, 4.0, 8.0, 16.0]))
    domain = np.where(np.arange(len(n)) % 2, "medical", "natural")
    log_loss = -1.3 * np.log(n) / d + np.where(domain == "medical", 0.7, 0.2)
    exact = fit_generalisation_law(np.exp(log_loss), n, d, domain.tolist())
    assert exact.slope == pytest.approx(-1.3)
    assert exact.r2 == pytest.approx(1)
    assert exact.summary()["largest_gap"] == pytest.approx(0.5)
    noisy = fit_generalisation_law(np.exp(log_loss + 0.1 * rng.standard_normal(len(n))), n, d, domain.tolist())
    assert abs(noisy.slope + 1.3) < 4 * noisy.slope_error
    assert abs(noisy.summary()["largest_gap"] - 0.5) < 4 * noisy.summary()["gap_error"]
    line = fit_generalisation_law(np.exp(0.2 * d - 3 * (n > 200)), n, d)
    assert line.per_dimension[0] == pytest.approx(0.2)


def test_the_law_refuses():
    n, d, loss = [100, 200, 300, 400], [2, 4, 2, 4], [0.1, 0.2, 0.3, 0.4]
    cases = [
        lambda: fit_generalisation_law(loss, n[:3], d), lambda: fit_generalisation_law([0, *loss[1:]], n, d),
        lambda: fit_generalisation_law(loss, [100] * 4, [2] * 4), lambda: fit_generalisation_law(loss, n, d, list("abcd")),
        lambda: fit_generalisation_law(loss, n, d, ["a"]), lambda: rank_correlation([1], [2]), lambda: rank_correlation([1, 2], [1, 2, 3]),
    ]  # fmt: skip
    for case in cases:
        with pytest.raises(InputError):
            case()
    with pytest.raises(NonFiniteError):
        fit_generalisation_law([np.nan, *loss[1:]], n, d)
    assert rank_correlation([1, 2, 3], [5, 6, 9]) == 1
    assert rank_correlation([1, 2, 3], [5, 5, 5]) == 0
