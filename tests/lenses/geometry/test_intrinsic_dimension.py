"""Intrinsic dimensions beside closed forms, the published code's numbers and scikit-dimension's."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.neighbours import nearest
from netloupe.data.sharp_manifolds import flat_samples
from netloupe.lenses.geometry.geomle import geomle_dimension
from netloupe.lenses.geometry.intrinsic_dimension import intrinsic_dimension, mle_dimension, twonn_dimension


def bent(seed: int, n: int = 300, d: int = 4, ambient: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, d))
    return np.tanh(z @ rng.standard_normal((d, ambient))) + 0.01 * rng.standard_normal((n, ambient))


# The published estimators, which compute in float32: mean of 1/inv at k = 20; 1/mean inv at k = 20 and at k = 10; TwoNN; GeoMLE
# with 20 sets drawn by RandomState(7).
PUBLISHED = {
    0: (3.1457035541534424, 2.7922251224517822, 2.7661871910095215, 3.291050772054389, 3.3741639257923493),
    1: (3.3758578300476074, 3.041806936264038, 3.012547492980957, 4.412684622990367, 4.385147586428622),
    2: (3.190798044204712, 2.8977630138397217, 2.988422155380249, 3.9399711262069457, 3.8074745696019865),
}
# scikit-dimension 0.5.0: MLE(K=20) and TwoNN(discard_fraction=0.1)
SKDIM = {
    0: (2.9473488147653377, 3.070956211795405),
    1: (3.2107961237774236, 4.096618365311051),
    2: (3.058749569015159, 3.708785035479147),
}


@pytest.mark.parametrize("seed", PUBLISHED)
def test_published_numbers(seed: int):
    x = bent(seed)
    found = (
        mle_dimension(x, average="mean", norm="k-2").value,
        mle_dimension(x, norm="k-2").value,
        mle_dimension(x, 10, norm="k-2").value,
        twonn_dimension(x).value,
        geomle_dimension(x, random_state=7, official=True).value,
    )
    assert found == pytest.approx(PUBLISHED[seed], rel=2e-6)
    assert geomle_dimension(x, random_state=7).value == pytest.approx(found[-1], rel=0.1)
    mle, twonn = SKDIM[seed]
    assert mle_dimension(x).value == pytest.approx(mle, rel=1e-12)
    assert twonn_dimension(x, discard=0.1).value == pytest.approx(twonn, rel=1e-12)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_logarithms_of_distances_have_the_expectation_of_a_poisson_process(d: int):
    """Anchors well inside a cube: E log(T_k / T_j) = (psi(k) - psi(j)) / d, and ratios of the first two are Pareto."""
    x = flat_samples({1: 20_000, 2: 20_000, 5: 40_000}[d], d, d, "cube")
    inner = np.flatnonzero(np.abs(x).max(1) < 0.7 if d < 3 else np.abs(x @ np.eye(d)).max(1) < 0.6)[:1500]
    logs = np.log(nearest(x, 10, inner).distances)
    for j in (1, 3, 7):
        gap = logs[:, 9] - logs[:, j - 1]
        assert abs(gap.mean() - (digamma(10) - digamma(j)) / d) < 5 * gap.std() / len(gap) ** 0.5
    for norm, factor in (("k-1", 1.0), ("k-2", 8 / 9)):
        found = mle_dimension(x, 10, norm=norm, anchors=inner)  # type: ignore[arg-type]
        assert found.value == pytest.approx(d * factor, rel=0.05)
    assert mle_dimension(x, 10, "mean", "k-2", inner).value == pytest.approx(d, rel=0.06)
    for found in (twonn_dimension(x, "mle", anchors=inner), twonn_dimension(x, anchors=inner)):
        assert found.value == pytest.approx(d, rel=0.12)
        assert found.low < d * 1.05
        assert found.high > d * 0.95


def test_the_mle_of_twonn_is_its_closed_form():
    x = flat_samples(400, 3, 8, "ball")
    t = nearest(x, 2).distances
    mu = t[:, 1] / t[:, 0]
    assert twonn_dimension(x, "mle", 0).value == pytest.approx(400 / np.log(mu).sum(), rel=1e-12)
    ordered = np.log(np.sort(mu))[:-1]
    height = -np.log(1 - np.arange(1, 400) / 400)
    assert twonn_dimension(x).value == pytest.approx(
        np.linalg.lstsq(ordered[:, None], height, rcond=None)[0][0], rel=1e-9
    )


@pytest.mark.parametrize("seed", range(2))
def test_known_dimensions(seed: int):
    for d in (2, 5):
        for shape in ("gaussian", "ball"):
            x = flat_samples(1000, d, 60, shape, seed)
            for found in (mle_dimension(x), twonn_dimension(x), geomle_dimension(x[:600])):
                assert found.value == pytest.approx(d, rel=0.2)
                assert found.low <= found.value <= found.high
    high = mle_dimension(flat_samples(500, 40, 60, seed=seed))
    assert high.value < 25
    assert "lower bound" in high.warning
    assert not mle_dimension(flat_samples(1000, 5, 60, seed=seed)).warning


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_turning_moving_and_scaling_change_nothing(seed: int):
    rng = np.random.default_rng(seed)
    x = bent(seed, 80)
    turn = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    other = 10.0 ** rng.integers(-3, 4) * x[rng.permutation(80)] @ turn + rng.standard_normal(12)
    for estimate in (mle_dimension, twonn_dimension):
        assert estimate(other).value == pytest.approx(estimate(x).value, rel=1e-6)


def test_duplicates_are_counted_removed_moved_or_refused():
    x = bent(0)
    twice = np.concatenate([x, x[:30], x[:30]])
    found = mle_dimension(twice)
    assert found.value == pytest.approx(mle_dimension(x).value, rel=1e-12)
    assert found.n_duplicates == 60
    assert "60 samples equal another" in found.paragraph()
    assert twonn_dimension(twice).n_duplicates == 60
    moved = mle_dimension(twice, duplicates="jitter")
    assert moved.n_samples == 360
    assert np.isfinite(moved.value)
    with pytest.raises(InputError, match="equal another"):
        mle_dimension(twice, duplicates="refuse")
    zeros = np.concatenate([x, np.zeros((300, 3)), -np.zeros((300, 1))], 1)  # units that never fire
    assert mle_dimension(zeros).value == pytest.approx(found.value, rel=1e-12)
    assert mle_dimension(zeros).n_units == 12


def test_samples_that_differ_by_rounding_alone_are_equal():
    x = bent(1).astype(np.float32)
    again = np.float32(1 / 3) * (np.float32(3) * x[:50])
    assert (again != x[:50]).any()
    found, plain = mle_dimension(np.concatenate([x, again])), mle_dimension(x)
    assert found.value == pytest.approx(plain.value, rel=1e-12)
    assert found.n_duplicates == 50
    assert twonn_dimension(np.concatenate([x, again])).value == pytest.approx(twonn_dimension(x).value, rel=1e-12)
    mixed = mle_dimension(np.concatenate([x, again]), anchors=[3, 5, 320])
    assert mixed.n_duplicates >= 2
    with pytest.raises(InputError, match="up to rounding"):
        mle_dimension(np.concatenate([x, again[(again != x[:50]).any(1)]]), duplicates="refuse")


def test_the_lens_has_both_estimates_from_one_search():
    x = bent(3)
    found = intrinsic_dimension(x)
    assert found.value == pytest.approx(mle_dimension(x).value, rel=1e-12)
    assert found.second == pytest.approx(twonn_dimension(x).value, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((mle_dimension(x).low, mle_dimension(x).high))
    assert found.curve[-1].tolist() == [20, found.value]
    assert intrinsic_dimension(x[:8]).k == 7


def test_ten_thousand_samples_are_cheap_with_anchors():
    x = np.random.default_rng(0).standard_normal((10_000, 64)).astype(np.float32)
    mle_dimension(x[:100], anchors=50)
    started = time.process_time()
    some = mle_dimension(x, anchors=500)
    assert time.process_time() - started < 10  # a few tenths of a second where the machine is free
    assert some.n_samples == 10_000
    assert some.low < some.value < some.high


def test_bad_input_is_one_sentence():
    x = bent(0, 60)
    broken = x.copy()
    broken[1, 1] = np.inf
    with pytest.raises(NonFiniteError):
        mle_dimension(broken)
    cases = [
        lambda: mle_dimension(x, 2), lambda: mle_dimension(x, 60), lambda: mle_dimension(np.ones((50, 3))),
        lambda: mle_dimension(x, average="median"), lambda: mle_dimension(x, norm="k"),  # type: ignore[arg-type]
        lambda: mle_dimension(x, n_boot=0), lambda: mle_dimension(x, anchors=[99]), lambda: mle_dimension(x[:, 0]),
        lambda: mle_dimension(x, duplicates="keep"), lambda: mle_dimension(np.repeat(x[:4], 20, 0)),  # type: ignore[arg-type]
        lambda: twonn_dimension(x, "slope"), lambda: twonn_dimension(x, discard=-1),  # type: ignore[arg-type]
        lambda: twonn_dimension(x, discard=59), lambda: twonn_dimension(x[:3]), lambda: geomle_dimension(x),
        lambda: geomle_dimension(bent(0), 55, 25), lambda: geomle_dimension(bent(0), n_boot=1),
        lambda: mle_dimension(np.eye(30)),
    ]  # fmt: skip
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)
