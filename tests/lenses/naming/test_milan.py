"""MILAN's describer against brute force over all sequences, closed forms, and numbers of the published code."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.naming.captions import Vocabulary, tokens_of
from netloupe.lenses.naming.exhaustive import exhaustive_pmi, rank_by_judge
from netloupe.lenses.naming.milan import Description, LanguageModel, MilanDescriber, pmi_rank
from netloupe.lenses.naming.milan_networks import Captioner, WordModel, beam_search, until_stop
from netloupe.lenses.naming.naming import Evidence, name_feature

WORDS = ("red", "blue", "things", "striped", "circles", "the", "of")


def describer(words=WORDS, dim: int = 7, hidden: int = 6, seed: int | None = 0, length: int = 6) -> MilanDescriber:
    """Random weights, or (seed None) weights from a formula."""
    vocabulary = Vocabulary(tuple(words))
    torch.manual_seed(seed or 0)
    captioner = Captioner(len(vocabulary), dim, hidden, 5)
    language = LanguageModel(vocabulary)
    language.network_ = WordModel(len(vocabulary), vocabulary.padding, hidden, 5)
    for network in (captioner, language.network_):
        for index, (_, value) in enumerate(sorted(network.state_dict().items())):
            k = torch.arange(value.numel(), dtype=torch.float64)
            formula = 0.6 * torch.sin(1.7 * k + 0.3 * index + 0.1 * (k % 7) ** 2)
            value.copy_(formula.float().reshape(value.shape) if seed is None else 1.5 * torch.randn_like(value))
    found = MilanDescriber(vocabulary, dim, hidden, embedding=5, language=language, length=length)
    found.network_ = captioner
    return found


def regions(n: int = 3, dim: int = 7) -> torch.Tensor:
    u = torch.arange(n * 15 * dim, dtype=torch.float64)
    return torch.sin(0.37 * u + 0.01 * (u % 11) ** 2).float().reshape(n, 15, dim)


def test_numbers_of_the_published_code():
    """The published decoder and language model with the same weights gave these."""
    made, captions = describer(seed=None), ["red things", "the striped circles", "blue things of things"]
    conditional = [
        [-8.612848281860352, -10.893692970275879, -13.322868347167969],
        [-8.600994110107422, -10.898298263549805, -13.31902027130127],
        [-8.594476699829102, -10.860173225402832, -13.281966209411621],
    ]
    np.testing.assert_allclose(made.score(regions(), captions), conditional, atol=5e-6)
    language = made.language
    assert isinstance(language, LanguageModel)
    published = [-11.664438247680664, -13.328046798706055, -16.342817306518555]
    np.testing.assert_allclose(language.score(captions, official=True), published, atol=5e-6)
    # without the token after the end that it counts for all but the longest caption
    np.testing.assert_allclose(language.score(captions), [-9.0618205, -10.7667738, -16.3428166], atol=5e-6)
    rows = torch.tensor([[3, 4, 1, 1, 1, 1], [0, 2, 8, 8, 8, 8], [5, 1, 6, 0, 2, 8]])
    sequences = [-15.346595764160156, -12.675569534301758, -17.986082077026367]
    np.testing.assert_allclose(language.score_tokens(rows, official=True), sequences, atol=5e-6)
    assert [one.text for one in made.describe(regions(), "stepwise", beam=1)] == ["", "", ""]


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_is_brute_force(seed: int):
    made, length = describer(("red", "blue"), dim=4, seed=seed + 1, length=3), 3
    given_regions = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed))
    vocabulary = made.vocabulary
    assert vocabulary is not None
    network, stop = made.network_, vocabulary.stop
    assert network is not None
    network.eval()
    every = list(product(range(len(vocabulary)), repeat=length))
    ended = [row for row in every if all(token == stop for at, token in enumerate(row) if stop in row[:at])]
    tokens = torch.tensor(ended)
    keys = network.key(given_regions)
    with torch.no_grad():
        logp = made._score(given_regions, tokens[None].expand(2, -1, -1))
        found = beam_search(lambda t, s: _without_weights(network.step(t, s, given_regions, keys)), network.begin(given_regions), vocabulary.start, stop, length, 400)  # fmt: skip
    for unit in range(2):
        order = np.argsort(-logp[unit].numpy(), kind="stable")
        kept = torch.isfinite(found.scores[unit])
        assert int(kept.sum()) == len(ended)
        np.testing.assert_allclose(found.scores[unit][kept], logp[unit].numpy()[order], atol=1e-4)
        assert tuple(found.tokens[unit, 0].tolist()) == ended[order[0]]
    language = made.language
    assert isinstance(language, LanguageModel)
    for lam in (0.0, 0.2, 1.0):
        best = made.candidates(given_regions, "rerank", 400, lam)
        score = logp.numpy() - lam * language.score_tokens(tokens).numpy()
        np.testing.assert_allclose([one[0].pmi for one in best], score.max(1), atol=1e-4)
    likely = made.describe(given_regions, "beam", 400)
    assert [one.text for one in likely] == [one.text for one in made.describe(given_regions, lam=0.0, beam=400)]
    assert all(a.logp >= b.logp - 1e-5 for a, b in zip(likely, made.describe(given_regions, "greedy"), strict=True))
    # word by word, log p(d|E) - lam log p(d) is the same sum
    stepwise = made.candidates(given_regions, "stepwise", 400, 0.5)
    score = logp.numpy() - 0.5 * language.score_tokens(tokens).numpy()
    np.testing.assert_allclose([one[0].pmi for one in stepwise], score.max(1), atol=1e-4)


def _without_weights(found):
    return found[0], found[2]


@pytest.mark.parametrize("seed", range(3))
def test_attention(seed: int):
    network = Captioner(9, 4, 6, 5)
    values = torch.randn(2, 15, 4, generator=torch.Generator().manual_seed(seed))
    values[1] = values[1, :1]
    with torch.no_grad():
        _, weights = network(values, torch.tensor([[0, 1, 2], [3, 4, 5]]))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(weights[1], torch.full((3, 15), 1 / 15))
    assert float(weights[0].std()) > 1e-4
    assert sum(p.numel() for p in network.query.parameters()) == 6 * 4 + 4  # the smaller of hidden and feature_dim


def planted(n: int = 120, seed: int = 0, noise: float = 0.3):
    """Units whose regions tell one of four words; captions in two wordings, one of them common to many."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, n)
    values = np.eye(4)[kind][:, None] + noise * rng.standard_normal((n, 15, 4))
    names = np.array(["red", "blue", "striped", "plain"])[kind]
    return values, [[f"{name} things", f"the {name} circles."] for name in names], names


