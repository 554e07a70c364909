"""The local interaction basis: closed forms, invariances, numbers of the official code, maps of a network, refusals."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netloupe.core.errors import InputError, NetloupeError, NonFiniteError
from netloupe.data.modular_addition import modular_addition, two_blocks
from netloupe.lenses.dictionary.lib import InteractionBasis, Kind, interaction_basis
from netloupe.lenses.dictionary.lib_cut import cut
from netloupe.lenses.dictionary.lib_edges import interaction_edges
from netloupe.lenses.dictionary.lib_finding import LocalInteractions, carrying, local_interactions
from netloupe.lenses.dictionary.lib_metric import integration_points, jacobian_metric
from netloupe.models.gpt import ByteGPT
from netloupe.models.residual import ResidualMLP
from netloupe.models.small import mlp

F64 = torch.float64
# Numbers of the published code, computed once in float64 on the material of ``published``; for three layers squared norms of
# the columns of C and the rows of its pseudo-inverse, squared edges summed over outputs, functional ones over inputs.
OFFICIAL = json.loads(Path(__file__).with_name("lib_official.json").read_text(encoding="utf-8"))


def network(seed: int, sizes: tuple[int, ...] = (5, 7, 6, 4), n: int = 60) -> tuple[list[Tensor], list]:
    """Activations and maps of a random ReLU network with biases, plain form."""
    rng = np.random.default_rng(seed)
    acts = [torch.tensor(rng.normal(size=(n, sizes[0])) @ rng.normal(size=(sizes[0], sizes[0])))]
    maps = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        W, c = torch.tensor(rng.normal(size=(a, b)) / a**0.5), torch.tensor(0.3 * rng.normal(size=b))
        last = i == len(sizes) - 2
        maps.append(lambda x, W=W, c=c, last=last: x @ W + c if last else torch.relu(x @ W + c))
        acts.append(maps[-1](acts[-1]))
    return acts, maps


def metric_at(basis: InteractionBasis, layer: int, x: Tensor, f) -> Tensor:
    """The metric by torch's own Jacobians, sample by sample."""
    whole = torch.zeros(x.shape[1], x.shape[1], dtype=F64)
    for row in x:
        J = torch.autograd.functional.jacobian(lambda z: basis.encode(layer + 1, f(z)), row)
        assert isinstance(J, Tensor)
        whole += J.T @ J
    return whole / len(x)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_moments_duality_and_trace(seed: int):
    acts, maps = network(seed)
    basis = interaction_basis(acts, maps, truncation=1e-12)
    for l in range(len(maps)):
        z, lam = basis.encode(l, acts[l])[:, 1:], basis.importance[l][1:]
        torch.testing.assert_close(z.T @ z / len(z), torch.diag(lam), atol=1e-12, rtol=1e-8)
        torch.testing.assert_close(z.mean(0), torch.zeros_like(z[0]), atol=1e-10, rtol=0)
        assert bool((lam.diff() <= 0).all())
        k = basis.C[l].shape[1]
        torch.testing.assert_close(basis.C_pinv[l] @ basis.C[l], torch.eye(k, dtype=F64), atol=1e-9, rtol=0)
        M = metric_at(basis, l, acts[l], maps[l])
        back = basis.C_pinv[l][1:, :-1]
        torch.testing.assert_close(back @ M @ back.T, torch.eye(k - 1, dtype=F64), atol=1e-7, rtol=0)
        covariance = torch.cov(acts[l].T, correction=0)
        torch.testing.assert_close(lam.sum(), (M @ covariance).trace())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_linear_reparametrisation_changes_nothing(seed: int):
    acts, maps = network(seed, (5, 5, 4))
    draw = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=F64))[0] for _ in range(2))
    A = u @ torch.diag(torch.logspace(0, 3, 5, dtype=F64)) @ v
    moved = [acts[0] @ A, *acts[1:]]
    one = interaction_basis(acts, maps, truncation=1e-14)
    other = interaction_basis(moved, [lambda x: maps[0](x @ torch.linalg.inv(A)), maps[1]], truncation=1e-14)
    x, y = one.encode(0, acts[0]), other.encode(0, moved[0])
    assert x.shape == y.shape
    torch.testing.assert_close(x, y * (x * y).sum(0).sign(), atol=1e-8, rtol=1e-6)
    pca = interaction_basis(acts, maps, basis="pca"), interaction_basis(moved, [lambda x: maps[0](x @ torch.linalg.inv(A)), maps[1]], basis="pca")  # fmt: skip
    assert not torch.allclose(pca[0].importance[0], pca[1].importance[0], rtol=0.1)


