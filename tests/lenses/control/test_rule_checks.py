"""What is said about rules before they run."""

from __future__ import annotations

from netloupe.lenses.control.checks import cycles
from netloupe.lenses.control.derivation import cycle_through
from netloupe.lenses.control.rules import Rule, RuleBase


def test_checks_name_contradiction_cycle_and_rules_that_never_fire():
    base = RuleBase.parse("penguin is bird\nbird is flies\npenguin is not flies\nflies is bird\nfish is swims")
    kinds = {one.kind: one for one in base.check(detectable=["penguin", "bird"])}
    contradiction = kinds["contradiction"]
    assert contradiction.line == 1
    assert "penguin" in contradiction.message
    assert [proof.conclusion for proof in contradiction.proofs] == ["flies", "not flies"]
    assert kinds["cycle"].message.endswith("bird -> flies -> bird")
    assert kinds["cycle"].line == 2
    assert kinds["unreachable"].line == 5
    assert "fish" in kinds["unreachable"].message
    assert "bird" in kinds["answer in facts"].message
    assert RuleBase(["a is b", "b is c"]).check(detectable=["a"]) == []


def test_contradiction_of_given_facts():
    base = RuleBase(["a is c", "b is not c"])
    assert base.check() == []
    (found,) = base.check(["a", "b"])
    assert found.kind == "contradiction"
    assert "the facts" in found.message


def test_cycles_do_not_make_anything_follow_and_the_shortest_way_round_is_told():
    base = RuleBase(["a is b", "b is c", "c is a", "b is a", "d is a"])
    assert base.closure().derived == ()
    assert base.complex("a").value is False
    assert base.complex("c", "d").value is True
    (cycle,) = base.check()
    assert cycle.message.endswith("a -> b -> a")
    assert cycle_through({"q": {"q"}}, "q", "q") == ["q", "q"]


def test_every_group_of_concepts_that_rest_on_each_other_is_told_once():
    found = cycles([Rule.parse(text) for text in ("a is b", "b is a", "c is d", "d is e", "e is c", "a is c")])
    assert sorted(map(len, found)) == [3, 4]
    assert all(way[0] == way[-1] for way in found)
