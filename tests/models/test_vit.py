"""The plain transformer: its sites, its seed, its masks and its refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netloupe.core.capture import capture
from netloupe.core.errors import InputError
from netloupe.models.vit import Attention, TokenTransformer, ViT


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_sites_have_clear_names_and_tokens_as_positions():
    model, images = ViT(8, 2, 10, d_model=16, d_ff=24, n_layers=2, random_state=0), torch.rand(3, 1, 8, 8)
    (captured,) = capture(model, images, ["patch", "blocks.*.mlp.act", "blocks.1.attn", "features", "head"])
    assert captured["patch"].shape == (3, 16, 16)
    assert captured["blocks.0.mlp.act"].shape == captured["blocks.1.mlp.act"].shape == (3, 17, 24)
    assert (captured["blocks.0.mlp.act"] >= 0).all()
    assert captured["features"].shape == (3, 16)
    assert torch.equal(captured["head"], model(images))


def test_seed_decides_the_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (ViT(8, 4, 3, d_model=8, random_state=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters()))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_mean_pooling_has_no_class_token_and_takes_any_activation():
    model = ViT(8, 4, 3, d_model=8, n_layers=1, pool="mean", activation=nn.GELU, channels=2, random_state=0)
    assert model.cls is None
    assert model.positions.shape == (1, 4, 8)
    assert model(torch.rand(2, 2, 8, 8)).shape == (2, 3)


def test_attention_equals_its_formula():
    layer, x = Attention(6, 2).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    query, key, value = layer.qkv(x).chunk(3, -1)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        weights = (query[..., part] @ key[..., part].transpose(1, 2) / 3**0.5).softmax(-1)
        heads.append(weights @ value[..., part])
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)))


def test_language_model_does_not_see_the_future():
    model = TokenTransformer(7, 12, d_model=8, d_ff=16, n_layers=2, n_heads=2, random_state=0)
    ids = torch.randint(7, (2, 10))
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 7
    one, other = model(ids), model(changed)
    assert torch.equal(one[:, :6], other[:, :6])
    assert not torch.equal(one[:, 6:], other[:, 6:])
    assert one.shape == (2, 10, 7)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ViT(8, 3, 10),
        lambda: ViT(8, 2, 0),
        lambda: ViT(8, 2, 10, pool="max"),  # type: ignore[arg-type]
        lambda: ViT(8, 2, 10, d_model=9, n_heads=2),
        lambda: TokenTransformer(0, 4),
        lambda: TokenTransformer(5, 4)(torch.zeros(1, 5, dtype=torch.long)),
    ],
)
def test_refusals_are_one_sentence(build):
    with pytest.raises(InputError, match="expected") as caught:
        build()
    assert "\n" not in str(caught.value)
