"""The relation-neurons study: its smallest run, and the way a language model with a tokenizer takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netloupe.core.errors import InputError, SubjectError
from netloupe.core.study import run_study
from netloupe.data.triples import Relation
from netloupe.studies._relation_neurons_network import llm_world, world_of_text
from netloupe.studies.relation_neurons import SETTINGS

N = 20


class Words:
    """A tokenizer of one token a word."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        start = [0] if add_special_tokens else []
        return {"input_ids": start + [self.known.setdefault(word, len(self.known) + 1) for word in text.split()]}


class Knows(nn.Module):
    """Says the first word's object: every relation has one."""

    def __init__(self, answers: dict[int, int]) -> None:
        super().__init__()
        self.tokens = nn.Embedding.from_pretrained(torch.eye(200))
        self.fc1, self.fc2 = nn.Linear(200, 16), nn.Linear(16, 200)
        with torch.no_grad():
            for part in (self.fc1, self.fc2):
                part.weight.zero_()
                part.bias.zero_()
            for unit, (word, reply) in enumerate(answers.items()):
                self.fc1.weight[unit, word] = 1
                self.fc2.weight[reply, unit] = 4

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.tokens(tokens))).cumsum(1))


def test_smoke_verdicts():
    found = {claim.name: claim for claim in run_study("relation-neurons", "smoke", seed=0).claims}
    assert len(found) == 9
    for name in ("own over other", "exact average precision", "cumulative"):
        assert found[name].verdict == "reproduced", name
    assert found["text encoder"].verdict == "not tested"
    with pytest.raises(InputError, match="preset"):
        run_study("relation-neurons", "huge")  # type: ignore[arg-type]


def test_a_language_model_is_ranked_on_what_it_knows_and_judged_on_other_subjects():
    words = Words()
    relations = [
        Relation(f"r{r}", (f"word{r} of {{}} is",), tuple((f"s{i}", f"o{r}" if i % 4 else "other") for i in range(N)))
        for r in range(3)
    ]
    first = {words(f"word{r} o{r}")["input_ids"][1]: words(f"o{r}")["input_ids"][1] for r in range(3)}
    world = world_of_text(Knows(first), words, relations, SETTINGS["smoke"], 0, 5)
    assert not set(world.subjects) & set(world.questions.subjects)
    assert all(int(name[1:]) % 4 for name in world.subjects), "wrong answers are not ranked on"
    assert np.bincount(world.questions.relations).tolist() == [5, 5, 5]
    assert [int(one[0]) for one in world.ranking.sets(1)] == [0, 1, 2]
    few = [Relation("r", ("word0 of {} is",), tuple((f"t{i}", "nothing") for i in range(N)))]
    with pytest.raises(SubjectError, match="five of two relations"):
        world_of_text(Knows(first), words, [relations[0], *few], SETTINGS["smoke"], 0, 5)


def test_the_full_preset_names_what_it_needs(monkeypatch):
    monkeypatch.delenv("NETLOUPE_MODEL", raising=False)
    with pytest.raises(SubjectError, match="needs NETLOUPE_MODEL"):
        llm_world(SETTINGS["full"], 0)
