"""Interventions against networks changed by hand; composition, nesting, gradients, restoration."""

from __future__ import annotations

import pytest
import torch
from networks import Attention, Cnn, Conv1d, Loop, Outputs
from torch import nn

from netloupe.core.capture import capture
from netloupe.core.errors import InputError, SiteError
from netloupe.core.intervene import ablate, clamp, intervene, patch, project_out, replace_with, scale, steer
from netloupe.core.recording import record


def captured(model, x, site):
    return next(capture(model, x, site, batch_size=len(x)))[site]


@pytest.fixture
def cnn():
    return Cnn().eval()


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8)


def rest(model: Cnn, after_relu: torch.Tensor) -> torch.Tensor:
    return model.tail(after_relu)


def relu_output(model: Cnn, x: torch.Tensor) -> torch.Tensor:
    return torch.relu(model.norm(model.conv(x)))


def test_zero_ablation_of_units_of_a_convolution(cnn, images):
    changed = relu_output(cnn, images).clone()
    changed[:, [1, 3]] = 0
    with intervene(cnn, ablate("relu", units=[1, 3])):
        assert torch.equal(cnn(images), rest(cnn, changed))
    assert torch.equal(cnn(images), rest(cnn, relu_output(cnn, images)))


def test_positions_samples_and_units_intersect(cnn, images):
    changed = relu_output(cnn, images).clone()
    changed.flatten(2)[2:4, 1, 10] = 7.0
    with intervene(cnn, clamp("relu", 7.0, 7.0, units=1, positions=10, samples=slice(2, 4))):
        torch.testing.assert_close(cnn(images), rest(cnn, changed))


def test_mean_and_resample_ablation(cnn, images):
    base = relu_output(cnn, images)
    mean = base.mean((0, 2, 3), keepdim=True).expand_as(base)
    with intervene(cnn, ablate("relu", "mean")):
        torch.testing.assert_close(cnn(images), rest(cnn, mean))
    reference = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with intervene(cnn, ablate("relu", "mean", reference)):
        torch.testing.assert_close(cnn(images), rest(cnn, reference[None, :, None, None].expand_as(base)))
    with intervene(cnn, ablate("relu", "resample", random_state=3)):
        out = cnn(images)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(out, rest(cnn, base[order]))


def test_scale_and_order_of_edits(cnn, images):
    base = relu_output(cnn, images)
    with intervene(cnn, scale("relu", 2.0), clamp("relu", maximum=0.5)):
        torch.testing.assert_close(cnn(images), rest(cnn, (2 * base).clamp(max=0.5)))
    with intervene(cnn, clamp("relu", maximum=0.5), scale("relu", 2.0)):
        torch.testing.assert_close(cnn(images), rest(cnn, 2 * base.clamp(max=0.5)))


def test_steering_by_norm_and_by_standard_deviation():
    model, x = Conv1d().eval(), torch.randn(5, 2, 9)
    direction = torch.randn(6)
    unit = direction / direction.norm()
    base = captured(model, x, "act")
    with intervene(model, steer("act", direction, 3.0)):
        torch.testing.assert_close(captured(model, x, "act"), base + 3 * unit)
    spread = (base @ unit).std(correction=0)
    with intervene(model, steer("act", direction, 2.0, by="std")):
        torch.testing.assert_close(captured(model, x, "act"), base + 2 * spread * unit)
    with intervene(model, steer("act", direction, 2.0, by="std", std=0.5)):
        torch.testing.assert_close(captured(model, x, "act"), base + unit)
    with intervene(model, steer("act", direction, 1.0, by="raw")):
        torch.testing.assert_close(captured(model, x, "act"), base + direction)


def test_projecting_out_a_subspace_leaves_nothing_of_it_and_all_else():
    model, x = Conv1d().eval(), torch.randn(5, 2, 9)
    basis = torch.randn(2, 6)
    base = captured(model, x, "act")
    with intervene(model, project_out("act", torch.cat([basis, basis.sum(0, keepdim=True)]))):
        left = captured(model, x, "act")
    assert (left @ basis.T).abs().max() < 1e-5
    removed = base - left
    coefficients = torch.linalg.lstsq(basis.T, removed.reshape(-1, 6).T).solution
    torch.testing.assert_close((basis.T @ coefficients).T, removed.reshape(-1, 6), atol=1e-5, rtol=1e-4)


def test_patching_from_another_input_a_tensor_and_a_recording(cnn, images, tmp_path):
    other = torch.randn(6, 1, 8, 8)
    with intervene(cnn, patch("relu", inputs=other)):
        torch.testing.assert_close(cnn(images), cnn.tail(relu_output(cnn, other)))
    with intervene(cnn, patch("relu", captured(cnn, other, "relu")[2:3])):
        torch.testing.assert_close(cnn(images), rest(cnn, relu_output(cnn, other)[2:3].expand(6, -1, -1, -1)))
    store = record(cnn, other, ["relu"], to=tmp_path / "store")
    with intervene(cnn, patch("relu", store["relu"], rows=[5, 4, 3, 2, 1, 0])):
        torch.testing.assert_close(cnn(images), rest(cnn, relu_output(cnn, other).flip(0)))


