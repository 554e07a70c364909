"""Codes as answers: counts, precision beside units', purity, bits, interchange."""

from __future__ import annotations

import math
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import precision_recall_curve

from netloupe.core.errors import InputError, NonFiniteError, SiteError
from netloupe.core.finding import Finding
from netloupe.core.isolation import pinned_threads
from netloupe.lenses.dictionary.codes import (
    code_bits,
    code_counts,
    code_purity,
    code_scores,
    interchange,
    jensen_shannon,
    neuron_precision_at_recall,
    switch_on,
)
from netloupe.models.gpt import ByteGPT
from netloupe.nn.codebook_model import wrap_codebooks

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with pinned_threads(1):  # small networks gain nothing from a second thread, and lose much on a busy machine
        yield


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    ids = draw.integers(-1, 6, (40, 5, 2, 3))
    return ids, draw.random((40, 5)) < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_counts_and_scores(seed: int):
    ids, mask = drawn(seed)
    counts, scores = code_counts(torch.from_numpy(ids), 7), code_scores(ids, mask, 7)
    for group in range(2):
        for code in range(7):
            fired = (ids[:, :, group] == code).sum()
            hits = (ids[mask][:, group] == code).sum()
            assert counts[group, code] == fired
            assert scores.hits[group, code] == hits
            assert scores.recall[group, code] == pytest.approx(hits / mask.sum())
            if fired:
                assert scores.precision[group, code] == pytest.approx(hits / fired)
    assert np.isnan(scores.precision[:, 6]).all()


@pytest.mark.parametrize("seed", range(4))
def test_units_at_the_recall_of_scikit_learns_curve(seed: int):
    draw = np.random.default_rng(seed)
    acts = np.round(draw.standard_normal((200, 3)), 1)  # with ties
    masks = draw.random((200, 2)) < 0.1 + 0.3 * (acts[:, :1] > 0.5)
    recall = np.array([0.3, 0.85])
    found = neuron_precision_at_recall(torch.from_numpy(acts), masks, recall)
    assert found.shape == (3, 2)
    for unit in range(3):
        for target in range(2):
            best = []
            for sign in (1, -1):
                precision, got, thresholds = precision_recall_curve(masks[:, target], sign * acts[:, unit])
                reached = np.flatnonzero(got[:-1] >= recall[target] - 1e-12)
                best.append(precision[reached[np.argmax(thresholds[reached])]])
            assert found[unit, target] == pytest.approx(max(best))
    one = neuron_precision_at_recall(acts, masks[:, 0], 0.3, either_sign=False)
    assert (one <= found[:, 0] + 1e-12).all()
    np.testing.assert_allclose(neuron_precision_at_recall(np.ones((200, 1)), masks[:, 0], 0.1), masks[:, 0].mean())


def test_purity():
    ids = np.array([0, 0, 1, 1, 2, 3])[:, None, None]
    keys = np.array([5, 5, 5, 6, 7, -1])
    assert code_purity(ids, keys, 9) == pytest.approx(2 / 3)  # 0 and 2 of 0, 1, 2; nothing is known of 3
    assert code_purity(ids, keys, 9, min_count=2) == pytest.approx(1 / 2)
    assert math.isnan(code_purity(ids, keys, 9, min_count=3))
    two = np.stack([ids[:, 0], 1 - (ids[:, 0] > 1)], 1)
    assert code_purity(two, np.zeros(6, dtype=int), 9) == 1


def test_bits():
    even = code_bits(np.full((2, 16), 4), 1, 32)
    assert even == pytest.approx((8, 8, 1024, 128))
    assert code_bits(np.array([[5, 0, 0, 0]]), 2, 8, 16)[:3] == pytest.approx((math.log2(6), 0, 128))
    assert code_bits(np.ones((1, 3), dtype=int), 3, 4).ratio == math.inf


