"""Top-k layers against their definition, on ties, NaN and gradients, and swapped into whole networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom
from torch import nn

from netloupe.core.errors import InputError
from netloupe.models.small import DigitsCNN, mlp
from netloupe.nn import TopK, TopKMLP, replace, swap_topk


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def by_definition(rows: np.ndarray, k: int) -> np.ndarray:
    """Sort each row by value, then by place; keep the first k."""
    kept = np.zeros_like(rows)
    for row, out in zip(rows, kept):
        for place in sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]:
            out[place] = row[place]
    return kept


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 12)),
    data=st.data(),
    levels=st.sampled_from([1, 3, 10_000]),
)
def test_keeps_the_k_largest_and_of_ties_the_first(shape, data, levels):
    rows = np.random.default_rng(data.draw(st.integers(0, 999))).integers(-levels, levels + 1, shape).astype(float)
    k = data.draw(st.integers(1, shape[1]))
    assert torch.equal(TopK(k)(torch.tensor(rows)), torch.tensor(by_definition(rows, k)))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_permutation_keeps_the_last_k_along_any_axis(dim):
    size, k = 20, 7
    values = torch.stack([torch.randperm(size) + 1.0 for _ in range(20)])
    answer = TopK(k, dim)(values if dim else values.T.contiguous())
    answer = answer if dim else answer.T
    assert torch.equal(answer, torch.where(values > size - k, values, 0.0))


def test_all_units_is_the_identity_and_ties_never_exceed_k():
    x = torch.randn(4, 9)
    assert TopK(9)(x) is x
    assert TopK(9, exact=False)(x) is x
    for exact in (True, False):
        kept = TopK(3, exact=exact)(torch.ones(4, 90))
        assert (kept != 0).sum(1).tolist() == [3] * 4
    assert torch.equal(TopK(3)(torch.ones(2, 5)), torch.tensor([[1.0, 1, 1, 0, 0]] * 2))


def test_gradient_flows_through_survivors_only():
    x = torch.tensor([[3.0, 1.0, 2.0, 2.0]], requires_grad=True)
    (TopK(2)(x) * torch.tensor([5.0, 6.0, 7.0, 8.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[5.0, 0.0, 7.0, 0.0]]
    double = torch.rand(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(TopK(3), double)


def test_nan_is_not_hidden():
    x = torch.tensor([[1.0, math.nan, 2.0, 3.0], [math.nan, math.nan, math.nan, 1.0]])
    kept = TopK(2)(x)
    assert kept[0].isnan().tolist() == [False, True, False, False]
    assert kept[0, 3] == 3.0
    assert kept[1].isnan().any()
    tied = TopK(2)(torch.tensor([[1.0, 1.0, math.nan, 1.0]]))
    assert tied[0].isnan().tolist() == [False, False, True, False]
    assert tied[0, 0] == 1.0
    assert tied[0, 1] == tied[0, 3] == 0.0


@pytest.mark.parametrize(("d", "k"), [(3072, 16), (1000, 8), (4096, 128)])
def test_blocks_find_the_promised_share(d, k):
    layer = TopK(k, exact=False)
    assert layer.n_blocks(d) < d
    x = torch.rand(300, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
    kept, true = layer(x) > 0, TopK(k)(x) > 0
    assert (kept.sum(1) == k).all()
    # One of the true k is found in every block that holds any: blocks hit by k places drawn without replacement.
    sizes = np.bincount(np.arange(d) % layer.n_blocks(d))
    expected = float(hypergeom.sf(0, d, sizes, k).sum() / k)
    found = (kept & true).sum(1).double() / k
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(300)
    assert expected >= 0.95
    assert (kept & (x == x.amax(1, keepdim=True))).any(1).all()


def test_blocks_are_exact_where_candidates_are_plenty():
    x = torch.randn(50, 64).relu()
    assert torch.equal(TopK(16, exact=False)(x), TopK(16)(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_shape_stay(dtype):
    x = torch.randn(2, 3, 40).to(dtype)
    for exact in (True, False):
        kept = TopK(2, exact=exact)(x)
        assert (kept.dtype, kept.shape) == (dtype, x.shape)
        assert ((kept == x) | (kept == 0)).all()


def test_mlp_with_all_units_is_the_ordinary_block_bit_for_bit():
    block = TopKMLP(6, 24, 24)
    ordinary = nn.Sequential(block.up, nn.ReLU(), block.down)
    x = torch.randn(5, 7, 6)
    assert torch.equal(block(x), ordinary(x))
    lean = TopKMLP(6, 24, 3, nn.GELU(), bias=False)
    assert lean.down.bias is None
    assert ((lean.topk(lean.act(lean.up(x))) != 0).sum(-1) <= 3).all()
    assert lean(x).shape == x.shape


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: TopK(0), "k is 0"),
        (lambda: TopK(2.5), "k is 2.5"),
        (lambda: TopK(True), "k is True"),
        (lambda: TopK(9)(torch.zeros(1, 8)), "has 8 units"),
        (lambda: TopK(1, recall=1.0), "recall is 1.0"),
        (lambda: TopKMLP(4, 8, 9), "k is 9"),
        (lambda: swap_topk(mlp(4, (8,), 2), 0), "k is 0"),
        (lambda: swap_topk(nn.Sequential(nn.Linear(2, 2)), 1), "no module of the network matches ReLU"),
        (lambda: replace(nn.ReLU(), nn.ReLU, lambda old: nn.GELU()), "no modules"),
        (lambda: replace(mlp(4, (8,), 2), nn.ReLU, lambda old: torch.relu), "factory made a"),
        (lambda: replace(mlp(4, (8,), 2), 3, lambda old: old), "matcher is a int"),
    ],
)
def test_refusals_are_one_sentence(build, told):
    with pytest.raises(InputError, match=told) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_swap_keeps_weights_and_names_what_it_found():
    model = mlp(4, (16, 16), 3, random_state=0)
    x = torch.randn(9, 4)
    before, weights = model(x), [p.clone() for p in model.parameters()]
    report = swap_topk(model, 16)
    assert report.matched == ("act1", "act2")
    assert report.unmatched == ("flatten", "fc1", "fc2", "head")
    assert torch.equal(model(x), before)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))
    swap_topk(model, 2, "act2.topk")
    assert ((model.act2(torch.rand(5, 16)) != 0).sum(1) == 2).all()


def test_swap_in_a_convolutional_network_counts_channels():
    model = DigitsCNN().eval()
    report = swap_topk(model, 3, "relu?", dim=1)
    assert report.matched == ("relu1", "relu2")
    kept = model.relu1(torch.rand(2, 16, 8, 8))
    assert ((kept != 0).sum(1) == 3).all()
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_replace_shares_what_was_shared_and_skips_what_is_inside():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.ReLU()
            self.other = self.one
            self.inner = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))

    model = Shared().eval()
    report = replace(model, (nn.ReLU, nn.Sequential), lambda old: nn.Sequential(old))
    assert report.matched == ("one", "other", "inner")
    assert model.one is model.other
    assert isinstance(model.inner, nn.Sequential)
    assert isinstance(model.inner[0], nn.Sequential)
    assert report.unmatched == ()
    assert not model.one.training
    chosen = replace(model, lambda path, module: path == "inner.0.0", lambda old: nn.GELU())
    assert chosen.matched == ("inner.0.0",)
    assert "replaced 1" in str(chosen)
