"""Reading, reasoning and pushing in a network whose features are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError
from netloupe.core.intervene import intervene
from netloupe.lenses.control.concepts import ConceptDictionary
from netloupe.lenses.control.reasoning import ActivationReasoner, steering_edit, steering_vector
from netloupe.lenses.control.rules import RuleBase

WORDS = ("pad", "paris", "france", "tomato", "the", "begin")
NAMES = ("paris", "france", "tomato")


class Words(nn.Module):
    """Each word is a unit; the logits are the states."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding.from_pretrained(2 * torch.eye(6))
        self.block = nn.Identity()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.block(self.tokens(ids))


def layer(rules: str = "paris is france\nparis is not tomato", **options: object) -> ActivationReasoner:
    codes = 2 * np.eye(6)[[1, 4, 2, 4, 3, 4]]
    labels = np.array([[n == word for n in NAMES] for word in ("paris", "", "france", "", "tomato", "")])
    concepts = ConceptDictionary(search_top=None).fit(codes, labels, [0, 0, 1, 1, 2, 2], NAMES)
    return ActivationReasoner(
        Words(), "block", Dictionary(torch.eye(6), "relu"), concepts, RuleBase.parse(rules),
        tokenize=lambda texts: [[WORDS.index(word) for word in text.split()] for text in texts], special=[5], **options,  # type: ignore[arg-type]
    )  # fmt: skip


def test_texts_of_several_lengths_are_read_with_proofs():
    one, other, third = layer().read(["begin the paris", "the", "the tomato the the paris"])
    assert set(one.detected) == {"paris"}
    assert one.local.shape == (2, 3)
    assert one.derivation.derived == ("france", "not tomato")
    assert "line 1: paris is france" in str(one.proof("france"))
    assert one.answer("france and not tomato").value is True
    assert one.heads() == {"france": 1.0, "tomato": -1.0}
    assert (other.detected, other.derivation.derived, other.heads()) == ({}, (), {})
    assert third.sequence == ("tomato", "paris")
    assert third.derivation.conflicts == ("tomato",)
    assert [set(r.detected) for r in layer(scope="text").read([[4, 1]])] == [{"paris"}]


def test_the_push_has_exactly_the_promised_length_and_is_each_items_own():
    found = layer()
    readings = found.read(["the paris", "the the"])
    vectors, pushed = found.steering(readings)
    assert pushed == [{"france": 1.0, "tomato": -1.0}, {}]
    assert not vectors[1].any()
    ids = torch.tensor([[4, 1], [4, 4]])
    plain = found.model(ids)
    for norm in (1, 2):
        with intervene(found.model, steering_edit("block", vectors, 0.5, norm=norm)):  # type: ignore[arg-type]
            moved = found.model(ids) - plain
        assert torch.equal(moved[1], torch.zeros(2, 6))
        assert torch.equal(moved[0, 0], torch.zeros(6))
        assert float(moved[0, 1].norm(p=norm)) == pytest.approx(0.5 * float(plain[0, 1].norm(p=norm)), rel=1e-6)
        assert moved[0, 1, 2] > 0 > moved[0, 1, 3]
    with intervene(found.model, steering_edit("block", vectors, 0.0)):
        assert torch.equal(found.model(ids), plain)
    with intervene(found.model, steering_edit("block", vectors, 2.0, norm="off")):
        assert torch.allclose(found.model(ids)[0, 1], plain[0, 1] + 2 * vectors[0])
    with intervene(found.model, steering_edit("block", vectors, 0.5, last=[0, 1])):
        assert bool((found.model(ids) - plain)[0, 0].any())
    assert torch.equal(found.model(ids), plain)  # nothing stays behind


def test_ways_to_join_concepts():
    concepts = layer().concepts
    rows = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit = rows / rows.norm(dim=1, keepdim=True)
    parts = torch.stack([unit[2], -unit[3]])
    wanted = {"france": 1.0, "tomato": -1.0}
    torch.testing.assert_close(steering_vector(rows, concepts, wanted), parts.sum(0))
    torch.testing.assert_close(steering_vector(rows, concepts, wanted, "mean_shift"), parts.mean(0))
    torch.testing.assert_close(steering_vector(rows, concepts, wanted, "max_shift"), parts.amax(0))
    strongest = steering_vector(rows, concepts, wanted, "strongest", strengths={"tomato": 0.9, "france": 0.1})
    torch.testing.assert_close(strongest, parts[1])


def test_generation_follows_the_conclusion_and_the_item():
    found = layer("paris is france")
    made = found.generate(["the paris", "the the the"], 3, factor=2.0)
    assert made.tokens[0] == [4, 1, 2, 2, 2]
    assert made.tokens[1] == [4, 4, 4, 4, 4, 4]
    assert made.pushed == [{"france": 1.0}, {}]
    assert found.generate(["the paris"], 2, factor=0.0).tokens[0] == [4, 1, 1, 1]
    assert found.generate(["the paris"], 2, factor=2.0, detect="full").tokens[0] == [4, 1, 2, 2]
    assert found.generate(["the paris"], 2, factor=2.0, detect="output").tokens[0] == [4, 1, 2, 2]


def test_facts_may_speak_of_subjects_and_every_text_may_have_its_own_rules():
    def facts(local: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
        return {f"{names[c]}(word{at})": float(v) for at, row in enumerate(local) for c, v in enumerate(row) if v > 0}

    found = layer("paris(x) is capital(x)", facts=facts)
    assert found.read(["the paris"])[0].derivation.derived == ("capital(word1)",)
    own = found.read(["the paris", "the paris"], [RuleBase(["paris(word1) is a"]), RuleBase(["paris(word1) is b"])])
    assert [one.derivation.derived for one in own] == [("a",), ("b",)]


def test_what_cannot_be_used_is_refused():
    with pytest.raises(InputError, match="can never fire: nothing gives rome"):
        layer("rome is france")
    with pytest.raises(InputError, match="follow both"):
        layer("paris is france\nparis is not france")
    with pytest.raises(InputError, match="scope is"):
        layer(scope="word")
    found = layer()
    for texts in ([], [[]], [[5]]):
        with pytest.raises(InputError, match="no token to look at"):
            found.read(texts)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 rule bases were given for 2"):
        found.read([[4], [4]], [RuleBase()])
    found.tokenize = None
    with pytest.raises(InputError, match="no tokenize"):
        found.read(["the"])
    with pytest.raises(InputError, match="5 features"):
        ActivationReasoner(Words(), "block", Dictionary(torch.eye(6)[:5], "relu"), found.concepts, RuleBase())
    with (
        pytest.raises(InputError, match="do not fit site"),
        intervene(found.model, steering_edit("block", torch.ones(3, 6))),
    ):
        found.model(torch.tensor([[4, 1]]))
    for bad in (torch.ones(6), torch.full((1, 6), float("nan"))):
        with pytest.raises(InputError, match="are needed"):
            steering_edit("block", bad)
    with pytest.raises(InputError, match="how is"):
        steering_vector(torch.eye(6), found.concepts, [])
    with pytest.raises(InputError, match="5 directions"):
        steering_vector(torch.eye(6)[:5], found.concepts, ["france"])
