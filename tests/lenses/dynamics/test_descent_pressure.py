"""Expected gradients over random heads against closed forms and exact heads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.lenses.dynamics.descent_pressure import (
    activation_gradient_sign,
    random_linear_head,
    squared_error_pressure,
)

P = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("std", [0.3, 1.0])
def test_squared_error_agrees_with_its_closed_form(std):
    found = activation_gradient_sign(random_linear_head(5, 3, "squared_error", std=std), P, 600)
    expected = squared_error_pressure(P, 3, std**2)
    assert expected.tolist() == pytest.approx([0, 0, *(3 * std**2 * np.array([0.5, 1, 2]))])
    active = found.active
    error = np.abs(found.mean_gradient[active] / found.z_score[active])
    assert (np.abs(found.mean_gradient[active] - expected[active]) < 4 * error).all()


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_active_units_are_lowered_and_inactive_ones_left_alone(loss):
    found = activation_gradient_sign(random_linear_head(5, 10, loss, std=1.0), P, 600, random_state=3)
    numbers = found.summary()
    assert numbers["pushed_down"] == 1.0
    assert numbers["surely_up"] == 0.0
    assert (found.mean_gradient[:2] == 0).all()
    assert (found.z_score[:2] == 0).all()
    assert numbers["inactive_pressure"] == 0.0


def test_weights_that_favour_the_label_raise_units():
    mean = torch.zeros(10, 5)
    mean[4] = 1.0
    found = activation_gradient_sign(random_linear_head(5, 10, mean=mean, label=4), P, 300)
    assert found.summary()["surely_up"] == 1.0


def test_one_mean_for_all_weights_cancels_in_the_softmax():
    plain, shifted = (
        activation_gradient_sign(random_linear_head(5, 10, mean=mean, label=0), P, 50) for mean in (0.0, 7.0)
    )
    assert shifted.mean_gradient == pytest.approx(plain.mean_gradient, abs=1e-9)


def test_fixed_head_gives_its_gradient_and_certainty():
    weight = torch.tensor([1.0, 2.0, 3.0, -4.0, 0.0], dtype=torch.float64)
    found = activation_gradient_sign(lambda generator: lambda a: a @ weight, P, 2)
    assert found.mean_gradient.tolist() == [0, 0, 3, -4, 0]
    assert found.z_score.tolist() == [0, 0, math.inf, -math.inf, 0]
    smooth = activation_gradient_sign(lambda generator: lambda a: a @ weight, P, 2, activation=torch.tanh)
    assert smooth.mean_gradient == pytest.approx((weight * (1 - torch.tanh(P) ** 2)).numpy())


def test_mean_and_error_equal_those_of_the_draws():
    draws = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = iter(draws)
    found = activation_gradient_sign(lambda generator: next(order).dot, P, 40)
    kept = draws[:, 2:]
    assert found.mean_gradient[2:] == pytest.approx(kept.mean(0).numpy())
    assert found.z_score[2:] == pytest.approx((kept.mean(0) / kept.std(0) * math.sqrt(40)).numpy())


def test_samples_are_averaged_and_the_seed_decides():
    build = random_linear_head(5, 3)
    batch = P.repeat(4, 1)
    found = activation_gradient_sign(build, batch, 20, random_state=5)
    assert found.mean_gradient.shape == (4, 5)
    torch.manual_seed(99)
    assert found == activation_gradient_sign(build, batch, 20, random_state=5)
    assert found != activation_gradient_sign(build, batch, 20, random_state=6)


def test_finding_is_saved_and_drawn(tmp_path):
    found = activation_gradient_sign(random_linear_head(5, 3), P, 20)
    assert Finding.load(found.save(tmp_path / "pressure")) == found
    assert set(found.summary()) == set(found.meanings)
    axes = Figure().subplots()
    found.plot(axes)
    assert len(axes.lines[0].get_xdata()) == 5
    silent = activation_gradient_sign(random_linear_head(2, 3), torch.tensor([-1.0, -2.0]), 2).summary()
    assert math.isnan(silent["pushed_down"])


@pytest.mark.parametrize(
    ("build", "p", "n_draws", "told", "kind"),
    [
        (random_linear_head(5, 3), P, 1, "n_draws is 1", InputError),
        (random_linear_head(5, 3), torch.zeros(0), 5, "shape \\(0,\\)", InputError),
        (random_linear_head(5, 3), torch.tensor([math.nan] * 5), 5, "p holds NaN", NonFiniteError),
        (lambda generator: lambda a: a, P, 5, "not one number", InputError),
        (lambda generator: lambda a: torch.tensor(1.0), P, 5, "not one number", InputError),
        (lambda generator: lambda a: (a * math.inf).sum(), P, 5, "gradient of a drawn head", NonFiniteError),
    ],
)
def test_refusals_are_one_sentence(build, p, n_draws, told, kind):
    with pytest.raises(kind, match=told) as caught:
        activation_gradient_sign(build, p, n_draws)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"loss": "hinge"}, {"label": 3}, {"n_units": 0}])
def test_heads_refuse_what_they_cannot_draw(options):
    with pytest.raises(InputError, match="expected"):
        random_linear_head(**{"n_units": 5, "n_outputs": 3} | options)


def test_works_without_gradients_around_it():
    with torch.no_grad():
        found = activation_gradient_sign(random_linear_head(5, 3), P, 5, activation=F.relu)
    assert found.n_draws == 5
