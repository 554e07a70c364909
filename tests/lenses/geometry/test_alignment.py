"""Alignment with targets and inputs: of features, of conditions' means, and through the depth of a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netloupe.core.asking import ask
from netloupe.core.errors import InputError
from netloupe.core.lens import get_lens
from netloupe.data.structured_tasks import aligned_task, separable_xor
from netloupe.lenses.geometry.alignment import (
    alignment_profile,
    feature_alignment,
    kernel_alignment,
    participation_ratio,
)
from netloupe.models.small import mlp


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


@pytest.mark.parametrize("dial", [0.0, 0.3, 1.0])
def test_means_of_a_task_have_its_alignment(dial: float):
    task = aligned_task(3, 2, 40, dial, noise=0.5, seed=4)
    condition, x, _ = task.sample(4000)
    means = np.stack([x[condition == c].mean(0) for c in range(8)])
    found = feature_alignment(x, condition, x, targets=task.labels)
    assert found.means == pytest.approx(plain_cka(means, task.labels), rel=1e-9)
    assert found.means == pytest.approx(dial, abs=0.06)
    assert found.target == pytest.approx(plain_cka(x, task.labels[condition]), rel=1e-9)
    assert found.input == pytest.approx(1, abs=1e-12)
    exact = feature_alignment(task.means, np.arange(8), targets=task.labels)
    assert exact.means == pytest.approx(dial, abs=1e-8)
    assert exact.target == pytest.approx(dial, abs=1e-8)


def test_one_hot_targets_any_labels_and_noise():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    x = np.eye(3)[labels]
    found = feature_alignment(x, labels)
    assert found.target == pytest.approx(1)
    assert found.means == pytest.approx(1)
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    noisy = x + rng.standard_normal(x.shape)
    assert feature_alignment(noisy, labels).target < 0.5 < feature_alignment(noisy, labels).means
    assert feature_alignment(noisy, 7 * labels - 4).summary() == pytest.approx(
        feature_alignment(noisy, labels).summary()
    )
    assert "input_alignment" not in found.summary()


def test_the_error_covers_what_other_samples_give():
    """The mean jackknife error is near the spread of the estimate over data sets."""
    values, errors = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, 150)
        x = rng.standard_normal((150, 6))
        x[:, :2] += np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[labels]
        found = feature_alignment(x, labels)
        values.append(found.target)
        errors.append(found.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.3)


def test_coinciding_means_are_zero_and_constant_sides_refused():
    x = np.tile([[1.0, 2.0], [-1.0, 0.0]], (4, 1))
    labels = np.repeat([0, 1], 4)
    assert feature_alignment(x, labels).means == 0
    with pytest.raises(InputError, match="targets are the same"):
        feature_alignment(x, labels * 0)
    with pytest.raises(InputError, match="features are the same"):
        feature_alignment(np.ones((8, 2)), labels)
    with pytest.raises(InputError, match="inputs are the same"):
        feature_alignment(x, labels, np.ones((8, 2)))
    with pytest.raises(InputError, match="one row of finite numbers"):
        feature_alignment(x, labels, targets=np.ones((3, 1)))
    with pytest.raises(InputError, match="same samples"):
        feature_alignment(x, labels, x[:4])


OFFICIAL = {  # seed: conditions, units, alignment and participation ratio by the code of arXiv 2401.13558
    0: (4, 7, 0.4686562357814662, 2.148677815187807),
    1: (6, 20, 0.4135919626225694, 3.8850469444482516),
    2: (9, 3, 0.2763664603213639, 1.5715994371433308),
}


def test_participation_ratio():
    x = np.concatenate([np.diag([2.0, 1.0]), -np.diag([2.0, 1.0])])
    assert participation_ratio(x) == pytest.approx(25 / 17)
    assert participation_ratio(x + 100) == pytest.approx(25 / 17)
    assert participation_ratio(x + 100, center=False) == pytest.approx(1, abs=0.01)
    assert participation_ratio(np.random.default_rng(0).standard_normal((20_000, 5))) == pytest.approx(5, rel=0.01)
    with pytest.raises(InputError, match="no direction"):
        participation_ratio(np.zeros((4, 3)))


@pytest.mark.parametrize("seed", OFFICIAL)
def test_numbers_of_the_official_code(seed: int):
    conditions, units, alignment, ratio = OFFICIAL[seed]
    rng = np.random.default_rng(seed)
    z, y = rng.standard_normal((conditions, units)), rng.standard_normal((conditions, 2))
    assert kernel_alignment(z @ z.T, y @ y.T) == pytest.approx(alignment, rel=1e-12)
    assert participation_ratio(z, official=True) == pytest.approx(ratio, rel=1e-12)


def test_profile_of_a_network():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    x = torch.randn(90, 5, generator=generator) + 2 * torch.eye(3, 5)[labels]
    model = mlp(5, (7, 6), 3, random_state=0)
    found = alignment_profile(model, (x, labels), sites=["act*", "head"])
    assert found.sites == ("(inputs)", "act1", "act2", "head")
    with torch.no_grad():
        hidden = model[:3](x)
    assert found.input[0] == pytest.approx(1)
    onehot = np.eye(3)[labels]
    assert found.target[0] == pytest.approx(plain_cka(x.numpy(), onehot), rel=1e-5)
    assert found.target[1] == pytest.approx(plain_cka(hidden.numpy(), onehot), rel=1e-5)
    assert found.input[1] == pytest.approx(plain_cka(hidden.numpy(), x.numpy()), rel=1e-5)
    single = feature_alignment(hidden, labels, x)
    assert (found.target_error[1], found.input_error[1]) == pytest.approx(
        (single.standard_error, single.input_error), rel=1e-6
    )
    assert alignment_profile(model, (x, labels), sites=["act*"], max_samples=30).n_samples == 30
    (asked,) = ask(model, (x, labels), ["alignment_profile"])
    assert asked.finding is not None
    assert asked.finding.paragraph()
    assert get_lens("alignment_profile").of_network


def test_a_profile_passes_over_what_does_not_vary_and_refuses_what_has_no_arrangement():
    labels = torch.arange(12) % 2
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    dead = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    nn.init.zeros_(dead.get_parameter("0.weight"))
    found = alignment_profile(dead, (torch.cat([x, x]), torch.cat([labels, labels])), sites=["0:in", "0"])
    assert np.isnan(found.target[-1])
    assert np.isfinite(list(found.summary().values())).all()
    with pytest.raises(InputError, match="no site varies"):
        alignment_profile(dead, (x, labels), sites=["0"])
    with pytest.raises(InputError, match="no class labels"):
        alignment_profile(dead, x)
    with pytest.raises(InputError, match="at least 4 samples of 2 classes"):
        alignment_profile(dead, (x, labels * 0))
    with pytest.raises(InputError, match="no numbers"):
        alignment_profile(nn.Embedding(5, 3), (torch.arange(12)[:, None] % 5, labels))
    with pytest.raises(InputError, match="max_samples"):
        alignment_profile(dead, (x, labels), max_samples=2)


def test_xor_inputs_are_not_arranged_by_target():
    task = separable_xor(30, 0.0)
    assert feature_alignment(task.means, np.arange(4), targets=task.labels).means == pytest.approx(0, abs=1e-12)