SMALL = {"embedding": 16, "learning_rate": 5e-3, "max_epochs": 60, "patience": 6}


def test_learns_what_regions_say_and_nothing_from_shuffled_ones():
    values, captions, _ = planted()
    made = MilanDescriber(hidden=32, **SMALL, language={"hidden": 32, **SMALL}).fit(values, captions)
    fresh, _, wanted = planted(40, seed=1)
    told = made.describe(fresh, beam=20)
    assert np.mean([name in one.text for name, one in zip(wanted, told, strict=True)]) > 0.95
    assert made.network_ is not None

    np.testing.assert_allclose([one.logp - 0.2 * one.lm_logp for one in told], [one.pmi for one in told])
    assert made.history_.n_steps > 10
    again = MilanDescriber(hidden=32, **SMALL, language={"hidden": 32, **SMALL}).fit(values, captions)
    assert again.describe(fresh, beam=20) == told
    assert made.describe(fresh, "sample") == again.describe(fresh, "sample")
    # exemplars have no order
    order = np.random.default_rng(0).permutation(15)
    assert [one.text for one in made.describe(fresh[:, order], beam=20)] == [one.text for one in told]
    # regions of other units: p(d | E) = p(d), so that information is about zero
    shuffled = [captions[i] for i in np.random.default_rng(2).permutation(len(captions))]
    null = MilanDescriber(hidden=32, **SMALL, language={"hidden": 32, **SMALL}).fit(values, shuffled)
    said = [f"{name} things" for name in ("red", "blue", "striped", "plain")]
    language = null.language
    assert isinstance(language, LanguageModel)
    assert np.abs(null.score(fresh, said) - language.score(said)).mean() < 0.5
    assert np.abs(made.score(fresh, said) - language.score(said)).mean() > 1.5
    _proposes(made, fresh, wanted)


