"""Second moments over positions: planted classes with known answers, the streaming statistic, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.capture import capture, observe
from netloupe.core.errors import InputError
from netloupe.core.statistics import restore
from netloupe.data.planted_tokens import planted_tokens
from netloupe.lenses.information.moment_probe import (
    MomentProbe,
    moment_features,
    second_order,
    second_order_gain,
)
from netloupe.lenses.information.perceptron import Perceptron, cross_entropy
from netloupe.lenses.information.token_moments import TokenMoments, orthonormal
from netloupe.models.vit import ViT
from netloupe.nn.moment_head import CrossMoments


def test_planted_tokens_are_what_they_say():
    tokens, labels = planted_tokens("covariance", 4000, random_state=1)
    means = tokens.mean(1)
    assert max(float(means[labels == k].mean(0).abs().max()) for k in range(4)) < 0.02
    spectra = [np.linalg.eigvalsh(np.cov(tokens[labels == k].reshape(-1, 16).T.numpy())) for k in range(4)]
    np.testing.assert_allclose(spectra, np.tile(np.linspace(0.1, 1.9, 16), (4, 1)), atol=0.05)
    tokens, labels = planted_tokens("mean", 4000, random_state=1)
    spread = tokens - torch.stack([tokens[labels == k].mean((0, 1)) for k in range(4)])[labels][:, None]
    np.testing.assert_allclose(np.cov(spread.reshape(-1, 16).T.numpy()), np.eye(16), atol=0.02)
    tokens, labels = planted_tokens("parity", 2000, 2)
    signs = tokens[..., :2].mean(1).prod(1) > 0
    assert (signs.long() == labels).float().mean() > 0.99
    for bad in (("colour", 10), ("parity", 10, 3), ("mean", 1)):
        with pytest.raises(InputError):
            planted_tokens(*bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(2))
def test_each_reader_reads_what_it_can(seed: int):
    """Class in the covariance, in the mean, in the parity of the mean: which of the three readers is at chance is known."""
    covariance = second_order(*planted_tokens("covariance", 800, random_state=seed))
    assert covariance.moment_accuracy > 0.97
    assert covariance.gain_bits_interval[0] > 1.5
    assert -0.2 < covariance.mean_bits < 0.1
    mean = second_order(*planted_tokens("mean", 800, random_state=seed))
    assert mean.mean_bits > 1
    assert mean.gain_bits_interval[1] < 0.1
    parity = second_order(*planted_tokens("parity", 800, 2, random_state=seed))
    assert abs(parity.gain_bits) < 0.15  # covariances over tokens do not know the mean
    assert parity.mlp_gain_bits > 0.5
    assert parity.mlp_accuracy > 0.9
    small, large = parity.n_parameters[0], parity.n_parameters[1]
    assert small < large
    assert abs(parity.n_parameters[2] - large) < 12


def test_the_trained_probe_reads_covariances():
    tokens, labels = planted_tokens("covariance", 600, 2, n_units=8, n_positions=25)
    found = second_order_gain(tokens, labels, MomentProbe(hidden=28, epochs=20))
    assert found.moment_accuracy > 0.9
    assert found.mean_accuracy < 0.65
    assert found.n_parameters[1] == MomentProbe(hidden=28).n_parameters(8, 2)
    assert found == second_order_gain(tokens, labels, MomentProbe(hidden=28, epochs=20))
    probe = MomentProbe(hidden=28, epochs=2, first="cls", label_smoothing=0.1).fit(tokens, labels)
    np.testing.assert_allclose(probe.predict_proba(tokens[:7]).sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_moment_features_are_mean_and_covariance(seed: int):
    tokens = torch.randn(5, 9, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 3
    found = moment_features(tokens, n_heads=2)
    for row, values in zip(found, tokens.numpy()):
        np.testing.assert_allclose(row[:8], values.mean(0), atol=1e-13)
        np.testing.assert_allclose(row[8:].reshape(4, 4), np.cov(values.T, bias=True)[:4, 4:], atol=1e-12)
    for center in ("none", "scalar", "token"):
        head = CrossMoments(4, "all", center, "none")  # type: ignore[arg-type]
        own = moment_features(tokens, (2,), n_heads=4, pairs="all", center=center)  # type: ignore[arg-type]
        np.testing.assert_allclose(own, head(tokens).flatten(1).numpy(), atol=1e-12)
    projected = moment_features(tokens, (1,), 4)
    np.testing.assert_allclose(projected, tokens.mean(1).numpy() @ orthonormal(8, 4, 0), atol=1e-12)
    np.testing.assert_allclose(orthonormal(8, 4, 0).T @ orthonormal(8, 4, 0), np.eye(4), atol=1e-12)


def fed(tokens: torch.Tensor, labels: torch.Tensor, order: list[list[int]], **options: int) -> TokenMoments:
    made = TokenMoments(**options)
    for rows in order:
        index = torch.tensor(rows)
        made.update(tokens[index], labels=labels[index], samples=index)
    return made


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(2, 12))
def test_merging_is_exact_in_any_order(seed: int, n_samples: int, n_units: int):
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = torch.randn(24, 6, n_units, generator=generator), torch.arange(24) % 3
    order = torch.randperm(24, generator=generator).tolist()
    cuts = sorted(torch.randint(0, 25, (3,), generator=generator).tolist())
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, 24])]
    whole = fed(tokens, labels, [list(range(24))], n_samples=n_samples).result()
    merged = TokenMoments(n_samples=n_samples)
    for part in parts:
        if part:
            merged.merge(fed(tokens, labels, [part[:5], part[5:]] if part[5:] else [part], n_samples=n_samples))
    found = merged.result()
    for name in ("first", "second", "labels", "samples"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    np.testing.assert_array_equal(found.samples, np.arange(min(n_samples, 24)))
    again = restore(merged.state())
    assert again == merged


def test_the_statistic_agrees_with_the_closed_form_and_leaves_padding_out():
    tokens = torch.randn(10, 12, 40, dtype=torch.float64)
    mask = torch.arange(12)[None] < torch.tensor([12, 5, 7, 12, 2, 1, 9, 12, 5, 3])[:, None]
    found = TokenMoments().update(tokens, mask=mask, labels=torch.arange(10)).result()
    np.testing.assert_array_equal(found.samples, [0, 1, 2, 3, 4, 6, 7, 8, 9])  # one position has no covariance
    for row, sample in enumerate(found.samples):
        expected = moment_features(tokens[sample : sample + 1, mask[sample]], proj=32)[0]
        np.testing.assert_allclose(np.concatenate([found.first[row], found.second[row]]), expected, atol=1e-12)
    few = TokenMoments(n_positions=4).update(tokens, labels=torch.arange(10)).result()
    expected = moment_features(tokens[:, [0, 4, 7, 11]], proj=32)
    np.testing.assert_allclose(np.hstack([few.first, few.second]), expected, atol=1e-12)


def test_one_pass_over_a_network_gives_the_lens():
    model = ViT(8, 2, 3, d_model=12, d_ff=24, n_layers=1, n_heads=2, random_state=0)
    images, labels = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    declared = second_order.lens  # type: ignore[attr-defined]
    seen = observe(model, (images, labels), dict(declared.statistics), ["blocks.0", "head"], batch_size=16)
    streamed = declared.conclude(seen["blocks.0"])
    tokens = torch.cat([part["blocks.0"] for part in capture(model, images, ["blocks.0"])])
    direct = second_order(tokens, labels)
    for name, value in streamed.summary().items():
        assert value == pytest.approx(direct.summary()[name], rel=1e-4, abs=1e-4), name
    with pytest.raises(InputError, match="no positions"):
        declared.conclude(seen["head"])
    unlabelled = observe(model, images, dict(declared.statistics), ["blocks.0"])
    with pytest.raises(InputError, match="no labels"):
        declared.conclude(unlabelled["blocks.0"])


def test_refusals():
    tokens, labels = torch.randn(40, 5, 8), torch.arange(40) % 2
    for bad, words in [
        (lambda: second_order(tokens[:, 0], labels), "expected"),
        (lambda: second_order(tokens[:, :1], labels), "no positions"),
        (lambda: second_order(tokens[:, :, :1], labels), "at least two units"),
        (lambda: second_order(tokens, None), "no labels"),
        (lambda: second_order(tokens, labels - 1), "negative"),
        (lambda: second_order(tokens, torch.arange(40)), "at least 2 classes with 4"),
        (lambda: moment_features(tokens[:, :1]), "at least 2 positions"),
        (lambda: moment_features(tokens, (3,)), "orders"),
        (lambda: moment_features(tokens, n_heads=3), "do not divide"),
        (lambda: moment_features(tokens, n_heads=1), "at least 2"),
        (lambda: moment_features(tokens, proj=np.eye(4)), "one row for each"),
        (lambda: MomentProbe().fit(tokens[:, 0], labels), "expected"),
        (lambda: MomentProbe(hidden=20).fit(tokens, labels), "at least 7"),
        (lambda: TokenMoments(n_heads=1), "at least 2 heads"),
        (lambda: TokenMoments().result(), "no rows"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()


@pytest.mark.parametrize("seed", range(2))
def test_the_perceptron_differentiates_its_own_loss(seed: int):
    rng = np.random.default_rng(seed)
    net = Perceptron(4, 5, 3, rng)
    x, codes = rng.standard_normal((20, 4)), rng.integers(0, 3, 20)
    start = net.parameters.copy()
    is_weight = np.concatenate([np.ones(20), np.zeros(5), np.ones(15), np.zeros(3)])

    def loss(parameters: np.ndarray) -> float:
        net.parameters = parameters
        return cross_entropy(net.probabilities(x), codes) + 0.3 / 40 * float((is_weight * parameters**2).sum())

    numeric = np.array([(loss(start + e) - loss(start - e)) / 2e-6 for e in 1e-6 * np.eye(len(start))])
    net.parameters = start
    np.testing.assert_allclose(net.gradient(x, codes, 0.3), numeric, atol=1e-7)
