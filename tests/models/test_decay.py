"""Weight-decay groups: every parameter once, on its side, with its own decay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netloupe.core.errors import InputError, SiteError
from netloupe.models.decay import decay_groups
from netloupe.models.small import DigitsCNN, mlp


@pytest.mark.parametrize("model", [mlp(6, (5, 4), 3), DigitsCNN()], ids=["mlp", "cnn"])
def test_every_parameter_is_in_one_group(model):
    body, head = decay_groups(model, body_decay=0.1, head_decay=0.2)
    assert {id(p) for p in head["params"]} == {id(p) for p in model.head.parameters()}
    assert [id(p) for p in body["params"]] + [id(p) for p in head["params"]] == [id(p) for p in model.parameters()]
    assert (body["weight_decay"], head["weight_decay"]) == (0.1, 0.2)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(body=st.floats(0, 0.5), head=st.floats(0, 0.5), rate=st.floats(0.01, 0.5))
def test_without_a_gradient_each_side_shrinks_by_its_own_decay(body, head, rate):
    model = mlp(4, (3,), 2, random_state=0).double()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(decay_groups(model, body_decay=body, head_decay=head), lr=rate)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in model.named_parameters():
        factor = 1 - rate * (head if name.startswith("head") else body)
        torch.testing.assert_close(value.detach(), factor * before[name], rtol=1e-12, atol=0)


def test_shared_weights_belong_to_the_head_and_frozen_ones_to_nobody():
    model = nn.ModuleDict({"embed": nn.Linear(4, 4), "middle": nn.Linear(4, 4), "head": nn.Linear(4, 4)})
    model["head"].weight = model["embed"].weight
    model["middle"].bias.requires_grad_(False)
    body, head = decay_groups(model)
    assert {id(p) for p in head["params"]} == {id(model["embed"].weight), id(model["head"].bias)}
    assert {id(p) for p in body["params"]} == {id(model["embed"].bias), id(model["middle"].weight)}


def test_bad_input_is_refused_in_one_sentence():
    model = mlp(4, (3,), 2)
    for call, error, fragment in [
        (lambda: decay_groups(model, head="fc9"), SiteError, "no module 'fc9'"),
        (lambda: decay_groups(model, head=""), SiteError, "no module ''"),
        (lambda: decay_groups(model, body_decay=-1.0), InputError, "body_decay is -1"),
        (lambda: decay_groups(model, head_decay=float("nan")), InputError, "head_decay is nan"),
        (lambda: decay_groups(model, head="act1"), InputError, "0 of the network's 4"),
        (lambda: decay_groups(nn.Sequential(model), head="0"), InputError, "4 of the network's 4"),
    ]:
        with pytest.raises(error, match=fragment) as caught:
            call()
        assert "\n" not in str(caught.value)