def test_two_blocks_come_apart_and_components_do_not():
    net = two_blocks(20, random_state=3)
    torch.testing.assert_close(torch.cov(net.x.T, correction=0), torch.eye(6, dtype=F64))
    kinds: dict[Kind, bool] = {"jacobian": True, "pca": False, "flow": True}
    for kind, pure in kinds.items():
        basis = interaction_basis([net.x, net.layer(net.x)], [net.layer], basis=kind)
        inside = (net.rotation.T @ basis.C[0][:-1, 1:]).pow(2)
        share = inside[:3].sum(0) / inside.sum(0)
        assert (float(torch.maximum(share, 1 - share).min()) > 1 - 1e-9) == pure
    assert not torch.allclose(torch.cov(two_blocks(20, factorial=False).x.T), torch.eye(6, dtype=F64), atol=1e-3)


def test_flow_looks_at_the_last_layer():
    acts, maps = network(4)
    flow = interaction_basis(acts, maps, basis="flow")
    both = interaction_basis([acts[0], acts[-1]], [lambda x: maps[2](maps[1](maps[0](x)))])
    torch.testing.assert_close(flow.importance[0], both.importance[0])
    assert not torch.allclose(flow.importance[0], interaction_basis(acts, maps).importance[0], rtol=1e-3)


def published() -> tuple[list[Tensor], list]:
    """A network with its constant folded in: activations end in 1, and so do its hidden layers' outputs."""
    rng = np.random.default_rng(7)
    sizes = (5, 7, 6, 4)
    Ws = [torch.tensor(rng.normal(size=(a, b)) / a**0.5) for a, b in pairwise(sizes)]
    bs = [torch.tensor(0.3 * rng.normal(size=b)) for b in sizes[1:]]
    x = torch.tensor(rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)))
    acts, maps = [torch.cat([x, torch.ones(40, 1, dtype=F64)], 1)], []
    for i, (W, b) in enumerate(zip(Ws, bs, strict=True)):
        whole = torch.cat([W, b[None]])
        if i < 2:
            last = torch.zeros(len(whole), 1, dtype=F64)
            last[-1] = 1
            whole = torch.cat([whole, last], 1)
        maps.append(lambda y, whole=whole, last=i == 2: y @ whole if last else torch.relu(y @ whole))
        acts.append(maps[-1](acts[-1]))
    return acts, maps


@pytest.mark.parametrize("case", range(6))
def test_numbers_of_the_official_code(case: int):
    known = OFFICIAL[case]
    acts, maps = published()
    how = {name: known[name] for name in ("basis", "rule", "n_intervals", "center")}
    basis = interaction_basis(acts, maps, truncation=1e-12, official=True, **how)
    for l in range(3):
        np.testing.assert_allclose(basis.C[l].pow(2).sum(0), known["columns"][l], rtol=1e-6)
        np.testing.assert_allclose(basis.C_pinv[l].pow(2).sum(1), known["rows"][l], rtol=1e-6)
        squared = interaction_edges(basis, l, acts[l], maps[l], rule="gauss-legendre", n_intervals=2)
        np.testing.assert_allclose(squared.sum(0), known["edges"][l], rtol=1e-8, atol=1e-10)
        other = interaction_edges(basis, l, acts[l], maps[l], rule="gauss-legendre", n_intervals=2, form="functional")
        np.testing.assert_allclose(other.sum(1), known["functional"][l], rtol=1e-8, atol=1e-10)


def test_the_plain_form_has_the_official_features():
    acts, maps = published()
    official = interaction_basis(acts, maps, official=True, truncation=1e-13)
    plain = [acts[0][:, :-1], acts[1][:, :-1], acts[2][:, :-1], acts[3]]

    def without(f, last):
        return lambda x: f(torch.cat([x, x.new_ones(len(x), 1)], 1))[:, : None if last else -1]

    own = interaction_basis(plain, [without(f, i == 2) for i, f in enumerate(maps)], truncation=1e-13)
    for l in range(3):
        one, two = official.encode(l, acts[l])[:, 1:], own.encode(l, plain[l])[:, 1:]
        torch.testing.assert_close(one, two * (one * two).sum(0).sign(), atol=1e-8, rtol=1e-6)


