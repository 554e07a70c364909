"""Mean differences and flips on a linear rest of the network, where both are known in closed form."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.lenses.control.steering import flip_curve, mean_difference_direction


def coded(seed: int, n: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two features on orthogonal directions of lengths 4 and 1, read by their signs."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.stack([torch.arange(n) % 2, torch.arange(n) // 2 % 2], 1)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=draw, dtype=torch.float64))[0][:, :2]
    size = torch.tensor([2.0, 0.5], dtype=torch.float64)
    return (2.0 * y - 1) * size @ basis.T, y, basis


@pytest.mark.parametrize("seed", range(3))
def test_the_direction_is_the_difference_of_means(seed: int):
    x, y, basis = coded(seed)
    direction = mean_difference_direction(x, y[:, 0])
    torch.testing.assert_close(direction, 4 * basis[:, 0])
    noisy = x.numpy() + np.random.default_rng(seed).standard_normal(x.shape)
    ones = y[:, 1].numpy() == 1
    np.testing.assert_allclose(
        mean_difference_direction(noisy, y[:, 1]), noisy[ones].mean(0) - noisy[~ones].mean(0), atol=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_half_the_difference_flips_and_leaves_the_other_alone(seed: int, tmp_path):
    x, y, basis = coded(seed)
    sizes = np.linspace(0, 2, 41)
    found = [flip_curve(x, y, lambda z: z @ basis, j, sizes=sizes.tolist()) for j in range(2)]
    for curve, length in zip(found, (4.0, 1.0)):
        np.testing.assert_allclose(curve.norms, sizes * length)
        np.testing.assert_array_equal(curve.flipped[sizes < 0.49], 0)
        np.testing.assert_array_equal(curve.flipped[sizes > 0.51], 1)
        np.testing.assert_array_equal(curve.intact, 1)
        assert curve.n_samples == 200
        assert curve.summary()["norm_to_flip"] == pytest.approx(length / 2, abs=0.06 * length)
        assert curve.summary()["others_intact"] == 1
    assert Finding.load(found[0].save(tmp_path / "flip")) == found[0]
    assert set(found[0].summary()) == set(found[0].meanings)
    assert "A move of length 1.98" in found[0].paragraph()
    figure, axes = plt.subplots()
    found[0].plot(axes)
    plt.close(figure)


def test_a_direction_that_does_nothing():
    x, y, basis = coded(0)
    away = torch.linalg.svd(basis.T, full_matrices=True).Vh[2]
    curve = flip_curve(x, y, lambda z: z @ basis, 0, direction=away)
    assert curve.flipped.max() == 0
    assert curve.summary()["norm_to_flip"] == pytest.approx(2.0), "the longest tried"
    assert curve.summary()["flip_rate"] == 0
    one = flip_curve(x, y[:, :1], lambda z: z @ basis[:, :1])
    assert one.intact.min() == 1


def test_bad_input_is_one_sentence():
    x, y, basis = coded(0)

    def predict(z: torch.Tensor) -> torch.Tensor:
        return z @ basis

    cases = [
        lambda: mean_difference_direction(x, torch.zeros(len(x))),
        lambda: mean_difference_direction(x, None),
        lambda: mean_difference_direction(x, 2 * y[:, 0]),
        lambda: mean_difference_direction(x[:0], y[:0, 0]),
        lambda: flip_curve(x, y[:, 0], predict),
        lambda: flip_curve(x, y, predict, 2),
        lambda: flip_curve(x, y, predict, sizes=(1, 0)),
        lambda: flip_curve(x, y, predict, direction=torch.zeros(6)),
        lambda: flip_curve(x, y, predict, direction=torch.ones(5)),
        lambda: flip_curve(x, y, lambda z: torch.ones(len(z), 2)),
        lambda: flip_curve(x.masked_fill(x == x.max(), float("nan")), y, predict),
    ]
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)