def _proposes(made: MilanDescriber, fresh: np.ndarray, wanted: np.ndarray) -> None:
    samples = list(fresh.reshape(-1, 4))
    kind = np.repeat(wanted, 15)
    name = name_feature(
        (kind == "red") + 0.01 * np.arange(len(kind)) / len(kind), samples, made.proposer(), made.judge, share=0.2
    )
    assert "red" in name.text
    assert name.score > 0.9
    (first, *_) = made.proposer(1)(Evidence(samples[:15], np.ones(15), samples[15:]))
    assert wanted[0] in first.text


def test_stopping_by_a_function_and_the_published_penalty():
    values, captions, _ = planted(40)
    seen = []

    def score(told, references):
        seen.append((len(told), len(references[0])))
        return float(len(seen))

    made = MilanDescriber(
        hidden=8, **{**SMALL, "max_epochs": 3}, stop=score, official=True, language={"hidden": 8, **SMALL}
    ).fit(values, captions)
    assert seen[0] == (4, 2)
    assert np.isfinite(made.describe(values[:1])[0].pmi)
    language = LanguageModel(made.vocabulary, hidden=8, **SMALL).fit([one for some in captions for one in some])
    with_given = MilanDescriber(hidden=8, **{**SMALL, "max_epochs": 2}, language=language).fit(values, captions)
    assert with_given.language is language
    with pytest.raises(InputError, match="another vocabulary"):
        MilanDescriber(hidden=8, **SMALL, language=LanguageModel(Vocabulary(("x", "y")))).fit(values[:4], captions[:4])


def test_the_best_epoch_is_kept():
    """A stop whose best value comes first gives the weights of the start back."""
    values, captions, _ = planted(40)
    calls: list[int] = []
    made = MilanDescriber(
        hidden=8,
        **{**SMALL, "max_epochs": 20, "patience": 2},
        stop=lambda *_: -float(calls.append(0) or len(calls)),
        language={"hidden": 8, **SMALL},
    ).fit(values, captions)
    torch.manual_seed(0)
    start = Captioner(len(made.vocabulary or ()), 4, 8, 16)
    assert made.network_ is not None
    torch.testing.assert_close(made.network_.output.weight, start.output.weight)
    assert made.history_.state == "stopped early"


def test_vocabulary():
    vocabulary = Vocabulary.of(["The red, RED dog's ball", "a red-hot ball"], min_count=2)
    assert vocabulary.tokens == ("red", "ball")
    assert tokens_of("The dog's, red-hot") == ["the", "dog's", ",", "red", "-", "hot"]
    full = Vocabulary.of(["a red-hot ball, big."])
    (row,) = full.encode(["a red-hot ball, big."]).tolist()
    assert full.decode(row) == "a red-hot ball, big."
    rows = full.encode(["ball unseen", "a big red ball"])
    assert rows[0].tolist()[1:] == [full.unknown, full.stop, full.padding, full.padding]
    assert full.encode(["a big red ball"], length=2).shape == (1, 3)
    assert len({full.start, full.stop, full.padding, full.unknown}) == 4
    with pytest.raises(InputError, match="no word of the caption"):
        full.encode(["unseen thing"])
    with pytest.raises(InputError, match="no word occurs"):
        Vocabulary.of(["a b"], min_count=2)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_until_stop(seed: int):
    rows = np.random.default_rng(seed).integers(0, 3, (4, 6))
    found, more = until_stop(torch.tensor(rows), 2).numpy(), until_stop(torch.tensor(rows), 2, 1).numpy()
    for row, flags, wide in zip(rows, found, more, strict=True):
        end = list(row).index(2) + 1 if 2 in row else 6
        assert flags.tolist() == [at < end for at in range(6)]
        assert wide.tolist() == [at < end + 1 for at in range(6)]


def test_pmi_rank():
    logp, prior = np.log([0.5, 0.3, 0.2]), np.log([0.6, 0.2, 0.2])
    assert pmi_rank(logp, prior, 0.0)[0].tolist() == [0, 1, 2]
    order, score = pmi_rank(logp, prior, 1.0)
    assert order.tolist() == [1, 2, 0]
    np.testing.assert_allclose(score, np.log([0.5 / 0.6, 1.5, 1.0]))
    np.testing.assert_allclose(pmi_rank(prior, prior, 1.0)[1], 0)  # independent: no information
    with pytest.warns(UserWarning, match="lam is 2"):
        pmi_rank(logp, prior, 2.0)
    with pytest.raises(InputError, match="lam"):
        pmi_rank(logp, prior, float("nan"))
    with pytest.raises(InputError, match="shapes"):
        pmi_rank(logp, prior[:2])
    with pytest.raises(NonFiniteError):
        pmi_rank(logp * np.nan, prior)


