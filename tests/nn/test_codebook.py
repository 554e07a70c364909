"""The codebook layer: closed forms, gradients against ordinary operations, the authors' numbers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import netloupe.nn.codebook as module
from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.nn.codebook import Codebook, k_schedule

OFFICIAL = json.loads((Path(__file__).parent / "codebook_official.json").read_text(encoding="utf-8"))
VARIANTS = ("base", "aeloss", "full", "vqvae")


def draw(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def made(seed: int = 0, **options: Any) -> Codebook:
    """A layer with rows and affine numbers of its own."""
    n = draw(seed)
    layer = Codebook(**{"dim": 6, "n_codes": 5, **options}).double()
    layer.table.data = n(*layer.table.shape)
    if layer.norm_weight is not None and layer.norm_bias is not None:
        layer.norm_weight.data, layer.norm_bias.data = (
            1 + 0.3 * n(*layer.norm_weight.shape),
            0.3 * n(*layer.norm_bias.shape),
        )
    return layer


@pytest.mark.parametrize("case", OFFICIAL)
def test_the_authors_code_gives_the_same_outputs_and_gradients(case: str):
    similarity, backward, groups = case.split("/")
    k = 3 if groups == "2" else 1
    layer = made(7, k=k, groups=int(groups), similarity=similarity, backward=backward,
                 beta=0.4 if backward == "vqvae" else 0.25, official=True)  # fmt: skip
    n = draw(7)
    n(*layer.table.shape), n(int(groups), 6 // int(groups)), n(int(groups), 6 // int(groups))
    x, gradient = n(2, 3, 6).requires_grad_(), n(2, 3, 6)
    y = layer(x)
    y.backward(gradient)
    wanted = OFFICIAL[case]
    assert layer.table.grad is not None
    assert layer.norm_weight is not None
    assert x.grad is not None
    assert layer.norm_weight.grad is not None
    for name, found in {
        "y": y[1, 2], "x": x.grad[0, 1], "table": layer.table.grad.flatten(0, 1).sum(0),
        "table2": layer.table.grad.pow(2).sum(-1), "w": layer.norm_weight.grad,
    }.items():  # fmt: skip
        torch.testing.assert_close(found.flatten(), torch.tensor(wanted[name], dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("backward", VARIANTS)
def test_gradients_are_those_of_ordinary_operations(backward: str, reduce: str, seed: int):
    layer = made(seed, k=2, groups=2, backward=backward, reduce=reduce, beta=0.4)
    n = draw(seed + 50)
    x, gradient = n(7, 6).requires_grad_(), n(7, 6)
    layer(x).backward(gradient)
    assert x.grad is not None
    assert layer.table.grad is not None
    other = made(seed, k=2, groups=2, reduce=reduce)
    z = x.detach().clone().requires_grad_()
    rows = other.normalised(z)
    ids = other.nearest(rows)
    taken = torch.stack([other.table[g][ids[:, g]] for g in range(2)], 1)
    y = taken.mean(2) if reduce == "mean" else taken.sum(2)
    straight = rows + (y.detach() - rows.detach())  # carries the input's gradient
    task = (gradient.view_as(y) * straight).sum() + (0 if backward == "vqvae" else (gradient.view_as(y) * y).sum())
    if backward != "base":
        task = task + (y - rows.detach()).pow(2).sum(-1).mean(0).sum()
    if backward in ("full", "vqvae"):
        task = task + 0.4 * (rows - y.detach()).pow(2).sum(-1).mean(0).sum()
    task.backward()
    torch.testing.assert_close(x.grad, z.grad)
    torch.testing.assert_close(layer.table.grad, other.table.grad)


def test_closed_forms():
    n = draw(1)
    x = n(9, 6)
    one = made(n_codes=1)
    torch.testing.assert_close(one(x), one.table[0, 0].expand(9, 6))
    plain = made(n_codes=6, layernorm=False)
    plain.table.data = 3 * torch.eye(6, dtype=torch.float64)[None]
    torch.testing.assert_close(plain(x), 3 * torch.nn.functional.one_hot(x.argmax(1), 6).double())
    every = made(k=5)
    torch.testing.assert_close(every(x), every.table[0].mean(0).expand(9, 6))
    near = made(similarity="l2", layernorm=False, k=2)
    near(x)
    assert near.ids is not None
    torch.testing.assert_close(near.ids[:, 0], torch.cdist(x, near.table[0]).topk(2, largest=False).indices)
    sums, means = made(k=3, reduce="sum"), made(k=3)
    torch.testing.assert_close(sums(x), 3 * means(x))
    means.enabled = False
    assert means(x) is x


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.sampled_from([1, 2, 3]), k=st.integers(1, 5))
def test_what_the_order_of_codes_and_their_length_change(seed: int, groups: int, k: int):
    layer = made(seed, groups=groups, k=k)
    x = draw(seed + 1)(4, 3, 6)
    y = layer(x)
    ids = layer.ids
    assert ids is not None
    assert ids.shape == (4, 3, groups, k)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    layer.table.data = layer.table.data[:, order]
    torch.testing.assert_close(layer(x), y)
    assert layer.ids is not None
    assert torch.equal(order[layer.ids], ids)
    layer.table.data = 2.5 * layer.table.data
    torch.testing.assert_close(layer(3 * x + 1), 2.5 * y, atol=1e-3, rtol=1e-3)  # up to the norm's epsilon


def test_blocks_of_the_table_change_nothing(monkeypatch: pytest.MonkeyPatch):
    x = draw(3)(50, 6)
    for similarity in ("cosine", "l2"):
        layer = made(2, n_codes=37, k=4, groups=2, similarity=similarity)
        whole = layer(x)
        monkeypatch.setattr(module, "_BLOCK_SCORES", 50 * 5)
        torch.testing.assert_close(layer(x), whole, rtol=0, atol=0)
        monkeypatch.undo()


def test_forcing_counting_and_the_penalty():
    layer, x = made(4, k=2), draw(5)(3, 4, 6)
    free = layer(x)
    assert int(layer.usage.sum()) == 24
    with layer.force(torch.tensor([2, -1])):
        torch.testing.assert_close(layer(x), (layer.table[0, 2] / 2).expand(3, 4, 6))
        assert int(layer.usage.sum()) == 36  # no code counts nowhere
        torch.testing.assert_close(layer.l1(), layer.table[0, 2].abs().sum())
        layer(x).sum().backward()
        assert layer.table.grad is not None
        assert bool((layer.table.grad[0, [0, 1, 3, 4]] == 0).all())
    with layer.force(lambda ids: ids.flip(-1)):
        torch.testing.assert_close(layer(x), free)
    torch.testing.assert_close(layer(x), free)
    layer.reset_usage()
    with layer.force(3):
        layer(x)
    assert layer.dead.tolist() == [[0, 0], [0, 1], [0, 2], [0, 4]]
    for bad in (5, -2, torch.zeros(7), torch.zeros(9, 9, dtype=torch.int64)):
        with pytest.raises(InputError), layer.force(bad):
            layer(x)


@pytest.mark.parametrize("by", ["random", "error"])
def test_dead_codes_move_to_inputs_while_training_only(by: Any):
    layer, x = made(6, n_codes=40, replace_after_steps=2, replace_rho=0.0, replace_by=by), draw(7)(10, 6)
    before = layer.table.detach().clone()
    layer.eval()
    for _ in range(3):
        layer(x)
    layer.train()
    layer(x)
    torch.testing.assert_close(layer.table.detach(), before)
    out = layer(x)
    moved = (layer.table.detach() != before).any(-1)[0]
    alive = torch.zeros(40, dtype=torch.bool)
    assert layer.ids is not None
    alive[layer.ids.unique()] = True
    assert torch.equal(moved, ~alive)
    rows = layer.normalised(x)[:, 0].detach()
    new = layer.table.detach()[0, moved]
    assert bool((torch.cdist(new, rows).min(1).values < 1e-6).all())
    if by == "error":
        worst = (out - rows).pow(2).sum(1).argmax()
        torch.testing.assert_close(new[0], rows[worst])


def test_start_from_means_of_activations():
    n = draw(8)
    centres = 20 * n(4, 6)
    x = (centres[torch.arange(80) % 4] + 0.01 * n(80, 6)).float()
    layer = Codebook(6, 4, similarity="l2", backward="base")
    layer.init_from(x)
    error = (layer(x) - layer.normalised(x)[:, 0]).detach().pow(2).sum(1)
    assert float(error.max()) < 1e-3
    with pytest.raises(InputError, match="at least 4 vectors"):
        layer.init_from(x[:3])
    with pytest.raises(NonFiniteError):
        layer.init_from(x * float("nan"))


@pytest.mark.parametrize("options", [
    {}, {"k": 3}, {"similarity": "l2", "k": 2}, {"layernorm": False}, {"layernorm": False, "similarity": "l2"},
    {"reduce": "sum", "k": 2}, {"groups": 2, "k": 2}, {"groups": 3, "similarity": "l2"},
])  # fmt: skip
def test_the_layer_is_a_dictionary(options: dict[str, Any], tmp_path: Path):
    layer, x = made(9, **options), draw(10)(30, 6)
    found = layer.dictionary("blocks.0.ffn")
    y = layer(x)
    codes = found.encode(x)
    torch.testing.assert_close(found.reconstruct(x), y)
    assert layer.ids is not None
    wanted = torch.zeros(30, layer.groups, 5).scatter(-1, layer.ids, 1.0).flatten(1)
    torch.testing.assert_close(codes, wanted.double())
    again = Dictionary.load(found.save(tmp_path / "d.safetensors"))
    torch.testing.assert_close(again.reconstruct(x[:, None]), y[:, None])
    assert (again.site, again.made_by, again.rule) == ("blocks.0.ffn", "codebook", "nearest")
    torch.testing.assert_close(found.to(torch.float32).encode(x.float()), codes.float())


def test_schedule():
    # the authors' scheduler, k_max 16, k_min 2, 5 steps: powers 1 and 2
    assert [k_schedule(s, 16, 2, 5) for s in range(7)] == [16, 12, 9, 5, 2, 2, 2]
    assert [k_schedule(s, 16, 2, 5, 2.0) for s in range(5)] == [16, 9, 6, 3, 2]
    with pytest.raises(InputError):
        k_schedule(0, 4, 0, 10)
    layer = made(k=3)
    layer.k = 2
    assert layer(torch.zeros(2, 6, dtype=torch.float64)).shape == (2, 6)
    with pytest.raises(InputError, match="1 to 5"):
        layer.k = 0


@pytest.mark.parametrize(("options", "words"), [
    ({"k": 6}, "k is 6"), ({"groups": 4}, "divide dim"), ({"n_codes": 0}, "positive sizes"), ({"similarity": "dot"}, "similarity"),
    ({"backward": "straight"}, "backward"), ({"beta": -1}, "negative"), ({"reduce": "max"}, "reduce"),
])  # fmt: skip
def test_refusals(options: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        Codebook(**{"dim": 6, "n_codes": 5, **options})


def test_refused_inputs():
    layer = made()
    with pytest.raises(InputError, match="width 6"):
        layer(torch.zeros(2, 5))
    with pytest.raises(InputError, match="move one"):
        layer(torch.zeros(2, 6, device="meta"))
    with pytest.raises(InputError, match="no codes have fired"):
        layer.l1()
    constant: Tensor = layer(torch.ones(3, 6, dtype=torch.float64))
    assert bool(torch.isfinite(constant).all())
