"""The byte language model: its sites, its seed, causality, positions, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netloupe.core.capture import capture
from netloupe.core.errors import InputError
from netloupe.core.losses import next_token_loss
from netloupe.core.training import train
from netloupe.data.bytes_text import byte_batches, byte_windows, stdlib_bytes, unigram_entropy
from netloupe.models.gpt import ByteGPT, Rotary

SMALL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24, "context": 12}


def tokens(n: int = 3, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_sites_read_well(gated: bool, positions: str):
    model = ByteGPT(**SMALL, gated=gated, positions=positions, random_state=0)  # type: ignore[arg-type]
    sites = ["tokens", "blocks.0", "blocks.*.ffn.act", "blocks.1.ffn.down:in", "norm", "head"]
    (captured,) = capture(model, tokens(), sites)
    assert captured["blocks.0"].shape == captured["norm"].shape == (3, 12, 16)
    assert captured["blocks.1.ffn.act"].shape == captured["blocks.1.ffn.down:in"].shape == (3, 12, 24)
    assert captured["head"].shape == (3, 12, 256)
    same = torch.equal(captured["blocks.1.ffn.act"], captured["blocks.1.ffn.down:in"])
    assert same is not gated, "in a gated block the projection reads the product"


def test_a_block_is_the_stream_after_both_sums():
    model = ByteGPT(**SMALL, random_state=0)
    (c,) = capture(model, tokens(), ["tokens", "blocks.0.attn", "blocks.0.ffn", "blocks.0"])
    assert torch.allclose(c["blocks.0"], c["tokens"] + c["blocks.0.attn"] + c["blocks.0.ffn"], atol=1e-6)


def test_seed_decides_the_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (ByteGPT(**SMALL, random_state=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters()))
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_no_position_sees_a_later_one_and_order_matters(positions: str):
    model = ByteGPT(**SMALL, positions=positions, random_state=0)  # type: ignore[arg-type]
    x = tokens()
    changed = x.clone()
    changed[:, 7] = (x[:, 7] + 1) % 256
    assert torch.allclose(model(x)[:, :7], model(changed)[:, :7], atol=1e-6)
    assert not torch.allclose(model(x)[:, 7:], model(changed)[:, 7:], atol=1e-6)
    swapped = x.clone()
    swapped[:, [2, 4]] = x[:, [4, 2]]
    assert not torch.allclose(model(x)[:, 8], model(swapped)[:, 8], atol=1e-6)
    assert torch.allclose(model(x)[:, :5], model(x[:, :5]), atol=1e-5), "a shorter sequence is a prefix"


def test_rotary_products_depend_on_distance_alone():
    rotary = Rotary(8, 20)
    query, key = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    q, k = rotary(query.expand(20, 8)), rotary(key.expand(20, 8))
    products = q @ k.T
    for shift in range(1, 6):
        along = products.diagonal(shift)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-6)
    assert torch.allclose(q.norm(dim=1), query.norm().expand(20), atol=1e-6)


def test_activation_by_name():
    kinds = {
        name: type(ByteGPT(**SMALL, activation=name).get_submodule("blocks.0.ffn.act"))
        for name in ("relu", "silu", "gelu")
    }  # type: ignore[arg-type]
    assert kinds == {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tanh"}, "expected one of relu, silu, gelu"),
        ({"n_heads": 3}, "divide the width"),
        ({"d_ff": 0}, "positive sizes"),
        ({"positions": "none"}, "rotary or learned"),
        ({"n_heads": 16}, "even number"),
    ],
)
def test_bad_options(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        ByteGPT(**{**SMALL, **options})


@pytest.mark.parametrize("bad", [torch.zeros(2, 13).long(), torch.zeros(2, 4), torch.zeros(4).long()])
def test_bad_tokens(bad: torch.Tensor):
    with pytest.raises(InputError, match="expected whole numbers"):
        ByteGPT(**SMALL, random_state=0)(bad)


def test_it_learns_more_than_the_frequencies_of_bytes():
    text, held_out = stdlib_bytes("train", limit=200), stdlib_bytes("validation", limit=200)
    model = ByteGPT(32, 1, 2, 64, 32, random_state=0)
    start = float(next_token_loss(*_run(model, byte_windows(held_out, 32))).detach())
    assert start == pytest.approx(5.545, abs=0.05), "before training all bytes are alike"
    train(
        model, byte_batches(text, 32, 16), steps=120, loss=next_token_loss, warmup=10,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
    )  # fmt: skip
    assert float(next_token_loss(*_run(model, byte_windows(held_out, 32))).detach()) < unigram_entropy(held_out) - 0.2


def _run(model: nn.Module, windows: torch.Tensor):
    from netloupe.core.batches import prepare

    return model(windows), prepare(windows, model)
