"""Edges between features, ablation of features and edges, and modules: closed forms and oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from netloupe.core.errors import InputError, MissingExtraError, NetloupeError
from netloupe.data.modular_addition import two_blocks
from netloupe.lenses.dictionary.lib import interaction_basis
from netloupe.lenses.dictionary.lib_edges import (
    ablate_edges,
    ablate_nodes,
    edge_mask,
    edges_needed,
    interaction_edges,
    schedule,
)
from netloupe.lenses.dictionary.lib_modules import modules

F64 = torch.float64


def linear(seed: int) -> tuple[list[Tensor], list, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, W, V = (torch.randn(*shape, generator=draw, dtype=F64) for shape in ((50, 5), (5, 4), (4, 3)))
    return [x, x @ W, x @ W @ V], [lambda z: z @ W, lambda z: z @ V], V


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_edges_of_a_linear_map(seed: int):
    acts, maps, _ = linear(seed)
    basis = interaction_basis(acts, maps)
    for l in range(2):
        B = torch.stack([maps[l](row) for row in basis.C_pinv[l][1:, :-1]]) @ basis.C[l + 1][:-1]
        lam = basis.importance[l][1:]
        for rule, n in (("gradient", 0), ("gauss-legendre", 2), ("trapezoidal", 3)):
            edges = interaction_edges(basis, l, acts[l], maps[l], rule=rule, n_intervals=n)  # type: ignore[arg-type]
            torch.testing.assert_close(edges[:, 1:], B.T.pow(2) * lam, rtol=1e-7, atol=1e-10)
            torch.testing.assert_close(edges[:, 1:].sum(0), lam, rtol=1e-7, atol=1e-10)


def test_edges_of_a_cubic_map():
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=F64)

    def cubic(z: Tensor) -> Tensor:
        return torch.stack([z[:, 0] ** 2 * z[:, 1], z[:, 1] ** 3], 1)

    basis = interaction_basis([x, cubic(x)], [cubic], basis="neuron")
    a, b = x.T
    # attributions on the path to 0: two thirds and one third of a^2 b, all of b^3
    wanted = torch.stack([
        torch.stack([(2 * a**2 * b / 3).pow(2).mean(), (a**2 * b / 3).pow(2).mean()]),
        torch.stack([torch.zeros((), dtype=F64), b.pow(6).mean()]),
    ])  # fmt: skip
    found = interaction_edges(basis, 0, x, cubic, rule="gauss-legendre", n_intervals=1)
    torch.testing.assert_close(found[:, 1:], wanted, rtol=1e-10, atol=1e-12)
    one = interaction_edges(basis, 0, x, cubic, rule="gauss-legendre", n_intervals=0)
    assert not torch.allclose(one[:, 1:], wanted, rtol=1e-2)


def test_functional_edges_add_up_to_what_is_lost():
    acts, maps, _ = linear(3)
    basis = interaction_basis(acts, maps)
    found = interaction_edges(basis, 1, acts[1], maps[1], rule="gauss-legendre", n_intervals=1, form="functional")
    # the integral of a gradient along the path is the difference of its ends: fh_i^2 at the origin
    torch.testing.assert_close(found.sum(1), acts[2].pow(2).mean(0), rtol=1e-8, atol=1e-10)


def test_edges_of_sequences_sum_over_positions():
    draw = torch.Generator().manual_seed(0)
    x, W = torch.randn(7, 3, 4, generator=draw, dtype=F64), torch.randn(4, 5, generator=draw, dtype=F64)

    def mixing(z: Tensor) -> Tensor:
        return torch.tanh(z @ W).cumsum(1)

    basis = interaction_basis([x, mixing(x)], [mixing])
    found = interaction_edges(basis, 0, x, mixing)
    whole = torch.zeros_like(found)
    for row in x:
        z = basis.encode(0, row)
        J = torch.autograd.functional.jacobian(
            lambda v: basis.encode(1, mixing((v @ basis.back(0))[None])[0]), z
        )  # (t, i, s, j)
        assert isinstance(J, Tensor)
        whole += torch.einsum("tisj,sj->tij", J, z).pow(2).sum(0)
    torch.testing.assert_close(found, whole / 21, rtol=1e-8, atol=1e-12)
    drawn = interaction_edges(basis, 0, x, mixing, sources=400)
    assert float((drawn - found).norm() / found.norm()) < 0.1


def test_node_ablation_keeps_what_it_says():
    acts, maps, _ = linear(1)
    basis = interaction_basis(acts, maps)

    def score(output: Tensor) -> float:
        return -float((output - acts[2]).pow(2).mean())

    curve = ablate_nodes(basis, 0, acts[0], lambda z: maps[1](maps[0](z)), score)
    assert curve.kept.tolist() == [0, 1, 2, 3]  # three outputs, so three directions matter
    assert curve.scores[-1] == pytest.approx(0, abs=1e-12)
    assert curve.scores[0] == pytest.approx(-float((acts[2] - acts[2].mean(0)).pow(2).mean()))
    assert bool((np.diff(curve.scores) >= -1e-12).all())
    back = ablate_nodes(basis, 0, acts[0], lambda z: maps[1](maps[0](z)), score, counts=[0, 2, 3], reverse=True)
    assert back.scores[1] < curve.scores[2]
    assert curve.area == pytest.approx(np.trapezoid(curve.scores, curve.kept) / 3)


def test_edge_ablation_by_hand():
    net = two_blocks(12, random_state=1)
    acts = [net.x, net.layer(net.x)]
    basis = interaction_basis(acts, [net.layer])
    edges = interaction_edges(basis, 0, net.x, net.layer)
    mask = edge_mask(basis, 0, edges, 7)
    assert int(mask[:, 1:].sum()) == 7
    assert bool(mask[:, 0].all())
    made = ablate_edges(basis, 0, net.x, net.layer, mask)
    z = basis.encode(0, net.x)
    for i in range(10):
        only = net.layer((z * mask[i]) @ basis.back(0))[:, i]
        torch.testing.assert_close(made[:, i], only)
    whole = ablate_edges(basis, 0, net.x, net.layer, torch.ones_like(mask))
    torch.testing.assert_close(whole, acts[1])

    def score(output: Tensor) -> float:
        return -float((output - acts[1]).abs().max())

    # half of the edges are between blocks and weigh nothing: none of the others can go
    assert edges_needed(basis, 0, net.x, net.layer, edges, lambda y: y, score, tolerance=1e-6) == 30
    pca = interaction_basis(acts, [net.layer], basis="pca")
    weights = interaction_edges(pca, 0, net.x, net.layer)
    assert edges_needed(pca, 0, net.x, net.layer, weights, lambda y: y, score, tolerance=1e-6) == 60
    found = modules([edges[:, 1:]], n_constant=0)
    assert found.n_modules == 2
    assert found.modularity == pytest.approx(0.5, abs=0.02)
    assert sorted(found.labels[1].tolist()) == [0] * 5 + [1] * 5
    assert modules([weights[:, 1:]], n_constant=0).modularity < 0.2


def test_schedule_is_fine_where_little_is_removed():
    assert schedule(3) == [0, 1, 2, 3]
    found = schedule(400)
    assert found[0] == 0
    assert found[-11:] == list(range(390, 401))
    steps = np.diff(found)[::-1]
    assert steps[:10].tolist() == [1] * 10
    assert steps[11] < steps[40]


def test_modules_leave_the_constant_out():
    edges = np.array([[9.0, 0.0, 0.0], [5.0, 1.0, 0.0], [5.0, 0.0, 1.0]])
    found = modules([edges], least=0.01)
    assert found.labels[0].tolist()[0] == -1
    assert found.labels[1].tolist()[0] != -1
    fine = modules([edges[1:, 1:]], n_constant=0)
    assert fine.sizes == (2, 2)
    assert fine.modularity == pytest.approx(0.5)
    try:
        import leidenalg  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="leiden"):
            modules([edges], method="leiden")
    else:
        assert modules([edges[1:, 1:]], n_constant=0, method="leiden").sizes == (2, 2)


def test_bad_input_is_one_sentence():
    acts, maps, _ = linear(0)
    basis = interaction_basis(acts, maps)
    edges = interaction_edges(basis, 0, acts[0], maps[0])
    cases = [
        lambda: interaction_edges(basis, 2, acts[2], maps[1]),
        lambda: interaction_edges(basis, 0, acts[0][:, :3], maps[0]),
        lambda: interaction_edges(basis, 0, acts[0] * torch.nan, maps[0]),
        lambda: interaction_edges(basis, 0, acts[0], maps[0], form="cubic"),  # type: ignore[arg-type]
        lambda: ablate_nodes(basis, 0, acts[0], maps[0], lambda y: 0.0, counts=[99]),
        lambda: ablate_edges(basis, 0, acts[0], maps[0], torch.ones(2, 2, dtype=torch.bool)),
        lambda: edges_needed(basis, 0, acts[0], maps[0], edges[:2], maps[1], lambda y: 0.0),
        lambda: edge_mask(basis, 0, edges, -1),
        lambda: modules([]),
        lambda: modules([np.ones((2, 3)), np.ones((2, 3))]),
        lambda: modules([np.full((2, 2), np.nan)]),
        lambda: modules([np.zeros((2, 2))]),
        lambda: modules([np.ones((3, 3))], method="kmeans"),  # type: ignore[arg-type]
    ]
    for ask in cases:
        with pytest.raises(NetloupeError) as caught:
            ask()
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="node layers"):
        basis.encode(5, acts[0])
