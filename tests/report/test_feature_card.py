"""A feature card against a network whose every effect is known, and the refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError, SiteError, StoreError
from netloupe.lenses.naming.naming import Proposal
from netloupe.models.gpt import ByteGPT
from netloupe.nn.sparse_coder import SparseCoder
from netloupe.report.dictionaries import learn_dictionary
from netloupe.report.feature_card import feature_card, neighbours
from netloupe.report.feature_effects import ablation, pushes, responses, vocabulary
from netloupe.subjects import Data, Subject, load_data


class Two(nn.Module):
    """``head(first(x))`` with an identity in front, so that the site ``first`` is the input."""

    def __init__(self, n_units: int = 6, n_classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Identity()
        self.head = nn.Linear(n_units, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(x))


def _planted(n: int = 240, seed: int = 0) -> tuple[Two, Data, Dictionary]:
    """Class c has unit c on; the dictionary's features are the units."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (n,), generator=draw)
    x = torch.nn.functional.one_hot(labels, 6).float() * (1 + torch.rand(n, 1, generator=draw))
    model = Two()
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(4, 6, generator=draw) * 0.2 + 2 * torch.eye(4, 6))
        model.head.bias.copy_(torch.randn(4, generator=draw) * 0.1)
    batches = [(x[i : i + 50], labels[i : i + 50]) for i in range(0, n, 50)]
    data = Data("planted", batches, "vector", n, labels, ("ant", "bee", "cat", "dog"))
    return model, data, Dictionary(2 * torch.eye(6), "relu", "first", "units", weight=torch.eye(6) / 2)


def test_responses_are_the_codes_over_all_batches() -> None:
    model, data, dictionary = _planted()
    seen = responses(model, data.batches, dictionary, 2, "first")
    codes = dictionary.encode(torch.cat([x for x, _ in data.batches]))[:, 2].numpy()
    np.testing.assert_allclose(seen.strongest, codes, rtol=1e-6)
    assert seen.density == pytest.approx((codes > 0).mean())
    assert seen.n_rows == 240
    assert float(seen.moments.mean[0]) == pytest.approx(codes.mean(), rel=1e-5)


def test_ablation_is_the_network_without_the_unit() -> None:
    model, data, dictionary = _planted()
    seen = responses(model, data.batches, dictionary, 1, "first")
    found = ablation(model, data.batches, dictionary, 1, "first", seen, list(data.class_names or ()), n_places=10)
    x, y = (torch.cat(parts) for parts in zip(*data.batches, strict=True))
    without = x.clone()
    without[:, 1] = 0
    with torch.no_grad():
        before, after = model(x).double().log_softmax(-1), model(without).double().log_softmax(-1)
    assert found is not None
    assert found.loss == pytest.approx(-float(before.gather(1, y[:, None]).mean()), rel=1e-5)
    assert found.loss_without == pytest.approx(-float(after.gather(1, y[:, None]).mean()), rel=1e-5)
    assert found.kl == pytest.approx(float((before.exp() * (before - after)).sum(1).mean()), rel=1e-5)
    top = np.argsort(-seen.strongest, kind="stable")[:10].copy()
    change = (before.exp() - after.exp())[top].mean(0)
    assert [o.text for o in found.raised] == ["bee"]
    assert found.raised[0].change == pytest.approx(float(change[1]), rel=1e-5)
    assert {o.index for o in found.lowered} == {0, 2, 3}
    assert found.n_places == 10


def test_a_feature_that_is_never_on_changes_nothing() -> None:
    model, data, dictionary = _planted()
    seen = responses(model, data.batches, dictionary, 5, "first")
    found = ablation(model, data.batches, dictionary, 5, "first", seen)
    assert found is not None
    assert (found.kl, found.raised, found.lowered) == (0.0, (), ())
    assert found.loss == found.loss_without


def test_pushing_at_equal_divergence_raises_the_features_output_and_random_directions_less() -> None:
    model, data, dictionary = _planted()
    up, down = pushes(model, data.batches, dictionary, 1, "first", [1], (0.1,))
    assert up.converged
    assert abs(up.kl - 0.1) <= 0.005
    assert up.rise > 0 > down.rise
    assert up.rise > abs(up.random_rise)
    assert up.alpha > 0 > down.alpha


