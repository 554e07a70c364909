"""Feed-forward blocks and their thresholded copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netloupe.core.errors import InputError
from netloupe.models.gpt import ByteGPT
from netloupe.nn.ffn import (
    FeedForward,
    GatedFeedForward,
    ThresholdedFFN,
    ThresholdedLinear,
    neuron_cuts,
    threshold_model,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_blocks_are_their_formula(kind: type[FeedForward], activation: str):
    ffn, x = kind(6, 10, activation), torch.randn(4, 3, 6)  # type: ignore[arg-type]
    act = {"relu": torch.relu, "silu": nn.functional.silu, "gelu": nn.functional.gelu}[activation]
    up = x @ ffn.up.weight.T
    hidden = act(x @ ffn.gate.weight.T) * up if isinstance(ffn, GatedFeedForward) else act(up)
    assert torch.allclose(ffn(x), hidden @ ffn.down.weight.T, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_thresholding_drops_exactly_the_short_outputs(seed: int):
    torch.manual_seed(seed)
    ffn, x = GatedFeedForward(6, 20, "relu", bias=True).double(), torch.randn(50, 6, dtype=torch.float64)
    a = ffn.act(ffn.gate(x)) * ffn.up(x)
    outputs = a[:, :, None] * ffn.down.weight.T  # token, neuron, d
    eps = 1.000001 * float(outputs.detach().norm(dim=2).median())  # beside the value, where rounding would decide
    expected = torch.where(outputs.norm(dim=2, keepdim=True) < eps, 0, outputs).sum(1) + ffn.down.bias
    sparse = ThresholdedFFN(ffn, eps)
    assert torch.allclose(sparse(x), expected, atol=1e-12)
    assert torch.allclose(ffn(x), outputs.sum(1) + ffn.down.bias, atol=1e-12), "the block itself is as it was"
    assert torch.allclose(ThresholdedFFN(ffn, 0.0)(x), ffn(x), atol=1e-15)
    assert torch.equal(sparse.cuts, eps / ffn.down.weight.norm(dim=0))
    ffn.up.weight.data.zero_()
    ffn.up.bias.data.zero_()
    assert torch.allclose(sparse(x), ffn.down.bias.expand(50, 6)), "weights are shared"


def test_a_column_of_zeros_is_free_to_drop():
    weight = torch.randn(4, 3)
    weight[:, 1] = 0
    cuts = neuron_cuts(weight, 0.5)
    assert cuts[1] == torch.inf
    assert torch.isfinite(cuts[[0, 2]]).all()
    layer = ThresholdedLinear(nn.Linear(3, 4), 1e-3)
    layer.linear.weight.data[:, 1] = 0
    assert torch.allclose(layer(torch.ones(1, 3)), layer.linear(torch.ones(1, 3)))


def test_whole_network_by_path():
    model = ByteGPT(16, 2, 2, 24, 8, random_state=0)
    tokens = torch.randint(256, (2, 8))
    dense = model(tokens)
    done = threshold_model(model, {"blocks.0.ffn.down": 0.0, "blocks.1.ffn.down": 3e38})
    assert done.matched == ("blocks.0.ffn.down", "blocks.1.ffn.down")
    sparse = model(tokens)
    assert not torch.allclose(sparse, dense)
    model.blocks[1].ffn.down = nn.Linear(24, 16, bias=False)
    model.blocks[1].ffn.down.weight.data.zero_()
    assert torch.allclose(model(tokens), sparse, atol=1e-6), "a threshold beyond all outputs silences the block"


def test_bad_arguments():
    ffn = FeedForward(4, 8)
    for call, message in (
        (lambda: ThresholdedFFN(ffn, -1.0), "eps is -1"),
        (lambda: ThresholdedFFN(ffn, float("nan")), "eps is nan"),
        (lambda: ThresholdedFFN(ffn, 1.0, "w2"), "no linear layer 'w2'"),
        (lambda: FeedForward(0, 8), "positive widths"),
        (lambda: FeedForward(4, 8, "tanh"), "expected one of"),  # type: ignore[arg-type]
        (lambda: threshold_model(ffn, {"act": 1.0}), "'act' is a ReLU"),
        (lambda: threshold_model(ffn, {"w3": 1.0}), "'w3' is not there"),
        (lambda: threshold_model(ffn, {"down": -1.0}), "eps is -1"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert isinstance(ffn.down, nn.Linear)
