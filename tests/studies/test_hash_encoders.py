"""The hash-encoders study: a stack trains each network as by itself, and the claims of its smallest run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netloupe.core.errors import InputError
from netloupe.core.study import run_study
from netloupe.core.training import train
from netloupe.data.digits import digits
from netloupe.lenses.geometry.codes import network_codes
from netloupe.studies._hash_encoders_claims import Grid, Measured, phase_claim
from netloupe.studies._hash_encoders_conv import conv_claim
from netloupe.studies._hash_encoders_network import Data, Net, Recipe, WidthStack, noisy_labels, train_nets


def small_data(n: int = 256, n_test: int = 64) -> Data:
    inputs, labels = digits(flat=True)
    return Data(inputs[:n], labels[:n], inputs[n : n + n_test], labels[n : n + n_test])


def test_smoke_verdicts():
    verdicts = {claim.name: claim.verdict for claim in run_study("hash-encoders", "smoke", seed=1).claims}
    assert len(verdicts) == 12
    for name in ("narrow-redundant", "wide-unique", "class-kmeans", "time-knn"):
        assert verdicts[name] == "reproduced", name
    for name in ("size-published", "regimes", "conv"):
        assert verdicts[name] == "not tested"
    with pytest.raises(InputError, match="preset"):
        run_study("hash-encoders", "huge")  # type: ignore[arg-type]


def by_itself(net: Net, data: Data, recipe: Recipe) -> nn.Sequential:
    """One network of torch's own layers, with the weights and the order of samples that it has in a stack."""
    start = WidthStack([net], recipe, data.x, 10)
    model = nn.Sequential(
        nn.Linear(64, net.width), nn.BatchNorm1d(net.width, eps=1e-3), nn.ReLU(), nn.Linear(net.width, 10)
    )
    with torch.no_grad():
        for layer, weight in zip((model[0], model[3]), start.weights):
            layer.weight.copy_(weight[0].T)
            layer.bias.zero_()
    y, per_epoch = noisy_labels(data.y, net.label_noise, net.seed), data.n // recipe.batch_size

    def feed(step: int, _: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(data.n, generator=torch.Generator().manual_seed(net.seed * 1_000_003 + epoch)) % (
            net.n_samples or data.n
        )
        rows = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
        return data.x[rows], y[rows]

    def loss(logits, batch):
        squares = model[0].weight.pow(2).sum() + model[3].weight.pow(2).sum()
        return F.cross_entropy(logits, batch.labels) + recipe.penalty * squares

    adam = torch.optim.Adam(model.parameters(), recipe.rate, eps=1e-7)
    train(
        model,
        feed,
        steps=per_epoch * recipe.epochs,
        optimizer=adam,
        loss=loss,
        schedule=lambda step: 0.1 ** (step // per_epoch // recipe.drop_every),
    )
    return model


def test_a_stack_is_networks_side_by_side():
    data, recipe = small_data(), Recipe(3, drop_every=2)
    nets = [Net(5, 0), Net(12, 1, label_noise=1.0), Net(12, 2, n_samples=50)]
    grown = train_nets(nets, data, recipe, (0,))
    for net in nets:
        model = by_itself(net, data, recipe)
        own, stacked = network_codes(model, data.x), grown[net][3].train
        assert own.n_bits == stacked.n_bits == net.width
        # biases before batch norm have no gradient but rounding, which Adam makes into steps; running means lag behind them
        assert (own.bits() != stacked.bits()).mean() < 0.01
        assert (own.bits() != grown[net][0].train.bits()).mean() > 0.1
        assert set(grown[net]) == {0, 3}


def test_noise_goes_where_it_should():
    data = small_data()
    y = noisy_labels(data.y, 0.5, 3)
    assert torch.equal(y.bincount(), data.y.bincount())
    assert 0.3 < float((y != data.y).float().mean()) < 0.5
    assert torch.equal(noisy_labels(data.y, 0.0, 3), data.y)
    stack = WidthStack([Net(4, 0), Net(4, 0, input_noise=0.25)], Recipe(1, batch_norm=False), data.x, 10)
    changed = (stack.get_buffer("x") != data.x).any(2).float().mean(1)
    assert changed.tolist() == pytest.approx([0, 0.25])


def test_the_chart_and_the_convolutions_measure():
    data, recipe = small_data(), Recipe(2)
    grid = Grid((3, 30), (0, 2), (64, 256), (3, 30), (1, 2), narrow=3, middle=10, wide=30)
    nets = [Net(width, 0, label_noise=noise) for width in (3, 30) for noise in (0.0, 1.0)]
    claim = phase_claim(Measured(train_nets(nets, data, recipe, (1,)), data, grid, (0,), 2))
    assert claim.measured is not None
    assert 0 < claim.measured <= 1
    assert claim.plot is not None
    conv = conv_claim(data, 20, (0,))
    assert conv.measured is not None
    assert np.isfinite(conv.control or np.nan)
