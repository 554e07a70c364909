"""Categorisation, regions and the phase chart, beside the published code's numbers and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.geometry.code_classes import code_categorization, matched_accuracy, purity
from netloupe.lenses.geometry.code_regions import region_diameter
from netloupe.lenses.geometry.codes import activation_code, redundancy_ratio
from netloupe.lenses.geometry.hash_phases import REGIMES, Cell, HashPhaseChart, regimes


def network(seed: int, width: int):
    """Samples of ten classes, and two rectified layers with random weights."""
    rng = np.random.default_rng(seed)
    means = 1.2 * rng.standard_normal((10, 12))
    y = np.arange(400) % 10
    x = means[y] + rng.standard_normal((400, 12))
    w1 = rng.standard_normal((12, width)) / 12**0.5
    w2 = rng.standard_normal((width, width)) / width**0.5
    b = 0.3 * rng.standard_normal(width)

    def first(a):
        return np.maximum(np.asarray(a) @ w1 + b, 0)

    return x, y, first, lambda a: np.maximum(first(a) @ w2, 0)


# What the published code (with its network replaced by the layers above) gives: bits, redundancy of training and test samples,
# purity of both, K-NN, logistic regression, and four diameters.
PUBLISHED = {
    (0, 6): (12, 0.55, 0.35, 0.3821428571428571, 0.4083333333333333, 0.44166666666666665, 0.5, (0.65, 6.5, 6.6, 5.45)),
    (1, 16): (
        32,
        0.010714285714285714,
        0.0,
        0.5464285714285715,
        0.45,
        0.575,
        0.6916666666666667,
        (8.45, 1.65, 4.95, 6.05),
    ),
    (2, 40): (80, 0.0, 0.0, 0.7535714285714286, 0.625, 0.8416666666666667, 0.8833333333333333, (0.3, 1.55, 0.75, 1.2)),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_the_published_codes_numbers(case: tuple[int, int]):
    x, y, first, second = network(*case)
    n_bits, r_train, r_test, p_train, p_test, knn, logistic, diameters = PUBLISHED[case]
    codes = activation_code([first(x), second(x)])
    found = code_categorization(codes[:280], y[:280], codes[280:], y[280:], official=True)
    assert found.n_bits == n_bits
    expected = (r_train, r_test, p_train, p_test)
    got = (found.redundancy_train, found.redundancy_test, found.kmeans_train, found.kmeans_test)
    assert got == pytest.approx(expected, abs=1e-12)
    assert (found.knn, found.logistic) == pytest.approx((knn, logistic), abs=1e-12)
    centres = np.stack([x[y == y[i]].mean(0) for i in range(4)])
    grid = region_diameter(first, x[:4], centres)
    assert grid.diameters == pytest.approx(diameters, abs=1e-9)
    exact = region_diameter(first, x[:4], centres, exact=True)
    assert (np.abs(exact.diameters - grid.diameters) < 0.1).all()
    fair = code_categorization(codes[:280], y[:280], codes[280:], y[280:], methods=("knn",))
    assert fair.knn == pytest.approx(knn, abs=0.06)
    assert fair.logistic is None
    assert "logistic" not in fair.summary()


def test_purity_flatters_and_matching_does_not():
    clusters, y = [0, 0, 1, 1, 2, 2], [5, 5, 5, 5, 7, 9]
    assert purity(clusters, y) == 5 / 6
    assert matched_accuracy(clusters, y) == 3 / 6
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 30, 200), rng.integers(0, 4, 200)
    assert purity(a, b) > 0.35 > matched_accuracy(a, b)
    for bad in ((a, b[:3]), (a.astype(float), b), (a[:, None], b), (a[:0], b[:0])):
        with pytest.raises(InputError):
            purity(*bad)


def test_bits_that_say_nothing():
    y = np.arange(30) % 3
    constant = np.ones((30, 4), bool)
    with pytest.warns(UserWarning, match="every bit is constant"):
        found = code_categorization(constant, y, constant, y)
    assert found.redundancy_train == 29 / 30
    assert found.n_bits == 0
    assert found.n_dropped == 4
    for value in (found.knn, found.logistic, found.kmeans_train):
        assert value == pytest.approx(1 / 3)


def test_categorisation_refuses():
    x, y, first, _ = network(0, 6)
    codes = activation_code(first(x))
    other = activation_code(np.ones((5, 3)))
    cases = [
        lambda: code_categorization(first(x), y, first(x), y), lambda: code_categorization(codes, y, other, y[:5]),
        lambda: code_categorization(codes[:5], y[:5], codes, y, methods=("knn",)),
        lambda: code_categorization(codes[:5], y[:5], codes, y, methods=("knn",), official=True),
        lambda: code_categorization(codes, y[:-1], codes, y), lambda: code_categorization(codes, y + 0.5, codes, y),
        lambda: code_categorization(codes, y, codes, y, methods=("svm",)),  # type: ignore[arg-type]
        lambda: code_categorization(codes, y, codes[:4], y[:4], methods=("kmeans",)),
    ]  # fmt: skip
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(5))
def test_the_gap_between_two_lines(seed: int):
    """Two lines through the origin: on a ray that crosses both the gap is known."""
    rng = np.random.default_rng(seed)
    normals = torch.tensor([[1.0, 0.0], [np.cos(1.1), np.sin(1.1)]], dtype=torch.float64).T

    def layer(points: torch.Tensor) -> torch.Tensor:
        return torch.relu(points @ normals)

    x = torch.tensor(rng.uniform(0.2, 1.0, (6, 2)))
    centre = torch.tensor(rng.uniform(-2.0, -0.5, 2))
    u = (centre - x) / (centre - x).norm(dim=1, keepdim=True)
    places = -(x @ normals) / (u @ normals)  # where the line meets either edge
    ahead = torch.where(places > 0, places, torch.inf).min(1).values.clamp(max=5.0)
    behind = torch.where(places < 0, -places, torch.inf).min(1).values.clamp(max=5.0)
    exact = region_diameter(layer, x, centre, exact=True)
    assert exact.diameters == pytest.approx((ahead + behind).numpy(), rel=1e-9)
    assert np.array_equal(exact.censored, ((ahead == 5) | (behind == 5)).numpy())
    grid = region_diameter(layer, x, centre)
    assert np.abs(grid.diameters - exact.diameters).max() < 0.1
    halves = region_diameter(layer, x[:1], centre, step=0.001, reach=2.0)
    assert halves.diameters[0] == pytest.approx(min(float(ahead[0]), 2) + min(float(behind[0]), 2), abs=0.0025)


def test_regions_refuse():
    x = torch.rand(3, 2)
    cases = [
        (InputError, lambda: region_diameter(torch.relu, x, x[0])), (InputError, lambda: region_diameter(torch.relu, x[0], x[1])),
        (InputError, lambda: region_diameter(torch.relu, x, torch.zeros(3))),
        (InputError, lambda: region_diameter(torch.relu, x, torch.zeros(2), step=0)),
        (InputError, lambda: region_diameter(lambda a: a[:1], x, torch.zeros(2))),
        (NonFiniteError, lambda: region_diameter(torch.relu, x * torch.nan, torch.zeros(2))),
    ]  # fmt: skip
    for kind, case in cases:
        with pytest.raises(kind):
            case()


def test_the_rule_of_the_regimes():
    redundancy = np.array([[0.9, 0.04, 0.0], [0.06, 0.05, 0.0]])
    knn = np.array([[0.5, 0.7, 0.71], [0.9, 0.93, 0.96]])
    assert regimes(redundancy, knn, knn).tolist() == [[0, 2, 2], [0, 1, 2]]
    assert regimes(redundancy, knn, knn, "chart").tolist() == [[0, 1, 1], [0, 1, 2]]


def test_a_chart_of_random_networks():
    x, y, _, _ = network(0, 6)

    def cell(width: float, n: float) -> Cell:
        codes = activation_code(network(1, int(width))[2](x))
        return Cell(codes[: int(n)], y[: int(n)], codes[280:], y[280:])

    chart = HashPhaseChart((3, 12, 200), (40, 280), cell, methods=("knn", "kmeans"), names=("width", "samples"))
    found = chart.run()
    assert found.regime.shape == (2, 3)
    assert found.regime[1, 0] == 0
    assert found.regime[1, 2] == 2
    assert found.redundancy_train[1, 1] == redundancy_ratio(cell(12, 280).train)
    assert np.isnan(found.logistic).all()
    assert not np.isnan(found.kmeans).any()
    assert sum(
        found.summary()[name] for name in ("under_share", "critical_share", "sufficient_share")
    ) == pytest.approx(1)
    assert (chart.run(reference=np.full((2, 3), 2.0)).regime < 2).all()
    assert len(REGIMES) == 3
    with pytest.raises(InputError, match="reference has shape"):
        chart.run(reference=np.zeros((3, 2)))
    with pytest.raises(InputError, match="at least one"):
        HashPhaseChart((), (1,), cell)
