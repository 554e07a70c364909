"""The laws of training data and the line with a knot: their own numbers come back, with noise and from poor series."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.lenses.dynamics.sparsing_law import ConvergentPowerLaw, LogspacePowerLaw, compare, two_segment

TOKENS = np.linspace(10, 300, 30)
FALLING = [(0.101, -0.0151, 3.20, 0.0614), (0.683, -3.46, 0.0790, 0.0690), (1.53, -3.46, 1.56e-4, 0.0648)]
RISING = [(0.479, 0.102, 0.409), (1.03, 0.420, 0.385), (0.967, 0.538, 0.382)]


def falling(d: np.ndarray, alpha: float, b: float, c: float, limit: float) -> np.ndarray:
    return np.exp(b - c * d**alpha) + limit


def rising(d: np.ndarray, alpha: float, c: float, limit: float) -> np.ndarray:
    return limit - c * d**-alpha


@pytest.mark.parametrize("law", FALLING)
@pytest.mark.parametrize("unit", [1.0, 1e9])
def test_falling_law_without_noise_is_found_in_any_unit(law: tuple[float, ...], unit: float):
    found = LogspacePowerLaw().fit(TOKENS * unit, falling(TOKENS, *law))
    alpha, b, c, limit = law
    assert (found.alpha_, found.b_, found.limit_) == pytest.approx((alpha, b, limit), rel=1e-3)
    assert found.c_ == pytest.approx(c * unit**-alpha, rel=1e-2)
    assert found.predict(TOKENS * unit) == pytest.approx(falling(TOKENS, *law), rel=1e-6)
    assert found.r2_ == pytest.approx(1)
    assert found.predict(1e30)[0] == pytest.approx(limit, rel=1e-2)


@pytest.mark.parametrize("law", RISING)
@pytest.mark.parametrize("unit", [1.0, 1e9])
def test_rising_law_without_noise_is_found_in_any_unit(law: tuple[float, ...], unit: float):
    found = ConvergentPowerLaw().fit(TOKENS * unit, rising(TOKENS, *law))
    alpha, c, limit = law
    assert (found.alpha_, found.limit_) == pytest.approx((alpha, limit), rel=1e-4)
    assert found.c_ == pytest.approx(c * unit**alpha, rel=1e-2)
    low, high = found.limit_interval()
    assert low - 1e-9 <= limit <= high + 1e-9
    assert high - low < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_family_and_limit_with_noise(seed: int):
    draw = np.random.default_rng(seed)
    for curve, family, limit in (
        (falling(TOKENS, *FALLING[0]), "logspace", 0.0614),
        (rising(TOKENS, *RISING[1]), "convergent", 0.385),
    ):
        found = compare(TOKENS, curve * (1 + 0.01 * draw.standard_normal(30)))
        assert found.family == family
        assert found.limit_interval is not None
        low, high = found.limit_interval
        assert low <= found.limit <= high
        assert low - 0.02 <= limit <= high + 0.02
        assert found.summary()["aic_difference"] > 0


def test_a_constant_determines_no_exponent():
    for series in (np.full(30, 0.2), 0.2 + 1e-3 * np.random.default_rng(1).standard_normal(30)):
        found = compare(TOKENS, series)
        assert found.family == "undetermined"
        assert found.limit == pytest.approx(series.mean())
        assert set(found.summary()) == {"limit", "limit_low", "limit_high"}
        for law in (LogspacePowerLaw(), ConvergentPowerLaw()):
            law.fit(TOKENS, series)
            assert not law.determined_
            assert math.isnan(law.alpha_)
            assert law.predict([5.0])[0] == pytest.approx(series.mean())


def test_a_series_still_rising_has_no_upper_limit():
    d = np.arange(1.0, 13)
    low, high = (
        ConvergentPowerLaw()
        .fit(d, 0.1 + 0.05 * np.log(d) + 1e-3 * np.random.default_rng(0).standard_normal(12))
        .limit_interval()
    )
    assert low > 0.2
    assert high == math.inf


def test_order_of_points_does_not_matter():
    series, mix = falling(TOKENS, *FALLING[1]), np.random.default_rng(0).permutation(30)
    assert LogspacePowerLaw().fit(TOKENS[mix], series[mix]).limit_ == pytest.approx(0.0690, rel=1e-4)


@pytest.mark.parametrize("knot", [3.0, 5.5, 8.0])
def test_two_segments_are_found(knot: float):
    x = np.arange(1.0, 12)
    found = two_segment(x, 0.5 + 0.25 * np.minimum(x, knot), n_knots=2001)
    assert (found.knot, found.slope, found.intercept) == pytest.approx((knot, 0.25, 0.5), abs=1e-2)
    assert found.level == pytest.approx(0.5 + 0.25 * knot, abs=1e-2)
    assert found.r2 == pytest.approx(1, abs=1e-4)
    assert found.predict(x) == pytest.approx(0.5 + 0.25 * np.minimum(x, knot), abs=1e-2)


def test_two_segments_at_the_edges():
    x = np.arange(1.0, 9)
    assert two_segment(x, 2 * x).knot == 8, "no end of the line was seen"
    assert two_segment(x, np.minimum(x, 1.5), fewest=3).knot == pytest.approx(3)
    assert two_segment(x, np.ones(8)).slope == pytest.approx(0)


def test_finding_explains_saves_and_draws(tmp_path: Path):
    for series in (falling(TOKENS, *FALLING[1]), rising(TOKENS, *RISING[1]), np.full(30, 0.2)):
        found = compare(TOKENS, series)
        assert set(found.summary()) <= set(found.meanings)
        assert Finding.load(found.save(tmp_path / "law")) == found
        figure, axes = plt.subplots()
        found.plot(axes)
        figure.canvas.draw()
        plt.close(figure)
    assert compare(TOKENS, falling(TOKENS, *FALLING[1]), interval=False).limit_interval is None


def test_bad_series():
    good = falling(TOKENS, *FALLING[0])
    nan = good.copy()
    nan[3] = np.nan
    for d, a, message in (
        (TOKENS[:5], good[:5], "at least 6"),
        (TOKENS, good[:-1], "at least 6 pairs"),
        (TOKENS, nan, "NaN"),
        (TOKENS - 10, good, "positive and distinct"),
        (np.ones(30), good, "positive and distinct"),
    ):
        for law in (LogspacePowerLaw(), ConvergentPowerLaw()):
            with pytest.raises(InputError, match=message):
                law.fit(d, a)
    for x, y, message in (
        ([1, 2, 3], [1, 2, 3], "at least 4"),
        ([1, 2, 3, 4], [1, 2, 3, math.nan], "finite"),
        ([1, 1, 2, 2], [1, 2, 3, 4], "different values"),
    ):
        with pytest.raises(InputError, match=message):
            two_segment(x, y)