def test_integration_is_exact_where_it_must_be():
    for n in range(4):
        points = integration_points("gauss-legendre", n)
        for degree in range(2 * n + 2):
            assert sum(w * a**degree for a, w in points) == pytest.approx(1 / (degree + 1), abs=1e-14)
    points = integration_points("trapezoidal", 4)
    assert points[0][0] == pytest.approx(2e-4)
    assert sum(w for _, w in points) == pytest.approx(1)
    assert integration_points("trapezoidal") == [(0.5, 1.0)]
    with pytest.raises(InputError, match="one point"):
        integration_points("gradient", 2)
    with pytest.raises(InputError, match="rule"):
        integration_points("simpson")  # type: ignore[arg-type]


def test_random_sources_are_unbiased():
    acts, maps = network(5, (4, 6, 5), n=30)
    after = interaction_basis(acts, maps).readout(1)
    exact = jacobian_metric(maps[0], acts[0], after, points=[(1.0, 1.0)])
    drawn = jacobian_metric(maps[0], acts[0], after, points=[(1.0, 1.0)], sources=400)
    assert float((drawn - exact).norm() / exact.norm()) < 0.05
    one = jacobian_metric(maps[0], acts[0], after, points=[(1.0, 1.0)], sources=1)
    assert float((one - exact).norm() / exact.norm()) > float((drawn - exact).norm() / exact.norm())
    # positions: a map that mixes them
    x = torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    W = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=F64)

    def mixing(z: Tensor) -> Tensor:
        return torch.tanh(z @ W).cumsum(1)

    readout = interaction_basis([x, mixing(x)], [mixing]).readout(1)
    exact = jacobian_metric(mixing, x, readout, points=[(1.0, 1.0)])
    by_hand = torch.zeros(4, 4, dtype=F64)
    for row in x:
        J = torch.autograd.functional.jacobian(lambda z: mixing(z[None])[0], row)
        assert isinstance(J, Tensor)
        flat = J.flatten(0, 1).flatten(0, 0).reshape(-1, 4)  # every (output position, feature, input position)
        by_hand += flat.T @ flat
    torch.testing.assert_close(exact, by_hand / 36)
    for sources in (300, (100, None), (None, 100), (20, 20)):
        drawn = jacobian_metric(mixing, x, readout, points=[(1.0, 1.0)], sources=sources)
        assert float((drawn - exact).norm() / exact.norm()) < 0.15, sources


def test_a_layer_norm_s_variance_stays_a_feature():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    first = torch.cat([x.pow(2).mean(1, keepdim=True), x], 1)

    def second(z: Tensor) -> Tensor:
        return z[:, 1:] / (z[:, :1] + 0.1).sqrt()

    basis = interaction_basis([first, second(first)], [second], variance_layers=[0])
    assert basis.n_isolated[0] == 2
    features = basis.encode(0, first)
    assert abs(float(torch.corrcoef(torch.stack([features[:, 1], first[:, 0]]))[0, 1])) > 1 - 1e-9
    assert bool((basis.C[0][0, 2:].abs() < 1e-12).all())


def test_what_does_not_matter_is_dropped():
    x, y = modular_addition(5)
    assert x.shape == (25, 10)
    assert y.tolist()[:7] == [0, 1, 2, 3, 4, 1, 2]
    noise = torch.randn(25, 3, generator=torch.Generator().manual_seed(0))
    W = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z[:, :10] @ W.to(z))

    given = torch.cat([x, noise], 1)
    acts = [given, f(given)]
    basis, pca = (interaction_basis(acts, [f], basis=kind) for kind in ("jacobian", "pca"))
    assert float(basis.C[0][10:13, 1:].abs().max()) < 1e-10
    assert float(pca.C[0][10:13, 1:].pow(2).sum()) == pytest.approx(3)
    dictionary = basis.dictionary(0, "input")
    torch.testing.assert_close(dictionary.encode(given.double()), basis.encode(0, given)[:, 1:])
    torch.testing.assert_close(
        dictionary.decode(dictionary.encode(given.double())), basis.decode(0, basis.encode(0, given))
    )


def test_cut_gives_maps_that_reach_the_next_site():
    model = mlp(6, (8, 7), 3, random_state=0)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    acts, maps = cut(model, ["flatten", "act1", "act2", "head"], x)
    for f, before, after in zip(maps, acts, acts[1:], strict=False):
        torch.testing.assert_close(f(before), after)
        torch.testing.assert_close(f(before[3:9]), after[3:9])
    assert next(model.parameters()).dtype == torch.float32
    one, two, three = (nn.Sequential(*list(model.children())[a:b]) for a, b in ((1, 3), (3, 5), (5, 6)))
    by_hand = interaction_basis(acts, [one, two, three])
    torch.testing.assert_close(interaction_basis(acts, maps).importance[0], by_hand.importance[0])