def test_vocabulary_projection_is_the_heads_column_and_refuses_other_widths() -> None:
    model, data, dictionary = _planted()
    found = vocabulary(model, data.batches[0], dictionary, 3, "first")  # pyright: ignore[reportIndexIssue]
    assert found is not None
    column = 2 * model.head.weight[:, 3].detach().double()
    expected = column - column.mean()
    for output in (*found[0], *found[1]):
        assert output.change == pytest.approx(float(expected[output.index]), rel=1e-5)
    assert vocabulary(model, data.batches[0], Dictionary(torch.eye(4)), 0, "head") is None  # pyright: ignore[reportIndexIssue]


def test_the_final_norm_and_the_writing_weight_are_applied() -> None:
    model = ByteGPT(16, 2, 2, 24, context=12, random_state=0).eval()
    ids = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(0))
    direction = torch.randn(1, 24, generator=torch.Generator().manual_seed(1))
    found = vocabulary(model, ids, Dictionary(direction), 0, "blocks.1.ffn.down:in")
    with torch.no_grad():
        logits = model.head(model.norm(model.blocks[1].ffn.down.weight @ direction[0]))  # pyright: ignore
    assert found is not None
    assert found[0][0].index == int(logits.argmax())
    assert found[0][0].change == pytest.approx(float(logits.max() - logits.mean()), rel=1e-4)


def test_the_whole_card_of_labelled_data(tmp_path: Path) -> None:
    model, data, dictionary = _planted()
    card = feature_card(
        Subject("two", model), data, dictionary, 2, others={"turned": Dictionary(torch.eye(6).flip(0))}, share=0.3
    )
    assert card.name is not None
    assert card.name.text == "cat"
    assert card.name.score == 1.0
    assert card.name.low > 0.8
    assert card.neighbours[-3].dictionary == "turned"
    assert card.neighbours[-3].feature == 3
    assert card.neighbours[-3].cosine == pytest.approx(1)
    assert [n.feature for n in card.neighbours if n.dictionary == "this dictionary"] != [2]
    written, picture = card.save(tmp_path)
    document = json.loads(written.read_text())
    assert document["name"]["text"] == "cat"
    assert document["ablation"]["raised"][0]["text"] == "cat"
    assert document["density"] == pytest.approx(card.density)
    assert picture.stat().st_size > 10_000
    assert "'cat'" in card.paragraph()


def test_a_card_of_text_names_by_what_stands_there(tmp_path: Path) -> None:
    """A language model whose first block is read at the embedding of one byte: the feature is that byte."""
    model = ByteGPT(32, 1, 2, 32, context=16, random_state=0).eval()
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(97, 123, (80, 16), generator=draw)
    tokens[::4, 7] = ord("#")
    with torch.no_grad():
        directions = torch.linalg.pinv(model.tokens.weight[97:123]).T
        own = model.tokens.weight[ord("#")] - model.tokens.weight[97:123].T @ (
            directions @ model.tokens.weight[ord("#")]
        )
    dictionary = Dictionary((own / own.norm())[None], "relu", "tokens", "planted", bias=torch.tensor([-1e-3]))
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    subject = Subject("gpt", model)
    data = load_data(str(tmp_path / "tokens.npy"), subject)
    shown = Data(**{**data.__dict__, "kind": "text", "show": lambda i: _tokens(tokens[i])})
    card = feature_card(subject, shown, dictionary, 0, share=0.2, kl_targets=(0.05,))
    assert card.name is not None
    assert card.name.text.endswith("#")
    assert card.name.score == 1.0
    assert all("".join(t.text for t in e.tokens if t.strong) == "#" for e in card.examples)
    assert card.density == pytest.approx(20 / (80 * 16))
    card.figure()


def _tokens(row: torch.Tensor):
    from netloupe.subjects import Shown

    return Shown(tokens=tuple(chr(i) for i in row.tolist()))


