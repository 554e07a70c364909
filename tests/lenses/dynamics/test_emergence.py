"""The emergence curve: its two forms, Jacobian, peak, fits of known series, rivals, and the architecture's prediction."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.lenses.dynamics.emergence import (
    ArchitecturePredictor,
    ExpLogCurve,
    StepResponse,
    _curve,
    _jacobian,
    architecture_features,
    compare_curves,
    peak_time_of,
    step_of_second_order,
)

TIMES = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *np.linspace(1000, 143_000, 26)])


def curve(t: np.ndarray, a: float, lam: float, gamma: float, t0: float, k: float) -> np.ndarray:
    x = gamma * t + t0
    return a * np.exp(-lam * x) * np.log(x) + k


EARLY, LATE = (20.0, 0.3, 1e-4, 1.1, 5.0), (8.0, 0.05, 2e-5, 0.9, 3.0)


@pytest.mark.parametrize("lam", [1e-4, 1e-2, 0.3, 1.0, 10.0])
@pytest.mark.parametrize(("gamma", "t0"), [(1e-4, 0.5), (1.0, 1.0), (30.0, 0.1)])
def test_peak_formula_is_where_a_fine_grid_peaks(lam: float, gamma: float, t0: float):
    peak = peak_time_of(lam, gamma, t0)
    assert peak is not None
    x = gamma * peak + t0
    assert x * math.log(x) == pytest.approx(1 / lam, rel=1e-9)
    grid = np.linspace(0, 3 * peak, 1_000_001)
    assert abs(grid[curve(grid, 1.0, lam, gamma, t0, 0.0).argmax()] - peak) <= grid[1]


def test_no_decay_has_no_peak_and_early_ones_may_lie_before_training():
    assert peak_time_of(0.0, 1.0, 1.0) is None
    assert peak_time_of(5.0, 1.0, 3.0) < 0  # type: ignore[operator]
    assert peak_time_of(1e-300, 1.0, 1.0) > 1e290  # type: ignore[operator]
    for bad in ((-1.0, 1.0, 1.0), (1.0, 0.0, 1.0), (math.nan, 1.0, 1.0)):
        with pytest.raises(InputError):
            peak_time_of(*bad)


@settings(max_examples=50, deadline=None)
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 5), st.floats(0.01, 3), st.floats(-5, 5))
def test_jacobian_is_the_complex_step(a1: float, a2: float, beta: float, tau0: float, k: float):
    t, point, h = np.linspace(0, 1, 7), [a1, a2, beta, tau0, k], 1e-30
    exact = _jacobian(t, a1, a2, beta, tau0, k)
    for column in range(5):
        moved = [value + (1j * h if index == column else 0) for index, value in enumerate(point)]
        step = np.imag(_curve(t, *moved)) / h  # type: ignore[arg-type]
        assert np.allclose(exact[:, column], step, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("parameters", [EARLY, LATE])
def test_known_curves_are_found_and_both_forms_agree(parameters: tuple[float, ...]):
    values = curve(TIMES, *parameters)
    found = ExpLogCurve().fit(TIMES, values)
    assert found.r2_ > 1 - 1e-6
    assert found.predict(TIMES) == pytest.approx(values, abs=1e-2 * np.ptp(values))
    again = curve(TIMES, found.A_, found.lambda_, found.gamma_, found.t0_, found.K_)
    assert again == pytest.approx(found.predict(TIMES), rel=1e-6)
    expected = peak_time_of(*parameters[1:4])
    assert found.peak_time() == pytest.approx(expected, rel=0.1)
    assert peak_time_of(found.lambda_, found.gamma_, found.t0_) == pytest.approx(found.peak_time())
    assert found.regime(143_000) == ("early peak" if parameters is EARLY else "log increase")
    assert found.jacobian(TIMES).shape == (37, 5)


@pytest.mark.parametrize("seed", range(4))
def test_noise_leaves_the_peak_where_it_is(seed: int):
    draw, values = np.random.default_rng(seed), curve(TIMES, *EARLY)
    found = ExpLogCurve().fit(TIMES, values + 0.02 * np.ptp(values) * draw.standard_normal(37))
    assert found.r2_ > 0.97
    assert found.peak_time() == pytest.approx(peak_time_of(*EARLY[1:4]), rel=0.05)


@settings(max_examples=15, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(0.1, 100), st.floats(-50, 50))
def test_units_of_time_and_value_do_not_matter(stretch: float, scale: float, shift: float):
    values = curve(TIMES, *EARLY) + 0.02 * np.random.default_rng(0).standard_normal(37)
    plain, moved = ExpLogCurve().fit(TIMES, values), ExpLogCurve().fit(stretch * TIMES, scale * values + shift)
    assert moved.r2_ == pytest.approx(plain.r2_, abs=1e-6)
    assert moved.peak_time() == pytest.approx(stretch * plain.peak_time(), rel=1e-2)  # type: ignore[operator]


def test_flat_and_straight_series_do_not_crash():
    flat = ExpLogCurve().fit(TIMES, np.full(37, 3.0))
    assert flat.predict(TIMES) == pytest.approx(np.full(37, 3.0))
    straight = ExpLogCurve().fit(TIMES, TIMES)
    assert straight.r2_ > 0.9
    assert straight.regime(143_000) == "log increase"
    falling = ExpLogCurve().fit(np.arange(10.0), np.exp(-np.arange(10.0)))
    assert falling.r2_ > 0.99


@pytest.mark.parametrize("zeta", [0.1, 0.5, 0.999, 1.0, 1.001, 3.0])
def test_step_responses_start_at_0_end_at_1_and_obey_their_equation(zeta: float):
    omega, t = 2.0, np.linspace(0, 60, 60_001)
    y = step_of_second_order(t, zeta, omega)
    assert y[0] == pytest.approx(0, abs=1e-9)
    assert y[-1] == pytest.approx(1, abs=1e-2)
    h = t[1]
    first, second = (y[2:] - y[:-2]) / (2 * h), (y[2:] - 2 * y[1:-1] + y[:-2]) / h**2
    residual = second + 2 * zeta * omega * first + omega**2 * (y[1:-1] - 1)
    assert np.abs(residual).max() < 1e-3


def test_step_fits_find_their_own_curves():
    found = StepResponse(1).fit(TIMES, 7 * -np.expm1(-TIMES / 2e4))
    assert (found.K_, found.tau_, found.r2_) == pytest.approx((7, 2e4, 1), rel=1e-4)
    values = 4 * step_of_second_order(TIMES, 0.4, 2e-4)
    second = StepResponse(2).fit(TIMES, values)
    assert (second.K_, second.zeta_, second.omega_) == pytest.approx((4, 0.4, 2e-4), rel=1e-2)
    assert StepResponse(1).fit(TIMES, 5 - 1e-5 * TIMES).r2_ < 0, "no offset, and R^2 is not clipped"


def test_comparison_prefers_what_made_the_series(tmp_path: Path):
    draw = np.random.default_rng(0)
    peaked = compare_curves(TIMES, curve(TIMES, *EARLY) + 0.05 * draw.standard_normal(37))
    assert (peaked.best, peaked.regime) == ("exp-log", "early peak")
    assert peaked.summary()["aic_advantage"] > 0
    steps = [compare_curves(TIMES, 7 * -np.expm1(-TIMES / 2e4) + 0.05 * draw.standard_normal(37)) for _ in range(7)]
    step = steps[0]
    assert sum(found.best == "step 1" for found in steps) >= 4, "three more parameters seldom pay"
    for found in (peaked, step):
        assert set(found.summary()) <= set(found.meanings)
        assert Finding.load(found.save(tmp_path / "curve")) == found
        figure, axes = plt.subplots()
        found.plot(axes)
        figure.canvas.draw()
        plt.close(figure)


def test_bad_series():
    good = curve(TIMES, *EARLY)
    nan = good.copy()
    nan[2] = math.inf
    for t, r, message in (
        (TIMES[:5], good[:5], "at least 6"),
        (TIMES, good[:-1], "at least 6 pairs"),
        (TIMES, nan, "infinity"),
        (TIMES[::-1], good, "increase"),
        (TIMES - 5, good, "negative"),
    ):
        for fit in (ExpLogCurve(), StepResponse(1), StepResponse(2)):
            with pytest.raises(InputError, match=message):
                fit.fit(t, r)
    with pytest.raises(InputError, match="order is 3"):
        StepResponse(3)
    with pytest.raises(InputError, match="n_restarts"):
        ExpLogCurve(-1)


def test_features_of_a_layer():
    features, names = architecture_features([1, 6], 12, 768, 12, 3072, rotary_fraction=0.25)
    row = dict(zip(names, features[1]))
    assert features.shape == (2, len(names))
    assert (row["l/L"], row["(l/L)^2"], row["(l/L)^3"]) == (0.5, 0.25, 0.125)
    assert row["sqrt(l/L)"] == pytest.approx(0.5**0.5)
    assert (row["H/d"], row["d_ff/d"], row["d/L"], row["H/L"], row["l*L"]) == (12 / 768, 4, 64, 1, 72)
    assert (row["log d"], row["rotary share"]) == (math.log(768), 0.25)
    for bad in ((0, 12, 768, 12, 3072), (13, 12, 768, 12, 3072), ([1, 2], [3, 4, 5], 8, 1, 8), (1, math.nan, 8, 1, 8)):
        with pytest.raises(InputError):
            architecture_features(*bad)


@pytest.mark.parametrize("model", ["ridge", "forest", "histogram"])
def test_predictor_finds_a_known_dependence_and_nothing_in_permuted_rows(model: str):
    draw = np.random.default_rng(0)
    depth = draw.integers(4, 40, 120)
    place = np.array([draw.integers(1, each + 1) for each in depth])
    heads = draw.integers(2, 40, 120)
    features, names = architecture_features(place, depth, heads * 64 + draw.integers(0, 64, 120), heads, 4096)
    k = 3 * np.log(features[:, names.index("l*L")]) + 0.1 * draw.standard_normal(120)
    lam = np.exp(features[:, names.index("l/L")]) - 1
    scores = ArchitecturePredictor(model).evaluate(features, {"K": k, "lambda": lam}, groups=depth // 10)
    assert scores.of("K") > 0.8
    assert scores.of("lambda") > 0.8
    assert np.isfinite(scores.r2_groups).all()
    assert set(scores.summary()) <= set(scores.meanings)
    assert ArchitecturePredictor(model).evaluate(features, {"K": draw.permutation(k)}).of("K") < 0.1
    if model == "ridge":
        fitted = ArchitecturePredictor(model).fit(features, {"K": k})
        assert fitted.predict(features)["K"] == pytest.approx(k, abs=2.5)
        important = fitted.importance(features, {"K": k}, "K")
        assert important.shape == (len(names),)
        values, response = fitted.dependence(features, "K", names.index("log L"))
        assert len(values) == len(response)


def test_predictor_stays_finite_beyond_its_rows_and_takes_any_sign():
    draw = np.random.default_rng(0)
    x = draw.standard_normal((40, 2))
    params = {"K": np.exp(2 * x[:, 0]) - 5, "A": -np.exp(3 * x[:, 1])}
    fitted = ArchitecturePredictor("ridge").fit(x, params)
    for values in fitted.predict(100 * x).values():
        assert np.isfinite(values).all()
    assert np.median(fitted.predict(x)["A"]) < 0


def test_best_chooses_by_cross_validation_and_bad_tables_are_refused(tmp_path: Path):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((60, 3))
    fitted = ArchitecturePredictor("best").fit(x, {"lambda": np.expm1(x @ [1.0, 0.5, 0.0] + 4)})
    assert fitted.models_["lambda"] in ("ridge", "lasso"), "a linear law is a line's"
    scores = ArchitecturePredictor("ridge").evaluate(x, {"K": x[:, 0]})
    assert Finding.load(scores.save(tmp_path / "s")) == scores
    figure, axes = plt.subplots()
    scores.plot(axes)
    plt.close(figure)
    for call, message in (
        (lambda: ArchitecturePredictor("tree"), "model is 'tree'"),
        (lambda: ArchitecturePredictor().fit(x[:5], {"K": x[:5, 0]}), "at least 10"),
        (lambda: ArchitecturePredictor().fit(x, {}), "no parameters"),
        (lambda: ArchitecturePredictor().fit(x, {"K": x[:5, 0]}), "expected 60 finite"),
        (lambda: ArchitecturePredictor().fit(x, {"K": np.full(60, math.nan)}), "finite numbers"),
        (lambda: ArchitecturePredictor().importance(x, {"K": x[:, 0]}, "K"), "was not fitted"),
        (lambda: scores.of("A"), "was not predicted"),
    ):
        with pytest.raises(InputError, match=message):
            call()
