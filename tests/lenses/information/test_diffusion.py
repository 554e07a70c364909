"""Diffusion spectra against closed forms, the transition matrix itself, and the authors' package."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.information.diffusion import (
    DegenerateSpectrumWarning,
    adjacency_spectral_entropy,
    classic_entropy,
    diffusion_matrix,
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
    diffusion_spectrum,
    gaussian_kernel,
    reference_clusters,
    spectral_entropy,
    suggest_sigma,
)
from netloupe.lenses.information.spectra import chebyshev_spectrum, lanczos_entropy

SEEDS = pytest.mark.parametrize("seed", range(3))


def cloud(seed: int, n: int = 60, d: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def quiet(*args, **kwargs) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateSpectrumWarning)
        return diffusion_spectral_entropy(*args, **kwargs)


@pytest.mark.parametrize(("d", "sigma"), [(0.3, 1.0), (1.0, 1.0), (5.0, 2.0)])
def test_two_points_have_the_eigenvalues_of_their_closed_form(d, sigma):
    g = np.exp(-(d**2) / (2 * sigma**2))
    found = diffusion_spectrum(np.array([[0.0, 1.0], [d, 1.0]]), sigma)
    np.testing.assert_allclose(found, [(1 - g) / (1 + g), 1.0], atol=1e-14)


def test_identical_points_are_one_and_isolated_points_are_all():
    assert quiet(np.ones((50, 3))) == pytest.approx(0, abs=1e-10)
    assert quiet(1e4 * cloud(0, 64)) == pytest.approx(6.0)
    with pytest.warns(DegenerateSpectrumWarning, match="all samples are one"):
        diffusion_spectral_entropy(1e-3 * cloud(0))
    with pytest.warns(DegenerateSpectrumWarning, match="every sample is alone"):
        diffusion_spectral_entropy(1e4 * cloud(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diffusion_spectral_entropy(cloud(0), sigma=2.0)


@pytest.mark.parametrize("t", [1, 2, 7.5])
@pytest.mark.parametrize("counts", [[20, 20, 20, 20], [3, 50, 11, 6]])
def test_k_far_tight_clusters_give_log2_k_whatever_their_sizes(t, counts):
    centres = 1000 * np.eye(4)
    z = np.repeat(centres, counts, axis=0)
    assert quiet(z, t=t) == pytest.approx(2.0, abs=1e-9)


@SEEDS
def test_the_walk_is_the_random_walk_and_the_anisotropic_one_that_of_the_reweighted_kernel(seed):
    z = cloud(seed)
    g = gaussian_kernel(z, 1.5)
    np.testing.assert_allclose(g, np.exp(-((z[:, None] - z[None]) ** 2).sum(-1) / (2 * 1.5**2)), atol=1e-13)
    walk = g / g.sum(1, keepdims=True)
    np.testing.assert_allclose(diffusion_spectrum(z, 1.5), np.sort(np.linalg.eigvals(walk).real), atol=1e-12)
    for alpha in (0.0, 0.5, 1.0):
        d = g.sum(1)
        k = g / np.outer(d, d) ** alpha
        expected = np.sort(np.linalg.eigvals(k / k.sum(1, keepdims=True)).real)
        found = diffusion_spectrum(z, 1.5, "anisotropic", alpha)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert found[-1] == pytest.approx(1.0)
    assert np.abs(diffusion_spectrum(z, 1.5, "anisotropic") - diffusion_spectrum(z, 1.5)).max() > 1e-3


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), d=st.integers(1, 6), t=st.sampled_from([1, 2, 5]))
def test_entropy_is_in_range_and_sees_neither_order_rotation_place_nor_common_scale(seed, n, d, t):
    draw = np.random.default_rng(seed)
    z = draw.standard_normal((n, d))
    found = quiet(z, sigma=1.0, t=t)
    assert -1e-12 <= found <= np.log2(n) + 1e-12
    turn = np.linalg.qr(draw.standard_normal((d, d)))[0]
    assert quiet(z[draw.permutation(n)], sigma=1.0, t=t) == pytest.approx(found, abs=1e-9)
    assert quiet(z @ turn + 3, sigma=1.0, t=t) == pytest.approx(found, abs=1e-8)
    assert quiet(7 * z, sigma=7.0, t=t) == pytest.approx(found, abs=1e-9)


def test_entropy_of_a_spectrum():
    assert spectral_entropy(np.array([1.0, -1.0, 0.0])) == pytest.approx(1.0)
    assert spectral_entropy(np.array([1.0, 0.5]), t=2, base=np.e) == pytest.approx(
        -(0.8 * np.log(0.8) + 0.2 * np.log(0.2))
    )
    assert spectral_entropy(np.array([1.0, 1.0]), official=True) == pytest.approx(1.0, abs=1e-14)


def official_case() -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(2312)
    y = np.arange(120) % 4
    z = draw.standard_normal((120, 7)) + 3 * draw.standard_normal((4, 7))[y]
    return z, y, draw.uniform(0, 1, 120), draw.standard_normal((120, 5))


def test_the_authors_package_gives_the_same_entropies():
    z, *_ = official_case()
    expected = [
        (1.5107236354222473, diffusion_spectral_entropy(z, official=True)),
        (5.931568133830424, diffusion_spectral_entropy(z, sigma=2.0, official=True)),
        (3.03520354308269, diffusion_spectral_entropy(z, sigma=2.0, t=3, official=True)),
        (11.529823292966567, diffusion_spectral_entropy(z, sigma=2.0, method="entries", official=True)),
        (5.054418275185871, diffusion_spectral_entropy(z, sigma=2.0, max_n=50, official=True)),
        (4.553882598281931, classic_entropy(z, official=True)),
        (5.542968897371319, classic_entropy(z, 3, official=True)),
        (5.827491246582499, adjacency_spectral_entropy(z, sigma=2.0, official=True)),
        (5.931568133830424, adjacency_spectral_entropy(z, kind="normalized", sigma=2.0, official=True)),
        (6.298171719734325, adjacency_spectral_entropy(z, kind="knn", official=True)),
    ]
    for theirs, ours in expected:
        assert ours == pytest.approx(theirs, abs=1e-10)
    assert diffusion_spectral_entropy(z, sigma=2.0) == pytest.approx(5.931568133830424, abs=1e-10)


def test_the_authors_package_gives_the_same_informations():
    z, y, scalar, vectors = official_case()
    common = {"sigma": 2.0, "official": True}
    expected = [
        (0.5452644234984562, diffusion_spectral_mutual_information(z, y, **common)),
        (-0.05150005109243816, diffusion_spectral_mutual_information(z, scalar, **common)),
        (-0.027595212773027837, diffusion_spectral_mutual_information(z, vectors, **common)),
        (-0.6814851627526173, diffusion_spectral_mutual_information(z, y, entropy=classic_entropy, official=True)),
        (0.626796787805508, diffusion_spectral_mutual_information(
            z, y, entropy=lambda rows: adjacency_spectral_entropy(rows, sigma=2.0), official=True)),
        (-1.571616904814476, diffusion_spectral_mutual_information(
            z, y, entropy=lambda rows: adjacency_spectral_entropy(rows, kind="knn"), official=True)),
    ]  # fmt: skip
    for theirs, (ours, groups) in expected:
        assert ours == pytest.approx(theirs, abs=1e-9)
        assert groups.shape == (120,)


def test_information_is_label_entropy_for_clusters_and_nothing_for_independent_labels():
    y = np.arange(400) % 4
    z = 1000 * np.eye(4)[y] + 1e-3 * cloud(0, 400, 4)
    found, groups = diffusion_spectral_mutual_information(z, y)
    assert found == pytest.approx(2.0, abs=0.01)
    assert np.array_equal(groups, y)
    mixed = np.random.default_rng(1).permutation(y)
    assert diffusion_spectral_mutual_information(cloud(2, 400), mixed, sigma=2.0)[0] == pytest.approx(0, abs=0.03)
    assert diffusion_spectral_mutual_information(z, clusters=groups)[0] == found


def test_references_become_groups():
    assert reference_clusters(np.array([[3], [5], [3]])).tolist() == [3, 5, 3]
    assert reference_clusters(torch.tensor([0.0, 0.05, 0.55, 1.0]), 10).tolist() == [1, 1, 6, 10]
    vectors = 50 * np.eye(3)[np.arange(60) % 3] + cloud(0, 60, 3)
    groups = reference_clusters(vectors, 3)
    assert all(len(set(groups[k::3])) == 1 for k in range(3))
    assert len(set(groups)) == 3


@pytest.mark.parametrize(
    ("n", "d", "sigma", "t"), [(400, 20, 4.0, 1), (500, 3, 0.3, 1), (400, 10, 10.0, 1), (400, 5, 1.0, 3)]
)
def test_lanczos_quadrature_is_close_and_knows_how_close(n, d, sigma, t):
    matrix = diffusion_matrix(gaussian_kernel(cloud(0, n, d), sigma))
    exact = spectral_entropy(np.linalg.eigvalsh(matrix), t)
    found, error = lanczos_entropy(matrix, t)
    assert abs(found - exact) < 4 * error + 0.01
    assert error < 0.1
    assert lanczos_entropy(matrix, t) == (found, error)
    assert quiet(cloud(0, n, d), sigma=sigma, t=t, method="slq") == found
    small = diffusion_matrix(gaussian_kernel(cloud(0, 50, d), sigma))
    assert lanczos_entropy(small, t)[0] == pytest.approx(spectral_entropy(np.linalg.eigvalsh(small), t), abs=1e-12)


def test_the_chebyshev_density_is_coarse_but_of_the_right_spectrum():
    z, *_ = official_case()
    # the authors' own approximation gives 5.04 to 5.36 here, from run to run, for the exact 5.93
    assert diffusion_spectral_entropy(z, sigma=2.0, method="chebyshev") == pytest.approx(5.2, abs=0.3)
    values = np.repeat([0.8, -0.4], [150, 50])
    basis = np.linalg.qr(cloud(0, 200, 200))[0]
    found = chebyshev_spectrum(basis * values @ basis.T, drop=0.0)
    assert ((found > 0.65) & (found < 0.95)).mean() == pytest.approx(0.75, abs=0.06)


def test_above_max_n_a_seeded_subset_is_taken():
    z = cloud(0, 300)
    one, again, other = (quiet(z, sigma=2.0, max_n=100, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert one == pytest.approx(other, abs=0.3)
    assert quiet(z, sigma=2.0, max_n=300) == quiet(z, sigma=2.0)


def test_tensors_of_any_dtype_are_points():
    z = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    assert quiet(z, sigma=1.0) == quiet(z.double().numpy(), sigma=1.0)
    assert quiet(z.bfloat16(), sigma=1.0) == quiet(z.bfloat16().double().numpy(), sigma=1.0)
    assert suggest_sigma(np.array([[0.0], [1.0], [3.0]])) == pytest.approx(2.0)


def test_a_constant_unit_is_one_bin():
    z = np.column_stack([np.ones(8), np.arange(8.0)])
    assert classic_entropy(z, 4) == 2.0
    assert classic_entropy(np.ones((8, 2))) == 0.0


def test_bad_input_is_refused():
    z, y = cloud(0), np.arange(60) % 3
    broken = z.copy()
    broken[4, 1] = np.nan
    with pytest.raises(NonFiniteError, match="sample 4, unit 1"):
        diffusion_spectral_entropy(broken)
    for call, words in (
        (lambda: diffusion_spectrum(z[:1]), "at least 2 are needed"),
        (lambda: diffusion_spectrum(z, 0.0), "sigma is 0.0"),
        (lambda: diffusion_spectrum(z, -1.0), "sigma is -1.0"),
        (lambda: diffusion_spectrum(z, 1.0, "sideways"), "walk or anisotropic"),
        (lambda: diffusion_spectrum(z, 1.0, "anisotropic", 2.0), "0 to 1"),
        (lambda: diffusion_spectral_entropy(z, t=0), "t is 0"),
        (lambda: diffusion_spectral_entropy(z, sigma=2.0, method="guess"), "method is 'guess'"),
        (lambda: spectral_entropy(np.zeros(3)), "not all zero"),
        (lambda: suggest_sigma(np.ones((5, 2))), "coincide"),
        (lambda: diffusion_spectral_mutual_information(z, np.ones(60, int)), "same for every sample"),
        (lambda: diffusion_spectral_mutual_information(z, y[:-1]), "one for each is needed"),
        (lambda: diffusion_spectral_mutual_information(z, y, repeats=0), "repeats is 0"),
        (lambda: reference_clusters(np.array([0.0, np.nan])), "NaN"),
        (lambda: reference_clusters(np.zeros((2, 2, 2))), "are expected"),
        (lambda: adjacency_spectral_entropy(z, kind="complete"), "kind is"),
        (lambda: adjacency_spectral_entropy(z, kind="knn", n_neighbors=61), "1 to all"),
        (lambda: classic_entropy(z, 0), "bins_per_unit"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    with pytest.warns(UserWarning, match="one sample"):
        diffusion_spectral_mutual_information(z, np.where(np.arange(60) == 0, 9, y), sigma=2.0)
