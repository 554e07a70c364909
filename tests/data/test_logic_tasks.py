"""Logic tasks: the answers are what the rules entail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netloupe.core.errors import InputError, SubjectError
from netloupe.data.logic_tasks import (
    COUNTRIES,
    TEST_TEMPLATES,
    TRAIN_TEMPLATES,
    concept_sentences,
    country_rules,
    load_prontoqa,
    load_proverqa,
    pronto_like,
    prover_like,
    rail2country_like,
)  # fmt: skip
from netloupe.lenses.control.rules import RuleBase


def test_sentences_show_their_concept_and_no_template_is_in_both_lists():
    items = concept_sentences()
    assert len(items) == 12 * (6 * 6 + 6 * 3)
    assert all(item.words[first] not in ("{}", "") for item in items for first, _, _ in item.spans)
    assert not set(TRAIN_TEMPLATES) & set(TEST_TEMPLATES)


@pytest.mark.parametrize("hops", [1, 3, 5])
def test_chains_have_the_answer_and_the_length_that_is_said(hops: int):
    items = pronto_like(20, hops, seed=3)
    assert sum(item.answer is True for item in items) == 10
    for item in items:
        base = RuleBase.parse(item.rules)
        found = base.prove(item.goal, item.facts)
        assert found.value is item.answer
        assert item.proof_length == (found.proof.depth if found.value and found.proof else 0)
        assert base.check() == []
    assert items == pronto_like(20, hops, seed=3)


def test_flags_follow_and_exchanged_colours_give_none():
    right, wrong = RuleBase.parse(country_rules()), RuleBase.parse(country_rules(("red", "white")))
    for meta in (False, True):
        for item in rail2country_like(30, meta, seed=1):
            assert [one for one in right.closure(item.facts).derived if one in COUNTRIES] == [item.answer]
            assert wrong.closure(item.facts).derived == ()
            assert len(item.segments) == len(item.spans) == 3


@pytest.mark.parametrize("seed", range(2))
def test_three_valued_answers_are_entailments(seed: int):
    items = prover_like(30, 3, seed)
    assert {item.answer for item in items} == {True, False, None}
    for item in items:
        found = RuleBase.parse(item.rules).prove(item.goal, item.facts, world="open")
        assert found.value is item.answer


def test_sizes_that_cannot_be():
    for call in (
        lambda: pronto_like(0, 1),
        lambda: pronto_like(1, 13),
        lambda: rail2country_like(0),
        lambda: prover_like(1, 0),
    ):
        with pytest.raises(InputError):
            call()


def test_official_files_are_read(tmp_path: Path):
    example = {
        "question": "Every wumpus is a tumpus. Tumpuses are not vumpuses. Max is a wumpus.", "query": "True or false: Max is not a vumpus.",
        "answer": "True", "chain_of_thought": ["a", "b", "c", "d"],
    }  # fmt: skip
    path = tmp_path / "pronto.json"
    path.write_text(json.dumps({"example1": {"test_example": example}}))
    (item,) = load_prontoqa(path)
    assert item.rules.splitlines() == ["wumpus(x) is tumpus(x)", "tumpus(x) is not vumpus(x)"]
    assert (item.facts, item.goal, item.answer) == (("wumpus(Max)",), "not vumpus(Max)", True)
    assert RuleBase.parse(item.rules).prove(item.goal, item.facts).value is True
    other = tmp_path / "prover.json"
    one = {
        "nl2fol": {"a": "∀x (wet(x) → cold(x))", "b": "wet(Max) ⊕ dry(Max)", "c": "¬dry(Max)"},
        "conclusion_fol": "cold(Max)", "answer": "A", "context": "Some text.", "question": "True?",
    }  # fmt: skip
    other.write_text(json.dumps([one]))
    (item,) = load_proverqa(other)
    assert RuleBase.parse(item.rules).prove(item.goal, item.facts, world="open").value is item.answer is True
    for path, call in (
        (other, load_prontoqa),
        (tmp_path / "none", load_prontoqa),
        (tmp_path / "pronto.json", load_proverqa),
    ):
        with pytest.raises(SubjectError):
            call(path)