def test_cut_sees_what_goes_around_a_site():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, z: Tensor) -> Tensor:
            return z + self.two(torch.relu(self.one(z)))

    with pytest.raises(InputError, match="around"):
        cut(Skip(), ["one", "."], x)
    tokens = torch.arange(24).reshape(8, 3)
    gpt = ByteGPT(8, 2, 2, 16, 8, random_state=0)
    acts, maps = cut(gpt, ["tokens", "blocks.0", "blocks.1"], tokens)
    assert acts[0].shape == (8, 3, 8)
    torch.testing.assert_close(maps[0](acts[0]), acts[1])
    basis = interaction_basis(acts, maps, sources=(4, None))
    assert basis.C[0].shape[0] == 9
    with pytest.raises(InputError, match="around"):
        cut(gpt, ["tokens", "blocks.0.ffn", "blocks.1"], tokens)
    with pytest.raises(InputError, match="two different"):
        cut(gpt, ["tokens"], tokens)


def test_the_lens_of_a_network():
    model = mlp(6, (12,), 3, random_state=0)
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    finding = local_interactions(model, [x[:64], x[64:]])
    assert isinstance(finding, LocalInteractions)
    assert finding.sites == ("fc1:in", "head:in", "head")
    assert finding == local_interactions(model, [x[:64], x[64:]])
    assert finding.summary().keys() == finding.meanings.keys()
    assert finding.kept[1] == 3
    assert finding.pca_kept[1] > 3
    assert "99 %" in finding.paragraph()
    assert carrying(np.array([[8.0, 1.0], [0.5, 0.5]]), 0.9) == 2
    assert carrying(np.zeros((2, 2))) == 0
    with pytest.raises(InputError, match="at least 4"):
        local_interactions(model, [x[:3]])
    with pytest.raises(NetloupeError):
        local_interactions(ResidualMLP(6, 5, 3), [x])


def test_bad_input_is_one_sentence():
    acts, maps = network(0)
    cases = {
        "NaN": lambda: interaction_basis([acts[0] * torch.nan, *acts[1:]], maps),
        "one layer": lambda: interaction_basis(acts[:1], []),
        "one sample": lambda: interaction_basis([each[:1] for each in acts], maps),
        "no samples": lambda: interaction_basis([each[:0] for each in acts], maps),
        "other samples": lambda: interaction_basis([acts[0][:5], *acts[1:]], maps),
        "maps": lambda: interaction_basis(acts, maps[:2]),
        "map": lambda: interaction_basis(acts, [maps[0], lambda x: maps[1](x) + 1, maps[2]]),
        "shape": lambda: interaction_basis(acts, [maps[0], lambda x: x, maps[2]]),
        "kind": lambda: interaction_basis(acts, maps, basis="ica"),  # type: ignore[arg-type]
        "float32": lambda: interaction_basis(acts, maps, dtype=torch.float32),
        "constant map": lambda: interaction_basis([acts[0], acts[0] * 0], [lambda x: torch.zeros(x.shape, dtype=F64)]),
        "squared": lambda: interaction_basis(acts, maps, basis="ig_squared", rule="gradient"),
        "official": lambda: interaction_basis(acts, maps, official=True),
        "width": lambda: interaction_basis(acts, maps).encode(0, torch.zeros(3, 9)),
        "layer": lambda: interaction_basis(acts, maps).decode(7, torch.zeros(3, 9)),
    }
    for name, ask in cases.items():
        with pytest.raises(NetloupeError) as caught:
            ask()
        assert "\n" not in str(caught.value), name
    with pytest.raises(NonFiniteError, match="Jacobian"):
        root = torch.rand(10, 2, dtype=F64)
        root[:, 0] = 0
        interaction_basis([root, root.sqrt()], [torch.sqrt])
    with pytest.warns(UserWarning, match="rows for"):
        interaction_basis([each[:4] for each in acts], maps)
    constant = torch.cat([acts[0], torch.ones(60, 1, dtype=F64)], 1)
    basis = interaction_basis([constant, acts[1]], [lambda x: maps[0](x[:, :5])])
    assert basis.rank[0] == 6