def test_what_cannot_be_asked_is_said(tmp_path: Path) -> None:
    model, data, dictionary = _planted()
    bare = nn.Sequential(nn.Identity(), nn.Flatten(1), nn.Unflatten(1, (2, 3)))
    unlabelled = Data("x", [torch.rand(40, 6)], "vector", 40)
    card = feature_card(Subject("bare", bare), unlabelled, Dictionary(torch.eye(6), "relu", "0"), 0)
    assert set(card.missing) == {"name", "vocabulary", "pushes"} or set(card.missing) == {"name", "vocabulary"}
    card.figure()
    with pytest.raises(InputError, match="feature 6"):
        feature_card(Subject("two", model), data, dictionary, 6)
    with pytest.raises(InputError, match="site"):
        feature_card(Subject("two", model), data, Dictionary(torch.eye(6)), 0)
    with pytest.raises(SiteError):
        feature_card(Subject("two", model), data, dictionary, 0, site="nowhere")
    normed = Dictionary(torch.eye(6), "nearest", "first", k=1, normed=True)
    assert "normalised" in feature_card(Subject("two", model), data, normed, 0).missing["ablation"]
    with pytest.raises(InputError, match="normalised"):
        normed.ablate(0)
    with pytest.raises(InputError, match="names 2 sites"):
        feature_card(Subject("two", model), data, dictionary, 0, site="*")
    with pytest.raises(InputError, match="names 2 sites"):
        learn_dictionary(Subject("two", model), data, "*", "pca", 2, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="equal widths"):
        neighbours(dictionary, 0, {"other": Dictionary(torch.eye(5))})
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        feature_card(Subject("two", model), data, dictionary, 0).save(tmp_path / "file")


def test_a_users_proposer_and_judge_are_asked() -> None:
    model, data, dictionary = _planted()
    told = []

    def proposer(seen):
        told.append(len(seen.samples))
        return [Proposal("anything")]

    card = feature_card(
        Subject("two", model), data, dictionary, 2, proposer=proposer, judge=lambda _, s: np.zeros(len(s))
    )
    assert card.name is not None
    assert (card.name.text, card.name.score) == ("anything", 0.5)
    assert told == [15]


def test_a_dictionary_is_learned_scored_and_saved_and_goes_on_after_an_interruption(
    tmp_path: Path, monkeypatch
) -> None:
    model, data, _ = _planted()
    subject = Subject("two", model)
    options = {"k": 1, "steps": 60, "batch_size": 32, "rate": 3e-3}
    whole = learn_dictionary(subject, data, "first", "topk", 8, tmp_path / "whole.safetensors", **options)
    assert whole.loss is not None
    assert whole.document()["scores"]["l0"] == pytest.approx(1, abs=0.05)
    again = Dictionary.load(tmp_path / "whole.safetensors")
    assert again.site == "first"

    taken = [0]
    after = SparseCoder.after_step

    def stop(self):
        taken[0] += 1
        if taken[0] == 40:
            raise KeyboardInterrupt
        return after(self)

    monkeypatch.setattr(SparseCoder, "after_step", stop)
    with pytest.raises(KeyboardInterrupt):
        learn_dictionary(subject, data, "first", "topk", 8, tmp_path / "cut.safetensors", **options)
    assert not (tmp_path / "cut.safetensors").exists()
    done = learn_dictionary(subject, data, "first", "topk", 8, tmp_path / "cut.safetensors", **options)
    assert taken[0] < 100  # it did not begin anew
    assert torch.equal(done.dictionary.directions, whole.dictionary.directions)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.safetensors", "whole.safetensors"]
    with pytest.raises(InputError, match="option 'kk'"):
        learn_dictionary(subject, data, "first", "topk", 8, tmp_path / "x.safetensors", kk=1)
    refused: tuple[dict[str, Any], ...] = ({"k": "abc"}, {"k": 9}, {"k": 1, "steps": 1.5})
    for wrong in refused:  # and what was recorded does not stay
        with pytest.raises(InputError, match="expected"):
            learn_dictionary(subject, data, "first", "topk", 8, tmp_path / "x.safetensors", **wrong)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.safetensors", "whole.safetensors"]
    with pytest.raises(InputError, match="expected one of"):
        learn_dictionary(subject, data, "first", "magic", 8, tmp_path / "x.safetensors")
