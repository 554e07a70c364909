"""Captured activations are what plain hooks see, for every kind of network, and the network stays as it was."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from networks import Attention, Cnn, Conv1d, Loop, Outputs, Poisoned, Table
from torch import nn

import netloupe
from netloupe.core.capture import capture, list_sites, observe, tap
from netloupe.core.errors import InputError, NonFiniteError, SiteError
from netloupe.core.statistics import Counts, Moments, TopK


def hooked(model: nn.Module, path: str, x, side: str = "out", call: int = 0):
    """The oracle: a plain hook on the network in eval mode, copying at once."""
    seen = []
    module = model.get_submodule(path)
    first = lambda v: v if isinstance(v, torch.Tensor) else v[0]  # noqa: E731
    handle = (
        module.register_forward_hook(lambda m, i, o: seen.append(first(o).detach().clone()))
        if side == "out"
        else module.register_forward_pre_hook(lambda m, i: seen.append(i[0].detach().clone()))
    )
    training = model.training
    model.eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        model(x)
    torch.backends.mha.set_fastpath_enabled(fused)
    model.train(training)
    handle.remove()
    return seen[call]


def gathered(model, data, site, **options):
    return torch.cat([captured[site] for captured in capture(model, data, site, **options)])


@pytest.mark.parametrize("path", ["conv", "norm", "relu", "tail.0", "tail.1", "tail.2", "tail.3", "tail"])
def test_cnn_sites_equal_plain_hooks_also_before_in_place_layers(path):
    model, x = Cnn(), torch.randn(10, 1, 8, 8)
    expected = hooked(model, path, x)
    if expected.ndim == 4:
        expected = expected.permute(0, 2, 3, 1).reshape(10, -1, expected.shape[1])
    assert torch.equal(gathered(model, x, path, batch_size=10), expected)


def test_input_side_of_an_in_place_layer_is_what_went_in():
    model, x = Cnn(), torch.randn(6, 1, 8, 8)
    expected = hooked(model, "relu", x, "in").permute(0, 2, 3, 1).reshape(6, 64, 4)
    got = gathered(model, x, "relu:in", batch_size=6)
    assert torch.equal(got, expected)
    assert (got < 0).any()


def test_batches_are_consecutive_and_complete():
    model, x = Cnn(), torch.randn(23, 1, 8, 8)
    parts = list(capture(model, (x, torch.arange(23)), "tail.3", batch_size=5))
    assert [len(part) for part in parts] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat([part.samples for part in parts]), torch.arange(23))
    assert torch.equal(torch.cat([part.labels for part in parts]), torch.arange(23))
    torch.testing.assert_close(torch.cat([part["tail.3"] for part in parts]), hooked(model, "tail.3", x))


def test_conv1d_and_the_activation_after_it_put_channels_last():
    model, x = Conv1d(), torch.randn(7, 2, 9)
    for path in ("conv", "act"):
        assert torch.equal(gathered(model, x, path, batch_size=7), hooked(model, path, x).transpose(1, 2))
    overridden = gathered(model, x, "act", batch_size=7, unit_axis={"act": 2})
    assert overridden.shape == (7, 6, 9)


def test_calls_are_sites_of_their_own_and_shared_modules_are_one():
    model, x = Loop(), torch.randn(4, 5)
    names = [site.name for site in list_sites(model, x, ["cell", "act", "first", "second"])]
    assert names == ["cell#0", "act#0", "cell#1", "act#1", "cell#2", "act#2", "first#0", "first#1"]
    for call in range(3):
        assert torch.equal(gathered(model, x, f"cell#{call}"), hooked(model, "cell", x, call=call))
    with pytest.raises(SiteError, match="called 3 times"):
        gathered(model, x, "cell#3")


@pytest.mark.parametrize("batch_first", [True, False])
def test_fused_attention_is_read_inside_and_out(batch_first):
    model, x = Attention(batch_first), torch.randn(5, 7, 8)
    layer = model.encoder.layers[0]
    got = {p: gathered(model, x, p) for p in ("encoder.layers.0.self_attn", "encoder.layers.0.linear1")}
    for path, values in got.items():
        expected = hooked(model, path, x)
        assert torch.equal(values, expected if batch_first else expected.transpose(0, 1)), path
    projected = gathered(model, x, "encoder.layers.0.self_attn.out_proj")
    assert torch.equal(projected, got["encoder.layers.0.self_attn"])
    heads = gathered(model, x, "encoder.layers.0.self_attn.out_proj:in")
    torch.testing.assert_close(layer.self_attn.out_proj(heads), projected)
    assert not torch.allclose(heads, projected)


def test_sequence_first_with_as_many_steps_as_samples():
    model, x = Attention(batch_first=False), torch.randn(6, 6, 8)
    assert torch.equal(
        gathered(model, x, "encoder.layers.1.linear2"), hooked(model, "encoder.layers.1.linear2", x).transpose(0, 1)
    )


def test_outputs_of_every_shape():
    model, x = Outputs(), torch.randn(3, 6, 4)
    with torch.no_grad():
        y = model.eval()(x)
    assert torch.equal(gathered(model, x, "."), y["logits"])
    assert torch.equal(gathered(model, x, ".:out.state"), y["state"].transpose(0, 1))
    assert torch.equal(gathered(model, x, "rnn"), y["logits"])
    assert torch.equal(gathered(model, x, "rnn:out.1.0"), y["state"].transpose(0, 1))
    assert torch.equal(gathered(model, x, ".:in"), x)
    with pytest.raises(SiteError, match="0-dimensional"):
        gathered(model, x, ".:out.loss")
    with pytest.raises(SiteError, match="no tensor 'nothing'"):
        gathered(model, x, ".:out.nothing")


def test_packed_sequences_become_padded_ones_with_a_mask():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 4, batch_first=True)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.rnn(packed)[1]

    model, x, lengths = Packed(), torch.randn(3, 5, 3), torch.tensor([2, 5, 3])
    (captured,) = capture(model, [(x, lengths)], "rnn")
    assert captured["rnn"].shape == (3, 5, 4)
    assert torch.equal(captured.masks["rnn"].sum(1), lengths)
    assert observe(model, [(x, lengths)], {"m": Moments}, "rnn").result("rnn", "m").count == 10


def test_batch_independent_and_scalar_sites():
    model, ids = Table(), torch.randint(0, 11, (4, 9))
    assert [site.name for site in list_sites(model, ids)] == ["words"]
    for site, word in (("places", "no axis"), ("mean", "0-dimensional")):
        with pytest.raises(SiteError, match=word):
            gathered(model, ids, site)


def test_unknown_sites_name_near_misses():
    with pytest.raises(SiteError, match=r"'relu'"):
        gathered(Cnn(), torch.randn(2, 1, 8, 8), "rellu")
    with pytest.raises(SiteError, match="not a site name"):
        gathered(Cnn(), torch.randn(2, 1, 8, 8), "relu:sideways")
    with pytest.raises(SiteError, match="never called"):
        model = Cnn()
        model.unused = nn.Linear(2, 2)
        gathered(model, torch.randn(2, 1, 8, 8), "unused")


def test_everything_is_put_back_also_after_an_exception():
    model = Cnn()
    model.tail[2].train()
    model.conv.eval()
    x, wrong = torch.randn(6, 1, 8, 8), torch.randn(6, 2, 8, 8)
    model(x).sum().backward()
    before = {
        "flags": [m.training for m in model.modules()],
        "state": copy.deepcopy(model.state_dict()),
        "grads": [p.grad.clone() for p in model.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "random": random.getstate(),
    }

    def check():
        assert [m.training for m in model.modules()] == before["flags"]
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before["state"].values()))
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before["grads"]))
        assert torch.equal(torch.get_rng_state(), before["torch"])
        assert (np.random.get_state()[1] == before["numpy"]).all()
        assert random.getstate() == before["random"]
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
        assert torch.backends.mha.get_fastpath_enabled()

    for mode in ("eval", "train", "keep"):
        for _ in capture(model, x, mode=mode, batch_size=3):
            check()  # also between batches
        check()
    with pytest.raises(RuntimeError):
        list(capture(model, wrong))
    check()
    handle = model.tail.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        list(capture(model, x))
    handle.remove()
    check()


def test_train_mode_uses_batch_statistics_and_repeats_dropout():
    model, x = Cnn(), torch.randn(6, 1, 8, 8)
    one, two = (gathered(model, x, "tail.2", mode="train", batch_size=6) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, gathered(model, x, "tail.2", mode="train", batch_size=6, seed=1))
    assert (one == 0).float().mean() > (gathered(model, x, "tail.2") == 0).float().mean() + 0.1


def test_compiled_networks_are_read_and_scripted_ones_refused():
    model, x = Cnn().eval(), torch.randn(4, 1, 8, 8)
    assert torch.equal(gathered(torch.compile(model, backend="eager"), x, "conv"), gathered(model, x, "conv"))
    inner = Cnn().eval()
    inner.load_state_dict(model.state_dict())
    inner.tail.compile(backend="eager")
    inner(x)
    assert torch.equal(gathered(inner, x, "tail.1"), gathered(model, x, "tail.1"))
    scripted = torch.jit.script(model)
    with pytest.raises(SiteError, match="scripted"):
        gathered(scripted, x, "conv")
    mixed = nn.Sequential(nn.Identity(), torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())))
    assert [site.name for site in list_sites(mixed, x)] == ["0", "1"]


@pytest.mark.parametrize("policy", ["mean", "max", "cls", "last", "flatten", "none"])
def test_pooling_leaves_padding_out(policy):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 4)

        def forward(self, input_ids, attention_mask):
            return self.words(input_ids)

    model = Net()
    ids, lengths = torch.randint(0, 20, (5, 6)), [6, 1, 3, 5, 2]
    mask = torch.tensor([[int(t < n) for t in range(6)] for n in lengths])
    got = gathered(model, {"input_ids": ids, "attention_mask": mask}, "words", pool=policy)
    raw = model.words(ids).detach()
    rows = [raw[i, :n] for i, n in enumerate(lengths)]
    expected = {
        "mean": lambda: torch.stack([r.mean(0) for r in rows]),
        "max": lambda: torch.stack([r.amax(0) for r in rows]),
        "cls": lambda: raw[:, 0],
        "last": lambda: torch.stack([r[-1] for r in rows]),
        "flatten": lambda: raw.flatten(1),
        "none": lambda: raw,
    }[policy]()
    torch.testing.assert_close(got, expected)
    observation = observe(model, {"input_ids": ids, "attention_mask": mask}, {"m": Moments, "top": lambda: TopK(2)})
    kept = torch.cat(rows).double()
    result = observation.result("words", "m")
    assert result.count == sum(lengths)
    np.testing.assert_allclose(result.mean, kept.mean(0).numpy(), rtol=1e-6)
    np.testing.assert_allclose(result.variance, kept.var(0, correction=0).numpy(), rtol=1e-6)


def test_dtype_and_options():
    model, x = Cnn(), torch.randn(4, 1, 8, 8)
    assert gathered(model, x, "tail.3", dtype="bfloat16").dtype == torch.bfloat16
    assert gathered(model.double(), x.double(), "tail.3").dtype == torch.float64
    for wrong in ({"dtype": "int3"}, {"pool": "middle"}, {"colour": 1}, {"batch_size": 0}):
        with pytest.raises(InputError):
            list(capture(Cnn(), x, **wrong))
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        list(capture(lambda x: x, x))


def test_nan_is_flagged_with_site_and_sample_and_allowed_on_request():
    x = torch.randn(9, 3)
    x[7, 0] = 200
    with pytest.raises(NonFiniteError, match=r"'act' is nan at sample 7"):
        list(capture(Poisoned(), x, "act", batch_size=4))
    assert gathered(Poisoned(), x, "act", nonfinite="allow").isnan().any(1).nonzero().tolist() == [[7]]


def test_unusable_data():
    for data in (torch.randn(0, 3), [], iter([])):
        with pytest.raises(InputError, match="no samples"):
            list(capture(Poisoned(), data))
    with pytest.raises(InputError, match="expected an array"):
        list(capture(Poisoned(), "text"))
    with pytest.raises(InputError, match="4 samples but 3 labels"):
        list(capture(Poisoned(), [(torch.randn(4, 3), torch.arange(3))]))
    with pytest.raises(InputError, match="forward takes"):
        list(capture(Poisoned(), [{"a": torch.randn(4, 3), "b": torch.randn(4, 3)}]))


def test_units_that_change_between_batches_and_calls_that_vanish():
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Identity()

        def forward(self, x):
            return self.part(x) if x.shape[1] < 9 else x

    first = torch.randn(3, 4)
    with pytest.raises(SiteError, match="4 units"):
        list(capture(Moody(), [first, torch.randn(3, 5)], "part"))
    with pytest.raises(SiteError, match="called 1 times in the first batch and 0"):
        list(capture(Moody(), [first, torch.randn(3, 9)], "part"))


def test_windows_folded_into_the_sample_axis_become_positions():
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(3, 5)

        def forward(self, x):  # (sample, 8, 3) as two windows of four
            return self.mix(x.reshape(-1, 4, 3)).reshape(len(x), 8, 5)

    model, x = Windows(), torch.randn(6, 8, 3)
    assert torch.equal(gathered(model, x, "mix"), gathered(model, x, "."))


def test_tap_keeps_the_graph():
    model, x = Cnn().eval(), torch.randn(4, 1, 8, 8)
    with tap(model, ["conv", "tail.3", "relu:in"]) as values:
        loss = model(x).sum()
    gradient = torch.autograd.grad(loss, values["conv"], retain_graph=True)[0]
    assert gradient.shape == values["conv"].shape
    probe = values["conv"].detach().requires_grad_()
    expected = torch.autograd.grad(model.tail(torch.relu(model.norm(probe))).sum(), probe)[0]
    torch.testing.assert_close(gradient, expected)
    assert (values["relu:in"] < 0).any()  # in place, and still what went in


def test_observe_equals_one_pass_over_everything_at_once():
    model, x = Cnn(), torch.randn(50, 1, 8, 8)
    statistics = {"m": Moments, "c": Counts, "t": lambda: TopK(3)}
    many, once = (
        observe(model, x, statistics, "conv", batch_size=7),
        observe(model, x, statistics, "conv", batch_size=50),
    )
    np.testing.assert_allclose(many.result("conv", "m").mean, once.result("conv", "m").mean, rtol=1e-5, atol=1e-8)
    assert (many.result("conv", "t").samples == once.result("conv", "t").samples).all()
    with pytest.raises(SiteError, match="not observed"):
        many["nothing"]


def test_public_face():
    assert netloupe.capture is capture
    assert set(netloupe.__all__) <= set(dir(netloupe))
    assert netloupe.lenses.sparsity(np.ones((3, 2))).summary()["active_fraction"] == 1
    with pytest.raises(AttributeError):
        netloupe.nothing  # noqa: B018