@pytest.mark.parametrize("seed", range(3))
def test_divergence_is_scipys(seed: int):
    p, q = np.random.default_rng(seed).dirichlet(np.ones(5), (2, 7))
    p[0], q[0] = [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]
    np.testing.assert_allclose(jensen_shannon(p, q), [jensenshannon(a, b) ** 2 for a, b in zip(p, q)], atol=1e-12)
    assert jensen_shannon(p, q)[0] == pytest.approx(math.log(2))


def test_interchange():
    sites = {"blocks.0.ffn": {"dim": 8, "n_codes": 30}, "blocks.0.attn.out:in": {"dim": 8, "n_codes": 30, "groups": 2}}
    model = wrap_codebooks(ByteGPT(8, 1, 2, 16, 8, vocab=9, embedding_std=1.0, random_state=1), sites)
    draw = torch.Generator().manual_seed(0)
    base, source = torch.randint(0, 9, (2, 20, 5), generator=draw)
    source[:, -1] = base[:, -1]  # the residual stream of the last position is then the same in both
    found = interchange(model, base, source)
    np.testing.assert_allclose(found.after, 0, atol=1e-9)
    assert found.before.mean() > 1e-4
    assert found.summary()["fall"] == pytest.approx(1)
    assert all(not book.usage.any() for _, book in model.items()), "the network is left as it was"
    nothing = interchange(model, base, source, positions=[0])
    assert (nothing.after > 0).any()
    one = interchange(model, base, source, sites=["blocks.0.ffn"])
    assert 0 < one.after.mean() < found.before.mean() * 3
    own = {site: ids.clone() for site, ids in run_ids(model, base).items()}
    np.testing.assert_allclose(interchange(model, base, source, codes=own).after, found.before, atol=1e-9)
    with torch.no_grad(), model.force({"blocks.0.attn.out:in": switch_on(7, group=1)}):
        model(base)
    forced = model.ids["blocks.0.attn.out:in"]
    assert bool((forced[..., 1, :] == 7).all())
    assert torch.equal(forced[..., 0, :], own["blocks.0.attn.out:in"][..., 0, :])
    assert isinstance(found, Finding)
    figure, axes = plt.subplots()
    found.plot(axes)
    plt.close(figure)
    with pytest.raises(InputError, match="base has shape"):
        interchange(model, base, source[:, :-1])
    with pytest.raises(SiteError, match="no codebook"):
        interchange(model, base, source, sites=["blocks.1.ffn"])


def run_ids(model, tokens):
    model.eval()
    with torch.no_grad():
        model(tokens)
    for _, book in model.items():
        book.reset_usage()
    return model.ids


def test_refusals():
    ids, mask = drawn(0)
    for call, words in [
        (lambda: code_counts(ids, 5), "up to 5"),
        (lambda: code_counts(ids[0, 0], 7), "expected whole numbers"),
        (lambda: code_counts(ids * 1.5, 7), "expected whole numbers"),
        (lambda: code_scores(ids, mask[:3], 7), "bool for 200"),
        (lambda: code_scores(ids, np.zeros((40, 5), dtype=bool), 7), "one at least"),
        (lambda: code_purity(ids, np.zeros(3, dtype=int), 7), "expected whole numbers for 200"),
        (
            lambda: neuron_precision_at_recall(np.ones((4, 2)), np.ones(3, dtype=bool), 0.5),
            "expected \\(sample, unit\\)",
        ),
        (lambda: neuron_precision_at_recall(np.ones((4, 2)), np.zeros(4, dtype=bool), 0.5), "positive sample"),
        (lambda: neuron_precision_at_recall(np.ones((4, 2)), np.ones(4, dtype=bool), 1.5), "at most 1"),
        (lambda: code_bits(np.zeros((1, 4)), 1, 3), "0 codes fired"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(NonFiniteError):
        neuron_precision_at_recall(np.full((4, 2), np.nan), np.ones(4, dtype=bool), 0.5)
