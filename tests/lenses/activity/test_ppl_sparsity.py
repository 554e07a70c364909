"""The network-level question: which layers are found, what masking does, the search, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netloupe.core.batches import prepare
from netloupe.core.errors import InputError, NonFiniteError, SiteError
from netloupe.core.finding import Finding
from netloupe.core.lens import get_lens
from netloupe.core.losses import next_token_loss
from netloupe.lenses.activity.cett import SparsityProbe, cett_at, common_cett, ppl_sparsity, sparsest, token_agreement
from netloupe.lenses.activity.ffn_sites import ffn_sites
from netloupe.lenses.activity.sparsity_pareto import sparsity_pareto
from netloupe.models.gpt import ByteGPT
from netloupe.models.small import DigitsCNN, mlp
from netloupe.models.vit import TokenTransformer, ViT
from netloupe.nn.ffn import threshold_model


def gpt(**options) -> ByteGPT:
    """A network that has learned nothing but whose blocks matter: large weights."""
    model = ByteGPT(
        **{"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 40, "context": 16, "random_state": 0, **options}
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "ffn" in name or "head" in name or "tokens" in name:
                value.mul_(20 if "head" in name or "tokens" in name else 2)
    return model


def tokens(n: int = 12, length: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, length), generator=torch.Generator().manual_seed(seed))


def learned(model: ByteGPT, x: torch.Tensor) -> torch.Tensor:
    """Tokens that the network itself finds likely, so that errors raise its loss."""
    x = x.clone()
    with torch.no_grad():
        for place in range(1, x.shape[1]):
            x[:, place] = model(x[:, :place])[:, -1].argmax(-1)
    return x


def paths(model: nn.Module, x: torch.Tensor, sites=None) -> list[str]:
    return [site.path for site in ffn_sites(model, prepare(x, model), sites)]


def test_projections_are_found_in_any_network():
    assert paths(gpt(), tokens()) == ["blocks.0.ffn.down", "blocks.1.ffn.down"]
    assert paths(gpt(gated=False), tokens()) == ["blocks.0.ffn.down", "blocks.1.ffn.down"]
    transformer = TokenTransformer(9, 8, d_model=8, d_ff=12, n_layers=2, n_heads=2, random_state=0)
    assert paths(transformer, tokens(length=8) % 9) == ["blocks.0.mlp.fc2", "blocks.1.mlp.fc2"]
    vit = ViT(8, 4, 3, d_model=8, d_ff=12, n_layers=1, n_heads=2, random_state=0)
    assert paths(vit, torch.rand(3, 1, 8, 8)) == ["blocks.0.mlp.fc2"]
    assert paths(mlp(5, (7, 7), 3, random_state=0), torch.rand(4, 5)) == ["fc2", "head"]
    assert paths(DigitsCNN(), torch.rand(2, 1, 8, 8)) == ["fc", "head"]
    assert paths(gpt(), tokens(), ["blocks.1.ffn.down:in", "head"]) == ["blocks.1.ffn.down", "head"]
    named = paths(gpt(), tokens(), "blocks.1.*")
    assert set(named) == {f"blocks.1.{part}" for part in ("attn.qkv", "attn.out", "ffn.gate", "ffn.up", "ffn.down")}
    assert named[-1] == "blocks.1.ffn.down", "in the order they run"


def test_functional_activations_are_found_by_widths_and_gates_as_scores():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.head = nn.Linear(6, 24), nn.Linear(24, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.down(F.gelu(self.up(x))))

    (site,) = ffn_sites(Functional(), prepare(torch.rand(4, 6), nn.Identity()))
    assert (site.path, site.score, site.n_rows) == ("down", None, 1)
    found = ffn_sites(gpt(), prepare(tokens(), gpt()))
    assert [site.score for site in found] == ["blocks.0.ffn.act", "blocks.1.ffn.act"]
    assert found[0].n_rows == 16


def test_dense_loss_and_curves_are_what_the_network_has():
    model, x = gpt(), tokens()
    probe = SparsityProbe(model, x, batch_size=5)
    with torch.no_grad():
        expected = float(next_token_loss(model(x), prepare(x, model)))
        a = {}
        handle = model.blocks[1].ffn.down.register_forward_pre_hook(lambda _, args: a.update(x=args[0]))
        model(x)
        handle.remove()
    assert probe.loss_dense == pytest.approx(expected, rel=1e-6)
    curve, w = probe.curves["blocks.1.ffn.down"], model.blocks[1].ffn.down.weight
    for level in range(850, 1050, 50):
        assert curve.cett[level] == pytest.approx(
            cett_at(a["x"].reshape(-1, 40), w, float(curve.eps[level])), rel=1e-5, abs=1e-7
        )
    assert probe.n_tokens == 12 * 16


def test_a_sparse_run_is_the_network_with_thresholds_built_in():
    model = gpt()
    x = learned(model, tokens())
    probe = SparsityProbe(model, x, batch_size=5)
    run = probe.at_cett(0.3)
    thresholds = probe.thresholds(0.3)
    built = gpt()
    threshold_model(built, thresholds)
    with torch.no_grad():
        expected = float(next_token_loss(built(x), prepare(x, built)))
    assert run.loss == pytest.approx(expected, rel=1e-5)
    assert run.ppl_ratio == pytest.approx(math.exp(run.loss - probe.loss_dense), rel=1e-9)
    assert run.ratio == pytest.approx(probe.dense_ratio(0.3), abs=0.05)
    assert [len(f) for f in run.frequency] == [40, 40]
    assert np.allclose([f.mean() for f in run.frequency], run.ratios)
    assert run.token_counts is not None
    assert run.token_kept is not None
    assert run.token_counts.sum() == x.numel()
    assert run.token_kept.sum() / x.numel() == pytest.approx(run.ratio, rel=1e-5)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_search_ends_at_the_perplexity_asked_for(activation: str):
    model = gpt(activation=activation)
    x = learned(model, tokens())
    found = ppl_sparsity(model, x, p=0.05, max_tokens=200)
    assert found.ppl_ratio == pytest.approx(1.05, abs=2e-3)
    assert 0 < found.ratio < float(found.nonzero.mean())
    assert (np.diff(found.probed[:, 0]) > 0).all()
    assert found.probed[0, 2] == pytest.approx(1, abs=1e-6)
    assert list(found.thresholds) == ["blocks.0.ffn.down", "blocks.1.ffn.down"]
    assert len(found.frequency_of("blocks.1.ffn.down")) == 40
    assert found.ratio == pytest.approx(found.frequency.mean(), rel=1e-6)
    stricter = ppl_sparsity(model, x, p=0.01, max_tokens=200)
    assert stricter.ratio > found.ratio
    assert found == ppl_sparsity(model, x, p=0.05, max_tokens=200), "the same numbers again"


def test_zero_rule_is_the_share_of_nonzeros_and_costs_nothing():
    model = gpt()
    probe = SparsityProbe(model, tokens())
    run = probe.run("zero")
    assert run.ppl_ratio == pytest.approx(1, abs=1e-6)
    nonzero = np.mean([curve.ratio[0] for curve in probe.curves.values()])
    assert run.ratio == pytest.approx(float(nonzero), abs=1e-6)
    assert probe.at_cett(0.0).ratio == pytest.approx(float(nonzero), abs=2e-3)
    everything = probe.at_cett(1.0)
    assert everything.ratio == 0


def test_rules_rank_by_the_gate_and_keep_their_share():
    probe = SparsityProbe(gpt(activation="silu"), tokens())
    for rule in ("topk", "topk_pooled", "random"):
        assert probe.run(rule, 0.25).ratio == pytest.approx(0.25, abs=1e-6)
    assert probe.run("random", 0.25, random_state=1).loss != probe.run("random", 0.25, random_state=2).loss
    assert 0 < probe.run("fat", 0.05).ratio < 1
    pareto = sparsity_pareto(probe, ratios=(0.1, 0.3, 0.6), rules=("cett", "topk", "topk_pooled", "fat", "random"))
    assert np.abs(pareto.ratios - [0.1, 0.3, 0.6]).max() < 0.06
    assert pareto.at("topk", 0.3) == pytest.approx(probe.run("topk", 0.3).ppl_ratio)
    assert set(pareto.summary()) <= set(pareto.meanings)
    figure, axes = plt.subplots()
    pareto.plot(axes)
    plt.close(figure)
    with pytest.raises(InputError, match="was not measured"):
        pareto.at("zero", 0.3)
    with pytest.raises(InputError, match="expected ratios"):
        sparsity_pareto(probe, ratios=(0.0,))


def test_padding_neither_counts_nor_costs():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = gpt()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.inner(input_ids)

    x, mask = tokens(6), torch.ones(6, 16).long()
    mask[:, 10:] = 0
    other = x.clone()
    other[:, 10:] = 7
    one, two = (SparsityProbe(Masked(), {"input_ids": t, "attention_mask": mask}) for t in (x, other))
    assert one.n_tokens == 60
    assert one.loss_dense == pytest.approx(two.loss_dense, rel=1e-6)
    assert np.allclose(one.at_cett(0.3).ratios, two.at_cett(0.3).ratios)
    assert one.run("topk_pooled", 0.2).ratio == pytest.approx(two.run("topk_pooled", 0.2).ratio)


def test_classifiers_and_labels():
    model, x = mlp(6, (12, 12), 3, random_state=0), torch.randn(64, 6)
    with torch.no_grad():
        labels = model(x).argmax(1)
    found = ppl_sparsity(model, (x, labels), p=0.02)
    assert found.sites == ("fc2", "head")
    assert found == ppl_sparsity(model, x, labels, p=0.02), "labels may come apart from the data"
    assert found.loss_dense == pytest.approx(float(F.cross_entropy(model(x), labels).detach()), rel=1e-5)
    assert found.token_ratio.size == 0
    own = ppl_sparsity(model, x, loss=lambda output, batch: output.square().mean(), p=0.02)
    assert own.loss_dense == pytest.approx(float(model(x).square().mean().detach()), rel=1e-5)
    assert ppl_sparsity(model, (x, labels), max_tokens=10).n_tokens == 10


def test_the_network_is_left_alone_and_data_may_come_once():
    model = gpt().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ppl_sparsity(model, (batch for batch in tokens().split(4)), max_tokens=128)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.blocks[0].ffn.down._forward_pre_hooks


def test_where_everything_may_go_the_answer_is_zero():
    model = ByteGPT(16, 2, 2, 40, 16, random_state=0)
    with torch.no_grad():
        for block in model.blocks:
            block.ffn.down.weight.mul_(1e-4)
    found = ppl_sparsity(model, tokens())
    assert (found.ratio, found.cett) == (0, 1)
    assert all(math.isfinite(eps) for eps in found.thresholds.values())


def test_common_error_of_checkpoints_and_agreement_over_tokens():
    models = [gpt(random_state=seed) for seed in (0, 1)]
    probes = [SparsityProbe(model, learned(model, tokens())) for model in models]
    cett = common_cett(probes, p=0.05)
    mean = np.mean([probe.at_cett(cett).ppl_ratio for probe in probes])
    assert mean == pytest.approx(1.05, abs=2e-3)
    one = sparsest(probes[0], 0.05)
    assert token_agreement(one, one, min_count=1) == pytest.approx(1)
    with pytest.raises(InputError, match="token values occur"):
        token_agreement(one, one, min_count=10**6)
    with pytest.raises(InputError, match="at least one"):
        common_cett([])


def test_finding_explains_saves_and_draws(tmp_path: Path):
    model = gpt()
    found = ppl_sparsity(model, learned(model, tokens()), p=0.05)
    assert next(iter(found.summary())) == "activation_ratio"
    assert set(found.summary()) <= set(found.meanings)
    assert "can be left out" in found.paragraph()
    assert Finding.load(found.save(tmp_path / "f")) == found
    figure, axes = plt.subplots()
    found.plot(axes)
    figure.canvas.draw()
    plt.close(figure)
    lens = get_lens("ppl_sparsity")
    assert lens.needs == ("model", "data")
    with pytest.raises(InputError, match="there are"):
        found.frequency_of("nothing")


def test_refusals_are_one_sentence():
    model = gpt()

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.back = gpt(), nn.Linear(256, 256)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + self.back(self.inner(x.flip(1)).flip(1))

    cases = [
        (lambda: ppl_sparsity(model, tokens(), p=0.0), InputError, "p is 0.0"),
        (lambda: ppl_sparsity(model, tokens(), tol=-1.0), InputError, "tol -1.0"),
        (lambda: ppl_sparsity(model, tokens(), max_tokens=0), InputError, "max_tokens is 0"),
        (lambda: ppl_sparsity(model, tokens()[:0]), InputError, "no samples"),
        (lambda: ppl_sparsity(model, tokens(), sites="blocks.0.nothing"), SiteError, "no linear layer"),
        (lambda: ppl_sparsity(nn.Conv2d(1, 2, 3), torch.rand(2, 1, 5, 5)), InputError, "no linear layer"),
        (lambda: ppl_sparsity(nn.Linear(4, 2), torch.rand(3, 4)), InputError, "no linear layer"),
        (lambda: ppl_sparsity(nn.Sequential(nn.Linear(4, 4)), torch.rand(3, 4)), InputError, "no linear layer behind"),
        (lambda: ppl_sparsity(mlp(4, (5,), 2), torch.rand(3, 4)), InputError, "no loss is defined"),
        (lambda: ppl_sparsity(mlp(4, (5,), 2), torch.rand(3, 4), [0, 1]), InputError, "labels for more samples"),
        (lambda: ppl_sparsity(Encoder(), tokens()), InputError, "sees later tokens"),
        (lambda: ppl_sparsity(mlp(4, (5,), 2), (torch.rand(3, 4), torch.tensor([0, 1, 5]))), InputError, "cross-entropy"),
        (lambda: ppl_sparsity(mlp(4, (5,), 2), torch.full((3, 4), torch.nan), [0, 1, 1]), NonFiniteError, "nan|NaN"),
    ]  # fmt: skip
    for call, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    dead = mlp(4, (5,), 2, random_state=0)
    with torch.no_grad():
        dead.get_submodule("fc1").bias.fill_(-100)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="dead"):
        ppl_sparsity(dead, (torch.rand(3, 4), torch.tensor([0, 1, 1])))