def test_exhaustive_pmi():
    rng = np.random.default_rng(0)
    space = {f"w{i}": row for i, row in enumerate(np.eye(6))}
    space["any"] = np.ones(6)
    texts = list(space)
    units = np.stack([space[f"w{i % 6}"] + 0.2 * rng.standard_normal((15, 6)) for i in range(12)])
    found = exhaustive_pmi(texts, units, lambda some: [space[one] for one in some], lam=0.5)
    assert [row[0].text for row in found] == [f"w{i % 6}" for i in range(12)]
    for row in found:
        np.testing.assert_allclose(sum(np.exp(one.logp) for one in row), 1)
        assert len(row) == len(texts)
    same = exhaustive_pmi(texts, units[[0, 0, 0]], lambda some: [space[one] for one in some], lam=1.0)
    np.testing.assert_allclose([one.pmi for one in same[0]], 0, atol=1e-9)
    by_hand = exhaustive_pmi(texts, [["w1"]], lambda some: [space[one] for one in some], lambda some: [space[one] for one in some], prior=np.zeros(7), temperature=1)  # fmt: skip
    cosines = np.array([0, 1, 0, 0, 0, 0, 1 / np.sqrt(6)])
    wanted = dict(zip(texts, cosines - np.log(np.exp(cosines).sum()), strict=True))
    for one in by_hand[0]:
        assert one.logp == pytest.approx(wanted[one.text])
    for broken, word in (
        ((texts, units[:1]), "several units"),
        (([], units), "0 candidates"),
        ((texts, units[..., :3]), "one space"),
    ):
        with pytest.raises(InputError, match=word):
            exhaustive_pmi(*broken, lambda some: [space[one] for one in some])
    with pytest.raises(NonFiniteError):
        exhaustive_pmi(texts, units * np.nan, lambda some: [space[one] for one in some])


def test_rank_by_judge():
    candidates = [Description(text, 0.0, 0.0, 0.0) for text in ("a", "b", "c")]
    fits = {("a", 0): 1.0, ("b", 0): 2.0, ("c", 0): 3.0, ("a", 1): 5.0, ("b", 1): 2.0, ("c", 1): 0.0}

    def judge(text, samples):
        return np.array([fits[text, one] for one in samples])

    def order(*args, **more):
        return [one.text for one in rank_by_judge(candidates, judge, *args, **more)]

    assert order([0]) == ["c", "b", "a"]
    assert order([0, 0], [1, 1], lam=1.0) == ["a", "b", "c"]
    assert order([0], [1]) == ["a", "b", "c"]  # 3, 2, 1.5
    with pytest.raises(InputError, match="lam 2"):
        order([0], [1], lam=2)


def test_bad_input():
    values, captions, _ = planted(6)
    fresh = MilanDescriber(hidden=4)
    with pytest.raises(InputError, match="call fit"):
        fresh.describe(values)
    with pytest.raises(InputError, match="call fit"):
        LanguageModel().score(["a"])
    with pytest.raises(InputError, match="captions of 5"):
        fresh.fit(values, captions[:5])
    with pytest.raises(InputError, match="captions of 1 "):
        fresh.fit(values[:1], captions[:1])
    with pytest.raises(InputError, match=r"expected .unit, exemplar, feature"):
        fresh.fit(values[0], captions)
    with pytest.raises(NonFiniteError):
        fresh.fit(values * np.nan, captions)
    with pytest.raises(InputError, match="feature_dim is 3"):
        MilanDescriber(feature_dim=3).fit(values, captions)
    with pytest.raises(InputError, match="at least two"):
        LanguageModel().fit(["one"])
    with pytest.raises(InputError, match="holdout"):
        MilanDescriber(hidden=4, holdout=1.5).fit(values, captions)
    made = describer(dim=4)
    with pytest.raises(InputError, match="strategy"):
        made.describe(values, "best")  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="lam"):
        made.describe(values, lam=-1.0, beam=2)
    with pytest.raises(InputError, match="no word"):
        made.score(values, ["xyz"])
