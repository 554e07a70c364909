"""The residual network's shapes, size and seeds."""

from __future__ import annotations

import torch

from netloupe.core.capture import capture
from netloupe.models.resnet import ResNet18


def test_parameters_are_those_of_resnet18_with_a_small_stem():
    assert sum(parameter.numel() for parameter in ResNet18().parameters()) == 11_173_962


def test_features_feed_the_head_and_strides_halve_the_image():
    model = ResNet18(1, 7, width=4, head_bias=False, random_state=0)
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    (found,) = capture(model, images, ["layer1", "layer4", "features", "head:in", "."])
    assert found.activations["layer1"].shape == (3, 28 * 28, 4)
    assert found.activations["layer4"].shape == (3, 4 * 4, 32)
    assert torch.equal(found.activations["features"], found.activations["head:in"])
    assert found.activations["head:in"].shape == (3, 32)
    torch.testing.assert_close(found.activations["features"], found.activations["layer4"].mean(1))
    assert model.head.bias is None


def test_seed_decides_the_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, same, other = (ResNet18(1, 3, width=2, random_state=seed).stem.weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
