"""The moment head and the adapters: closed forms, published sizes, and the published code's own numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netloupe.core.capture import capture
from netloupe.core.errors import InputError, SiteError
from netloupe.models.vit import ViT
from netloupe.nn.moment_head import CrossMoments, MomentHead, after_convolutions, head_pairs
from netloupe.nn.psrp import RecalibratingAdapter, attach_recalibration


def filled(module: nn.Module, rng: np.random.Generator) -> nn.Module:
    """Every parameter, in the order of names, drawn from one generator."""
    with torch.no_grad():
        for _, value in sorted(module.double().named_parameters()):
            value.copy_(torch.from_numpy(0.3 * rng.standard_normal(tuple(value.shape))))
    return module


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pairs", ["near", "half", "one", "all"])
def test_cross_moments_are_their_definition(seed: int, pairs: str):
    tokens = torch.randn(3, 9, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = CrossMoments(4, pairs, "none", "none")(tokens).numpy()  # type: ignore[arg-type]
    heads = tokens.numpy().reshape(3, 9, 4, 3)
    for place, (i, j) in enumerate(head_pairs(4, pairs)):  # type: ignore[arg-type]
        np.testing.assert_allclose(
            found[:, place], np.einsum("blp,blq->bpq", heads[:, :, i], heads[:, :, j]) / 9, atol=1e-14
        )


@pytest.mark.parametrize("seed", range(3))
def test_centred_over_tokens_they_are_the_covariance(seed: int):
    tokens = 5 + torch.randn(2, 11, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = CrossMoments(2, center="token", normalise="none")(tokens)
    for sample, values in zip(found, tokens.numpy()):
        np.testing.assert_allclose(sample[0].numpy(), np.cov(values, rowvar=False, bias=True)[:3, 3:], atol=1e-12)


def test_scalar_centring_takes_one_number_off_each_head_and_columns_have_length_one():
    tokens = torch.randn(2, 5, 8, dtype=torch.float64) + torch.arange(8.0)
    scalar = CrossMoments(2, center="scalar", normalise="none")(tokens)
    heads = tokens.reshape(2, 5, 2, 4)
    shifted = (heads - heads.mean((1, 3), keepdim=True)).reshape(2, 5, 8)
    torch.testing.assert_close(scalar, CrossMoments(2, center="none", normalise="none")(shifted))
    torch.testing.assert_close(CrossMoments(2)(tokens).norm(dim=-2), torch.ones(2, 1, 4, dtype=torch.float64))
    scaled = tokens.clone()
    scaled[:, :, 4:] *= 3
    raw, three = (CrossMoments(2, center="none")(values) for values in (tokens, scaled))
    torch.testing.assert_close(raw, three)  # the second head's scale is hidden


def test_published_sizes():
    head = MomentHead(768, 1000)
    assert head.second_order.in_features == 2883
    assert [after_convolutions(width) for width in (128, 16, 7)] == [31, 3, 1]
    assert count(head.first_order) + count(head.second_order) == 3_653_000
    rest = 768 * 512 + 512 + 2 * 128 + 2 * 3 * 3 * 9
    assert count(head) == 3_653_000 + rest == 4_047_146
    assert 12 * count(RecalibratingAdapter(768)) == 442_368
    small = MomentHead(16, 4, 64)
    assert small.second_order.in_features == 27
    assert count(small) == 1462
    assert small(torch.randn(5, 9, 16)).shape == (5, 4)


# logits of the authors' code in float64, its parameters set to those drawn here
VIT = {
    0: (
        [1.158810965884414, -0.6658834282389493, -1.03606703481634, -0.672468688196791, -0.510980529287429],
        [0.07312453703128985, -1.1311209149426251, -0.21113241314239078, 3.310770416659283, -0.2778374240765732],
    ),
    1: (
        [0.46240484794469994, 0.7471541381173733, -0.8951457291022047, -1.4119387813237707, 0.042313928454073446],
        [0.24628365391298182, 0.34886392611469086, -0.926217744300827, -0.6449175433881913, 0.7900436276299028],
    ),
}
CNN = {
    4: [
        [-1.0858351132233073, -0.26326256059866066, -1.5652201146202638, -1.3366975962386403],
        [-0.4586330213688648, -0.6777396178972435, -1.4242604359590114, -1.6430675426032426],
    ],
    5: [
        [0.10851031642971903, 0.7052371094806446, 0.3978737535983423, -0.521902421451696],
        [-0.5803633672661495, 1.0066598689177917, -0.3587648453875746, -0.17462047354976173],
    ],
}
SCALE = [-0.5281259937791872, 0.09521045142039501, 0.24937319624404763, 0.0532614660843731]
SHIFT = [-0.07833196471415682, 0.15751869972291133, -0.6057238604610129, 0.09724481290647269]


@pytest.mark.parametrize("seed", VIT)
def test_logits_of_the_published_transformer_head(seed: int):
    rng = np.random.default_rng(seed)
    head = filled(MomentHead(12, 5), rng)
    tokens = torch.from_numpy(rng.standard_normal((3, 10, 12)))
    found = head(tokens).detach()
    np.testing.assert_allclose(found[[0, 2]].numpy(), VIT[seed], rtol=1e-9)
    torch.testing.assert_close(head(tokens[:, 1:], tokens[:, 0]).detach(), found)


@pytest.mark.parametrize("seed", CNN)
def test_logits_of_the_published_convolutional_head(seed: int):
    rng = np.random.default_rng(seed)
    head = filled(MomentHead(10, 4, first="mean", norm=True), rng)
    assert isinstance(head, MomentHead)
    found = head.from_map(torch.from_numpy(rng.standard_normal((2, 10, 4, 5))))
    np.testing.assert_allclose(found.detach().numpy(), CNN[seed], rtol=1e-9)


def test_the_published_adapter():
    rng = np.random.default_rng(6)
    adapter = filled(RecalibratingAdapter(8, 3), rng)
    scale, shift = adapter(torch.from_numpy(rng.standard_normal((2, 8))))
    np.testing.assert_allclose(scale[0, :4].detach().numpy(), SCALE, rtol=1e-9)
    np.testing.assert_allclose(shift[0, :4].detach().numpy(), SHIFT, rtol=1e-9)


def test_combine_and_gradients():
    tokens = torch.randn(4, 6, 10)
    torch.manual_seed(0)
    mean = MomentHead(10, 3, 28, first="mean")
    total = MomentHead(10, 3, 28, first="mean", combine="sum")
    total.load_state_dict(mean.state_dict())
    torch.testing.assert_close(total(tokens), 2 * mean(tokens))
    mean(tokens).sum().backward()
    assert all(value.grad is not None for value in mean.parameters())


def vit() -> ViT:
    return ViT(8, 4, 3, d_model=12, d_ff=24, n_layers=2, n_heads=2, random_state=0).double().eval()


def test_adapters_in_a_transformer_are_the_published_recalibration():
    model, images = vit(), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    plain = model(images)
    sources = [f"blocks.{i}.norm2:in" for i in range(2)]
    with attach_recalibration(model, "blocks.*.mlp", images, sources=sources, random_state=1) as made:
        adapters = made.double()
        tuned = model(images)
        tuned.sum().backward()
    torch.testing.assert_close(model(images), plain)
    assert count(adapters) == 2 * 3 * 12 * 16
    assert all(value.grad is not None and bool(value.grad.any()) for value in adapters.parameters())

    x = torch.cat([model.cls.expand(3, -1, -1), model.patch(images).flatten(2).transpose(1, 2)], 1) + model.positions  # type: ignore[union-attr]
    for block, adapter in zip(model.blocks, adapters.adapters):
        x = x + block.attn(block.norm1(x))
        scale, shift = adapter(x)
        x = x + shift + (1 + scale) * block.mlp(block.norm2(x))
    torch.testing.assert_close(tuned, model.head(model.norm(x)[:, 0]))
    with attach_recalibration(model, "blocks.*.mlp", images, sources=sources, adapters=adapters):
        torch.testing.assert_close(model(images), tuned)


def test_adapters_that_are_zero_change_nothing_and_convolutions_are_recalibrated_by_place():
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten())
    images = torch.randn(2, 1, 5, 5)
    plain = model(images)
    with attach_recalibration(model, ["1"], images, zero_init=True):
        assert torch.equal(model(images), plain)
    state = torch.get_rng_state()
    with attach_recalibration(model, ["1"], images, random_state=3) as adapters:
        assert torch.equal(torch.get_rng_state(), state)
        found = next(iter(capture(model, images, ["2:in"])))["2:in"]
    hidden = torch.relu(model[0](images)).flatten(2).transpose(1, 2)
    scale, shift = adapters.adapters[0](hidden)
    torch.testing.assert_close(found, (shift + (1 + scale) * hidden).detach())


def test_what_cannot_work_is_refused():
    for arguments, words in [
        ({"n_heads": 1}, "at least 2"),
        ({"n_heads": 3, "pairs": "half"}, "even number"),
        ({"n_heads": 4, "pairs": "far"}, "one of near"),
        ({"n_heads": 4, "center": "all"}, "center"),
    ]:
        with pytest.raises(InputError, match=words):
            CrossMoments(**arguments)
    with pytest.raises(InputError, match="do not divide"):
        CrossMoments(4)(torch.randn(2, 5, 6))
    with pytest.raises(InputError, match="multiple of the heads"):
        MomentHead(8, 3, 30, 4)
    with pytest.raises(InputError, match="at least 7"):
        MomentHead(8, 3, 24, 4)
    with pytest.raises(InputError, match="positive sizes"):
        MomentHead(8, 0)
    head = MomentHead(8, 3, 28)
    for tokens in (torch.randn(4, 8), torch.randn(4, 1, 8), torch.randn(4, 2, 8)):  # one patch beside the class token
        with pytest.raises(InputError, match="at least 2 positions"):
            head(tokens)
    with pytest.raises(InputError, match="built for 8"):
        head(torch.randn(4, 5, 9))
    with pytest.raises(InputError, match="first='mean'"):
        head.from_map(torch.randn(2, 8, 3, 3))
    with pytest.raises(InputError, match="reduction"):
        RecalibratingAdapter(8, 0)


def test_adapters_refuse_sites_and_sources_that_do_not_fit():
    model, images = vit(), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    with pytest.raises(SiteError), attach_recalibration(model, "nowhere", images):
        pass
    with (
        pytest.raises(InputError, match="one each"),
        attach_recalibration(model, "blocks.*.mlp", images, sources=["norm"]),
    ):
        pass
    with (
        pytest.raises(SiteError, match="comes earlier"),
        attach_recalibration(model, ["blocks.0.mlp"], images, sources=["blocks.1.norm1"]) as made,
    ):
        made.double()
        model(images)
    with attach_recalibration(model, ["blocks.0.mlp"], images) as made:
        pass
    with (
        pytest.raises(InputError, match="adapters are for"),
        attach_recalibration(model, ["blocks.1.mlp"], images, adapters=made),
    ):
        pass
