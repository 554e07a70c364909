"""The massive-activations study's own parts: its curves, its table, and its full preset's refusal."""

from __future__ import annotations

import numpy as np
import pytest

from netloupe.core.errors import InputError, SubjectError
from netloupe.studies import massive_activations
from netloupe.studies._massive_activations_network import FAMILY, synthetic_table
from netloupe.studies._massive_activations_setting import END, SETTINGS, TIMES, draw_formula, noisy


@pytest.mark.parametrize("early", [True, False])
def test_drawn_curves_peak_where_they_should(early: bool):
    draw = np.random.default_rng(0)
    for _ in range(50):
        formula = draw_formula(draw, early)
        assert (0.05 * END <= formula.peak <= 0.5 * END) if early else (1.5 * END <= formula.peak <= 5 * END)
        values = formula(TIMES)
        assert np.isfinite(values).all()
        grid = np.linspace(0, 2 * formula.peak, 10_001)
        assert grid[formula(grid).argmax()] == pytest.approx(formula.peak, rel=1e-3)
    spread = np.std(noisy(formula, draw) - values)
    assert spread == pytest.approx(0.02 * np.ptp(values), rel=0.5)


def test_times_are_37_and_the_table_has_188_layers():
    assert len(TIMES) == 37
    assert (np.diff(TIMES) > 0).all()
    features, k, networks = synthetic_table(0)
    assert len(features) == len(k) == len(networks) == sum(depth for _, depth, _, _ in FAMILY) == 188
    assert len(np.unique(networks)) == 9


def test_bars_are_those_of_the_number_of_steps():
    assert SETTINGS["small"].steps == 1024
    assert SETTINGS["small"].growth == 1.3
    assert SETTINGS["full"].growth == 1.5


def test_bad_presets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NETLOUPE_TEXT", raising=False)
    with pytest.raises(InputError, match="preset is 'huge'"):
        next(massive_activations.run("huge"))  # type: ignore[arg-type]
    with pytest.raises(SubjectError, match="NETLOUPE_TEXT"):
        next(massive_activations.run("full"))
