"""Networks trained as a stack are the networks trained one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netloupe.core.errors import InputError
from netloupe.core.training import train
from netloupe.models.stacked import ACTIVATIONS, Indexed, StackedAdam, StackedMLP, stacked_loss

WIDTHS = (6, 5, 4, 3)
GENERATOR = torch.Generator().manual_seed(0)
INPUTS, LABELS = torch.randn(80, 6, generator=GENERATOR), torch.randint(0, 3, (80,), generator=GENERATOR)


def order_of(step: int, copy: int) -> torch.Tensor:
    return torch.randperm(80, generator=torch.Generator().manual_seed(100 * step + copy))[:16]


def single(seed: int, activation: str) -> nn.Sequential:
    stack = StackedMLP(WIDTHS, activation, [seed])
    layers: list[nn.Module] = []
    made = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}[activation]
    for index, (weight, bias) in enumerate(zip(stack.weights, stack.biases)):
        linear = nn.Linear(*weight.shape[1:])
        with torch.no_grad():
            linear.weight.copy_(weight[0].T)
            linear.bias.copy_(bias[0, 0])
        layers += [linear] if index == len(WIDTHS) - 2 else [linear, made()]
    return nn.Sequential(*layers)


def test_a_stack_equals_networks_trained_by_themselves():
    activations, seeds = ["tanh", "tanh", "relu", "elu"], [3, 4, 3, 5]
    rates, penalties = [1e-2, 3e-2, 1e-2, 5e-3], [0.0, 0.0, 0.05, 0.0]
    stack = StackedMLP(WIDTHS, activations, seeds)
    network = Indexed(stack, INPUTS)
    history = train(
        network,
        lambda step, _: (torch.stack([order_of(step, copy) for copy in range(4)], 1),),
        steps=40,
        optimizer=StackedAdam(network.parameters(), rates),
        loss=stacked_loss(stack, LABELS.expand(4, -1), torch.tensor(penalties)),
    )
    assert history.loss[-1] < history.loss[0]
    for copy in range(4):
        model = single(seeds[copy], activations[copy])
        weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)][:-1]

        def loss(output, batch, weights=weights, penalty=penalties[copy]):
            return F.cross_entropy(output, batch.labels) + 0.5 * penalty * sum((w**2).sum() for w in weights)

        def feed(step, _, copy=copy):
            chosen = order_of(step, copy)
            return INPUTS[chosen], LABELS[chosen]

        optimizer = torch.optim.Adam(model.parameters(), lr=rates[copy])
        train(model, feed, steps=40, optimizer=optimizer, loss=loss)
        with torch.no_grad():
            torch.testing.assert_close(stack(INPUTS)[copy], model(INPUTS), rtol=1e-4, atol=2e-5)


def test_a_rate_of_zero_leaves_a_copy_alone():
    stack = StackedMLP(WIDTHS, "tanh", [0, 1])
    before = [parameter.detach().clone() for parameter in stack.parameters()]
    stack(INPUTS).square().sum().backward()
    StackedAdam(stack.parameters(), [0.0, 1e-2]).step()
    for was, now in zip(before, stack.parameters()):
        assert torch.equal(was[0], now[0])
        assert not torch.equal(was[1], now[1])


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_initial_weights_depend_on_the_seed_alone_and_have_the_gain_s_width(name):
    wide = (400, 300, 2)
    stack = StackedMLP(wide, name, [5, 6, 5])
    assert torch.equal(stack.weights[0][0], stack.weights[0][2])
    assert not torch.equal(stack.weights[0][0], stack.weights[0][1])
    width, drawn = ACTIVATIONS[name].gain / 20, stack.weights[0].detach()
    assert float(drawn.abs().max()) <= 2 * width
    assert float(drawn.std()) == pytest.approx(0.8796 * width, rel=0.01)  # a normal cut at two widths
    assert not any(bool(bias.any()) for bias in stack.biases)
    assert len(stack.layers(torch.randn(7, 400))) == 2


def test_batch_norm_is_that_of_each_copy():
    stack = StackedMLP(WIDTHS, "relu", [0, 1], batch_norm=True)
    hidden = stack.layers(INPUTS)[-2]
    torch.testing.assert_close(hidden.mean(1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    stack.eval()
    plain = StackedMLP(WIDTHS, "relu", [0, 1]).layers(INPUTS)[-2]
    assert not torch.allclose(stack.layers(INPUTS)[-2], plain)


def test_a_learned_slope_is_used_below_zero():
    stack = StackedMLP((2, 2, 2), ["relu", "prelu"], [0, 0])
    relu, prelu = stack.layers(INPUTS[:, :2])[0]
    pre = INPUTS[:, :2] @ stack.weights[0][1]
    torch.testing.assert_close(prelu, torch.where(pre > 0, pre, 0.25 * pre))
    torch.testing.assert_close(relu, pre.relu())
    stack(INPUTS[:, :2]).sum().backward()
    assert float(stack.slopes[0].grad[1].abs().sum()) > 0
    assert float(stack.slopes[0].grad[0].abs().sum()) == 0


def test_bad_input_is_refused():
    for arguments in (((3,), "tanh", [0]), ((3, 2), "sine", [0]), ((3, 2), "tanh", []), ((3, 2), ["tanh"], [0, 1])):
        with pytest.raises(InputError, match="are needed"):
            StackedMLP(*arguments)
