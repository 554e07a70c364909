"""The sparsing-law study's own parts: its settings, its control of trends, and its full preset's refusal."""

from __future__ import annotations

import math

import numpy as np
import pytest

from netloupe.core.errors import InputError, SubjectError
from netloupe.studies import sparsing_law
from netloupe.studies._sparsing_law_models import _rank, _share_of_orders
from netloupe.studies._sparsing_law_setting import SETTINGS
from netloupe.studies._sparsing_law_synthetic import TOKENS, noisy, published, random_layer


def test_presets_hold_the_parameters_of_the_shapes_together():
    for preset in ("small", "full"):
        counts = [shape.n_parameters for shape in SETTINGS[preset].shapes]  # type: ignore[index]
        assert max(counts) / min(counts) < 1.25
        slimness = [shape.slimness for shape in SETTINGS[preset].shapes]  # type: ignore[index]
        assert slimness == sorted(slimness)
    for settings in SETTINGS.values():
        for shape in (settings.shape, *settings.shapes, *settings.sizes):
            assert shape.d_model % shape.n_heads == 0
            assert shape.d_model // shape.n_heads % 2 == 0
        assert settings.every > 0
        assert settings.warmup <= settings.every


def test_published_laws_fall_for_relu_and_rise_for_silu():
    laws = published()
    assert len(laws) == 11
    for family, _, curve, limit in laws:
        steps = np.diff(curve(TOKENS))
        assert (steps < 0).all() if family == "logspace" else (steps > 0).all()
        assert curve(np.array([1e9]))[0] == pytest.approx(limit, rel=0.02)
    series = noisy(laws[0][2], np.random.default_rng(0))
    assert np.std(series / laws[0][2](TOKENS) - 1) == pytest.approx(0.02, rel=0.5)


def test_random_layer_is_half_zero():
    a, w = random_layer(0)
    assert a.shape == (2000, 256)
    assert w.shape == (64, 256)
    assert float((a == 0).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_rank_and_orders():
    x = np.arange(5.0)
    assert _rank(x, x**2) == pytest.approx(1)
    assert _share_of_orders(x, x) == pytest.approx(1 / 120)
    assert _rank(x, np.zeros(5)) == 0
    assert math.isnan(_rank(x[:2], x[:2]))


def test_bad_presets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NETLOUPE_TEXT", raising=False)
    with pytest.raises(InputError, match="preset is 'huge'"):
        next(sparsing_law.run("huge"))  # type: ignore[arg-type]
    with pytest.raises(SubjectError, match="NETLOUPE_TEXT"):
        next(sparsing_law.run("full"))
