"""Where features travel, how redundant they are, and what noise does to them."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from netloupe.core.alignment import vector_cka
from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.lenses.information.feature_flow import flow, redundancy, sensitivity


@pytest.mark.parametrize("seed", range(3))
def test_redundancy_is_the_mean_ratio_over_masks(seed: int):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((50, 12)) @ rng.standard_normal((12, 12))
    z = x[:, :3] + rng.standard_normal((50, 3))
    draw = np.random.default_rng(5)
    ratios = []
    for _ in range(7):
        kept = draw.choice(12, 4, replace=False)
        ratios.append(vector_cka(x[:, kept], z) / vector_cka(x, z))
    np.testing.assert_allclose(redundancy(x, z, share=1 / 3, n_masks=7, random_state=5), np.mean(ratios, 0), rtol=1e-9)


def test_copied_on_all_units_it_is_one_and_on_a_single_unit_zero_or_more_than_one():
    rng = np.random.default_rng(0)
    z = rng.standard_normal(100)
    everywhere = np.outer(z, rng.uniform(0.5, 2, 20))
    np.testing.assert_allclose(redundancy(everywhere, z, n_masks=20), 1, rtol=1e-9)
    local = rng.standard_normal((100, 20))
    local -= np.outer(z, z @ local) / (z @ z)
    local -= local.mean(0)
    local[:, 3] = z - z.mean()
    ratios = [float(redundancy(local, z - z.mean(), n_masks=1, random_state=seed)[0]) for seed in range(40)]
    kept = [ratio for ratio in ratios if ratio > 0.05]
    assert 0 < len(kept) < 40
    assert min(kept) >= 1
    assert np.isnan(redundancy(local, np.ones(100))).all()


def test_sensitivity_has_its_closed_form():
    weight = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.0, 3.0]], dtype=torch.float64)
    inputs = torch.randn(30, 3, dtype=torch.float64)
    found = sensitivity(lambda x: x @ weight, inputs, (0.0, 0.1, 0.5), n_draws=400)
    np.testing.assert_allclose(found[0], 0, atol=1e-20)
    for row, scale in zip(found[1:], (0.1, 0.5)):
        np.testing.assert_allclose(row, scale**2 * np.array([5.0, 10.0]), rtol=0.05)
    wide = sensitivity(lambda x: x @ weight, inputs, (0.1,), n_draws=50, spread="range")
    assert (wide > 2 * np.sqrt(found[1])).all()
    np.testing.assert_array_equal(found, sensitivity(lambda x: x @ weight, inputs, (0.0, 0.1, 0.5), n_draws=400))


def test_flow_finds_features_where_they_were_put(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((400, 8))
    complexity = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, np.nan, 0.9])
    noise = lambda: 0.3 * rng.standard_normal((400, 8))  # noqa: E731
    skips = {"a": z * [1, 1, 0, 0, 0, 0, 0, 0] + noise(), "b": z * [1, 1, 0, 0, 0, 0, 0, 0] + noise()}
    branches = {"a": noise(), "b": z * [0, 0, 0, 0, 0, 1, 0, 1] + noise()}
    for measure in ("cka", "v_information"):
        found = flow(skips, branches, z, complexity, measure=measure)  # type: ignore[arg-type]
        assert found.simple.tolist() == [0]
        assert found.complex.tolist() == [7]
        summary = found.summary()
        assert summary["simple_skip"] > 0.3 > 0.1 > summary["simple_branch"]
        assert found.curves()["complex branch"][0] < 0.05 < 0.3 < found.curves()["complex branch"][1]
        assert summary["simple_skip_first"] == pytest.approx(1, abs=0.15)
        assert Finding.load(found.save(tmp_path / measure)) == found
        figure, axes = plt.subplots()
        found.plot(axes)
        figure.canvas.draw()
        plt.close(figure)
    np.testing.assert_allclose(flow(skips, branches, z, complexity).skip[0], vector_cka(skips["a"], z))


def test_refusals():
    x, z = np.random.default_rng(0).standard_normal((2, 40, 6))
    good = np.linspace(0, 1, 6)
    for bad, words in [
        (lambda: redundancy(x, z, share=0.0), "share is 0"),
        (lambda: redundancy(x, z, n_masks=0), "n_masks 0"),
        (lambda: redundancy(x, z[:9]), "same samples"),
        (lambda: flow({}, {}, z, good), "same blocks"),
        (lambda: flow({"a": x}, {"b": x}, z, good), "same blocks"),
        (lambda: flow({"a": x}, {"a": x}, z, good[:3]), "at least 4"),
        (lambda: flow({"a": x}, {"a": x}, z, good[:5]), "5 entries for 6"),
        (lambda: flow({"a": x}, {"a": x}, z, good, measure="r2"), "measure is 'r2'"),  # type: ignore[arg-type]
        (lambda: sensitivity(lambda a: a, torch.randn(4, 3), n_draws=1), "at least 2 draws"),
        (lambda: sensitivity(lambda a: a, torch.randn(4, 3), (-1.0,)), "scales from 0"),
        (lambda: sensitivity(lambda a: a, torch.randn(0, 3)), "at least one sample"),
        (lambda: sensitivity(lambda a: a[0], torch.randn(4, 3)), "codes gave shape"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()