def test_nested_blocks_and_capture_inside_see_what_the_outer_one_made(cnn, images):
    base = captured(cnn, images, "relu")
    with intervene(cnn, scale("relu", 3.0)):
        torch.testing.assert_close(captured(cnn, images, "relu"), 3 * base)
        with intervene(cnn, clamp("relu", maximum=1.0)):
            torch.testing.assert_close(captured(cnn, images, "relu"), (3 * base).clamp(max=1))
        torch.testing.assert_close(captured(cnn, images, "relu"), 3 * base)
    torch.testing.assert_close(captured(cnn, images, "relu"), base)


def test_single_calls_inputs_and_tuple_outputs():
    model, x = Loop().eval(), torch.randn(4, 5)
    y = torch.tanh(model.cell(x))
    y = torch.tanh(torch.zeros_like(model.cell(y)))
    y = torch.tanh(model.cell(y))
    expected, cut = model.second(model.first(y)), model.first(model.first(torch.zeros(4, 5)))
    with intervene(model, ablate("cell#1")):
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(model(x), expected)  # calls are counted in each pass anew
    with intervene(model, scale("first:in#0", 0.0)):
        torch.testing.assert_close(model(x), cut)
    outputs, z = Outputs().eval(), torch.randn(3, 6, 4)
    with intervene(outputs, ablate("rnn"), scale(".:out.state", 2.0)):
        out = outputs(z)
    assert out["loss"] == 0
    torch.testing.assert_close(out["state"], 2 * outputs(z)["state"])
    assert set(out) == {"loss", "logits", "state"}


@pytest.mark.parametrize("batch_first", [True, False])
def test_heads_inside_fused_attention(batch_first):
    model, x = Attention(batch_first).eval(), torch.randn(5, 7, 8)
    attention = model.encoder.layers[0].self_attn
    heads = captured(model, x, "encoder.layers.0.self_attn.out_proj:in").clone()
    heads[..., :4] = 0
    with intervene(model, ablate("encoder.layers.0.self_attn.out_proj:in", units=slice(0, 4))):
        torch.testing.assert_close(captured(model, x, "encoder.layers.0.self_attn"), attention.out_proj(heads))
    with intervene(model, replace_with("encoder.layers.0.self_attn.out_proj", lambda a: a)):
        changed = model(x)
    torch.testing.assert_close(changed, model(x))


def test_gradients_flow_through_and_only_where_they_should(cnn, images):
    x = images.clone().requires_grad_()
    strength = torch.tensor(1.5, requires_grad=True)
    with intervene(cnn, replace_with("relu", lambda a: a * strength), ablate("relu", units=[0])):
        cnn(x).sum().backward()
    assert strength.grad is not None
    assert strength.grad != 0
    y = images.clone().requires_grad_()
    changed = relu_output(cnn, y) * 1.5
    keep = torch.tensor([0.0, 1, 1, 1])[None, :, None, None]
    rest(cnn, changed * keep).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_splicing_a_reconstruction_back_in(cnn, images):
    encode, decode = nn.Linear(4, 16), nn.Linear(16, 4)
    with intervene(cnn, replace_with("relu", lambda a: decode(torch.relu(encode(a))))):
        loss = cnn(images).pow(2).mean()
    loss.backward()
    assert encode.weight.grad.abs().sum() > 0


def test_everything_is_restored_after_an_exception(cnn, images):
    expected = cnn(images)
    with pytest.raises(RuntimeError, match="stop"), intervene(cnn, ablate("relu")):
        cnn(images)
        raise RuntimeError("stop")
    assert torch.equal(cnn(images), expected)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in cnn.modules())


def test_bad_edits_are_one_sentence(cnn, images):
    with pytest.raises(SiteError, match="did you mean"), intervene(cnn, ablate("rellu")):
        pass
    cases = [
        (ablate("relu", units=[9]), "which has 4 units"),
        (steer("relu", torch.randn(3), 1.0), "3 units, site 'relu' has 4"),
        (ablate("tail.3", positions=[0]), "no position axis"),
        (patch("relu", torch.randn(2, 64, 4)), "do not fit"),
        (project_out("relu", torch.randn(1, 5)), "5 units"),
    ]
    for edit, message in cases:
        with pytest.raises(InputError, match=message), intervene(cnn, edit):
            cnn(images)
    for build in (
        lambda: steer("relu", torch.zeros(4), 1.0),
        lambda: steer("relu", torch.tensor([float("nan")] * 4), 1.0),
        lambda: clamp("relu"),
        lambda: clamp("relu", 2.0, 1.0),
        lambda: ablate("relu", "most"),
        lambda: patch("relu"),
        lambda: project_out("relu", torch.empty(0, 4)),
    ):
        with pytest.raises(InputError):
            build()


def test_an_edit_that_never_happened_is_an_error():
    model = Cnn().eval()
    model.unused = nn.Linear(2, 2)
    with pytest.raises(SiteError, match="did nothing"), intervene(model, ablate("unused")):
        model(torch.randn(2, 1, 8, 8))


def test_works_when_a_part_is_called_alone(cnn, images):
    with intervene(cnn, ablate("norm")):
        assert cnn.norm(cnn.conv(images)).abs().sum() == 0
