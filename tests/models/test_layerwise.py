"""Layer-wise training: what is trained, what is frozen, and what the stages hold."""

from __future__ import annotations

import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.core.training import accuracy, squared_error
from netloupe.models.layerwise import grow_layerwise


def blobs(n_samples=120, n_classes=3, n_units=6):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n_samples) % n_classes
    centres = 2 * torch.randn(n_classes, n_units, generator=generator)
    return centres[labels] + torch.randn(n_samples, n_units, generator=generator), labels


def weights(stage):
    return {name: value.clone() for name, value in stage.network.state_dict().items()}


def test_stages_hold_the_network_so_far_and_its_features():
    inputs, labels = blobs()
    for depth, stage in enumerate(grow_layerwise(inputs, labels, (8, 7, 5), steps=5), start=1):
        names = [name for name, _ in stage.network.named_children()]
        hidden = [f"{kind}{layer}" for layer in range(1, depth + 1) for kind in ("fc", "act")]
        assert names == ["flatten", *hidden, "head"]
        assert stage.depth == depth
        assert stage.history is not None
        assert stage.history.n_steps == 5
        with torch.no_grad():
            expected = stage.network[:-1](inputs)
            torch.testing.assert_close(stage.features, expected)
            assert stage.network(inputs).shape == (len(inputs), 3)


def test_lower_layers_are_frozen_and_the_newest_learns():
    inputs, labels = blobs()
    before: dict[str, torch.Tensor] = {}
    untrained = list(grow_layerwise(inputs, labels, (8, 7), steps=20, n_trained=0))
    for stage in grow_layerwise(inputs, labels, (8, 7), steps=20):
        after = weights(stage)
        for layer in range(1, stage.depth):
            assert torch.equal(after[f"fc{layer}.weight"], before[f"fc{layer}.weight"])
            assert not stage.network.get_submodule(f"fc{layer}").weight.requires_grad
        newest = f"fc{stage.depth}.weight"
        assert not torch.equal(after[newest], weights(untrained[stage.depth - 1])[newest])
        before = after


def test_untrained_layers_stay_as_they_were_drawn():
    inputs, labels = blobs()
    control = list(grow_layerwise(inputs, labels, (8, 7, 6), steps=20, n_trained=1))
    drawn = list(grow_layerwise(inputs, labels, (8, 7, 6), steps=20, n_trained=0))
    assert [stage.history is None for stage in control] == [False, True, True]
    first, last = weights(drawn[-1]), weights(control[-1])
    assert not torch.equal(last["fc1.weight"], first["fc1.weight"])
    for name in ("fc2.weight", "fc3.weight", "head.weight"):
        assert torch.equal(last[name], first[name])


def test_one_layer_learns_its_task_in_both_losses():
    inputs, labels = blobs()
    for loss, bias in ((squared_error, False), (None, True)):
        (stage,) = grow_layerwise(inputs, labels, (32,), steps=400, loss=loss, head_bias=bias)
        assert (stage.network.get_submodule("head").bias is not None) == bias
        assert accuracy(stage.network, inputs, labels) > 0.95


def test_it_repeats_and_leaves_the_random_state_alone():
    inputs, labels = blobs()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    runs = [[s.features for s in grow_layerwise(inputs, labels, (8, 7), steps=9, random_state=n)] for n in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one, same) for one, same in zip(runs[0], runs[1]))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_images_are_flattened():
    inputs, labels = blobs()
    flat = [stage.features for stage in grow_layerwise(inputs, labels, (8,), steps=3)]
    images = [stage.features for stage in grow_layerwise(inputs.reshape(-1, 1, 2, 3), labels, (8,), steps=3)]
    assert torch.equal(flat[0], images[0])


def test_bad_input_is_refused_in_one_sentence():
    inputs, labels = blobs()
    for call, fragment in [
        (lambda: grow_layerwise(inputs, labels[:-1], (8,), steps=1), "one whole-number label"),
        (lambda: grow_layerwise(inputs, labels.float(), (8,), steps=1), "one whole-number label"),
        (lambda: grow_layerwise(inputs, labels, (), steps=1), "at least one positive width"),
        (lambda: grow_layerwise(inputs, labels, (8, 0), steps=1), "at least one positive width"),
        (lambda: grow_layerwise(inputs, labels, (8,), steps=1, n_trained=2), "from 0 to 1"),
    ]:
        with pytest.raises(InputError, match=fragment) as caught:
            call()
        assert "\n" not in str(caught.value)
