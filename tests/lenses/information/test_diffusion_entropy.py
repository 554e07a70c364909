"""The lens on diffusion spectra: its numbers, its subsets, and what it says where it cannot tell."""

from __future__ import annotations

import numpy as np
import pytest

from netloupe.core.errors import InputError
from netloupe.lenses.information.diffusion import (
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
    suggest_sigma,
)
from netloupe.lenses.information.diffusion_entropy import diffusion_entropy


def blobs(seed: int = 0, n: int = 120, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw, y = np.random.default_rng(seed), np.arange(n) % k
    return 30 * np.eye(6)[y] + draw.standard_normal((n, 6)), y


def test_numbers_are_those_of_the_functions():
    z, y = blobs()
    found = diffusion_entropy(z, y)
    assert found.sigma == pytest.approx(suggest_sigma(z) / 2)
    assert found.median_distance == pytest.approx(suggest_sigma(z))
    assert found.entropy == pytest.approx(diffusion_spectral_entropy(z, sigma=found.sigma))
    assert found.label_bits == pytest.approx(
        diffusion_spectral_mutual_information(z, y, sigma=found.sigma)[0], abs=0.05
    )
    assert found.spread is None
    assert found.summary()["structures"] == pytest.approx(2**found.entropy)
    assert found.eigenvalues[0] == pytest.approx(1.0)
    assert next(iter(found.summary())) == "entropy"
    given = diffusion_entropy(z, sigma=4.0, t=3)
    assert given.entropy == pytest.approx(diffusion_spectral_entropy(z, sigma=4.0, t=3))
    assert given.label_bits is None
    assert "label_bits" not in given.summary()


def test_the_information_does_not_depend_on_the_order_of_samples():
    z, y = blobs(1)
    order = np.random.default_rng(0).permutation(len(z))
    one, two = diffusion_entropy(z, y), diffusion_entropy(z[order], y[order])
    assert one.label_bits == pytest.approx(two.label_bits, abs=1e-9)


def test_shuffled_labels_say_nothing():
    z, y = blobs(2, 300)
    true, mixed = diffusion_entropy(z, y), diffusion_entropy(z, np.random.default_rng(0).permutation(y))
    assert true.label_bits > 1.0
    assert abs(mixed.label_bits) < 5 * mixed.label_error + 0.03
    assert "Knowing the label takes away" in true.paragraph()


def test_more_samples_than_fit_are_seen_in_three_subsets():
    z, y = blobs(3, 400)
    found = diffusion_entropy(z, y, max_n=100)
    assert found.n_used == 100
    assert found.n_samples == 400
    assert found.spread is not None
    assert 0 < found.spread < 0.5
    assert found == diffusion_entropy(z, y, max_n=100)
    assert found != diffusion_entropy(z, y, max_n=100, random_state=1)
    assert "random subsets" in found.paragraph()


def test_rare_classes_and_single_classes_leave_the_label_out():
    z, y = blobs()
    assert diffusion_entropy(z, np.zeros_like(y)).label_bits is None
    assert diffusion_entropy(z, np.where(np.arange(120) == 5, 9, y)).label_bits is None


def test_a_bandwidth_that_sees_nothing_is_told():
    z, _ = blobs()
    assert diffusion_entropy(z, sigma=1e-3).degenerate == 1
    assert "every sample as alone" in diffusion_entropy(z, sigma=1e-3).paragraph()
    assert diffusion_entropy(z, sigma=1e6).degenerate == -1
    assert diffusion_entropy(z).degenerate == 0
    assert diffusion_entropy(np.ones((9, 2)), sigma=1.0).entropy == pytest.approx(0, abs=1e-9)


def test_bad_input_is_refused():
    z, y = blobs()
    for call, words in (
        (lambda: diffusion_entropy(np.ones((9, 2))), "coincide"),
        (lambda: diffusion_entropy(z, y[:-1]), "one label for each"),
        (lambda: diffusion_entropy(z, sigma=0.0), "sigma is 0.0"),
        (lambda: diffusion_entropy(z, max_n=3), "max_n is 3"),
        (lambda: diffusion_entropy(z[:3]), "at least 4"),
    ):
        with pytest.raises(InputError, match=words):
            call()
