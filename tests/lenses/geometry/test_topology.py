"""The family's corners, the lens, and distances by their short name."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist, squareform

from netloupe.core.errors import InputError
from netloupe.core.geotopology import geo_topological
from netloupe.core.rows import as_rows
from netloupe.data.manifolds import manifold
from netloupe.lenses.geometry.rdm import rank_minmax, rdm
from netloupe.lenses.geometry.topology import (
    CELLS,
    CORNERS,
    corner_parameters,
    geodesic,
    region_of,
    rgtm_family,
    topology,
)


@pytest.mark.parametrize(
    ("lower", "upper", "corner"),
    [
        (0.0, 0.4, "local"), (0.0, 0.42, "intermediate"), (0.05, 0.15, "local"), (0.6, 1.0, "global"), (0.58, 1.0, "intermediate"),
        (0.0, 1.0, "geometry"), (0.1, 0.9, "geometry"), (0.2, 0.8, "intermediate"), (0.4, 0.6, "topology"), (0.5, 0.5, "topology"),
        (0.39, 0.6, "intermediate"), (0.1, 0.1, "local"), (0.9, 0.9, "global"), (0.3995, 0.6005, "topology"),
    ],
)  # fmt: skip
def test_corners(lower: float, upper: float, corner: str):
    assert region_of(lower, upper) == corner


@pytest.mark.parametrize("corner", CORNERS)
def test_draws_lie_in_their_corner(corner):
    drawn = corner_parameters(corner, 30, random_state=1)
    assert drawn.shape == (30, 2)
    assert all(region_of(*pair) == corner for pair in drawn)
    np.testing.assert_array_equal(drawn, corner_parameters(corner, 30, random_state=1))
    assert region_of(*CELLS[corner]) == corner


def test_a_family_is_its_members():
    v = pdist(np.random.default_rng(0).standard_normal((12, 4)))
    grid = [(0, 1), (0.1, 0.3), (0.5, 0.5), (1.0, 1.0)]
    found = rgtm_family(v, grid)
    for row, levels in zip(found, grid):
        np.testing.assert_allclose(row, geo_topological(v, *levels), atol=1e-12)
    for bad in (
        lambda: rgtm_family(v, []),
        lambda: rgtm_family(v, [(0.5, 0.2)]),
        lambda: rgtm_family(np.ones(6), grid),
    ):
        with pytest.raises(InputError):
            bad()
    with pytest.raises(InputError):
        region_of(0.5, 0.4)
    with pytest.raises(InputError):
        corner_parameters("middle")  # type: ignore[arg-type]


def test_rdm():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((10, 5))
    np.testing.assert_allclose(rdm(x), pdist(x), atol=1e-12)
    np.testing.assert_allclose(rdm(x, "correlation"), pdist(x, "correlation"), atol=1e-12)
    assert rank_minmax(rdm(x)).max() == 1
    # two noise-free runs: cross-validated distances are the squared ones
    twice, condition, run = np.concatenate([x, x]), np.tile(np.arange(10), 2), np.repeat([0, 1], 10)
    np.testing.assert_allclose(rdm(twice, cv_folds=run, conditions=condition), pdist(x) ** 2, atol=1e-10)
    for bad in (
        lambda: rdm(twice, cv_folds=run),
        lambda: rdm(twice, conditions=condition),
        lambda: rdm(twice, "cosine", run, condition),
    ):
        with pytest.raises(InputError):
            bad()


def test_a_straight_line_has_no_detours_and_a_ring_has_its_own():
    n = 40
    line = topology(np.column_stack([np.arange(n) * a for a in (1.0, 2.0, -1.0, 0.5)]))
    assert line.stretch == pytest.approx(1)
    assert line.summary()["geometry"] == pytest.approx(1)
    assert line.connected_at == pytest.approx((n - 1) / (n * (n - 1) / 2))
    ring = topology(manifold("ring", n)[:, :2])
    hops = np.minimum(np.arange(1, n), n - np.arange(1, n))
    assert ring.stretch == pytest.approx((hops * np.sin(np.pi / n) / np.sin(np.pi * hops / n)).mean())
    assert ring.connected_at == pytest.approx(2 / (n - 1))


def test_agreement_is_a_correlation_of_halves():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((30, 2))
    found = topology(x, n_splits=1)
    a, b = (pdist(x[:, [unit]]) for unit in range(2))
    wanted = [np.corrcoef(geo_topological(a, *cell), geo_topological(b, *cell))[0, 1] for cell in CELLS.values()]
    np.testing.assert_allclose(found.agreement[0], wanted, atol=1e-9)


def test_what_is_shared_by_units_is_agreed_upon():
    rng = np.random.default_rng(2)
    cloud = rng.standard_normal((80, 3)) @ rng.standard_normal((3, 60))
    clear, noisy = (
        topology(cloud + 0.1 * rng.standard_normal(cloud.shape)),
        topology(cloud + 20 * rng.standard_normal(cloud.shape)),
    )
    assert clear.summary()["local"] > 0.7 > 0.3 > noisy.summary()["local"]
    clusters = 4 * rng.standard_normal((2, 60))[np.arange(80) % 2] + rng.standard_normal((80, 60))
    found = topology(clusters).summary()
    assert found["local"] + 0.3 < 0.7 < found["geometry"]  # inside the clusters there is noise alone


def test_large_data_and_refusals():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1100, 6))
    found = topology(x)
    assert found.n_samples == 367
    assert found.summary() == topology(as_rows(x, batch_size=100)).summary()
    assert found.summary() == topology(x[::3]).summary()
    found.plot(Figure().subplots())
    with pytest.raises(InputError, match="at least two units"):
        topology(np.column_stack([np.arange(9.0), np.ones(9)]))
    with pytest.raises(InputError, match="division"):
        topology(x, n_splits=0)
    with pytest.raises(InputError):
        topology(np.ones((5, 3)))


def test_half_dead_units_leave_a_division_out():
    x = np.zeros((20, 3))
    x[:, 0] = np.arange(20)
    x[0, 1:] = 1
    found = topology(x)
    assert np.isfinite(list(found.summary().values())).all()
    found.plot(Figure().subplots())
    assert squareform(geodesic(pdist(x), p=1.0, rank_after=False)).shape == (20, 20)
