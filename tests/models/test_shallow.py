"""Shallow networks, alone and as a stack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from netloupe.core.errors import InputError
from netloupe.data.structured_tasks import unstructured_task
from netloupe.models.shallow import ShallowNet, ShallowStack, train_stack


def batches(n_copies: int, step: int, m: int = 1):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(n_copies, 30, 6, generator=generator)
    return x, torch.where(torch.randn(n_copies, 30, m, generator=generator) > 0, 1.0, -1.0)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_a_stack_is_its_networks_side_by_side(name: str, frozen: bool):
    together = [ShallowNet(6, 9, 2, name, frozen, random_state=seed) for seed in range(3)]
    alone = [ShallowNet(6, 9, 2, name, frozen, random_state=seed) for seed in range(3)]
    seen = []
    assert (
        train_stack(
            together, lambda step: batches(3, step, 2), 7, 0.2, watch=lambda s, _: seen.append(s), watch_every=3
        )
        == 7
    )
    assert seen == [0, 3, 6, 7]
    for index, net in enumerate(alone):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.2)
        for step in range(7):
            x, y = batches(3, step, 2)
            loss = F.binary_cross_entropy_with_logits(net(x[index]), (y[index] + 1) / 2) * 2  # a sum over both targets
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for one, other in zip(net.parameters(), together[index].parameters()):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    if frozen:
        torch.testing.assert_close(together[0].head.weight, ShallowNet(6, 9, 2, name, random_state=0).head.weight)


def test_training_stops_when_nothing_moves():
    net = ShallowNet(6, 4, random_state=0)
    x, y = batches(1, 0)
    assert train_stack([net], lambda step: (0 * x, y), 100, 1e-9, tolerance=1e-5, epoch=10) == 10


def test_a_network_learns_its_task():
    task = unstructured_task(4, 30, 0.3)
    net = ShallowNet(30, 32, activation="tanh", freeze_output=True)
    _, x, y = task.sample(500)
    inputs, labels = torch.from_numpy(x).float()[None], torch.from_numpy(y).float()[None]
    train_stack([net], lambda step: (inputs, labels), 200, 0.3)
    _, x, y = task.sample(500, seed=1)
    assert ((net(torch.from_numpy(x).float()).detach().numpy() > 0) == (y > 0)).mean() > 0.98


@pytest.mark.parametrize("weights", ["uniform", "normal"])
def test_initial_widths(weights: str):
    net = ShallowNet(400, 300, 2, weights=weights, readout=weights)  # type: ignore[arg-type]
    wide = {"uniform": 1 / np.sqrt(3), "normal": 1.0}[weights]
    assert float(net.hidden.weight.detach().std()) * 20 == pytest.approx(wide, rel=0.02)
    assert float(net.hidden.bias.detach().std()) * 20 == pytest.approx(1, rel=0.2)
    assert float(net.head.weight.detach().std()) * np.sqrt(300) == pytest.approx(wide, rel=0.1)
    state = torch.random.get_rng_state()
    again = ShallowNet(400, 300, 2, weights=weights, readout=weights)  # type: ignore[arg-type]
    assert torch.equal(net.hidden.weight, again.hidden.weight)
    assert torch.equal(state, torch.random.get_rng_state())


def test_readouts():
    balanced = ShallowNet(5, 16, 2, readout="balanced").head.weight.detach() * 4
    patterns, counts = balanced.T.unique(dim=0, return_counts=True)
    assert counts.tolist() == [4] * 4
    assert patterns.abs().unique().tolist() == [1]
    sphere = ShallowNet(5, 16, 3, readout="sphere").head.weight
    torch.testing.assert_close(sphere.norm(dim=1), torch.ones(3))


def test_refusals():
    for bad in (
        lambda: ShallowNet(0, 3),
        lambda: ShallowNet(3, 3, weights="orthogonal"),  # type: ignore[arg-type]
        lambda: ShallowNet(3, 3, activation="step"),
        lambda: ShallowStack([]),
        lambda: ShallowStack([ShallowNet(3, 3), ShallowNet(3, 4)]),
    ):
        with pytest.raises(InputError):
            bad()
